"""The online scorer: one sequence of tokens, scored while they arrive."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from scoring.fluidity import FluidityScorer
from tests.scoring.oracle import tally
from tests.scoring.traces import Request, requests

MS = 1_000_000


def test_exactly_on_the_deadline_is_met() -> None:
    scorer = FluidityScorer(100, 50)
    assert scorer.arrive(100) == 0
    assert scorer.arrive(150) == 0
    assert (scorer.met, scorer.missed, scorer.fluidity) == (2, 0, 1.0)


def test_one_nanosecond_after_the_deadline_misses_it() -> None:
    scorer = FluidityScorer(100, 50)
    assert scorer.arrive(101) == 1
    assert (scorer.met, scorer.missed, scorer.late_ns, scorer.fluidity) == (0, 1, 1, 0.0)
    assert scorer.next_deadline_ns() == 151  # deadlines start afresh from the late token


def test_every_deadline_that_passed_while_waiting_is_missed() -> None:
    scorer = FluidityScorer(100, 50)
    scorer.arrive(100)
    assert scorer.arrive(299) == 3  # due at 150, 200, 250
    assert scorer.arrive(450) == 3  # due at 349, and the third after it exactly at 449: passed by then


def test_slack_is_carried_forward() -> None:
    scorer = FluidityScorer(100, 50)
    scorer.arrive(10)  # 90 to spare
    assert scorer.next_deadline_ns() == 150
    assert scorer.arrive(150) == 0
    assert scorer.arrive(201) == 1


def test_of_several_tokens_together_only_the_first_can_be_late() -> None:
    scorer = FluidityScorer(100, 50)
    assert scorer.arrive(120, tokens=4) == 1
    assert (scorer.tokens, scorer.met, scorer.missed, scorer.late) == (4, 3, 1, 1)
    assert scorer.next_deadline_ns() == 120 + 4 * 50


def test_an_event_without_tokens_changes_nothing() -> None:
    scorer = FluidityScorer(100, 50)
    assert scorer.arrive(99, tokens=0) == 0
    assert scorer.arrive(500, tokens=0) == 0
    assert (scorer.tokens, scorer.missed, scorer.next_deadline_ns()) == (0, 0, 100)


def test_undefined_before_any_deadline() -> None:
    scorer = FluidityScorer(100, 50)
    assert scorer.fluidity is None
    scorer.finish(100)  # cut exactly on the deadline: it has not passed
    assert (scorer.fluidity, scorer.censored) == (None, True)


def test_a_cut_counts_the_deadlines_that_had_passed() -> None:
    scorer = FluidityScorer(100, 50)
    scorer.arrive(100)
    scorer.finish(260)  # 150, 200, 250
    assert (scorer.tokens, scorer.met, scorer.missed, scorer.late) == (1, 1, 3, 0)
    assert scorer.fluidity == 0.25
    scorer.finish(9999)
    assert scorer.missed == 3


def test_overdue_while_it_waits_and_never_after_its_end() -> None:
    scorer = FluidityScorer(100, 50)
    assert scorer.overdue_ns(100) == 0
    assert scorer.missed_by(100) == 0
    assert scorer.overdue_ns(101) == 1
    assert scorer.missed_by(101) == 1
    assert scorer.missed_by(151) == 2
    assert scorer.missed == 0  # nothing was booked by asking
    scorer.finish(None)
    assert scorer.overdue_ns(10**12) <= 0
    assert scorer.missed_by(10**12) == 0


def test_published_examples() -> None:
    """One stall of a second among tokens every 30 ms, Dp = 0.1 s, Dd = 0.05 s."""
    stalled = FluidityScorer(100 * MS, 50 * MS)
    for token in range(62):
        stalled.arrive((30 * (token + 1) + (970 if token >= 12 else 0)) * MS)
    assert stalled.fluidity is not None
    assert round(stalled.met / stalled.tokens, 3) == 0.984
    assert round(stalled.fluidity, 3) == 0.813

    hidden = FluidityScorer(100 * MS, 50 * MS)
    for token in range(102):
        hidden.arrive((30 * (token + 1) + (970 if token >= 51 else 0)) * MS)
    assert hidden.fluidity == 1.0


@given(requests(with_spans=False))
def test_online_equals_the_loop(request: Request) -> None:
    for sequence in request.sequences:
        scorer = FluidityScorer(request.dp, request.dd)
        told = sum(scorer.arrive(at, tokens) for at, tokens in sequence.events)
        assert told == scorer.missed
        scorer.finish(None if sequence.finished else request.cut)
        true = tally([sequence], request.dp, request.dd, request.cut)
        assert (scorer.tokens, scorer.met, scorer.missed, scorer.late) == (
            true.tokens,
            true.met,
            true.missed,
            true.late_tokens,
        )
        assert scorer.late_ns == true.late_ns
        assert scorer.fluidity == true.fluidity


@given(requests(with_spans=False), st.integers(0, 500))
def test_what_is_missed_by_now_is_what_a_cut_now_would_leave(request: Request, later: int) -> None:
    for sequence in request.sequences:
        scorer = FluidityScorer(request.dp, request.dd)
        u = [request.dp]
        for at, tokens in sequence.events:
            u += [at - (scorer.tokens + i) * request.dd for i in range(tokens)]
            scorer.arrive(at, tokens)
        assert scorer.peak_ns == max(u)
        now = request.end + later
        before = scorer.missed_by(now)
        assert (before > scorer.missed) == (scorer.overdue_ns(now) > 0)
        scorer.finish(now)
        assert scorer.missed == before


def test_the_online_scorer_needs_no_numpy() -> None:
    code = (
        "import sys, scoring.fluidity, scoring.deadlines, scoring.outcome; sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
