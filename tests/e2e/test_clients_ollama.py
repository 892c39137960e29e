"""Ollama's own client yields the same through Legato as from the server itself, and the record is right.

The lines are those of https://docs.ollama.com/api/generate, https://docs.ollama.com/api/chat and
https://docs.ollama.com/api/errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.helpers.procs import Legato
from tests.helpers.scripted import Played, line_stream, plays
from tests.helpers.upstream import Upstream, json_response
from tests.helpers.vendors import REQUEST_ID, library, record_of

ollama = library("ollama")

WORDS = ["The", " sky", " is", " blue", " –", " 青", "い", ".", " ", "👋"]
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
COUNTS = {"total_duration": 5043500667, "load_duration": 5025959, "prompt_eval_count": 26,
          "prompt_eval_duration": 325953000, "eval_count": 11, "eval_duration": 4709213000}  # fmt: skip


def line(**fields: Any) -> dict[str, Any]:
    return {"model": "gemma3", "created_at": "2025-10-26T17:15:24.097767Z", "done": False, **fields}


def said(content: str, **message: Any) -> dict[str, Any]:
    return line(message={"role": "assistant", "content": content, **message})


def end(reason: str, **fields: Any) -> dict[str, Any]:
    return line(**fields, **COUNTS) | {"done": True, "done_reason": reason}


def generated(asked: dict[str, Any]) -> Played | bytes:
    """Answers as the request asks."""
    if asked["model"] == "unknown":
        return json_response({"error": "model 'unknown' not found"}, b"404 Not Found")
    lines = [line(response=word) for word in WORDS]
    if asked["model"] == "dies":
        return line_stream([*lines[:3], {"error": "an error was encountered while running the model"}])
    if asked["model"] == "cut":
        return line_stream(lines[:3], cut=True)
    return line_stream([*lines, end("stop", response="", context=[1, 2, 3])])


def chatted(asked: dict[str, Any]) -> Played:
    if asked.get("tools"):
        call = {"function": {"index": 0, "name": "weather", "arguments": {"city": "Zürich", "days": 3}}}
        lines = [said("", thinking=word) for word in ("The", " user", " asks")]
        lines += [said("", tool_calls=[call]), end("stop", message={"role": "assistant", "content": ""})]
        return line_stream(lines)
    logprobs = [{"token": "a", "logprob": -0.25, "top_logprobs": []}]
    lines = [said(word) | {"logprobs": logprobs * (1 + (word == " 青"))} for word in WORDS]
    return line_stream([*lines, end("length", message={"role": "assistant", "content": ""})])


@pytest.fixture
def server(upstream: Upstream) -> Upstream:
    upstream.use(plays({"/api/generate": generated, "/api/chat": chatted}))
    return upstream


Ask = Callable[[Any], Any]


def yielded(url: str, ask: Ask, request_id: str) -> tuple[list[dict[str, Any]], str | None]:
    """What the client yields, and the error that it raises in the end."""
    found: list[dict[str, Any]] = []
    with ollama.Client(host=url, headers={REQUEST_ID: request_id}, timeout=30) as client:
        try:
            found.extend(part.model_dump() for part in ask(client))
        except ollama.ResponseError as error:
            return found, f"{error.status_code} {error.error}"
        except httpx.RemoteProtocolError as error:
            return found, type(error).__name__
    return found, None


def generate(model: str) -> Ask:
    return lambda client: client.generate(model=model, prompt="Why is the sky blue?", stream=True)


def chat(**more: Any) -> Ask:
    messages = [{"role": "user", "content": "How is the weather?"}]
    return lambda client: client.chat(model="gemma3", messages=messages, stream=True, **more)


CASES: dict[str, tuple[Ask, int, str | None, dict[str, Any]]] = {
    # name: what is asked, how many parts and which error come, what the record says
    "generate": (
        generate("gemma3"),
        11,
        None,
        {
            "path": "/api/generate", "dialect": "ollama.generate", "model": "gemma3", "status": 200,
            "outcome": "completed", "finish_reason": "stop", "tokens_observed": 10, "tokens_reported": 11,
            "output_tokens": 11, "tokens_source": "events+usage", "prompt_tokens": 26, "events": 10,
            "prompt_tokens_source": "usage", "unmeasured": None, "error": None, "censored": False,
        },
    ),
    "chat-with-logprobs": (
        chat(),
        11,
        None,
        {
            "path": "/api/chat", "dialect": "ollama.chat", "outcome": "completed", "finish_reason": "length",
            "tokens_observed": 11, "tokens_reported": 11, "tokens_source": "logprobs", "events": 10,
            "first_tool_s": None, "first_reasoning_s": None, "prompt_tokens": 26,
        },
    ),
    "chat-with-a-tool": (
        chat(tools=[TOOL]),
        5,
        None,
        {
            "dialect": "ollama.chat", "outcome": "completed", "finish_reason": "stop", "events": 4,
            "tokens_observed": 4, "tokens_reported": 11, "first_answer_s": None,
        },
    ),
    "an-error-in-the-middle": (
        generate("dies"),
        3,
        "-1 an error was encountered while running the model",
        {
            "dialect": "ollama.generate", "outcome": "upstream_error", "finish_reason": None,
            "tokens_observed": 3, "tokens_reported": None, "error": "error", "unmeasured": None,
        },
    ),
    "a-cut-stream": (
        generate("cut"),
        3,
        "RemoteProtocolError",
        {"outcome": "upstream_error", "finish_reason": None, "tokens_observed": 3, "censored": True},
    ),
    "a-model-that-is-not-there": (
        generate("unknown"),
        0,
        "404 model 'unknown' not found",
        {"status": 404, "outcome": "rejected", "tokens_observed": None, "stream": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_client_yields_the_same_and_the_record_is_right(
    name: str, server: Upstream, legato: Legato
) -> None:
    ask, parts, error, noted = CASES[name]
    direct = yielded(server.url, ask, name)
    assert (len(direct[0]), direct[1]) == (parts, error)
    assert yielded(legato.url, ask, name) == direct
    record = record_of(legato, name)
    assert {field: record[field] for field in noted} == noted
