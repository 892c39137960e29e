"""Hugging Face's own client yields the same through Legato as from a TGI server itself; the record is right.

The events are those of https://huggingface.github.io/text-generation-inference/ (``StreamResponse``).  The
client asks the address that it is given: ``/``, the older route, or ``/generate_stream``.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.procs import Legato
from tests.helpers.scripted import Played, event_stream, plays
from tests.helpers.upstream import Upstream, json_response
from tests.helpers.vendors import REQUEST_ID, library, record_of

hub = library("huggingface_hub")
errors = library("huggingface_hub.errors")

#: The last but one is half a character: a token whose text comes with the next.
TEXTS = ["The", " sky", " is", " blue", " –", "", "青", "."]


def event(number: int, text: str, *, special: bool = False, **fields: Any) -> dict[str, Any]:
    token = {"id": 1000 + number, "text": text, "logprob": -0.25, "special": special}
    return {"index": number, "token": token, "generated_text": None, "details": None, **fields}


def whole(reason: str, generated: int, asked: dict[str, Any]) -> dict[str, Any]:
    """What the last event has beside its token; ``details`` only where they were asked for."""
    details = {"finish_reason": reason, "generated_tokens": generated, "input_length": 7, "seed": None}
    told = details if asked["parameters"]["details"] else None
    return {"generated_text": "".join(TEXTS), "details": told}


def answered(asked: dict[str, Any]) -> Played | bytes:
    """Answers as the request asks."""
    events = [event(number, text) for number, text in enumerate(TEXTS, 1)]
    match asked["inputs"]:
        case "long":
            return event_stream([*events[:-1], event(8, TEXTS[-1], **whole("length", 8, asked))])
        case "dies":
            return event_stream([*events[:3], {"error": "Request failed", "error_type": "generation"}])
        case "cut":
            return event_stream(events[:3], cut=True)
        case "busy":
            error = {"error": "Model is overloaded", "error_type": "overloaded"}
            return json_response(error, b"429 Too Many Requests")
        case _:
            return event_stream([*events, event(9, "</s>", special=True, **whole("eos_token", 9, asked))])


@pytest.fixture
def server(upstream: Upstream) -> Upstream:
    upstream.use(plays({"/": answered, "/generate_stream": answered}))
    return upstream


#: name: prompt, path, whether details are asked for; how many parts and which error come; the record
CASES: dict[str, tuple[str, str, bool, int, str | None, dict[str, Any]]] = {
    "to-the-end": (
        "Why?", "/generate_stream", True, 9, None,
        {
            "path": "/generate_stream", "dialect": "tgi.generate", "outcome": "completed", "events": 8,
            "finish_reason": "eos_token", "tokens_observed": 9, "tokens_reported": 9, "output_tokens": 9,
            "tokens_source": "token_ids", "prompt_tokens": 7, "prompt_tokens_source": "usage", "error": None,
            "unmeasured": None, "response_id": None,
        },
    ),
    "on-the-older-route": (
        "Why?", "/", True, 9, None,
        {"path": "/", "dialect": "tgi.generate", "outcome": "completed", "tokens_observed": 9},
    ),
    "as-long-as-it-may-be": (
        "long", "/generate_stream", True, 8, None,
        {"outcome": "completed", "finish_reason": "length", "tokens_observed": 8, "tokens_reported": 8},
    ),
    "without-details": (
        "Why?", "/generate_stream", False, 9, None,
        {"outcome": "completed", "finish_reason": "unstated", "tokens_observed": 9, "tokens_reported": None},
    ),
    "an-error-in-the-middle": (
        "dies", "/generate_stream", True, 3, "GenerationError",
        {"outcome": "upstream_error", "error": "generation", "finish_reason": None, "tokens_observed": 3},
    ),
    "a-cut-stream": (
        "cut", "/generate_stream", True, 3, "RemoteProtocolError",
        {"outcome": "upstream_error", "finish_reason": None, "tokens_observed": 3, "censored": True},
    ),
    "a-busy-server": (
        "busy", "/generate_stream", True, 0, "OverloadedError",
        {"status": 429, "outcome": "overloaded", "stream": False},
    ),
}  # fmt: skip


def yielded(url: str, prompt: str, details: bool, request_id: str) -> tuple[list[Any], str | None]:
    """What the client yields, and the name of the error that it raises in the end."""
    found: list[Any] = []
    client = hub.InferenceClient(url, headers={REQUEST_ID: request_id}, timeout=30, token="test")
    try:
        found.extend(client.text_generation(prompt, details=details, stream=True, max_new_tokens=20))
    except errors.TextGenerationError as error:
        return found, type(error).__name__
    except Exception as error:  # the connection's own
        if type(error).__name__ != "RemoteProtocolError":
            raise
        return found, type(error).__name__
    finally:
        hub.close_session()  # one for all clients of a process, and it keeps its connections
    return found, None


@pytest.mark.parametrize("name", CASES)
def test_the_client_yields_the_same_and_the_record_is_right(
    name: str, server: Upstream, legato: Legato
) -> None:
    prompt, path, details, parts, error, noted = CASES[name]
    direct = yielded(server.url + path, prompt, details, name)
    assert (len(direct[0]), direct[1]) == (parts, error)
    assert yielded(legato.url + path, prompt, details, name) == direct
    record = record_of(legato, name)
    assert {field: record[field] for field in noted} == noted
