"""Ollama's lines, as https://docs.ollama.com/api/generate and https://docs.ollama.com/api/chat show them."""

from __future__ import annotations

import json
from typing import Any

from proxy.link import Stream
from tests.helpers.taps import fed, opened

HEAD = {"model": "gemma3", "created_at": "2025-10-26T17:15:24.097767Z"}
COUNTS: dict[str, Any] = {
    "total_duration": 5043500667,
    "load_duration": 5025959,
    "prompt_eval_count": 26,
    "eval_count": 4,
}
LOGPROB = {"token": "t", "logprob": -0.1, "top_logprobs": []}


def generate(response: Any = "", **fields: Any) -> bytes:
    return line({**HEAD, "response": response, "done": False, **fields})


def chat(content: Any = "", message: dict[str, Any] | None = None, **fields: Any) -> bytes:
    body = {"role": "assistant", "content": content, **(message or {})}
    return line({**HEAD, "message": body, "done": False, **fields})


def line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def tapped(*lines: bytes, path: str = "/api/generate") -> Stream:
    return fed(opened(path, content_type=b"application/x-ndjson"), *lines).to_stream()


def call(arguments: Any) -> dict[str, Any]:
    return {"function": {"index": 0, "name": "weather", "arguments": arguments}}
