"""OpenAI chat completions, as vLLM, llama.cpp, transformers, SGLang and most others stream them.

Output is a non-empty ``content``, ``reasoning_content`` or ``reasoning``, ``refusal``, or non-empty
arguments of a tool call (or of the older ``function_call``).  Roles, empty and null deltas, a tool call's
name and id, ``prompt_progress`` and events with ``choices: []`` are none.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from proxy.relay.dialects.base import (
    ANSWER,
    EVENTS,
    RANKS,
    REASONING,
    REFUSAL,
    TOOL,
    Empty,
    Fields,
    NoItems,
    Output,
    Reading,
    SomeText,
    count,
    identifier,
    model_name,
    plainly,
    utf8_size,
    word,
)
from proxy.relay.dialects.jsonsize import json_size
from proxy.relay.dialects.openai import (
    CHAT_CHUNK,
    Logprobs,
    ReportedUsage,
    Timings,
    as_dict,
    as_list,
    as_text,
    count_told,
    loose_event,
    loose_logprobs,
    read_choices,
    shape,
)


class Function(Struct, gc=False):
    arguments: str | None = None


class ToolCall(Struct, gc=False):
    function: Function | None = None


class Delta(Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None


class Choice(Struct, gc=False):
    index: int = 0
    delta: Delta | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    token_ids: list[int] | None = None


class Chunk(Struct, gc=False):
    """``choices is None``: the event has no such field, so it is no chunk of a chat."""

    choices: list[Choice] | None = None
    usage: ReportedUsage | None = None
    timings: Timings | None = None
    error: object = None


_decode: Final = msgspec.json.Decoder(Chunk).decode


class _PlainDelta(Struct, gc=False):
    content: SomeText
    reasoning_content: Empty = None
    reasoning: Empty = None
    refusal: Empty = None
    tool_calls: NoItems = None
    function_call: None = None


class _PlainChoice(Struct, gc=False):
    delta: _PlainDelta
    index: Literal[0] = 0
    finish_reason: Empty = None
    logprobs: None = None
    token_ids: NoItems = None


class _PlainChunk(Struct, gc=False):
    choices: tuple[_PlainChoice]
    usage: None = None
    timings: None = None
    error: None = None


_decode_plain: Final = msgspec.json.Decoder(_PlainChunk).decode


class OpenAIChat:
    """See the module."""

    name = "openai.chat"
    counted_end = False
    plain_rank = RANKS[EVENTS]
    decode = staticmethod(_decode)

    @staticmethod
    def serves(path: str) -> bool:
        """By its end, so that a base path in front of it does not matter."""
        return path.endswith("/chat/completions")

    @staticmethod
    def shows(fields: Fields) -> bool:
        """Its ``object``, else the shape of its first choice."""
        return shape(fields) == CHAT_CHUNK

    @staticmethod
    def response_id(fields: Fields) -> str | None:
        """``id``."""
        return identifier(plainly(fields, "id"))

    @staticmethod
    def model(fields: Fields) -> str | None:
        """``model``."""
        return model_name(plainly(fields, "model"))

    @staticmethod
    def quick(data: bytes) -> int:
        """Bytes of content of an event that carries nothing else."""
        content = _decode_plain(data).choices[0].delta.content
        return len(content) if content.isascii() else utf8_size(content)

    @staticmethod
    def plain(chunk: Chunk) -> int:
        """Bytes of content, if choice 0's content is all that there is."""
        choices = chunk.choices
        if not choices or len(choices) != 1 or chunk.usage is not None or chunk.error is not None:
            return 0
        choice = choices[0]
        if choice.index or choice.finish_reason or choice.token_ids or choice.logprobs is not None:
            return 0
        delta = choice.delta
        if delta is None or chunk.timings is not None:
            return 0
        content = delta.content
        if not content or delta.reasoning_content or delta.reasoning or delta.tool_calls:
            return 0
        if delta.refusal or delta.function_call is not None:
            return 0
        return len(content) if content.isascii() else utf8_size(content)

    @staticmethod
    def read(chunk: Chunk) -> Reading | None:
        """Everything that an event may carry."""
        return read_choices(chunk, _output)

    @staticmethod
    def mend(data: bytes) -> Chunk | None:
        """Field by field, what can be understood; ``None``: no JSON."""
        parts = loose_event(data, _loose_choice)
        return None if parts is None else Chunk(*parts)


def _output(choice: Choice) -> Output:
    output = Output(choice.index)
    if choice.finish_reason:
        output.finish = word(choice.finish_reason, "other")
    delta = choice.delta
    if delta is not None:
        if delta.content:
            output.kind |= ANSWER
            output.size += utf8_size(delta.content)
        reasoning = delta.reasoning_content or delta.reasoning  # some servers send both, equal
        if reasoning:
            output.kind |= REASONING
            output.size += utf8_size(reasoning)
        if delta.refusal:
            output.kind |= REFUSAL
            output.size += utf8_size(delta.refusal)
        for function in _functions(delta):
            if function.arguments:
                output.kind |= TOOL
                output.size += utf8_size(function.arguments)
    count_told(output, choice.token_ids, choice.logprobs)
    return output


def _functions(delta: Delta) -> list[Function]:
    functions = [call.function for call in delta.tool_calls or () if call.function is not None]
    if delta.function_call is not None:
        functions.append(delta.function_call)
    return functions


def _loose_choice(value: dict[str, Any]) -> Choice:
    delta = value.get("delta")
    finish = value.get("finish_reason")
    ids = value.get("token_ids")
    return Choice(
        count(value.get("index")) or 0,
        _loose_delta(delta) if isinstance(delta, dict) else None,
        finish if isinstance(finish, str) else None,
        loose_logprobs(value.get("logprobs")),
        ids if isinstance(ids, list) else None,
    )


def _loose_delta(delta: dict[str, Any]) -> Delta:
    content = delta.get("content")
    reasoning = as_text(delta.get("reasoning_content")) or as_text(delta.get("reasoning"))
    if isinstance(content, list):
        # Parts: [{"type": "thinking", "thinking": [...]}, {"type": "text", "text": "..."}] (Mistral).
        thinking = [as_text(part.get("thinking")) for part in content[:1000] if isinstance(part, dict)]
        reasoning = reasoning or "".join(part for part in thinking if part) or None
    calls = [_loose_function(as_dict(call).get("function")) for call in as_list(delta.get("tool_calls"))]
    return Delta(
        content=as_text(content),
        reasoning_content=reasoning,
        refusal=as_text(delta.get("refusal")),
        tool_calls=[ToolCall(function) for function in calls],
        function_call=_loose_function(delta.get("function_call")),
    )


def _loose_function(value: object) -> Function | None:
    """Arguments come as an object where a server has parsed them already."""
    if not isinstance(value, dict):
        return None
    arguments = value.get("arguments")
    if isinstance(arguments, dict | list) and arguments:
        return Function("?" * max(json_size(arguments), 1))  # only its size matters
    return Function(as_text(arguments))
