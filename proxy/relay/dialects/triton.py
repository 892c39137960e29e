"""Triton's generate extension: ``/v2/models/NAME[/versions/V]/generate_stream``.

``{"model_name", "model_version", "text_output": "piece", ...}``.  Sources: Triton Inference Server, "Generate
Extension"; TensorRT-LLM backend, README ("Using the generate endpoint") and its model configuration
(``batch_index``, ``sequence_index``); vLLM backend, "Additional Outputs from vLLM".

- An event with text is one token, unless it says how many (``num_output_tokens`` of the vLLM backend).
  ``output_log_probs`` says nothing: padded with zeros, or those of all tokens so far.
- Whether a piece repeats the prompt or what went before (``accumulate_tokens``) is the model's configuration;
  no event tells it, so it is not guessed.
- No finish reason is due: a clean end is the end.  The vLLM backend adds one on request, which is the word
  ``None`` until then.
- ``sequence_start`` and ``sequence_end`` repeat the request's, they end nothing.
- Outputs are a model's tensors: with several elements they are lists.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from proxy.relay.dialects.base import (
    ANSWER,
    EVENTS,
    RANKS,
    TOKEN_IDS,
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
from proxy.relay.dialects.openai import as_dict, as_text

#: What the vLLM backend says until there is a reason.
_NO_REASON: Final = "None"

_PATH: Final = re.compile(r"/v2/models/[^/]+(?:/versions/[^/]+)?/generate(?:_stream)?")


class Chunk(Struct, gc=False):
    """``text_output is None``: no event of this dialect, unless it is an error."""

    text_output: str | None = None
    batch_index: int = 0
    sequence_index: int = 0
    num_output_tokens: int | None = None
    finish_reason: str | None = None
    error: object = None


_decode: Final = msgspec.json.Decoder(Chunk).decode


class _PlainChunk(Struct, gc=False):
    text_output: SomeText
    batch_index: Literal[0] = 0
    sequence_index: Literal[0] = 0
    num_output_tokens: None = None
    finish_reason: Literal["", "None"] | None = None
    error: None = None


_decode_plain: Final = msgspec.json.Decoder(_PlainChunk).decode


class TritonGenerate:
    """See the module."""

    name = "triton.generate"
    counted_end = True
    plain_rank = RANKS[EVENTS]
    decode = staticmethod(_decode)

    @staticmethod
    def serves(path: str) -> bool:
        """A model's ``generate_stream``, or ``generate``, which answers with the same object once."""
        at = path.rfind("/v2/models/")
        return at >= 0 and _PATH.fullmatch(path, at) is not None

    @staticmethod
    def shows(fields: Fields) -> bool:
        """A model's name beside its text."""
        return "text_output" in fields and "model_name" in fields

    @staticmethod
    def response_id(fields: Fields) -> str | None:
        """``id``, where the request gave one."""
        return identifier(plainly(fields, "id"))

    @staticmethod
    def model(fields: Fields) -> str | None:
        """``model_name``."""
        return model_name(plainly(fields, "model_name"))

    @staticmethod
    def quick(data: bytes) -> int:
        """Bytes of text of an event that carries nothing else."""
        text = _decode_plain(data).text_output
        return len(text) if text.isascii() else utf8_size(text)

    @staticmethod
    def plain(chunk: Chunk) -> int:
        """Bytes of text, if choice 0's is all that there is."""
        if chunk.batch_index or chunk.sequence_index or chunk.num_output_tokens is not None:
            return 0
        if _ends(chunk) or chunk.error is not None or not chunk.text_output:
            return 0
        return utf8_size(chunk.text_output)

    @staticmethod
    def read(chunk: Chunk) -> Reading | None:
        """One piece of text.  Beside an error it is none: the vLLM backend fills it with ``N/A``."""
        if chunk.error is not None:
            return Reading(error=error_word(chunk.error))
        text = chunk.text_output
        if text is None:
            return None
        output = Output(count(chunk.sequence_index) or count(chunk.batch_index) or 0)
        if text:
            output.kind = ANSWER
            output.size = utf8_size(text)
        told = count(chunk.num_output_tokens)
        if told:
            output.tokens, output.source = told, TOKEN_IDS
        if _ends(chunk):
            output.finish = word(chunk.finish_reason, "other")
        return Reading([output])

    @staticmethod
    def mend(data: bytes) -> Chunk | None:
        """Field by field, what can be understood; ``None``: no JSON."""
        try:
            value = as_dict(loose(data))
        except ValueError:
            return None
        return Chunk(
            as_text(value.get("text_output")),
            count(_first(value.get("batch_index"))) or 0,
            count(_first(value.get("sequence_index"))) or 0,
            _sum(value.get("num_output_tokens")),
            _last_word(value.get("finish_reason")),
            value.get("error"),
        )


def _ends(chunk: Chunk) -> bool:
    return bool(chunk.finish_reason) and chunk.finish_reason != _NO_REASON


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def _sum(value: Any) -> int | None:
    """A number, or those of several sequences in one event together."""
    if isinstance(value, list):
        numbers = [count(item) for item in value[:1000]]
        return sum(number for number in numbers if number is not None)
    return count(value)


def _last_word(value: Any) -> str | None:
    """The reason; of several sequences, the last one's once all of them have one."""
    if isinstance(value, list):
        words = [item for item in value[:1000] if isinstance(item, str)]
        return words[-1] if words and _NO_REASON not in words else None
    return value if isinstance(value, str) else None
