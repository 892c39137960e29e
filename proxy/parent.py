"""What a child does about its parent, the supervisor, and about its siblings (Linux).

A worker asks the kernel for a signal when the supervisor dies; the control process looks whether it is still
there.  The supervisor itself sets the signal up in the child before it becomes a worker, so that none is
missed while the interpreter starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

_NICE = 10
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(signum: int) -> None:
    """Have the kernel send ``signum`` to this process when its parent ends.  ``OSError`` if it will not."""
    if _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signum), 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def step_back() -> None:
    """Let this process have the processor only when the workers leave it.

    Settling a request takes up to a millisecond of arithmetic.  On a core that both share, a worker that has
    a chunk to forward must not wait for it: no scheduling class but the batch one, which preempts nobody,
    and a nice value at which the kernel gives a busy worker some nine tenths.
    """
    with contextlib.suppress(OSError):  # a sandbox may forbid it; then they share evenly
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        os.nice(_NICE)


class ParentWatch:
    """Remembers who the parent is: create it at start."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = os.getppid()

    def gone(self) -> bool:
        """The parent that started this process has ended."""
        return os.getppid() != self.pid
