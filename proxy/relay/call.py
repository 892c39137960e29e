"""Head and body of a request -> ``Call``: what routing and scoring need to know of it.

Only the top-level keys that matter are read.  A body is never changed, and nothing of its content leaves
this module but the model's name, flags, and lengths.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from proxy.relay.headers import Fields

#: Bodies up to this size are decoded whole (about a millisecond at worst); larger ones by their two ends.
WHOLE_LIMIT: Final = 512 * 1024
#: How much of each end of a larger body is looked at.
_END_WINDOW: Final = 8 * 1024
_MODEL_LIMIT: Final = 256


class Call(Struct, frozen=True):
    """One request, as far as others need to know it.  ``text_bytes``: the prompt's text without images."""

    method: str
    path: str  # without the query string
    model: str | None = None
    stream: bool = False
    choices: int = 1
    text_bytes: int = 0


class _Message(Struct):
    content: Raw = Raw(b"")
    reasoning_content: Raw = Raw(b"")
    tool_calls: Raw = Raw(b"")


class _Body(Struct):
    model: Any = None
    stream: Any = None
    n: Any = None
    messages: list[_Message] | None = None
    prompt: Raw = Raw(b"")
    input: Raw = Raw(b"")
    instructions: Raw = Raw(b"")
    system: Raw = Raw(b"")
    inputs: Raw = Raw(b"")
    text_input: Raw = Raw(b"")
    tools: Raw = Raw(b"")


class _Keys(Struct):
    """The same keys where the rest of the body was not looked at."""

    model: Any = None
    stream: Any = None
    n: Any = None


_body = msgspec.json.Decoder(_Body)
_keys = msgspec.json.Decoder(_Keys)
_BASE64: Final = b";base64,"
_IMAGE: Final = re.compile(rb';base64,[^"\\]*')
_BIG_KEY: Final = re.compile(rb',\s*"(?:messages|prompt|input|inputs)"\s*:')
_TAIL_CUT: Final = re.compile(rb'[\]"}]\s*,\s*(?=")')


def read_call(method: str, path: str, fields: Fields, body: Sequence[bytes]) -> Call:
    """Read a request.  Anything but a JSON object gives a ``Call`` without model; never raises."""
    size = sum(map(len, body))
    if not size or not _is_json(fields):
        return Call(method, path, text_bytes=0)
    if size > WHOLE_LIMIT:
        return _from_ends(method, path, body, size)
    raw = body[0] if len(body) == 1 else b"".join(body)
    try:
        seen = _body.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return _call(method, path, _lenient(raw), _text_bytes(raw))
    text = sum(map(_text_bytes, (seen.prompt, seen.input, seen.instructions, seen.system, seen.inputs)))
    text += _text_bytes(seen.text_input) + _text_bytes(seen.tools)
    for message in seen.messages or ():
        text += _text_bytes(message.content) + len(message.reasoning_content) + len(message.tool_calls)
    return _call(method, path, seen, text)


def _call(method: str, path: str, seen: _Body | _Keys, text_bytes: int) -> Call:
    model = seen.model if isinstance(seen.model, str) and len(seen.model) <= _MODEL_LIMIT else None
    n = seen.n if isinstance(seen.n, int) and not isinstance(seen.n, bool) and 1 <= seen.n <= 1024 else 1
    return Call(method, path, model, seen.stream is True, n, text_bytes)


def _is_json(fields: Fields) -> bool:
    for name, value in fields:
        if len(name) == 12 and name.lower() == b"content-type":
            return b"json" in value.lower()
    return True  # many clients and test scripts leave it out


def _text_bytes(raw: Raw | bytes) -> int:
    """Bytes of text in a JSON value: images and audio in base64 do not count, nor do a string's quotes."""
    data = bytes(raw)
    size = len(data)
    if size > 64 and b";base64," in data:
        size -= sum(len(found) - 8 for found in _IMAGE.findall(data))
    return max(0, size - 2) if size and data[0] == 0x22 else size


def _lenient(raw: bytes) -> _Keys:
    """The keys of a body whose other parts are not what they should be."""
    try:
        return _keys.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return _Keys()


def _from_ends(method: str, path: str, body: Sequence[bytes], size: int) -> Call:
    """Keys from the two ends of a large body, without a pass over its middle.

    A piece that closes as an object at the body's very beginning, or at its very end, can only hold
    top-level keys: the brackets balance.  (Escaped quotes in strings cannot match the cuts.)
    """
    head = _join_until(body, _END_WINDOW)
    tail = _join_until(body, _END_WINDOW, from_end=True)
    seen = _Keys()
    cut = _BIG_KEY.search(head)
    if cut is not None:
        seen = _lenient(head[: cut.start()] + b"}")
    for at in _TAIL_CUT.finditer(tail):
        try:
            end = _keys.decode(b"{" + tail[at.end() :])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        seen = _Keys(
            end.model if end.model is not None else seen.model,
            end.stream if end.stream is not None else seen.stream,
            end.n if end.n is not None else seen.n,
        )
        break
    return _call(method, path, seen, max(0, size - _image_bytes(body)))


def _image_bytes(body: Sequence[bytes]) -> int:
    """Bytes of base64 in the data URLs of a body; a run may go on over any number of its pieces."""
    count, inside, tail = 0, False, b""
    for piece in body:
        at = 0
        seam = -1 if inside else (tail + piece[: len(_BASE64) - 1]).find(_BASE64)
        if seam >= 0:
            inside, at = True, seam + len(_BASE64) - len(tail)
        while True:
            if not inside:
                at = piece.find(_BASE64, at)
                if at < 0:
                    break
                at += len(_BASE64)
            end = piece.find(b'"', at)
            inside = end < 0
            count += (len(piece) if inside else end) - at
            if inside:
                break
            at = end
        tail = piece[1 - len(_BASE64) :]
    return count


def _join_until(body: Sequence[bytes], size: int, *, from_end: bool = False) -> bytes:
    parts: list[bytes] = []
    have = 0
    for piece in reversed(body) if from_end else body:
        parts.append(piece)
        have += len(piece)
        if have >= size:
            break
    if from_end:
        return b"".join(reversed(parts))[-size:]
    return b"".join(parts)[:size]
