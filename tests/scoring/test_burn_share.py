"""Too many of the last minute's requests: the exact test, the baseline, and both rules."""

from __future__ import annotations

from fractions import Fraction
from math import comb, exp, lgamma

import numpy as np
import pytest

from scoring.alarm_share import COLD, Baseline, Errors, Spike, upper_tail
from scoring.slot import Booking, Slot

USUAL = Baseline(0.01, 0.02, 0.01, 18_000, 60)
STEADY = [50] * 6


@pytest.mark.parametrize(
    ("count", "hits", "percent"), [(10, 1, 50), (300, 30, 1), (300, 3, 1), (1_500, 40, 1), (5, 5, 20)]
)
def test_the_binomial_tail_is_exact(count: int, hits: int, percent: int) -> None:
    ways = sum(comb(count, k) * percent**k * (100 - percent) ** (count - k) for k in range(hits, count + 1))
    exact = Fraction(ways, 100**count)
    assert upper_tail(count, hits, percent / 100) == pytest.approx(float(exact), rel=1e-8)


@pytest.mark.parametrize(
    ("count", "hits", "a", "b"),
    [
        (20, 5, 1, 9),
        (300, 60, 2, 98),
        (300, 250, 3, 1),
        (9_000, 500, 3, 1),
        (40, 0, 1, 1),
        (2_000, 60, 5, 495),
    ],
)
def test_the_beta_binomial_tail_is_exact(count: int, hits: int, a: int, b: int) -> None:
    # For whole a and b: C(k + a - 1, k) C(n - k + b - 1, n - k) / C(n + a + b - 1, n).
    ways = sum(comb(k + a - 1, k) * comb(count - k + b - 1, count - k) for k in range(hits, count + 1))
    exact = Fraction(ways, comb(count + a + b - 1, count))
    assert upper_tail(count, hits, a / (a + b), 1 / (a + b + 1)) == pytest.approx(float(exact), rel=1e-7)


@pytest.mark.parametrize(
    ("count", "hits", "share", "spread", "tail"),
    [(5, 0, 0.1, 0, 1), (5, 6, 0.5, 0, 0), (5, 1, 0, 0, 0), (5, 5, 1, 0, 1), (9, 9, 0.25, 1, 0.25)],
)
def test_the_ends_of_the_tail(count: int, hits: int, share: float, spread: float, tail: float) -> None:
    assert upper_tail(count, hits, share, spread) == tail


def test_the_tail_where_all_or_none_is_likely() -> None:
    a = b = 0.05
    none = exp(lgamma(a + b) - lgamma(b) + lgamma(9_000 + b) - lgamma(9_000 + a + b))
    assert upper_tail(9_000, 1, 0.5, 1 / (a + b + 1)) == pytest.approx(1 - none, rel=1e-7)


def test_a_few_bad_minutes_do_not_move_what_is_usual() -> None:
    due, hit = np.full(360, 50), np.tile([0, 1], 180)
    calm = Baseline.of(due, hit)
    hit[100:130] = 50  # five minutes of an outage
    assert Baseline.of(due, hit).share == pytest.approx(calm.share)
    assert Baseline.of(due, hit).high == pytest.approx(calm.high)
    assert calm.share == pytest.approx(0.01, rel=0.01)
    assert (calm.requests, calm.blocks) == (14_400, 60)  # the middle 80%


def test_an_hour_of_an_incident_is_left_out_where_it_is_known() -> None:
    due, hit = np.full(360, 50), np.zeros(360, dtype=np.int64)
    hit[100:] = 50
    assert Baseline.of(due, hit).share > 0.6
    assert Baseline.of(due, hit, np.arange(360) >= 100).share < 0.001


def test_misses_that_come_together_spread_the_baseline() -> None:
    rng, due = np.random.default_rng(1), np.full(360, 50)
    chance = np.repeat(rng.beta(0.05 * 30, 0.95 * 30, 60), 6)
    together, alone = Baseline.of(due, rng.binomial(due, chance)), Baseline.of(due, rng.binomial(due, 0.05))
    assert 0.007 < together.spread < 1 / 31  # low, since the worst minutes are left out
    assert alone.spread < 0.002


@pytest.mark.parametrize("minutes", [0, 9])
def test_before_ten_minutes_a_tenth_is_assumed(minutes: int) -> None:
    usual = Baseline.of(np.full(6 * minutes, 50), np.zeros(6 * minutes, dtype=np.int64))
    assert usual.cold
    assert usual.share == COLD.share
    assert not Spike().evaluate(STEADY, [15] * 6, usual).fires
    assert Spike().evaluate(STEADY, [45] * 6, usual).fires


@pytest.mark.parametrize(
    ("requests", "hits", "fires"),
    [
        (STEADY, [0, 1, 0, 1, 0, 1], False),
        (STEADY, [0, 0, 30, 45, 45, 45], True),
        (STEADY, [0, 0, 0, 45, 45, 45], False),  # not yet 40 s: it may be one hiccup
        (STEADY, [12] * 6, False),  # just under a quarter
        ([1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], False),  # one request that hung for five minutes
        ([0, 1, 1, 0, 1, 1], [0, 1, 1, 0, 1, 1], False),  # four distinct requests
        ([1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], False),  # six alone are no proof that it is not chance
        ([2] * 6, [2, 1, 2, 1, 2, 2], True),
        ([500] * 6, [130, 130, 130, 130, 130, 130], False),  # in a minute they may come together
        ([500] * 6, [450] * 6, True),
    ],
)
def test_what_is_a_spike(requests: list[int], hits: list[int], fires: bool) -> None:
    assert Spike().evaluate(requests, hits, USUAL).fires is fires


def test_a_group_that_always_misses_a_third_is_no_spike() -> None:
    usual = Baseline(0.33, 0.4, 0.01, 18_000, 60)
    assert not Spike().evaluate(STEADY, [25] * 6, usual).fires


@pytest.mark.parametrize(
    ("requests", "hits", "usual", "fires"),
    [
        (STEADY, [0, 0, 6, 8, 6, 8], USUAL, True),
        (STEADY, [0, 0, 0, 20, 20, 0], USUAL, False),  # two slots: one restart
        (STEADY, [1] * 6, USUAL, False),
        ([5] * 6, [1, 0, 1, 1, 1, 0], USUAL, False),  # four
        ([0, 1, 1, 0, 1, 1], [0, 1, 1, 0, 1, 1], USUAL, False),  # four of four
        ([1] * 6, [0, 1, 1, 1, 1, 1], USUAL, True),
        ([500] * 6, [40] * 6, Baseline(0.03, 0.03, 0, 180_000, 60), False),  # not three times as many
        ([500] * 6, [50] * 6, Baseline(0.03, 0.03, 0, 180_000, 60), True),
        (STEADY, [5] * 6, Baseline(0.08, 0.1, 0, 18_000, 60), False),
        (STEADY, [8] * 6, Baseline(0.01, 0.15, 0, 18_000, 60), False),  # as in one minute of ten
    ],
)
def test_what_are_errors(requests: list[int], hits: list[int], usual: Baseline, fires: bool) -> None:
    assert Errors().evaluate(requests, hits, usual).fires is fires


def test_a_slot_holds_how_many_requests_missed_a_deadline() -> None:
    slot = Slot()
    for missed in (0, 0, 1, 10**6, 0, 3):
        slot.add(Booking("completed", "good", 10**9, met=10**12, missed=missed))
    slot.lower(6)
    assert slot.hists["miss_rate"].count - slot.hists["miss_rate"].zeros == 3
    assert slot.totals["scored"] == 6


def test_it_clears_at_half_the_threshold_and_says_its_figures() -> None:
    said = Errors().evaluate(STEADY, [5] * 6, USUAL)
    assert (said.fires, said.value, said.threshold) == (True, 0.1, 0.05)
    assert said.evidence["hits"] == 30
    assert said.evidence["chance"] < 1e-8
    assert said.reason == "30 of 300 requests of the last minute failed (usual: 1.00%)"
    unknown = Errors().evaluate(STEADY, [5] * 6, COLD)
    assert unknown.reason.endswith("failed (usual: not known yet, 10.00% is assumed)")
    assert (unknown.evidence["usual_minutes"], said.evidence["usual_minutes"]) == (0, USUAL.blocks)
    assert not Errors().evaluate(STEADY, [2, 1, 2, 1, 2, 1], USUAL).clears  # 3%
    assert Errors().evaluate(STEADY, [1] * 6, USUAL).clears
    nothing = Errors().evaluate([0] * 6, [0] * 6, USUAL)
    assert (nothing.fires, nothing.clears, nothing.value) == (False, False, None)


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"share": 0.0}, "share 0.0: give a share above 0%"),
        ({"chance": 2.0}, "chance 2.0: give a share"),
        ({"slots": 7}, "slots 7: give 1 to 6"),
        ({"hits": 0}, "hits 0: give at least 1"),
    ],
)
def test_nonsense_is_refused(keywords: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Spike(**keywords)  # type: ignore[arg-type]
