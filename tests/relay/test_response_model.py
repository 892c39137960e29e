"""The model as the response names it: of every family, streamed or not, bounded and printable."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from proxy.relay.body import BODY_LIMIT
from proxy.relay.dialects.registry import sniff
from tests.helpers.played import played
from tests.helpers.recordings import load, names
from tests.helpers.taps import CHAT, DONE, MS, opened

_NAMED = re.compile(rb'"model":\s*"([^"]+)"')


def sse(*values: object) -> list[bytes]:
    return [b"data: " + json.dumps(value).encode() + b"\n\n" for value in values]


def chat(**more: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": "a"}}], **more}


def streamed(pieces: list[bytes], path: str = CHAT, kind: bytes = b"text/event-stream") -> str | None:
    tap = opened(path, content_type=kind)
    for number, piece in enumerate(pieces):
        tap.feed(piece, number * MS)
    tap.finish(len(pieces) * MS)
    assert tap.faults == 0
    return tap.to_stream().model


def whole(value: object, path: str = CHAT) -> str | None:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return streamed([raw], path, b"application/json")


@pytest.mark.parametrize("name", names())
def test_recordings(name: str) -> None:
    recording = load(name)
    told = _NAMED.search(recording.response().whole)
    listed = recording.path == "/v1/models"  # a list of models is no answer of one
    assert played(recording).model == (None if told is None or listed else told[1].decode())


STREAMS: dict[str, tuple[str, list[Any]]] = {
    "chat": (CHAT, [chat(id="c", model="m")]),
    "completions": ("/v1/completions", [{"id": "c", "choices": [{"text": "a"}], "model": "m"}]),
    "responses": ("/v1/responses", [{"type": "response.created", "response": {"id": "r", "model": "m"}}]),
    "messages": ("/v1/messages", [{"type": "message_start", "message": {"id": "i", "model": "m"}}]),
    "gemini": (
        "/v1beta/models/x:streamGenerateContent",
        [{"candidates": [{"content": {"parts": [{"text": "a"}]}}], "modelVersion": "m", "responseId": "r"}],
    ),
    "sglang": ("/generate", [{"text": "a", "meta_info": {"id": "i", "completion_tokens": 1}, "model": "m"}]),
    "tgi": ("/generate_stream", [{"token": {"id": 1, "text": "a"}, "generated_text": None, "model": "m"}]),
    "triton": ("/v2/models/x/generate_stream", [{"model_name": "m", "text_output": "a"}]),
    "llama.cpp, at its end": (
        "/completion",
        [
            *({"content": "a", "stop": False, "tokens_predicted": n, "id_slot": 0} for n in range(1, 20)),
            {"content": "", "stop": True, "tokens_predicted": 19, "id_slot": 0, "model": "m"},
        ],
    ),
    "llama.cpp, with an odd field": (
        "/completion",
        [
            *({"content": "a", "stop": False, "tokens_predicted": n, "id_slot": 0} for n in range(1, 20)),
            {"content": "", "stop": True, "tokens_predicted": "19", "id_slot": 0, "model": "m"},
        ],
    ),
    "unknown": ("/other", [{"whatever": 1, "model": "m"}]),
    "not in the first event": (CHAT, [chat(id="", model=""), chat(id="c", model="m"), chat(model="other")]),
    "in an event without an id": (CHAT, [chat(model="m"), chat(id="c", model="other")]),
    "a fallback in mid-stream": (CHAT, [chat(id="c", model="m"), chat(id="c", model="other")]),
}


@pytest.mark.parametrize(("path", "events"), STREAMS.values(), ids=STREAMS)
def test_streams(path: str, events: list[Any]) -> None:
    assert streamed([*sse(*events), DONE], path) == "m"


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_ollamas_lines(path: str) -> None:
    line = {"model": "m", "response": "a", "message": {"content": "a"}, "done": False}
    assert streamed([json.dumps(line).encode() + b"\n"] * 3, path, b"application/x-ndjson") == "m"


BODIES: dict[str, tuple[Any, str | None]] = {
    "most": ({"id": "c", "model": "m"}, "m"),
    "gemini": ({"candidates": [], "modelVersion": "m"}, "m"),
    "triton": ({"model_name": "m", "text_output": "a"}, "m"),
    "a list": ([{"a": 1}, {"model": "m"}], "m"),
    "within something else": ({"a": {"model": "m"}}, None),
    "no text": ({"model": {"name": "m"}, "model_name": 7}, None),
    "empty": ({"model": ""}, None),
    "no JSON": (b'{"model": "m"', None),
    "a large one's head": (b'{"model":"m","a":"' + b"x" * BODY_LIMIT + b'"}', "m"),
    "a large one's end": (b'{"a":"' + b"x" * BODY_LIMIT + b'","model":"m"}', "m"),
    "within a large one": (b'{"a":"' + b"x" * BODY_LIMIT + b'","b":{"model":"m"}}', None),
}


@pytest.mark.parametrize(("body", "model"), BODIES.values(), ids=BODIES)
def test_bodies(body: Any, model: str | None) -> None:
    assert whole(body) == model


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("org/Model 7B (Q4_K_M).gguf", "org/Model 7B (Q4_K_M).gguf"),
        ("模型", "模型"),
        ("m" * 257, "m" * 256),
        ("a\nb\x00\x1b[31m", "a\N{REPLACEMENT CHARACTER}b" + "\N{REPLACEMENT CHARACTER}" * 2 + "[31m"),
        (7, None),
        (None, None),
        (["m"], None),
    ],
)
def test_a_name_is_bounded_and_printable(sent: object, kept: str | None) -> None:
    assert whole({"model": sent}) == kept
    assert streamed(sse(chat(id="c", model=sent))) == kept
    created = {"type": "response.created", "response": {"id": "r", "model": sent}}
    assert streamed(sse(created), "/v1/responses") == kept


def test_a_name_that_cannot_be_read_costs_no_id() -> None:
    event = b'{"type":"message_start","message":{"id":"msg_1","model":"\xff"}}'
    assert sniff(event)[1:] == ("msg_1", False, None)
