"""OpenAI completions (``/v1/completions``): output is a non-empty ``text`` of a choice.

With ``echo`` the first event of a choice repeats the prompt, in one piece with the first token (vLLM) or
not at all (llama.cpp, transformers): one event, one token either way; vLLM's logprobs of it include the
prompt's, which ``prompt_token_ids`` in the same event number.
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
from proxy.relay.dialects.openai import (
    COMPLETION,
    Logprobs,
    ReportedUsage,
    Timings,
    as_text,
    count_told,
    loose_event,
    loose_logprobs,
    read_choices,
    shape,
)


class Choice(Struct, gc=False):
    index: int = 0
    text: str | None = None
    reasoning: str | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class Chunk(Struct, gc=False):
    """``choices is None``: the event has no such field, so it is no completion."""

    choices: list[Choice] | None = None
    usage: ReportedUsage | None = None
    timings: Timings | None = None
    error: object = None


_decode: Final = msgspec.json.Decoder(Chunk).decode


class _PlainChoice(Struct, gc=False):
    text: SomeText
    index: Literal[0] = 0
    reasoning: Empty = None
    finish_reason: Empty = None
    logprobs: None = None
    token_ids: NoItems = None


class _PlainChunk(Struct, gc=False):
    choices: tuple[_PlainChoice]
    usage: None = None
    timings: None = None
    error: None = None


_decode_plain: Final = msgspec.json.Decoder(_PlainChunk).decode


class OpenAICompletions:
    """See the module."""

    name = "openai.completions"
    counted_end = False
    plain_rank = RANKS[EVENTS]
    decode = staticmethod(_decode)

    @staticmethod
    def serves(path: str) -> bool:
        """By its end, so that a base path in front of it does not matter."""
        return path.endswith("/completions") and not path.endswith("/chat/completions")

    @staticmethod
    def shows(fields: Fields) -> bool:
        """Its ``object``, else the shape of its first choice."""
        return shape(fields) == COMPLETION

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
        """Bytes of text of an event that carries nothing else."""
        text = _decode_plain(data).choices[0].text
        return len(text) if text.isascii() else utf8_size(text)

    @staticmethod
    def plain(chunk: Chunk) -> int:
        """Bytes of text, if choice 0's text is all that there is."""
        choices = chunk.choices
        if not choices or len(choices) != 1 or chunk.usage is not None or chunk.error is not None:
            return 0
        choice = choices[0]
        if choice.index or choice.finish_reason or choice.token_ids or choice.logprobs is not None:
            return 0
        text = choice.text
        if not text or choice.reasoning or chunk.timings is not None:
            return 0
        return len(text) if text.isascii() else utf8_size(text)

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
    if choice.text:
        output.kind |= ANSWER
        output.size += utf8_size(choice.text)
    if choice.reasoning:
        output.kind |= REASONING
        output.size += utf8_size(choice.reasoning)
    count_told(output, choice.token_ids, choice.logprobs, len(choice.prompt_token_ids or ()))
    return output


def _loose_choice(value: dict[str, Any]) -> Choice:
    finish = value.get("finish_reason")
    ids, prompt_ids = value.get("token_ids"), value.get("prompt_token_ids")
    return Choice(
        count(value.get("index")) or 0,
        as_text(value.get("text")),
        as_text(value.get("reasoning")),
        finish if isinstance(finish, str) else None,
        loose_logprobs(value.get("logprobs")),
        ids if isinstance(ids, list) else None,
        prompt_ids if isinstance(prompt_ids, list) else None,
    )
