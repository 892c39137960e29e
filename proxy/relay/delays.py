"""Delay histograms that cost one increment: the index is the bit length of the square.

``counts[(d * d).bit_length()]`` is half an octave wide: index ``i`` holds delays below ``2 ** (i / 2)`` ns.
Folded into the octaves of ``link.DELAY_BOUNDS_NS`` when a stream ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from proxy.link import DELAY_BOUNDS_NS

SIZE: Final = 128  # (2 ** 63 ns) squared has 127 bits
_FIRST: Final = DELAY_BOUNDS_NS[0].bit_length() - 1  # the first bound's exponent
_LAST: Final = len(DELAY_BOUNDS_NS)


def new() -> list[int]:
    """An empty histogram."""
    return [0] * SIZE


def quantile_ns(counts: Sequence[int], q: float) -> int:
    """The upper bound of the bucket that holds the ``q`` quantile; 0 when empty.  At most 41% too high."""
    total = sum(counts)
    if not total:
        return 0
    rank = q * total
    seen = 0
    for index, count in enumerate(counts):
        seen += count
        if count and seen >= rank:
            return int(2 ** (index / 2))
    return 0


class Octaves:
    """A cumulative histogram over ``DELAY_BOUNDS_NS`` (one bucket more beyond the last) with its sum."""

    __slots__ = ("counts", "sum_ns")

    def __init__(self) -> None:
        self.counts = [0] * (_LAST + 1)
        self.sum_ns = 0

    def add(self, delay_ns: int) -> None:
        """Count one delay."""
        self.counts[min(max((delay_ns - 1).bit_length() - _FIRST, 0), _LAST)] += 1
        self.sum_ns += delay_ns

    def fold(self, halves: Sequence[int], sum_ns: int) -> None:
        """Add a stream's half-octave counts."""
        counts = self.counts
        for index, count in enumerate(halves):
            if count:
                counts[min(max((index + 1) // 2 - _FIRST, 0), _LAST)] += count
        self.sum_ns += sum_ns
