"""One streamed request over a connection of its own: what a plain client sees, and nothing scored.

A small reader on httptools, since the load must not take the processor that it is there to measure.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
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

    @property
    def ok(self) -> bool:
        """A whole answer with status 200."""
        return self.status == 200 and self.end == "complete"


class _Reader:
    """httptools' callbacks: counts events, keeps the last bytes for the usage that they hold."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.parser = httptools.HttpResponseParser(self)
        self.complete = False
        self._tail = b"\n"  # the first event begins a line too

    def on_headers_complete(self) -> None:
        self._reply.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
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
    """Send one POST to ``url`` and read the answer to its end; errors are in the reply, not raised."""
    where = urlsplit(url)
    payload = json.dumps(body).encode()
    head = (
        f"POST {where.path} HTTP/1.1\r\nhost: {where.netloc}\r\ncontent-type: application/json\r\n"
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
        seen = _Reader(reply)
        while not seen.complete and (data := await reader.read(_READ_BYTES)):
            seen.parser.feed_data(data)
    except (OSError, httptools.HttpParserError) as error:
        reply.end = f"{type(error).__name__}: {error}"
    finally:
        writer.close()
    return reply
