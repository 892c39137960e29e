"""Every recorded exchange through the tap: the server's own count, TTFT by hand, nothing silent, any cut."""

from __future__ import annotations

import json
import random

import msgspec
import pytest

from proxy.link import Stream
from proxy.relay.streamtap import StreamTap
from tests.helpers.naive import events, family, is_stream, outputs, servers_number
from tests.helpers.played import opened, played
from tests.helpers.recordings import Recording, load, names
from tests.helpers.taps import arrivals, pairs, sizes
from tests.relay.recorded_firsts import FIRST

DIALECT = {
    "chat": "openai.chat",
    "completions": "openai.completions",
    "responses": "openai.responses",
    "messages": "anthropic.messages",
    "native": "llamacpp.completion",
}

#: Recordings whose events tell another number of tokens than their server, and why.  (reported, counted)
HELD_BACK = "half a UTF-8 character is held back until its other half comes: two tokens in one event"
CUT_OFF = "the limit cuts the answer in the middle of a UTF-8 character, which is never sent"
GATHERED = "the server gathers several tokens in one event where it fell behind its engine"
ONE_OF_TWO = "the server reports one of its two choices"
EXCEPTIONS: dict[str, tuple[int, int, str]] = {
    "llama.cpp__chat_stream": (40, 39, HELD_BACK),
    "llama.cpp__chat_stream_include_usage": (40, 39, HELD_BACK),
    "llama.cpp__chat_stream_long_output_1000": (850, 834, HELD_BACK),
    "llama.cpp__error_unknown_model": (40, 39, HELD_BACK),
    "llama.cpp__messages_stream": (24, 23, HELD_BACK),
    "llama.cpp__responses_stream": (24, 20, HELD_BACK),
    "llama.cpp__stall_victim_b256_ub256": (800, 799, HELD_BACK),
    "transformers__chat_stream": (40, 39, HELD_BACK),
    "transformers__chat_stream_continuous_usage": (40, 39, HELD_BACK),
    "transformers__chat_stream_include_usage": (40, 39, HELD_BACK),
    "transformers__chat_stream_logprobs": (16, 15, CUT_OFF),
    "transformers__chat_stream_long_output_800": (800, 779, HELD_BACK),
    "transformers__chat_stream_long_prompt": (12, 11, HELD_BACK),
    "transformers__chat_stream_n2": (16, 15, CUT_OFF),
    "transformers__chat_stream_tools_required": (80, 79, HELD_BACK),
    "transformers__completions_stream": (40, 38, HELD_BACK),
    "transformers__error_context_too_long": (28, 26, HELD_BACK),
    "transformers__responses_nonstream": (24, 22, HELD_BACK),
    "vllm__chat_stream_include_usage": (40, 38, HELD_BACK),
    "vllm__chat_stream_long_output_1000": (900, 868, HELD_BACK),
    "vllm__messages_stream": (24, 22, HELD_BACK),
    "vllm__responses_stream": (24, 22, GATHERED),
    "llama.cpp__chat_stream_n2": (16, 32, ONE_OF_TWO),
    "llama.cpp__completions_stream_two_prompts": (10, 20, ONE_OF_TWO),
}

#: Recordings that carry no number, but ran into the limit that was asked for: that many tokens were made.
LIMITED: dict[str, tuple[int, int, str]] = {
    "vllm__chat_stream": (40, 39, HELD_BACK),
    "vllm__stall_intruder_no_chunked_prefill": (4, 3, HELD_BACK),
    "vllm__chat_stream_tools_required": (80, 52, "the tool parser hides the tokens around the arguments"),
}

#: Their running usage is told event by event, and the sizes are not: nothing is ever apportioned by them.
SIZELESS = {"llama.cpp__native_completion_stream"}

STREAMS = [name for name in names() if is_stream(load(name))]


def loud(recording: Recording) -> list[tuple[int, list[tuple[int, str]]]]:
    """(stamp, outputs) of the events with output."""
    found = [(at_ns, outputs(recording, event)) for at_ns, event in events(recording)]
    return [(at_ns, texts) for at_ns, texts in found if texts]


def stamps(stream: Stream) -> list[list[int]]:
    """The arrivals of each choice in nanoseconds."""
    return [[at_ns for at_ns, _ in pairs(packed)] for packed in stream.choices]


def test_there_are_as_many_as_were_recorded() -> None:
    assert len(names()) == 105
    assert len(STREAMS) == 72
    assert list(FIRST) == STREAMS


@pytest.mark.parametrize("name", STREAMS)
def test_each_family_has_its_dialect(name: str) -> None:
    stream = played(load(name))
    assert stream.dialect == DIALECT[family(load(name)) or ""]
    assert (stream.unmeasured, stream.broken) == (None, 0)


# ---------------------------------------------------------------- how many


@pytest.mark.parametrize("name", STREAMS)
def test_the_count_is_the_servers(name: str) -> None:
    recording = load(name)
    stream, number = played(recording), servers_number(load(name))
    if name in EXCEPTIONS:
        assert (number, stream.tokens) == EXCEPTIONS[name][:2]
    elif number is not None:
        assert stream.tokens == number
    elif stream.tokens_source == "events":  # nobody said: one token for each event with output
        assert stream.tokens == FIRST[name][1]


@pytest.mark.parametrize("name", [name for name in STREAMS if servers_number(load(name)) is None])
def test_without_a_number_the_limit_tells_where_the_answer_ran_into_it(name: str) -> None:
    recording = load(name)
    limit = recording.asked.get("max_tokens")
    assert isinstance(limit, int)
    reasons = [
        choice["finish_reason"]
        for _, event in events(recording)
        for choice in (event or {}).get("choices", ())
        if choice.get("finish_reason")
    ]
    made, counted = limit * len(reasons), played(recording).tokens
    if set(reasons) != {"length"}:
        assert name not in LIMITED
    elif name in LIMITED:
        assert (made, counted) == LIMITED[name][:2]
    else:
        assert counted == made


HELD = [name for name, why in (EXCEPTIONS | LIMITED).items() if why[2] is HELD_BACK]


@pytest.mark.parametrize("name", HELD)
def test_where_events_fall_short_characters_were_held_back(name: str) -> None:
    text = "".join(text for _, texts in loud(load(name)) for _, text in texts)
    assert not text.isascii()


# ---------------------------------------------------------------- which events, and the first of them


@pytest.mark.parametrize("name", STREAMS)
def test_ttft_is_the_first_output_by_hand(name: str) -> None:
    stream, (at_ns, _, _) = played(load(name)), FIRST[name]
    assert min(lane[0] for lane in stamps(stream)) == at_ns
    firsts = (stream.first_reasoning_ns, stream.first_answer_ns, stream.first_tool_ns)
    assert min(stamp for stamp in firsts if stamp is not None) == at_ns
    assert stream.first_event_ns == events(load(name))[0][0] <= at_ns


@pytest.mark.parametrize("name", STREAMS)
def test_no_event_without_output_is_counted(name: str) -> None:
    """Roles, progress, lifecycle, usage, timings, errors: none of them is an arrival of any choice."""
    recording = load(name)
    found = loud(recording)
    silent = [at_ns for at_ns, event in events(recording) if not outputs(recording, event)]
    assert (len(found), len(silent)) == FIRST[name][1:]
    stream = played(recording)
    choices = sorted({choice for _, texts in found for choice, _ in texts})
    for lane, choice in zip(stamps(stream), choices, strict=True):
        brought = [at_ns for at_ns, texts in found for one, _ in texts if one == choice]
        assert lane == brought  # each of them once, in order, and nothing else
    only_silent = set(silent) - {at_ns for at_ns, _ in found}
    assert not only_silent & {at_ns for lane in stamps(stream) for at_ns in lane}
    assert stream.events == sum(len(texts) for _, texts in found)


@pytest.mark.parametrize("name", [name for name in STREAMS if name not in SIZELESS])
def test_content_is_measured_in_bytes_of_utf8(name: str) -> None:
    found = loud(load(name))
    for choice, lane in enumerate(sizes(played(load(name)))):
        texts = [text for _, texts in found for one, text in texts if one == choice]
        assert lane == [len(text.encode()) for text in texts]


def comparable(name: str, stream: Stream) -> tuple[Stream, object]:
    """The facts of a stream, without sizes where they depend on the way that an event takes."""
    if name not in SIZELESS:
        return stream, None
    return msgspec.structs.replace(stream, choices=()), arrivals(stream)


@pytest.mark.parametrize("name", names())
def test_any_recording_passes_however_it_is_cut(name: str) -> None:
    """The pieces as they were, cut at random and byte by byte say the same, since the stamps are the same."""
    recording = load(name)
    dice = random.Random(name)
    cut, single = [], []
    for at_ns, data in recording.response().body:
        ends = sorted(dice.randint(0, len(data)) for _ in range(3))
        cut += [(at_ns, data[a:b]) for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]
        single += [(at_ns, data[i : i + 1]) for i in range(len(data))]
    whole = played(recording)
    assert whole.unmeasured is None
    assert comparable(name, played(recording, tuple(cut))) == comparable(name, whole)
    if len(single) < 20_000:
        assert comparable(name, played(recording, tuple(single))) == comparable(name, whole)


ENDS: dict[str, tuple[bool, str | None, str | None]] = {
    # name: (finished, finish reason, error)
    "vllm__chat_stream": (True, "length", None),
    "vllm__chat_stream_stop": (True, "stop", None),
    "llama.cpp__chat_stream": (True, "length", None),
    "transformers__chat_stream": (True, "length", None),  # no [DONE]
    "vllm__chat_stream_n2": (True, "length", None),
    "transformers__chat_stream_n2": (True, "length", None),  # asked for two, sends one
    "llama.cpp__completions_stream_two_prompts": (True, "length", None),
    "vllm__engine_SIGKILL_mid_stream": (False, None, "InternalServerError"),
    "vllm__server_SIGTERM_mid_stream": (False, None, "InternalServerError"),
    "llama.cpp__server_SIGTERM_mid_stream": (False, None, None),
    "vllm__chat_client_disconnect": (False, None, None),
    "llama.cpp__error_context_too_long": (True, None, "exceed_context_size_error"),
    "vllm__error_unknown_model": (True, None, "NotFoundError"),
    "vllm__responses_stream": (True, "max_output_tokens", None),  # in an event named response.completed
    "llama.cpp__responses_stream": (True, "completed", None),
    "transformers__responses_nonstream": (True, "completed", None),
    "vllm__messages_stream": (True, "max_tokens", None),
    "llama.cpp__messages_stream": (True, "max_tokens", None),
    "llama.cpp__native_completion_stream": (True, "limit", None),
}


@pytest.mark.parametrize(("name", "end"), ENDS.items())
def test_how_it_ended(name: str, end: tuple[bool, str | None, str | None]) -> None:
    stream = played(load(name))
    assert (stream.finished, stream.finish_reason, stream.error) == end


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("vllm__chat_stream_continuous_usage", "running_usage"),
        ("vllm__stream_interval4_chat", "running_usage"),
        ("vllm__spec_ngram_chat_greedy", "running_usage"),
        ("llama.cpp__chat_stream_timings_per_token", "running_usage"),
        ("vllm__chat_stream_logprobs", "logprobs"),
        ("llama.cpp__chat_stream_logprobs", "logprobs"),
        ("vllm__chat_stream", "events"),
        ("vllm__responses_stream", "events"),
        ("llama.cpp__messages_stream", "events"),
        ("llama.cpp__native_completion_stream", "running_usage"),
    ],
)
def test_how_it_was_counted(name: str, source: str) -> None:
    assert played(load(name)).tokens_source == source


@pytest.mark.parametrize(
    "name", ["vllm__chat_nonstream", "llama.cpp__completions_nonstream", "transformers__chat_nonstream"]
)
def test_bodies_tell_their_usage(name: str) -> None:
    recording = load(name)
    told = json.loads(recording.response().whole)
    stream = played(recording)
    assert stream.usage.output == told["usage"]["completion_tokens"]
    assert stream.usage.prompt == told["usage"]["prompt_tokens"]
    assert (stream.response_id, stream.finish_reason) == (told["id"], "length")


def test_a_stream_tap_for_every_event_stream_also_unasked() -> None:
    """transformers streams ``/v1/responses`` without being asked: the response's content type decides."""
    assert isinstance(opened(load("transformers__responses_nonstream")), StreamTap)
