"""What a JSON body says of an answer: usage, finish reason, error word, id and model, for every family.

``read_whole(body) -> Told`` reads a body; ``read_cut(head, tail) -> Told`` one of which only the beginning
and the end were kept.  Both raise one of ``BROKEN`` at most.  Text is skipped, never built.

Sources: the API references of OpenAI (chat, completions, embeddings, responses), Anthropic (messages: what
was cached and what was written to the cache are not in ``input_tokens``), Ollama (docs/api.md), TGI
(docs/openapi.json), Gemini (generateContent), Triton (generate extension: no counts), SGLang's native API
and llama.cpp's tools/server/README.md; shapes of vLLM, llama.cpp and transformers as recorded.

A cut body is read by its fragments: ``}`` behind what stands before the last of the body's own keys near its
beginning, ``{`` before one near its end.  Near the end nothing tells how deep a key stands, but the second is
JSON if, and only if, it is the body's own: the braces prove it.  A string cannot pass for a key, since a
quote in it is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw, Struct

from proxy.link import Usage
from proxy.relay.dialects.base import BROKEN, count, error_word, identifier, model_name, word
from proxy.relay.dialects.openai import as_dict, as_list

#: Elements of a list of answers (one for each prompt of a batch); longer lists are something else.
ANSWERS_MAX: Final = 1024

_ABSENT: Final = Raw()
_NOTHING: Final = Usage()
_BOM: Final = b"\xef\xbb\xbf"
_TRIES: Final = 8  # places where a key of that name is looked at; those inside others are many


class Told(NamedTuple):
    """What a body told; ``None`` where it told nothing."""

    usage: Usage = Usage()
    finish_reason: str | None = None
    error: str | None = None
    response_id: str | None = None
    model: str | None = None


class _Fields(Struct, gc=False, rename={"kind": "object"}):
    """The top-level fields that matter, undecoded; what is not one of them is skipped."""

    id: Raw = _ABSENT
    kind: Raw = _ABSENT
    usage: Raw = _ABSENT
    choices: Raw = _ABSENT
    error: Raw = _ABSENT
    type: Raw = _ABSENT  # of an error that is the body itself
    code: Raw = _ABSENT
    status: Raw = _ABSENT  # OpenAI's responses
    incomplete_details: Raw = _ABSENT
    stop_reason: Raw = _ABSENT  # Anthropic
    done_reason: Raw = _ABSENT  # Ollama
    eval_count: Raw = _ABSENT
    prompt_eval_count: Raw = _ABSENT
    details: Raw = _ABSENT  # TGI
    error_type: Raw = _ABSENT
    meta_info: Raw = _ABSENT  # SGLang
    tokens_predicted: Raw = _ABSENT  # llama.cpp
    tokens_evaluated: Raw = _ABSENT
    stop_type: Raw = _ABSENT
    stopped_eos: Raw = _ABSENT
    stopped_word: Raw = _ABSENT
    stopped_limit: Raw = _ABSENT
    timings: Raw = _ABSENT
    usageMetadata: Raw = _ABSENT  # Gemini
    candidates: Raw = _ABSENT
    promptFeedback: Raw = _ABSENT
    responseId: Raw = _ABSENT
    modelVersion: Raw = _ABSENT
    model: Raw = _ABSENT
    model_name: Raw = _ABSENT  # Triton


class _Choice(Struct, gc=False):
    """An element of ``choices`` (OpenAI) or ``candidates`` (Gemini)."""

    finish_reason: object = None
    finishReason: object = None


class _Anything(Struct, gc=False):
    """An object whose fields do not matter."""


_decode: Final = msgspec.json.Decoder(_Fields).decode
_decode_list: Final = msgspec.json.Decoder(list[_Fields]).decode
_decode_length: Final = msgspec.json.Decoder(list[_Anything]).decode
_decode_choices: Final = msgspec.json.Decoder(list[_Choice]).decode
_decode_any: Final = msgspec.json.Decoder().decode

_OLD_STOPS: Final = ("stopped_eos", "eos"), ("stopped_word", "word"), ("stopped_limit", "limit")
_ENDS: Final = ("completed", "incomplete")
#: What is looked for near the end of a cut body: the keys from which on the rest tells something.
_NEAR_THE_END: Final = tuple(
    b'"%s"' % name.encode()
    for name in (
        *("usage", "choices", "id", "error", "status", "incomplete_details", "stop_reason"),
        *("done_reason", "prompt_eval_count", "eval_count", "details", "meta_info"),
        *("tokens_predicted", "tokens_evaluated", "stop_type", "timings", *(name for name, _ in _OLD_STOPS)),
        *("usageMetadata", "candidates", "promptFeedback", "responseId", "modelVersion", "model"),
    )
)
#: Brackets, strings and keys; a string that is cut is taken whole too, lest each quote in it be tried anew.
_TOKENS: Final = re.compile(rb'[][{}]|"(?:[^"\\]|\\.)*+(?:"(\s*:)?)?', re.DOTALL)
_FINISH: Final = re.compile(rb'"(?:finish_reason|finishReason)"\s{0,8}:\s{0,8}"([^"\\]{1,64})"')


def read_whole(body: bytes | bytearray) -> Told:
    """The whole body: an object, or a list of them, whose numbers are added up."""
    body = body.removeprefix(_BOM)
    if body.lstrip()[:1] != b"[":
        return _told(_decode(body))
    if len(_decode_length(body)) > ANSWERS_MAX:
        return Told()
    answers = _decode_list(body)
    told = [_told(answer) for answer in answers]
    if not told:
        return Told()
    if answers[-1].usageMetadata is not _ABSENT:  # a stream's events in a list: each counts from the start
        usage = told[-1].usage
    else:
        usage = Usage(*(_sum([each.usage for each in told], name) for name in Usage.__struct_fields__))
    return Told(
        usage,
        next((each.finish_reason for each in told if each.finish_reason is not None), None),
        next((each.error for each in told if each.error is not None), None),
        next((each.response_id for each in told if each.response_id is not None), None),
        next((each.model for each in told if each.model is not None), None),
    )


def read_cut(head: bytes, tail: bytes) -> Told:
    """A body of which the middle is missing.  Of a list nothing is told: its sums would lack some."""
    head = head.removeprefix(_BOM)
    if head.lstrip()[:1] != b"{":
        return Told()
    first, last = _before_the_gap(head), _behind_the_gap(tail)
    fields = _Fields(
        *(
            getattr(first if getattr(last, name) is _ABSENT else last, name)
            for name in _Fields.__struct_fields__
        )
    )
    told = _told(fields)
    return told if told.finish_reason is not None else told._replace(finish_reason=_cut_reason(head, tail))


def _cut_reason(head: bytes, tail: bytes) -> str | None:
    """The finish reason of a choice whose beginning or end is missing."""
    for key in (b'"finish_reason"', b'"finishReason"'):
        for part, at in (*((tail, at) for at in _last(tail, key)), (head, max(head.find(key), 0))):
            reason = _FINISH.match(part, at)
            if reason is not None:
                return word(reason[1].decode("latin-1"), "other")
    return None


def _before_the_gap(head: bytes) -> _Fields:
    """The body's own fields that stand whole in ``head``: all that come before the last key of its own."""
    depth = last = 0
    for token in _TOKENS.finditer(head):
        first = head[token.start()]
        if first in b"{[":
            depth += 1
        elif first in b"}]":
            depth -= 1
        elif depth == 1 and token[1] is not None:
            last = token.start()
    try:
        return _decode(head[:last].rstrip().removesuffix(b",") + b"}")
    except BROKEN:
        return _Fields()


def _behind_the_gap(tail: bytes) -> _Fields:
    """The body's own fields that stand whole in ``tail``: from the first of its last keys on."""
    found = _Fields()
    for at in sorted({at for key in _NEAR_THE_END for at in _last(tail, key)}, reverse=True):
        try:
            found = _decode(b"{" + tail[at:])
        except BROKEN:
            continue
    return found


def _last(tail: bytes, key: bytes) -> Iterator[int]:
    """Where ``key`` stands, the last places first."""
    at = len(tail)
    for _ in range(_TRIES):
        at = tail.rfind(key, 0, at)
        if at < 0:
            return
        yield at


# ---------------------------------------------------------------- one answer


def _told(fields: _Fields) -> Told:
    meta = as_dict(_plain(fields.meta_info))
    response_id = identifier(_plain(fields.id)) or identifier(_plain(fields.responseId))
    named = (_plain(raw) for raw in (fields.model, fields.modelVersion, fields.model_name))
    model = next((name for name in map(model_name, named) if name is not None), None)
    return Told(
        _usage(fields, meta),
        _finish_reason(fields, meta),
        _error(fields, meta),
        response_id or identifier(meta.get("id")),
        model,
    )


def _plain(raw: Raw) -> Any:
    """A field, decoded; ``None`` where it is missing or cannot be read."""
    if raw is _ABSENT:
        return None
    try:
        return _decode_any(raw)
    except BROKEN:
        return None


def _usage(fields: _Fields, meta: dict[str, Any]) -> Usage:
    usage = Usage()
    if fields.usage is not _ABSENT:
        usage = _of_usage(as_dict(_plain(fields.usage)))
    if usage == _NOTHING and fields.usageMetadata is not _ABSENT:
        usage = _of_gemini(as_dict(_plain(fields.usageMetadata)))
    if usage == _NOTHING and meta:
        usage = Usage(*(count(meta.get(f"{kind}_tokens")) for kind in ("prompt", "completion", "cached")))
    if usage == _NOTHING and fields.details is not _ABSENT:
        usage = _of_tgi(as_dict(_plain(fields.details)))
    if usage == _NOTHING:
        usage = Usage(count(_plain(fields.tokens_evaluated)), count(_plain(fields.tokens_predicted)))
    if usage == _NOTHING:
        usage = Usage(count(_plain(fields.prompt_eval_count)), count(_plain(fields.eval_count)))
    if fields.timings is _ABSENT:
        return usage
    timed = _of_timings(as_dict(_plain(fields.timings)))
    if usage == _NOTHING:
        return timed
    cached = timed.cached if usage.cached is None else usage.cached
    return Usage(usage.prompt, usage.output, cached, usage.reasoning)


def _of_usage(usage: dict[str, Any]) -> Usage:
    """OpenAI's names, then those of Anthropic and of OpenAI's responses."""
    output = _first(usage, "completion_tokens", "output_tokens")
    prompt = _first(usage, "prompt_tokens", "input_tokens")
    cached = _detail(usage, ("prompt_tokens_details", "input_tokens_details"), ("cached_tokens",))
    places = "completion_tokens_details", "output_tokens_details"
    reasoning = _detail(usage, places, ("reasoning_tokens", "thinking_tokens"))
    read, written = (
        count(usage.get("cache_read_input_tokens")),
        count(usage.get("cache_creation_input_tokens")),
    )
    if read is not None or written is not None:
        prompt = None if prompt is None else count(prompt + (read or 0) + (written or 0))
        cached = read if cached is None else cached
    return Usage(prompt, output, cached, reasoning)


def _of_gemini(usage: dict[str, Any]) -> Usage:
    """Thoughts are not among the candidates' tokens."""
    answer, thoughts = count(usage.get("candidatesTokenCount")), count(usage.get("thoughtsTokenCount"))
    return Usage(
        prompt=count(usage.get("promptTokenCount")),
        output=None if answer is None and thoughts is None else (answer or 0) + (thoughts or 0),
        cached=count(usage.get("cachedContentTokenCount")),
        reasoning=thoughts,
    )


def _of_tgi(details: dict[str, Any]) -> Usage:
    """The prompt's length, or (older versions, where asked for) its tokens one by one."""
    prompt = count(details.get("input_length"))
    if prompt is None:
        prompt = len(as_list(details.get("prefill"))) or None
    return Usage(prompt, count(details.get("generated_tokens")))


def _of_timings(timings: dict[str, Any]) -> Usage:
    """llama.cpp's: the prompt is what was processed and what was in its cache."""
    fresh, cached = count(timings.get("prompt_n")), count(timings.get("cache_n"))
    return Usage(None if fresh is None else fresh + (cached or 0), count(timings.get("predicted_n")), cached)


def _detail(usage: dict[str, Any], places: tuple[str, ...], keys: tuple[str, ...]) -> int | None:
    numbers = (_first(as_dict(usage.get(place)), *keys) for place in places)
    return next((number for number in numbers if number is not None), None)


def _first(told: dict[str, Any], *names: str) -> int | None:
    numbers = (count(told.get(name)) for name in names)
    return next((number for number in numbers if number is not None), None)


def _sum(usages: list[Usage], name: str) -> int | None:
    numbers = [number for usage in usages if (number := getattr(usage, name)) is not None]
    return count(sum(numbers)) if numbers else None


def _finish_reason(fields: _Fields, meta: dict[str, Any]) -> str | None:
    """The first choice's, in the server's own word."""
    reason = _of_choices(fields.choices) or _of_choices(fields.candidates) or _plain(fields.stop_reason)
    if not reason and _plain(fields.kind) == "response":
        status = _plain(fields.status)  # vLLM says "completed" of an answer that is incomplete
        reason = as_dict(_plain(fields.incomplete_details)).get("reason") or (
            status if status in _ENDS else 0
        )
    reason = reason or _plain(fields.done_reason) or meta.get("finish_reason")
    if isinstance(reason, dict):
        reason = reason.get("type")
    if not reason:
        reason = as_dict(_plain(fields.details)).get("finish_reason") or _plain(fields.stop_type)
    if not reason:
        reason = next((what for name, what in _OLD_STOPS if _plain(getattr(fields, name)) is True), None)
        reason = reason or as_dict(_plain(fields.promptFeedback)).get("blockReason")
    return word(reason, "other") if reason else None


def _of_choices(raw: Raw) -> object:
    if raw is _ABSENT:
        return None
    try:
        choices = _decode_choices(raw)
    except BROKEN:
        return None
    reasons = [choice.finish_reason or choice.finishReason for choice in choices[:1]]
    return reasons[0] if reasons else None


def _error(fields: _Fields, meta: dict[str, Any]) -> str | None:
    """An error's type or code, never its message."""
    named = word(_plain(fields.error_type), "")
    if named:
        return named
    error = _plain(fields.error)
    if error is not None:
        inner = as_dict(error)
        status = "" if word(inner.get("type"), "") else word(inner.get("status"), "")
        return status or error_word(error)
    if _plain(fields.kind) == "error":  # the body itself (older vLLM, SGLang)
        return error_word({"type": _plain(fields.type), "code": _plain(fields.code)})
    if _plain(fields.kind) == "response" and _plain(fields.status) == "failed":
        return "error"
    reason = meta.get("finish_reason")
    if isinstance(reason, dict) and reason.get("type") == "abort":
        return word(reason.get("err_type"), "") or word(reason.get("status_code"), "") or None
    return None
