"""A real HTTP server that notifiers post to, and that answers as badly as it is told to.

with receiver() as ops:
    ops.answers(status(500), status(429, Retry_After="3"), HANG, OK)     # the last one from then on
    ... ops.url is where to post; ops.received what came, in order ...
"""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from tests.helpers.procs import eventually

Behaviour = Callable[[socket.socket, threading.Event], None]


@dataclass(frozen=True)
class Received:
    """One request; header names in lower case; ``at_s`` by the monotonic clock."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at_s: float


def status(code: int, body: bytes = b"ok", **headers: str) -> Behaviour:
    """An answer; ``Retry_After="3"`` is the header ``Retry-After: 3``."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {code} Said", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in named.items()]
    answer = "\r\n".join([*lines, "", ""]).encode() + body

    def act(client: socket.socket, _: threading.Event) -> None:
        client.sendall(answer)

    return act


def cut_off(body: bytes) -> Behaviour:
    """200, and only so much of its body before the connection closes."""

    def act(client: socket.socket, _: threading.Event) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + body)

    return act


def _hang(_: socket.socket, released: threading.Event) -> None:
    released.wait(60)


def _close(client: socket.socket, _: threading.Event) -> None:
    client.close()


def _garbage(client: socket.socket, _: threading.Event) -> None:
    client.sendall(b"\x16\x03\x01 this is not the protocol that you are looking for\r\n\r\n")


def _endless(client: socket.socket, released: threading.Event) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while not released.is_set():
        client.sendall(b"x" * 65_536)


def _half(client: socket.socket, released: threading.Event) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it")
    released.wait(60)


OK: Final = status(200)
HANG: Final[Behaviour] = _hang
CLOSE: Final[Behaviour] = _close
GARBAGE: Final[Behaviour] = _garbage
#: 200, and a body without an end.
ENDLESS: Final[Behaviour] = _endless
#: 200, and a body that stops halfway.
HALF: Final[Behaviour] = _half


@dataclass
class Receiver:
    """``url`` has a path that no message may show."""

    port: int
    received: list[Received] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    _script: list[Behaviour] = field(default_factory=lambda: [OK])

    @property
    def where(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Where to post."""
        return f"http://{self.where}/services/T0/B0/k3y-in-the-path"

    def answers(self, *script: Behaviour) -> None:
        """What it does next; the last one again and again."""
        self._script = list(script)

    def next(self) -> Behaviour:
        """For one request."""
        return self._script.pop(0) if len(self._script) > 1 else self._script[0]

    def wait(self, count: int, within_s: float = 5.0) -> list[Received]:
        """What came, once it is so much."""
        eventually(lambda: len(self.received) >= count, within_s, f"{count} requests")
        return self.received


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A server on a free port of 127.0.0.1, until the end of the block."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                got = _read(self.request)
                if got is not None:
                    found.received.append(got)
                    found.next()(self.request, found.released)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: Any) -> None:
            """A client that left is none."""

    with Server(("127.0.0.1", 0), Handler) as server:
        found = Receiver(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield found
        finally:
            found.released.set()
            server.shutdown()
            thread.join(5)


def _read(client: socket.socket) -> Received | None:
    held = b""
    while b"\r\n\r\n" not in held:
        part = client.recv(65_536)
        if not part:
            return None
        held += part
        if held[0] == 0x16:  # somebody speaks TLS to us
            client.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            return None
    head, _, body = held.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += client.recv(65_536)
    method, path, _ = first.split(" ", 2)
    return Received(method, path, headers, body, time.monotonic())
