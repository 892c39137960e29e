"""SGLang's own ``/generate``: every event repeats the answer so far, and tells how many tokens it has.

``{"text": ..., "output_ids": [...], "meta_info": {"id", "finish_reason", "prompt_tokens",
"completion_tokens", ...}, "index": choice}``.  Sources: SGLang's documentation, "SGLang Native APIs" and
"Sampling Parameters" (https://docs.sglang.io/basic_usage/), and its server option
``--incremental-streaming-output``; its gateway speaks the same.

- ``completion_tokens`` is the choice's own running usage, exact wherever the text is held back or repeated,
  so a plain event is told by it alone (``quick``), and text and ids, long as they grow, are not read.
- ``text`` is all of the answer so far, or only what is new: ids that are fewer than the tokens so far mean
  that the event is incremental.  Some versions (and the gateway) send new ids beside the whole text, which no
  single event gives away; then sizes are too large, and counts are right.
- ``reasoning_tokens`` are part of ``text`` like all others: reported as reasoning, they would be taken off as
  hidden.  They are left out.
- A server without a tokenizer (``--skip-tokenizer-init``) sends ids and no text: ids are output then.
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
    Fields,
    Output,
    Reading,
    count,
    error_word,
    identifier,
    loose,
    model_name,
    plainly,
    utf8_size,
    word,
)
from proxy.relay.dialects.openai import as_dict


class MetaInfo(Struct, gc=False):
    """``finish_reason``: ``{"type": "stop" | "length" | "abort", ...}``, in old versions a word."""

    completion_tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: object = None


class Chunk(Struct, gc=False):
    """``meta_info is None``: no event of this dialect, unless it is an error."""

    meta_info: MetaInfo | None = None
    text: str | None = None
    output_ids: list[int] | None = None
    index: int = 0
    error: object = None


_decode: Final = msgspec.json.Decoder(Chunk).decode


class _PlainMeta(Struct, gc=False):
    completion_tokens: Annotated[int, Meta(ge=1, lt=2**53)]
    finish_reason: None = None


class _PlainEnd(Struct, gc=False):
    """An event from its ``meta_info`` on."""

    meta_info: _PlainMeta
    index: Literal[0] = 0
    error: None = None


_decode_plain: Final = msgspec.json.Decoder(_PlainEnd).decode


_META: Final = b'"meta_info":'
_TEXT: Final = (b'{"text":"', b'{"text": "')
_NO_TEXT: Final = (b'{"text":""', b'{"text": ""')


class SGLangGenerate:
    """See the module."""

    name = "sglang.generate"
    counted_end = False
    plain_rank = RANKS[RUNNING_USAGE]
    decode = staticmethod(_decode)

    @staticmethod
    def serves(path: str) -> bool:
        """``*/generate``, which others have too: an event has to show the rest.  Triton's is not it."""
        return path.endswith("/generate") and "/v2/models/" not in path

    @staticmethod
    def shows(fields: Fields) -> bool:
        """``meta_info`` beside text or ids."""
        return "meta_info" in fields and ("text" in fields or "output_ids" in fields)

    @staticmethod
    def response_id(fields: Fields) -> str | None:
        """``meta_info.id``; of several choices each has its own, the first to come names the response."""
        return identifier(as_dict(plainly(fields, "meta_info")).get("id"))

    @staticmethod
    def model(fields: Fields) -> str | None:
        """``model``, where it is given: the server serves one."""
        return model_name(plainly(fields, "model"))

    @staticmethod
    def quick(data: bytes) -> int:
        """-(tokens so far) of choice 0, for an event that does not finish.

        Text and ids, long as they grow, are not looked at: what stands from the last ``"meta_info":`` to the
        end is an object's end.  Quotes within a string are escaped, so this is a key; brackets balance, so it
        is one of the event's own.
        """
        at = data.rfind(_META)
        if at < 0 or not data.startswith(_TEXT) or data.startswith(_NO_TEXT):
            return 0
        return -_decode_plain(b"{" + data[at:]).meta_info.completion_tokens

    @staticmethod
    def plain(chunk: Chunk) -> int:
        """Never: no event tells that it brought one token, it tells how many there are."""
        return 0

    @staticmethod
    def read(chunk: Chunk) -> Reading | None:
        """One choice's output so far, and its own usage."""
        meta = chunk.meta_info
        if meta is None:
            return None if chunk.error is None else Reading(error=error_word(chunk.error))
        reading = Reading([_output(chunk, meta)], _usage(meta), per_choice=True)
        reading.error = _aborted(meta.finish_reason) if chunk.error is None else error_word(chunk.error)
        return reading

    @staticmethod
    def mend(data: bytes) -> Chunk | None:
        """Field by field, what can be understood; ``None``: no JSON."""
        try:
            value = as_dict(loose(data))
        except ValueError:
            return None
        meta, ids, text = value.get("meta_info"), value.get("output_ids"), value.get("text")
        if text is not None and not isinstance(text, str):
            text = "?"  # whatever it is, it is output
        return Chunk(
            _loose_meta(meta) if isinstance(meta, dict) else None,
            text,
            [0] * len(ids) if isinstance(ids, list) else None,  # only their number matters
            count(value.get("index")) or 0,
            value.get("error"),
        )


def _output(chunk: Chunk, meta: MetaInfo) -> Output:
    output = Output(count(chunk.index) or 0, finish=_finish(meta.finish_reason))
    text, ids = chunk.text, chunk.output_ids
    if text is None:
        output.kind = ANSWER if ids else 0
        return output
    size = utf8_size(text)
    output.kind = ANSWER if size else 0
    told = count(meta.completion_tokens)
    if ids is not None and told is not None and len(ids) < told:
        output.size = size
    else:
        output.total = size
    return output


def _usage(meta: MetaInfo) -> Usage:
    return Usage(
        prompt=count(meta.prompt_tokens),
        output=count(meta.completion_tokens),
        cached=count(meta.cached_tokens),
    )


def _finish(reason: object) -> str | None:
    if not reason:
        return None
    return word(reason.get("type") if isinstance(reason, dict) else reason, "other")


def _aborted(reason: object) -> str | None:
    """What the server aborts itself has a type or a status; without them somebody asked for it."""
    if not isinstance(reason, dict) or reason.get("type") != "abort":
        return None
    return word(reason.get("err_type"), "") or word(reason.get("status_code"), "") or None


def _loose_meta(value: dict[str, object]) -> MetaInfo:
    return MetaInfo(
        count(value.get("completion_tokens")),
        count(value.get("prompt_tokens")),
        count(value.get("cached_tokens")),
        value.get("finish_reason"),
    )
