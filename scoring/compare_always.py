"""Bounds that hold at every moment at once, so that one may look whenever one likes.

Each rests on Ville's inequality: a process that is a fair bet under the hypothesis, and begins at 1, ever
reaches 1/alpha with probability alpha at most.  Arrays may have any shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import exp, inf, lgamma, log, log1p, sqrt

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@lru_cache(maxsize=64)
def tuned(alpha: float) -> float:
    """``v = time * rho**2`` where the normal mixture is tightest: the root of v - ln(1 + v) = -2 ln alpha."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha!r}: give a probability between 0 and 1, for example 0.05")
    v = -2 * log(alpha)
    for _ in range(60):
        v = log1p(v) - 2 * log(alpha)
    return v


def multiplier(time: Floats, planned: float, alpha: float) -> Floats:
    """How many standard errors the interval reaches to each side at ``time``, tightest at ``planned``.

    Robbins' two-sided normal mixture: with v = time * rho**2, ``sqrt((v + 1) / v * ln((v + 1) / alpha**2))``,
    which is the asymptotic confidence sequence of Waudby-Smith et al. (arXiv 2103.06476),
    ``sigma * sqrt(2 (t rho**2 + 1) / (t**2 rho**2) * ln(sqrt(t rho**2 + 1) / alpha))``, over sigma / sqrt(t).
    Infinite at time 0.  ``time`` and ``planned`` share their unit.
    """
    v = np.maximum(np.asarray(time, dtype=np.float64) / planned * tuned(alpha), 1e-9)
    return np.sqrt((v + 1) / v * np.log((v + 1) / alpha**2))


def few(z: Floats, freedom: Floats) -> Floats:
    """``z`` standard errors, widened because the error itself is estimated (Student's t, to first order)."""
    widened: Floats = z + (z**3 + z) / (4 * np.maximum(freedom, 1.0))
    return widened


def _log_beta(parts: Sequence[float]) -> float:
    return sum(lgamma(part) for part in parts) - lgamma(sum(parts))


def counts_evidence(counts: Sequence[int], shares: Sequence[float], concentration: float) -> float:
    """ln of the evidence that independent draws with these counts do not have these shares.

    The Dirichlet mixture over multinomial likelihood ratios (Lindon and Malek, arXiv 2011.03567), prior mean
    ``shares`` (> 0, summing to 1), weight ``concentration``.  Always valid: it ever exceeds ln(1/alpha) with
    probability alpha at most; evidence of independent stretches adds up.
    """
    prior = [concentration * share for share in shares]
    after = [part + count for part, count in zip(prior, counts, strict=True)]
    fair = sum(count * log(share) for count, share in zip(counts, shares, strict=True))
    return _log_beta(after) - _log_beta(prior) - fair


def excess_evidence(hits: int, total: int, tolerated: float) -> float:
    """ln of the evidence that independent events happen more often than ``tolerated``, of ``total`` chances.

    The mean of the likelihood ratios of 2, 4, ... times ``tolerated`` against it; under any smaller rate a
    fair or losing bet.
    """
    rates = []
    rate = 2 * tolerated
    while rate < 1:
        rates.append(rate)
        rate *= 2
    if not rates:
        raise ValueError(f"tolerated {tolerated!r}: give a share below one half")
    logs = [
        hits * log(rate / tolerated) + (total - hits) * (log1p(-rate) - log1p(-tolerated)) for rate in rates
    ]
    top = max(logs)
    return top + log(sum(exp(each - top) for each in logs) / len(logs))


def plausible_counts(total: float, share: float, alpha: float, planned: float) -> tuple[float, float]:
    """Between which numbers of ``total`` independent draws lie below their ``share``-quantile, always valid.

    The beta-binomial mixture that Howard and Ramdas use for quantiles (arXiv 1906.09712), prior mean
    ``share``, tightest about ``planned`` draws.  Whole numbers where ``total`` is one.
    """
    weight = max(planned / tuned(alpha) - 1, 1.0)
    shares = (share, 1 - share)
    limit = -log(alpha)

    def surprising(below: float) -> bool:
        prior = (weight * share, weight * (1 - share))
        after = (prior[0] + below, prior[1] + total - below)
        fair = below * log(shares[0]) + (total - below) * log(shares[1])
        return _log_beta(after) - _log_beta(prior) - fair >= limit

    middle = share * total
    return middle - _reach(lambda d: surprising(middle - d), middle), middle + _reach(
        lambda d: surprising(middle + d), total - middle
    )


def _reach(surprising: Callable[[float], bool], most: float) -> float:
    """The largest distance, up to ``most``, that is not surprising; surprise grows with distance."""
    if not surprising(most):
        return most
    low, high = 0.0, most
    for _ in range(60):
        half = (low + high) / 2
        low, high = (low, half) if surprising(half) else (half, high)
    return low


def grown(effect: float, error: float, time: float, goal: Callable[[float], float], most: float) -> float:
    """By what factor the data must grow until the half width falls to the goal; infinite beyond ``most``.

    ``goal(factor)`` is the half width in standard errors at that factor; ``effect`` the half width wanted.
    """
    if effect <= 0 or time <= 0:
        return inf
    low, high = 1.0, most
    if goal(high) * error / sqrt(high) > effect:
        return inf
    for _ in range(60):
        half = sqrt(low * high)
        low, high = (low, half) if goal(half) * error / sqrt(half) <= effect else (half, high)
    return high
