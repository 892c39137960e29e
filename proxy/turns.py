"""A worker asks the scheduler for short turns, and so for early ones.

Where worker and control process share a core, a chunk that arrives while the control process computes would
wait until that one's turn is over (Linux's EEVDF protects it for a slice, some 3 ms).  Who asks for a shorter
slice is let in before (``sched_setattr(2)``, since Linux 6.12; it takes no right).  Where it is not known
nothing changes.
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Final

#: The shortest that the kernel takes.
SLICE_NS: Final = 100_000
_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime_ns", ctypes.c_uint64),
        ("deadline_ns", ctypes.c_uint64),
        ("period_ns", ctypes.c_uint64),
    )


def ask_for_short_turns() -> bool:
    """For this thread; whether the kernel took it (one before 6.12 takes it and does nothing)."""
    number = _SCHED_SETATTR.get(platform.machine())
    policy = os.sched_getscheduler(0)
    if number is None or policy not in (os.SCHED_OTHER, os.SCHED_BATCH):
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    wanted = _Attributes(policy=policy, nice=nice, runtime_ns=SLICE_NS)
    wanted.size = ctypes.sizeof(wanted)
    call = ctypes.CDLL(None, use_errno=True).syscall
    return bool(call(ctypes.c_long(number), 0, ctypes.byref(wanted), 0) == 0)
