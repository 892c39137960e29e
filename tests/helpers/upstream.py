"""A scripted server on a real socket: tests say byte for byte what it sends, and learn what happened to it.

    async def script(conn: Connection) -> None:
        await conn.request()
        await conn.send(SSE_HEAD + chunk(b"data: 1\\n\\n"))
        await conn.told()                   # until the test calls conn.tell()
        conn.reset()

    with scripted(script) as upstream: ...  # upstream.url, upstream.connection(0), upstream.requests

One thread runs all connections.  When a script returns, the connection is closed (FIN).
``serve_forever(answer)`` makes a script that answers request after request on a kept connection.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.helpers.http1 import LAST_CHUNK, Head, chunk, parse_head, request_body
from tests.helpers.procs import eventually

Script = Callable[["Connection"], Awaitable[None]]

SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Sat, 21 Nov 2026 00:00:00 GMT\r\nserver: scripted\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


@dataclass(frozen=True)
class Request:
    """One request as it came: ``raw`` are its exact bytes, framing included; ``body`` is without framing."""

    raw: bytes
    head: Head
    body: bytes
    at_ns: int

    @property
    def method(self) -> bytes:
        """The request's method."""
        return self.head.words[0]

    @property
    def target(self) -> bytes:
        """The raw request target."""
        return self.head.words[1]


class ClientGone(Exception):
    """The client's side of the connection ended while a script waited for it."""


class Connection(asyncio.Protocol):
    """One accepted connection.  Coroutines belong to scripts, ``tell`` and the stamps to the test."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._buffer = bytearray()
        self._news = asyncio.Event()
        self._gate = asyncio.Semaphore(0)
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.requests: list[Request] = []
        self.sent_bytes = 0
        self.received_bytes = 0
        #: monotonic ns at which the client's FIN or RST came; None while it is there
        self.gone_at_ns: int | None = None
        #: "fin", "reset", or "self": this side closed first
        self.gone_how: str | None = None
        self.failure: BaseException | None = None
        self.finished = threading.Event()
        self._task: asyncio.Task[None] | None = None
        self._leaving = False

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the script."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._upstream.connections.append(self)
        self._task = self._loop.create_task(self._run())

    def data_received(self, data: bytes) -> None:
        """Keep what came."""
        self.received_bytes += len(data)
        self._buffer += data
        self._news.set()

    def eof_received(self) -> bool:
        """Stamp the client's FIN; the script may still write."""
        self._note_gone("fin")
        return not self._leaving

    def connection_lost(self, exc: Exception | None) -> None:
        """Stamp a reset, or that it was this side that closed."""
        self._note_gone("reset" if exc else "self")

    def _note_gone(self, how: str) -> None:
        if self.gone_at_ns is None:
            self.gone_at_ns = time.monotonic_ns()
            self.gone_how = how
        self._news.set()

    async def _run(self) -> None:
        try:
            await self._upstream.script(self)
        except (ClientGone, ConnectionError):
            pass
        except asyncio.CancelledError:
            pass
        except Exception as error:  # shown to the test when the server ends
            self.failure = error
        finally:
            self.finished.set()
            if not self._leaving and not self.transport.is_closing():
                self.transport.close()

    # -- for scripts

    async def _more(self) -> None:
        if self.gone_at_ns is not None:
            raise ClientGone
        self._news.clear()
        await self._news.wait()

    async def head(self) -> Head:
        """Read a request's head and leave its body unread."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            await self._more()
        raw = bytes(self._buffer[: end + 4])
        del self._buffer[: end + 4]
        return parse_head(raw)

    async def request(self) -> Request:
        """Read one request to its end and keep it; ``ClientGone`` if the client leaves first."""
        return await self.body_of(await self.head())

    async def body_of(self, head: Head) -> Request:
        """Read the body that belongs to a head, and keep the whole request."""
        raw = bytearray(head.raw)
        body = request_body(head)
        while True:
            data = bytes(self._buffer)
            self._buffer.clear()
            rest = body.feed(data)
            raw += data[: len(data) - len(rest)]
            self._buffer += rest
            if body.done:
                break
            await self._more()
        request = Request(bytes(raw), head, bytes(body.body), time.monotonic_ns())
        self.requests.append(request)
        self._upstream.requests.append(request)
        return request

    async def send(self, data: bytes, *, pieces: Iterable[int] | None = None) -> None:
        """Write bytes, in pieces of the given lengths if asked, each in a turn of the loop of its own."""
        at = 0
        for size in pieces or ():
            self._write(data[at : at + size])
            at += size
            await asyncio.sleep(0)
        if at < len(data):
            self._write(data[at:])
        await asyncio.sleep(0)

    def _write(self, data: bytes) -> None:
        if self.transport.is_closing():
            raise ClientGone
        self.sent_bytes += len(data)
        self.transport.write(data)

    async def pour(self, data: bytes, times: int) -> None:
        """Write ``data`` many times, never more than the client takes."""
        for _ in range(times):
            self._write(data)
            while self.transport.get_write_buffer_size() > 1 << 20:
                await asyncio.sleep(0.001)
                if self.transport.is_closing():
                    raise ClientGone
            await asyncio.sleep(0)

    async def told(self) -> None:
        """Wait until the test calls ``tell``."""
        await self._gate.acquire()

    async def client_gone(self) -> None:
        """Wait until the client has closed or reset its side."""
        while self.gone_at_ns is None:
            self._news.clear()
            await self._news.wait()

    async def until(self, at_ns: int) -> None:
        """Wait for a moment of the monotonic clock (replays need it)."""
        await asyncio.sleep((at_ns - time.monotonic_ns()) / 1e9)

    def half_close(self) -> None:
        """Send FIN, go on reading."""
        self.transport.write_eof()

    def reset(self) -> None:
        """Send RST at once; what was written and not yet sent is lost."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def stop_reading(self) -> None:
        """Take no more bytes from the socket: the client's writes will block."""
        self.transport.pause_reading()

    def leave(self) -> None:
        """End the script, send FIN, and close when the client's side has closed too."""
        self._leaving = True
        if self._task is not None:
            self._task.cancel()
        if self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size() or self.gone_at_ns is not None:
            self.transport.abort()
        else:
            self.transport.resume_reading()
            self.transport.write_eof()

    # -- for the test's thread

    @staticmethod
    def now_ns() -> int:
        """The clock of ``gone_at_ns``."""
        return time.monotonic_ns()

    def tell(self, times: int = 1) -> None:
        """Let the script pass its next ``told``."""
        for _ in range(times):
            self._loop.call_soon_threadsafe(self._gate.release)

    def wait_request(self, index: int = 0, within_s: float = 5.0) -> Request:
        """The request of this number on this connection, as soon as it was read."""
        eventually(lambda: len(self.requests) > index, within_s, f"request {index} at the upstream")
        return self.requests[index]

    def wait_gone(self, within_s: float = 5.0) -> int:
        """Monotonic ns at which the client's side ended."""
        eventually(lambda: self.gone_at_ns is not None, within_s, "the end of the proxy's connection")
        assert self.gone_at_ns is not None
        return self.gone_at_ns


class Upstream:
    """The server; use ``scripted``.  ``script`` may be exchanged between requests."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.connections: list[Connection] = []
        self.requests: list[Request] = []
        self._past: list[Connection] = []
        self._loop = asyncio.new_event_loop()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="scripted-upstream", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self.port

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            self._loop.create_server(lambda: Connection(self), sock=self._socket, backlog=4096)
        )
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        for connection in [*self._past, *self.connections]:
            connection.transport.abort()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def use(self, script: Script) -> None:
        """Start anew with another script: connections of before are closed on both sides and forgotten."""
        self.script = script
        past, self.connections, self.requests = self.connections, [], []
        self._past += past
        for connection in past:
            self._loop.call_soon_threadsafe(connection.leave)
        for connection in past:
            connection.wait_gone()

    def connection(self, index: int = 0, within_s: float = 5.0) -> Connection:
        """The connection of this number (in order of acceptance), as soon as there is one."""
        eventually(lambda: len(self.connections) > index, within_s, f"connection {index} at the upstream")
        return self.connections[index]

    def wait_request(self, index: int = 0, within_s: float = 5.0) -> Request:
        """The request of this number over all connections, as soon as it was read."""
        eventually(lambda: len(self.requests) > index, within_s, f"request {index} at the upstream")
        return self.requests[index]

    def open_connections(self) -> int:
        """How many connections the client's side still holds."""
        return sum(conn.gone_at_ns is None and not conn.finished.is_set() for conn in self.connections)

    def close(self) -> None:
        """Stop; raises what a script raised."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        for connection in [*self._past, *self.connections]:
            if connection.failure is not None:
                raise connection.failure


@contextmanager
def scripted(script: Script) -> Iterator[Upstream]:
    """A scripted upstream for the length of a test."""
    upstream = Upstream(script)
    try:
        yield upstream
    finally:
        upstream.close()


# ---------------------------------------------------------------- ready-made answers


def serve_forever(answer: Callable[[Connection, Request], Awaitable[None]]) -> Script:
    """A script that reads request after request and lets ``answer`` answer each."""

    async def script(conn: Connection) -> None:
        while True:
            await answer(conn, await conn.request())

    return script


def respond(raw: bytes) -> Script:
    """A script that answers every request with the same bytes and keeps the connection."""

    async def answer(conn: Connection, request: Request) -> None:
        await conn.send(raw)

    return serve_forever(answer)


def json_response(value: Any, status: bytes = b"200 OK") -> bytes:
    """A complete JSON response with a Content-Length."""
    body = json.dumps(value).encode()
    return response(body, b"application/json", status)


def response(
    body: bytes, kind: bytes = b"text/plain", status: bytes = b"200 OK", extra: bytes = b""
) -> bytes:
    """A complete response with a Content-Length; ``extra``: further header lines, each with its CRLF."""
    lines = (status, kind, len(body), extra)
    return b"HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n%s\r\n" % lines + body


def sse(value: Any) -> bytes:
    """One server-sent event with JSON data."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def chat_chunk(delta: dict[str, Any], *, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    """One chat completion event, as vLLM writes it."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return sse(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1764000000,
            "model": "tiny",
            "choices": [choice],
            **more,
        }
    )


DONE = b"data: [DONE]\n\n"


def chat_events(words: Iterable[str]) -> list[bytes]:
    """The events of a whole chat stream: role, one per word, finish, ``[DONE]``."""
    return [
        chat_chunk({"role": "assistant", "content": ""}),
        *(chat_chunk({"content": word}) for word in words),
        chat_chunk({}, finish="stop"),
        DONE,
    ]


def chat_stream(words: Iterable[str]) -> bytes:
    """A complete streamed chat response, one HTTP chunk per event."""
    return SSE_HEAD + b"".join(chunk(event) for event in chat_events(words)) + LAST_CHUNK
