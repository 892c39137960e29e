"""What a child does about its parent, the supervisor (Linux).

A worker asks the kernel for a signal when the supervisor dies; the control process looks whether it is still
there.  The supervisor itself sets the signal up in the child before it becomes a worker, so that none is
missed while the interpreter starts.
"""

from __future__ import annotations

import ctypes
import os

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(signum: int) -> None:
    """Have the kernel send ``signum`` to this process when its parent ends.  ``OSError`` if it will not."""
    if _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signum), 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class ParentWatch:
    """Remembers who the parent is: create it at start."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = os.getppid()

    def gone(self) -> bool:
        """The parent that started this process has ended."""
        return os.getppid() != self.pid
