"""Which requests become spans, decided when they have ended.  Pure: the clock is an argument.

A trace that was sampled at its start (by the client's flag, else by the ratio) is kept.  Of the others, every
bad request is kept late, at most so many a second (a token bucket that holds one second's worth): its spans
are there, those of other services may not be, for they were told that the trace is not sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scoring.outcome import SloResult

if TYPE_CHECKING:
    from proxy.control.settle import Settled
    from proxy.exporters.otel.view import Kept

_S: Final = 1_000_000_000


@dataclass(slots=True)
class KeepCounts:
    """Requests that took part in a trace, by what became of them; ``limited``: bad, beyond the rate."""

    sampled: int = 0
    late: int = 0
    limited: int = 0
    passed: int = 0


class Keep:
    """The decision.  ``bad_per_second``: requests kept late in a second; 0: none."""

    __slots__ = ("_at_ns", "_burst", "_credit", "_rate", "counts")

    def __init__(self, bad_per_second: float, now_ns: int) -> None:
        self.counts = KeepCounts()
        self._rate = bad_per_second
        # Less than one a second still keeps one now and then.
        self._burst = max(bad_per_second, 1.0) if bad_per_second > 0 else 0.0
        self._credit = self._burst
        self._at_ns = now_ns

    def __call__(self, settled: Settled, now_ns: int) -> Kept | None:
        """Why this request is kept, or ``None``.  ``now_ns`` never runs backwards."""
        trace = settled.facts.trace
        if trace is None or settled.facts.trace_id is None:
            return None
        if trace.sampled:
            self.counts.sampled += 1
            return "sampled"
        if settled.result is not SloResult.BAD:
            self.counts.passed += 1
            return None
        if not self._take(now_ns):
            self.counts.limited += 1
            return None
        self.counts.late += 1
        return "bad"

    def _take(self, now_ns: int) -> bool:
        earned = (now_ns - self._at_ns) * self._rate / _S
        self._at_ns = now_ns
        self._credit = min(self._burst, self._credit + earned)
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True
