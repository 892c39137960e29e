"""How late the event loop runs, sampled all the time: our own lateness is never the server's fault."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from proxy.clock import monotonic_ns
from proxy.relay.delays import Octaves

INTERVAL_NS: Final = 10_000_000
#: Lateness worth remembering one by one; below it the histogram is enough.
_NOTABLE_NS: Final = 1_000_000
_MARKS: Final = 2048


class LoopLag:
    """A timer that measures by how much it is late."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.histogram = Octaves()
        self.marks: deque[tuple[int, int]] = deque(maxlen=_MARKS)  # (at_ns, lag_ns) of the notable ones
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
        # The loop's timers have a millisecond's grain: up to one of it is no lateness.
        lag_ns = max(0, now_ns - self._due_ns - 1_000_000)
        self.observe(now_ns, lag_ns)
        self.start()

    def observe(self, now_ns: int, lag_ns: int) -> None:
        """Count one sample."""
        self.histogram.add(lag_ns)
        self.recent_sum_ns += lag_ns
        self.recent += 1
        if lag_ns >= _NOTABLE_NS:
            self.marks.append((now_ns, lag_ns))

    def mean_and_reset_ns(self) -> int:
        """The mean since the last call; a full second without one sample cannot happen."""
        mean = self.recent_sum_ns // self.recent if self.recent else 0
        self.recent_sum_ns = self.recent = 0
        return mean

    def between(self, from_ns: int, to_ns: int) -> list[tuple[int, int]]:
        """The spans ``(from_ns, to_ns)`` of notable lateness that overlap the given one, the newest first."""
        found: list[tuple[int, int]] = []
        for at_ns, lag_ns in reversed(self.marks):
            if at_ns < from_ns:
                break
            if at_ns - lag_ns <= to_ns:
                found.append((at_ns - lag_ns, at_ns))
        return found


def longest(spans: list[tuple[int, int]], most: int) -> tuple[tuple[int, int], ...]:
    """At most ``most`` of them, the longest, oldest first."""
    if len(spans) > most:
        spans = sorted(spans, key=lambda span: span[0] - span[1])[:most]
    return tuple(sorted(spans))
