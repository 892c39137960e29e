"""Feeding a tap by hand: events from plain objects, stamps in milliseconds.

stream = tapped(chat("Hello"), chat(finish="stop"), DONE)
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable
from typing import Any

from proxy.link import META_TOKENS_BITS, META_TOKENS_MAX, Stream
from proxy.relay.tap import Tap, open_tap

MS = 1_000_000
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
DONE = b"data: [DONE]\n\n"


def opened(
    path: str = CHAT,
    *,
    content_type: bytes = b"text/event-stream; charset=utf-8",
    encoding: bytes = b"",
    ttft_ms: int = 500,
    tbt_ms: int = 50,
    t0_ns: int = 0,
    cap: int = 20_000,
    choices: int = 1,
) -> Tap:
    """A tap as the relay opens it."""
    return open_tap(
        path=path,
        content_type=content_type,
        content_encoding=encoding,
        ttft_ns=ttft_ms * MS,
        tbt_ns=tbt_ms * MS,
        t0_ns=t0_ns,
        arrivals_cap=cap,
        choices=choices,
    )


def event(value: Any, name: str = "") -> bytes:
    """One event with ``value`` as its JSON."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value)}\n\n".encode()


def chat(
    content: Any = None,
    *,
    index: int = 0,
    finish: Any = None,
    choice: dict[str, Any] | None = None,
    **delta: Any,
) -> bytes:
    """A chat chunk with one choice; further arguments go into its delta, ``choice`` into the choice."""
    body = {"index": index, "delta": {"content": content, **delta}, "finish_reason": finish, **(choice or {})}
    return chunk(choices=[body])


def chunk(**fields: Any) -> bytes:
    """A chat chunk with these fields."""
    return event({"id": "chatcmpl-1", "object": "chat.completion.chunk", **fields})


def text(content: Any, *, index: int = 0, finish: Any = None, **choice: Any) -> bytes:
    """A completions chunk with one choice; further arguments go into it."""
    body = {"index": index, "text": content, "finish_reason": finish, **choice}
    return event({"id": "cmpl-1", "object": "text_completion", "choices": [body]})


def fed(tap: Tap, *pieces: bytes, every_ms: int = 10) -> Tap:
    """Feed pieces, one every 10 ms from 10 ms on, and end cleanly."""
    at_ns = 0
    for piece in pieces:
        at_ns += every_ms * MS
        tap.feed(piece, at_ns)
    tap.finish(at_ns)
    assert tap.faults == 0
    return tap


def tapped(*pieces: bytes, path: str = CHAT, choices: int = 1) -> Stream:
    """What a tap says of a stream."""
    return fed(opened(path, choices=choices), *pieces).to_stream()


def arrivals(stream: Stream) -> list[list[tuple[int, int]]]:
    """Per choice: (ms, tokens)."""
    return [
        [(at_ns // MS, meta & META_TOKENS_MAX) for at_ns, meta in pairs(packed)] for packed in stream.choices
    ]


def sizes(stream: Stream) -> list[list[int]]:
    """Per choice: bytes of content."""
    return [[meta >> META_TOKENS_BITS for _, meta in pairs(packed)] for packed in stream.choices]


def pairs(packed: bytes) -> Iterable[tuple[int, int]]:
    """A packed array's pairs."""
    values = array("q", packed)
    return zip(values[::2], values[1::2], strict=True)
