"""What a stream's own count misses is apportioned by the server's: by hand, by properties, by oracles."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor
from statistics import median
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.control.settle import settle
from proxy.control.tokens import EMPTY, Counted, apportion, count
from proxy.link import ChoiceScore, Stream, Usage
from scoring.deadlines import Deadlines
from scoring.trace import score
from tests.control.facts import MS, Event, at, stream, streamed
from tests.scoring import oracle

DONE = "events+usage"


def shares(extra: int, weights: Sequence[int]) -> list[int]:
    given_: list[int] = apportion(extra, np.array(weights, dtype=np.int64)).tolist()
    return given_


def tokens(of: Stream | Counted) -> list[list[int]]:
    counted = count(of) if isinstance(of, Stream) else of
    return [choice.tokens.tolist() for choice in counted.choices]


def told(
    *events: Event, output: int | None, choices: Sequence[Sequence[Event]] = (), **fields: Any
) -> tuple[list[list[int]], str]:
    """Tokens per event and their source, where the server reported ``output`` tokens."""
    usage = Usage(output=output, reasoning=fields.pop("reasoning", None))
    counted = count(stream(*events, choices=choices, usage=usage, **fields))
    return tokens(counted), counted.source


# ---------------------------------------------------------------- largest remainder, by hand


@pytest.mark.parametrize(
    ("extra", "weights", "want"),
    [
        (0, [3, 4], [0, 0]),
        (5, [7], [5]),
        (4, [1, 1, 1, 1], [1, 1, 1, 1]),
        (3, [4, 12, 4], [1, 2, 0]),  # 0.6, 1.8, 0.6: the whole 1, then .8, then the first of two .6
        (3, [4, 4, 12], [1, 0, 2]),
        (1, [5, 5, 5], [1, 0, 0]),  # a tie goes to the earliest
        (5, [1, 1, 1], [2, 2, 1]),
        (7, [0, 3, 0], [0, 7, 0]),
        (3, [0, 0], [2, 1]),  # no content anywhere: evenly
        (10, [61, 39], [6, 4]),
        (1, [1, 2], [0, 1]),
    ],
)
def test_shares_by_hand(extra: int, weights: list[int], want: list[int]) -> None:
    assert shares(extra, weights) == want


def test_beyond_int64_the_shares_still_are_exact() -> None:
    heavy = [(1 << 40) - 1, 1 << 39, 3, 0]
    for extra in (10, 1 << 30, (1 << 53) - 1):
        assert shares(extra, heavy) == by_fractions(extra, heavy)


# ---------------------------------------------------------------- largest remainder, by properties


def by_fractions(extra: int, weights: Sequence[int]) -> list[int]:
    """The rule as it is written down: one token after the other to the share that is furthest behind."""
    if not any(weights):
        weights = [1] * len(weights)
    exact = [Fraction(extra * weight, sum(weights)) for weight in weights]
    given_ = [floor(share) for share in exact]
    for _ in range(extra - sum(given_)):
        behind = [share - got for share, got in zip(exact, given_, strict=True)]
        given_[behind.index(max(behind))] += 1
    return given_


SIZES = st.one_of(st.integers(0, 6), st.integers(0, 400), st.integers(0, (1 << 40) - 1))
WEIGHTS = st.lists(SIZES, min_size=1, max_size=12)
EXTRA = st.one_of(st.integers(0, 40), st.integers(0, (1 << 53) - 1))


@given(EXTRA, WEIGHTS)
def test_shares_are_the_oracles(extra: int, weights: list[int]) -> None:
    assert shares(extra, weights) == by_fractions(extra, weights)


@given(EXTRA, WEIGHTS)
def test_the_sum_is_exact_and_each_share_within_one_of_its_quota(extra: int, weights: list[int]) -> None:
    got = shares(extra, weights)
    assert sum(got) == extra
    weights = weights if any(weights) else [1] * len(weights)
    for share, weight in zip(got, weights, strict=True):
        assert abs(share - Fraction(extra * weight, sum(weights))) < 1


@given(EXTRA, WEIGHTS)
def test_more_content_never_gets_less_and_a_tie_goes_to_the_earlier(extra: int, weights: list[int]) -> None:
    got = shares(extra, weights)
    for i, weight in enumerate(weights):
        for j in range(i + 1, len(weights)):
            if weight > weights[j]:
                assert got[i] >= got[j]
            elif weight < weights[j]:
                assert got[i] <= got[j]
            else:
                assert got[i] - got[j] in (0, 1)


@given(st.integers(0, 200), WEIGHTS, st.randoms(use_true_random=False))
def test_only_ties_depend_on_the_order(extra: int, weights: list[int], dice: Any) -> None:
    order = list(range(len(weights)))
    dice.shuffle(order)
    before, after = shares(extra, weights), shares(extra, [weights[i] for i in order])
    even = weights if any(weights) else [1] * len(weights)
    fractions = [Fraction(extra * weight, sum(even)) % 1 for weight in even]
    rounded_up = [frac for i, frac in enumerate(fractions) if before[i] > extra * even[i] // sum(even)]
    for new, old in enumerate(order):
        if after[new] != before[old]:
            assert fractions[old] == min(
                rounded_up
            )  # the last fraction that was rounded up, and not all were


# ---------------------------------------------------------------- which tokens are missing


def test_what_is_missing_goes_to_the_events_by_their_content() -> None:
    assert told(at(50, 1, 4), at(60, 1, 12), at(70, 1, 4), output=6) == ([[2, 3, 1]], DONE)


@pytest.mark.parametrize("source", ["events", "logprobs", "token_ids", "running_usage"])
def test_whatever_counted_while_it_streamed(source: str) -> None:
    assert told(at(50, 2, 4), at(60, 1, 12), output=5, tokens_source=source) == ([[3, 2]], DONE)


def test_a_number_that_agrees_confirms_events_and_adds_nothing_to_a_surer_count() -> None:
    assert told(at(50), at(60), output=2) == ([[1, 1]], DONE)
    assert told(at(50), at(60), output=2, tokens_source="token_ids") == ([[1, 1]], "token_ids")


@pytest.mark.parametrize("output", [None, 0, 1, 2])
def test_fewer_than_were_seen_change_nothing(output: int | None) -> None:
    for source in ("events", "logprobs"):
        assert told(at(50), at(60, 2), output=output, tokens_source=source) == ([[1, 2]], source)


def test_events_without_content_share_evenly() -> None:
    assert told(at(50, 1, 0), at(60, 1, 0), at(70, 1, 0), output=5) == ([[2, 2, 1]], DONE)


def test_each_choice_with_a_number_of_its_own_for_itself() -> None:
    two = [[at(50, 1, 1), at(60, 1, 1)], [at(50, 1, 90), at(60, 1, 90), at(70, 1, 90)]]
    assert told(choices=two, output=7, reported=(4, 3)) == ([[2, 2], [1, 1, 1]], DONE)
    # One choice streamed more than was said of it: the other's shortage is its own all the same.
    assert told(choices=two, output=6, reported=(4, 2)) == ([[2, 2], [1, 1, 1]], DONE)
    # Only one has a number: the rest of the request's is the other's.
    assert told(choices=two, output=8, reported=(-1, 4)) == ([[2, 2], [2, 1, 1]], DONE)
    assert told(choices=two, output=None, reported=(-1, 4)) == ([[1, 1], [2, 1, 1]], DONE)


def test_the_requests_shortage_is_divided_over_the_choices_by_their_content() -> None:
    two = [[at(50, 1, 6), at(60, 1, 6)], [at(55, 1, 3), at(65, 1, 1)]]
    # 4 missing by 12 : 4 bytes are 3 and 1; of the 3 the tie's odd one goes to the earlier event.
    assert told(choices=two, output=8) == ([[3, 2], [2, 1]], DONE)
    # 2 missing by equal content: one each, and one is the first choice's.
    even = [[at(50, 1, 4)], [at(40, 1, 4)]]
    assert told(choices=even, output=4) == ([[2], [2]], DONE)
    assert told(choices=even, output=3) == ([[2], [1]], DONE)
    blank = [[at(50, 1, 0)], [at(40, 1, 0), at(50, 1, 0), at(60, 1, 0)]]
    assert told(choices=blank, output=8) == ([[2], [2, 2, 2]], DONE)  # evenly by event, not by choice


def test_a_choice_without_events_holds_nothing() -> None:
    assert told(choices=[[], [at(50), at(60)]], output=3) == ([[], [2, 1]], DONE)
    assert told(choices=[[], [at(50)]], output=3, reported=(2, 1)) == ([[], [1]], "events")
    assert told(choices=[[]], output=3) == ([[]], "events")
    nothing = Stream("openai.chat", usage=Usage(output=3))
    assert (count(nothing).choices, count(nothing).source) == ((), "events")


# ---------------------------------------------------------------- hidden tokens


def test_reported_reasoning_that_was_not_streamed_is_taken_off() -> None:
    assert told(at(50), at(60), output=103, reasoning=100) == ([[2, 1]], DONE)
    assert told(at(50), at(60), output=102, reasoning=100) == ([[1, 1]], DONE)
    assert told(at(50), at(60), output=90, reasoning=100) == ([[1, 1]], "events")
    assert told(at(50), at(60), output=103, reported=(103,), reasoning=100) == ([[2, 1]], DONE)
    # Streamed, it is part of what was seen.
    assert told(at(50), at(60), output=4, reasoning=2, first_reasoning_ns=1) == ([[2, 2]], DONE)


def test_hidden_reasoning_of_several_choices_is_nobodys_own() -> None:
    two = [[at(50), at(60)], [at(50), at(60)]]
    assert told(choices=two, output=65, reported=(50, 15), reasoning=60) == ([[2, 1], [1, 1]], DONE)


@pytest.mark.parametrize(
    ("sizes", "output", "fields", "want"),
    [
        ([4] * 10, 20, {}, DONE),  # twice as many still may be
        ([4] * 10, 21, {}, "events"),
        ([4] * 10, 21, {"several": True}, DONE),
        ([4] * 10, 9_000, {"several": True}, DONE),
        ([12] * 10, 21, {}, "events"),
        ([13] * 10, 21, {}, DONE),
        ([12] * 5 + [13] * 5, 21, {}, DONE),  # the median is 12.5
        ([12] * 6 + [500] * 4, 21, {}, "events"),  # a long event or two are none
        ([11, 13] * 5, 21, {}, "events"),
    ],
)
def test_beyond_twice_as_many_there_must_be_evidence(
    sizes: list[int], output: int, fields: dict[str, Any], want: str
) -> None:
    events = [at(50 + n, 1, size) for n, size in enumerate(sizes)]
    counted, source = told(*events, output=output, **fields)
    assert source == want
    assert sum(counted[0]) == (output if want == DONE else 10)


def test_evidence_is_the_choices_own_where_the_number_is() -> None:
    two = [[at(50, 1, 4), at(60, 1, 4)], [at(50, 1, 40), at(60, 1, 40)]]
    assert told(choices=two, output=16, reported=(8, 8)) == ([[1, 1], [4, 4]], DONE)


def test_a_stall_does_not_vanish_behind_hidden_tokens() -> None:
    """100 events half a second apart, deadline 50 ms, 2,000 tokens of reasoning that nobody named or saw."""
    events = [at(500 * (n + 1)) for n in range(100)]
    of: dict[str, Any] = {"usage": Usage(output=2_100)}
    out = settle(streamed(*events, end_ms=50_000, of=of, ttft_target_ns=500 * MS), "here")
    # By events: the first in time, then 99 times 450 ms late, each over 10 deadlines.
    assert (out.record.met, out.record.missed, out.record.fluidity) == (1, 990, round(1 / 991, 6))
    assert (out.record.tokens_source, out.record.tokens_observed) == ("events", 100)
    assert (out.record.tokens_reported, out.record.output_tokens) == (2_100, 2_100)
    spread = msgspec.structs.replace(stream(*events, **of), several=True)
    there = settle(streamed(end_ms=50_000, stream=spread, ttft_target_ns=500 * MS), "here")
    assert there.record.fluidity == 1.0  # so it would look, had each event shown 21 tokens


# ---------------------------------------------------------------- what is left alone


def test_thinned_streams_stay_as_they_were_counted() -> None:
    kept = ChoiceScore(tokens=1_000, late=10, missed=40, late_ns=900 * MS, due_ns=60_000 * MS)
    thin: dict[str, Any] = {"thinned": True, "scores": (kept,), "tokens": 1_000}
    assert told(at(100, 500), at(200, 500), output=1_200, **thin) == ([[500, 500]], "events")


@pytest.mark.parametrize("odd", [1 << 53, 1 << 62, (1 << 64) - 1])
def test_numbers_that_no_request_has_are_none(odd: int) -> None:
    assert told(at(50), output=odd, several=True) == ([[1]], "events")
    assert told(at(50), output=2, reported=(odd,), several=True) == ([[2]], DONE)


def test_more_numbers_than_choices_and_fewer() -> None:
    assert told(at(50), output=2, reported=(2, 7)) == ([[2]], DONE)
    assert told(choices=[[at(50)], [at(50)]], output=4, reported=(2,)) == ([[2], [2]], DONE)


def test_a_negative_size_is_no_arrival() -> None:
    broken = msgspec.structs.replace(stream(at(50)), choices=(bytes(8) + b"\xff" * 8,))
    with pytest.raises(ValueError, match="negative"):
        count(broken)


def test_packed_arrivals_are_not_written_to() -> None:
    held = stream(at(50), at(60), usage=Usage(output=3))
    before = held.choices
    assert tokens(held) == tokens(held) == [[2, 1]]
    assert held.choices == before


def test_nothing_came() -> None:
    assert tokens(EMPTY) == [[]]
    assert (EMPTY.output, EMPTY.on_events, EMPTY.source) == (0, 0, "events")


# ---------------------------------------------------------------- the whole rule against an oracle


Lane = list[tuple[int, int, int]]  # ms since the event before, tokens, bytes


@st.composite
def lanes(draw: st.DrawFn) -> list[list[Event]]:
    out = []
    for _ in range(draw(st.integers(1, 3))):
        now, events = 0, []
        for gap in draw(st.lists(st.integers(0, 120), max_size=8)):
            now += gap
            events.append(at(now, draw(st.integers(1, 3)), draw(st.integers(0, 30))))
        out.append(events)
    return out


def expected(
    choices: list[list[Event]], output: int | None, hidden: int, reported: Sequence[int], several: bool
) -> list[list[int]]:
    """The issue's rule, token by token, in fractions."""
    out = [[tokens_ for _, tokens_, _ in events] for events in choices]
    own = dict(enumerate(reported)) if not hidden or len(choices) == 1 else {}
    groups = [([i], own[i] - hidden) for i in range(len(choices)) if own.get(i, -1) >= 0]
    rest = [i for i in range(len(choices)) if own.get(i, -1) < 0]
    if rest and output is not None:
        groups.append((rest, max(output - hidden, 0) - sum(max(said, 0) for _, said in groups)))
    for members, said in groups:
        sizes = [size for i in members for _, _, size in choices[i]]
        have = sum(sum(out[i]) for i in members)
        if not sizes or said <= have:
            continue
        if Fraction(said, have) > 2 and not several and median(sizes) <= 12:
            continue
        weights = [sum(size for _, _, size in choices[i]) for i in members]
        if not any(weights):
            weights = [len(choices[i]) for i in members]
        for i, share in zip(members, by_fractions(said - have, weights), strict=True):
            if share:
                more = by_fractions(share, [size for _, _, size in choices[i]])
                out[i] = [a + b for a, b in zip(out[i], more, strict=True)]
    return out


@given(
    lanes(),
    st.none() | st.integers(0, 120),
    st.sampled_from([0, 0, 5, 40]),
    st.lists(st.integers(-1, 40), max_size=3),
    st.booleans(),
    st.integers(0, 300),
    st.booleans(),
)
def test_tokens_and_score_are_the_oracles(
    choices: list[list[Event]],
    output: int | None,
    hidden: int,
    reported: list[int],
    several: bool,
    extra_ms: int,
    finished: bool,
) -> None:
    reported = reported[: len(choices)]
    usage = Usage(output=output, reasoning=hidden or None)
    held = stream(choices=choices, usage=usage, reported=tuple(reported), several=several, finished=finished)
    want = expected(choices, output, hidden, reported, several)
    got = count(held)
    assert tokens(got) == want
    assert all(
        now >= was
        for choice, events in zip(got.choices, choices, strict=True)
        for now, (_, was, _) in zip(choice.tokens.tolist(), events, strict=True)
    )
    end_ms = max((at_ms for events in choices for at_ms, _, _ in events), default=0) + extra_ms
    settled = settle(
        streamed(end_ms=end_ms, stream=held, end="complete" if finished else "truncated"), "here"
    )
    assert settled.score is not None
    assert settled.score == score(
        got.choices,
        Deadlines(100 * MS, 50 * MS),
        end_ns=end_ms * MS,
        censored=settled.censored,
        target=0.9,
    )
    sequences = [
        oracle.Sequence_([(at_ms, n) for (at_ms, _, _), n in zip(events, lane, strict=True)])
        for events, lane in zip(choices, want, strict=True)
    ]
    # In milliseconds the same deadlines pass, since all times are whole ones.
    tally = oracle.tally(sequences, 100, 50, end_ms if settled.censored else None)
    assert (settled.score.tokens, settled.score.met) == (tally.tokens, tally.met)
    assert (settled.score.missed, settled.score.late_ns) == (tally.missed, tally.late_ns * MS)
    assert settled.score.fluidity == tally.fluidity
