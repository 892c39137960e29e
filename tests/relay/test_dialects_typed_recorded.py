"""Recorded messages and responses, whose events tell their type, against a naive reader."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from proxy.link import Stream, Usage
from tests.helpers.meanings import events_of
from tests.helpers.recordings import Recording, load, names
from tests.helpers.taps import DONE, event, opened, pairs, tapped

NAMES = {"/v1/messages": "anthropic.messages", "/v1/responses": "openai.responses"}


class Sent(NamedTuple):
    """What a recorded server sent: all were asked for 24 tokens; ``outputs`` are the events that carry some.

    They are fewer than tokens: halves of characters are held back, and engines hand on several at once.
    """

    outputs: int
    finish: str
    usage: Usage


RECORDED = {
    "vllm__messages_stream": Sent(22, "max_tokens", Usage(20, 24)),
    "llama.cpp__messages_stream": Sent(23, "max_tokens", Usage(20, 24, 7)),
    "vllm__responses_stream": Sent(22, "max_output_tokens", Usage(15, 24, 0, 0)),
    "llama.cpp__responses_stream": Sent(20, "completed", Usage(15, 24, 7)),
    "llama.cpp-b10434__responses_stream": Sent(24, "completed", Usage(15, 24, 7)),
    "transformers__responses_nonstream": Sent(22, "completed", Usage(15, 24, 0, 0)),  # streams unasked
}


def is_stream(recording: Recording) -> bool:
    kind = recording.response().header(b"content-type")
    return recording.path in NAMES and kind.startswith(b"text/event-stream")


def played(recording: Recording) -> Stream:
    """What a tap says of the recorded pieces at their recorded moments."""
    response = recording.response()
    tap = opened(recording.path, content_type=response.header(b"content-type"))
    for at_ns, data in response.body:
        tap.feed(data, at_ns)
    tap.finish(recording.pieces[-1][0], response.complete)
    assert tap.faults == 0
    return tap.to_stream()


def has_output(value: Any) -> bool:
    if value["type"] == "content_block_delta":
        return bool(value["delta"]["text"])
    return value["type"] == "response.output_text.delta" and bool(value["delta"])


def test_every_recorded_stream_is_in_the_table() -> None:
    assert {name for name in names() if is_stream(load(name))} == set(RECORDED)


@pytest.mark.parametrize(("name", "sent"), RECORDED.items())
def test_a_recording_as_a_naive_reader_sees_it(name: str, sent: Sent) -> None:
    recording = load(name)
    seen = events_of(recording)
    stamps = [at_ns for at_ns, value in seen if has_output(value)]
    stream = played(recording)
    assert stream.dialect == NAMES[recording.path]
    assert stream.tokens == stream.events == len(stamps) == sent.outputs
    assert [at_ns for at_ns, _ in pairs(stream.choices[0])] == stamps
    assert (stream.first_event_ns, stream.first_answer_ns) == (seen[0][0], stamps[0])
    assert (stream.finished, stream.finish_reason, stream.error) == (True, sent.finish, None)
    assert (stream.usage, stream.tokens_source) == (sent.usage, "events")
    assert (stream.broken, stream.unmeasured) == (0, None)
    first = seen[0][1]
    assert stream.response_id == (first.get("message") or first.get("response"))["id"]


#: Time to the first output event, by hand, from the recordings' stamps (ns since the request was sent).
TTFT_BY_HAND: dict[str, int] = {
    "vllm__messages_stream": 16_628_534,  # in one piece with message_start
    "llama.cpp__messages_stream": 5_549_789,  # the same
    "vllm__responses_stream": 40_997_047,  # 33 ms behind response.created
    "llama.cpp__responses_stream": 5_015_489,  # in one piece with response.created
    "llama.cpp-b10434__responses_stream": 3_192_231,  # the same
    "transformers__responses_nonstream": 89_178_052,  # 74 ms behind response.created
}


@pytest.mark.parametrize(("name", "at_ns"), TTFT_BY_HAND.items())
def test_ttft_by_hand(name: str, at_ns: int) -> None:
    assert played(load(name)).first_answer_ns == at_ns


@pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])
@pytest.mark.parametrize("name", RECORDED)
def test_neither_the_path_nor_the_names_nor_a_stray_done_matter(name: str, named: bool) -> None:
    recording = load(name)
    events = [event(value, value["type"] if named else "") for _, value in events_of(recording)]
    sent = RECORDED[name]
    stream = tapped(*events, DONE, path="/rewritten")
    assert (stream.dialect, stream.tokens) == (NAMES[recording.path], sent.outputs)
    assert (stream.finished, stream.finish_reason, stream.usage) == (True, sent.finish, sent.usage)
