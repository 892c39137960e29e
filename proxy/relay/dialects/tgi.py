"""Hugging Face's text-generation-inference (TGI): ``/generate_stream``, and ``/`` and ``/invocations``.

Each event is one token, with its id; ``index`` is its number, no choice's.  Output is the text of a token
that is not ``special``.  A special one (the end of the sequence) and one without text (half a UTF-8
character) are held back for the next output, or for the finish.  The last event has ``generated_text``, and
``details`` with the finish reason and the counts where the request asked for them; else why it ended is
``unstated``.
Errors are ``{"error": "message", "error_type": "overloaded"}``: the type is the word.

Sources: https://huggingface.github.io/text-generation-inference/ (the OpenAPI description:
``StreamResponse``, ``StreamDetails``, ``Token``, ``ErrorResponse``), and router/src/server.rs in
https://github.com/huggingface/text-generation-inference.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from proxy.link import Usage
from proxy.relay.dialects.base import (
    ANSWER,
    LOGPROBS,
    RANKS,
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
from proxy.relay.dialects.openai import as_dict, as_list

_UNSTATED: Final = "unstated"


class Chunk(Struct, gc=False):
    """One event.  The types are looked at when it is read: one odd field spoils no other."""

    token: object = None
    generated_text: object = None
    details: object = None
    error: object = None
    error_type: object = None


_decode: Final = msgspec.json.Decoder(Chunk).decode


class _PlainToken(Struct, gc=False):
    text: SomeText
    id: Annotated[int, Meta(ge=0, lt=2**53)]
    special: bool = False


class _PlainChunk(Struct, gc=False):
    token: _PlainToken
    generated_text: None = None
    details: None = None
    error: None = None
    error_type: None = None


_decode_plain: Final = msgspec.json.Decoder(_PlainChunk).decode


class TGIGenerate:
    """See the module."""

    name = "tgi.generate"
    counted_end = False
    plain_rank = RANKS[TOKEN_IDS]
    decode = staticmethod(_decode)

    @staticmethod
    def serves(path: str) -> bool:
        """``/`` (its older route), ``*/invocations`` (SageMaker), or ``*/generate_stream``; not Triton's."""
        if path in ("", "/"):
            return True
        return path.endswith(("/generate_stream", "/invocations")) and "/v2/models/" not in path

    @staticmethod
    def shows(fields: Fields) -> bool:
        """A token, and what TGI always has beside it."""
        beside = "generated_text" in fields or "details" in fields
        return beside and isinstance(plainly(fields, "token"), dict)

    @staticmethod
    def response_id(fields: Fields) -> str | None:
        """There is none."""
        return None

    @staticmethod
    def model(fields: Fields) -> str | None:
        """``model``, where it is given: the server serves one."""
        return model_name(plainly(fields, "model"))

    @staticmethod
    def quick(data: bytes) -> int:
        """Bytes of text of one token that is shown, with nothing else."""
        token = _decode_plain(data).token
        text = token.text
        if token.special:
            return 0
        return len(text) if text.isascii() else utf8_size(text)

    @staticmethod
    def plain(chunk: Chunk) -> int:
        """Bytes of text, if one token's is all that there is."""
        token = chunk.token
        if not isinstance(token, dict) or token.get("special") or count(token.get("id")) is None:
            return 0
        if chunk.generated_text is not None or chunk.details is not None:
            return 0
        if chunk.error is not None or chunk.error_type is not None:
            return 0
        text = token.get("text")
        return utf8_size(text) if isinstance(text, str) else 0

    @staticmethod
    def read(chunk: Chunk) -> Reading | None:
        """Everything that an event may carry."""
        if chunk.error is not None or chunk.error_type is not None:
            return Reading(error=word(chunk.error_type, "") or error_word(chunk.error))
        ended = chunk.generated_text is not None or chunk.details is not None
        if not isinstance(chunk.token, dict) and not ended:
            return None
        details = as_dict(chunk.details)
        output = _output(as_dict(chunk.token))
        if ended:
            reason = details.get("finish_reason")
            output.finish = word(reason, "other") if reason else _UNSTATED
        return Reading([output], _usage(details))

    @staticmethod
    def mend(data: bytes) -> Chunk | None:
        """What can be understood; ``None``: no JSON."""
        try:
            value = as_dict(loose(data))
        except ValueError:
            return None
        return Chunk(*(value.get(name) for name in Chunk.__struct_fields__))


def _output(token: dict[str, Any]) -> Output:
    output = Output(0)
    text = token.get("text")
    if isinstance(text, str) and text and not token.get("special"):
        output.kind = ANSWER
        output.size = utf8_size(text)
    if count(token.get("id")) is not None:
        output.tokens, output.source = 1, TOKEN_IDS
    elif isinstance(token.get("logprob"), int | float):
        output.tokens, output.source = 1, LOGPROBS
    return output


def _usage(details: dict[str, Any]) -> Usage | None:
    prompt, output = count(details.get("input_length")), count(details.get("generated_tokens"))
    if prompt is None:  # older servers: the prompt's tokens, one by one
        prompt = len(as_list(details.get("prefill"))) or None
    return None if prompt is None and output is None else Usage(prompt=prompt, output=output)
