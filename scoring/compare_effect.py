"""The effect of one arm against another: per epoch of weights, combined, with its variance.

Arrays may have any leading axes (a thousand experiments at once); the last is the epoch, after it the bucket.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from scoring.compare_always import Floats

#: As if each arm had this many more requests in each epoch, of the variance of all: an arm of twenty requests
#: without a failure would otherwise be certain of itself.  It fades as 1/n.
BORROWED: Final = 50.0


class Sums(NamedTuple):
    """One metric of one arm: its value is the ratio sum(y) / sum(x), a mean where x is 1 or 0.

    Shapes: ``requests``, ``y``, ``x``, ``yy``, ``xy``, ``xx`` (sums over requests) (..., epochs);
    ``y_in``, ``x_in`` (..., epochs, buckets), the same sums by bucket, and ``size`` the requests there;
    ``None`` where requests are independent.
    """

    requests: Floats
    y: Floats
    x: Floats
    yy: Floats
    xy: Floats
    xx: Floats
    y_in: Floats | None = None
    x_in: Floats | None = None
    size: Floats | None = None


class Effect(NamedTuple):
    """Candidate minus control, shapes (...).  ``time``: what was seen, in independent requests per arm."""

    control: Floats
    candidate: Floats
    effect: Floats
    error: Floats
    time: Floats
    freedom: Floats
    design_effect: Floats


class _Arm(NamedTuple):
    ratio: Floats
    deviation: Floats  # sum over requests of (y - ratio x)**2, in units of the ratio
    scale: Floats  # mean of x


def estimate(control: Sums, candidate: Sums, least: float = 0.0) -> Effect:
    """The effect and its standard error.

    Epochs are weighted by n_a n_b / (n_a + n_b), n the requests of each arm: the inverse variance if requests
    vary alike, and blind to what they scored.  Buckets (both arms have them or none) are what is independent.
    ``least``: the least sum of squared deviations that is believed: a share of which nothing was seen yet is
    known to about 3/n, not exactly.  Where nothing can be said the error is infinite and the time 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return _estimate(control, candidate, least)


def _estimate(control: Sums, candidate: Sums, least: float) -> Effect:
    both = (control.x > 0) & (candidate.x > 0)
    weight = np.where(
        both, control.requests * candidate.requests / (control.requests + candidate.requests), 0.0
    )
    arms = (_arm(control), _arm(candidate))
    total = weight.sum(-1)
    values = [np.where(both, weight * arm.ratio, 0.0).sum(-1) / total for arm in arms]

    variance, unit, freedom = _by_request((control, candidate), arms, weight, least)
    independent = variance
    if control.y_in is not None and candidate.y_in is not None:
        shift = _shift(candidate, arms[1], weight, both) - _shift(control, arms[0], weight, both)
        freedom = np.minimum(_even(control), _even(candidate)) - 1
        used = np.maximum(freedom, 1.0)
        # Small epochs hide their own variance, and requests of one session are hardly ever opposed.
        variance = np.maximum(independent, (shift**2).sum(-1) * (used + 1) / used)
    known = (total > 0) & (variance > 0)
    return Effect(
        control=values[0],
        candidate=values[1],
        effect=values[1] - values[0],
        error=np.where(known, np.sqrt(variance) / total, np.inf),
        time=np.where(known, unit * total**2 / variance, 0.0),
        freedom=freedom,
        design_effect=np.where(known, variance / independent, 1.0),
    )


def _by_request(
    both: tuple[Sums, Sums], arms: tuple[_Arm, _Arm], weight: Floats, least: float
) -> tuple[Floats, Floats, Floats]:
    """As if requests were independent: variance of the weighted sum, and of one pair; the freedom."""
    used = weight > 0
    total = weight.sum(-1)
    spare = [np.where(used, np.maximum(sums.requests - 1, 0.0), 0.0) for sums in both]
    spread = [np.where(used, arm.deviation, 0.0) for arm in arms]
    freedom = (spare[0] + spare[1]).sum(-1)
    pooled = np.maximum((spread[0] + spread[1]).sum(-1), least) / freedom
    variance, unit = np.zeros_like(total), np.zeros_like(total)
    for sums, free, deviation in zip(both, spare, spread, strict=True):
        each = (deviation + BORROWED * pooled[..., None]) / (free + BORROWED)
        variance = variance + np.where(used, weight**2 * each / sums.requests, 0.0).sum(-1)
        unit = unit + (deviation.sum(-1) + BORROWED * pooled) / (free.sum(-1) + BORROWED)
    # An arm with a tenth of the requests that was lucky would be sure of it by its own small variance.
    return np.maximum(variance, pooled * total), np.maximum(unit, 2 * pooled), freedom


def _arm(sums: Sums) -> _Arm:
    ratio = sums.y / sums.x
    scale = sums.x / sums.requests
    deviation = np.maximum(sums.yy - 2 * ratio * sums.xy + ratio**2 * sums.xx, 0.0) / scale**2
    return _Arm(ratio, deviation, scale)


def _shift(sums: Sums, arm: _Arm, weight: Floats, both: npt.NDArray[np.bool_]) -> Floats:
    """By how much each bucket moved the weighted sum over epochs, shape (..., buckets)."""
    assert sums.y_in is not None
    assert sums.x_in is not None
    factor = np.where(both, weight / sums.x, 0.0)
    drag = np.where(both, factor * arm.ratio, 0.0)
    shift: Floats = np.einsum("...eb,...e->...b", sums.y_in, factor)
    shift -= np.einsum("...eb,...e->...b", sums.x_in, drag)
    return shift


def _even(sums: Sums) -> Floats:
    """How many buckets of equal size would be as uneven as these."""
    assert sums.size is not None
    size = sums.size.sum(-2)
    even: Floats = size.sum(-1) ** 2 / np.maximum((size**2).sum(-1), 1.0)
    return even
