"""What the recordings say by a naive reader: whole bodies, JSON, plain loops, and none of the product's code.

for at_ns, event in events(recording):
    for choice, text in outputs(recording, event): ...
"""

from __future__ import annotations

import json
from typing import Any

from tests.helpers.recordings import Recording

#: The end of the path -> the API family.
FAMILIES = {
    "/chat/completions": "chat",
    "/v1/completions": "completions",
    "/responses": "responses",
    "/messages": "messages",
    "/completion": "native",
}


def family(recording: Recording) -> str | None:
    """The API family that was asked; ``None``: none that generates."""
    path = recording.path.partition("?")[0]
    return next((name for end, name in FAMILIES.items() if path.endswith(end)), None)


def is_stream(recording: Recording) -> bool:
    """Whether the answer was an event stream."""
    return recording.response().header(b"content-type").startswith(b"text/event-stream")


def events(recording: Recording) -> list[tuple[int, Any]]:
    """(stamp of the piece that completes it, its JSON) of each data event, ``[DONE]`` left out."""
    found, text = [], b""
    for at_ns, data in recording.response().body:
        text += data
        while b"\n\n" in text:
            block, _, text = text.partition(b"\n\n")
            for line in block.split(b"\n"):
                if line.startswith(b"data: ") and line != b"data: [DONE]":
                    found.append((at_ns, json.loads(line[6:])))
    return found


def outputs(recording: Recording, event: Any) -> list[tuple[int, str]]:
    """(choice, text) of each choice to which the event brings output."""
    read = _OUTPUTS[family(recording) or "chat"]
    return [(choice, text) for choice, text in read(event or {}) if text]


def _chat(event: Any) -> list[tuple[int, str]]:
    found = []
    for choice in event.get("choices", ()):
        delta = choice.get("delta") or {}
        text = (delta.get("content") or "") + (delta.get("reasoning_content") or "")
        for call in delta.get("tool_calls") or ():
            text += call["function"].get("arguments") or ""
        found.append((choice["index"], text))
    return found


def _completions(event: Any) -> list[tuple[int, str]]:
    return [(choice["index"], choice.get("text") or "") for choice in event.get("choices", ())]


def _responses(event: Any) -> list[tuple[int, str]]:
    return [(0, event["delta"])] if event["type"].endswith(".delta") else []


def _messages(event: Any) -> list[tuple[int, str]]:
    delta = event.get("delta") or {}
    return [(0, "".join(delta.get(key) or "" for key in ("text", "thinking", "partial_json")))]


def _native(event: Any) -> list[tuple[int, str]]:
    return [(0, event.get("content") or "")]


_OUTPUTS = {
    "chat": _chat,
    "completions": _completions,
    "responses": _responses,
    "messages": _messages,
    "native": _native,
}


# ---------------------------------------------------------------- the server's own numbers


def reported(recording: Recording) -> list[int]:
    """Every count of output tokens in the answer, in order: usage, else timings, else llama.cpp's field."""
    if is_stream(recording):
        said = [event for _, event in events(recording) if event]
    else:
        try:
            said = [json.loads(recording.response().whole)]
        except ValueError:
            said = []
    said = [event for event in said if isinstance(event, dict)]
    found = []
    for event in said:
        for holder in (event, event.get("response") or {}, event.get("message") or {}):
            usage = holder.get("usage") if isinstance(holder, dict) else None
            for key in ("completion_tokens", "output_tokens"):
                if usage and key in usage:
                    found.append(usage[key])
    if found:
        return found
    timed = [event["timings"]["predicted_n"] for event in said if event.get("timings")]
    return timed or [event["tokens_predicted"] for event in said if "tokens_predicted" in event]


def servers_number(recording: Recording) -> int | None:
    """The last of them: the server's own count, as far as the recording carries one."""
    found = reported(recording)
    return found[-1] if found else None
