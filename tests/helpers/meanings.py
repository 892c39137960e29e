"""Asking a dialect about one event the way the tap does: typed, else mended, else broken."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from proxy.relay.dialects.base import BROKEN, Dialect, Reading
from tests.helpers.recordings import Recording

#: What ``meaning`` says of an event that is no JSON at all.
NO_JSON = "broken"


def encoded(value: Any) -> bytes:
    """An event's data."""
    return value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()


def chunk_of(dialect: Dialect, data: bytes) -> Any | None:
    """The event as the dialect has it; ``None``: broken.  What is not foreseen is raised."""
    try:
        return dialect.decode(data)
    except BROKEN:
        return dialect.mend(data)


def decodes(dialect: Dialect, data: bytes) -> bool:
    """Whether the typed decoder takes it, without mending."""
    try:
        dialect.decode(data)
    except BROKEN:
        return False
    return True


def meaning(dialect: Dialect, value: Any) -> Reading | str | None:
    """What an event (an object, or bytes) means; ``NO_JSON``, or ``None`` for no event of this dialect."""
    chunk = chunk_of(dialect, encoded(value))
    return NO_JSON if chunk is None else dialect.read(chunk)


def quick(dialect: Dialect, data: bytes) -> int:
    """The hot path's answer; what it may raise is 0."""
    try:
        return dialect.quick(data)
    except BROKEN:
        return 0


def plain(dialect: Dialect, data: bytes) -> int:
    """The same question of the event as decoded or mended; 0 for a broken one."""
    chunk = chunk_of(dialect, data)
    return 0 if chunk is None else dialect.plain(chunk)


def fields(value: Any) -> dict[str, msgspec.Raw]:
    """An event's top-level fields, undecoded."""
    return msgspec.json.decode(encoded(value), type=dict[str, msgspec.Raw])


def shown(dialect: Dialect, data: bytes) -> tuple[bool, str | None]:
    """Whether an event proves the dialect, and the response's id in it; of what is no object neither."""
    try:
        top = fields(data)
    except BROKEN:
        return False, None
    return dialect.shows(top), dialect.response_id(top)


def events_of(recording: Recording) -> list[tuple[int, Any]]:
    """(stamp of the piece that completes it, its JSON) of each data event: naive, and no product code."""
    events, text = [], b""
    for at_ns, data in recording.response().body:
        text += data
        while b"\n\n" in text:
            block, _, text = text.partition(b"\n\n")
            for line in block.split(b"\n"):
                if line.startswith(b"data: ") and line != b"data: [DONE]":
                    events.append((at_ns, json.loads(line[6:])))
    return events
