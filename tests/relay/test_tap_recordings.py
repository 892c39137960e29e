"""Every recorded exchange through the tap: the server's own count, TTFT by a naive reader, any cut."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from proxy.link import Stream
from proxy.relay.streamtap import StreamTap
from proxy.relay.tap import Tap, open_tap
from tests.helpers.recordings import Pieces, Recording, load, names
from tests.helpers.taps import MS

OPENAI = ("/chat/completions", "/completions")

#: Recordings whose events cannot tell the number of tokens, and why.  (``reported``, ``counted``)
HELD_BACK = "half a UTF-8 character is held back until its other half comes: two tokens in one event"
CUT_OFF = "the limit cuts the answer in the middle of a UTF-8 character, which is never sent"
EXCEPTIONS: dict[str, tuple[int, int, str]] = {
    "llama.cpp__chat_stream": (40, 39, HELD_BACK),
    "llama.cpp__chat_stream_include_usage": (40, 39, HELD_BACK),
    "llama.cpp__chat_stream_long_output_1000": (850, 834, HELD_BACK),
    "llama.cpp__error_unknown_model": (40, 39, HELD_BACK),
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
    "vllm__chat_stream": (40, 39, HELD_BACK),
    "vllm__chat_stream_include_usage": (40, 38, HELD_BACK),
    "vllm__chat_stream_long_output_1000": (900, 868, HELD_BACK),
    "vllm__stall_intruder_no_chunked_prefill": (4, 3, HELD_BACK),
    "vllm__chat_stream_tools_required": (80, 52, "the tool parser hides the tokens around the arguments"),
    "llama.cpp__chat_stream_n2": (16, 32, "the server reports one of its two choices"),
    "llama.cpp__completions_stream_two_prompts": (10, 20, "the server reports one of its two choices"),
}

#: Time to the first output event, by hand, from the recordings' stamps (ns since the request was sent).
TTFT_BY_HAND: dict[str, int] = {
    "vllm__chat_stream": 48_173_949,  # behind a role event with content ""
    "vllm__chat_stream_tools_required": 238_409_264,  # behind the role and the call's name
    "vllm__chat_stream_continuous_usage": 17_074_274,  # two tokens at once
    "vllm__stall_intruder_no_chunked_prefill": 938_478_430,  # behind an event with text ""
    "vllm__completions_stream": 9_090_246,
    "llama.cpp__chat_stream_long_prompt": 1_447_254_480,  # in one piece with the role event
    "llama.cpp__chat_stream_ping_comments": 3_455_649_047,  # behind two comments
    "llama.cpp__queued_behind_4": 1_053_800_515,
    "llama.cpp__completions_stream_two_prompts": 2_168_272,  # behind ``null``, and of choice 1
    "transformers__chat_stream_long_prompt": 242_265_879,  # behind a role event before the prefill
}


def opened(recording: Recording, *, cap: int = 20_000) -> Tap:
    asked = recording.asked.get("n", 1)
    response = recording.response()
    return open_tap(
        path=recording.path,
        content_type=response.header(b"content-type"),
        content_encoding=response.header(b"content-encoding"),
        ttft_ns=100 * MS,
        tbt_ns=2 * MS,
        t0_ns=0,
        arrivals_cap=cap,
        choices=asked if isinstance(asked, int) else 1,
    )


def played(recording: Recording, pieces: Pieces | None = None) -> Stream:
    """A recording through a tap, with its own stamps."""
    tap, response = opened(recording), recording.response()
    for at_ns, data in response.body if pieces is None else pieces:
        tap.feed(data, at_ns)
    tap.finish(recording.pieces[-1][0], response.complete)
    stream = tap.to_stream()
    assert tap.faults == 0
    return stream


def is_stream(recording: Recording) -> bool:
    return recording.response().header(b"content-type").startswith(b"text/event-stream")


STREAMS = [name for name in names() if is_stream(load(name))]
CHATS = [name for name in STREAMS if load(name).path.endswith(OPENAI)]


def naive_events(recording: Recording) -> list[tuple[int, Any]]:
    """(stamp of the piece that completes it, its JSON) of each data event: naive, and no product code."""
    events, text = [], b""
    for at_ns, data in recording.response().body:
        text += data
        while b"\n\n" in text:
            block, _, text = text.partition(b"\n\n")
            for line in block.split(b"\n"):
                if line.startswith(b"data: ") and line != b"data: [DONE]":
                    events.append((at_ns, json.loads(line[6:])))
    return events


def has_output(event: Any) -> bool:
    for choice in (event or {}).get("choices", ()):
        delta = choice.get("delta") or {}
        calls = [call["function"].get("arguments") for call in delta.get("tool_calls") or ()]
        if choice.get("text") or delta.get("content") or delta.get("reasoning_content") or any(calls):
            return True
    return False


def servers_number(recording: Recording) -> int | None:
    """The server's own count: usage, else timings, else the limit where the answer ran into it."""
    events = [event for _, event in naive_events(recording) if event]
    usage = [event["usage"]["completion_tokens"] for event in events if event.get("usage")]
    timings = [event["timings"]["predicted_n"] for event in events if event.get("timings")]
    reasons = [choice.get("finish_reason") for event in events for choice in event.get("choices", ())]
    lengths = reasons.count("length")
    limit = recording.asked.get("max_tokens")
    if usage:
        return int(usage[-1])
    if timings:
        return int(timings[-1])
    return lengths * limit if lengths and isinstance(limit, int) else None


def test_there_are_as_many_as_were_recorded() -> None:
    assert len(names()) == 105
    assert len(STREAMS) == 72
    assert len(CHATS) == 65


@pytest.mark.parametrize("name", CHATS)
def test_the_count_is_the_servers(name: str) -> None:
    recording = load(name)
    stream = played(recording)
    number = servers_number(recording)
    if name in EXCEPTIONS:
        assert (number, stream.tokens) == EXCEPTIONS[name][:2]
    elif number is not None:
        assert stream.tokens == number
    else:  # cut before the server could tell, or stopped by a word: one token for each event with output
        assert stream.tokens == sum(has_output(event) for _, event in naive_events(recording))
    assert stream.unmeasured is None
    assert stream.broken == 0


@pytest.mark.parametrize("name", [name for name, why in EXCEPTIONS.items() if why[2] is HELD_BACK])
def test_where_events_fall_short_characters_were_held_back(name: str) -> None:
    text = "".join(
        choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        for _, event in naive_events(load(name))
        for choice in event.get("choices", ())
    )
    assert not text.isascii()


@pytest.mark.parametrize("name", CHATS)
def test_ttft_is_the_first_output(name: str) -> None:
    recording = load(name)
    stream = played(recording)
    first = next(at_ns for at_ns, event in naive_events(recording) if has_output(event))
    assert min(int.from_bytes(packed[:8], "little") for packed in stream.choices) == first
    stamps = (stream.first_reasoning_ns, stream.first_answer_ns, stream.first_tool_ns)
    assert min(at_ns for at_ns in stamps if at_ns is not None) == first
    assert stream.first_event_ns == naive_events(recording)[0][0]


@pytest.mark.parametrize(("name", "at_ns"), TTFT_BY_HAND.items())
def test_ttft_by_hand(name: str, at_ns: int) -> None:
    packed = played(load(name)).choices
    assert min(int.from_bytes(each[:8], "little") for each in packed) == at_ns


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
    assert played(recording, tuple(cut)) == whole
    if len(single) < 20_000:
        assert played(recording, tuple(single)) == whole


@pytest.mark.parametrize("name", [name for name in STREAMS if name not in CHATS])
def test_other_apis_are_generic(name: str) -> None:
    recording = load(name)
    stream = played(recording)
    assert stream.dialect == "generic"
    assert stream.tokens == len(naive_events(recording))
    assert stream.finished


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
