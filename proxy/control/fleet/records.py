"""Which records go to Redis, so that a request is found on any host: some of the latest, some of the worst.

At most so many a second; the others are on their own host only.  What Redis does not take stays, the latest,
in bounded number.  A record whose answer was lost is appended again: readers know it by its id.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from proxy.control.fleet.layout import LAYOUT, RECENT_MOST, WORST_MOST, RecordValue, encode
from proxy.control.settle import Settled

RECENT_A_SECOND: Final = 200
WORST_A_SECOND: Final = 100
_S: Final = 1_000_000_000
#: Larger ones are not shared (a record is 1 to 2 kB; tags are a client's).
_RECORD_MOST: Final = 16_384
#: Records made ready between two turns of the loop.
_AT_ONCE: Final = 16
_encoder: Final = msgspec.json.Encoder()


class Batch(NamedTuple):
    """What to append now, the oldest first."""

    recent: list[bytes]
    worst: list[bytes]


class RecordQueue:
    """See the module.  ``take`` is called with every settled batch."""

    def __init__(self) -> None:
        self._second = 0
        self._recent: deque[Settled] = deque(maxlen=2 * RECENT_A_SECOND)
        self._worst: list[tuple[float, int, int, Settled]] = []  # the least bad on top
        self._room = RECENT_A_SECOND
        self._told = 0
        self._recent_ready: deque[bytes] = deque(maxlen=RECENT_MOST)
        self._worst_ready: deque[bytes] = deque(maxlen=WORST_MOST)

    def take(self, batch: Sequence[Settled], now_ns: int) -> None:
        """Choose from what was settled; ``now_ns``: monotonic."""
        second = now_ns // _S
        if second != self._second:
            self._second, self._room = second, RECENT_A_SECOND
        for settled in batch:
            if self._room > 0:
                self._room -= 1
                self._recent.append(settled)
            self._take_worst(settled)

    def _take_worst(self, settled: Settled) -> None:
        score = settled.score
        if score is None or score.fluidity is None or not score.missed:
            return
        self._told += 1  # no two entries are equal, so requests are never compared
        entry = (-score.fluidity, score.missed, -self._told, settled)
        if len(self._worst) < WORST_A_SECOND:
            heapq.heappush(self._worst, entry)
        elif entry > self._worst[0]:
            heapq.heapreplace(self._worst, entry)

    def ready(self) -> Iterator[None]:
        """Make ready what was chosen since the last time, some records a step."""
        recent, worst = list(self._recent), sorted(self._worst)
        self._recent.clear()
        self._worst.clear()
        for chosen, ready in (
            (recent, self._recent_ready),
            ([entry[3] for entry in worst], self._worst_ready),
        ):
            for number, settled in enumerate(chosen):
                data = _encoder.encode(settled.record)
                if len(data) <= _RECORD_MOST:
                    ready.append(encode(RecordValue(LAYOUT, data)))
                if number % _AT_ONCE == _AT_ONCE - 1:
                    yield

    def waiting(self) -> Batch:
        """What is ready, no more than is sent at a time."""
        return Batch(
            list(islice(self._recent_ready, RECENT_A_SECOND)), list(islice(self._worst_ready, WORST_A_SECOND))
        )

    def taken(self, batch: Batch) -> None:
        """Redis has these."""
        for ready, sent in ((self._recent_ready, batch.recent), (self._worst_ready, batch.worst)):
            last = sent[-1] if sent else None
            while sent and ready:
                if ready.popleft() is last:
                    break
