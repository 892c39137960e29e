"""The wire to an upstream: one HTTP/1.1 connection, pushed.

A ``Connection`` is an ``asyncio.Protocol`` over httptools.  It stamps what arrives before anything else
is done with it and hands it to its ``Sink`` in the same callback.  The rules of the wire:

* 1xx responses are skipped (101 is nonsense: no upgrade is ever asked for).
* A response to HEAD, and 204 and 304, end at their head.
* A body without length or chunks ends by FIN and by nothing else; any other end is a cut.
* Bytes on an idle connection, or behind the end of a response, close the connection: they are never
  taken for the next answer.
* A parser is new per connection and is not used again after HEAD, EOF or an error.

Most reads of a stream hold exactly one whole chunk.  Between two chunks such a read is recognised by its
own length (its size line must be the one that we would have written) and passes by the parser, whose
state is the same before and after it; every other read goes through the parser.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol, cast

import httptools

from proxy.clock import monotonic_ns
from proxy.relay.headers import Fields, Framing, ResponseHead, read_response_head

#: A request body above this many bytes is written with its drain observed, so that t = 0 is its last byte.
SMALL_BODY: Final = 64 * 1024
#: Bytes of a response's head, the interim ones before it included; beyond it the answer is no HTTP to us.
HEAD_LIMIT: Final = 256 * 1024
_BODYLESS: Final = frozenset((204, 304))
#: Reads this long or longer take the parser's way: they are rarely one chunk, and it costs them nothing.
_LINES_LIMIT: Final = 8 * 1024


def _size_line(length: int) -> bytes:
    """The size line of the one whole chunk that ``length`` bytes can be, as we write it; empty: none."""
    for digits in (1, 2, 3, 4):
        size = length - digits - 4
        if size > 0 and len(b"%x" % size) == digits:
            return b"%x\r\n" % size
    return b""


#: By the length of a read: the size line that makes it one whole chunk.
_LINES: Final = [_size_line(length) for length in range(_LINES_LIMIT)]


class Sink(Protocol):
    """What an exchange offers to the connection that carries it.  Every call is synchronous and returns at
    once; ``at_ns`` is the stamp of the read that brought it."""

    def on_connected(self, at_ns: int) -> None: ...
    def on_request_sent(self, at_ns: int) -> None: ...
    def on_head(self, head: ResponseHead, at_ns: int) -> None: ...
    def on_chunk(self, data: bytes, start: int, at_ns: int) -> None: ...
    def on_bodies(self, bodies: list[bytes], at_ns: int) -> None: ...
    def on_end(self, at_ns: int) -> None: ...
    def on_failure(self, kind: str, at_ns: int) -> None: ...
    def on_upload_room(self, room: bool) -> None: ...


class Request(NamedTuple):
    """A request as it goes on the wire, without its body."""

    method: bytes
    target: bytes
    fields: Fields
    chunked: bool = False  # the body goes in chunks, framed by the wire

    def head(self) -> bytes:
        """Its head; names and values as they came."""
        parts: list[bytes] = [self.method, b" ", self.target, b" HTTP/1.1\r\n"]
        for name, value in self.fields:
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"Transfer-Encoding: chunked\r\n\r\n" if self.chunked else b"\r\n")
        return b"".join(parts)


class Owner(Protocol):
    """Where a connection goes when its exchange is over."""

    def idle(self, connection: Connection) -> None: ...
    def gone(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """One connection; carries one exchange at a time.  States: idle (``sink is None``), busy, closed."""

    __slots__ = (
        "_at_chunk",
        "_bodies",
        "_chunk_over",
        "_dirty",
        "_draining",
        "_ended",
        "_feed",
        "_fields",
        "_framing",
        "_head_only",
        "_head_size",
        "_headed",
        "_interim",
        "_parser",
        "_poller",
        "_reason",
        "_sending",
        "_upload_chunked",
        "after_chunks",
        "at_ns",
        "born_ns",
        "busy",
        "closed",
        "first_byte_ns",
        "idle_since_ns",
        "keep_alive",
        "keep_alive_s",
        "owner",
        "sink",
        "transport",
    )

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.sink: Sink | None = None
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self.busy = False
        self.born_ns = self.idle_since_ns = self.at_ns = monotonic_ns()
        self.first_byte_ns: int | None = None
        self.keep_alive = True
        self.keep_alive_s: int | None = None
        self.after_chunks = False  # the last response was chunked
        self._poller: select.poll | None = None
        self._parser: Any = None
        self._feed: Any = None
        self._reset(new_parser=False)

    def _reset(self, *, new_parser: bool) -> None:
        if new_parser:
            self._parser = httptools.HttpResponseParser(self)
            self._feed = self._parser.feed_data
        self._fields: Fields = []
        self._reason = b""
        self._framing: Framing | None = None
        self._bodies: list[bytes] = []
        self._at_chunk = self._chunk_over = self._headed = False
        self._head_size = 0
        self._head_only = self._interim = self._ended = self._dirty = self._sending = self._draining = False
        self._upload_chunked = False

    # ------------------------------------------------------------------ the exchange's side

    def send(self, sink: Sink, request: Request, body: Sequence[bytes], *, more: bool) -> None:
        """Write a request.  ``more``: the body goes on with ``send_body`` and ``send_end``."""
        assert self.transport is not None
        self.sink = sink
        self.first_byte_ns = None
        sink.on_connected(monotonic_ns())
        self._head_only = request.method == b"HEAD"
        self._upload_chunked = request.chunked
        self._sending = True
        if body or request.chunked:
            end = [] if more or not request.chunked else [b"0\r\n\r\n"]
            self.transport.writelines([request.head(), *self._framed(body), *end])
        else:
            self.transport.write(request.head())
        if not more:
            self._observe_end(sum(map(len, body)))

    def send_body(self, data: bytes) -> None:
        """Write a piece of a streamed request body."""
        if self.transport is not None and not self.closed:
            self.transport.writelines(self._framed([data]))

    def send_end(self) -> None:
        """The streamed request body is complete."""
        if self.transport is not None and not self.closed:
            if self._upload_chunked:
                self.transport.write(b"0\r\n\r\n")
            self._observe_end(SMALL_BODY + 1)

    def _framed(self, body: Sequence[bytes]) -> Sequence[bytes]:
        if not self._upload_chunked:
            return body
        return [part for data in body for part in (b"%x\r\n" % len(data), data, b"\r\n")]

    def _observe_end(self, pending: int) -> None:
        """The last byte was handed over: t = 0 now, or when the transport's buffer has drained."""
        assert self.transport is not None
        if pending > SMALL_BODY and self.transport.get_write_buffer_size():
            self._draining = True
            self.transport.set_write_buffer_limits(high=0)  # resume_writing comes when all is written
            return
        self._sent()

    def _sent(self) -> None:
        self._sending = self._draining = False
        if self.sink is not None:
            self.sink.on_request_sent(monotonic_ns())

    def abort(self) -> None:
        """Close at once; the sink hears nothing more."""
        self.sink = None
        self._at_chunk = False
        self._close()

    def given_up(self) -> None:
        """Its connect failed, or was cancelled: also where the transport was there, and nobody had heard yet.

        uvloop then closes the transport without ``connection_lost``: what refers back to us is let go here.
        """
        self._close()
        self.transport = self._parser = self._feed = None

    def pause(self) -> None:
        """Stop reading (a slow client's buffer is full)."""
        if self.transport is not None and not self.closed:
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self.transport is not None and not self.closed:
            self.transport.resume_reading()

    def stale(self) -> bool:
        """True when an idle connection has something to read: its end, or bytes nobody asked for."""
        if self.closed or self.transport is None or self.transport.is_closing():
            return True
        if self._poller is None:
            self._poller = select.poll()
            self._poller.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(self._poller.poll(0))

    def expired(self, now_ns: int, keep_alive_ns: int) -> bool:
        """True when it has been idle longer than we, or the server's own ``Keep-Alive``, allow."""
        if self.keep_alive_s is not None:
            # A second of margin: the server's clock started before ours.
            keep_alive_ns = min(keep_alive_ns, (self.keep_alive_s - 1) * 1_000_000_000)
        return now_ns - self.idle_since_ns >= keep_alive_ns

    @property
    def peer(self) -> str:
        """``address:port`` of the other end, for the record."""
        name = self.transport.get_extra_info("peername") if self.transport else None
        if isinstance(name, tuple):
            return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
        return str(name or "")

    # ------------------------------------------------------------------ the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses
        # Only now: the parser refers back to us, and most connects that are given up never come here.
        self._reset(new_parser=True)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family != socket.AF_UNIX:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        at_ns = self.at_ns = monotonic_ns()
        if self._at_chunk and len(data) < _LINES_LIMIT:
            line = _LINES[len(data)]
            if line and data.startswith(line) and data.endswith(b"\r\n"):
                self.sink.on_chunk(data, len(line), at_ns)  # type: ignore[union-attr]  # there is one
                return
        if self.first_byte_ns is None:
            self.first_byte_ns = at_ns
            if self.sink is None or self._ended:
                self._close()  # bytes that answer no request
                return
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._deliver(at_ns)
            self._nonsense(at_ns)
            return
        self._deliver(at_ns)
        if self._ended:
            self._finish(at_ns)
        elif self._framing is None:
            self._head_size += len(data)
            if self._head_size > HEAD_LIMIT:
                self._nonsense(at_ns)
        else:
            self._at_chunk = self._chunk_over and self.sink is not None and data.endswith(b"\r\n")

    def _deliver(self, at_ns: int) -> None:
        """Hand over what one read brought, as one piece of work for the client's side."""
        if self._bodies or self._headed:
            bodies, self._bodies, self._headed = self._bodies, [], False
            if self.sink is not None:
                self.sink.on_bodies(bodies, at_ns)

    def eof_received(self) -> None:
        if self.sink is not None and self._framing is not None and not self._ended:
            length, chunked = self._framing
            if length is None and not chunked:
                self._ended, self.keep_alive = True, False
                self._finish(monotonic_ns())

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._fail("no_response" if self._framing is None else "truncated", monotonic_ns())
        self.owner.gone(self)
        self._parser = self._feed = None  # the parser refers back to us

    def pause_writing(self) -> None:
        if self.sink is not None:
            self.sink.on_upload_room(False)

    def resume_writing(self) -> None:
        if self.sink is None:
            return
        if self._draining and self.transport is not None and not self.transport.get_write_buffer_size():
            self.transport.set_write_buffer_limits()
            self._sent()
        self.sink.on_upload_room(True)

    # ------------------------------------------------------------------ the parser's side

    def on_message_begin(self) -> None:
        if self._ended:
            self._dirty = True  # a second response behind the first

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._framing is None:  # later ones are trailers
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self._ended or self.sink is None:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._interim = True
            return
        head = read_response_head(status, self._reason, self._fields)
        self.keep_alive = self._parser.should_keep_alive()
        self.keep_alive_s = head.keep_alive_s
        self._framing = head.framing
        if status == 101 or head.bad_coding:
            self._dirty = self._ended = True
            self._fail("bad_response", self.at_ns)
            return
        if self._head_only or status in _BODYLESS:
            self._ended = True
            self._head_only = True
        self._headed = True
        self.sink.on_head(head, self.at_ns)

    def on_chunk_header(self) -> None:
        self._chunk_over = False

    def on_chunk_complete(self) -> None:
        self._chunk_over = True

    def on_body(self, data: bytes) -> None:
        if self._ended:
            self._dirty = True
        else:
            self._bodies.append(data)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
            self._fields, self._reason = [], b""
            return
        self._ended = True

    # ------------------------------------------------------------------ ends

    def _finish(self, at_ns: int) -> None:
        """The response is complete: tell the sink, then go back to the owner or close."""
        sink, self.sink = self.sink, None
        reusable = self.keep_alive and not self._dirty and not self._sending and not self.closed
        if sink is not None:
            sink.on_end(at_ns)
        if not reusable:
            self._close()
            return
        self.after_chunks = self._framing is not None and self._framing.chunked
        self._reset(new_parser=self._head_only)
        self.first_byte_ns = None
        self.idle_since_ns = at_ns
        self.owner.idle(self)

    def _nonsense(self, at_ns: int) -> None:
        if self._ended:  # what came behind the end is not our exchange's concern
            self._dirty = True
            self._finish(at_ns)
        else:
            self._fail("bad_response" if self._framing is None else "truncated", at_ns)
            self._close()

    def _fail(self, kind: str, at_ns: int) -> None:
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.on_failure(kind, at_ns)

    def _close(self) -> None:
        self.closed = True
        if self.transport is not None:
            self.transport.abort()
