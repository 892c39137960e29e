"""How far each worker's requests are in the slots, and what a control process took with it.  Pure.

A worker numbers its requests and is told once one is settled (``Ack``).  When its control process dies, what
was settled since the last write that Redis acknowledged is in no slot: the next control process compares what
the worker was told (``Hello.acked``) with what Redis has (``seen:W``) and counts the difference as
``settled_before_write``.  At most that many are lost, never more: a ``seen`` that Redis lost counts as none.
They are among those that ``settled_by_lost_control`` counts, which are all that are missing in the new
process's own sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: Worker incarnations that are remembered; each restart of a worker is one more.
_WORKERS_MOST: Final = 256
#: Redis forgets ``seen`` after a day: it is told again each hour.
_TOLD_EVERY_NS: Final = 3_600_000_000_000


class Losses:
    """See the module."""

    def __init__(self) -> None:
        self.settled_before_write = 0
        self._seen: dict[str, int] = {}  # the last number that was booked
        self._packing: dict[str, int] = {}
        self._packed: dict[str, int] = {}  # the last number that the outbox has
        self._written: dict[str, int] = {}
        self._acked: dict[str, int] = {}  # workers of which is not known yet what their last control wrote
        self._told_at_ns: int | None = None

    # ------------------------------------------------------------ what workers say

    def hello(self, worker: str, acked: int) -> None:
        """A worker connected, for the first time or again."""
        if worker not in self._seen:
            self._note(worker, 0)
            if acked > 0:
                self._acked[worker] = acked

    def seen(self, worker: str, number: int) -> None:
        """All of a worker's requests up to this number are booked, or known to be lost."""
        self._note(worker, max(number, self._seen.get(worker, 0)))

    def _note(self, worker: str, number: int) -> None:
        self._seen.pop(worker, None)
        self._seen[worker] = number
        while len(self._seen) > _WORKERS_MOST:
            oldest = next(iter(self._seen))
            for each in (self._seen, self._packed, self._written, self._acked):
                each.pop(oldest, None)

    # ------------------------------------------------------------ what a former control process lost

    @property
    def asked(self) -> list[str]:
        """Of whom Redis must be asked."""
        return list(self._acked)

    def answered(self, asked: Sequence[str], seen: Sequence[int | None]) -> None:
        """What Redis has of those; others may have come, and some have gone, since it was asked.

        What is counted is known to be lost; were it not noted in ``seen``, the next one would count it too.
        """
        for worker, number in zip(asked, seen, strict=True):
            acked = self._acked.pop(worker, None)
            if acked is not None:
                self.settled_before_write += max(acked - (number or 0), 0)
                self.seen(worker, acked)

    # ------------------------------------------------------------ what this one has written

    def packing(self) -> None:
        """All that is booked by now will be in the outbox ..."""
        self._packing = dict(self._seen)

    def packed(self) -> None:
        """... and is."""
        self._packed = self._packing

    def due(self, now_ns: int) -> dict[str, int]:
        """What to write as ``seen``, once nothing waits in the outbox.

        Never of a worker before it is known what its last control process wrote there.
        """
        if self._told_at_ns is None or now_ns - self._told_at_ns >= _TOLD_EVERY_NS:
            self._told_at_ns = now_ns
            self._written.clear()
        return {
            worker: number
            for worker, number in self._packed.items()
            if number and worker not in self._acked and self._written.get(worker) != number
        }

    def written(self, seen: dict[str, int]) -> None:
        """Redis has it."""
        self._written |= seen

    def all_again(self) -> None:
        """Redis lost it."""
        self._written.clear()
