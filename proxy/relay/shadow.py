"""One copy of a request on its way to a shadow backend.

A ``Copy`` is the sink of a connection of the shadow's pool, with a tap and the deadlines that the request was
promised, and without a client: nothing of the answer is kept but what a tap keeps.  It ends by the answer's
end, by the limits that hold for any request, or by its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from proxy.clock import monotonic_ns, unix_ns
from proxy.errors import UpstreamError
from proxy.relay.forward import upstream_request
from proxy.relay.headers import ResponseHead
from proxy.relay.tap import Tap, is_stream, open_tap
from proxy.tasks import report, spawn

if TYPE_CHECKING:
    from proxy.link import MirrorSpec
    from proxy.relay.exchange import Exchange
    from proxy.relay.mirror import Breaker, Mirrors
    from proxy.relay.pool import Pool
    from proxy.relay.upstream import Connection, Request
    from proxy.relay.worker import Worker

#: A shadow may answer so much at once, and so much per second, of which no more is read: no model comes near
#: it, and what would take it must not take the loop.
_BURST: Final = 1024 * 1024
_RATE: Final = 512 * 1024
#: And so much in all; then the copy is given up.
_ANSWER_MOST: Final = 64 * 1024 * 1024
#: Pauses kept apart; more of them are joined to the last one.
_PAUSES: Final = 64


class Copy:
    """One copy on its way.  ``end`` is ``None`` until it is over (the words of ``Facts.end``)."""

    __slots__ = (
        "_answer_left",
        "_body",
        "_body_size",
        "_connecting",
        "_feed",
        "_give_up_ns",
        "_mirrors",
        "_paced_ns",
        "_paused_ns",
        "_pool",
        "_room",
        "_timer",
        "_worker",
        "arm",
        "blocked",
        "call",
        "connect_ns",
        "connected_ns",
        "connection",
        "end",
        "end_ns",
        "error",
        "first_byte_ns",
        "head_ns",
        "id",
        "mirror_of",
        "peer",
        "received_ns",
        "received_unix_ns",
        "sent_ns",
        "spec",
        "status",
        "streamed",
        "tap",
    )

    def __init__(
        self, mirrors: Mirrors, worker: Worker, spec: MirrorSpec, pool: Pool, exchange: Exchange
    ) -> None:
        self._mirrors = mirrors
        self._worker = worker
        self._pool = pool
        self.spec = spec
        self.call = exchange.call
        self.arm = exchange.arm
        self.mirror_of = exchange.id
        self.received_unix_ns = unix_ns()
        self.received_ns = monotonic_ns()
        self.id = worker.ids.new(self.received_unix_ns)
        # The pieces are shared with the request until it lets them go; they are counted for both.
        self._body = exchange.client.body
        self._body_size = exchange.client.body_size
        worker.body_room -= self._body_size
        self.connection: Connection | None = None
        self.tap: Tap | None = None
        self.end: str | None = None
        self.end_ns = 0
        self.error: str | None = None
        self.status: int | None = None
        self.streamed = False
        self.sent_ns: int | None = None
        self.head_ns: int | None = None
        self.first_byte_ns: int | None = None
        self.connect_ns = 0
        self.connected_ns: int | None = None
        self.peer: str | None = None
        self.blocked: list[tuple[int, int]] = []
        self._paused_ns: int | None = None
        self._paced_ns = self.received_ns
        self._room = _BURST
        self._answer_left = _ANSWER_MOST
        self._give_up_ns = self.received_ns + spec.timeout_ns
        self._connecting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._feed: Callable[[bytes, int], None] | None = None

    # ------------------------------------------------------------------ the beginning

    def begin(self, exchange: Exchange) -> None:
        """In a turn of its own.  The exchange is not held on to: its client and its tap may go."""
        if self.end is not None:
            return
        try:
            request = upstream_request(exchange, self._pool)
            if self.spec.leave_out:
                fields = [field for field in request.fields if _name(field) not in self.spec.leave_out]
                request = request._replace(fields=fields)
            connection = self._pool.take()
            if connection is None:
                self._connecting = spawn(self._connect(request), "a copy's connection")
            else:
                self._send(connection, request)
            if self.end is None:
                self._watch()
        except Exception as error:
            report("a copy", error)
            self.give_up("self", "internal")

    async def _connect(self, request: Request) -> None:
        started_ns = monotonic_ns()
        try:
            connection = await self._pool.connect()
        except UpstreamError as error:
            self._connecting = None
            self._breaker.failed(monotonic_ns())
            self._over(error.end, monotonic_ns(), error.code)
            return
        finally:
            self.connect_ns = monotonic_ns() - started_ns
        self._connecting = None
        if self.end is not None:
            connection.abort()
        else:
            self._send(connection, request)

    def _send(self, connection: Connection, request: Request) -> None:
        self._breaker.worked()
        self.connection, self.peer = connection, connection.peer
        connection.send(self, request, self._body, more=False)

    @property
    def _breaker(self) -> Breaker:
        return self._mirrors.breaker(self.spec.backend)

    # ------------------------------------------------------------------ what the shadow says (upstream.Sink)

    def on_connected(self, at_ns: int) -> None:
        """The connection is there."""
        self.connected_ns = at_ns

    def on_request_sent(self, at_ns: int) -> None:
        """The copy's own t = 0, unless a response began before."""
        if self.sent_ns is None:
            self.sent_ns = at_ns
        self._drop_body()
        if self.end is None:
            self._watch()

    def on_head(self, head: ResponseHead, at_ns: int) -> None:
        """The response begins: measured as the request's own is."""
        self.head_ns = at_ns
        if self.sent_ns is None:
            self.sent_ns = at_ns
        if self.connection is not None:
            self.first_byte_ns = self.connection.first_byte_ns
        self.status = head.status
        self.streamed = is_stream(head.content_type)
        self.tap = open_tap(
            path=self.call.path,
            content_type=head.content_type,
            content_encoding=head.content_encoding,
            ttft_ns=self.arm.ttft_ns,
            tbt_ns=self.arm.tbt_ns,
            t0_ns=self.sent_ns,
            arrivals_cap=self._worker.table.arrivals_cap,
            choices=self.call.choices,
            dialect=self.arm.dialect,
        )
        self._feed = self.tap.feed
        self._watch()

    def on_chunk(self, data: bytes, start: int, at_ns: int) -> None:
        """One whole chunk, ``data[start:-2]``."""
        if self._feed is not None:
            self._feed(data[start:-2], at_ns)
        self._pace(len(data), at_ns)

    def on_bodies(self, bodies: list[bytes], at_ns: int) -> None:
        """What one read brought where it was not one whole chunk."""
        if self._feed is not None:
            for data in bodies:
                self._feed(data, at_ns)
        self._pace(sum(map(len, bodies)), at_ns)

    def on_end(self, at_ns: int) -> None:
        """The response is complete."""
        self._over("complete", at_ns)

    def on_failure(self, kind: str, at_ns: int) -> None:
        """The shadow died or spoke nonsense."""
        if self.head_ns is not None:
            self._over("truncated", at_ns, "upstream_cut")
        else:
            self._over("no_response" if kind == "truncated" else kind, at_ns, kind)

    def on_upload_room(self, room: bool) -> None:
        """The body is whole, and waits in the transport."""

    # ------------------------------------------------------------------ bounds

    def _pace(self, size: int, at_ns: int) -> None:
        """Read no faster than any model answers: what came too fast is paid for by not reading."""
        self._answer_left -= size
        if self._answer_left < 0:
            self.give_up("self", "copy_too_large")
            return
        room = self._room + (at_ns - self._paced_ns) * _RATE // 1_000_000_000
        self._room = min(room, _BURST) - size
        self._paced_ns = at_ns
        if self._room < 0 and self._paused_ns is None and self.connection is not None:
            self._paused_ns = at_ns
            self.connection.pause()
            self._worker.loop.call_later(-self._room / _RATE, self._read_on)

    def _read_on(self) -> None:
        if self._paused_ns is not None and self.connection is not None:
            self._unpause(monotonic_ns())
            self.connection.resume()

    def _unpause(self, now_ns: int) -> None:
        assert self._paused_ns is not None
        span, self._paused_ns = (self._paused_ns, now_ns), None
        if len(self.blocked) < _PAUSES:
            self.blocked.append(span)
        else:
            self.blocked[-1] = (self.blocked[-1][0], now_ns)

    def _watch(self) -> None:
        """Look again when the next limit is due: the copy's own, and those that hold for any request."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_ns = monotonic_ns()
        at_ns, end, error = self._limit(now_ns)
        if at_ns <= now_ns:
            self.give_up(end, error)
        else:
            self._timer = self._worker.loop.call_later((at_ns - now_ns) / 1e9, self._watch)

    def _limit(self, now_ns: int) -> tuple[int, str, str]:
        """When this copy is given up unless something comes before, as what, and why."""
        timeouts = self._worker.table.timeouts
        own = (self._give_up_ns, self._late_end(now_ns), "copy_timeout")
        if self.head_ns is not None:
            if timeouts.idle_ns and self.connection is not None:
                last_ns = now_ns if self._paused_ns is not None else max(self.connection.at_ns, self.head_ns)
                return min(own, (last_ns + timeouts.idle_ns, "timeout_idle", "idle_timeout"))
        elif timeouts.first_byte_ns and self.sent_ns is not None:
            late_ns = self.sent_ns + timeouts.first_byte_ns
            return min(own, (late_ns, "timeout_first_byte", "first_byte_timeout"))
        return own

    def _late_end(self, now_ns: int) -> str:
        """What a copy is whose time is over: the shadow's failure, but for a stream that is not behind."""
        if self.connection is None:
            return "timeout_connect"
        if self.head_ns is None:
            return "timeout_first_byte"
        behind = not self.streamed or self.tap is None or self.tap.overdue_ns(now_ns) > 0
        return "timeout_idle" if behind else "self"

    # ------------------------------------------------------------------ ends

    def give_up(self, end: str, error: str) -> None:
        """End now: the shadow's connection is closed."""
        if self.end is not None:
            return
        if self.connection is not None:
            self.connection.abort()
        elif self._connecting is not None:
            self._connecting.cancel()
            if end == "timeout_connect":
                self._breaker.failed(monotonic_ns())
            else:
                self._breaker.over()
        else:
            self._breaker.over()
        self._over(end, monotonic_ns(), error)

    def _over(self, end: str, at_ns: int, error: str | None = None) -> None:
        if self.end is not None:
            return
        self.end, self.end_ns, self.error = end, at_ns, error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._drop_body()
        self._connecting = None  # a task that was cancelled keeps its frames, which hold us
        connection, self.connection, self._feed = self.connection, None, None
        if connection is not None:
            if self.first_byte_ns is None:
                self.first_byte_ns = connection.first_byte_ns
            if self._paused_ns is not None:
                self._unpause(at_ns)
                connection.resume()  # it may carry another one
        if self.tap is not None:
            self.tap.finish(at_ns, end == "complete")
        self._mirrors.ended(self)

    def _drop_body(self) -> None:
        self._worker.body_room += self._body_size
        self._body, self._body_size = [], 0


def _name(field: tuple[bytes, bytes]) -> str:
    return field[0].lower().decode("latin-1")
