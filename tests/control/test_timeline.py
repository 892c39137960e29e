"""The timeline and the trace line say what was scored: from either the same score comes out again."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from proxy.control.settle import settle
from proxy.control.timeline import timeline, trace_line
from proxy.exporters.tracelog import encode
from proxy.link import Usage
from proxy.offline import Overrides, score_line
from tests.control.facts import MS, T0, UNIX, Event, at, facts, streamed

HERE = "here"


@st.composite
def lanes(draw: st.DrawFn) -> list[list[Event]]:
    """One to three choices of events."""
    out = []
    for _ in range(draw(st.integers(1, 3))):
        now, events = 0, []
        for gap, tokens in draw(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 3)), max_size=12)):
            now += gap
            events.append(at(now, tokens))
        out.append(events)
    return out


@given(
    lanes(),
    st.booleans(),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 3_000), st.integers(1, 500)), max_size=2),
)
def test_a_trace_line_read_back_gives_the_same_score(
    choices: list[list[Event]], finished: bool, duration_only: bool, pauses: list[tuple[int, int]]
) -> None:
    end_ms = max((event[0] for lane in choices for event in lane), default=0) + 100
    blocked = tuple((T0 + low * MS, T0 + (low + length) * MS) for low, length in pauses)
    of: dict[str, Any] = {"choices": choices, "finished": finished, "usage": Usage(output=40)}
    given_ = streamed(end_ms=end_ms, of=of, blocked=blocked, choices_asked=3)
    given_.end = "complete" if finished else "truncated"
    settled = settle(given_, HERE, duration_only=duration_only)
    line = trace_line(settled)
    assert line is not None
    assert score_line(encode(line), Overrides()).score == settled.score


def test_deadlines_that_nobody_promised_count_where_they_are_asked_for() -> None:
    line = trace_line(settle(streamed(at(50), at(900), end_ms=910), HERE, duration_only=True))
    assert line is not None
    own, asked = (score_line(encode(line), each).score for each in (Overrides(), Overrides(tbt_ns=50 * MS)))
    assert (own.met, own.missed, own.fluidity, own.ttft_ns) == (0, 0, None, 50 * MS)
    assert asked.missed > 0


def test_t0_by_the_wall_clock_is_that_of_the_last_byte_sent() -> None:
    line = trace_line(settle(streamed(at(50), end_ms=60), HERE))
    assert line is not None
    assert line.t0_unix_ns == UNIX + MS  # the head arrived 1 ms before
    assert line.events == [(50 * MS, 1)]


@given(lanes())
def test_a_timeline_misses_what_the_score_misses(choices: list[list[Event]]) -> None:
    end_ms = max((event[0] for lane in choices for event in lane), default=0)
    settled = settle(streamed(end_ms=end_ms, of={"choices": choices}), HERE)
    shown = timeline(settled)
    if settled.outcome.value != "completed":
        return
    assert settled.score is not None
    assert shown is not None
    assert sum(event.missed for event in shown.events) == settled.score.missed
    assert [event.at_s for event in shown.events] == sorted(event.at_s for event in shown.events)
    assert sum(event.tokens for event in shown.events) == settled.score.tokens
    slacks = [(event.slack_s, event.missed) for event in shown.events]
    assert all(slack_s is not None and (slack_s < 0) == (missed > 0) for slack_s, missed in slacks)


def test_what_was_not_streamed_has_neither() -> None:
    settled = settle(facts(), HERE)
    assert timeline(settled) is None
    assert trace_line(settled) is None
