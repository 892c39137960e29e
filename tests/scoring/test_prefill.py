"""The learned prefill curve: as exact as promised, honest where it cannot be, bounded, and it reads back."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.prefill import Curve, PrefillLearner, drift
from scoring.prefill_fit import Reward, _line, half_octave

MS = 10**6
SECOND = 10**9
WINDOW_NS = 3_600 * SECOND
LENGTHS = np.geomspace(64, 32_768, 37).round()
MEDIAN_LENGTH = math.sqrt(64 * 32_768)
Floats = npt.NDArray[np.float64]
Truth = Callable[[Floats], Floats]


def quadratic(c0: float, c1: float, c2: float) -> Truth:
    """Milliseconds for prompt tokens."""
    return lambda prompt: c0 + c1 * prompt + c2 * prompt * prompt


# From one whose shortest prompts take a third of the median's time (and so of the waiting) to 1/13 of it.
SERVERS = {
    "steady": quadratic(15, 0.02, 1e-6),
    "large": quadratic(30, 0.05, 3e-6),
    "small": quadratic(8, 0.03, 5e-7),
    "linear": quadratic(40, 0.2, 0),
    "plain": quadratic(20, 0.1, 1e-6),
    "hard": quadratic(5, 0.1, 1e-6),
}


def exponential(rng: np.random.Generator, count: int) -> Floats:
    return rng.exponential(1, count)


def idle_half_the_time(rng: np.random.Generator, count: int) -> Floats:
    return np.where(rng.random(count) < 0.5, 0.0, rng.exponential(1, count))


def heavy(rng: np.random.Generator, count: int) -> Floats:
    return rng.pareto(1.5, count)


def traffic(
    truth: Truth,
    seed: int,
    *,
    count: int = 2_000,
    hits: float = 0.0,
    waiting: Callable[[np.random.Generator, int], Floats] = exponential,
    load: float = 1.0,
) -> tuple[npt.NDArray[np.int64], Floats]:
    """(prompt tokens, TTFT in ms): log-uniform lengths, waiting in units of the median prompt's prefill."""
    rng = np.random.default_rng(seed)
    prompts = np.exp(rng.uniform(math.log(64), math.log(32_768), count)).round()
    cost = np.where(rng.random(count) < hits, rng.uniform(0.05, 0.30, count), 1.0)
    ttfts = truth(prompts) * cost + load * float(truth(np.array(MEDIAN_LENGTH))) * waiting(rng, count)
    return prompts.astype(np.int64), ttfts


def taught(prompts: npt.NDArray[np.int64], ttfts_ms: Floats, *, from_ns: int = 0) -> PrefillLearner:
    learner = PrefillLearner()
    teach(learner, prompts, ttfts_ms, from_ns=from_ns)
    return learner


def teach(learner: PrefillLearner, prompts: Sequence[int] | Any, ttfts_ms: Any, *, from_ns: int) -> None:
    pairs = zip(np.asarray(prompts).tolist(), np.asarray(ttfts_ms).tolist(), strict=True)
    for index, (prompt, ttft) in enumerate(pairs):
        assert learner.add(from_ns + index * SECOND, prompt, None, max(1, round(ttft * MS)))


def learned(learner: PrefillLearner, now_ns: int = 2_000 * SECOND) -> Curve:
    curve = learner.curve(now_ns)
    assert curve is not None
    return curve


def worst(curve: Curve, truth: Truth) -> float:
    """The largest relative error over the observed range."""
    low, high = curve.observed
    lengths = LENGTHS.clip(low, high)
    found = np.array([curve.at(int(length)) for length in lengths]) / MS
    return float(np.abs(found / truth(lengths) - 1).max())


# --- exactness ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "seeds"), [(name, range(9)) for name in SERVERS])
def test_within_a_tenth_after_two_thousand_requests(name: str, seeds: range) -> None:
    for seed in seeds:
        curve = learned(taught(*traffic(SERVERS[name], seed)))
        assert worst(curve, SERVERS[name]) < 0.10, seed
        assert not curve.bimodal
        assert curve.quadratic
        assert curve.samples == 2_000


@pytest.mark.parametrize(("name", "seeds"), [(name, range(10)) for name in SERVERS if name != "hard"])
def test_with_unreported_hits_it_takes_the_slow_mode_and_says_so(name: str, seeds: range) -> None:
    for seed in seeds:
        curve = learned(taught(*traffic(SERVERS[name], seed, hits=0.30)))
        assert worst(curve, SERVERS[name]) < 0.15, seed
        assert curve.bimodal
        assert curve.fast_share == pytest.approx(0.30, abs=0.06)


def test_reported_hits_are_taken_off_the_prompt() -> None:
    truth, learner, rng = SERVERS["plain"], PrefillLearner(), np.random.default_rng(1)
    computed, ttfts = traffic(truth, 1)
    for index, (prompt, ttft) in enumerate(zip(computed.tolist(), ttfts.tolist(), strict=True)):
        cached = int(rng.integers(0, 20_000))
        assert learner.add(index * SECOND, prompt + cached, cached, round(ttft * MS))
    curve = learned(learner)
    assert curve.net_of_cache
    assert not curve.bimodal
    assert worst(curve, truth) < 0.10


@pytest.mark.parametrize(("waiting", "hits"), [(idle_half_the_time, 0.0), (heavy, 0.0), (heavy, 0.3)])
def test_waiting_need_not_be_exponential(waiting: Any, hits: float) -> None:
    for seed in range(4):
        curve = learned(taught(*traffic(SERVERS["plain"], seed, waiting=waiting, hits=hits)))
        assert worst(curve, SERVERS["plain"]) < 0.10
        assert curve.bimodal == (hits > 0)


def test_a_few_clock_errors_do_not_pull_it_down() -> None:
    prompts, ttfts = traffic(SERVERS["plain"], 3)
    truly = SERVERS["plain"](prompts[::100].astype(np.float64))
    ttfts[::100] = truly * np.random.default_rng(3).uniform(0, 0.5, 20)
    curve = learned(taught(prompts, ttfts))
    assert worst(curve, SERVERS["plain"]) < 0.10
    assert not curve.bimodal


def test_where_no_quadratic_fits_there_are_points() -> None:
    def bound_by_memory(prompt: Floats) -> Floats:
        return np.maximum(60, 0.25 * prompt) + 1e-6 * prompt**2

    for hits in (0.0, 0.3):
        curve = learned(taught(*traffic(bound_by_memory, 0, load=0.05, hits=hits)))
        assert curve.quadratic is None
        assert worst(curve, bound_by_memory) < 0.15
        assert curve.bimodal == (hits > 0)


def test_where_waiting_hides_every_prefill_it_says_that_it_cannot_tell() -> None:
    curve = learned(taught(*traffic(quadratic(80, 0, 0), 0, hits=0.3)))
    assert curve.fast_share is None
    assert not curve.bimodal


# --- time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_change_of_speed_is_followed_within_the_window(factor: float) -> None:
    before = SERVERS["plain"]

    def after(prompt: Floats) -> Floats:
        return factor * before(prompt)

    learner = taught(*traffic(before, 1, count=3_600))
    assert worst(learned(learner, WINDOW_NS - 1), before) < 0.10
    teach(learner, *traffic(after, 2, count=3_600), from_ns=WINDOW_NS)
    curve = learned(learner, 2 * WINDOW_NS - 1)
    assert worst(curve, after) < 0.10
    assert not curve.bimodal
    assert curve.samples == 3_600


def test_what_is_older_than_the_window_is_gone() -> None:
    learner = taught(*traffic(SERVERS["plain"], 0, count=300))
    assert learner.why_not(300 * SECOND) is None
    assert learner.why_not(WINDOW_NS + 300 * SECOND) == "0 requests in the window, 200 are needed"
    assert learner.curve(WINDOW_NS + 300 * SECOND) is None
    assert learner.add(2 * WINDOW_NS, 100, None, MS)
    assert not learner.add(WINDOW_NS, 100, None, MS)  # late
    assert learner.add(2 * WINDOW_NS - WINDOW_NS // 2, 100, None, MS)  # late, but inside


def test_memory_is_bounded_and_the_count_exact() -> None:
    learner, rng = PrefillLearner(slots=3, per_cell=16), np.random.default_rng(0)
    many = 60_000
    lengths = np.exp2(rng.uniform(0, 26, many)).astype(np.int64).tolist()
    for index, prompt in enumerate(lengths):
        assert learner.add(index * WINDOW_NS // 20_000, prompt, None, MS + prompt)
        if index == many // 2:
            kept_before = kept(learner)
    assert kept(learner) <= kept_before * 1.01 + 20
    assert kept(learner) <= 3 * 16 * 53
    assert size(learner) < 4 * 16 * 3 * 16 * 53
    curve = learned(learner, many * WINDOW_NS // 20_000 - 1)
    assert curve.samples == 20_000 == sum(count for _, count in curve.traffic)


def kept(learner: PrefillLearner) -> int:
    return sum(len(cell.prompts) for cells, _ in learner._parts.values() for cell in cells.values())


def size(learner: PrefillLearner) -> int:
    cells = [cell for part, _ in learner._parts.values() for cell in part.values()]
    return sum(sys.getsizeof(cell.prompts) + sys.getsizeof(cell.ttfts) for cell in cells)


def test_a_full_cell_keeps_an_even_sample() -> None:
    learner = PrefillLearner(per_cell=100)
    for index in range(10_000):
        learner.add(0, 1_000, None, index + 1)
    (cell,) = learner._parts[0][0].values()
    tenths = np.bincount((np.array(cell.ttfts) - 1) // 1_000, minlength=10)
    assert len(cell.ttfts) == 100
    assert len(set(cell.ttfts)) == 100
    assert tenths.min() >= 3
    assert tenths.max() <= 20


@pytest.mark.parametrize(
    ("prompt", "cached", "ttft_ns"),
    [
        (0, None, 1),
        (-5, None, 1),
        (10, 11, 1),
        (10, -1, 1),
        (10, 0, 0),
        (10, 0, -1),
        (2**70, 0, 1),
        (1, 0, 2**80),
    ],
)
def test_what_cannot_be_teaches_nothing(prompt: int, cached: int | None, ttft_ns: int) -> None:
    learner = PrefillLearner(min_samples=1)
    assert not learner.add(0, prompt, cached, ttft_ns)
    assert learner.why_not(0) == "0 requests in the window, 1 are needed"


def test_few_samples_give_a_reason() -> None:
    learner = taught(*traffic(SERVERS["plain"], 0, count=199))
    assert learner.curve(199 * SECOND) is None
    assert learner.why_not(199 * SECOND) == "199 requests in the window, 200 are needed"
    learner = PrefillLearner(min_samples=5)
    for index in range(20):
        learner.add(0, 2**index, None, MS)
    assert learner.why_not(0) == "no half octave of prompt lengths has 8 requests"
    assert learner.curve(0) is None


def test_drift_of_a_server_that_slowed_down() -> None:
    before = learned(taught(*traffic(SERVERS["large"], 1)))
    same = learned(taught(*traffic(SERVERS["large"], 2)))
    slower = learned(taught(*traffic(lambda prompt: 1.25 * SERVERS["large"](prompt), 3)))
    assert drift(same, before) == pytest.approx(1.0, abs=0.02)
    assert drift(slower, before) == pytest.approx(1.25, abs=0.03)


# --- properties --------------------------------------------------------------------------------------------

REQUESTS = st.lists(
    st.tuples(st.integers(1, 1 << 26), st.one_of(st.none(), st.just(0)), st.integers(1, 10**13)),
    min_size=8,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(REQUESTS, st.integers(1, 3))
def test_any_requests_give_a_curve_that_rises_and_reads_back(
    requests: list[tuple[int, int | None, int]], often: int
) -> None:
    learner = PrefillLearner(min_samples=1)
    for prompt, cached, ttft in requests * often:
        assert learner.add(0, prompt, cached, ttft)
    curve = learner.curve(0)
    if curve is None:
        assert learner.why_not(0)
        return
    low, high = curve.observed
    lengths = sorted({0, 1, low, high, (low + high) // 2, 2 * high, *(prompt for prompt, _, _ in requests)})
    ttfts = [curve.at(length) for length in lengths]
    assert ttfts == sorted(ttfts)
    assert all(type(ttft) is int and ttft >= 0 for ttft in ttfts)
    assert Curve.from_plain(curve.to_plain()) == curve
    assert Curve.from_plain(yaml.safe_load(yaml.safe_dump(curve.to_plain()))) == curve
    assert Curve.from_plain(json.loads(json.dumps(curve.to_plain()))) == curve
    assert drift(curve, curve) in (1.0, None)


@given(st.integers(1, 1 << 26))
def test_a_half_octave_is_one(prompt: int) -> None:
    index = half_octave(prompt)  # 2^(index/2) <= prompt < 2^((index+1)/2), squared
    assert Fraction(2) ** index <= prompt * prompt < Fraction(2) ** (index + 1)


NUMBERS = st.integers(-40, 40).map(lambda n: n / 4)


@given(
    st.lists(
        st.tuples(NUMBERS, NUMBERS.filter(bool), st.sampled_from([0.5, 1.0, 3.0])), min_size=1, max_size=12
    ),
    st.sampled_from([0.0, 8.0]),
    st.integers(1, 16),
)
def test_a_line_search_finds_the_best_step(
    rows: list[tuple[float, float, float]], penalty: float, reach: int
) -> None:
    excess, along, spread = (np.array(column) for column in zip(*rows, strict=True))
    reward, low, high = Reward(penalty), -reach / 4, reach / 4

    def pays(step: float) -> float:  # token by token, with exact arithmetic on what is not exact
        total = 0.0
        for start, slope, scale in zip(excess.tolist(), along.tolist(), spread.tolist(), strict=True):
            height = (start - step * slope) / scale
            total += -penalty if height < -1e-9 else max(0.0, 1.3 - height)
        return total

    step, gain = _line(excess, spread, along, reward, low, high)
    assert low <= step <= high
    assert gain == pytest.approx(pays(step) - pays(0), abs=1e-6)
    corners = [low, high, 0.0]
    corners += [a / b for a, b in zip(excess, along, strict=True)]
    corners += [(a - 1.3 * s) / b for a, b, s in zip(excess, along, spread, strict=True)]
    best = max(pays(corner) for corner in corners if low <= corner <= high)
    assert gain >= best - pays(0) - 1e-6
