"""One request as it came and the answer to it: what an exchange can do with its client.

Nothing here waits.  Writing hands bytes to the transport in the same callback; what a slow client has
not taken is counted, and the exchange is told when it is too much and when it has drained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from proxy.clock import monotonic_ns, unix_ns
from proxy.relay.headers import Fields, Framing
from proxy.relay.replies import reply

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from proxy.relay.downstream import ClientProtocol

_BODYLESS: Final = frozenset((204, 304))


class Listener(Protocol):
    """What an exchange hears from its client.  Every call returns at once."""

    def on_client_gone(self) -> None: ...
    def on_backlog(self, full: bool) -> None: ...
    def on_upload(self, data: bytes) -> None: ...
    def on_upload_end(self) -> None: ...


class Limits(Protocol):
    """What the worker tells its client connections; read at each use, so that a new table counts at once."""

    head_limit: int
    body_limit: int
    body_room: int  # bytes of request bodies that may still be held
    stream_buffer: int
    stream_room: int  # bytes that may still wait for slow clients
    client_head_s: float
    client_keepalive_s: float
    draining: bool

    def refuse(self, client: Client, code: str) -> None: ...


class Client:
    """See the module.  ``fields`` are raw; ``body`` holds what has come so far."""

    __slots__ = (
        "backlog",
        "body",
        "body_size",
        "chunked",
        "complete",
        "cycle",
        "expects_body",
        "fields",
        "gone",
        "head",
        "keep_alive",
        "listener",
        "method",
        "protocol",
        "received_ns",
        "received_unix_ns",
        "response_done",
        "started",
        "streaming",
        "target",
        "transport",
        "unbounded",
        "upload_chunked",
        "version",
        "write",
    )

    def __init__(self, protocol: ClientProtocol) -> None:
        self.protocol = protocol
        self.transport = protocol.transport
        self.write = protocol.transport.write
        self.cycle: RequestResponseCycle | None = None
        self.listener: Listener | None = None
        self.method = b""
        self.target = b""
        self.version = "1.1"
        self.fields: Fields = []
        self.body: list[bytes] = []
        self.body_size = 0
        self.complete = False  # the whole request has arrived
        self.streaming = False  # handed over before its body was complete
        self.upload_chunked = False
        self.expects_body = False
        self.gone = False
        self.keep_alive = True
        self.started = False
        self.head = b""  # the response's head, written with the first piece of its body
        self.response_done = False
        self.chunked = False  # our response's framing
        self.unbounded = False  # the response ends by closing (HTTP/1.0)
        self.backlog = 0  # bytes accounted while the client is slow
        self.received_ns = monotonic_ns()
        self.received_unix_ns = unix_ns()

    # ------------------------------------------------------------------ the answer

    def start(self, status: int, reason: bytes, fields: Fields, framing: Framing) -> None:
        """Begin the response: the upstream's own fields, and of ours only what framing demands.

        The head is written by the next ``send_all``, ``finish`` or ``cut``, which follows at once.
        """
        self.started = True
        if self.cycle is not None:
            self.cycle.response_started = True
        if self.protocol.limits.draining or not self.complete:
            self.keep_alive = False
        parts: list[bytes] = [b"HTTP/1.1 %d " % status, reason, b"\r\n"]
        has_body = self.method != b"HEAD" and status not in _BODYLESS
        if self.version == "1.0":
            fields = [f for f in fields if f[0].lower() != b"transfer-encoding"]
            self.unbounded = has_body and framing.length is None
        elif has_body and framing.length is None:
            self.chunked = True
            if not framing.chunked:
                parts_te = (b"Transfer-Encoding", b"chunked")
                fields = [*fields, parts_te]
        for name, value in fields:
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"\r\n" if self.keep_alive else b"Connection: close\r\n\r\n")
        self.head = b"".join(parts)

    def send_all(self, bodies: list[bytes]) -> None:
        """Write pieces of the body, now and at once, behind the head if that is still to be written."""
        parts = [self.head] if self.head else []
        self.head = b""
        if self.chunked:
            for data in bodies:
                parts += (b"%x\r\n" % len(data), data, b"\r\n")
        else:
            parts += bodies
        if len(parts) == 1:
            self.write(parts[0])
        elif parts:
            self.transport.writelines(parts)
        if self.backlog:
            self.account(sum(map(len, bodies)))

    def finish(self) -> None:
        """The response is complete."""
        if self.response_done:
            return
        if not self.gone and (self.head or self.chunked):
            self.write(self.head + (b"0\r\n\r\n" if self.chunked else b""))
            self.head = b""
        self._end()

    def cut(self) -> None:
        """End the response as the upstream's ended: without its end.  What was written is delivered first."""
        if self.response_done:
            return
        if self.head:
            self.send_all([])
        self.release_backlog()
        self.response_done = True
        self.let_go(disconnected=True)
        if self.unbounded:
            # A close would look like a clean end here: only a reset tells the truth.
            self.protocol.reset_when_drained()
        else:
            self.transport.close()

    def refuse(self, code: str) -> int:
        """Answer with an error of ours; returns its status.  Only where nothing was sent yet."""
        known, fields, body = reply(code)
        if self.gone or self.started:
            return known.status
        if known.status in (400, 408, 417, 431, 501):
            self.keep_alive = False
        self.start(known.status, known.reason, fields, Framing(len(body), False))
        self.send_all([] if self.method == b"HEAD" else [body])
        self._end()
        return known.status

    def _end(self) -> None:
        self.release_backlog()
        self.response_done = True
        self.let_go(disconnected=False)
        self.protocol.answered(self)

    def let_go(self, *, disconnected: bool) -> None:
        """Tell uvicorn's notion of the request that it is over, and forget it.

        It refers back to us: a circle here would keep every client connection until a full collection.
        """
        cycle, self.cycle = self.cycle, None
        if cycle is not None:
            cycle.response_complete = cycle.response_complete or self.response_done
            cycle.disconnected = cycle.disconnected or disconnected

    # ------------------------------------------------------------------ a slow client

    def account(self, size: int) -> None:
        """While the transport's buffer is over its mark every byte is counted, here and for the worker."""
        limits = self.protocol.limits
        self.backlog += size
        limits.stream_room -= size
        if (self.backlog > limits.stream_buffer or limits.stream_room < 0) and self.listener is not None:
            self.listener.on_backlog(True)

    def slow(self, pending: int) -> None:
        """The transport's buffer went over its mark with ``pending`` bytes in it."""
        if not self.backlog:
            self.account(max(1, pending))

    def flowing(self) -> None:
        """The transport's buffer has drained."""
        if self.backlog:
            self.release_backlog()
            if self.listener is not None:
                self.listener.on_backlog(False)

    def release_backlog(self) -> None:
        """Give what was counted back to the worker's budget."""
        self.protocol.limits.stream_room += self.backlog
        self.backlog = 0

    # ------------------------------------------------------------------ the request's body

    def hold(self, data: bytes) -> None:
        """Keep a piece of the body, at the worker's expense."""
        self.body.append(data)
        self.protocol.limits.body_room -= len(data)

    def drop_body(self) -> None:
        """The body was sent on, or is not wanted any more: its bytes go back to the worker's budget."""
        if self.body:
            self.protocol.limits.body_room += sum(map(len, self.body))
            self.body = []

    def pause_upload(self) -> None:
        """Read no more of the request's body for now."""
        self.protocol.flow.pause_reading()

    def resume_upload(self) -> None:
        """Read on."""
        if not self.gone:
            self.protocol.flow.resume_reading()

    @property
    def peer(self) -> tuple[str, int] | None:
        """The client's address."""
        return self.protocol.client
