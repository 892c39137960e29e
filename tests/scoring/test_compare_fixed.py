"""One look at a window: textbook intervals, published examples, and the coverage that they promise."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, inf, log, sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest

from scoring.compare import Verdict
from scoring.compare_fixed import Bounded, FixedLook, Look, difference, look, ranks, wilson
from scoring.slot import BILLION, Booking, Slot

S = 1_000_000_000
Floats = npt.NDArray[np.float64]


def slot(requests: int = 0, **counts: int) -> Slot:
    """So many completed good requests; ``bad``, and outcomes by name, beside them."""
    made = Slot()
    bad = counts.pop("bad", 0)
    made.outcomes["completed"] += requests + bad
    for name, count in counts.items():
        made.outcomes[name] += count
        if name != "rejected":
            bad += count
    made.results["good"] += requests
    made.results["bad"] += bad
    return made


def row(found: FixedLook, name: str) -> Look:
    (wanted,) = [each for each in found.metrics if each.metric == name]
    return wanted


# ---------------------------------------------------------------- the formulas


@pytest.mark.parametrize(
    ("candidate", "control", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), 873-890, table II, method 10
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 10), 0.6075, 1.0000),
    ],
)
def test_shares_as_newcombe_printed_them(
    candidate: tuple[int, int], control: tuple[int, int], low: float, high: float
) -> None:
    found = difference(wilson(*control, alpha=0.05), wilson(*candidate, alpha=0.05))
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(
    ("count", "q", "wanted"),
    [  # tables of the sign test and of the binomial distribution
        (5, 0.5, (0, 6)),
        (6, 0.5, (1, 6)),
        (10, 0.5, (2, 9)),
        (100, 0.5, (40, 61)),
        (100, 0.99, (97, 101)),
        (1, 0.5, (0, 2)),
    ],
)
def test_ranks_about_a_quantile(count: int, q: float, wanted: tuple[int, int]) -> None:
    assert ranks(count, q, 0.05) == wanted


def test_ranks_of_a_hundred_million_are_those_of_the_normal_distribution() -> None:
    low, high = ranks(10**8, 0.9, 0.05)
    half = NormalDist().inv_cdf(0.975) * sqrt(10**8 * 0.09)
    assert (low, high) == pytest.approx((9e7 - half, 9e7 + half), abs=3)


def test_a_difference_is_not_bounded_where_its_parts_are_not() -> None:
    found = difference(Bounded(1.0, 0.5, inf), Bounded(2.0, 1.9, 2.1))
    assert (found.value, found.low) == (1.0, -inf)
    assert found.high == pytest.approx(1 + sqrt(0.1**2 + 0.5**2))


# ---------------------------------------------------------------- a slot's rows


def test_good_and_errors_leave_out_what_is_not_the_servers() -> None:
    control = slot(80, bad=10, upstream_error=6, timeout=4, proxy_error=7, rejected=50)
    candidate = slot(180, bad=20, proxy_error=1)
    found = look(control, candidate)
    assert (row(found, "good").control, row(found, "good").candidate) == (0.8, 0.9)
    assert row(found, "good").counts == (100, 200)
    assert (row(found, "errors").control, row(found, "errors").candidate) == (0.1, 0.0)
    assert row(found, "good").verdict == row(found, "errors").verdict == Verdict.BETTER
    assert found.requests == (157, 201)


def test_means_are_exact_and_their_interval_is_welchs() -> None:
    rng = np.random.default_rng(5)
    times = [rng.gamma(4, 0.1, 31), rng.gamma(4, 0.1, 31) * 1.4 + 0.2]
    slots = slot(31), slot(31)
    for of, seconds in zip(slots, times, strict=True):
        of.hists["ttft"].add_many(np.round(seconds * S).astype(np.int64))
    found = row(look(*slots), "ttft")
    assert found.effect == pytest.approx(times[1].mean() - times[0].mean(), abs=1e-8)
    parts = [each.var(ddof=1) / 31 for each in times]
    freedom = sum(parts) ** 2 / sum(part**2 / 30 for part in parts)
    assert 45 < freedom < 60
    half = 2.006 * sqrt(sum(parts))  # Student's t, 97.5%, at 50 to 55 degrees: 2.009 to 2.004
    assert found.effect is not None
    assert (found.low, found.high) == pytest.approx((found.effect - half, found.effect + half), rel=0.01)
    assert found.reasons == ("too_few",)  # of 50; the interval is shown all the same


def test_deadline_misses_have_an_effect_and_no_interval() -> None:
    slots = slot(100), slot(100)
    for of, missed in zip(slots, (30, 10), strict=True):
        of.deadlines.update(met=970, missed=missed)
    found = row(look(*slots), "deadline_misses")
    assert found.effect == pytest.approx(10 / 980 - 0.03)
    assert (found.low, found.high, found.verdict, found.reasons) == (
        None,
        None,
        Verdict.UNDECIDED,
        ("not_kept",),
    )


def test_fluidity_is_never_certain_of_what_it_has_not_seen() -> None:
    slots = slot(100), slot(100)
    for of in slots:
        of.hists["miss_rate"].add(0, 100)
    found = row(look(*slots), "fluidity")
    assert (found.control, found.candidate, found.effect) == (1.0, 1.0, 0.0)
    assert found.high is not None
    assert 0.02 < found.high < 0.04  # about 3 in 100, of one arm or the other
    assert found.verdict == Verdict.UNDECIDED
    assert row(look(*slots), "with_misses").high == pytest.approx(0.037, abs=0.001)


def alike(count: int) -> Slot:
    """Requests of 100 and 102 ms, in turn."""
    made = slot(count)
    for number in range(count):
        made.hists["ttft"].add((100 + number % 2 * 2) * S // 1000)
    return made


@pytest.mark.parametrize(("count", "bounded"), [(9, False), (10, True)])
def test_a_handful_gives_means_no_interval(count: int, bounded: bool) -> None:
    found = row(look(alike(60), alike(count)), "ttft")
    assert (found.low is not None, found.reasons) == (bounded, ("too_few",))
    assert found.effect == pytest.approx(0.0, abs=2e-4)


def test_bounds_of_a_quantile_reckon_with_the_histograms_error() -> None:
    (half, _, _) = look(alike(1000), alike(1000)).quantiles
    assert half.control.value == pytest.approx(0.1, rel=1 / 128)
    assert (half.control.low, half.control.high) == pytest.approx(
        (0.1 * (1 - 1 / 128), 0.102 * (1 + 1 / 128)), rel=0.003
    )


def test_nothing_seen_is_said_row_by_row() -> None:
    found = look(Slot(), slot(100))
    assert {each.reasons for each in found.metrics} == {("no_data",)}
    assert {each.reasons for each in found.quantiles} == {("no_data",)}
    assert row(found, "good").candidate == 1.0


@pytest.mark.parametrize(
    ("count", "factor", "verdict"),
    [
        (20_000, 1.0, Verdict.EQUIVALENT),
        (20_000, 1.3, Verdict.WORSE),
        (20_000, 0.7, Verdict.BETTER),
        (400, 1.04, Verdict.UNDECIDED),
    ],
)
def test_verdicts_of_times(count: int, factor: float, verdict: Verdict) -> None:
    slots = slot(count), slot(count)
    rng = np.random.default_rng(8)
    for of, times in zip(slots, (1.0, factor), strict=True):
        seconds = rng.lognormal(-1, 0.5, count) * times
        of.hists["ttft"].add_many(np.round(seconds * S).astype(np.int64))
    found = look(*slots)
    assert row(found, "ttft").verdict == verdict
    assert row(found, "log_ttft").verdict == verdict
    assert row(found, "log_ttft").effect == pytest.approx(log(factor), abs=2 / sqrt(count))


def test_a_look_at_booked_requests_reads_the_right_histograms() -> None:
    slots = Slot(), Slot()
    for of, ttft_s in zip(slots, (0.2, 0.1), strict=True):
        for late in range(60):
            of.add(
                Booking(
                    "completed", "good", S, met=9, missed=late % 2, ttft_ns=(ttft_s + late / 1e4) * S,
                    normalized_ns=ttft_s * S / 10,
                )
            )  # fmt: skip
    found = look(*slots)
    assert row(found, "ttft").effect == pytest.approx(-0.1)
    assert row(found, "normalized_latency").effect == pytest.approx(-0.01)
    assert row(found, "with_misses").control == 0.5
    assert row(found, "fluidity").control == pytest.approx(0.95)
    assert row(found, "deadline_misses").control == pytest.approx(30 / 570)
    assert [each.q for each in found.quantiles] == [0.5, 0.9, 0.99]
    half = found.quantiles[0]
    assert half.effect == pytest.approx(-0.1, rel=0.02)
    assert half.verdict == Verdict.BETTER
    assert found.quantiles[2].control.high is None  # 60 requests do not bound their 99th percentile


@pytest.mark.parametrize("alpha", [0.0, 1.0, 5.0])
def test_an_alpha_that_is_none(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"for example 0\.05"):
        look(Slot(), Slot(), alpha)


# ---------------------------------------------------------------- coverage

RUNS = 300
SIZES = 400, 250
#: Log-normal TTFT, control and candidate: (mu, sigma) of ln seconds.
TTFT = (-1.2, 0.6), (-1.0, 0.8)
GOOD = 0.97, 0.93
CLEAN = 0.8, 0.7  # share of streams without a miss; the others' miss rate is uniform to 0.5


def _drawn(rng: np.random.Generator, arm: int) -> Slot:
    count = SIZES[arm]
    good = int(rng.binomial(count, GOOD[arm]))
    made = slot(good, upstream_error=count - good)
    mu, sigma = TTFT[arm]
    made.hists["ttft"].add_many(np.round(rng.lognormal(mu, sigma, count) * S).astype(np.int64))
    rates = np.where(rng.random(count) < CLEAN[arm], 0.0, rng.uniform(0.0, 0.5, count))
    made.hists["miss_rate"].add_many(np.ceil(rates * BILLION).astype(np.int64))
    return made


def _truth() -> dict[str, float]:
    def quantile(q: float, arm: int) -> float:
        mu, sigma = TTFT[arm]
        return exp(mu + sigma * NormalDist().inv_cdf(q))

    def gap(of: Callable[[int], float]) -> float:
        return of(1) - of(0)

    return {
        "good": gap(lambda arm: GOOD[arm]),
        "errors": gap(lambda arm: 1 - GOOD[arm]),
        "with_misses": gap(lambda arm: 1 - CLEAN[arm]),
        "fluidity": gap(lambda arm: -(1 - CLEAN[arm]) * 0.25),
        "ttft": gap(lambda arm: exp(TTFT[arm][0] + TTFT[arm][1] ** 2 / 2)),
        "log_ttft": gap(lambda arm: TTFT[arm][0]),
        "p50": gap(lambda arm: quantile(0.5, arm)),
        "p90": gap(lambda arm: quantile(0.9, arm)),
    }


def test_intervals_hold_the_truth_as_often_as_they_promise() -> None:
    rng, truth = np.random.default_rng(20), _truth()
    held = dict.fromkeys(truth, 0)
    for _ in range(RUNS):
        found = look(_drawn(rng, 0), _drawn(rng, 1))
        ends = {each.metric: (each.low, each.high) for each in found.metrics}
        ends |= {f"p{each.q * 100:.0f}": (each.low, each.high) for each in found.quantiles}
        for name, true in truth.items():
            low, high = ends[name]
            assert low is not None
            assert high is not None
            held[name] += low <= true <= high
    # 95% of 300 is 285, with a standard deviation of 3.8; those of quantiles are moved outwards.
    for name, count in held.items():
        assert 273 <= count <= (300 if name.startswith("p") else 296), (name, held)
