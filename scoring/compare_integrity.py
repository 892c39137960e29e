"""Whether an experiment's requests are where its weights say, and all there.

No verdict survives an alarm of these: an arm that loses its worst requests looks good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, sqrt
from typing import Final

import numpy as np

from scoring.compare_always import Floats, counts_evidence, excess_evidence, tuned
from scoring.compare_effect import estimate
from scoring.compare_sums import LEAST_BUCKETS, REJECTED, ArmSums, sums_of

#: Of the integrity tests: a false alarm stops an experiment, so it is rarer than a false verdict.
ALPHA_INTEGRITY: Final = 0.001
#: The share of an arm's requests that may go unrecorded (a worker that was killed, say).
TOLERATED_LOSS: Final = 0.005
#: Rejected requests are compared from so many independent ones in each arm; an experiment that is planned
#: for millions must hear of an arm that takes none as early as others do.
LEAST_COMPARED: Final = 50
_PLANNED_MOST: Final = 1000
#: Sticky assignments are tested from this many buckets of even size, times the shares of both arms.
LEAST_EVEN: Final = 30.0


@dataclass(frozen=True, slots=True)
class Test:
    """An integrity test: ``p_value`` is always valid; ``alarm`` where it is below ``ALPHA_INTEGRITY``."""

    name: str
    alarm: bool
    p_value: float
    detail: str

    __test__ = False  # not one of pytest's


def assignment(
    control: Sequence[ArmSums], candidate: Sequence[ArmSums], shares: Sequence[float], planned: int
) -> Test:
    """Whether requests were assigned as the weights say: a sequential test of sample-ratio mismatch.

    Independent requests: the Dirichlet mixture.  Sticky ones: what each bucket has too many of an arm, by an
    asymptotic confidence sequence over buckets.  Epochs in which only one of the two has a weight say
    nothing.
    """
    pairs = [
        (one.assigned.astype(np.float64), two.assigned.astype(np.float64), share)
        for one, two, share in zip(control, candidate, shares, strict=True)
        if 0 < share < 1
    ]
    counts = [sum(float(one.sum()) for one, _, _ in pairs), sum(float(two.sum()) for _, two, _ in pairs)]
    detail = f"{counts[1]:.0f} of {sum(counts):.0f} assigned to the candidate"
    if not pairs or sum(counts) == 0:
        return Test("assignment", False, 1.0, detail)
    expected = sum(share * float((one + two).sum()) for one, two, share in pairs)
    detail += f", expected {expected:.0f}"
    if len(pairs[0][0]) == 1:
        weight = max(10.0, 2 * planned / tuned(ALPHA_INTEGRITY))
        evidence = sum(
            counts_evidence((int(one.sum()), int(two.sum())), (1 - share, share), weight)
            for one, two, share in pairs
        )
        p_value = exp(-max(evidence, 0.0))
    else:
        excess: Floats = np.sum([(1 - share) * two - share * one for one, two, share in pairs], axis=0)
        spread = sum(share * (1 - share) * float((one + two).sum()) for one, two, share in pairs)
        size: Floats = np.sum([one + two for one, two, _ in pairs], axis=0)
        p_value = _p_of_buckets(excess, size, spread, planned)
    return Test("assignment", p_value < ALPHA_INTEGRITY, p_value, detail)


def _p_of_buckets(excess: Floats, size: Floats, least: float, planned: int) -> float:
    even = float(size.sum()) ** 2 / max(float((size**2).sum()), 1.0)
    if int(np.count_nonzero(size)) < LEAST_BUCKETS or even * least / float(size.sum()) < LEAST_EVEN:
        return 1.0
    # About the weights, not about the mean: a little less power, but no alarm because one session is long.
    variance = max(float((excess**2).sum()) * even / (even - 1), least)
    squared = float(excess.sum()) ** 2 / variance
    return _p_value(squared, even - 1, 2 * least * (least / variance), planned)


def _p_value(squared: float, freedom: float, time: float, planned: float) -> float:
    """Of an effect of so many standard errors, squared, by the boundary of ``compare_always.multiplier``."""
    low, high = 0.0, sqrt(squared)
    for _ in range(60):  # few() the other way round: no first order would do for many standard errors
        half = (low + high) / 2
        low, high = (
            (low, half) if half + (half**3 + half) / (4 * max(freedom, 1.0)) > sqrt(squared) else (half, high)
        )
    v = time / planned * tuned(ALPHA_INTEGRITY)
    return min(1.0, sqrt(v + 1) * exp(-(low**2) * v / (v + 1) / 2))


def rejected(control: Sequence[ArmSums], candidate: Sequence[ArmSums], planned: int) -> Test:
    """Whether one arm rejects requests that the other takes.

    They were dealt by chance, so the arms differ, and what one of them rejects is missing from its metrics.
    """
    sums = sums_of(control, REJECTED), sums_of(candidate, REJECTED)
    hits, whole = [int(each.y.sum()) for each in sums], [int(each.x.sum()) for each in sums]
    detail = f"{hits[1]} of {whole[1]} rejected by the candidate, {hits[0]} of {whole[0]} by the control"
    found = estimate(*sums, REJECTED.least)
    time = float(found.time)
    sticky = len(control[0].requests) > 1
    if min(*whole, time) < LEAST_COMPARED or (sticky and found.freedom < LEAST_BUCKETS - 1):
        return Test("rejected", False, 1.0, detail)
    squared = float(found.effect / found.error) ** 2
    p_value = _p_value(squared, float(found.freedom), time, min(planned, _PLANNED_MOST))
    return Test("rejected", p_value < ALPHA_INTEGRITY, p_value, detail)


def recorded(name: str, arm: Sequence[ArmSums], in_flight: int) -> Test:
    """Whether an arm's assigned requests were recorded, but for ``TOLERATED_LOSS`` and those in flight."""
    assigned = sum(int(epoch.assigned.sum()) for epoch in arm) - in_flight
    there = sum(epoch.recorded for epoch in arm)
    lost = max(assigned - there, 0)
    evidence = excess_evidence(lost, max(assigned, lost), TOLERATED_LOSS)
    p_value = exp(-max(evidence, 0.0))
    return Test(
        f"recorded:{name}", p_value < ALPHA_INTEGRITY, p_value, f"{lost} of {assigned} were never recorded"
    )
