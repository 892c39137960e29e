"""Which of two arms serves users better, said so that one may ask at any moment.

Pure: sums in, a verdict per metric out.  The README of this folder holds the formulas and the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil, isfinite, log10
from typing import Final

import numpy as np
import numpy.typing as npt

from scoring.compare_always import (
    Floats,
    few,
    grown,
    multiplier,
    plausible_counts,
    tuned,
)
from scoring.compare_effect import Effect, Sums, estimate
from scoring.compare_integrity import ALPHA_INTEGRITY, Test, assignment, recorded, rejected
from scoring.compare_sums import DOUBTS, LEAST_BUCKETS, METRICS, ArmSums, Metric, sums_of
from scoring.quantiles import rank
from scoring.sketch import LogHistogram

#: No verdict before this share of the planned size, and before this many requests, in each arm.
FIRST_SHARE: Final = 0.05
FIRST_REQUESTS: Final = 50
#: More suspect, unmeasured or overdue requests than this share carry no verdict.
MOST_DOUBTFUL: Final = 0.01
#: The reason where it is the overdue ones: as long as they hang an arm's worst requests are in no metric.
OVERDUE: Final = "overdue:share"
#: Beyond this many times what was seen, nobody should be told to wait.
_MOST_GROWTH: Final = 1000.0


class Verdict(StrEnum):
    """What is known of the candidate against the control."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is fixed before the first request is seen; changing it later spends the guarantee.

    ``requests``: how many (independent) per arm the experiment is planned for; intervals are tightest there.
    ``alpha``: the probability, per metric, of ever calling a difference that is none.  ``margins``: by
    metric, a difference that nobody minds, in the metric's unit, of the control's value for times.
    """

    requests: int = 1000
    alpha: float = 0.05
    margins: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tuned(self.alpha)
        known = {metric.name for metric in METRICS}
        if self.requests < 1 or any(name not in known or not m >= 0 for name, m in self.margins.items()):
            raise ValueError(f"a plan needs requests >= 1 and margins >= 0 of: {', '.join(sorted(known))}")


@dataclass(frozen=True, slots=True)
class Judged:
    """One metric.  ``effect``: candidate minus control; ``low``, ``high``: its always-valid interval.

    ``margin``: in the unit of the effect.  ``beyond_margin``: worse, and surely by more than the margin.
    ``design_effect``: by what factor sessions inflate the variance.  ``more_requests``: about how many more,
    of both arms together, until a verdict if the effect is as estimated; ``None`` where that cannot be said.
    ``reasons``: why it is undecided.
    """

    metric: str
    control: float | None
    candidate: float | None
    effect: float | None
    low: float | None
    high: float | None
    margin: float | None
    verdict: Verdict
    beyond_margin: bool = False
    reasons: tuple[str, ...] = ()
    more_requests: int | None = None
    design_effect: float = 1.0
    independent_requests: float = 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """The candidate against the control: each metric, and the tests of what they rest on."""

    metrics: Mapping[str, Judged]
    integrity: tuple[Test, ...]
    requests: tuple[int, int]
    clustered: bool


def compare(
    control: Sequence[ArmSums],
    candidate: Sequence[ArmSums],
    shares: Sequence[float],
    plan: Plan,
    *,
    in_flight: tuple[int, int] = (0, 0),
    overdue: tuple[int, int] = (0, 0),
) -> Comparison:
    """Compare two arms, epoch by epoch.

    ``shares``: of what goes to either arm, the candidate's share by the weights of each epoch (0 to 1).
    ``in_flight``: of control and candidate, assigned and not yet settled; ``overdue``: of these, those that
    have missed a deadline and may never end.  ``ValueError`` where the epochs of the two do not match.
    """
    buckets = {epoch.buckets for epoch in (*control, *candidate)}
    if not len(control) == len(candidate) == len(shares) >= 1 or len(buckets) != 1:
        raise ValueError("both arms need the same epochs, at least one, and the same buckets")
    clustered = buckets != {1}
    tests = (
        assignment(control, candidate, shares, plan.requests),
        *(
            recorded(name, arm, waiting)
            for name, arm, waiting in zip(
                ("control", "candidate"), (control, candidate), in_flight, strict=True
            )
        ),
        rejected(control, candidate, plan.requests),
    )
    doubts = [f"integrity:{test.name}" for test in tests if test.alarm]
    if clustered and min(occupied(control), occupied(candidate)) < LEAST_BUCKETS:
        doubts.append("clusters")
    for arm, late in zip((control, candidate), overdue, strict=True):
        if late > MOST_DOUBTFUL * sum(int(epoch.assigned.sum()) for epoch in arm):
            doubts.append(OVERDUE)
            break
    for metric in DOUBTS:
        doubts.extend(_doubt(metric, control, candidate, plan))
    return Comparison(
        metrics={metric.name: judge(metric, control, candidate, plan, doubts) for metric in METRICS},
        integrity=tests,
        requests=(_count(control), _count(candidate)),
        clustered=clustered,
    )


def interval(effect: Effect, plan: Plan) -> tuple[Floats, Floats]:
    """The always-valid interval of an effect, shapes (...): low and high, infinite where nothing is known."""
    half = _half(effect, plan)
    return effect.effect - half, effect.effect + half


def ready(control: Sums, candidate: Sums, effect: Effect, plan: Plan) -> npt.NDArray[np.bool_]:
    """Whether there is enough for a first verdict, shapes (...): before, asymptotics promise nothing."""
    return shortfall(control, candidate, effect, plan) <= 1


def shortfall(control: Sums, candidate: Sums, effect: Effect, plan: Plan) -> Floats:
    """By what factor the data must grow until a first verdict, shapes (...); at most 1: not at all."""
    least = np.minimum(control.requests.sum(-1), candidate.requests.sum(-1))
    early = max(FIRST_REQUESTS, FIRST_SHARE * plan.requests)
    factor: Floats = np.maximum(
        early / np.maximum(least, 1e-9), FIRST_REQUESTS / np.maximum(effect.time, 1e-9)
    )
    return factor


def _half(effect: Effect, plan: Plan) -> Floats:
    known = effect.time > 0
    z = few(multiplier(np.where(known, effect.time, 1.0), plan.requests, plan.alpha), effect.freedom)
    half: Floats = np.where(known, z * np.where(known, effect.error, 0.0), np.inf)
    return half


def judge(
    metric: Metric,
    control: Sequence[ArmSums],
    candidate: Sequence[ArmSums],
    plan: Plan,
    doubts: Sequence[str] = (),
) -> Judged:
    """One metric; with ``doubts`` it is undecided whatever the interval says."""
    sums = sums_of(control, metric), sums_of(candidate, metric)
    found = estimate(*sums, metric.least)
    low, high = (float(end) for end in interval(found, plan))
    reasons = list(doubts)
    if not isfinite(low):
        nothing = (*reasons, "no_data" if np.isnan(found.effect) else "no_variance")
        values = _value(sums[0]), _value(sums[1])
        return Judged(metric.name, *values, None, None, None, None, Verdict.UNDECIDED, reasons=nothing)
    if metric.least:  # no two shares differ by more
        low, high = max(low, -1.0), min(high, 1.0)
    lacking = float(shortfall(*sums, found, plan))
    if lacking > 1:
        reasons.append("too_few")
    size = abs(float(found.control)) if metric.relative else 1.0
    margin = plan.margins.get(metric.name, metric.margin) * size
    verdict = Verdict.UNDECIDED if reasons else verdict_of(metric.better, low, high, margin)
    if verdict is Verdict.UNDECIDED and not reasons:
        reasons.append("interval")
    more: int | None = 0
    if reasons:  # of which more data surely cure only these two
        curable = set(reasons) <= {"interval", "too_few"}
        seen = _count(control) + _count(candidate)
        more = _more(found, margin, plan, seen, lacking) if curable else None
    at_best = high if metric.better > 0 else -low
    return Judged(
        metric=metric.name,
        control=float(found.control),
        candidate=float(found.candidate),
        effect=float(found.effect),
        low=low,
        high=high,
        margin=margin,
        verdict=verdict,
        beyond_margin=verdict is Verdict.WORSE and at_best < -margin,
        reasons=tuple(reasons),
        more_requests=more,
        design_effect=float(found.design_effect),
        independent_requests=float(found.time),
    )


def verdict_of(better: int, low: float, high: float, margin: float) -> Verdict:
    """What the interval of an effect says; ``better``: 1 where more is better, -1 where less is."""
    if -margin < low and high < margin:
        return Verdict.EQUIVALENT
    if low > 0 or high < 0:
        return Verdict.BETTER if (low > 0) == (better > 0) else Verdict.WORSE
    return Verdict.UNDECIDED


def _more(found: Effect, margin: float, plan: Plan, seen: int, lacking: float) -> int | None:
    """To two digits: until the interval leaves 0 or lies within the margin, at the effect as estimated."""
    size, error, time = abs(float(found.effect)), float(found.error), float(found.time)

    def reach(factor: float) -> float:
        z = multiplier(np.array(time * factor), plan.requests, plan.alpha)
        return float(few(z, found.freedom))

    wanted = max(size, margin - size)
    factor = max(lacking, grown(wanted, error, time, reach, _MOST_GROWTH))
    if not isfinite(factor):
        return None
    more = (factor - 1) * seen
    digits = int(10 ** max(0, int(log10(max(more, 1))) - 1))
    return ceil(more / digits - 1e-6) * digits


def _doubt(metric: Metric, control: Sequence[ArmSums], candidate: Sequence[ArmSums], plan: Plan) -> list[str]:
    sums = sums_of(control, metric), sums_of(candidate, metric)
    doubts = []
    if max(_share(arm) for arm in sums) > MOST_DOUBTFUL:
        doubts.append(f"{metric.name}:share")
    found = estimate(*sums, metric.least)
    low, high = interval(found, Plan(plan.requests, ALPHA_INTEGRITY))
    if bool(ready(*sums, found, plan)) and not low <= 0 <= high:
        doubts.append(f"{metric.name}:differs")
    return doubts


def _value(sums: Sums) -> float | None:
    """Of one arm by itself, over all epochs; ``None``: it has no such request."""
    return float(sums.y.sum() / sums.x.sum()) if sums.x.sum() > 0 else None


def _share(sums: Sums) -> float:
    return float(sums.y.sum()) / max(float(sums.x.sum()), 1.0)


def _count(arm: Sequence[ArmSums]) -> int:
    return sum(int(epoch.requests.sum()) for epoch in arm)


def occupied(arm: Sequence[ArmSums]) -> int:
    """In how many buckets the arm has requests."""
    return int(np.count_nonzero(np.sum([epoch.requests for epoch in arm], axis=0)))


@dataclass(frozen=True, slots=True)
class QuantileBounds:
    """A quantile of one arm and its always-valid interval; ``None`` where the data do not bound it."""

    q: float
    value: float | None
    low: float | None
    high: float | None


def quantile_bounds(
    hist: LogHistogram, q: float, plan: Plan, *, infinite: int = 0, design_effect: float = 1.0
) -> QuantileBounds:
    """The q-quantile of what one arm's requests showed, with bounds that hold at every moment at once.

    Exact for independent requests but for the histogram's ``relative_error``, by which the bounds are moved
    outwards.  Of sticky ones each counts as 1/``design_effect`` (that of the mean): approximate.
    ``infinite``: requests whose value is infinite, not in the histogram.
    """
    if not 0 < q < 1:
        raise ValueError(f"quantile {q!r}: give a number between 0 and 1, for example 0.99")
    count = hist.count + infinite
    if not count:
        return QuantileBounds(q, None, None, None)
    inflated = max(design_effect, 1.0)
    fewest, most = plausible_counts(count / inflated, q, plan.alpha, plan.requests)
    low = ceil(fewest * inflated - 1e-9)
    high = int(most * inflated + 1e-9) + 1
    error = hist.relative_error
    ends = [_ranked(hist, place) for place in (rank(q, count), low, high)]
    return QuantileBounds(
        q,
        ends[0],
        None if ends[1] is None else ends[1] * (1 - error),
        None if ends[2] is None else ends[2] * (1 + error),
    )


def _ranked(hist: LogHistogram, place: int) -> float | None:
    return hist.ranked(place) if 1 <= place <= hist.count else None
