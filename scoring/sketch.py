"""A mergeable histogram over many orders of magnitude with a bound on the error of its quantiles.

Buckets are those of a floating-point number's own binary form: each power of two is cut into 64 equal
parts, so that a value's bucket is its exponent and the first 6 bits of its fraction.  The middle of a
bucket is at most 1/128 (0.79%) from every value in it.  No logarithm is taken: bucket and result are the
same on every machine.

* Quantiles follow the nearest-rank rule (``quantiles.py``); the answer is within ``relative_error`` of the
  true one, and never outside ``minimum`` and ``maximum`` (exact at level 0).
* Zero is counted apart and exact.  Negative values, NaN and infinities are refused with ``ValueError``.
* Bounded: values below 2**-40 (9e-13) count in the bucket of 2**-40, those from 2**64 (1.8e19) on in the
  last one: at most 6,656 buckets of 8 bytes, and only the stretch from the first that was hit to the last
  takes memory.  The error bound holds between these two.
* Merging adds counts: in any order and grouping the same histogram.  ``sum`` of integers is exact;
  of floats it is as exact as adding floats is.
* ``lower`` merges neighbouring buckets: each level halves the memory and doubles the error.  A merge has
  the coarser level of the two, so that it stays associative and commutative.  From level 1 on ``minimum``
  and ``maximum`` are the edges of the outermost buckets, and the largest value is known like any other.
"""

from __future__ import annotations

from math import frexp, ldexp
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scoring.quantiles import rank

Counts = npt.NDArray[np.int64]

RELATIVE_ERROR: Final = 1 / 128
#: The coarsest level: one bucket for each power of two, relative error 1/2.
LEVEL_MAX: Final = 6
_BITS: Final = 6
_PARTS: Final = 1 << _BITS
#: The first bucket of all, that of 2**-40: frexp(2**-40) is (0.5, -39).
FIRST: Final = -39 << _BITS
_LAST: Final = (64 << _BITS) + _PARTS - 1
MOST_BUCKETS: Final = _LAST - FIRST + 1
_SHIFT: Final = 52 - _BITS
_BIAS: Final = 1022 << _BITS  # frexp's exponent is that of the binary form less 1022
_SMALL: Final = 2.0**-40
_LARGE: Final = 2.0**64
_SPARE: Final = 8  # buckets kept free on either side of what was hit
_MOST: Final = 1 << 48  # of one value at a time: counts are int64


class LogHistogram:
    """Counts of values >= 0 in buckets of at most 1/64 relative width (level 0)."""

    __slots__ = ("_counts", "_cumulated", "_first", "level", "maximum", "minimum", "sum", "zeros")

    def __init__(self) -> None:
        self._first = 0  # the bucket of _counts[0]
        self._counts: Counts = _NONE
        self._cumulated: Counts | None = None  # sums of _counts, since somebody asked until they change
        self.level = 0
        self.zeros = 0
        self.sum: float = 0
        self.minimum: float | None = None
        self.maximum: float | None = None

    @property
    def count(self) -> int:
        """How many values were added."""
        sums = self._cumulated
        return self.zeros + int(self._counts.sum() if sums is None or not len(sums) else sums[-1])

    @property
    def buckets(self) -> int:
        """How many buckets were hit."""
        return int(np.count_nonzero(self._counts))

    @property
    def relative_error(self) -> float:
        """Quantiles are at most this far from the true ones."""
        return ldexp(RELATIVE_ERROR, self.level)

    @property
    def nbytes(self) -> int:
        """Memory that the buckets take."""
        return self._counts.nbytes

    def add(self, value: float, times: int = 1) -> None:
        """Add a value ``times`` times (none or less: nothing happens)."""
        if not 0 <= value < float("inf"):
            raise ValueError(f"value {value!r}: the histogram takes finite numbers from 0 up")
        if times <= 0:
            return
        if times > _MOST:
            raise ValueError(f"{times} times: the histogram takes up to {_MOST} at a time")
        low = high = value
        if value == 0:
            self.zeros += times
        else:
            index = _index(value) >> self.level
            place = index - self._first
            if not 0 <= place < len(self._counts):
                place = self._reach(index, index)
            self._counts[place] += times
            self._cumulated = None
            if self.level:
                low, high = _edge(index, self.level), _edge(index + 1, self.level)
        self._extend(low, high, value * times)

    def add_many(self, values: npt.NDArray[Any]) -> None:
        """Add every value of an array; all or, on ``ValueError``, none."""
        if not len(values):
            return
        low, high = values.min().item(), values.max().item()
        if not (low >= 0 and high < float("inf")):
            raise ValueError(f"values from {low!r} to {high!r}: the histogram takes finite numbers from 0 up")
        total = values.sum().item()
        if low == 0:
            hit = values > 0
            zeros = len(values) - int(np.count_nonzero(hit))
            values = values[hit]
            self.zeros += zeros
        if len(values):
            floats = np.ascontiguousarray(values, dtype=np.float64)
            smallest = low or floats.min().item()
            indexes = floats.view(np.int64) >> _SHIFT
            indexes -= _BIAS
            if smallest < _SMALL or high >= _LARGE:
                indexes = np.clip(indexes, FIRST, _LAST)
            indexes >>= self.level
            first = _index(smallest) >> self.level
            indexes -= first
            counts = np.bincount(indexes)  # at most as long as there are buckets
            if len(self._counts):
                self._take(first, counts)
            else:
                self._first, self._counts = first, counts
                self._cumulated = None
            if self.level:
                low = 0 if low == 0 else _edge(first, self.level)
                high = _edge(first + len(counts), self.level)
        self._extend(low, high, total)

    def merge(self, other: LogHistogram) -> None:
        """Add all that ``other`` counted; ``other`` stays as it is, the coarser level holds for both."""
        if other.level < self.level:
            other = other.copy()
            other.lower(self.level)
        else:
            self.lower(other.level)
        if len(other._counts):
            self._take(other._first, other._counts)
        self.zeros += other.zeros
        if other.minimum is not None and other.maximum is not None:
            self._extend(other.minimum, other.maximum, other.sum)

    def lower(self, level: int) -> None:
        """Merge neighbouring buckets until this level is reached (0 to ``LEVEL_MAX``; it never rises)."""
        step = min(level, LEVEL_MAX) - self.level
        if step <= 0:
            return
        self._first, self._counts = _coarser(*self.dense(), step)
        self._cumulated = None
        self.level += step
        self.minimum, self.maximum = self._edges() or (None, None)

    def copy(self) -> LogHistogram:
        """One that is equal and independent."""
        made = LogHistogram()
        made.merge(self)
        return made

    def quantile(self, q: float) -> float | None:
        """The q-quantile (nearest rank) within ``relative_error``; ``None`` while nothing was added."""
        if self._cumulated is None:  # for the other quantiles, which will be asked for, too
            self._cumulated = self._counts.cumsum()
        return self.ranked(rank(q, self.count)) if self.count else None

    def ranked(self, place: int) -> float | None:
        """The value of that rank, 1 the smallest, within ``relative_error``; ``None`` where there is none."""
        if self.minimum is None or self.maximum is None or not 1 <= place <= self.count:
            return None
        if place <= self.zeros:
            return 0
        if place == self.count and not self.level:
            return self.maximum
        if self._cumulated is None:
            self._cumulated = self._counts.cumsum()
        index = self._first + int(self._cumulated.searchsorted(place - self.zeros))
        return min(max(_middle(index, self.level), self.minimum), self.maximum)

    def dense(self) -> tuple[int, Counts]:
        """The first bucket that was hit, and the counts from it to the last one: shape (n,), a view."""
        hit = self._counts.nonzero()[0]
        if not len(hit):
            return 0, _NONE
        low = int(hit[0])
        return self._first + low, self._counts[low : int(hit[-1]) + 1]

    def take(
        self,
        first: int,
        counts: Counts | npt.NDArray[np.uint8],
        *,
        level: int,
        zeros: int,
        total: float,
        bounds: tuple[float, float],
    ) -> None:
        """Merge a histogram that is not empty, given as what ``dense`` says and its other attributes.

        ``bounds`` (minimum, maximum) are looked at on level 0 only.  ``ValueError``, and nothing merged,
        where it is no histogram; that counts and ``zeros`` are not negative is taken on trust.
        """
        if not 0 <= level <= LEVEL_MAX:
            raise ValueError(f"no histogram: level {level}, and 0 to {LEVEL_MAX} are known")
        if len(counts):
            if not FIRST >> level <= first <= (_LAST >> level) + 1 - len(counts):
                raise ValueError("no histogram: a bucket out of range")
            if not counts[0] or not counts[-1]:
                raise ValueError("no histogram: its outermost buckets are empty")
        if not level and not 0 <= bounds[0] <= bounds[1] < float("inf"):
            raise ValueError("no histogram: min and max out of range")
        self.lower(level)
        if level < self.level and len(counts):
            first, counts = _coarser(first, counts, self.level - level)
        if self.level:
            low = 0 if zeros else _edge(first, self.level)
            bounds = low, _edge(first + len(counts), self.level) if len(counts) else 0
        if len(counts):
            self._take(first, counts)
        self.zeros += zeros
        self._extend(*bounds, total)

    def to_plain(self) -> dict[str, Any]:
        """The histogram as lists and numbers, for JSON or msgpack; read back by ``from_plain``."""
        first, counts = self.dense()
        hit = counts.nonzero()[0]
        plain = {
            "v": 2 if self.level else 1,  # a reader of version 1 must not take coarse buckets for fine ones
            "counts": [list(pair) for pair in zip((hit + first).tolist(), counts[hit].tolist(), strict=True)],
            "zeros": self.zeros,
            "sum": self.sum,
            "min": self.minimum,
            "max": self.maximum,
        }
        return plain | {"level": self.level} if self.level else plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> LogHistogram:
        """The inverse of ``to_plain``; ``ValueError`` where the data is no such histogram."""
        try:
            if plain["v"] not in (1, 2):
                raise ValueError(f"histogram version {plain['v']!r}: only versions 1 and 2 are known")
            level = int(plain["level"]) if plain["v"] == 2 else 0
            pairs = {int(index): int(times) for index, times in plain["counts"] if times}
            low, high = plain["min"], plain["max"]
            first, last = min(pairs, default=0), max(pairs, default=-1)
            if first < FIRST or last > _LAST or not all(0 <= times <= _MOST for times in pairs.values()):
                raise ValueError("not the plain data of a histogram: a count or a bucket out of range")
            counts = np.zeros(last - first + 1, dtype=np.int64)
            for index, times in pairs.items():
                counts[index - first] = times
            zeros = int(plain["zeros"])
            if zeros < 0 or (low is None or high is None) != (not pairs and not zeros):
                raise ValueError("not the plain data of a histogram: min and max do not fit the counts")
            made = cls()
            if low is not None and high is not None:
                made.take(first, counts, level=level, zeros=zeros, total=plain["sum"], bounds=(low, high))
            made.lower(level)
            return made
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"not the plain data of a histogram: {error}") from error

    def _take(self, first: int, counts: Counts | npt.NDArray[np.uint8]) -> None:
        last = first + len(counts) - 1
        place = first - self._first
        if not 0 <= place <= len(self._counts) - len(counts):
            place = self._reach(first, last)
        self._counts[place : place + len(counts)] += counts
        self._cumulated = None

    def _reach(self, low: int, high: int) -> int:
        """Make room for the buckets from ``low`` to ``high``; the place of ``low``."""
        old, first = self._counts, self._first
        if len(old):
            low_all, high_all = min(low - _SPARE, first), max(high + _SPARE, first + len(old) - 1)
        else:
            low_all, high_all = low - _SPARE, high + _SPARE
        self._counts = np.zeros(high_all - low_all + 1, dtype=np.int64)
        self._counts[first - low_all : first - low_all + len(old)] = old
        self._first = low_all
        return low - low_all

    def _edges(self) -> tuple[float, float] | None:
        """From the outermost buckets that were hit: the lower edge and the upper."""
        first, counts = self.dense()
        if not len(counts):
            return (0, 0) if self.zeros else None
        return 0 if self.zeros else _edge(first, self.level), _edge(first + len(counts), self.level)

    def _extend(self, low: float, high: float, added: float) -> None:
        self.minimum = low if self.minimum is None else min(self.minimum, low)
        self.maximum = high if self.maximum is None else max(self.maximum, high)
        self.sum += added

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogHistogram) and self.to_plain() == other.to_plain()

    __hash__ = None  # type: ignore[assignment]


_NONE: Final[Counts] = np.zeros(0, dtype=np.int64)


def _index(value: float) -> int:
    """The bucket, on level 0, of a value above 0."""
    fraction, exponent = frexp(value)
    return min(max((exponent << _BITS) + int((fraction - 0.5) * (2 * _PARTS)), FIRST), _LAST)


def _coarser(first: int, counts: Counts | npt.NDArray[np.uint8], step: int) -> tuple[int, Counts]:
    """2**step neighbouring buckets made one."""
    lead = first & ((1 << step) - 1)
    whole = np.zeros(-(-(lead + len(counts)) >> step) << step, dtype=np.int64)
    whole[lead : lead + len(counts)] = counts
    return first >> step, whole.reshape(-1, 1 << step).sum(axis=1)


def _middle(index: int, level: int) -> float:
    bits = _BITS - level
    exponent, part = index >> bits, index & ((1 << bits) - 1)
    return ldexp(0.5 + (part + 0.5) / (2 << bits), exponent)


def _edge(index: int, level: int) -> float:
    """The lower edge of a bucket, which is the upper one of the bucket before."""
    bits = _BITS - level
    return ldexp(0.5 + (index & ((1 << bits) - 1)) / (2 << bits), index >> bits)
