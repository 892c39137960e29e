"""What the two OpenAI dialects (chat completions, completions) share: usage, timings, logprobs, errors.

Sources: OpenAI's API reference (``usage``, ``logprobs``), vLLM's ``continuous_usage_stats`` and
``return_token_ids``, llama.cpp's ``timings``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from proxy.link import Usage
from proxy.relay.dialects.base import (
    LOGPROBS,
    TOKEN_IDS,
    Fields,
    Output,
    Reading,
    count,
    error_word,
    loose,
    plainly,
)


class Details(Struct, gc=False):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class ReportedUsage(Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None
    completion_tokens_details: Details | None = None


class Timings(Struct, gc=False):
    """llama.cpp adds them to a finishing event, or to each (``timings_per_token``): this choice's own."""

    predicted_n: int | None = None
    prompt_n: int | None = None
    cache_n: int | None = None


class Entry(Struct, gc=False):
    """One token's log probability; only their number matters."""


class Logprobs(Struct, gc=False):
    """``content`` and ``refusal``: chat; ``tokens``: completions (llama.cpp uses ``content`` there too)."""

    content: list[Entry] | None = None
    refusal: list[Entry] | None = None
    tokens: list[str | None] | None = None


def usage_of(usage: ReportedUsage) -> Usage:
    """The request's counts."""
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return Usage(
        prompt=count(usage.prompt_tokens),
        output=count(usage.completion_tokens),
        cached=None if prompt is None else count(prompt.cached_tokens),
        reasoning=None if completion is None else count(completion.reasoning_tokens),
    )


def timed_usage(timings: Timings) -> Usage | None:
    """The counts in llama.cpp's timings: the prompt is what was processed and what was in its cache."""
    output = count(timings.predicted_n)
    if output is None:
        return None
    fresh, cached = count(timings.prompt_n), count(timings.cache_n)
    prompt = None if fresh is None else fresh + (cached or 0)
    return Usage(prompt=prompt, output=output, cached=cached)


def count_told(
    output: Output, token_ids: list[int] | None, logprobs: Logprobs | None, echoed: int = 0
) -> None:
    """Fill in the number of tokens where the event itself tells it: token ids before logprobs.

    ``echoed``: prompt tokens that the event repeats, whose logprobs are not the output's.
    """
    if token_ids:
        output.tokens, output.source = len(token_ids), TOKEN_IDS
    elif logprobs is not None:
        told = len(logprobs.content or ()) + len(logprobs.refusal or ()) or len(logprobs.tokens or ())
        if told > echoed:
            output.tokens, output.source = told - echoed, LOGPROBS


def close_reading(
    outputs: list[Output], usage: ReportedUsage | None, timings: Timings | None, error: object
) -> Reading:
    """A reading of ``outputs`` and of the request's own fields; reported usage goes before timings."""
    reading = Reading(outputs)
    if usage is not None:
        reading.usage = usage_of(usage)
    elif timings is not None and len(outputs) == 1:
        reading.usage = timed_usage(timings)
        reading.per_choice = True
    if error is not None:
        reading.error = error_word(error)
    return reading


def read_choices(chunk: Any, output: Callable[[Any], Output]) -> Reading | None:
    """The meaning of an event with ``choices``, ``usage``, ``timings`` or ``error``; ``None``: it has none.

    ``output`` reads one choice.
    """
    if chunk.choices is None and chunk.usage is None and chunk.error is None and chunk.timings is None:
        return None
    outputs = [output(choice) for choice in chunk.choices or ()]
    return close_reading(outputs, chunk.usage, chunk.timings, chunk.error)


# ---------------------------------------------------------------- events with fields of other types


def loose_event(
    data: bytes, loose_choice: Callable[[dict[str, Any]], Any]
) -> tuple[list[Any] | None, ReportedUsage | None, Timings | None, object] | None:
    """Choices, usage, timings and error of an event, field by field; ``None``: it is no JSON.

    ``loose_choice`` reads one choice.
    """
    try:
        value = as_dict(loose(data))
        choices = value.get("choices")
        return (
            [loose_choice(as_dict(choice)) for choice in choices] if isinstance(choices, list) else None,
            loose_usage(value.get("usage")),
            loose_timings(value.get("timings")),
            value.get("error"),
        )
    except (ValueError, RecursionError):  # lists in lists, hundreds deep
        return None


def as_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def as_text(value: object) -> str | None:
    """Text, also where it comes as a list of parts (``[{"type": "text", "text": "..."}]``)."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [
            as_text(part.get("text")) if isinstance(part, dict) else as_text(part) for part in value[:1000]
        ]
        return "".join(part for part in parts if part) or None
    return None


def loose_usage(value: object) -> ReportedUsage | None:
    if not isinstance(value, dict):
        return None
    return ReportedUsage(
        count(value.get("prompt_tokens")),
        count(value.get("completion_tokens")),
        Details(cached_tokens=count(as_dict(value.get("prompt_tokens_details")).get("cached_tokens"))),
        Details(
            reasoning_tokens=count(as_dict(value.get("completion_tokens_details")).get("reasoning_tokens"))
        ),
    )


def loose_timings(value: object) -> Timings | None:
    if not isinstance(value, dict):
        return None
    return Timings(count(value.get("predicted_n")), count(value.get("prompt_n")), count(value.get("cache_n")))


def loose_logprobs(value: object) -> Logprobs | None:
    if not isinstance(value, dict):
        return None
    entry = Entry()
    return Logprobs(
        [entry] * len(as_list(value.get("content"))),
        [entry] * len(as_list(value.get("refusal"))),
        [None] * len(as_list(value.get("tokens"))),
    )


# ---------------------------------------------------------------- which of the two an event is

CHAT_CHUNK = "chat.completion.chunk"
COMPLETION = "text_completion"


def shape(fields: Fields) -> str | None:
    """What an event says it is (``object``), else what its first choice shows; ``None``: neither."""
    kind = plainly(fields, "object")
    if kind in (CHAT_CHUNK, COMPLETION):
        return str(kind)
    choices = plainly(fields, "choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(first, dict):
        if first.get("delta") is not None:
            return CHAT_CHUNK
        if first.get("text") is not None:
            return COMPLETION
    return None
