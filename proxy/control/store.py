"""The records that can still be looked at: the most recent ones, and the worst since the start.

Both are bounded in number and in bytes of arrivals.  Where the bytes run out the oldest (or the least bad)
lose their arrivals first and keep their record: the timeline is gone, the numbers are not.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from proxy.control.settle import Settled

RECENT: Final = 1_000
WORST: Final = 100
ARRIVAL_BYTES: Final = 32 * 1024 * 1024


_STALL_BYTES: Final = 200  # a Stall and its numbers


def _size(settled: Settled) -> int:
    """Bytes that the arrivals of a request take: packed, unpacked, and its stalls."""
    stream = settled.facts.stream
    if stream is None:
        return 0
    stalls = 0 if settled.score is None else len(settled.score.stalls)
    return 2 * sum(len(packed) for packed in stream.choices) + _STALL_BYTES * stalls


class Kept:
    """A settled request in one of the books; without ``arrivals`` its timeline is no longer known."""

    __slots__ = ("arrivals", "settled", "size")

    def __init__(self, settled: Settled) -> None:
        self.settled = settled
        self.size = _size(settled)
        self.arrivals = self.size > 0

    def strip(self) -> int:
        """Forget the arrivals; returns the bytes given back."""
        given = self.size
        if self.arrivals:
            self.settled = self.settled.without_arrivals()
        self.arrivals = False
        self.size = 0
        return given


class Recent:
    """A ring of the last ``limit`` requests."""

    def __init__(self, limit: int = RECENT, arrival_bytes: int = ARRIVAL_BYTES) -> None:
        self._limit = limit
        self._bound = arrival_bytes
        self._kept: deque[Kept] = deque()
        self._bytes = 0
        self._stripped = 0  # so many of the oldest have lost their arrivals

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Kept]:
        """Newest first."""
        return reversed(self._kept)

    def add(self, settled: Settled) -> None:
        """Keep one; the oldest goes when there are too many."""
        kept = Kept(settled)
        self._kept.append(kept)
        self._bytes += kept.size
        if len(self._kept) > self._limit:
            self._bytes -= self._kept.popleft().size
            self._stripped = max(self._stripped - 1, 0)
        while self._bytes > self._bound and self._stripped < len(self._kept):
            self._bytes -= self._kept[self._stripped].strip()
            self._stripped += 1


class Worst:
    """The ``limit`` worst scored requests: the lowest fluidity first, then the most missed deadlines."""

    def __init__(self, limit: int = WORST, arrival_bytes: int = ARRIVAL_BYTES) -> None:
        self._limit = limit
        self._bound = arrival_bytes
        self._heap: list[tuple[float, int, int, Kept]] = []  # the least bad on top
        self._bytes = 0
        self._count = 0

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Kept]:
        """Worst first; of equals the older first."""
        return (entry[3] for entry in sorted(self._heap, reverse=True))

    def add(self, settled: Settled) -> None:
        """Keep one if it is among the worst; a request that missed nothing is never."""
        score = settled.score
        if score is None or score.fluidity is None or score.missed == 0:
            return
        self._count += 1
        rank = (-score.fluidity, score.missed, -self._count)
        if len(self._heap) >= self._limit and rank <= self._heap[0][:3]:
            return
        kept = Kept(settled)
        self._bytes += kept.size
        heapq.heappush(self._heap, (*rank, kept))
        if len(self._heap) > self._limit:
            self._bytes -= heapq.heappop(self._heap)[3].size
        if self._bytes > self._bound:
            self._shed()

    def _shed(self) -> None:
        for *_, kept in sorted(self._heap):
            if self._bytes <= self._bound:
                return
            self._bytes -= kept.strip()


class Store:
    """Both books, and the look-up over both."""

    def __init__(self, recent: int = RECENT, worst: int = WORST, arrival_bytes: int = ARRIVAL_BYTES) -> None:
        self.recent = Recent(recent, arrival_bytes)
        self.worst = Worst(worst, arrival_bytes)

    def add_many(self, batch: Iterable[Settled]) -> None:
        """Keep what was settled, oldest first."""
        for settled in batch:
            self.recent.add(settled)
            self.worst.add(settled)

    def find(self, name: str) -> Kept | None:
        """By id, else by request_id, response_id or trace_id: the newest, one with arrivals first."""
        found = self._first(lambda settled: settled.facts.id == name)
        return found if found is not None else self._first(lambda settled: name in settled.names)

    def _first(self, matches: Callable[[Settled], bool]) -> Kept | None:
        found: Kept | None = None
        for book in (self.recent, self.worst):
            for kept in book:
                if matches(kept.settled):
                    if kept.arrivals:
                        return kept
                    found = found or kept
                    break
        return found
