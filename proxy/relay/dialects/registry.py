"""Which dialect a stream speaks: by its path, confirmed by its first event.

``by_path`` matches the end of the path, so that a base path in front of it does not matter. ``sniff``
looks at the first data event that is an object: its ``object`` field decides, then the shape of its first
choice.  A chat behind a rewritten path is recognised; what nobody recognises is generic.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from proxy.relay.dialects.base import BROKEN, Dialect, identifier
from proxy.relay.dialects.generic import Generic
from proxy.relay.dialects.openai_chat import OpenAIChat
from proxy.relay.dialects.openai_completions import OpenAICompletions

CHAT: Final[Dialect] = OpenAIChat()
COMPLETIONS: Final[Dialect] = OpenAICompletions()
GENERIC: Final[Dialect] = Generic()

_BY_OBJECT: Final = {"chat.completion.chunk": CHAT, "text_completion": COMPLETIONS}


class Sniffed(NamedTuple):
    """``dialect``: what the event shows, if anything; ``blank``: it says nothing at all (``null``)."""

    dialect: Dialect | None
    response_id: str | None
    blank: bool


class _Choice(Struct, gc=False):
    delta: object = None
    text: object = None


class _Head(Struct, gc=False, rename={"kind": "object"}):
    id: object = None
    kind: object = None
    choices: list[_Choice] | None = None


_decode: Final = msgspec.json.Decoder(_Head).decode


def by_path(path: str) -> Dialect | None:
    """The dialect that a request's path promises."""
    path = path.rstrip("/")
    if path.endswith("/chat/completions"):
        return CHAT
    if path.endswith("/completions"):
        return COMPLETIONS
    return None


def sniff(data: bytes) -> Sniffed:
    """What an event shows of its dialect, and the response's id."""
    try:
        head = _decode(data)
    except BROKEN:
        return Sniffed(None, None, data.strip() in (b"null", b"{}"))
    dialect = _BY_OBJECT.get(head.kind) if isinstance(head.kind, str) else None
    if dialect is None and head.choices:
        if head.choices[0].delta is not None:
            dialect = CHAT
        elif head.choices[0].text is not None:
            dialect = COMPLETIONS
    return Sniffed(dialect, identifier(head.id), data.strip() == b"{}")
