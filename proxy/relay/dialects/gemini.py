"""Google's Gemini API and Vertex AI: ``:streamGenerateContent`` with ``alt=sse``.

Output is a part of a candidate: a non-empty ``text`` (with ``thought``: reasoning), a ``functionCall`` (it
comes whole, or as ``partialArgs``), ``executableCode``, and ``inlineData``, which is no text and whose size
counts as none.  Results of the code, thought signatures and empty parts are none.  A candidate's
``finishReason`` ends it; a prompt that was blocked has no candidates: ``blockReason`` then is the end's word.
Errors are ``{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}``: the status is the word.

Several tokens an event are the rule.  ``usageMetadata`` comes with each: ``candidatesTokenCount`` and
``thoughtsTokenCount``, added, are the output so far; ``Counter`` takes thoughts off that are not shown.  A
``logprobsResult`` is not counted: no page says whether its tokens are the event's own.

Sources: https://ai.google.dev/api/generate-content (``GenerateContentResponse``, ``Candidate``,
``FinishReason``, ``PromptFeedback``, ``UsageMetadata``), https://ai.google.dev/api/caching#Part,
https://ai.google.dev/gemini-api/docs/thinking, and the types of the official Python client (google-genai 3).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from proxy.link import Usage
from proxy.relay.dialects.base import (
    ANSWER,
    RANKS,
    REASONING,
    RUNNING_USAGE,
    TOOL,
    Fields,
    Output,
    Reading,
    SomeText,
    count,
    error_word,
    identifier,
    loose,
    model_name,
    plainly,
    utf8_size,
    word,
)
from proxy.relay.dialects.jsonsize import json_size
from proxy.relay.dialects.openai import as_dict, as_list

_UNSPECIFIED: Final = "_UNSPECIFIED"
_PARTS_MAX: Final = 1000


class Chunk(Struct, gc=False, rename="camel"):
    """One event.  The types are looked at when it is read: one odd field spoils no other."""

    candidates: object = None
    usage_metadata: object = None
    prompt_feedback: object = None
    error: object = None


_decode: Final = msgspec.json.Decoder(Chunk).decode


class _PlainPart(Struct, gc=False, rename="camel"):
    text: SomeText
    thought: bool = False
    function_call: None = None
    executable_code: None = None
    inline_data: None = None


class _PlainContent(Struct, gc=False):
    parts: tuple[_PlainPart]


class _PlainCandidate(Struct, gc=False, rename="camel"):
    content: _PlainContent
    index: Literal[0] = 0
    finish_reason: None = None


class _PlainUsage(Struct, gc=False, rename="camel"):
    candidates_token_count: Annotated[int, Meta(gt=0, lt=2**53)]
    thoughts_token_count: Annotated[int, Meta(ge=0, lt=2**53)] = 0


class _PlainChunk(Struct, gc=False, rename="camel"):
    candidates: tuple[_PlainCandidate]
    usage_metadata: _PlainUsage
    error: None = None


_decode_plain: Final = msgspec.json.Decoder(_PlainChunk).decode


class GeminiGenerate:
    """See the module."""

    name = "gemini.generate"
    counted_end = False
    plain_rank = RANKS[RUNNING_USAGE]
    decode = staticmethod(_decode)

    @staticmethod
    def serves(path: str) -> bool:
        """By its method."""
        return path.endswith(":streamGenerateContent")

    @staticmethod
    def shows(fields: Fields) -> bool:
        """Candidates, or its own name for usage."""
        return isinstance(plainly(fields, "candidates"), list) or "usageMetadata" in fields

    @staticmethod
    def response_id(fields: Fields) -> str | None:
        """``responseId``."""
        return identifier(plainly(fields, "responseId"))

    @staticmethod
    def model(fields: Fields) -> str | None:
        """``modelVersion``."""
        return model_name(plainly(fields, "modelVersion"))

    @staticmethod
    def quick(data: bytes) -> int:
        """-(tokens so far) of an event with one text and usage, where that is their number for certain.

        Thoughts count where they are shown, which one event cannot know.  Shown, they were counted, so that
        the answer's tokens alone are fewer than before and the tap looks again, unless this event brought
        more than all of them: hence not where the text is as long as that.
        """
        chunk = _decode_plain(data)
        part = chunk.candidates[0].content.parts[0]
        usage = chunk.usage_metadata
        if part.thought or (
            usage.thoughts_token_count and usage.thoughts_token_count <= utf8_size(part.text)
        ):
            return 0
        return -usage.candidates_token_count

    @staticmethod
    def plain(chunk: Chunk) -> int:
        """None: an event without usage is no usual one, one with it is more than its text."""
        return 0

    @staticmethod
    def read(chunk: Chunk) -> Reading | None:
        """Everything that an event may carry."""
        if chunk.error is not None:
            status = word(as_dict(chunk.error).get("status"), "")
            return Reading(usage=_usage(chunk.usage_metadata), error=status or error_word(chunk.error))
        if chunk.candidates is None and chunk.usage_metadata is None and chunk.prompt_feedback is None:
            return None
        outputs = [_output(as_dict(candidate)) for candidate in as_list(chunk.candidates)]
        blocked = _reason(as_dict(chunk.prompt_feedback).get("blockReason"))
        if blocked is not None and not outputs:
            outputs.append(Output(0, finish=blocked))
        return Reading(outputs, _usage(chunk.usage_metadata))

    @staticmethod
    def mend(data: bytes) -> Chunk | None:
        """What can be understood; ``None``: no JSON."""
        try:
            value = as_dict(loose(data))
        except ValueError:
            return None
        return Chunk(*(value.get(name) for name in Chunk.__struct_encode_fields__))


def _output(candidate: dict[str, Any]) -> Output:
    output = Output(count(candidate.get("index")) or 0, finish=_reason(candidate.get("finishReason")))
    for item in as_list(as_dict(candidate.get("content")).get("parts"))[:_PARTS_MAX]:
        part = as_dict(item)
        text = part.get("text")
        if isinstance(text, str) and text:
            output.kind |= REASONING if part.get("thought") else ANSWER
            output.size += utf8_size(text)
        call = part.get("functionCall")
        if isinstance(call, dict) and _is_called(call):
            output.kind |= TOOL
            output.size += _call_size(call)
        code = as_dict(part.get("executableCode")).get("code")
        if isinstance(code, str) and code:
            output.kind |= TOOL
            output.size += utf8_size(code)
        if part.get("inlineData"):
            output.kind |= ANSWER
    return output


def _is_called(call: dict[str, Any]) -> bool:
    """Whether arguments came, if only to say that there are none; a name alone that will continue is none."""
    if call.get("args") is not None or as_list(call.get("partialArgs")):
        return True
    return bool(call.get("name")) and not call.get("willContinue")


def _call_size(call: dict[str, Any]) -> int:
    """Bytes of its arguments as JSON, or of the values of the partial ones."""
    pieces = [as_dict(piece) for piece in as_list(call.get("partialArgs"))]
    values = [piece[name] for piece in pieces for name in piece if name.endswith("Value")]
    args = call.get("args")
    return sum(map(json_size, values)) + (0 if args is None else json_size(args))


def _reason(value: object) -> str | None:
    """A finish or block reason, unless there is none yet."""
    if not value or (isinstance(value, str) and value.endswith(_UNSPECIFIED)):
        return None
    return word(value, "other")


def _usage(value: object) -> Usage | None:
    """The request's counts so far; ``None``: not one of them is told (Vertex's events before the last)."""
    told = as_dict(value)
    answer, thoughts = count(told.get("candidatesTokenCount")), count(told.get("thoughtsTokenCount"))
    usage = Usage(
        prompt=count(told.get("promptTokenCount")),
        output=None if answer is None and thoughts is None else (answer or 0) + (thoughts or 0),
        cached=count(told.get("cachedContentTokenCount")),
        reasoning=thoughts,
    )
    return None if usage == Usage() else usage
