"""What an event of a stream means: the words that every dialect speaks.

A dialect is pure: bytes of one event in, a meaning out.  It keeps nothing between events; counting,
stamping and scoring are the tap's.  It is asked in three steps, the cheapest first:

1. ``decode(data) -> chunk``: the typed decoder, for well-formed events; raises one of ``BROKEN``.
   ``mend(data) -> chunk | None`` takes what it refused: fields of other types, broken UTF-8; ``None``:
   broken.
2. ``plain(chunk) -> size``: by far the most events carry one piece of answer text for choice 0 and nothing
   else.  Their UTF-8 size, or 0 for every other event.
3. ``read(chunk) -> Reading | None``: everything else; ``None``: not an event of this dialect.

``quick(data) -> size`` is the first two in one for the hot path, by a decoder whose types admit nothing but a
plain event: for any other it gives 0 or raises one of ``BROKEN``, and the event takes the three steps.  Where
every event tells how many tokens there were so far, it gives their number, negative.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Protocol

import msgspec
from msgspec import Meta, Raw, Struct

from proxy.link import Usage

#: What an event's output is; a bit each, since one event may carry several.
ANSWER: Final = 1
REASONING: Final = 2
TOOL: Final = 4
REFUSAL: Final = 8

#: How an output's tokens were counted, from the surest to the least sure.
TOKEN_IDS: Final = "token_ids"
LOGPROBS: Final = "logprobs"
RUNNING_USAGE: Final = "running_usage"
EVENTS: Final = "events"
RANKS: Final = {TOKEN_IDS: 3, LOGPROBS: 2, RUNNING_USAGE: 1, EVENTS: 0}

#: What ``decode`` raises on an event that it cannot read.
BROKEN: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_LOOSE_LIMIT: Final = 64 * 1024
_COUNT_MAX: Final = 2**53
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.:/-]{0,63}")
_ID: Final = re.compile(r"[\x21-\x7e]{1,200}")
_NAME_MAX: Final = 256


class Output(Struct, gc=False):
    """What one event brought to one choice.

    ``kind``: bits of ANSWER, REASONING, TOOL, REFUSAL; 0: no output (a role, an empty delta).
    ``size``: its bytes of UTF-8.  ``tokens``: their number as the event itself tells it by ``source``
    (token ids or logprobs), -1 where it does not.  ``finish``: the choice's finish reason, if it went by.
    ``total``: bytes of the whole text so far, where an event repeats all of it; the tap tells the growth.
    """

    choice: int
    kind: int = 0
    size: int = 0
    tokens: int = -1
    source: str = EVENTS
    finish: str | None = None
    total: int = -1


class Reading(Struct):
    """What one event means.

    ``usage``: counts that the server reported, whole or so far.  ``per_choice``: they are those of the one
    choice in this event (llama.cpp's timings), not the request's.  ``error``: an error event's type or code.
    ``model``: the model that answers, where not the first events tell it.
    """

    outputs: list[Output] = []
    usage: Usage | None = None
    per_choice: bool = False
    error: str | None = None
    model: str | None = None


class _Named(Struct, gc=False):
    id: object = None


class _Modelled(Struct, gc=False):
    model: object = None


_decode_named: Final = msgspec.json.Decoder(_Named).decode
_decode_modelled: Final = msgspec.json.Decoder(_Modelled).decode

#: An event's top-level fields, undecoded.
Fields = Mapping[str, Raw]

Empty = Annotated[str, Meta(max_length=0)] | None
NoItems = Annotated[list[object], Meta(max_length=0)] | None
SomeText = Annotated[str, Meta(min_length=1)]


class Dialect(Protocol):
    """One API family.

    ``counted_end``: a clean end is its end (no finish reason exists to wait for).  ``plain_rank``: how surely
    a plain event tells its tokens (``RANKS``).
    """

    name: str
    counted_end: bool
    plain_rank: int

    def serves(self, path: str, /) -> bool:
        """Whether a request's path (no query, no slash at its end) promises this dialect."""

    def shows(self, fields: Fields, /) -> bool:
        """Whether an event's top-level fields prove it."""

    def response_id(self, fields: Fields, /) -> str | None:
        """The response's id, where the event carries it."""

    def model(self, fields: Fields, /) -> str | None:
        """The model that answers, as the server names it, where the event does."""

    def decode(self, data: bytes, /) -> Any:
        """The event, typed; raises one of ``BROKEN``."""

    def quick(self, data: bytes, /) -> int:
        """``plain(decode(data))`` for plain events, or -(tokens so far); 0, or one of ``BROKEN``, for any
        other.  HOT."""

    def mend(self, data: bytes, /) -> Any | None:
        """The event that ``decode`` refused; ``None`` if it is broken."""

    def plain(self, chunk: Any, /) -> int:
        """Bytes of answer text if that is all that the event carries, else 0."""

    def read(self, chunk: Any, /) -> Reading | None:
        """The whole meaning; ``None``: this is no event of this dialect."""


def utf8_size(text: str) -> int:
    """Bytes of ``text`` in UTF-8; lone surrogates, which JSON can spell, count as three."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def loose(data: bytes) -> Any:
    """Decode JSON that a typed decoder refused; broken UTF-8 is mended by U+FFFD.

    Raises ``ValueError`` if it is no JSON.  A server that cuts a character in two sends broken UTF-8, and
    the event still is output: it counts.  Broken JSON may be anything: it does not.
    """
    text = data.decode("utf-8", "replace")
    try:
        return msgspec.json.decode(text)
    except BROKEN:
        if len(data) > _LOOSE_LIMIT:  # the standard library's decoder is slow, and only ever saves oddities
            raise ValueError("no JSON") from None
    try:
        return json.loads(text)  # lone surrogates, NaN
    except RecursionError:
        raise ValueError("nested too deeply") from None


def word(value: object, otherwise: str) -> str:
    """A short word that a server chose from a vocabulary of its own; never a sentence, never a payload."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return value if isinstance(value, str) and _WORD.fullmatch(value) else otherwise


def plainly(fields: Fields, name: str) -> Any:
    """One top-level field, decoded; ``None`` where it is missing or cannot be read."""
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw)
    except BROKEN:
        return None


def identifier(value: object) -> str | None:
    """A response's id, if it can be one."""
    return value if isinstance(value, str) and _ID.fullmatch(value) else None


def model_name(value: object) -> str | None:
    """A model's name, cut to a bound and made printable."""
    if not isinstance(value, str) or not value:
        return None
    name = value[:_NAME_MAX]
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def inner_id(fields: Fields, name: str) -> str | None:
    """The ``id`` of the object in one top-level field, the rest of which is skipped."""
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return identifier(_decode_named(raw).id)
    except BROKEN:
        return None


def inner_model(fields: Fields, name: str) -> str | None:
    """The ``model`` of the object in one top-level field, the rest of which is skipped."""
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return model_name(_decode_modelled(raw).model)
    except BROKEN:
        return None


def count(value: object) -> int | None:
    """A reported number of tokens, if it can be one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < _COUNT_MAX else None


def error_word(error: object) -> str:
    """The type or code of an error object, never its message."""
    if isinstance(error, dict):
        inner = error.get("error")
        if isinstance(inner, dict):
            error = inner
        for key in ("type", "code", "status"):
            found = word(error.get(key), "")
            if found and found != "error":  # which many objects say of themselves
                return found
    return "error"


def error_of(data: bytes) -> str:
    """The same, of the bytes of an event that is named ``error``."""
    try:
        return error_word(loose(data))
    except ValueError:
        return "error"
