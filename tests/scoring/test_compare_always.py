"""Bounds that hold at every moment: their formulas against what they are derived from, and against chance."""

from __future__ import annotations

from math import comb, exp, inf, log, sqrt

import numpy as np
import pytest

from scoring.compare import Plan, quantile_bounds
from scoring.compare_always import (
    counts_evidence,
    excess_evidence,
    few,
    grown,
    multiplier,
    plausible_counts,
    tuned,
)
from scoring.sketch import LogHistogram


@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.001])
def test_the_interval_is_where_a_mixture_of_bets_on_every_effect_has_grown_to_1_over_alpha(
    alpha: float,
) -> None:
    """The mixture integrated numerically: theta from N(0, rho**2), each bet exp(theta S - theta**2 t / 2)."""
    time, planned = 400.0, 1000.0
    rho = sqrt(tuned(alpha) / planned)
    total = float(multiplier(np.array(time), planned, alpha)) * sqrt(time)
    theta = np.linspace(-12 * rho, 12 * rho, 200_001)
    density = np.exp(-(theta**2) / (2 * rho**2)) / (rho * sqrt(2 * np.pi))
    wealth = np.sum(density * np.exp(theta * total - theta**2 * time / 2)) * (theta[1] - theta[0])
    assert wealth == pytest.approx(1 / alpha, rel=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.001])
def test_it_is_tightest_at_the_planned_size(alpha: float) -> None:
    tunings = np.geomspace(200, 5000, 401)
    reach = [float(multiplier(np.array(1000.0), planned, alpha)) for planned in tunings]
    assert tunings[int(np.argmin(reach))] == pytest.approx(1000, rel=0.02)
    assert float(multiplier(np.array(1000.0), 1000, alpha)) == pytest.approx(sqrt(tuned(alpha) + 1))


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0])
def test_an_alpha_that_is_no_probability_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        tuned(alpha)


@pytest.mark.parametrize(("freedom", "quantile"), [(30, 2.7500), (100, 2.6259), (1e9, 2.5758)])
def test_few_clusters_widen_as_student_says(freedom: float, quantile: float) -> None:
    assert float(few(np.array(2.5758), np.array(freedom))) == pytest.approx(quantile, rel=0.01)


def test_a_walk_without_drift_leaves_the_boundary_at_most_as_often_as_promised() -> None:
    rng = np.random.default_rng(1)
    walk = np.cumsum(rng.standard_normal((2000, 2000)), axis=1)
    time = np.arange(1, 2001, dtype=np.float64)
    outside = np.abs(walk) > multiplier(time, 500, 0.1) * np.sqrt(time)
    share = outside.any(axis=1).mean()
    assert 0.03 < share <= 0.1, "valid, and not so wide that it could never be wrong"


def test_evidence_on_counts_is_the_ratio_of_a_mixture_to_the_shares() -> None:
    """Two arms, weight 2 at even shares: a flat prior, whose mixture is 1 / ((n + 1) * comb(n, k))."""
    n, k = 40, 29
    expected = 1 / ((n + 1) * comb(n, k)) / 0.5**n
    assert exp(counts_evidence((k, n - k), (0.5, 0.5), 2.0)) == pytest.approx(expected)


def test_even_counts_are_evidence_for_the_shares_and_wrong_ones_against() -> None:
    assert counts_evidence((900, 100), (0.9, 0.1), 100) < 0
    assert counts_evidence((840, 160), (0.9, 0.1), 100) > log(1000)
    assert counts_evidence((500, 300, 200), (0.5, 0.3, 0.2), 100) < 0


def test_rarely_is_a_fair_split_ever_called_uneven_while_looked_at_each_time() -> None:
    rng = np.random.default_rng(2)
    alarms = 0
    for _ in range(200):
        second = np.cumsum(rng.random(1000) < 0.1)
        alarms += any(
            counts_evidence((n - int(second[n - 1]), int(second[n - 1])), (0.9, 0.1), 100) > log(10)
            for n in range(1, 1001, 5)
        )
    assert alarms <= 30, "expected at most a tenth of 200, give or take"


@pytest.mark.parametrize(
    ("hits", "total", "called"),
    [(0, 0, False), (0, 10_000, False), (50, 10_000, False), (60, 10_000, False), (30, 1000, True)],
)
def test_losses_are_called_when_they_exceed_what_is_tolerated(hits: int, total: int, called: bool) -> None:
    assert (excess_evidence(hits, total, 0.005) > log(1000)) == called


def test_a_tolerated_share_of_one_half_leaves_nothing_to_test() -> None:
    with pytest.raises(ValueError, match="below one half"):
        excess_evidence(1, 2, 0.5)


def test_ranks_of_a_quantile_hold_at_every_moment_at_once() -> None:
    rng = np.random.default_rng(3)
    sizes = range(20, 2001, 20)
    bounds = {size: plausible_counts(size, 0.9, 0.05, 1000) for size in sizes}
    missed = 0
    for _ in range(500):
        below = np.cumsum(rng.random(2000) < 0.9)
        missed += any(not bounds[n][0] <= below[n - 1] <= bounds[n][1] for n in sizes)
    assert missed <= 25
    low, high = bounds[2000]
    assert 1740 < low < 1770, "about three standard deviations of 13.4"
    assert 1830 < high < 1860


def test_quantile_bounds_hold_the_quantile_and_say_what_they_cannot_bound() -> None:
    hist = LogHistogram()
    values = np.random.default_rng(4).exponential(1.0, 3000)
    hist.add_many(values)
    found = quantile_bounds(hist, 0.9, Plan(1000))
    assert found.low is not None
    assert found.value is not None
    assert found.high is not None
    assert found.low < log(10) < found.high
    assert found.value == pytest.approx(np.quantile(values, 0.9), rel=0.02)
    assert found.high - found.low < 0.6
    wider = quantile_bounds(hist, 0.9, Plan(1000), design_effect=4.0)
    assert wider.low is not None
    assert wider.high is not None
    assert wider.low < found.low < found.high < wider.high
    assert quantile_bounds(hist, 0.9999, Plan(1000)).high is None, "too few to bound it from above"
    assert quantile_bounds(hist, 0.99, Plan(1000), infinite=100).value is None
    assert quantile_bounds(LogHistogram(), 0.5, Plan()).value is None
    with pytest.raises(ValueError, match="quantile"):
        quantile_bounds(hist, 1.0, Plan())


def test_growth_is_the_first_factor_at_which_the_half_width_is_small_enough() -> None:
    assert grown(1.0, 2.0, 10, lambda _: 3.0, 1000) == pytest.approx(36)
    assert grown(1.0, 0.1, 10, lambda _: 3.0, 1000) == pytest.approx(1)
    assert grown(1.0, 20.0, 10, lambda _: 3.0, 1000) == inf
    assert grown(0.0, 1.0, 10, lambda _: 3.0, 1000) == inf
