"""Pairs: the interval against sums written out, how often it is wrong while one looks, what pairs gain."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.compare import Plan, Verdict
from scoring.compare_pairs import LEAST_BLOCKS, WHOLE, Paired, PairSums, compare_pairs
from scoring.compare_sums import METRICS, Observed
from scoring.outcome import Outcome, SloResult

MS = 1_000_000


def seen(
    good: bool = True, ttft_ms: float | None = 100.0, met: int = 99, missed: int = 1, **more: Any
) -> Observed:
    result = SloResult.GOOD if good else SloResult.BAD
    ttft_ns = None if ttft_ms is None else ttft_ms * MS
    return Observed(
        **{
            "outcome": Outcome.COMPLETED,
            "result": result,
            "met": met,
            "missed": missed,
            "ttft_ns": ttft_ns,
            "normalized_ns": None if ttft_ns is None else ttft_ns / 10,
            **more,
        }
    )


def booked(pairs: list[tuple[Observed, Observed]], per_block: int = 5) -> PairSums:
    sums = PairSums()
    for number, (request, copy) in enumerate(pairs):
        sums.add(request, copy, number // per_block)
    return sums


# ---------------------------------------------------------------- against the sums written out


times = st.lists(
    st.tuples(st.integers(1, 4000), st.integers(1, 4000), st.booleans(), st.booleans()),
    min_size=60,
    max_size=120,
)


@settings(max_examples=25, deadline=None)
@given(times, st.integers(1, 9))
def test_means_of_differences_as_one_would_write_them(
    rows: list[tuple[int, int, bool, bool]], per_block: int
) -> None:
    pairs = [(seen(a_good, a), seen(b_good, b)) for a, b, a_good, b_good in rows]
    found = compare_pairs(booked(pairs, per_block), Plan(100))
    for name, differences in {
        "ttft": [(b - a) / 1000 for a, b, _, _ in rows],
        "log_ttft": [math.log(b / a) for a, b, _, _ in rows],
        "good": [float(b) - float(a) for _, _, a, b in rows],
    }.items():
        one = found[name]
        if one.reasons == ("no_variance",):
            assert len(set(differences)) == 1
            continue
        assert one.effect == pytest.approx(statistics.fmean(differences), abs=2e-6)
        mean = statistics.fmean(differences)
        blocks = [differences[at : at + per_block] for at in range(0, len(differences), per_block)]
        squares = sum((sum(block) - mean * len(block)) ** 2 for block in blocks)
        even = len(rows) ** 2 / sum(len(block) ** 2 for block in blocks)
        by_block = squares * even / (even - 1) / len(rows) ** 2
        by_pair = statistics.variance(differences) / len(rows)
        if name == "good":  # of a share one pair that differs is always reckoned with
            by_pair = max(by_pair, 1 / len(rows) / (len(rows) - 1))
        assert one.design_effect == pytest.approx(max(by_block, by_pair) / by_pair, rel=1e-3)
        assert one.low is not None
        assert one.high is not None
        assert one.high - one.low >= 2 * 3.0 * math.sqrt(max(by_block, by_pair)) * 0.999, (
            "never a fixed look's"
        )


def test_deadlines_are_a_ratio_of_sums() -> None:
    rows = [(seen(met=90 + n, missed=10), seen(met=40, missed=10 + n % 3)) for n in range(60)]
    one = compare_pairs(booked(rows), Plan(60))["deadline_misses"]
    backend = sum(a.missed for a, _ in rows) / sum(a.met + a.missed for a, _ in rows)
    shadow = sum(b.missed for _, b in rows) / sum(b.met + b.missed for _, b in rows)
    assert one.backend == pytest.approx(backend)
    assert one.shadow == pytest.approx(shadow)
    assert one.effect == pytest.approx(shadow - backend)


def test_only_pairs_in_which_both_have_it_and_the_whole_answer_where_that_matters() -> None:
    sums = PairSums()
    sums.add(seen(), seen(ttft_ms=None), 0)
    sums.add(seen(), seen(), 0, cut=True)
    sums.add(seen(), seen(result=SloResult.EXCLUDED, outcome=Outcome.REJECTED), 0)
    sums.add(seen(), seen(), 1)
    found = compare_pairs(sums, Plan(100))
    assert sums.pairs == 4
    assert {name: one.pairs for name, one in found.items()} == {
        "good": 3,
        "fluidity": 3,
        "deadline_misses": 3,
        "ttft": 3,
        "log_ttft": 3,
        "normalized_latency": 2,
        "errors": 3,
    }
    assert {"fluidity", "deadline_misses", "normalized_latency"} == WHOLE


# ---------------------------------------------------------------- verdicts


def verdicts(shadow: Callable[[int], Observed], pairs: int = 400, per_block: int = 5) -> dict[str, Paired]:
    rng = np.random.default_rng(5)
    request = [seen(ttft_ms=float(ttft)) for ttft in rng.lognormal(5, 1, pairs)]
    return compare_pairs(booked([(one, shadow(n)) for n, one in enumerate(request)], per_block), Plan(400))


def test_a_shadow_that_fails_is_worse_and_one_that_never_does_is_no_better() -> None:
    found = verdicts(
        lambda n: seen(good=n % 5 > 0, outcome=Outcome.COMPLETED if n % 5 else Outcome.UPSTREAM_ERROR)
    )
    assert found["good"].verdict is Verdict.WORSE
    assert found["errors"].verdict is Verdict.WORSE
    assert found["good"].effect == pytest.approx(-0.2)


def test_too_few_pairs_or_stretches_of_time_carry_no_verdict() -> None:
    rng = np.random.default_rng(6)
    rows = [(seen(ttft_ms=100 * t), seen(ttft_ms=300 * t)) for t in rng.lognormal(0, 0.2, 400)]
    alike = compare_pairs(booked([(seen(), seen(ttft_ms=200.0))] * 99), Plan(400))["ttft"]
    assert (alike.verdict, alike.reasons) == (Verdict.UNDECIDED, ("no_variance",)), "0.1 s each time"
    rows = [
        (a, seen(ttft_ms=300 * float(t))) for (a, _), t in zip(rows, rng.lognormal(0, 0.2, 400), strict=True)
    ]
    few = compare_pairs(booked(rows[:40]), Plan(400))["log_ttft"]
    assert (few.verdict, few.reasons) == (Verdict.UNDECIDED, ("too_few",))
    assert few.more_pairs is not None
    assert few.more_pairs >= 60
    assert compare_pairs(booked(rows), Plan(400))["log_ttft"].verdict is Verdict.WORSE
    at_once = compare_pairs(booked(rows, 400 // (LEAST_BLOCKS - 1) + 1), Plan(400))["log_ttft"]
    assert (at_once.verdict, at_once.reasons) == (Verdict.UNDECIDED, ("too_few",)), "nearly all at one time"
    nothing = compare_pairs(PairSums(), Plan(400))["ttft"]
    assert (nothing.pairs, nothing.reasons, nothing.effect) == (0, ("no_data",), None)


def test_a_share_of_which_nothing_was_seen_yet_is_not_known_exactly() -> None:
    one = compare_pairs(booked([(seen(), seen())] * 400), Plan(400))["errors"]
    assert (one.effect, one.backend) == (0.0, 0.0)
    assert one.high is not None
    assert 3 / 400 < one.high < 6 / 400
    few = compare_pairs(booked([(seen(), seen())] * 3), Plan(400))["errors"]
    assert (few.low, few.high) == (-1.0, 1.0), "no two shares differ by more"


def test_alike_within_the_margin_is_said() -> None:
    rng = np.random.default_rng(7)
    rows = [
        (seen(ttft_ms=float(t)), seen(ttft_ms=float(t * e)))
        for t, e in zip(rng.lognormal(5, 1, 2000), rng.lognormal(0, 0.1, 2000), strict=True)
    ]
    found = compare_pairs(booked(rows), Plan(1000))
    assert found["log_ttft"].verdict is Verdict.EQUIVALENT
    assert found["log_ttft"].gain is not None
    assert found["log_ttft"].gain > 100, "the prompt explains nearly all"


# ---------------------------------------------------------------- how often it is wrong while one looks


def study(
    experiments: int, pairs: int, seed: int, *, moods: float = 0.0, per_block: int = 10, slower: float = 0.0
) -> tuple[dict[str, float], list[int | None]]:
    """The share of experiments that ever called a difference, looked at every 50 pairs; when ``ttft`` did.

    Prompts vary widely, the servers' noise is heavy-tailed; ``moods``: a server's bad times, which pairs of
    one block share.  ``slower``: the shadow, in log time.
    """
    rng = np.random.default_rng(seed)
    hits = {metric.name: 0 for metric in METRICS}
    when: list[int | None] = []
    for _ in range(experiments):
        sums, called, first = PairSums(), set(), None
        prompt = rng.normal(0, 1, pairs)
        mood = rng.normal(0, 1, (pairs // per_block + 1, 2)) * moods
        noise = rng.standard_t(4, (pairs, 2)) * 0.25
        fails = rng.random((pairs, 2)) < 0.01 + 0.02 * (prompt[:, None] > 1.5)
        for number in range(pairs):
            both = []
            for side in (0, 1):
                time = math.exp(5 + prompt[number] + noise[number, side] + mood[number // per_block, side])
                time *= math.exp(slower) if side else 1.0
                bad = bool(fails[number, side])
                missed = 40 if bad else int(time > 900) * 3
                outcome = Outcome.UPSTREAM_ERROR if bad else Outcome.COMPLETED
                both.append(seen(not bad, time, 100, missed, outcome=outcome))
            sums.add(both[0], both[1], number // per_block)
            if number % 50 == 49:
                for name, one in compare_pairs(sums, Plan(500)).items():
                    if one.verdict in (Verdict.BETTER, Verdict.WORSE):
                        called.add(name)
                        if name == "log_ttft":
                            first = first or number + 1
        for name in called:
            hits[name] += 1
        when.append(first)
    return {name: count / experiments for name, count in hits.items()}, when


def test_alike_servers_are_seldom_told_apart_however_often_one_looks() -> None:
    share, _ = study(25, 500, seed=11)
    assert max(share.values()) <= 0.12, share  # 5% at most, and chance


def test_what_pairs_of_one_moment_share_is_not_taken_for_a_difference() -> None:
    share, _ = study(25, 500, seed=12, moods=0.4)
    assert max(share.values()) <= 0.12, share


def test_pairs_tell_apart_by_hundreds_what_else_would_take_thousands() -> None:
    """Ten per cent in time, where prompts differ by a factor of e: of 10 experiments at least 8 by 600 pairs.

    Independent requests need some 2,100 of each (``test_compare_study``'s rule, the same noise).
    """
    _, when = study(10, 600, seed=13, slower=0.1)
    assert sum(at is not None for at in when) >= 8, when


if __name__ == "__main__":  # the figures of the README
    print("A/A", study(1000, 1000, seed=1)[0])
    print("A/A, moods", study(1000, 1000, seed=2, moods=0.4)[0])
    for slower in (0.05, 0.1):
        found = [at or 10**9 for at in study(200, 3000, seed=3, slower=slower)[1]]
        print("slower by", slower, "called by (median, 90%):", sorted(found)[100], sorted(found)[180])
