"""Which dialect a stream speaks: by its path, confirmed by its first event.

``by_path`` asks what a path promises (its end, so that a base path in front of it does not matter).
``sniff`` looks at an event that is an object: the first dialect that its fields prove.  A chat behind a
rewritten path is recognised; what nobody recognises is generic.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from proxy.relay.dialects.anthropic import AnthropicMessages
from proxy.relay.dialects.base import BROKEN, Dialect
from proxy.relay.dialects.gemini import GeminiGenerate
from proxy.relay.dialects.generic import Generic
from proxy.relay.dialects.llamacpp import LlamaCppCompletion
from proxy.relay.dialects.ollama import OllamaChat, OllamaGenerate
from proxy.relay.dialects.openai_chat import OpenAIChat
from proxy.relay.dialects.openai_completions import OpenAICompletions
from proxy.relay.dialects.openai_responses import OpenAIResponses
from proxy.relay.dialects.sglang import SGLangGenerate
from proxy.relay.dialects.tgi import TGIGenerate
from proxy.relay.dialects.triton import TritonGenerate

GENERIC: Final[Dialect] = Generic()

#: All of them, those first whose proof is the surest.
DIALECTS: Final[tuple[Dialect, ...]] = (
    OpenAIChat(),
    OpenAICompletions(),
    OpenAIResponses(),
    AnthropicMessages(),
    OllamaGenerate(),  # before SGLang's: its path ends the same
    OllamaChat(),
    SGLangGenerate(),
    LlamaCppCompletion(),
    TGIGenerate(),
    TritonGenerate(),
    GeminiGenerate(),
    GENERIC,
)

_BY_NAME: Final = {dialect.name: dialect for dialect in DIALECTS}


class Sniffed(NamedTuple):
    """``dialect``: what the event shows, if anything; ``blank``: it says nothing at all (``null``)."""

    dialect: Dialect | None
    response_id: str | None
    blank: bool
    model: str | None = None


_decode: Final = msgspec.json.Decoder(dict[str, Raw]).decode


def by_name(name: str) -> Dialect | None:
    """The dialect of that name, for routes that set it."""
    return _BY_NAME.get(name)


def by_path(path: str) -> Dialect | None:
    """The dialect that a request's path promises."""
    path = path.rstrip("/") or "/"
    return next((dialect for dialect in DIALECTS if dialect.serves(path)), None)


def sniff(data: bytes, promised: Dialect | None = None) -> Sniffed:
    """What an event shows of its dialect, the response's id, and the model that the response names.

    ``promised``: what the path said; where the event proves that one, no other is asked.
    """
    try:
        fields = _decode(data)
    except BROKEN:
        return Sniffed(None, None, data.strip() == b"null")
    shown = promised if promised is not None and promised.shows(fields) else None
    if shown is None:
        shown = next((dialect for dialect in DIALECTS if dialect.shows(fields)), None)
    asked = shown or promised or GENERIC
    return Sniffed(shown, asked.response_id(fields), not fields, asked.model(fields))
