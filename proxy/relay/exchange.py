"""One request on its way: stamp, forward, then observe.

An ``Exchange`` carries one request.  After the request went out everything happens in the callbacks of
the upstream's connection: a chunk is stamped by the wire, written to the client's transport in the same
callback, and only then shown to the tap.  The request's own task sleeps until the end.

There is no queue between the two sides.  What a slow client has not taken waits in its transport, is
counted against the stream's and the worker's budget, and past either the upstream is not read until the
client has caught up: those gaps are the client's, and marked so.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from proxy.clock import monotonic_ns
from proxy.errors import UpstreamError
from proxy.relay import delays
from proxy.relay.call import Call
from proxy.relay.failover import elsewhere
from proxy.relay.forward import upstream_request, with_request_id
from proxy.relay.headers import ResponseHead
from proxy.relay.tap import Tap, is_stream, open_tap
from proxy.tasks import child

if TYPE_CHECKING:
    from proxy.link import Stream
    from proxy.relay.client import Client
    from proxy.relay.failover import Opened, Wire
    from proxy.relay.pool import Pool
    from proxy.relay.pull import PullConnection, PullPool
    from proxy.relay.route import Arm
    from proxy.relay.upstream import Connection
    from proxy.relay.worker import Worker

#: Pauses kept apart per stream; more of them are joined to the last one.
_BLOCKED_CAP: Final = 512

#: What a sink hears of a failure -> (the word of ``Facts.end`` before any head, the reply's code).
_FAILURES: Final = {
    "no_response": ("no_response", "no_response"),
    "bad_response": ("bad_response", "bad_response"),
    "truncated": ("no_response", "no_response"),
    "connect_failed": ("connect_failed", "unreachable"),
    "timeout_connect": ("timeout_connect", "connect_timeout"),
}


class Exchange:
    """One request on its way.  ``end`` is ``None`` until it is over (the words of ``Facts.end``)."""

    __slots__ = (
        "_blocked_from_ns",
        "_connecting",
        "_done",
        "_feed",
        "_last_ns",
        "_raw",
        "_timer",
        "_write",
        "arm",
        "attempts",
        "blocked",
        "call",
        "client",
        "connect_ns",
        "connected_ns",
        "connection",
        "copied",
        "delay_counts",
        "delay_sum_ns",
        "end",
        "end_ns",
        "error",
        "first_byte_ns",
        "head_ns",
        "id",
        "peer",
        "recorded",
        "sent_ns",
        "status",
        "streamed",
        "tap",
        "trace",
        "trace_id",
        "unmeasured",
        "worker",
    )

    def __init__(
        self, worker: Worker, client: Client, call: Call, arm: Arm, *, recorded: bool = True
    ) -> None:
        self.worker = worker
        self.client = client
        self.call = call
        self.arm = arm
        self.recorded = recorded  # else it passes unmeasured, and nobody is told of it
        self.id = worker.ids.new(client.received_unix_ns)
        self.trace_id, self.trace = worker.traces.begin(client.fields) if recorded else (None, None)
        self.connection: Connection | PullConnection | None = None
        self.tap: Tap | None = None
        self.unmeasured: Stream | None = None  # in place of a tap's
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
        self.attempts = 1
        self.peer: str | None = None
        self.copied: str | None = None  # the shadow that has a copy
        self.blocked: list[tuple[int, int]] = []
        self.delay_counts = delays.new()
        self.delay_sum_ns = 0
        self._blocked_from_ns: int | None = None
        self._connecting: asyncio.Task[Connection | PullConnection] | None = None
        self._done: asyncio.Future[None] = worker.loop.create_future()
        self._feed: Any = None
        self._write = client.write
        self._raw = False
        self._timer: asyncio.TimerHandle | None = None
        self._last_ns = 0

    @property
    def paused_ns(self) -> int | None:
        """Since when the upstream is not read, for a slow client; ``None``: it is."""
        return self._blocked_from_ns

    # ------------------------------------------------------------------ the request's own task

    async def run(self) -> None:
        """From the arm to the end.  Returns when the exchange is over; ``end`` says how."""
        client = self.client
        if client.gone:
            self._over("client_left", monotonic_ns())
            return
        pool = self.worker.pools[self.arm.backend]
        connection: Connection | PullConnection | None = pool.take()
        if connection is None:
            if pool.full:
                self._refuse("pool_full", "pool_full")
                return
            opened = await self._connect(pool)
            if opened is None:
                return
            connection, pool = opened
        self.connection, self.peer = connection, connection.peer
        connection.send(self, upstream_request(self, pool), client.body, more=not client.complete)
        if client.streaming and not client.gone:
            client.drop_body()
            client.resume_upload()
        await self._done

    async def _connect(self, pool: Pool | PullPool) -> Opened | None:
        started_ns = monotonic_ns()
        try:
            opened = await self._open(pool)
        except asyncio.CancelledError:
            if self.end is not None:  # by us, who ended it
                return None
            raise
        finally:
            self.connect_ns = monotonic_ns() - started_ns
            self._connecting = None
        if opened is not None and self.end is not None:
            opened[0].abort()
            return None
        return opened

    async def _open(self, pool: Pool | PullPool) -> Opened | None:
        try:
            return await self._dial(pool), pool
        except UpstreamError as error:
            end, code = error.end, error.code  # not the error: it holds this frame, which would hold it
        if self.end is not None:  # in the very turn in which the connect failed
            return None
        opened = await elsewhere(self, code, self._dial)
        if opened is None and self.end is None:
            self._refuse(end, code)
        return opened

    def _dial(self, pool: Pool | PullPool) -> asyncio.Task[Wire]:
        self._connecting = child(pool.connect())
        return self._connecting

    # ------------------------------------------------------------------ what the upstream says

    def on_connected(self, at_ns: int) -> None:
        """The connection is there, and the request goes out on it."""
        self.connected_ns = at_ns

    def on_request_sent(self, at_ns: int) -> None:
        """t = 0, unless a response began before."""
        if self.sent_ns is None:
            self.sent_ns = at_ns
        if self.arm.mirror is not None and self.recorded:
            self.worker.mirrors.consider(self, at_ns)
        self.client.drop_body()
        timeouts = self.worker.table.timeouts
        if timeouts.first_byte_ns and self.head_ns is None and self.end is None:
            self._timer = self.worker.loop.call_later(timeouts.first_byte_ns / 1e9, self._first_byte_late)

    def on_head(self, head: ResponseHead, at_ns: int) -> None:
        """The response begins: choose the tap by its content type, pass the head on."""
        self.head_ns = at_ns
        if self.sent_ns is None:
            self.sent_ns = at_ns
        if self.connection is not None:
            self.first_byte_ns = self.connection.first_byte_ns
            self.peer = self.peer or self.connection.peer  # one that pulls knows it only now
        self.status = head.status
        worker = self.worker
        fields = head.fields
        if worker.table.request_id_header is not None:
            fields = with_request_id(self, fields)
        self.client.start(head.status, head.reason, fields, head.framing)
        self._raw = self.client.chunked
        self.streamed = is_stream(head.content_type)
        if worker.measuring and not worker.shedding and self.recorded:
            arm = self.arm
            self.tap = open_tap(
                path=self.call.path,
                content_type=head.content_type,
                content_encoding=head.content_encoding,
                ttft_ns=arm.ttft_ns,
                tbt_ns=arm.tbt_ns,
                t0_ns=self.sent_ns,
                arrivals_cap=worker.table.arrivals_cap,
                choices=self.call.choices,
                dialect=arm.dialect,
            )
            self._feed = self.tap.feed
        else:
            self.unmeasured = worker.unmeasured()  # why, now: shedding may have ended when the stream does
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if worker.table.timeouts.idle_ns:
            self._last_ns = at_ns
            self._watch_idle()

    def on_chunk(self, data: bytes, start: int, at_ns: int) -> None:
        """One whole chunk, ``data[start:-2]``: forward, then observe.  HOT: once per token.

        Where the client's framing is the same the chunk goes out as it came.
        """
        client = self.client
        body = data[start:-2]
        self._write(data if self._raw else body)
        if client.backlog:
            client.account(len(body))
        delay_ns = monotonic_ns() - at_ns
        self.delay_counts[(delay_ns * delay_ns).bit_length()] += 1
        self.delay_sum_ns += delay_ns
        if self._feed is not None:
            self._feed(body, at_ns)

    def on_bodies(self, bodies: list[bytes], at_ns: int) -> None:
        """What one read brought where it was not one whole chunk: forward, then observe."""
        self.client.send_all(bodies)
        delay_ns = monotonic_ns() - at_ns
        self.delay_counts[(delay_ns * delay_ns).bit_length()] += len(bodies)
        self.delay_sum_ns += delay_ns * len(bodies)
        if self._feed is not None:
            for data in bodies:
                self._feed(data, at_ns)

    def on_end(self, at_ns: int) -> None:
        """The response is complete."""
        self._over("complete", at_ns)
        self.client.finish()

    def on_failure(self, kind: str, at_ns: int) -> None:
        """The upstream died or spoke nonsense."""
        if self.end is not None:
            return
        if self.client.started:
            self.error = "upstream_cut"
            self._over("truncated", at_ns)
            self.client.cut()
        else:
            self._refuse(*_FAILURES[kind])

    def on_upload_room(self, room: bool) -> None:
        """The upstream takes the request's body slower, or again, than the client sends it."""
        if not self.client.complete:
            if room:
                self.client.resume_upload()
            else:
                self.client.pause_upload()

    # ------------------------------------------------------------------ what the client does

    def on_client_gone(self) -> None:
        """The client left: close upstream at once, before the first byte too."""
        if self.end is not None:
            return
        if self.connection is not None:
            self.connection.abort()
        elif self._connecting is not None:
            self._connecting.cancel()
        self._over("client_left", monotonic_ns())

    def on_backlog(self, full: bool) -> None:
        """The client's buffer is full, or has drained: the upstream is not read in between."""
        if self.end is not None or self.connection is None:
            return
        if full:
            if self._blocked_from_ns is None:
                self._blocked_from_ns = monotonic_ns()
                self.connection.pause()
        elif self._blocked_from_ns is not None:
            self._unblock(monotonic_ns())
            self.connection.resume()

    def on_upload(self, data: bytes) -> None:
        """A piece of a request body that is streamed."""
        if self.connection is not None:
            self.connection.send_body(data)
        else:
            self.client.hold(data)  # goes out with the head
            self.client.pause_upload()

    def on_upload_end(self) -> None:
        """The streamed request body is complete."""
        if self.connection is not None and self.end is None:
            self.connection.send_end()

    # ------------------------------------------------------------------ time

    def _first_byte_late(self) -> None:
        self._timeout("timeout_first_byte", "first_byte_timeout")

    def _watch_idle(self) -> None:
        """Re-armed lazily: the hot path only leaves its stamp on the connection."""
        idle_ns = self.worker.table.timeouts.idle_ns
        if self.end is not None or self.connection is None or not idle_ns:
            return
        last_ns = max(self.connection.at_ns, self._last_ns)
        now_ns = monotonic_ns()
        if self._blocked_from_ns is not None:
            last_ns = now_ns  # it is the client that we wait for
        left_ns = last_ns + idle_ns - now_ns
        if left_ns <= 0:
            self._timeout("timeout_idle", "idle_timeout")
        else:
            self._timer = self.worker.loop.call_later(left_ns / 1e9, self._watch_idle)

    def _timeout(self, end: str, code: str) -> None:
        if self.end is not None:
            return
        if self.connection is not None:
            self.connection.abort()
        if self.client.started:
            self._over(end, monotonic_ns())
            self.client.cut()
        else:
            self._refuse(end, code)

    # ------------------------------------------------------------------ ends

    def _unblock(self, now_ns: int) -> None:
        assert self._blocked_from_ns is not None
        span = (self._blocked_from_ns, now_ns)
        self._blocked_from_ns = None
        self.worker.blocked.add(span[1] - span[0])
        if len(self.blocked) < _BLOCKED_CAP:
            self.blocked.append(span)
        else:
            self.blocked[-1] = (self.blocked[-1][0], now_ns)

    def _refuse(self, end: str, code: str) -> None:
        """Nothing was sent yet: answer with an error of ours."""
        self.error = code
        self._over(end, monotonic_ns())
        self.status = self.client.refuse(code)

    def _over(self, end: str, at_ns: int) -> None:
        if self.end is not None:
            return
        self.end, self.end_ns = end, at_ns
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._blocked_from_ns is not None:
            self._unblock(at_ns)
            if self.connection is not None:
                self.connection.resume()  # it may carry another request
        if self.first_byte_ns is None and self.connection is not None:
            self.first_byte_ns = self.connection.first_byte_ns  # of what never became a head
        if self.tap is not None:
            self.tap.finish(at_ns, end == "complete")
        self.connection = self._feed = None
        if not self._done.done():
            self._done.set_result(None)

    def abandon(self, end: str) -> None:
        """End now (the worker stops, or failed): the upstream is closed, the client answered or cut."""
        if self.end is not None:
            return
        if self.connection is not None:
            self.connection.abort()
        elif self._connecting is not None:
            self._connecting.cancel()
        if self.client.started or self.client.gone:
            self._over(end, monotonic_ns())
            self.client.cut()
        else:
            self._refuse(end, "internal")
