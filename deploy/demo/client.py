"""HTTP as the demo needs it: one streamed request as a plain client sees it, and small JSON answers.

A small reader on httptools, since the load must not take the processor that it is there to measure.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools

_READ_BYTES = 65_536
_TAIL_BYTES = 4_096


@dataclass(slots=True)
class Reply:
    """What came back.  ``end``: ``complete``, ``truncated``, or the error that ended it."""

    status: int | None = None
    events: int = 0
    tokens: int | None = None  # as the server reported in its usage
    end: str = "truncated"
    body: bytearray = field(default_factory=bytearray)  # only what ``get`` asked for

    @property
    def ok(self) -> bool:
        """A whole answer with status 200."""
        return self.status == 200 and self.end == "complete"


class Reader:
    """httptools' callbacks: counts events, keeps the last bytes for the usage that they hold."""

    def __init__(self, reply: Reply, *, keep: bool) -> None:
        self._reply = reply
        self._keep = keep
        self.parser = httptools.HttpResponseParser(self)
        self.complete = False
        self._tail = b"\n"  # the first event begins a line too

    def on_headers_complete(self) -> None:
        self._reply.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._keep:
            self._reply.body += body
            return
        # An event may be split between two reads: count with the end of the last one in front.
        text = self._tail[-6:] + body
        self._reply.events += text.count(b"\ndata: ") - self._tail[-6:].count(b"\ndata: ")
        self._tail = (self._tail + body)[-_TAIL_BYTES:]

    def on_message_complete(self) -> None:
        self.complete = True
        self._reply.end = "complete"
        self._reply.tokens = _usage(self._tail)


def _usage(tail: bytes) -> int | None:
    for line in reversed(tail.split(b"\n")):
        if line.startswith(b"data: {") and b'"usage":{' in line:
            try:
                return int(json.loads(line[6:])["usage"]["completion_tokens"])
            except (ValueError, KeyError, TypeError):
                return None
    return None


async def post(url: str, body: dict[str, object]) -> Reply:
    """Send one POST and read the answer to its end; errors are in the reply, not raised."""
    return await _exchange("POST", url, json.dumps(body).encode(), keep=False)


async def get(url: str, within_s: float = 5.0) -> Reply:
    """Send one GET and keep the body; errors are in the reply, not raised."""
    try:
        async with asyncio.timeout(within_s):
            return await _exchange("GET", url, b"", keep=True)
    except TimeoutError:
        return Reply(end=f"no answer within {within_s:g} s")


async def get_json(url: str) -> Any:
    """The JSON answer of a GET.  Raises ``OSError`` for anything but a whole 200 with JSON in it."""
    reply = await get(url)
    if not reply.ok:
        raise OSError(f"GET {url}: status {reply.status}, {reply.end}: {bytes(reply.body[:200])!r}")
    try:
        return json.loads(reply.body)
    except ValueError as error:
        raise OSError(f"GET {url}: the answer is no JSON: {error}") from error


async def _exchange(method: str, url: str, payload: bytes, *, keep: bool) -> Reply:
    where = urlsplit(url)
    target = where.path + (f"?{where.query}" if where.query else "")
    head = (
        f"{method} {target} HTTP/1.1\r\nhost: {where.netloc}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(payload)}\r\nconnection: close\r\n\r\n"
    )
    reply = Reply()
    try:
        reader, writer = await asyncio.open_connection(where.hostname, where.port or 80)
    except OSError as error:
        reply.end = f"cannot connect: {error}"
        return reply
    try:
        writer.write(head.encode() + payload)
        seen = Reader(reply, keep=keep)
        while not seen.complete and (data := await reader.read(_READ_BYTES)):
            seen.parser.feed_data(data)
    except (OSError, httptools.HttpParserError) as error:
        reply.end = f"{type(error).__name__}: {error}"
    finally:
        writer.close()
    return reply
