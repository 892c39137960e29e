"""Google's own client yields the same through Legato as from the server itself, and the record is right.

The events are those of https://ai.google.dev/api/generate-content, as the Gemini API sends them: one line of
data each, CRLF, usage on every one.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers.procs import Legato
from tests.helpers.scripted import Played, event_stream, plays
from tests.helpers.upstream import Upstream, json_response
from tests.helpers.vendors import REQUEST_ID, library, record_of

genai = library("google.genai")

PIECES = [
    ("The sky", 2),
    (" is blue because", 5),
    (" light – all of it – is scattered", 14),
    (" 青い👋.", 19),
]
WEATHER = {"name": "weather", "args": {"city": "Zürich", "days": 3}}
DIED = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}


def crlf(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\r\n\r\n"


def counts(answer: int, thoughts: int) -> dict[str, Any]:
    told = {"promptTokenCount": 8, "totalTokenCount": 8 + answer + thoughts,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 8}]}  # fmt: skip
    told |= {"candidatesTokenCount": answer} if answer else {}
    return told | ({"thoughtsTokenCount": thoughts} if thoughts else {})


def event(part: dict[str, Any], answer: int, thoughts: int = 0, finish: str | None = None) -> bytes:
    candidate: dict[str, Any] = {"content": {"parts": [part], "role": "model"}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    return crlf({"candidates": [candidate], "usageMetadata": counts(answer, thoughts),
                 "modelVersion": "gemini-2.5-flash", "responseId": "b1nZaMfFF6"})  # fmt: skip


def said(thoughts: int = 0) -> list[bytes]:
    events = [event({"text": text}, answer, thoughts) for text, answer in PIECES]
    return [*events, event({"text": ""}, 19, thoughts, "STOP")]


def blocked() -> bytes:
    feedback = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}
    return crlf({**feedback, "usageMetadata": counts(0, 0), "modelVersion": "gemini-2.5-flash"})


PLAYED: dict[str, Played | bytes] = {
    "plain": event_stream(said()),
    "hidden": event_stream(said(thoughts=1000)),
    "shown": event_stream([event({"text": "Hm, why?", "thought": True}, 0, 60), *said(thoughts=60)]),
    "calls": event_stream(
        [
            event({"text": "Let me look."}, 4),
            event({"functionCall": WEATHER, "thoughtSignature": "c2ln"}, 16),
            event({"functionCall": WEATHER}, 28, finish="STOP"),
        ]
    ),
    "blocked": event_stream([blocked()]),
    "dies": event_stream([*said()[:2], crlf(DIED)]),
    "cut": event_stream(said()[:2], cut=True),
    "busy": json_response(
        {"error": {"code": 429, "message": "Quota exceeded.", "status": "RESOURCE_EXHAUSTED"}},
        b"429 Too Many Requests",
    ),
}

#: name: how many parts and which error come, and what the record says
EXPECTED: dict[str, tuple[int, str | None, dict[str, Any]]] = {
    "plain": (
        5,
        None,
        {
            "path": "/v1beta/models/plain:streamGenerateContent", "dialect": "gemini.generate",
            "outcome": "completed", "finish_reason": "STOP", "response_id": "b1nZaMfFF6", "events": 4,
            "tokens_observed": 19, "tokens_reported": 19, "output_tokens": 19, "prompt_tokens": 8,
            "tokens_source": "running_usage", "unmeasured": None, "error": None,
        },
    ),
    "hidden": (
        5,
        None,
        {
            "outcome": "completed", "events": 4, "tokens_observed": 19, "tokens_reported": 1019,
            "tokens_source": "running_usage", "first_reasoning_s": None,
        },
    ),
    "shown": (
        6,
        None,
        {"outcome": "completed", "events": 5, "tokens_observed": 79, "tokens_reported": 79},
    ),
    "calls": (
        3,
        None,
        {"outcome": "completed", "finish_reason": "STOP", "events": 3, "tokens_observed": 28},
    ),
    "blocked": (
        1,
        None,
        {"finish_reason": "PROHIBITED_CONTENT", "events": 0, "tokens_observed": 0, "error": None},
    ),
    "dies": (
        2,
        "503 UNAVAILABLE",
        {"outcome": "upstream_error", "error": "UNAVAILABLE", "finish_reason": None, "tokens_observed": 5},
    ),
    "cut": (
        2,
        "RemoteProtocolError",
        {"outcome": "upstream_error", "finish_reason": None, "tokens_observed": 5, "censored": True},
    ),
    "busy": (0, "429 RESOURCE_EXHAUSTED", {"status": 429, "outcome": "overloaded", "stream": False}),
}  # fmt: skip


@pytest.fixture
def server(upstream: Upstream) -> Upstream:
    upstream.use(plays({f"/v1beta/models/{name}:streamGenerateContent": it for name, it in PLAYED.items()}))
    return upstream


def yielded(url: str, name: str) -> tuple[list[dict[str, Any]], str | None]:
    """What the client yields of the stream ``name``, and the error that it raises in the end."""
    options = {
        "base_url": url, "api_version": "v1beta", "headers": {REQUEST_ID: name}, "timeout": 10_000
    }  # fmt: skip
    found: list[dict[str, Any]] = []
    with genai.Client(api_key="test", vertexai=False, http_options=options) as client:
        try:
            for part in client.models.generate_content_stream(model=name, contents="Why is the sky blue?"):
                # All that the API said; the headers are the server's, the date is Legato's own.
                found.append(part.model_dump(exclude={"sdk_http_response"}))
        except genai.errors.APIError as error:
            return found, f"{error.code} {error.status}"
        except Exception as error:  # the connection's own
            if type(error).__name__ != "RemoteProtocolError":
                raise
            return found, type(error).__name__
    return found, None


@pytest.mark.parametrize("name", EXPECTED)
def test_the_client_yields_the_same_and_the_record_is_right(
    name: str, server: Upstream, legato: Legato
) -> None:
    parts, error, noted = EXPECTED[name]
    direct = yielded(server.url, name)
    assert (len(direct[0]), direct[1]) == (parts, error)
    assert yielded(legato.url, name) == direct
    record = record_of(legato, name)
    assert {field: record[field] for field in noted} == noted
