"""Which slots make up a stretch of time: as few as there are, the longest that fit.  Pure.

A slot that goes on counts as one whose end has come: whoever writes it writes all that it has so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from proxy.control.fleet.layout import Grain

#: The old end of a window may be moved outwards by this part of it, so that it begins with a longer slot.
SLACK: Final = 20
_LONGEST_FIRST: Final = (Grain.HOUR, Grain.MINUTE, Grain.TEN)


class Place(NamedTuple):
    """One slot."""

    grain: Grain
    number: int

    @property
    def start_ns(self) -> int:
        """Unix nanoseconds, by Redis's clock."""
        return self.number * self.grain.length_ns


def grain_within(length_ns: int) -> Grain:
    """The longest slot that is not longer than this; 10 s where even they are."""
    return next((grain for grain in _LONGEST_FIRST if grain.length_ns <= length_ns), Grain.TEN)


def window(window_ns: int, now_ns: int) -> tuple[int, list[Place]]:
    """Where a window up to now begins, and its slots from the oldest on."""
    grain = grain_within(window_ns // SLACK)
    start_ns = grain.number(now_ns - window_ns) * grain.length_ns
    return start_ns, list(stretch(start_ns, now_ns + 1, now_ns))


def stretch(from_ns: int, to_ns: int, now_ns: int) -> Iterator[Place]:
    """The slots of [from_ns, to_ns), whose bounds are those of slots; none that begins after now."""
    at_ns = from_ns
    while at_ns < min(to_ns, now_ns + 1):
        grain = next(
            grain
            for grain in _LONGEST_FIRST
            if grain is Grain.TEN
            or (at_ns % grain.length_ns == 0 and (at_ns + grain.length_ns <= to_ns or to_ns >= now_ns))
        )
        yield Place(grain, grain.number(at_ns))
        at_ns += grain.length_ns
