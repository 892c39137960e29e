"""Which of two backends serves users better, by requests that were sent to both.

A pair is a request and its copy: the same prompt, asked for at the same moment.  What makes one prompt slower
than another is in both, and leaves the difference; so pairs tell apart what twice or ten times as many
requests, drawn for one backend or the other, would not.  Pure: sums in, a verdict per metric out, at any
moment.  The README of this folder holds the formulas and the reasons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import Final

import numpy as np

from scoring.compare import FIRST_REQUESTS, FIRST_SHARE, Plan, Verdict, verdict_of
from scoring.compare_always import few, grown, multiplier
from scoring.compare_sums import METRICS, PLACE, Metric, Observed, values_of

#: No verdict before pairs came in so many stretches of time.
LEAST_BLOCKS: Final = 20
#: Metrics of the whole answer: an answer that its client cut short tells nothing of them.
WHOLE: Final = frozenset({"fluidity", "deadline_misses", "normalized_latency"})
_MOST_GROWTH: Final = 1000.0
#: What is left of a sum whose parts cancel, beside them: pairs that all differ alike do not vary.
_ROUNDING: Final = 1e-12
#: (y, x) of the request and (y, x) of its copy: their places, and those of their products.
_SUMS: Final = 4
_PRODUCTS: Final = tuple((i, j) for i in range(_SUMS) for j in range(i, _SUMS))

_Four = tuple[int, int, int, int]


class _Moments:
    """One metric: sums over pairs of the four numbers and of their products; the latter over blocks, too."""

    __slots__ = ("blocks", "open", "open_pairs", "pairs", "products", "squared_sizes", "sums")

    def __init__(self) -> None:
        self.pairs = 0
        self.sums = [0] * _SUMS
        self.products = [0] * len(_PRODUCTS)
        self.blocks = [0] * len(_PRODUCTS)  # of those that are over
        self.squared_sizes = 0
        self.open = [0] * _SUMS
        self.open_pairs = 0

    def add(self, four: _Four) -> None:
        self.pairs += 1
        self.open_pairs += 1
        for place, number in enumerate(four):
            self.sums[place] += number
            self.open[place] += number
        for place, (i, j) in enumerate(_PRODUCTS):
            self.products[place] += four[i] * four[j]

    def next_block(self) -> None:
        for place, (i, j) in enumerate(_PRODUCTS):
            self.blocks[place] += self.open[i] * self.open[j]
        self.squared_sizes += self.open_pairs**2
        self.open, self.open_pairs = [0] * _SUMS, 0

    def closed(self) -> _Moments:
        """As if the block that is open were over."""
        made = _Moments()
        made.pairs, made.sums, made.products = self.pairs, self.sums, self.products
        made.blocks, made.squared_sizes = list(self.blocks), self.squared_sizes
        made.open, made.open_pairs = self.open, self.open_pairs
        made.next_block()
        return made


class PairSums:
    """What is kept of all pairs of one backend and one shadow: integers only, 1 kB a metric."""

    __slots__ = ("_block", "_metrics", "pairs")

    def __init__(self) -> None:
        self.pairs = 0
        self._metrics = {metric.name: _Moments() for metric in METRICS}
        self._block: int | None = None

    def add(self, request: Observed, copy: Observed, block: int, *, cut: bool = False) -> None:
        """Book one pair.

        ``block``: the stretch of time in which it was complete; pairs of one may have to do with each other
        (a server's bad moment), those of two as good as nothing.  Blocks come in order, none comes back.
        ``cut``: the client left, so that the request's answer was cut short and the copy's was not.
        """
        if self._block is not None and block != self._block:
            for moments in self._metrics.values():
                moments.next_block()
        self._block = block
        self.pairs += 1
        (y_a, x_a), (y_b, x_b) = values_of(request), values_of(copy)
        for name, moments in self._metrics.items():
            place = PLACE[name]
            if x_a[place] and x_b[place] and not (cut and name in WHOLE):
                moments.add((y_a[place], x_a[place], y_b[place], x_b[place]))

    def moments(self, name: str) -> _Moments:
        """Of one metric, up to now."""
        return self._metrics[name].closed()


@dataclass(frozen=True, slots=True)
class Paired:
    """One metric.  ``effect``: the shadow's minus the backend's; ``low``, ``high``: its always-valid bounds.

    ``pairs``: those in which both have the metric.  ``gain``: by what factor the variance would be larger if
    as many requests and as many others were compared.  ``design_effect``: by what factor pairs of one stretch
    of time inflate it.  ``more_pairs``: about how many more until a verdict; ``None`` where that cannot be
    said.  ``reasons``: why it is undecided.
    """

    metric: str
    pairs: int
    backend: float | None = None
    shadow: float | None = None
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    verdict: Verdict = Verdict.UNDECIDED
    reasons: tuple[str, ...] = ()
    gain: float | None = None
    design_effect: float = 1.0
    more_pairs: int | None = None


def compare_pairs(sums: PairSums, plan: Plan) -> dict[str, Paired]:
    """Every metric, by name.  ``plan.requests``: the pairs for which the intervals are tightest."""
    return {metric.name: _judge(metric, sums.moments(metric.name), plan) for metric in METRICS}


@dataclass(frozen=True, slots=True)
class _Found:
    backend: float
    shadow: float
    variance: float  # of the effect
    by_pair: float  # the same, if pairs had nothing to do with each other
    unpaired: float
    freedom: float


def _estimate(metric: Metric, held: _Moments) -> _Found | None:
    """Ratios of sums, and the variance of their difference by the delta method."""
    y_a, x_a, y_b, x_b = (float(each) for each in held.sums)
    count, unit = held.pairs, metric.unit
    if count < 2:
        return None
    ratios = unit * y_a / x_a, unit * y_b / x_b
    slope = (-unit / x_a, ratios[0] / x_a, unit / x_b, -ratios[1] / x_b)
    spare = count / (count - 1)
    least = metric.least / count**2  # a share of which nothing was seen yet is known to about 3/n
    by_pair = max(_square(slope, held.products), least) * spare
    unpaired = max(_square(slope, held.products, crossed=False), least) * spare
    even = count**2 / held.squared_sizes
    by_block = 0.0
    if even > 1:
        by_block = _square(slope, held.blocks) * even / (even - 1)
    return _Found(
        backend=ratios[0],
        shadow=ratios[1],
        # Short of blocks, or with requests that are opposed within one, the pairs' own is the least.
        variance=max(by_pair, by_block),
        by_pair=by_pair,
        unpaired=unpaired,
        freedom=min(count, even) - 1,
    )


def _square(slope: Sequence[float], products: Sequence[int], *, crossed: bool = True) -> float:
    """The sum of squares of what each adds to the difference; not ``crossed``: as if copies were others'."""
    total = size = 0.0
    for (i, j), product in zip(_PRODUCTS, products, strict=True):
        if crossed or (i < 2) == (j < 2):
            part = slope[i] * slope[j] * product * (1 if i == j else 2)
            total += part
            size += abs(part)
    return total if total > _ROUNDING * size else 0.0


def _judge(metric: Metric, held: _Moments, plan: Plan) -> Paired:
    found = _estimate(metric, held)
    if found is None or not found.variance > 0:
        reason = "no_data" if found is None else "no_variance"
        return Paired(metric.name, held.pairs, reasons=(reason,))
    error, time = sqrt(found.variance), held.pairs * found.by_pair / found.variance

    def reach(at: float) -> float:
        return float(few(multiplier(np.array(at), plan.requests, plan.alpha), np.array(found.freedom)))

    effect, half = found.shadow - found.backend, reach(time) * error
    low, high = effect - half, effect + half
    if metric.least:  # no two shares differ by more
        low, high = max(low, -1.0), min(high, 1.0)
    margin = plan.margins.get(metric.name, metric.margin) * (abs(found.backend) if metric.relative else 1.0)
    early = max(FIRST_REQUESTS, FIRST_SHARE * plan.requests)
    lacking = max(early / held.pairs, FIRST_REQUESTS / time, LEAST_BLOCKS / (found.freedom + 1))
    verdict = verdict_of(metric.better, low, high, margin)
    reasons: tuple[str, ...] = ()
    more: float = 0.0
    if lacking > 1 or verdict is Verdict.UNDECIDED:
        reasons = ("too_few",) if lacking > 1 else ("interval",)
        wanted = max(abs(effect), margin - abs(effect))
        more = max(lacking, grown(wanted, error, time, lambda by: reach(time * by), _MOST_GROWTH)) - 1
        verdict = Verdict.UNDECIDED
    return Paired(
        metric=metric.name,
        pairs=held.pairs,
        backend=found.backend,
        shadow=found.shadow,
        effect=effect,
        low=low,
        high=high,
        margin=margin,
        verdict=verdict,
        reasons=reasons,
        gain=found.unpaired / found.by_pair,
        design_effect=found.variance / found.by_pair,
        more_pairs=_rounded(more * held.pairs),
    )


def _rounded(number: float) -> int | None:
    """To two digits; ``None`` where it is not known."""
    return int(float(f"{number:.2g}")) if isfinite(number) and number < inf else None
