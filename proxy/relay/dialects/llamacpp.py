"""llama.cpp's own ``/completion`` and ``/infill``: one piece of content an event, and a running count.

``{"index", "content", "tokens": [...], "stop", "id_slot", "tokens_predicted", "tokens_evaluated"}``; the last
event has ``stop: true``, ``stop_type`` and ``timings``.  Source: llama.cpp's ``tools/server/README.md``,
"POST /completion"; the recordings of b11434.

A plain event is counted by ``tokens_predicted``, the choice's running usage, which every recorded event
carries.  ``tokens`` would rank higher and knows less: it is the one token that set the event off, with or
without ``return_tokens``.  A token that ends inside a UTF-8 character sets none off: it is in no list, but in
the next event's ``tokens_predicted``.  Only where that is missing do the ids count.

Empty content with a token is text held back, since a stop word may be coming.  Events with
``prompt_progress`` are of the prompt, whatever else they carry: never output.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from proxy.link import Usage
from proxy.relay.dialects.base import (
    ANSWER,
    RANKS,
    RUNNING_USAGE,
    TOKEN_IDS,
    Fields,
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
from proxy.relay.dialects.openai import Timings, as_dict, as_text, loose_timings, timed_usage

#: How versions before ``stop_type`` told the reason: a flag each.
_OLD_STOPS: Final = (("stopped_eos", "eos"), ("stopped_word", "word"), ("stopped_limit", "limit"))


class Chunk(Struct, gc=False):
    """``content`` and ``stop`` both ``None``: no event of this dialect, unless it is an error."""

    content: str | None = None
    stop: bool | None = None
    index: int = 0
    tokens: list[int] | None = None
    tokens_predicted: int | None = None
    tokens_evaluated: int | None = None
    timings: Timings | None = None
    prompt_progress: object = None
    stop_type: str | None = None
    stopped_eos: bool = False
    stopped_word: bool = False
    stopped_limit: bool = False
    error: object = None
    model: object = None


_decode: Final = msgspec.json.Decoder(Chunk).decode


class _PlainChunk(Struct, gc=False):
    content: SomeText
    tokens_predicted: Annotated[int, Meta(ge=1, lt=2**53)]
    stop: Literal[False]
    index: Literal[0] = 0
    prompt_progress: None = None
    error: None = None


_decode_plain: Final = msgspec.json.Decoder(_PlainChunk).decode


class LlamaCppCompletion:
    """See the module."""

    name = "llamacpp.completion"
    counted_end = False
    plain_rank = RANKS[RUNNING_USAGE]
    decode = staticmethod(_decode)

    @staticmethod
    def serves(path: str) -> bool:
        """``*/completion``, ``*/infill``; ``*/completions`` is OpenAI's with llama.cpp too."""
        return path.endswith(("/completion", "/infill"))

    @staticmethod
    def shows(fields: Fields) -> bool:
        """Content and ``stop``, beside the slot's number or the tokens predicted."""
        return (
            "content" in fields and "stop" in fields and ("id_slot" in fields or "tokens_predicted" in fields)
        )

    @staticmethod
    def response_id(fields: Fields) -> str | None:
        """It has none."""
        return None

    @staticmethod
    def model(fields: Fields) -> str | None:
        """``model``; its streams tell it in the last event."""
        return model_name(plainly(fields, "model"))

    @staticmethod
    def quick(data: bytes) -> int:
        """-(tokens so far) of choice 0, for an event with some content that is not the last."""
        return -_decode_plain(data).tokens_predicted

    @staticmethod
    def plain(chunk: Chunk) -> int:
        """Never: no event tells that it brought one token, it tells how many there are."""
        return 0

    @staticmethod
    def read(chunk: Chunk) -> Reading | None:
        """One choice's piece of content, and its own usage."""
        if chunk.prompt_progress is not None:
            return Reading()
        if chunk.content is None and chunk.stop is None:
            return None if chunk.error is None else Reading(error=error_word(chunk.error))
        output = _output(chunk)
        reading = Reading([output], _usage(chunk), per_choice=True, model=model_name(chunk.model))
        if chunk.tokens and (reading.usage is None or reading.usage.output is None):
            output.tokens, output.source = len(chunk.tokens), TOKEN_IDS
        if chunk.error is not None:
            reading.error = error_word(chunk.error)
        return reading

    @staticmethod
    def mend(data: bytes) -> Chunk | None:
        """Field by field, what can be understood; ``None``: no JSON."""
        try:
            value = as_dict(loose(data))
        except ValueError:
            return None
        stop, tokens, stop_type = value.get("stop"), value.get("tokens"), value.get("stop_type")
        return Chunk(
            as_text(value.get("content")),
            stop if isinstance(stop, bool) else None,
            count(value.get("index")) or 0,
            [0] * len(tokens) if isinstance(tokens, list) else None,  # only their number matters
            count(value.get("tokens_predicted")),
            count(value.get("tokens_evaluated")),
            loose_timings(value.get("timings")),
            value.get("prompt_progress"),
            stop_type if isinstance(stop_type, str) else None,
            value.get("stopped_eos") is True,
            value.get("stopped_word") is True,
            value.get("stopped_limit") is True,
            value.get("error"),
            value.get("model"),
        )


def _output(chunk: Chunk) -> Output:
    output = Output(count(chunk.index) or 0)
    if chunk.content:
        output.kind = ANSWER
        output.size = utf8_size(chunk.content)
    if chunk.stop:
        old = next((name for flag, name in _OLD_STOPS if getattr(chunk, flag)), "other")
        output.finish = word(chunk.stop_type, "other") if chunk.stop_type else old
    return output


def _usage(chunk: Chunk) -> Usage | None:
    """The prompt is all of it, what was cached included; timings alone tell the same (old versions)."""
    timed = None if chunk.timings is None else timed_usage(chunk.timings)
    output = count(chunk.tokens_predicted)
    if output is None:
        return timed
    cached = None if chunk.timings is None else count(chunk.timings.cache_n)
    return Usage(prompt=count(chunk.tokens_evaluated), output=output, cached=cached)
