"""How many records each worker has begun, in memory that outlives it.

What a worker knows dies with it: the streams that it carried, and what it had answered and not yet told.  So
it counts what it begins where a ``kill -9`` does not reach: in shared memory (``memfd_create``) that the
supervisor makes and every child inherits.  It has no path, so nothing is left behind, nothing is ever of an
earlier run, and no disk can make a worker wait.

A worker number has a ring of ``ENTRIES`` entries, one for each of its last incarnations.  An entry is eight
native 64-bit integers, of which each has one writer, and is written at once:

    incarnation | pid | serial | begun      by the worker: who it is, and how many records it has begun
    settled | counted                       by the control process: up to which number, and whether it is done

Standard library only: the supervisor imports this and should weigh nothing.
"""

from __future__ import annotations

import mmap
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Incarnations of one worker that are told apart before the control process has looked at them.
ENTRIES = 8
_CELLS = 8  # of 8 bytes: a cache line, so that no two workers write to the same one
_ENTRY_BYTES = 8 * _CELLS
_INCARNATION, _PID, _SERIAL, _BEGUN, _SETTLED, _COUNTED = range(6)


def make_tally(workers: int) -> int | None:
    """The memory for so many workers, as a file descriptor; ``None`` where the kernel gives none."""
    try:
        fd = os.memfd_create("legato-tally")
        os.ftruncate(fd, workers * ENTRIES * _ENTRY_BYTES)
    except (AttributeError, OSError):
        return None  # then losses are estimated from the last beat
    return fd


class Begun:
    """A worker's own entry: ``count`` is called for every record that is to come, when it begins."""

    __slots__ = ("_at", "_cells")

    def __init__(self, cells: memoryview | list[int] | None = None, at: int = 0) -> None:
        self._cells = [0] if cells is None else cells  # without an entry it counts for nobody
        self._at = at

    def count(self) -> None:
        """One more record was begun.  Costs no system call."""
        self._cells[self._at] += 1

    @property
    def counted(self) -> int:
        """How many so far."""
        return int(self._cells[self._at])


def claim(fd: int | None, worker: int, incarnation: str, pid: int) -> Begun:
    """A fresh entry for this worker; one that nobody reads where there is no memory for it.

    ``incarnation``: 16 hex digits.  What of its ring was counted goes first, else the oldest.
    """
    try:
        cells = None if fd is None else _mapped(fd)
    except (OSError, ValueError):
        cells = None
    ring = range(worker * ENTRIES * _CELLS, (worker + 1) * ENTRIES * _CELLS, _CELLS)
    if cells is None or ring.stop > len(cells):
        return Begun()
    at = min(ring, key=lambda each: (bool(cells[each]) and not cells[each + _COUNTED], cells[each + _SERIAL]))
    serial = max(cells[each + _SERIAL] for each in ring) + 1
    cells[at] = 0  # nobody's, until it is whole
    for cell, value in ((_PID, pid), (_SERIAL, serial), (_BEGUN, 0), (_SETTLED, 0), (_COUNTED, 0)):
        cells[at + cell] = value
    cells[at] = int(incarnation, 16)
    return Begun(cells, at + _BEGUN)


class Entry:
    """One incarnation of a worker.  ``settled``: its records up to this number were in somebody's books."""

    __slots__ = ("at", "begun", "dead", "incarnation", "pid", "settled", "worker")

    def __init__(
        self, at: int, worker: int, incarnation: str, pid: int, begun: int, settled: int, *, dead: bool
    ) -> None:
        self.at = at
        self.worker = worker
        self.incarnation = incarnation
        self.pid = pid
        self.begun = begun
        self.settled = settled
        self.dead = dead


class Tally:
    """The control process's view of all entries.  ``exists``: whether there is a process with this pid."""

    def __init__(self, fd: int, exists: Callable[[int], bool] | None = None) -> None:
        """Raises ``OSError`` or ``ValueError`` where ``fd`` is no such memory."""
        self._cells = _mapped(fd)
        self._exists = _exists if exists is None else exists

    def entries(self) -> list[Entry]:
        """Those that were not counted yet; dead is who has a successor, or whose process is gone."""
        found: list[Entry] = []
        cells = self._cells
        for first in range(0, len(cells), ENTRIES * _CELLS):
            ring = range(first, first + ENTRIES * _CELLS, _CELLS)
            latest = max(cells[at + _SERIAL] for at in ring)
            for at in ring:
                if not cells[at] or cells[at + _COUNTED]:
                    continue
                pid = cells[at + _PID]
                dead = cells[at + _SERIAL] < latest or not self._exists(pid)
                # What it has begun is read last: nothing comes after a death.
                name, settled, begun = f"{cells[at]:016x}", cells[at + _SETTLED], cells[at + _BEGUN]
                worker = first // (ENTRIES * _CELLS)
                found.append(Entry(at, worker, name, pid, begun, settled, dead=dead))
        return found

    def find(self, worker: int, incarnation: str) -> int | None:
        """Where its entry is; ``None``: it has none."""
        first = worker * ENTRIES * _CELLS
        for at in range(first, min(first + ENTRIES * _CELLS, len(self._cells)), _CELLS):
            if f"{self._cells[at]:016x}" == incarnation:
                return at
        return None

    def settled(self, at: int, incarnation: str, number: int) -> None:
        """Its records up to this number are booked here, or known to be lost."""
        cells = self._cells
        if number > cells[at + _SETTLED] and cells[at] == int(incarnation, 16):  # else it is another's by now
            cells[at + _SETTLED] = number

    def counted(self, at: int) -> None:
        """What it took along was counted: the entry may be used again."""
        self._cells[at + _COUNTED] = 1


def _mapped(fd: int) -> memoryview:
    """All of it, shared, as 64-bit integers (one store each: no half-written number is ever left)."""
    return memoryview(mmap.mmap(fd, os.fstat(fd).st_size)).cast("Q")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is there, and another user's by now
    return True
