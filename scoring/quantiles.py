"""The one rule for quantiles: nearest rank.

The q-quantile of n values is the smallest value that at least a share q of them does not exceed: the
value of rank ``max(1, ceil(q * n))`` in ascending order.  It is always one of the values, so integers stay
integers, a value of infinity is harmless (the 99th percentile is finite exactly when at most 1% of the
values are infinite), and a bucketed sketch can bound its error against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")


@lru_cache(maxsize=256)
def _exact(q: float) -> tuple[int, int]:
    if not 0 <= q <= 1:
        raise ValueError(f"quantile {q!r}: give a number from 0 to 1, for example 0.99")
    # 0.07 is meant as 7/100, not as the nearest binary fraction: 0.07 * 100 is a little more than 7.
    ratio = Fraction(q).limit_denominator(10**9)
    return ratio.numerator, ratio.denominator


def rank(q: float, count: int) -> int:
    """The rank, 1 to ``count``, of the q-quantile among ``count`` >= 1 values."""
    if count < 1:
        raise ValueError("a quantile of no values does not exist: ask for the count first")
    numerator, denominator = _exact(q)
    return max(1, -(-numerator * count // denominator))


def quantile(ascending: Sequence[T], q: float) -> T:
    """The q-quantile of values that are sorted already; ``ValueError`` where there are none."""
    return ascending[rank(q, len(ascending)) - 1]
