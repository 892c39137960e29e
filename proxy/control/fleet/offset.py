"""How far Redis's clock is from the host's.  Pure.

Redis is asked for its time; its answer was made somewhere between question and answer, so one round trip
tells the offset to within its half.  The offset is left where it is as long as it may be right, and moved no
further than it must, so it does not tremble with the network.
"""

from __future__ import annotations

from typing import Final

#: Further away than this is another clock, or one that was set: taken at once.
_JUMP_NS: Final = 10_000_000_000
#: Else it moves by no more than this at a time: a slot of 10 s stays one of about 10 s.
_STEP_NS: Final = 500_000_000


class Offset:
    """``ns``: Redis's clock less the host's; 0 until it was asked."""

    def __init__(self) -> None:
        self.ns = 0
        self.known = False

    def measured(self, redis_ns: int, asked_ns: int, answered_ns: int) -> None:
        """Redis's time, and the host's wall clock before and after the question."""
        low, high = redis_ns - max(asked_ns, answered_ns), redis_ns - min(asked_ns, answered_ns)
        nearest = min(max(self.ns, low), high)
        if not self.known or abs(nearest - self.ns) > _JUMP_NS:
            self.ns = (low + high) // 2
            self.known = True
            return
        self.ns += min(max(nearest - self.ns, -_STEP_NS), _STEP_NS)
