"""The report and the drawing, from canned answers of the admin API."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from deploy.demo import report
from deploy.demo.drawing import draw, slack
from deploy.demo.load import Progress
from deploy.demo.scenario import Scenario, simulated
from deploy.demo.view import RequestView, View, read_request, read_summary
from scoring.fluidity import FluidityScorer

SCENARIO: Scenario = simulated(0, 5)


def quantiles(p50: float | None, p99: float | None, longest: float | None) -> dict[str, float | None]:
    """One ``*_s`` object of the summary."""
    return {"p50": p50, "p90": p99, "p99": p99, "max": longest}


def group(
    backend: str, *, under: float | None, tail_s: float | None, longest_s: float = 1.5
) -> dict[str, Any]:
    """One group of ``/api/summary``."""
    return {
        "backend": backend,
        "model": f"sim-{backend}",
        "slo": "demo",
        "requests": 117,
        "outcomes": {"completed": 117, "timeout": 0},
        "results": {"good": 100, "bad": 17, "excluded": 0},
        "fluidity": {"p1": 0.7, "p50": 0.98},
        "share_under_target": under,
        "deadlines": {"met": 20_000, "missed": 1_500, "suspect": 3, "client_blocked": 0},
        "deadline_miss_rate": 0.0698,
        "ttft_s": quantiles(0.19, 0.879, 1.2),
        "tbt_s": quantiles(0.029, tail_s, longest_s),
        "output_tokens": 24_056,
        "fluid_token_rate": 21.4,
        "fluid_token_rate_reason": None,
        "in_flight": {"requests": 12, "overdue": 7, "missed_deadlines": 9, "worst_overdue_s": 0.4},
    }


def summary(*groups: dict[str, Any], dropped: int = 0, **unmeasured: int) -> View:
    """A summary with these groups."""
    delay = {"count": 9, "p50_s": 0.000016, "p99_s": 0.000262, "p999_s": 0.001, "sum_s": 0.1}
    share = {
        "forward": delay,
        "event_loop_lag": delay,
        "dropped": {"facts": dropped},
        "unmeasured": {"tap_error": 0, **unmeasured},
    }
    return read_summary({"groups": list(groups), "proxy": share})


def text_of(renderable: RenderableType, width: int = 100) -> str:
    """What a terminal of that width would show, without colours."""
    out = io.StringIO()
    Console(file=out, width=width).print(renderable)
    return out.getvalue()


STALLING = group("prefill-first", under=0.308, tail_s=0.4)
SMOOTH = group("chunked", under=0.0, tail_s=0.034, longest_s=0.053)
BOTH = summary(STALLING, SMOOTH)


def complete() -> dict[str, Progress]:
    """A load that got every answer."""
    return {
        arm.name: Progress(total=117, sent=117, done=117, tokens=24_056, failures=Counter())
        for arm in SCENARIO.arms
    }


# ---------------------------------------------------------------- the verdict follows from the numbers


def test_the_verdict_when_the_second_keeps_what_the_first_breaks() -> None:
    found = report.verdict(SCENARIO, BOTH)
    assert found.shown
    assert found.sentence == (
        "Chunked keeps its promise: 100% of its requests reach fluidity 0.9, 99% are promised."
        " Prefill-first breaks its promise: 69.2% of its requests reach fluidity 0.9, 99% are promised."
        " The tail TBT (p99) of chunked is 11.8 times better: 34 ms against 400 ms."
        " Its longest gap is 53 ms against 1.50 s."
    )


@pytest.mark.parametrize(
    ("first", "second", "shown", "says"),
    [
        ((0.0, 0.4), (0.0, 0.034), False, "Prefill-first keeps its promise"),
        ((0.3, 0.4), (0.011, 0.034), False, "Chunked breaks its promise: 98.9%"),
        ((0.3, 0.1), (0.01, 0.034), False, "2.9 times better"),
        ((0.3, 0.102), (0.01, 0.034), True, "3.0 times better"),
        ((0.3, 0.03), (0.0, 0.034), False, "no better: 34 ms against 30 ms"),
        ((None, None), (0.0, 0.034), False, "Too little"),
    ],
)
def test_the_verdict_says_otherwise_where_the_numbers_do(
    first: tuple[float | None, float | None], second: tuple[float, float], shown: bool, says: str
) -> None:
    view = summary(
        group("prefill-first", under=first[0], tail_s=first[1]),
        group("chunked", under=second[0], tail_s=second[1]),
    )
    found = report.verdict(SCENARIO, view)
    assert (found.shown, says in found.sentence) == (shown, True), found.sentence


def test_nothing_is_said_of_arms_that_were_never_seen() -> None:
    assert not report.verdict(SCENARIO, summary()).shown
    assert "prefill-first" in text_of(report.live(SCENARIO, complete(), None, 0))


# ---------------------------------------------------------------- what does not add up


def test_accounts_that_agree_have_nothing_to_say() -> None:
    assert report.accounts(SCENARIO, complete(), BOTH) == []


def test_accounts_name_failures_missing_requests_other_counts_and_lost_records() -> None:
    failed = complete()
    failed["chunked"].failures["status 502, complete"] = 3
    assert report.accounts(SCENARIO, failed, BOTH) == [
        "chunked: 3 of 117 requests failed: status 502, complete"
    ]
    missing = summary(STALLING | {"requests": 116}, SMOOTH)
    assert "prefill-first: 117 requests were answered" in report.accounts(SCENARIO, complete(), missing)[0]
    fewer = summary(STALLING, SMOOTH | {"output_tokens": 24_055})
    assert "Legato counted 24,055" in report.accounts(SCENARIO, complete(), fewer)[0]
    lossy = summary(STALLING, SMOOTH, dropped=2)
    assert "dropped 2 (facts)" in report.accounts(SCENARIO, complete(), lossy)[0]
    faulty = summary(STALLING, SMOOTH, tap_error=2)
    assert "2 streams (tap_error)" in report.accounts(SCENARIO, complete(), faulty)[0]


def test_measuring_that_was_shed_is_a_note_and_not_a_failure() -> None:
    busy = summary(STALLING, SMOOTH | {"output_tokens": 24_000}, shed=2)
    assert report.accounts(SCENARIO, complete(), busy) == []
    assert "note: 2 streams were passed on but not scored" in text_of(
        report.closing(SCENARIO, busy, None, [], 100), 100
    )
    assert report.notes(BOTH) == []


# ---------------------------------------------------------------- on the screen


@pytest.mark.parametrize("width", [80, 120])
def test_the_report_fits_and_says_that_engines_are_simulated(width: int) -> None:
    shown = text_of(report.closing(SCENARIO, BOTH, stalled(), ["chunked: it broke"], width), width)
    assert max(len(line) for line in shown.splitlines()) <= width
    for words in ("simulated engines", "30.8%", "11.8 times better", "arXiv 2407.07000", "This run shows"):
        assert words in " ".join(shown.split())
    assert "failed: chunked: it broke" in shown
    assert "next: legato serve --upstream URL" in shown


def test_a_real_run_makes_no_claim_about_the_paper() -> None:
    shown = text_of(report.closing(replace(SCENARIO, simulated=False), BOTH, None, [], 80), 80)
    assert "Metron" not in shown
    assert "No request missed a deadline." in shown


def test_the_live_table_and_the_plain_line_show_who_is_overdue() -> None:
    table = text_of(report.live(SCENARIO, complete(), BOTH, 12.3), 80)
    assert "12 s" in table
    assert "simulated engines" in table
    line = report.plain_line(SCENARIO, complete(), BOTH, 12.3)
    assert "\n" not in line
    for words in ("in flight 12", "overdue 7", "TBT p99 34 ms", "117 of 117"):
        assert words in line


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0, "0%"), (0.0001, "<0.1%"), (0.308, "30.8%"), (0.9999, ">99.9%"), (1, "100%")],
)
def test_percentages_never_round_something_to_nothing_or_all(value: float | None, shown: str) -> None:
    assert report.percent(value) == shown


# ---------------------------------------------------------------- the drawing

TTFT_S, TBT_S = 0.5, 0.04


def request(times: list[float], end_s: float | None = None, outcome: str = "completed") -> RequestView:
    """A request whose tokens came at these times, with the timeline that the admin API would give."""
    scorer = FluidityScorer(round(TTFT_S * 1e9), round(TBT_S * 1e9))
    events, stalls, before_s = [], [], 0.0
    for at_s in times:
        due_s = scorer.next_deadline_ns() / 1e9
        missed = scorer.arrive(round(at_s * 1e9))
        events.append({"at_s": at_s, "tokens": 1, "choice": 0, "deadline_s": due_s, "missed": missed})
        if missed:
            late_s = at_s - due_s
            stalls.append({"at_s": before_s, "late_s": late_s, "missed": missed, "choice": 0, "reason": None})
        before_s = at_s
    data = {
        "id": "01TEST",
        "backend": "prefill-first",
        "prompt_tokens": 463,
        "output_tokens": len(times),
        "outcome": outcome,
        "fluidity": scorer.fluidity if times else 0.0,
        "met": scorer.met,
        "missed": scorer.missed,
        "late_s": scorer.late_ns / 1e9,
        "ttft_s": times[0] if times else None,
        "timeline": {
            "ttft_target_s": TTFT_S,
            "tbt_target_s": TBT_S,
            "end_s": end_s or times[-1],
            "events": events,
            "stalls": stalls,
        },
    }
    found = read_request(data)
    assert found is not None
    return found


def stalled() -> RequestView:
    """30 tokens, two seconds of silence, 30 more."""
    return request([0.1 + 0.03 * n for n in range(30)] + [3.0 + 0.03 * n for n in range(30)])


def test_a_request_without_a_timeline_is_not_drawn() -> None:
    assert read_request({"timeline": None, "fluidity": 0.5}) is None


def test_slack_is_what_was_left_to_the_next_deadline() -> None:
    # One token on time at 0.1 s, due at 0.5 s: the next is due at 0.54 s and comes at 1.0 s, 0.46 s late.
    left = slack(request([0.1, 1.0]), 10)
    assert left[0] == pytest.approx(0.4)  # just before the first token, or at 0.1 s
    assert left[4] == pytest.approx(0.54 - 0.5)
    assert left[9] == pytest.approx(0.54 - 1.0)


def test_a_request_that_was_cut_goes_on_being_late_until_its_end() -> None:
    cut = slack(request([0.1], end_s=2.0, outcome="upstream_error"), 10)
    assert cut[-1] == pytest.approx(0.54 - 2.0)
    whole = slack(request([0.1], end_s=2.0), 10)
    assert min(whole) > 0
    silent = slack(request([], end_s=2.0, outcome="timeout"), 10)
    assert silent[-1] == pytest.approx(TTFT_S - 2.0)


def test_a_stall_is_marked_where_it_began_and_drawn_below_the_line() -> None:
    lines = [line.plain for line in draw(stalled(), 80)]
    due = next(line for line in lines if line.lstrip().startswith("due"))
    assert due.count("▼") == 1
    column = due.index("▼")
    at_s = (column - 10) / 70 * stalled().end_s
    assert at_s == pytest.approx(0.97, abs=0.1)
    below = lines[lines.index(due) + 1 : -2]
    assert any("█" in line for line in below)
    assert all(not line[10 : column + 1].strip() for line in below)
    words = text_of(report.worst(stalled(), 80), 80)
    assert "stall at 0.97 s: silent for 2.03 s" in words


def test_a_smooth_request_has_nothing_below_the_line() -> None:
    lines = [line.plain for line in draw(request([0.1 + 0.03 * n for n in range(30)]), 80)]
    assert not any("▼" in line for line in lines)
    assert lines[-3].lstrip().startswith("due")


@given(
    gaps=st.lists(st.floats(0.001, 3.0), min_size=1, max_size=60),
    width=st.integers(30, 160),
    rows=st.integers(4, 20),
)
def test_the_drawing_fits_whatever_came_when(gaps: list[float], width: int, rows: int) -> None:
    times = [round(sum(gaps[: n + 1]), 6) for n in range(len(gaps))]
    lines = draw(request(times), width, rows)
    assert all(len(line.plain) <= width for line in lines)
    assert len(lines) <= rows + 6
