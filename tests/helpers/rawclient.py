"""A raw HTTP client: sends exactly the bytes a test gives it, and keeps what came back with a stamp per read.

with RawClient(legato.data) as client:
    client.send(post("/v1/chat/completions", body))
    answer = client.response()          # answer.status, .headers, .body, .end, .arrivals
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.helpers.http1 import BodyReader, Head, Headers, chunk, parse_head, response_body
from tests.helpers.procs import patience_s

READ = 65536


@dataclass
class Response:
    """One response.  ``end``: ``complete`` | ``truncated`` (FIN too early) | ``reset`` (RST)."""

    head: Head
    reader: BodyReader
    end: str = "open"
    #: (monotonic ns, bytes on the wire) of each read that belonged to it
    arrivals: list[tuple[int, int]] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The status code."""
        return int(self.head.words[1])

    @property
    def headers(self) -> Headers:
        """Names and values as they came."""
        return self.head.headers

    @property
    def body(self) -> bytes:
        """The body without its framing."""
        return bytes(self.reader.body)


class RawClient:
    """One connection.  ``rcvbuf`` bounds what the kernel takes for a slow reader (set before connecting)."""

    def __init__(
        self,
        address: tuple[str, int],
        *,
        rcvbuf: int | None = None,
        timeout_s: float = 10.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        sock = socket.socket()
        if rcvbuf is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        sock.settimeout(patience_s(timeout_s))
        sock.connect(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = tls.wrap_socket(sock, server_hostname="localhost") if tls else sock
        self.ended: str | None = None  # "fin" | "reset"
        self.closed_at_ns: int | None = None
        self._buffer = b""

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.sock.sendall(data)

    def recv(self, size: int = READ) -> bytes:
        """One read; ``b""`` once the peer has closed or reset (then ``ended`` says which)."""
        try:
            data = self.sock.recv(size)
        except (ConnectionResetError, BrokenPipeError, ssl.SSLError):
            self.ended = "reset"
            return b""
        if not data:
            self.ended = "fin"
        return data

    def _next(self) -> bytes:
        if self._buffer:
            data, self._buffer = self._buffer, b""
            return data
        return b"" if self.ended else self.recv()

    def head(self, *, skip_informational: bool = True) -> Head:
        """Read one response head; ``AssertionError`` if the connection ends before it."""
        data = b""
        while True:
            end = data.find(b"\r\n\r\n")
            if end >= 0:
                self._buffer = data[end + 4 :]
                head = parse_head(data[: end + 4])
                if not skip_informational or not head.words[1].startswith(b"1"):
                    return head
                data, self._buffer = self._buffer, b""
                continue
            more = self._next()
            assert more, f"the connection ended ({self.ended}) before a head: {data[:200]!r}"
            data += more

    def begin(self, *, to_head: bool = False) -> Response:
        """Read a head and return a response whose body is still to be read with ``read_into``."""
        head = self.head()
        answer = Response(head, response_body(head, to_head=to_head))
        if self._buffer:
            self._take(answer, self._buffer)
        if answer.reader.done:
            answer.end = "complete"
        return answer

    def _take(self, answer: Response, data: bytes) -> None:
        answer.arrivals.append((time.monotonic_ns(), len(data)))
        self._buffer = answer.reader.feed(data)

    def read_into(self, answer: Response, *, at_least: int | None = None) -> Response:
        """Read on until the body ends, or has ``at_least`` bytes in all."""
        while answer.end == "open" and (at_least is None or len(answer.reader.body) < at_least):
            data = self._next()
            if data:
                self._take(answer, data)
                if answer.reader.done:
                    answer.end = "complete"
            elif self.ended == "reset":
                answer.end = "reset"
            else:
                until_eof = not answer.reader.chunked and answer.reader.length is None
                answer.end = "complete" if until_eof else "truncated"
        return answer

    def response(self, *, to_head: bool = False) -> Response:
        """Read one whole response."""
        return self.read_into(self.begin(to_head=to_head))

    def rest(self) -> bytes:
        """Everything until the peer closes; ``ended`` then says how."""
        data = bytearray()
        while more := self._next():
            data += more
        return bytes(data)

    def read_slowly(self, answer: Response, pieces: Sequence[int], pause_s: float) -> None:
        """Read pieces of at most these sizes with a pause before each: a slow reader."""
        for size in pieces:
            if answer.end != "open":
                return
            time.sleep(pause_s)
            data = self.recv(size)
            if data:
                self._take(answer, data)
            answer.end = "complete" if answer.reader.done else answer.end

    def half_close(self) -> None:
        """Send FIN and go on reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> int:
        """Send RST; returns the monotonic ns of it."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return self.close()

    def close(self) -> int:
        """Close (FIN, unless bytes are unread: then the kernel sends RST); returns the monotonic ns of it."""
        if self.closed_at_ns is None:
            self.closed_at_ns = time.monotonic_ns()
            self.sock.close()
        return self.closed_at_ns


# ---------------------------------------------------------------- ready-made requests

CHAT = "/v1/chat/completions"
STREAMED_CHAT = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"stream":true}'
PLAIN_CHAT = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'


def request(
    method: str,
    target: str | bytes,
    headers: Sequence[tuple[str | bytes, str | bytes]] = (),
    body: bytes = b"",
    version: str = "HTTP/1.1",
) -> bytes:
    """A request with exactly these headers and bytes (no length is added)."""
    lines = [_bytes(method) + b" " + _bytes(target) + b" " + version.encode()]
    lines += [_bytes(name) + b": " + _bytes(value) for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def post(
    target: str = CHAT, body: bytes = STREAMED_CHAT, *more: tuple[str, str], version: str = "HTTP/1.1"
) -> bytes:
    """A JSON POST with Host, Content-Type and Content-Length."""
    headers = [("Host", "legato.test"), ("Content-Type", "application/json"), *more]
    return request("POST", target, [*headers, ("Content-Length", str(len(body)))], body, version)


def get(target: str = "/v1/models", *more: tuple[str, str], version: str = "HTTP/1.1") -> bytes:
    """A GET with a Host."""
    return request("GET", target, [("Host", "legato.test"), *more], version=version)


def chunked(body: bytes, sizes: Sequence[int]) -> bytes:
    """A body in HTTP chunks of these sizes (the rest in a last one), with its end."""
    out, at = bytearray(), 0
    for size in sizes:
        out += chunk(body[at : at + size])
        at += size
    if at < len(body):
        out += chunk(body[at:])
    return bytes(out + b"0\r\n\r\n")


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()
