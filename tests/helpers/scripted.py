"""Streams to play from a real socket: events written one by one, at a pace, on whichever path asks for them.

    script = plays({"/v1/messages": event_stream(events), "/api/chat": line_stream(objects)})
    with scripted(script) as upstream: ...      # or, where a proxy runs in front of one, upstream.use(script)

A value may also be a function of the request's JSON that returns one, so that one server plays several
streams on one path.  What is no stream is given as the bytes of a whole response (``json_response``).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.upstream import Connection, Request, Script, json_response, serve_forever

#: Between two pieces: long enough that each is a read of its own, short enough for many of them.
PACE_S = 0.002
EVENT_STREAM = b"text/event-stream; charset=utf-8"
NDJSON = b"application/x-ndjson"
NOT_FOUND = json_response({"error": {"message": "no such path"}}, b"404 Not Found")


@dataclass(frozen=True)
class Played:
    """One streamed response: ``pieces`` become one HTTP chunk and one write each, ``pace_s`` apart.

    ``cut``: the connection ends behind the last piece, without the body's own end.
    """

    pieces: Sequence[bytes]
    content_type: bytes = EVENT_STREAM
    pace_s: float = PACE_S
    cut: bool = False

    @property
    def head(self) -> bytes:
        """The response's head."""
        return (
            b"HTTP/1.1 200 OK\r\nserver: scripted\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n\r\n"
            % self.content_type
        )


Answer = Played | bytes
Answers = Mapping[str, Answer | Callable[[Any], Answer]]


def event_stream(
    events: Sequence[Any], *, named: bool = False, pace_s: float = PACE_S, cut: bool = False
) -> Played:
    """Server-sent events: objects (or bytes, as they are); ``named``: each with its ``type`` as its name."""
    return Played([sse_event(each, named=named) for each in events], pace_s=pace_s, cut=cut)


def line_stream(values: Sequence[Any], *, pace_s: float = PACE_S, cut: bool = False) -> Played:
    """One JSON value a line (or bytes, as they are)."""
    return Played([ndjson_line(each) for each in values], NDJSON, pace_s, cut)


def sse_event(value: Any, *, named: bool = False) -> bytes:
    """One server-sent event; bytes stay as they are."""
    if isinstance(value, bytes):
        return value
    name = f"event: {value['type']}\n" if named else ""
    return f"{name}data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def ndjson_line(value: Any) -> bytes:
    """One line; bytes stay as they are."""
    return value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode() + b"\n"


def plays(answers: Answers) -> Script:
    """A script that answers request after request by its path (without the query); 404 for any other."""

    async def answer(conn: Connection, request: Request) -> None:
        found = answers.get(request.target.partition(b"?")[0].decode(), NOT_FOUND)
        if callable(found):
            found = found(json.loads(request.body or b"null"))
        if isinstance(found, Played):
            await _play(conn, found)
        else:
            await conn.send(found)

    return serve_forever(answer)


async def _play(conn: Connection, played: Played) -> None:
    await conn.send(played.head)
    for piece in played.pieces:
        await asyncio.sleep(played.pace_s)
        await conn.send(chunk(piece))
    if played.cut:
        conn.transport.close()
    else:
        await conn.send(LAST_CHUNK)
