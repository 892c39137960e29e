"""What the fuzzer starts from: the recorded responses, one made by hand for each dialect without a recording,
and a dictionary of the words that open doors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from deploy.fuzz.inputs import CONTENT_TYPES, DIALECTS, ENCODINGS, PATHS, seed
from tests.helpers.recordings import all_recordings

SEED_MAX: Final = 4096
_SSE, _NDJSON, _JSON, _ = CONTENT_TYPES

_EVENTS: Final[dict[str, list[Any]]] = {
    "/api/chat": [
        {"model": "m", "message": {"role": "assistant", "content": "a"}, "done": False},
        {"model": "m", "message": {"role": "assistant", "content": "b", "thinking": "c"}, "done": False},
        {"message": {"tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}, "done": False},
        {
            "message": {"content": ""},
            "done": True,
            "done_reason": "stop",
            "eval_count": 3,
            "prompt_eval_count": 9,
        },
    ],
    "/api/generate": [
        {"model": "m", "response": "a", "done": False},
        {"response": "", "done": True, "done_reason": "length", "eval_count": 1, "prompt_eval_count": 2},
    ],
    "/generate_stream": [
        {"index": 1, "token": {"id": 5, "text": "a", "logprob": -0.5, "special": False}},
        {"index": 2, "token": {"id": 6, "text": "b", "special": False}, "generated_text": "ab"},
        {"token": {"id": 2, "text": "</s>", "special": True}, "details": {"generated_tokens": 3}},
    ],
    "/generate": [
        {
            "text": "a",
            "output_ids": [1],
            "meta_info": {"id": "s", "prompt_tokens": 3, "completion_tokens": 1},
        },
        {"text": "ab", "output_ids": [1, 2], "meta_info": {"prompt_tokens": 3, "completion_tokens": 2}},
        {
            "text": "ab",
            "meta_info": {"completion_tokens": 2, "finish_reason": {"type": "stop", "matched": 2}},
        },
    ],
    "/v2/models/m/generate_stream": [{"model_name": "m", "text_output": "a"}, {"text_output": "b"}],
    "/v1beta/models/gemini:streamGenerateContent": [
        {
            "candidates": [{"content": {"parts": [{"text": "a"}], "role": "model"}, "index": 0}],
            "usageMetadata": {"promptTokenCount": 4, "candidatesTokenCount": 1},
        },
        {
            "candidates": [{"content": {"parts": [{"text": "b", "thought": True}]}, "finishReason": "STOP"}],
            "usageMetadata": {"promptTokenCount": 4, "candidatesTokenCount": 2, "thoughtsTokenCount": 1},
            "responseId": "r",
        },
    ],
}


def seeds() -> Iterator[bytes]:
    """Inputs, each in one plain way and in one that is turned over the other choices."""
    bodies: list[tuple[str, bytes, bytes]] = []
    for recording in all_recordings():
        response = recording.response()
        bodies.append((recording.path, response.header(b"content-type"), response.whole[:SEED_MAX]))
    for path, events in _EVENTS.items():
        lines = [json.dumps(event, separators=(",", ":")).encode() for event in events]
        bodies.append((path, _SSE, b"".join(b"data: %s\n\n" % line for line in lines)))
        bodies.append((path, _NDJSON, b"".join(b"%s\n" % line for line in lines)))
        bodies.append((path, _JSON, lines[-1]))
    for number, (path, content_type, body) in enumerate(bodies):
        plain = seed(path, content_type, body, cuts=3)
        yield plain
        encoding, flags = number % (2 * len(ENCODINGS)), number * 13 % 64
        yield bytes([plain[0], plain[1], encoding, number % 40, flags, number % 11]) + body


def dictionary() -> str:
    """libFuzzer's: one quoted word a line."""
    words = {
        *(
            "data: ",
            "event: error",
            "\n\n",
            "\r\n\r\n",
            "[DONE]",
            ":",
            "\ufeff",
            "\\ud800",
            "1e999",
            "-1",
            "null",
        ),
        *('{"', '":', "[{", "}]", "true", "9007199254740993", '"index":1', '"finish_reason":"stop"'),
        *(part for name in DIALECTS for part in name.split(".")),
        *PATHS,
    }
    for events in _EVENTS.values():
        words |= {f'"{name}":' for event in events for name in _names(event)}
    for name in (
        "choices",
        "delta",
        "content",
        "usage",
        "completion_tokens",
        "logprobs",
        "token_ids",
        "error",
    ):
        words.add(f'"{name}":')
    for name in (
        "reasoning_content",
        "tool_calls",
        "function",
        "arguments",
        "timings",
        "predicted_n",
        "tokens",
    ):
        words.add(f'"{name}":')
    return "".join(f'"{_escaped(word)}"\n' for word in sorted(words))


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _names(inner)


def _escaped(word: str) -> str:
    safe = set(range(0x20, 0x7F)) - set(b'"\\')
    return "".join(chr(byte) if byte in safe else f"\\x{byte:02x}" for byte in word.encode())
