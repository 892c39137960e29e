"""The vectorised twin: equal to the loop, and what it alone says of a request."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scoring import lanes
from scoring.deadlines import Deadlines
from scoring.fluidity import FluidityScorer
from scoring.score import Gaps, Raw, Stall, StreamScore
from scoring.trace import Choice, Excluded, Mark, gaps, least_tbt, marks_of, miss_curve, score
from tests.scoring import oracle
from tests.scoring.oracle import Tally, nearest_rank, tally, token_gaps
from tests.scoring.oracle import least_tbt as brute_least
from tests.scoring.traces import Request, requests

MS = 1_000_000


def scored(request: Request, target: float = 0.9) -> StreamScore:
    return score(
        request.choices,
        Deadlines(request.dp, request.dd),
        end_ns=request.end,
        censored=request.censored,
        target=target,
        excluded=request.excluded,
    )


def truth(request: Request, dd: int | None = None) -> Tally:
    return tally(request.sequences, request.dp, dd or request.dd, request.cut, request.spans)


@given(requests())
def test_counts_and_stalls_equal_the_loop(request: Request) -> None:
    out, true = scored(request), truth(request)
    assert (out.tokens, out.met, out.missed) == (true.tokens, true.met, true.missed)
    assert (out.suspect, out.client_blocked) == (true.suspect, true.client_blocked)
    assert out.fluidity == true.fluidity
    assert [(s.at_ns, s.late_ns, s.missed, s.choice, s.reason) for s in out.stalls] == true.stalls
    judged = true.tokens - true.late_tokens_excluded
    assert out.on_time_ratio == (true.met / judged if judged else None)
    assert out.late_ns == true.late_ns
    assert out.stall_count == sum(1 for stall in true.stalls if stall[4] is None)


@given(requests())
def test_raw_is_the_score_with_nothing_taken_out(request: Request) -> None:
    out = scored(request)
    true = tally(request.sequences, request.dp, request.dd, request.cut)
    if out.suspect + out.client_blocked:
        assert out.raw == Raw(true.fluidity, true.met, true.missed)
    else:
        assert out.raw is None
        assert (out.met, out.missed) == (true.met, true.missed)


@given(requests(with_spans=False))
def test_online_equals_vectorised(request: Request) -> None:
    scorers = []
    for sequence in request.sequences:
        scorer = FluidityScorer(request.dp, request.dd)
        for at, tokens in sequence.events:
            scorer.arrive(at, tokens)
        scorer.finish(None if sequence.finished else request.cut)
        scorers.append(scorer)
    out = scored(request)
    assert out.tokens == sum(scorer.tokens for scorer in scorers)
    assert out.met == sum(scorer.met for scorer in scorers)
    assert out.missed == sum(scorer.missed for scorer in scorers)
    assert out.late_ns == sum(scorer.late_ns for scorer in scorers)
    if len(scorers) == 1:
        assert out.fluidity == scorers[0].fluidity


@given(requests())
def test_gaps_by_nearest_rank_with_those_inside_events(request: Request) -> None:
    true = token_gaps(request.sequences)
    between, within = gaps(request.choices)
    assert sorted(between.tolist() + [0] * within) == true
    out = scored(request)
    if not true:
        assert out.tbt is None
        assert out.tpot_ns is None
        return
    assert out.tbt == Gaps(*(nearest_rank(true, percent) for percent in (50, 90, 99, 100)))
    assert out.tpot_ns == sum(true) / len(true)  # the mean gap


@given(requests())
def test_ttft_is_the_first_token_of_any_choice(request: Request) -> None:
    arrivals = [at for each in request.sequences for at, tokens in each.events if tokens]
    out = scored(request)
    assert out.ttft_ns == min(arrivals, default=None)
    assert out.duration_ns == request.end
    assert out.normalized_ns == (request.end / out.tokens if out.tokens else None)
    assert out.censored == request.censored


@given(requests(), st.integers(1, 60))
def test_miss_curve_equals_the_loop_and_never_rises(request: Request, step: int) -> None:
    grid = list(range(1, 160, step))
    curve = miss_curve(
        request.choices,
        request.dp,
        grid,
        end_ns=request.end,
        censored=request.censored,
        excluded=request.excluded,
    )
    for dd, rate in zip(grid, curve.tolist(), strict=True):
        true = truth(request, dd)
        total = true.met + true.missed
        assert math.isnan(rate) if not total else rate == true.missed / total
    defined = [rate for rate in curve.tolist() if not math.isnan(rate)]
    assert all(after <= before for before, after in pairwise(defined))


@given(requests(), st.sampled_from([0.0, 0.3, 0.5, 2 / 3, 0.75, 0.9, 0.99, 1.0]))
def test_least_tbt_equals_trying_them_all(request: Request, target: float) -> None:
    found = least_tbt(
        request.choices,
        request.dp,
        target,
        end_ns=request.end,
        censored=request.censored,
        excluded=request.excluded,
    )
    assert found == brute_least(request.sequences, request.dp, target, request.cut, request.spans)
    assert found == scored(request, target).least_tbt_ns


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(40, 900), st.integers(1, 4), st.booleans())
def test_least_tbt_of_long_traces_is_exact_to_the_nanosecond(
    seed: int, n: int, most: int, censored: bool
) -> None:
    random = np.random.default_rng(seed)
    at = np.cumsum(random.exponential(30e6, n)).astype(np.int64)
    choice = Choice(at, random.integers(1, most + 1, n))
    end = int(at[-1]) + 400 * MS
    excluded = [Excluded(10 * MS, 200 * MS, "suspect"), Excluded(900 * MS, 901 * MS, "client_blocked")]
    found = least_tbt([choice], 50 * MS, 0.9, end_ns=end, censored=censored, excluded=excluded)
    assume(found is not None and found > 1)
    assert found is not None
    below, at_it = (
        score([choice], Deadlines(50 * MS, dd), end_ns=end, censored=censored, excluded=excluded).fluidity
        for dd in (found - 1, found)
    )
    assert below is not None
    assert at_it is not None
    assert below < 0.9 <= at_it


# ---------------------------------------------------------------- examples


def events(*pairs: tuple[int, int], finished: bool = False) -> Choice:
    return Choice.of(pairs, finished)


def test_published_examples() -> None:
    stalled = np.array([30 * (i + 1) + (970 if i >= 12 else 0) for i in range(62)], dtype=np.int64) * MS
    out = score(
        [Choice(stalled, np.ones(62, dtype=np.int64))],
        Deadlines(100 * MS, 50 * MS),
        end_ns=int(stalled[-1]),
        censored=False,
    )
    assert out.fluidity is not None
    assert out.on_time_ratio is not None
    assert round(out.on_time_ratio, 3) == 0.984
    assert round(out.fluidity, 3) == 0.813
    assert out.tbt == Gaps(30 * MS, 30 * MS, 1000 * MS, 1000 * MS)
    assert out.worst is not None
    assert out.worst.at_ns == 12 * 30 * MS

    hidden = np.array([30 * (i + 1) + (970 if i >= 51 else 0) for i in range(102)], dtype=np.int64) * MS
    out = score(
        [Choice(hidden, np.ones(102, dtype=np.int64))],
        Deadlines(100 * MS, 50 * MS),
        end_ns=int(hidden[-1]),
        censored=False,
    )
    assert (out.fluidity, out.on_time_ratio, out.worst) == (1.0, 1.0, None)
    assert out.tbt is not None
    assert out.tbt.max_ns == 1000 * MS  # the longest gap stands beside what slack can hide


def test_each_choice_has_its_own_deadlines() -> None:
    out = score(
        [events((10, 1), (20, 1)), events((30, 1), (90, 1))], Deadlines(20, 10), end_ns=90, censored=False
    )
    assert (out.met, out.missed) == (2, 1 + 1 + 5 + 1)
    assert out.stalls == (Stall(0, 10, 2, 1, None), Stall(30, 50, 6, 1, None))
    assert out.ttft_ns == 10


def test_a_choice_whose_finish_reason_was_seen_owes_nothing_at_the_cut() -> None:
    done, owing = events((10, 1), finished=True), events((10, 1))
    out = score([done, owing], Deadlines(20, 10), end_ns=65, censored=True)
    assert (out.met, out.missed) == (2, 4)  # due at 30, 40, 50, 60
    assert out.stalls == (Stall(10, 35, 4, 1, None),)


def test_the_worst_stall_is_the_latest_and_the_first_of_equals() -> None:
    out = score([events((0, 1), (40, 1), (80, 1), (110, 1))], Deadlines(0, 10), end_ns=110, censored=False)
    assert out.worst == Stall(0, 30, 4, 0, None)


def test_a_stall_taken_out_leaves_met_and_missed_but_deadlines_start_afresh_all_the_same() -> None:
    choice = events((10, 1), (100, 1), (110, 1), (150, 1))
    out = score(
        [choice],
        Deadlines(10, 10),
        end_ns=150,
        censored=False,
        excluded=[Excluded(50, 60, "client_blocked")],
    )
    assert (out.met, out.missed, out.client_blocked, out.suspect) == (2, 4, 9, 0)
    assert out.raw == Raw(2 / 15, 2, 13)
    assert out.worst == Stall(110, 30, 4, 0, None)
    assert out.late_ns == 30
    assert out.stalls[0] == Stall(10, 80, 9, 0, "client_blocked")
    assert out.on_time_ratio == 2 / 3


@pytest.mark.parametrize(
    ("span", "taken"),
    [
        ((9, 10), False),  # ends where the gap begins
        ((9, 11), True),
        ((99, 300), True),
        ((100, 300), False),  # begins when the token came
        ((50, 50), False),
    ],
)
def test_a_pause_that_overlaps_the_gap_by_a_nanosecond_takes_the_stall_out(
    span: tuple[int, int], taken: bool
) -> None:
    out = score(
        [events((10, 1), (100, 1))],
        Deadlines(10, 10),
        end_ns=100,
        censored=False,
        excluded=[Excluded(*span, "client_blocked")],
    )
    assert (out.client_blocked == 9) is taken
    assert (out.missed == 9) is not taken


def test_our_own_lag_takes_out_only_what_it_explains() -> None:
    choice, deadlines = events((10, 1), (100, 1)), Deadlines(10, 10)  # late by 80
    explained = [Excluded(15, 55, "suspect"), Excluded(50, 95, "suspect")]
    out = score([choice], deadlines, end_ns=100, censored=False, excluded=explained)
    assert (out.missed, out.suspect) == (0, 9)
    short = [Excluded(15, 55, "suspect"), Excluded(50, 94, "suspect")]  # 79 of 80
    out = score([choice], deadlines, end_ns=100, censored=False, excluded=short)
    assert (out.missed, out.suspect, out.raw) == (9, 0, None)


@settings(max_examples=300)
@given(requests(), st.integers(0, 12))
def test_of_our_own_lag_only_what_lasted_until_the_token_counts(request: Request, waking: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes, "WAKING_NS", waking)
        patch.setattr(oracle, "WAKING", waking)
        out, true = scored(request), truth(request)
    assert (out.met, out.missed, out.suspect) == (true.met, true.missed, true.suspect)
    assert [(s.at_ns, s.late_ns, s.missed, s.choice, s.reason) for s in out.stalls] == true.stalls


@pytest.mark.parametrize(
    ("spans_ms", "suspect"),
    [
        ([(100, 300)], True),  # until the token came
        ([(95, 290)], True),  # and the loop had other streams to serve first
        ([(60, 289)], False),  # the loop was in time again: the server was late by itself
        ([(60, 285), (285, 300)], True),  # it woke up, and what waited took it until then
        ([(40, 100), (100, 200), (200, 300)], True),
        ([(20, 100), (100, 189), (200, 300)], False),
        ([(121, 300)], False),  # 179 of 180
        ([(120, 400)], True),
        ([(300, 700)], False),  # began when the token came
    ],
)
def test_what_our_own_lag_can_explain(spans_ms: list[tuple[int, int]], suspect: bool) -> None:
    # Due at 120 ms, late by 180.
    out = score(
        [events((20 * MS, 1), (300 * MS, 1))],
        Deadlines(20 * MS, 100 * MS),
        end_ns=300 * MS,
        censored=False,
        excluded=[Excluded(low * MS, high * MS, "suspect") for low, high in spans_ms],
    )
    assert (out.suspect == 2) is suspect
    assert (out.missed == 2) is not suspect


def test_a_cut_while_the_client_blocked_is_the_clients() -> None:
    out = score(
        [events((10, 1))],
        Deadlines(10, 10),
        end_ns=100,
        censored=True,
        excluded=[Excluded(20, 100, "client_blocked")],
    )
    assert (out.met, out.missed, out.client_blocked, out.fluidity) == (1, 0, 9, 1.0)


def test_marks_name_stalls_by_the_start_of_their_gap() -> None:
    choices = [events((10, 1), (100, 1), (150, 1)), events((10, 1), (60, 1))]
    deadlines = Deadlines(10, 10)

    def missed(*marks: Mark) -> tuple[int, int, int]:
        out = score(choices, deadlines, end_ns=150, censored=False, marks=marks)
        return out.missed, out.suspect, out.client_blocked

    assert missed() == (9 + 5 + 5, 0, 0)
    assert missed(Mark(100, "suspect")) == (9 + 5, 5, 0)
    assert missed(Mark(10, "client_blocked")) == (5, 0, 9 + 5)
    assert missed(Mark(10, "client_blocked", choice=1)) == (9 + 5, 0, 5)
    assert missed(Mark(11, "suspect")) == (19, 0, 0)


def test_a_suspect_mark_that_says_its_cover_takes_out_no_later_stall() -> None:
    choice = events((10, 1), (100, 1))  # late by 80
    for covered, suspect in ((80, 9), (79, 0), (None, 9)):
        marks = [Mark(10, "suspect", 9, None, covered)]
        out = score([choice], Deadlines(10, 10), end_ns=100, censored=False, marks=marks)
        assert (out.missed, out.suspect) == (9 - suspect, suspect)


def test_a_mark_as_a_list_is_as_short_as_what_it_says() -> None:
    assert Mark(5, "client_blocked", 3).to_plain() == [5, "client_blocked", 3]
    assert Mark(5, "client_blocked", 0, 1).to_plain() == [5, "client_blocked", 0, 1]
    assert Mark(5, "suspect", 3, None, 70).to_plain() == [5, "suspect", 3, None, 70]


@given(requests(), st.integers(1, 20))
def test_marks_say_the_same_as_the_intervals_under_any_deadline(request: Request, dd: int) -> None:
    deadlines = Deadlines(request.dp, request.dd)
    how: dict[str, Any] = {"end_ns": request.end, "censored": request.censored}
    marks = marks_of(request.choices, deadlines, excluded=request.excluded, **how)
    assert score(request.choices, deadlines, marks=marks, **how) == scored(request)
    other = Deadlines(request.dp // 2, dd)
    assert score(request.choices, other, marks=marks, **how) == score(
        request.choices, other, excluded=request.excluded, **how
    )
    taken = [(s.at_ns, s.reason, s.missed) for s in scored(request).stalls if s.reason]
    assert set(taken) <= {(mark.at_ns, mark.reason, mark.missed) for mark in marks}


def test_least_tbt_at_its_edges() -> None:
    def least(*choices: Choice, end: int = 0, censored: bool = False, target: float = 0.9) -> int | None:
        return least_tbt(choices, 100, target, end_ns=end, censored=censored)

    assert least() is None
    assert least(events()) is None  # no token
    assert least(events(), end=1000, censored=True) is None
    assert least(events((100, 1))) == 1  # in time, and nothing to wait for after it
    assert least(events((100, 50))) == 1
    assert least(events((101, 1))) is None  # late, and nothing to make up for it
    assert least(events((101, 10))) == 2  # 9 met, and late by 1 ns: with 1 the second deadline is passed too
    assert least(events((101, 9))) is None
    assert least(events((110, 10))) == 11
    assert least(events((100, 1)), end=150, censored=True) == 50  # what was due when it was cut
    assert least(events((100, 1)), end=150, censored=True, target=0.5) == 26


def test_least_tbt_where_our_own_lag_explains_the_stall() -> None:
    lag = [Excluded(10, 89, "suspect")]  # 79 of the gap of 90: enough once the token is late by no more
    found = least_tbt([events((10, 1), (100, 1))], 10, 0.9, end_ns=100, censored=False, excluded=lag)
    assert found == 11


def test_counts_stay_exact_where_int64_would_overflow() -> None:
    far = 2**62
    choice = events((far, 2), (far + 5, 1))
    out = score([choice], Deadlines(3, 1), end_ns=far + 5, censored=False)
    assert (out.met, out.missed) == (1, far - 3 + 1 + 5 - 2 + 1)
    assert least_tbt([choice], 3, 0.5, end_ns=far + 5, censored=False) is not None
    huge = 2**61
    out = score([events((0, 40), (5, 40))], Deadlines(3, huge), end_ns=5, censored=False)
    assert (out.met, out.missed) == (80, 0)


def test_an_empty_request_is_undefined() -> None:
    out = score([], Deadlines(100, 50), end_ns=30, censored=False)
    assert (out.tokens, out.met, out.missed, out.fluidity, out.ttft_ns) == (0, 0, 0, None, None)
    assert (out.on_time_ratio, out.tbt, out.normalized_ns, out.least_tbt_ns) == (None, None, None, None)
