"""OpenAI responses, as OpenAI, vLLM, llama.cpp and transformers stream them.

An event's own ``type`` says what it is; the name beside it is not looked at, since some servers send none.
Output is a non-empty ``delta`` of one of the kinds below: all of it is choice 0's.  Items, parts and
``*.done`` events repeat what went by or frame it: they are none.  Audio bytes and what a tool printed are
not the model's tokens.  ``response.completed``, ``.incomplete`` and ``.failed`` are the end.

Sources: OpenAI's API reference, "Streaming events" of the Responses API; recordings of vLLM 0.32, llama.cpp
(b10434, b11434) and transformers 5.23.  ``response.reasoning.delta``, ``response.reasoning_summary.delta``
and ``response.mcp_call.arguments.delta`` are older spellings; some came with an object as their delta.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from proxy.link import Usage
from proxy.relay.dialects.base import (
    ANSWER,
    EVENTS,
    LOGPROBS,
    RANKS,
    REASONING,
    REFUSAL,
    TOOL,
    Fields,
    NoItems,
    Output,
    Reading,
    SomeText,
    count,
    error_word,
    inner_id,
    inner_model,
    loose,
    model_name,
    plainly,
    utf8_size,
    word,
)
from proxy.relay.dialects.openai import Entry, as_dict, as_list, as_text

_KINDS: Final = {
    "response.output_text.delta": ANSWER,
    "response.audio.transcript.delta": ANSWER,
    "response.refusal.delta": REFUSAL,
    "response.reasoning_text.delta": REASONING,
    "response.reasoning_summary_text.delta": REASONING,
    "response.reasoning.delta": REASONING,
    "response.reasoning_summary.delta": REASONING,
    "response.function_call_arguments.delta": TOOL,
    "response.mcp_call_arguments.delta": TOOL,
    "response.mcp_call.arguments.delta": TOOL,
    "response.custom_tool_call_input.delta": TOOL,
    "response.code_interpreter_call_code.delta": TOOL,
    "response.shell_call_command.delta": TOOL,
}
#: What ends a response, and its finish reason where the response itself gives no other.
_ENDS: Final = {
    "response.completed": "completed",
    "response.incomplete": "incomplete",
    "response.failed": None,
}
_FAMILY: Final = "response."


class Details(Struct, gc=False):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class ReportedUsage(Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: Details | None = None
    output_tokens_details: Details | None = None


class Incomplete(Struct, gc=False):
    reason: str | None = None


class Response(Struct, gc=False):
    """Of the whole response, which repeats instructions and output, only this is decoded."""

    usage: ReportedUsage | None = None
    incomplete_details: Incomplete | None = None
    error: object = None
    model: object = None


class Event(Struct, gc=False):
    """``code``: of an event that is an error itself."""

    type: str | None = None
    delta: str | None = None
    logprobs: list[Entry] | None = None
    response: Response | None = None
    error: object = None
    code: object = None


class _Plain(Struct, gc=False):
    type: Literal["response.output_text.delta"]
    delta: SomeText
    logprobs: NoItems = None


_decode: Final = msgspec.json.Decoder(Event).decode
_decode_plain: Final = msgspec.json.Decoder(_Plain).decode


class OpenAIResponses:
    """See the module."""

    name = "openai.responses"
    counted_end = False
    plain_rank = RANKS[EVENTS]
    decode = staticmethod(_decode)

    @staticmethod
    def serves(path: str) -> bool:
        """By its end, so that a base path in front of it does not matter."""
        return path.endswith("/responses")

    @staticmethod
    def shows(fields: Fields) -> bool:
        """A ``type`` of the family."""
        kind = plainly(fields, "type")
        return isinstance(kind, str) and kind.startswith(_FAMILY)

    @staticmethod
    def response_id(fields: Fields) -> str | None:
        """``response.id``, from the first event on."""
        return inner_id(fields, "response")

    @staticmethod
    def model(fields: Fields) -> str | None:
        """``response.model``, beside the id."""
        return inner_model(fields, "response")

    @staticmethod
    def quick(data: bytes) -> int:
        """Bytes of output text of an event that says nothing of its number of tokens."""
        delta = _decode_plain(data).delta
        return len(delta) if delta.isascii() else utf8_size(delta)

    @staticmethod
    def plain(event: Event) -> int:
        """Bytes of output text, if that is all that there is."""
        delta = event.delta
        if not delta or event.logprobs or event.type != "response.output_text.delta":
            return 0
        return len(delta) if delta.isascii() else utf8_size(delta)

    @staticmethod
    def read(event: Event) -> Reading | None:
        """Everything that an event may carry."""
        name = event.type
        if name is None:
            return None if event.error is None else Reading(error=error_word(event.error))
        kind = _KINDS.get(name)
        if kind is not None:
            return Reading([_output(event, kind)])
        if name in _ENDS:
            return _end(event.response or Response(), _ENDS[name])
        if name == "error":
            return Reading(error=_error_of(event))
        # Kinds come by the year; those of the family carry no output that we know of.
        return Reading() if name.startswith(_FAMILY) or name in ("keepalive", "ping") else None

    @staticmethod
    def mend(data: bytes) -> Event | None:
        """Field by field, what can be understood; ``None``: no JSON."""
        try:
            return _loose_event(as_dict(loose(data)))
        except (ValueError, RecursionError):
            return None


def _output(event: Event, kind: int) -> Output:
    output = Output(0)
    if event.delta:
        output.kind, output.size = kind, utf8_size(event.delta)
    if event.logprobs:
        output.tokens, output.source = len(event.logprobs), LOGPROBS
    return output


def _end(response: Response, finish: str | None) -> Reading:
    """The end: vLLM says ``response.completed`` of an answer that is incomplete, so the reason goes first."""
    reading = Reading(model=model_name(response.model))  # llama.cpp's names it nowhere else
    if response.usage is not None:
        reading.usage = _usage_of(response.usage)
    if response.error is not None or finish is None:
        reading.error = error_word(response.error)
        return reading
    details = response.incomplete_details
    if details is not None and details.reason:
        finish = word(details.reason, "other")
    reading.outputs = [Output(0, finish=finish)]
    return reading


def _error_of(event: Event) -> str:
    """The code of ``{"type": "error", "code": ...}``, where ``type`` says nothing; or of an error inside."""
    return error_word({"code": event.code} if event.error is None else event.error)


def _usage_of(usage: ReportedUsage) -> Usage:
    given, made = usage.input_tokens_details, usage.output_tokens_details
    return Usage(
        prompt=count(usage.input_tokens),
        output=count(usage.output_tokens),
        cached=None if given is None else count(given.cached_tokens),
        reasoning=None if made is None else count(made.reasoning_tokens),
    )


# ---------------------------------------------------------------- events with fields of other types


def _loose_event(value: dict[str, Any]) -> Event:
    name = value.get("type")
    name = name if isinstance(name, str) else None
    return Event(
        type=name,
        delta=_loose_delta(value.get("delta"), _KINDS.get(name or "", 0)),
        logprobs=[Entry()] * len(as_list(value.get("logprobs"))),
        response=_loose_response(value.get("response")),
        error=value.get("error"),
        code=value.get("code"),
    )


def _loose_delta(value: object, kind: int) -> str | None:
    """A delta's text: also out of an object, or as arguments that a server has parsed already."""
    if kind == TOOL and isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")) if value else None
    if isinstance(value, dict):
        return as_text(value.get("text")) or as_text(value.get("content"))
    return as_text(value)


def _loose_response(value: object) -> Response | None:
    if not isinstance(value, dict):
        return None
    reason = as_dict(value.get("incomplete_details")).get("reason")
    return Response(
        usage=_loose_usage(value.get("usage")),
        incomplete_details=Incomplete(reason if isinstance(reason, str) else None),
        error=value.get("error"),
        model=value.get("model"),
    )


def _loose_usage(value: object) -> ReportedUsage | None:
    if not isinstance(value, dict):
        return None
    given, made = as_dict(value.get("input_tokens_details")), as_dict(value.get("output_tokens_details"))
    return ReportedUsage(
        count(value.get("input_tokens")),
        count(value.get("output_tokens")),
        Details(cached_tokens=count(given.get("cached_tokens"))),
        Details(reasoning_tokens=count(made.get("reasoning_tokens"))),
    )
