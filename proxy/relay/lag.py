"""How late the event loop runs, sampled all the time: our own lateness is never the server's fault.

A timer of 10 ms that comes late tells that the loop did nothing up to that moment, and since when at the
latest: since it was due.  What held the loop may have begun at any time since the sample before, when it was
last seen alive.  So a span of lateness reaches back by that doubt too, but by no more than the lateness that
was seen: a token that is overdue by a few nanoseconds more than what was seen must not become the server's,
and a millisecond of ours must not excuse ten of the server's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from heapq import nlargest
from typing import Final, NamedTuple

from proxy.clock import monotonic_ns
from proxy.relay.delays import Octaves

INTERVAL_NS: Final = 10_000_000
#: The grain of the loop's timers: up to so much is no lateness.
GRAIN_NS: Final = 1_000_000
#: Lateness worth remembering one by one; below it the histogram is enough.
_NOTABLE_NS: Final = 1_000_000
#: Lateness that is remembered apart, so that many short ones do not push it out.
_LONG_NS: Final = 10_000_000
#: How many are remembered: looking at all of them, when a stream ends, holds the loop for half a millisecond.
_SHORT_MARKS: Final = 512
_LONG_MARKS: Final = 1024

Span = tuple[int, int]  # from_ns, to_ns


class Lateness(NamedTuple):
    """Our own lateness within some time: where it may be to blame, and the longest that was seen."""

    spans: list[Span]
    longest_ns: int


class LoopLag:
    """A timer that measures by how much it is late."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.histogram = Octaves()
        # (at_ns, lag_ns) of the notable samples, in two sizes.  A long one takes 20 ms: 20 s of nothing else.
        self.marks: deque[tuple[int, int]] = deque(maxlen=_SHORT_MARKS)
        self.long_marks: deque[tuple[int, int]] = deque(maxlen=_LONG_MARKS)
        self.recent_sum_ns = 0
        self.recent = 0
        self._loop = loop
        self._due_ns = 0

    def start(self) -> None:
        """Begin to sample."""
        self._due_ns = monotonic_ns() + INTERVAL_NS
        self._loop.call_later(INTERVAL_NS / 1e9, self._tick)

    def _tick(self) -> None:
        now_ns = monotonic_ns()
        self.observe(now_ns, self.late_ns(now_ns))
        self.start()

    def late_ns(self, now_ns: int) -> int:
        """By how much the sample that is due would be late, came it now."""
        return max(0, now_ns - self._due_ns - GRAIN_NS) if self._due_ns else 0

    def observe(self, now_ns: int, lag_ns: int) -> None:
        """Count one sample."""
        self.histogram.add(lag_ns)
        self.recent_sum_ns += lag_ns
        self.recent += 1
        if lag_ns >= _NOTABLE_NS:
            (self.long_marks if lag_ns >= _LONG_NS else self.marks).append((now_ns, lag_ns))

    def mean_and_reset_ns(self) -> int:
        """The mean since the last call; a full second without one sample cannot happen."""
        mean = self.recent_sum_ns // self.recent if self.recent else 0
        self.recent_sum_ns = self.recent = 0
        return mean

    def between(self, from_ns: int, to_ns: int) -> Lateness:
        """The notable lateness that touches the time from ``from_ns`` to ``to_ns``, which is now.

        The sample that is due now counts: what the loop does first after it stood still may be the end of a
        stream, before the timer has its turn.
        """
        found: list[Span] = []
        longest_ns = 0
        late_now_ns = self.late_ns(to_ns)
        due: list[tuple[int, int]] = [(to_ns, late_now_ns)] if late_now_ns >= _NOTABLE_NS else []
        for marks in (due, self.long_marks, self.marks):
            for at_ns, lag_ns in reversed(marks):
                if at_ns < from_ns:
                    break
                low_ns = at_ns - lag_ns - min(lag_ns, INTERVAL_NS + GRAIN_NS)
                if low_ns <= to_ns:
                    found.append((low_ns, at_ns))
                    longest_ns = max(longest_ns, lag_ns)
        return Lateness(found, longest_ns)


def longest(spans: list[Span], most: int) -> tuple[Span, ...]:
    """At most ``most`` of them, the longest, oldest first."""
    if len(spans) > most:
        spans = nlargest(most, spans, key=lambda span: span[1] - span[0])
    return tuple(sorted(spans))
