"""A mergeable histogram over many orders of magnitude with a bound on the error of its quantiles.

Buckets are those of a floating-point number's own binary form: each power of two is cut into 64 equal
parts, so that a value's bucket is its exponent and the first 6 bits of its fraction.  The middle of a
bucket is at most 1/128 (0.79%) from every value in it.  No logarithm is taken: bucket and result are the
same on every machine.

* Quantiles follow the nearest-rank rule (``quantiles.py``); the answer is within ``RELATIVE_ERROR`` of the
  true one, and never outside the smallest and largest value seen.
* Zero is counted apart and exact.  Negative values, NaN and infinities are refused with ``ValueError``.
* Bounded: values below 2**-40 (9e-13) count in the bucket of 2**-40, those from 2**64 (1.8e19) on in the
  last one: at most 6,656 buckets, and only those that were hit take memory.  The error bound holds
  between these two.
* Merging adds counts: in any order and grouping the same histogram.  ``sum`` of integers is exact;
  of floats it is as exact as adding floats is.
"""

from __future__ import annotations

from math import frexp, ldexp
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scoring.quantiles import rank

RELATIVE_ERROR: Final = 1 / 128
_BITS: Final = 6
_PARTS: Final = 1 << _BITS
_FIRST: Final = -39 << _BITS  # the bucket of 2**-40: frexp(2**-40) is (0.5, -39)
_LAST: Final = (64 << _BITS) + _PARTS - 1
_SHIFT: Final = 52 - _BITS
_BIAS: Final = 1022 << _BITS  # frexp's exponent is that of the binary form less 1022


class LogHistogram:
    """Counts of values >= 0 in buckets of at most 1/64 relative width."""

    __slots__ = ("_counts", "maximum", "minimum", "sum", "zeros")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.zeros = 0
        self.sum: float = 0
        self.minimum: float | None = None
        self.maximum: float | None = None

    @property
    def count(self) -> int:
        """How many values were added."""
        return self.zeros + sum(self._counts.values())

    @property
    def buckets(self) -> int:
        """How many buckets take memory."""
        return len(self._counts)

    def add(self, value: float, times: int = 1) -> None:
        """Add a value ``times`` times (none or less: nothing happens)."""
        if not 0 <= value < float("inf"):
            raise ValueError(f"value {value!r}: the histogram takes finite numbers from 0 up")
        if times <= 0:
            return
        if value == 0:
            self.zeros += times
        else:
            fraction, exponent = frexp(value)
            index = (exponent << _BITS) + int((fraction - 0.5) * (2 * _PARTS))
            index = min(max(index, _FIRST), _LAST)
            self._counts[index] = self._counts.get(index, 0) + times
        self._extend(value, value, value * times)

    def add_many(self, values: npt.NDArray[Any]) -> None:
        """Add every value of an array; all or, on ``ValueError``, none."""
        if not len(values):
            return
        low, high = values.min().item(), values.max().item()
        if not (low >= 0 and high < float("inf")):
            raise ValueError(f"values from {low!r} to {high!r}: the histogram takes finite numbers from 0 up")
        zeros = 0 if low > 0 else int((values == 0).sum())
        floats = np.ascontiguousarray(values[values > 0] if zeros else values, dtype=np.float64)
        if len(floats):
            indexes = np.clip((floats.view(np.int64) >> _SHIFT) - _BIAS, _FIRST, _LAST)
            first = int(indexes.min())
            counts = np.bincount(indexes - first)  # at most as long as there are buckets
            found = counts.nonzero()[0]
            for index, times in zip((found + first).tolist(), counts[found].tolist(), strict=True):
                self._counts[index] = self._counts.get(index, 0) + times
        self.zeros += zeros
        self._extend(low, high, values.sum().item())

    def merge(self, other: LogHistogram) -> None:
        """Add all that ``other`` counted; ``other`` stays as it is."""
        for index, times in list(other._counts.items()):
            self._counts[index] = self._counts.get(index, 0) + times
        self.zeros += other.zeros
        if other.minimum is not None and other.maximum is not None:
            self._extend(other.minimum, other.maximum, other.sum)

    def quantile(self, q: float) -> float | None:
        """The q-quantile (nearest rank) within ``RELATIVE_ERROR``; ``None`` while nothing was added."""
        count = self.count
        if self.minimum is None or self.maximum is None or not count:
            return None
        wanted = rank(q, count)
        if wanted <= self.zeros:
            return 0
        if wanted == count:
            return self.maximum
        seen = self.zeros
        for index in sorted(self._counts):
            seen += self._counts[index]
            if seen >= wanted:
                break
        return min(max(_middle(index), self.minimum), self.maximum)

    def to_plain(self) -> dict[str, Any]:
        """The histogram as lists and numbers, for JSON or msgpack; read back by ``from_plain``."""
        return {
            "v": 1,
            "counts": [[index, self._counts[index]] for index in sorted(self._counts)],
            "zeros": self.zeros,
            "sum": self.sum,
            "min": self.minimum,
            "max": self.maximum,
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> LogHistogram:
        """The inverse of ``to_plain``; ``ValueError`` where the data is no such histogram."""
        try:
            if plain["v"] != 1:
                raise ValueError(f"histogram version {plain['v']!r}: only version 1 is known")
            made = cls()
            made._counts = {int(index): int(times) for index, times in plain["counts"]}
            made.zeros, made.sum = int(plain["zeros"]), plain["sum"]
            made.minimum, made.maximum = plain["min"], plain["max"]
            numbers = [*made._counts.values(), made.zeros]
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the plain data of a histogram: {error}") from error
        if min(numbers) < 0 or any(not _FIRST <= index <= _LAST for index in made._counts):
            raise ValueError("not the plain data of a histogram: a count or a bucket out of range")
        if (made.count > 0) != (made.minimum is not None and made.maximum is not None):
            raise ValueError("not the plain data of a histogram: min and max do not fit the counts")
        return made

    def _extend(self, low: float, high: float, added: float) -> None:
        self.minimum = low if self.minimum is None else min(self.minimum, low)
        self.maximum = high if self.maximum is None else max(self.maximum, high)
        self.sum += added

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogHistogram) and self.to_plain() == other.to_plain()

    __hash__ = None  # type: ignore[assignment]


def _middle(index: int) -> float:
    exponent, part = index >> _BITS, index & (_PARTS - 1)
    return ldexp(0.5 + (part + 0.5) / (2 * _PARTS), exponent)
