"""Integer bucket counts of one histogram, as they are exported."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from proxy.control.snapshot import Exemplar, Hist

_NS = 1e9


class Buckets:
    """Counts per bucket of values in seconds or ratios; ``bounds`` ascending upper bounds, inclusive.

    Durations come in nanoseconds and are compared exactly: a value equal to a bound falls below it.
    """

    __slots__ = ("_bounds", "_bounds_ns", "_counts", "_exemplars", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._bounds_ns = np.array([round(bound * _NS) for bound in bounds], dtype=np.int64)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._exemplars: dict[int, Exemplar] | None = None  # by bucket; most histograms never get one

    def add(self, value: float) -> None:
        """Count one value in the metric's unit."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_many_ns(self, values_ns: npt.NDArray[np.int64]) -> None:
        """Count many durations at once."""
        places = np.searchsorted(self._bounds_ns, values_ns)
        for place, more in enumerate(np.bincount(places, minlength=len(self._counts)).tolist()):
            if more:
                self._counts[place] += more
        self._sum += int(values_ns.sum()) / _NS

    def exemplify(self, value: float, at_unix_ns: int, trace_id: str, span_id: str) -> None:
        """Tell whose trace shows a value that was counted; the latest of each bucket stays."""
        bucket = bisect_left(self._bounds, value)
        if self._exemplars is None:
            self._exemplars = {}
        self._exemplars[bucket] = Exemplar(bucket, value, at_unix_ns, trace_id, span_id)

    def rebound(self, bounds: tuple[float, ...]) -> None:
        """Go on with other bounds.  No count is lost, and where a bound stays its cumulative count stays.

        What was counted before moves to the bucket that holds its old upper bound: at a new bound the
        cumulative count is a lower limit for the past and exact for what comes.
        """
        if bounds == self._bounds:
            return
        fresh = Buckets(bounds)
        for upper, counted in zip(self._bounds, self._counts, strict=False):
            fresh._counts[bisect_left(bounds, upper)] += counted
        fresh._counts[-1] += self._counts[-1]
        for exemplar in sorted((self._exemplars or {}).values(), key=lambda each: each.at_unix_ns):
            told = replace(exemplar, bucket=bisect_left(bounds, exemplar.value))
            fresh._exemplars = {**(fresh._exemplars or {}), told.bucket: told}
        self._bounds, self._bounds_ns, self._counts = fresh._bounds, fresh._bounds_ns, fresh._counts
        self._exemplars = fresh._exemplars

    def freeze(self) -> Hist:
        """What readers see."""
        told = self._exemplars
        exemplars = () if told is None else tuple(told[bucket] for bucket in sorted(told))
        return Hist(self._bounds, tuple(self._counts), self._sum, exemplars)
