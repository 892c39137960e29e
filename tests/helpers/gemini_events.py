"""Gemini's events, as https://ai.google.dev/api/generate-content describes and the Gemini API sends them."""

from __future__ import annotations

from typing import Any

from proxy.link import Stream
from tests.helpers.taps import event, fed, opened

CALL = {"name": "weather", "args": {"city": "Bern"}}
PATH = "/v1beta/models/gemini-2.5-flash:streamGenerateContent"


def counts(answer: int | None = None, thoughts: int | None = None, prompt: int = 8) -> dict[str, Any]:
    """``usageMetadata``: what is zero is left out, as the server does."""
    told = {"promptTokenCount": prompt, "candidatesTokenCount": answer, "thoughtsTokenCount": thoughts}
    return {
        **{name: number for name, number in told.items() if number is not None},
        "totalTokenCount": prompt + (answer or 0) + (thoughts or 0),
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt}],
    }


def candidate(*parts: Any, index: int = 0, finish: Any = None) -> dict[str, Any]:
    found = {"content": {"parts": list(parts), "role": "model"}, "index": index}
    return found if finish is None else {**found, "finishReason": finish}


def body(*candidates: dict[str, Any], usage: Any = None, **fields: Any) -> dict[str, Any]:
    told = {} if usage is None else {"usageMetadata": usage}
    named = {"modelVersion": "gemini-2.5-flash", "responseId": "b1nZaMfFF6"}
    return {"candidates": list(candidates), **told, **named, **fields}


def text(content: str, usage: Any = None, finish: Any = None) -> bytes:
    """An event with one text, as it is sent: with CRLF."""
    return crlf(body(candidate({"text": content}, finish=finish), usage=usage))


def crlf(value: Any) -> bytes:
    return event(value).replace(b"\n\n", b"\r\n\r\n")


def tapped(*pieces: bytes, path: str = PATH, choices: int = 1) -> Stream:
    return fed(opened(path, choices=choices), *pieces).to_stream()
