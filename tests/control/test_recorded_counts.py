"""All recordings from their bytes to the settled request: the tokens are the server's own number."""

from __future__ import annotations

import numpy as np
import pytest

from proxy.control.timeline import timeline, trace_line
from scoring.deadlines import Deadlines
from scoring.trace import score
from tests.control.test_tokens import by_fractions
from tests.helpers.naive import events, family, is_stream, outputs, reported, servers_number
from tests.helpers.played import TBT_NS, TTFT_NS, choices_asked, settled
from tests.helpers.recordings import Recording, load, names
from tests.relay.recorded_firsts import FIRST

#: Recordings whose server reports less than it streamed: (reported, streamed, why).  All others agree.
LESS = "llama.cpp reports each choice alone, one after the other, and the last one stands for the request"
EXCEPTIONS: dict[str, tuple[int, list[int], str]] = {
    "llama.cpp__chat_stream_n2": (16, [16, 16], LESS),
    "llama.cpp__completions_stream_two_prompts": (10, [10, 10], LESS),
}

#: Tokens by choice, where more than one was asked for; transformers knows no ``n`` and sends one.
SEVERAL: dict[str, list[int]] = {
    "llama.cpp__chat_stream_n2": [16, 16],
    "llama.cpp__completions_stream_two_prompts": [10, 10],
    "transformers__chat_stream_n2": [16],
    "transformers__completions_stream_n2_echo": [10],
    "vllm__chat_stream_n2": [16, 16],
    "vllm__completions_stream_n2_echo": [10, 10],
}

STREAMS = [name for name in names() if is_stream(load(name))]
BODIES = [name for name in names() if name not in STREAMS]
TOLD = [name for name in STREAMS if servers_number(load(name)) is not None]
UNTOLD = [name for name in STREAMS if name not in TOLD]
#: Streams that say while they run how many tokens there are, and how.
SURE = {
    "llama.cpp__chat_stream_logprobs": "logprobs",
    "llama.cpp__chat_stream_timings_per_token": "running_usage",
    "llama.cpp__native_completion_stream": "running_usage",
    "vllm__chat_stream_continuous_usage": "running_usage",
    "vllm__chat_stream_logprobs": "logprobs",
    "vllm__spec_ngram_chat_greedy": "running_usage",
    "vllm__stream_interval4_chat": "running_usage",
}


def on_events(name: str) -> list[list[int]]:
    """Per choice, the tokens of each event as they are scored."""
    counted = settled(name).counted
    assert counted is not None
    return [choice.tokens.tolist() for choice in counted.choices]


def texts(recording: Recording) -> list[list[int]]:
    """Per choice, the bytes of each event with output, by the naive reader."""
    found = [pair for _, event in events(recording) for pair in outputs(recording, event)]
    return [[len(text.encode()) for one, text in found if one == choice] for choice in sorted(dict(found))]


def test_what_the_recordings_are() -> None:
    assert (len(STREAMS), len(BODIES), len(TOLD)) == (72, 33, 57)


# ---------------------------------------------------------------- totals


@pytest.mark.parametrize("name", [name for name in TOLD if name not in EXCEPTIONS])
def test_the_tokens_are_the_servers_number(name: str) -> None:
    number, record = servers_number(load(name)), settled(name).record
    assert sum(map(sum, on_events(name))) == number
    assert (record.output_tokens, record.tokens_reported) == (number, number)
    assert record.tokens_source == SURE.get(name, "events+usage")
    assert record.tokens_observed is not None
    assert record.tokens_observed <= number
    assert record.tokens_per_event == round(number / FIRST[name][1], 3)


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_where_less_is_reported_than_was_streamed_the_events_stand(name: str) -> None:
    number, streamed, _ = EXCEPTIONS[name]
    record = settled(name).record
    assert [sum(lane) for lane in on_events(name)] == streamed
    assert reported(load(name)) == streamed  # choice by choice it is the server's number all the same
    assert (record.tokens_reported, record.tokens_observed) == (number, sum(streamed))
    assert record.tokens_source == "events"


@pytest.mark.parametrize("name", STREAMS)
def test_each_choice_has_its_own(name: str) -> None:
    """Where several were asked for, each ran into the limit; elsewhere there is one."""
    lanes = [sum(lane) for lane in on_events(name)]
    assert lanes == SEVERAL.get(name, [settled(name).record.output_tokens])


@pytest.mark.parametrize("name", UNTOLD)
def test_where_no_number_was_said_what_was_seen_stands(name: str) -> None:
    record = settled(name).record
    assert (record.tokens_reported, record.tokens_source) == (None, SURE.get(name, "events"))
    assert record.output_tokens == record.tokens_observed == sum(map(sum, on_events(name)))
    if name not in SURE:
        assert record.tokens_observed == FIRST[name][1]


# ---------------------------------------------------------------- event by event


@pytest.mark.parametrize("name", [name for name in TOLD if name not in {*SURE, *EXCEPTIONS}])
def test_what_is_missing_lies_on_the_events_with_the_most_content(name: str) -> None:
    """By the rule in fractions, from the texts that the naive reader found."""
    number, lanes = servers_number(load(name)), texts(load(name))
    assert number is not None
    missing = number - sum(map(len, lanes))
    if missing:
        (lane,) = lanes
        assert on_events(name) == [[1 + more for more in by_fractions(missing, lane)]]
    else:
        assert on_events(name) == [[1] * len(lane) for lane in lanes]


@pytest.mark.parametrize("name", STREAMS)
def test_the_score_is_that_of_the_tokens_as_they_were_apportioned(name: str) -> None:
    out = settled(name)
    assert out.counted is not None
    assert out.score is not None
    again = score(
        out.counted.choices,
        Deadlines(TTFT_NS, TBT_NS),
        end_ns=out.duration_ns,
        censored=out.censored,
        target=0.9,
    )
    if len(out.counted.choices) >= choices_asked(load(name)):  # one that never began is owed beside
        assert out.score == again
    assert out.score.tokens == sum(map(sum, on_events(name)))
    assert out.score.ttft_ns == FIRST[name][0]


@pytest.mark.parametrize("name", ["vllm__chat_stream_long_output_1000", "llama.cpp__chat_stream_n2"])
def test_timeline_and_trace_line_show_the_same_tokens(name: str) -> None:
    line, shown = trace_line(settled(name)), timeline(settled(name))
    assert line is not None
    assert shown is not None
    lanes = on_events(name)
    told = [line.events] if len(lanes) == 1 else line.choices
    assert [[tokens for _, tokens in lane] for lane in told] == lanes  # type: ignore[union-attr]
    assert sum(event.tokens for event in shown.events) == sum(map(sum, lanes))


def test_held_back_characters_move_the_score_only_by_their_tokens() -> None:
    """900 tokens in 868 events: the slack of 32 tokens, and no stamp has moved."""
    out = settled("vllm__chat_stream_long_output_1000")
    assert out.counted is not None
    assert out.facts.stream is not None
    assert (out.counted.observed, out.counted.on_events, out.facts.stream.events) == (868, 900, 868)
    stamps = np.frombuffer(out.facts.stream.choices[0], dtype="<i8")[::2]
    assert out.counted.choices[0].at_ns.tolist() == stamps.tolist()


# ---------------------------------------------------------------- bodies


@pytest.mark.parametrize("name", BODIES)
def test_bodies_have_their_own_number_and_a_latency_per_token(name: str) -> None:
    out, number = settled(name), servers_number(load(name))
    record = out.record
    assert (record.stream, record.met, record.fluidity, record.events) == (False, None, None, None)
    assert record.output_tokens == record.tokens_reported == number
    if number:
        assert record.tokens_source == "usage"
        assert record.normalized_latency_s == round(out.duration_ns / number / 1e9, 6)
    else:
        assert record.normalized_latency_s is None


def test_which_bodies_tell_tokens() -> None:
    told = {name: servers_number(load(name)) for name in BODIES if servers_number(load(name))}
    assert {name: (family(load(name)), number) for name, number in told.items()} == {
        "llama.cpp__chat_nonstream": ("chat", 40),
        "llama.cpp__completions_nonstream": ("completions", 16),
        "llama.cpp__messages_nonstream": ("messages", 24),
        "llama.cpp__native_completion_nonstream": ("native", 16),
        "llama.cpp__responses_nonstream": ("responses", 24),
        "transformers__chat_nonstream": ("chat", 40),
        "transformers__completions_nonstream": ("completions", 16),
        "vllm__chat_nonstream": ("chat", 40),
        "vllm__completions_nonstream": ("completions", 16),
        "vllm__messages_nonstream": ("messages", 24),
        "vllm__responses_nonstream": ("responses", 24),
    }
