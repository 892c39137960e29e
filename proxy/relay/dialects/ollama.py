"""Ollama's own two APIs, one JSON object a line: ``/api/generate`` and ``/api/chat``.

Output is a non-empty ``response`` (generate) or ``message.content`` (chat), ``thinking``, each tool call
(it comes whole, its arguments parsed already), and a generated image, whose bytes are not text and count as
none.  Empty lines before a model has been loaded, an image's progress and the usual last line are none.
The line with ``done`` ends it: ``done_reason`` tells why (older servers do not: ``unstated``), ``eval_count``
and ``prompt_eval_count`` are the request's counts.  A line mostly is one token; ``logprobs`` tell how many it
is, also where a tag or a tool call is being read and nothing is shown yet.  Errors are
``{"error": "message"}`` and have no type.

Sources: https://docs.ollama.com/api/generate, https://docs.ollama.com/api/chat,
https://docs.ollama.com/api/streaming, https://docs.ollama.com/api/errors ("Errors that occur while
streaming"), and the types of the official Python client (0.6).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from proxy.link import Usage
from proxy.relay.dialects.base import (
    ANSWER,
    EVENTS,
    LOGPROBS,
    RANKS,
    REASONING,
    TOOL,
    Empty,
    Fields,
    NoItems,
    Output,
    Reading,
    SomeText,
    count,
    error_word,
    loose,
    model_name,
    plainly,
    utf8_size,
    word,
)
from proxy.relay.dialects.jsonsize import json_size
from proxy.relay.dialects.openai import as_dict, as_list

#: The finish of a stream whose server ended it without saying why.
_UNSTATED: Final = "unstated"


class Line(Struct, gc=False):
    """One line of either API.  The types are looked at when it is read: one odd field spoils no other."""

    response: object = None
    message: object = None
    thinking: object = None
    tool_calls: object = None
    image: object = None
    logprobs: object = None
    done: object = None
    done_reason: object = None
    eval_count: object = None
    prompt_eval_count: object = None
    error: object = None


_decode: Final = msgspec.json.Decoder(Line).decode


class _PlainEnd(Struct, gc=False, kw_only=True):
    """What a plain line of either API may have beside its text."""

    done: bool = False
    done_reason: Empty = None
    logprobs: NoItems = None
    eval_count: None = None
    prompt_eval_count: None = None
    error: None = None


class _PlainGenerate(_PlainEnd, gc=False, kw_only=True):
    response: SomeText
    thinking: Empty = None
    tool_calls: NoItems = None
    image: Empty = None


class _PlainMessage(Struct, gc=False):
    content: SomeText
    thinking: Empty = None
    tool_calls: NoItems = None


class _PlainChat(_PlainEnd, gc=False, kw_only=True):
    message: _PlainMessage


_decode_generate: Final = msgspec.json.Decoder(_PlainGenerate).decode
_decode_chat: Final = msgspec.json.Decoder(_PlainChat).decode


class OllamaGenerate:
    """``/api/generate``; see the module."""

    name = "ollama.generate"
    counted_end = False
    plain_rank = RANKS[EVENTS]
    decode = staticmethod(_decode)

    @staticmethod
    def serves(path: str) -> bool:
        """By its end."""
        return path.endswith("/api/generate")

    @staticmethod
    def shows(fields: Fields) -> bool:
        """Text and ``done`` beside it."""
        return isinstance(plainly(fields, "done"), bool) and isinstance(plainly(fields, "response"), str)

    @staticmethod
    def response_id(fields: Fields) -> str | None:
        """There is none."""
        return None

    @staticmethod
    def model(fields: Fields) -> str | None:
        """``model``."""
        return model_name(plainly(fields, "model"))

    @staticmethod
    def quick(data: bytes) -> int:
        """Bytes of text of a line that carries nothing else."""
        line = _decode_generate(data)
        text = line.response
        if line.done:
            return 0
        return len(text) if text.isascii() else utf8_size(text)

    @staticmethod
    def plain(line: Line) -> int:
        """Bytes of text, if that is all that there is."""
        if line.thinking or line.tool_calls or line.image or not _is_plain_end(line):
            return 0
        return utf8_size(line.response) if isinstance(line.response, str) else 0

    @staticmethod
    def read(line: Line) -> Reading | None:
        """Everything that a line may carry."""
        if line.response is None and line.thinking is None and line.image is None and _says_nothing(line):
            return None
        return _read(line, line.response, line.thinking, line.tool_calls)

    @staticmethod
    def mend(data: bytes) -> Line | None:
        """What can be understood; ``None``: no JSON."""
        return _mend(data)


class OllamaChat:
    """``/api/chat``; see the module."""

    name = "ollama.chat"
    counted_end = False
    plain_rank = RANKS[EVENTS]
    decode = staticmethod(_decode)

    @staticmethod
    def serves(path: str) -> bool:
        """By its end."""
        return path.endswith("/api/chat")

    @staticmethod
    def shows(fields: Fields) -> bool:
        """A message and ``done`` beside it."""
        return isinstance(plainly(fields, "done"), bool) and isinstance(plainly(fields, "message"), dict)

    @staticmethod
    def response_id(fields: Fields) -> str | None:
        """There is none."""
        return None

    @staticmethod
    def model(fields: Fields) -> str | None:
        """``model``."""
        return model_name(plainly(fields, "model"))

    @staticmethod
    def quick(data: bytes) -> int:
        """Bytes of content of a line that carries nothing else."""
        line = _decode_chat(data)
        content = line.message.content
        if line.done:
            return 0
        return len(content) if content.isascii() else utf8_size(content)

    @staticmethod
    def plain(line: Line) -> int:
        """Bytes of content, if that is all that there is."""
        message = line.message
        if not isinstance(message, dict) or line.image or not _is_plain_end(line):
            return 0
        if message.get("thinking") or message.get("tool_calls"):
            return 0
        content = message.get("content")
        return utf8_size(content) if isinstance(content, str) else 0

    @staticmethod
    def read(line: Line) -> Reading | None:
        """Everything that a line may carry."""
        if line.message is None and _says_nothing(line):
            return None
        message = as_dict(line.message)
        return _read(line, message.get("content"), message.get("thinking"), message.get("tool_calls"))

    @staticmethod
    def mend(data: bytes) -> Line | None:
        """What can be understood; ``None``: no JSON."""
        return _mend(data)


def _is_plain_end(line: Line) -> bool:
    """Nothing but text: no end, no counts, no error."""
    return not line.done and not line.logprobs and line.error is None and _usage(line) is None


def _says_nothing(line: Line) -> bool:
    """None of the fields that both APIs share."""
    return line.done is None and line.error is None and _usage(line) is None


def _read(line: Line, text: object, thinking: object, calls: object) -> Reading:
    if line.error is not None:
        return Reading(usage=_usage(line), error=error_word(line.error))
    output = Output(0)
    if isinstance(text, str) and text:
        output.kind |= ANSWER
        output.size += utf8_size(text)
    if isinstance(thinking, str) and thinking:
        output.kind |= REASONING
        output.size += utf8_size(thinking)
    for call in as_list(calls):
        function = as_dict(call).get("function")
        if isinstance(function, dict):
            output.kind |= TOOL
            output.size += json_size(function.get("arguments") or {})
    if line.image:
        output.kind |= ANSWER
    told = len(as_list(line.logprobs))
    if told:
        output.tokens, output.source = told, LOGPROBS
    if line.done in (True, "true"):
        output.finish = word(line.done_reason, "other") if line.done_reason else _UNSTATED
    return Reading([output], _usage(line))


def _usage(line: Line) -> Usage | None:
    prompt, output = count(line.prompt_eval_count), count(line.eval_count)
    return None if prompt is None and output is None else Usage(prompt=prompt, output=output)


def _mend(data: bytes) -> Line | None:
    try:
        value: dict[str, Any] = as_dict(loose(data))
    except ValueError:
        return None
    return Line(*(value.get(name) for name in Line.__struct_fields__))
