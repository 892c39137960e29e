"""Many streams at once: a cheap chat server in its own process, and a crowd of clients in a thread.

    with streamer() as upstream, serve(upstream.url) as legato:
        crowd = Crowd(legato.data, [Wish(number, events=90, every_ms=330) for number in range(1000)])
        ... crowd.result() -> list[Seen], in the order of the wishes ...

What a stream says depends on its number alone, so the client knows the hash of what it must receive.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import uvloop

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
_WORDS = ("alpha", "be", "gamma delta", "é", "epsilon ", " zeta", "\\n", "eta theta iota")


def event(number: int, index: int, count: int) -> bytes:
    """Event ``index`` of ``count`` of stream ``number``: chat chunks, a finish reason, then ``[DONE]``."""
    if index == count - 1:
        return b"data: [DONE]\n\n"
    delta: dict[str, str] = {"content": f"{_WORDS[(number + index) % len(_WORDS)]} {number}.{index}"}
    finish = None
    if index == count - 2:
        delta, finish = {}, "stop"
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    value = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion.chunk",
        "created": 1764000000,
        "model": "tiny",
        "choices": [choice],
    }
    return b"data: " + json.dumps(value).encode() + b"\n\n"


@cache
def expected(number: int, count: int) -> str:
    """The hash of the whole body of a stream."""
    sha = hashlib.sha256()
    for index in range(count):
        sha.update(event(number, index, count))
    return sha.hexdigest()


# ---------------------------------------------------------------- the server


class _Server(asyncio.Protocol):
    """One connection: request after request, each answered by the stream that its ``x-wish`` asks for."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.buffer = b""
        self.gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:]) if found else {}
        if not found or len(body) < int(fields.get(b"content-length", b"0")):
            return
        self.buffer = b""
        number, count, every_us = map(int, fields[b"x-wish"].split(b","))
        self.transport.write(_HEAD)
        self._say(number, 0, count, every_us / 1e6, self.loop.time())

    def _say(self, number: int, index: int, count: int, every_s: float, start: float) -> None:
        if self.gone:
            return
        data = event(number, index, count)
        last = index == count - 1
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data) + (b"0\r\n\r\n" if last else b""))
        if not last:
            at = start + (index + 1) * every_s
            self.loop.call_at(at, self._say, number, index + 1, count, every_s, start)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Server, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


@dataclass(frozen=True)
class Streamer:
    """The server's process."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def streamer() -> Iterator[Streamer]:
    """A server for the length of a test."""
    command = [sys.executable, str(Path(__file__).resolve())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield Streamer(process, int(process.stdout.readline()))
        finally:
            process.kill()


# ---------------------------------------------------------------- the clients


@dataclass(frozen=True)
class Wish:
    """One stream: what to ask for, when to begin, and when to leave (seconds; ``None``: stays)."""

    number: int
    events: int
    every_ms: float
    begin_s: float = 0.0
    leave_s: float | None = None

    def request(self) -> bytes:
        """The request's bytes."""
        body = b'{"model":"tiny","messages":[{"role":"user","content":"go"}],"stream":true}'
        return (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: legato.test\r\nContent-Type: application/json\r\n"
            b"X-Wish: %d,%d,%d\r\nContent-Length: %d\r\n\r\n"
            % (self.number, self.events, int(self.every_ms * 1000), len(body))
            + body
        )


@dataclass
class Seen:
    """What one client got.  ``end``: ``open`` | ``complete`` | ``left`` | ``cut`` (FIN or RST too early)."""

    wish: Wish
    end: str = "open"
    status: int = 0
    sha: str = ""
    bytes: int = 0
    begun: bool = False
    ended_at: float = 0.0  # time.monotonic()

    @property
    def right(self) -> bool:
        """Complete, and byte for byte what the server said."""
        return (
            self.end == "complete"
            and self.status == 200
            and self.sha == expected(self.wish.number, self.wish.events)
        )


class _Client(asyncio.Protocol):
    def __init__(self, seen: Seen, done: asyncio.Future[None]) -> None:
        self.seen, self.done = seen, done
        self.hash = hashlib.sha256()
        self.buffer = bytearray()
        self.left = 0  # bytes of the current chunk and its CRLF that are still to come

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.seen.wish.request())

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.seen.begun:
            head, found, rest = bytes(self.buffer).partition(b"\r\n\r\n")
            if not found:
                return
            self.seen.begun, self.seen.status = True, int(head[9:12])
            self.buffer = bytearray(rest)
        while self._chunk():
            pass

    def _chunk(self) -> bool:
        at = self.buffer.find(b"\r\n")
        if at < 0:
            return False
        size = int(self.buffer[:at], 16)
        if len(self.buffer) < at + 2 + size + 2:
            return False
        self.hash.update(self.buffer[at + 2 : at + 2 + size])
        self.seen.bytes += size
        del self.buffer[: at + 2 + size + 2]
        if size == 0:
            self._end("complete")
            return False
        return True

    def leave(self) -> None:
        """Close, whatever still comes."""
        if self.seen.end == "open":
            self._end("left")

    def _end(self, how: str) -> None:
        self.seen.end, self.seen.sha = how, self.hash.hexdigest()
        self.seen.ended_at = time.monotonic()
        self.transport.abort()
        if not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.seen.end == "open":
            self._end("cut")


class Crowd:
    """Clients that begin at once (or when their wish says); ``seen`` may be looked at while they run."""

    def __init__(self, address: tuple[str, int], wishes: Sequence[Wish]) -> None:
        self._address = address
        self.seen = [Seen(wish) for wish in wishes]
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="crowd", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._all())
        except BaseException as error:
            self._failure = error

    async def _all(self) -> None:
        await asyncio.gather(*map(self._one, self.seen))

    async def _one(self, seen: Seen) -> None:
        loop = asyncio.get_running_loop()
        start = time.monotonic()
        await asyncio.sleep(seen.wish.begin_s)
        done: asyncio.Future[None] = loop.create_future()
        try:
            _, client = await loop.create_connection(lambda: _Client(seen, done), *self._address)
        except OSError:
            seen.end = "refused"
            return
        if seen.wish.leave_s is not None:
            loop.call_later(max(0.0, seen.wish.leave_s - (time.monotonic() - start)), client.leave)
        await done

    @property
    def begun(self) -> int:
        """How many have a response's head."""
        return sum(seen.begun for seen in self.seen)

    def result(self, within_s: float = 60.0) -> list[Seen]:
        """What each of them got, when all have ended."""
        self._thread.join(within_s)
        if self._failure is not None:
            raise self._failure
        assert not self._thread.is_alive(), f"{sum(s.end == 'open' for s in self.seen)} streams did not end"
        return self.seen


if __name__ == "__main__":
    uvloop.run(_serve())
