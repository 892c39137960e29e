"""What a comparison keeps of each arm and epoch of weights: exact integers, mergeable in any order.

y, x            of each metric, sums by bucket: int64, shape (metrics, buckets)
yy, xy, xx      of each metric, sums over requests: unbounded integers
assigned        requests by bucket, counted when they are assigned; recorded: when they are settled
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from scoring.compare_always import Floats
from scoring.compare_effect import Sums
from scoring.outcome import Outcome, SloResult

#: Sticky traffic is told apart into this many groups of sessions; traffic that is not into one.
BUCKETS: Final = 512
#: Fewer occupied buckets than this in an arm carry no verdict.
LEAST_BUCKETS: Final = 50
VERSION: Final = 1
_HOUR_US: Final = 3_600_000_000
_MOST_TOKENS: Final = 1 << 31
_FAILED: Final = frozenset({Outcome.OVERLOADED, Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT})

Ints = npt.NDArray[np.int64]


class Metric(NamedTuple):
    """``better`` 1 where more is better, -1 where less is; ``unit`` of y over that of x.

    ``margin``: a difference that nobody minds, of the control's value where ``relative``.  ``least``: squared
    deviation that is always reckoned with: of shares, one request that fails altogether.
    """

    name: str
    better: int
    unit: float
    margin: float
    relative: bool = False
    least: float = 0.0


METRICS: Final = (
    Metric("good", 1, 1.0, 0.005, least=1.0),
    Metric("fluidity", 1, 1e-9, 0.005, least=1.0),
    Metric("deadline_misses", -1, 1.0, 0.005, least=1.0),
    Metric("ttft", -1, 1e-6, 0.05, relative=True),
    Metric("log_ttft", -1, 1e-6, 0.05),
    Metric("normalized_latency", -1, 1e-6, 0.05, relative=True),
    Metric("errors", -1, 1.0, 0.005, least=1.0),
)
#: Shares that must be small and alike before anything else is believed.
DOUBTS: Final = (Metric("suspect", -1, 1.0, 0.0, least=1.0), Metric("unmeasured", -1, 1.0, 0.0, least=1.0))
#: What an arm rejects is in no other metric: a share that differs would leave out one arm's hard requests.
REJECTED: Final = Metric("rejected", -1, 1.0, 0.0, least=1.0)
ALL: Final = (*METRICS, *DOUBTS, REJECTED)
PLACE: Final = {metric.name: place for place, metric in enumerate(ALL)}


class Observed(NamedTuple):
    """One settled request of an arm; ``None`` where it has no such thing.

    ``met``, ``missed``: by the deadlines that hold for all arms; ``suspect``: stalls were taken out as the
    proxy's own; ``bucket``: 0 to buckets - 1, from a hash of the session that does not decide the arm.
    """

    outcome: str
    result: str
    met: int = 0
    missed: int = 0
    ttft_ns: float | None = None
    normalized_ns: float | None = None
    suspect: bool = False
    unmeasured: bool = False
    bucket: int = 0


class ArmSums:
    """One arm in one epoch of weights.

    ``buckets``: ``BUCKETS`` where sessions stick to an arm, 1 where each request is on its own.  An epoch may
    be any stretches in which the weights were the same: they need not be one.
    """

    __slots__ = ("assigned", "buckets", "recorded", "requests", "squares", "x", "y")

    def __init__(self, buckets: int = 1) -> None:
        if buckets < 1:
            raise ValueError(f"{buckets} buckets: 1, or {BUCKETS} for sticky traffic")
        self.buckets = buckets
        self.assigned: Ints = np.zeros(buckets, dtype=np.int64)
        self.recorded = 0
        self.requests: Ints = np.zeros(buckets, dtype=np.int64)
        self.y: Ints = np.zeros((len(ALL), buckets), dtype=np.int64)
        self.x: Ints = np.zeros((len(ALL), buckets), dtype=np.int64)
        self.squares: list[list[int]] = [[0, 0, 0] for _ in ALL]

    @property
    def nbytes(self) -> int:
        """Memory that the arrays take, about."""
        return self.assigned.nbytes + self.requests.nbytes + self.y.nbytes + self.x.nbytes

    def assign(self, bucket: int = 0, times: int = 1) -> None:
        """Count assignments, when they are made."""
        self.assigned[bucket] += times

    def add_many(self, observed: Sequence[Observed]) -> None:
        """Book settled requests; those that failed by our own fault are only counted as recorded.

        ``IndexError`` for a bucket that does not exist, ``ValueError`` for a time that is NaN, and nothing
        booked.
        """
        theirs = [each for each in observed if each.outcome != Outcome.PROXY_ERROR]
        if theirs:
            rows = np.array([values_of(each) for each in theirs], dtype=np.int64)
            self.add_rows(np.array([each.bucket for each in theirs]), rows[:, 0].T, rows[:, 1].T)
        self.recorded += len(observed) - len(theirs)

    def add_rows(self, bucket: Ints, y: Ints, x: Ints) -> None:
        """The same in bulk: ``bucket`` of shape (requests,), ``y`` and ``x`` of shape (metrics, requests)."""
        if len(bucket) and not 0 <= int(bucket.min()) <= int(bucket.max()) < self.buckets:
            raise IndexError(f"a bucket is outside 0 to {self.buckets - 1}")
        np.add.at(self.requests, bucket, 1)
        for place, (above, below) in enumerate(zip(y, x, strict=True)):
            np.add.at(self.y[place], bucket, above)
            np.add.at(self.x[place], bucket, below)
            # Squares of microseconds leave int64; integers of any size do not.
            wide, wide_x = above.astype(object), below.astype(object)
            pairs = ((wide, wide), (wide_x, wide), (wide_x, wide_x))
            for at, (left, right) in enumerate(pairs):
                self.squares[place][at] += int(np.dot(left, right)) if len(left) else 0
        self.recorded += len(bucket)

    def merge(self, other: ArmSums) -> None:
        """Add another's sums; exact, associative and commutative.  ``ValueError`` for other buckets."""
        if other.buckets != self.buckets:
            raise ValueError(f"{other.buckets} buckets do not merge into {self.buckets}")
        self.assigned += other.assigned
        self.recorded += other.recorded
        self.requests += other.requests
        self.y += other.y
        self.x += other.x
        self.squares = [
            [a + b for a, b in zip(mine, theirs, strict=True)]
            for mine, theirs in zip(self.squares, other.squares, strict=True)
        ]

    def to_numbers(self) -> list[int]:
        """All of it as integers, for a codec; those of ``squares`` may be of any size."""
        arrays = (self.assigned, self.requests, self.y.ravel(), self.x.ravel())
        numbers = [VERSION, self.buckets, len(ALL), self.recorded]
        for array in arrays:
            numbers.extend(array.tolist())
        for three in self.squares:
            numbers.extend(three)
        return numbers

    @classmethod
    def from_numbers(cls, numbers: Sequence[int]) -> ArmSums:
        """The inverse of ``to_numbers``; ``ValueError`` where they are none."""
        tail = 3 * len(ALL)
        try:
            flat = np.array(numbers[4:-tail], dtype=np.int64)
        except (OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"not the numbers of an arm: {error}") from error
        return cls.from_parts(numbers[:4], flat, numbers[-tail:])

    @classmethod
    def from_parts(cls, head: Sequence[int], flat: Ints, tail: Sequence[int]) -> ArmSums:
        """The same from the first four numbers, what stands in arrays (copied), and the squares."""
        metrics = len(ALL)
        if len(head) != 4 or head[0] != VERSION or head[2] != metrics or len(tail) != 3 * metrics:
            raise ValueError("not the numbers of an arm of this version")
        buckets = head[1]
        if not 1 <= buckets <= 1 << 16 or len(flat) != 2 * buckets * (1 + metrics):
            raise ValueError(f"{len(flat)} numbers do not fit {buckets} buckets")
        made = cls(buckets)
        made.recorded = int(head[3])
        made.assigned, made.requests = flat[:buckets].copy(), flat[buckets : 2 * buckets].copy()
        made.y, made.x = flat[2 * buckets :].reshape(2, metrics, buckets).copy()
        squares = [int(number) for number in tail]
        made.squares = [squares[at : at + 3] for at in range(0, 3 * metrics, 3)]
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArmSums) and self.to_numbers() == other.to_numbers()

    __hash__ = None  # type: ignore[assignment]


def with_bad(epochs: Sequence[ArmSums], count: int) -> list[ArmSums]:
    """Copies of an arm's sums as if ``count`` more of its requests were recorded, as not good.

    They are taken evenly from where requests were assigned and not recorded, epoch by epoch and bucket by
    bucket; no more than there are.
    """
    open_ = [np.maximum(epoch.assigned - epoch.requests, 0) for epoch in epochs]
    whole = int(sum(each.sum() for each in open_))
    made, before, taken = [], 0, 0
    for epoch, each in zip(epochs, open_, strict=True):
        copy = ArmSums(epoch.buckets)
        copy.merge(epoch)
        made.append(copy)
        upto = (before + np.cumsum(each)) * min(count, whole) // max(whole, 1)
        times = np.diff(upto, prepend=taken)
        before, taken = before + int(each.sum()), int(upto[-1])
        where = np.repeat(np.arange(epoch.buckets), times)
        rows = np.array(values_of(Observed(Outcome.COMPLETED, SloResult.BAD)), dtype=np.int64)
        copy.add_rows(where, *(np.repeat(row[:, None], len(where), axis=1) for row in rows))
    return made


def sums_of(epochs: Sequence[ArmSums], metric: Metric) -> Sums:
    """One metric of an arm over its epochs, in the metric's unit."""
    place = PLACE[metric.name]
    squares = [epoch.squares[place] for epoch in epochs]
    y: Floats = np.array([epoch.y[place] for epoch in epochs], dtype=np.float64) * metric.unit
    x: Floats = np.array([epoch.x[place] for epoch in epochs], dtype=np.float64)
    size: Floats = np.array([epoch.requests for epoch in epochs], dtype=np.float64)
    sticky = y.shape[1] > 1
    return Sums(
        requests=size.sum(1),
        y=y.sum(1),
        x=x.sum(1),
        yy=np.array([three[0] * metric.unit**2 for three in squares]),
        xy=np.array([three[1] * metric.unit for three in squares]),
        xx=np.array([float(three[2]) for three in squares]),
        y_in=y if sticky else None,
        x_in=x if sticky else None,
        size=size if sticky else None,
    )


def values_of(one: Observed) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """y and x of each metric, in the order of ``ALL``: exact, in the metric's unit."""
    judged = one.result in (SloResult.GOOD, SloResult.BAD)
    met, missed = min(one.met, _MOST_TOKENS), min(one.missed, _MOST_TOKENS)
    total = met + missed
    ttft = None if one.ttft_ns is None else _micro(one.ttft_ns)
    normalized = None if one.normalized_ns is None else _micro(one.normalized_ns)
    answered = one.outcome != Outcome.REJECTED
    return (
        (
            int(one.result == SloResult.GOOD),
            round(met * 10**9 / total) if total else 0,
            missed,
            ttft or 0,
            # Under a microsecond is no time that a network can show.
            round(1e6 * log(max(ttft, 1) / 1e6)) if ttft is not None else 0,
            normalized or 0,
            int(one.outcome in _FAILED),
            int(one.suspect),
            int(one.unmeasured),
            int(one.outcome == Outcome.REJECTED),
        ),
        (
            int(judged),
            int(total > 0),
            total,
            int(ttft is not None),
            int(ttft is not None),
            int(normalized is not None),
            int(answered),
            1,
            1,
            1,
        ),
    )


def _micro(ns: float) -> int:
    return round(min(max(ns / 1000, 0), _HOUR_US))
