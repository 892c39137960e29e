"""Anthropic messages, as Anthropic, vLLM, llama.cpp and others stream them.

An event's own ``type`` says what it is; the name beside it repeats it.  Output is non-empty text of a
``text_delta`` or ``thinking_delta``, or non-empty ``partial_json`` of an ``input_json_delta``; also what a
``content_block_start`` brings already, which clients show all the same.  Signatures, citations, pings and
the frame of messages and blocks are none.  Blocks are parts of one answer, not choices: all is choice 0's.

``message_delta`` brings the stop reason and what was used in all; the ``output_tokens`` of ``message_start``
are a place holder.  The prompt is what was read, what came from the cache and what was written to it.

Sources: Anthropic's documentation, "Streaming messages" and "Messages" (API reference); recordings of vLLM
0.32 and llama.cpp b11434.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

import msgspec
from msgspec import Raw, Struct

from proxy.link import Usage
from proxy.relay.dialects.base import (
    ANSWER,
    EVENTS,
    RANKS,
    REASONING,
    TOOL,
    Fields,
    Output,
    Reading,
    SomeText,
    count,
    error_word,
    inner_id,
    inner_model,
    loose,
    plainly,
    utf8_size,
    word,
)
from proxy.relay.dialects.openai import as_dict, as_text

#: What only this family sends; ``ping`` and ``error`` others send too.
_PROOFS: Final = frozenset(
    {
        "message_start",
        "message_delta",
        "message_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
    }
)
_NOTHING: Final = Raw(b"{}")
_NO_INPUT: Final = (b"{}", b"[]", b"null", b'""')
_BLANKS: Final = b" \t\r\n"
_KNOWN: Final = _PROOFS | {"ping", "keepalive"}


class Details(Struct, gc=False):
    thinking_tokens: int | None = None


class ReportedUsage(Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    output_tokens_details: Details | None = None


class Message(Struct, gc=False):
    usage: ReportedUsage | None = None


class Block(Struct, gc=False):
    """``input``: a tool's arguments, as they stand there; the beginning of a call has none yet: ``{}``."""

    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    input: Raw = _NOTHING


class Delta(Struct, gc=False):
    """Of a content block, or (``stop_reason``) of the message."""

    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class Event(Struct, gc=False):
    type: str | None = None
    delta: Delta | None = None
    content_block: Block | None = None
    message: Message | None = None
    usage: ReportedUsage | None = None
    error: object = None


class _PlainDelta(Struct, gc=False):
    type: Literal["text_delta"]
    text: SomeText


class _Plain(Struct, gc=False):
    type: Literal["content_block_delta"]
    delta: _PlainDelta


_decode: Final = msgspec.json.Decoder(Event).decode
_decode_plain: Final = msgspec.json.Decoder(_Plain).decode


class AnthropicMessages:
    """See the module."""

    name = "anthropic.messages"
    counted_end = False
    plain_rank = RANKS[EVENTS]
    decode = staticmethod(_decode)

    @staticmethod
    def serves(path: str) -> bool:
        """By its end, so that a base path in front of it does not matter."""
        return path.endswith("/messages")

    @staticmethod
    def shows(fields: Fields) -> bool:
        """A ``type`` that no other family has."""
        kind = plainly(fields, "type")
        return isinstance(kind, str) and kind in _PROOFS

    @staticmethod
    def response_id(fields: Fields) -> str | None:
        """``message.id``, on the first event."""
        return inner_id(fields, "message")

    @staticmethod
    def model(fields: Fields) -> str | None:
        """``message.model``, beside the id."""
        return inner_model(fields, "message")

    @staticmethod
    def quick(data: bytes) -> int:
        """Bytes of a text delta."""
        text = _decode_plain(data).delta.text
        return len(text) if text.isascii() else utf8_size(text)

    @staticmethod
    def plain(event: Event) -> int:
        """Bytes of a text delta."""
        delta = event.delta
        if delta is None or event.type != "content_block_delta" or delta.type != "text_delta":
            return 0
        text = delta.text
        if not text:
            return 0
        return len(text) if text.isascii() else utf8_size(text)

    @staticmethod
    def read(event: Event) -> Reading | None:
        """Everything that an event may carry."""
        name = event.type
        if name == "content_block_delta":
            return Reading([_output_of(event.delta or Delta())])
        if name == "content_block_start":
            return Reading([_begun(event.content_block or Block())])
        if name == "message_start":
            usage = None if event.message is None else event.message.usage
            return Reading(usage=None if usage is None else _usage_of(usage, started=True))
        if name == "message_delta":
            reading = Reading(usage=None if event.usage is None else _usage_of(event.usage))
            if event.delta is not None and event.delta.stop_reason:
                reading.outputs = [Output(0, finish=word(event.delta.stop_reason, "other"))]
            return reading
        if name == "error" or (name is None and event.error is not None):
            return Reading(error=error_word(event.error))
        return Reading() if name in _KNOWN else None

    @staticmethod
    def mend(data: bytes) -> Event | None:
        """Field by field, what can be understood; ``None``: no JSON."""
        try:
            return _loose_event(as_dict(loose(data)))
        except (ValueError, RecursionError):
            return None


def _output_of(delta: Delta) -> Output:
    if delta.type == "text_delta":
        return _output(ANSWER, delta.text)
    if delta.type == "thinking_delta":
        return _output(REASONING, delta.thinking)
    if delta.type == "input_json_delta":
        return _output(TOOL, delta.partial_json)
    return Output(0)


def _begun(block: Block) -> Output:
    """What a block starts with; nearly always nothing."""
    if block.type == "text":
        return _output(ANSWER, block.text)
    if block.type == "thinking":
        return _output(REASONING, block.thinking)
    if (block.type or "").endswith("tool_use"):
        given = bytes(block.input)
        return Output(0) if given.translate(None, _BLANKS) in _NO_INPUT else Output(0, TOOL, len(given))
    return Output(0)


def _output(kind: int, text: str | None) -> Output:
    return Output(0, kind, utf8_size(text)) if text else Output(0)


def _usage_of(usage: ReportedUsage, started: bool = False) -> Usage:
    """What was used.  ``started``: before any output, whose number is not known yet."""
    fresh, cached = count(usage.input_tokens), count(usage.cache_read_input_tokens)
    written, details = count(usage.cache_creation_input_tokens), usage.output_tokens_details
    return Usage(
        prompt=None if fresh is None else count(fresh + (cached or 0) + (written or 0)),
        output=None if started else count(usage.output_tokens),
        cached=cached,
        reasoning=None if details is None else count(details.thinking_tokens),
    )


# ---------------------------------------------------------------- events with fields of other types


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _loose_event(value: dict[str, Any]) -> Event:
    message, block = value.get("message"), value.get("content_block")
    return Event(
        type=_text(value.get("type")),
        delta=_loose_delta(value.get("delta")),
        content_block=_loose_block(block) if isinstance(block, dict) else None,
        message=Message(_loose_usage(message.get("usage"))) if isinstance(message, dict) else None,
        usage=_loose_usage(value.get("usage")),
        error=value.get("error"),
    )


def _loose_delta(value: object) -> Delta | None:
    if not isinstance(value, dict):
        return None
    return Delta(
        _text(value.get("type")),
        as_text(value.get("text")),
        as_text(value.get("thinking")),
        _loose_json(value.get("partial_json")),
        _text(value.get("stop_reason")),
    )


def _loose_block(value: dict[str, Any]) -> Block:
    given = _loose_json(value.get("input"))
    return Block(
        _text(value.get("type")),
        as_text(value.get("text")),
        as_text(value.get("thinking")),
        Raw(given.encode("utf-8", "surrogatepass")) if given else _NOTHING,
    )


def _loose_json(value: object) -> str | None:
    """Text, also of arguments that a server has parsed already."""
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")) if value else None
    return _text(value)


def _loose_usage(value: object) -> ReportedUsage | None:
    if not isinstance(value, dict):
        return None
    return ReportedUsage(
        count(value.get("input_tokens")),
        count(value.get("output_tokens")),
        count(value.get("cache_read_input_tokens")),
        count(value.get("cache_creation_input_tokens")),
        Details(count(as_dict(value.get("output_tokens_details")).get("thinking_tokens"))),
    )
