"""The control process's end of the link: workers connect, say hello, and are heard.

What a worker sends is queued and folded in slices of at most ``SLICE_NS``, between which the loop serves
whoever else waits (a scrape, the admin API); when too much is queued the socket is not read until it is
folded, so memory is bounded and the worker's own bounded buffer takes over.  A worker that sends nonsense
is disconnected and counted; it may come back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, cast

from proxy.control.workers import Worker
from proxy.link import (
    PROTOCOL,
    Ack,
    Beat,
    Facts,
    FactsBatch,
    Frames,
    Hello,
    LinkError,
    PromptModels,
    Table,
    Up,
    decode_up,
    frame,
)

_log = logging.getLogger("legato.link")

#: How long folding may hold the loop before others have their turn.
SLICE_NS: Final = 5_000_000
#: Bytes queued over all workers beyond which sockets are not read, and below which they are again.
QUEUE_HIGH: Final = 8 * 1024 * 1024
QUEUE_LOW: Final = 2 * 1024 * 1024
#: Work folded at most between two looks at the clock, in requests that were not streamed; a stream takes
#: its scoring, some 0.3 ms and more, and counts for so many.
STRIDE: Final = 64
_STREAM_WEIGHT: Final = 16
#: What was learned of prompt lengths goes to the workers at most so often.
NEWS_EVERY_NS: Final = 1_000_000_000


class Desk(Protocol):
    """Who takes what the workers say (the controller)."""

    @property
    def table(self) -> Table: ...
    @property
    def learned(self) -> PromptModels | None: ...
    def news(self) -> PromptModels | None: ...
    def hello(self, hello: Hello) -> Worker: ...
    def facts(self, worker: Worker, batch: list[Facts]) -> None: ...
    def beat(self, worker: Worker, beat: Beat) -> None: ...
    def left(self, worker: Worker) -> None: ...
    def nonsense(self) -> None: ...


class Connection(asyncio.Protocol):
    """One worker's connection.  ``worker`` is ``None`` until its hello."""

    def __init__(self, server: LinkServer) -> None:
        self._server = server
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None
        self.worker: Worker | None = None
        self.refused = False  # it sent nonsense: nothing that it sent since is taken
        self._acked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses
        self._server.joined(self)

    def data_received(self, data: bytes) -> None:
        if self.refused:
            return
        try:
            for payload in self._frames.feed(data):
                self._server.queue(self, payload)
        except LinkError as error:
            self.refuse(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.gone(self)

    def send(self, message: Table | Ack | PromptModels) -> None:
        """Write one message; a connection that ends takes nothing."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(message))

    def ack(self) -> None:
        """Acknowledge what was settled since the last time."""
        if self.worker is not None and self.worker.seen > self._acked:
            self._acked = self.worker.seen
            self.send(Ack(self._acked))

    def refuse(self, why: str) -> None:
        """Disconnect a peer that does not keep to the protocol."""
        if not self.refused:
            self.refused = True
            self._server.refuse(self, why)
        self.abort()

    def abort(self) -> None:
        """Cut it."""
        if self._transport is not None:
            self._transport.abort()

    def pause(self, on: bool) -> None:
        """Stop or go on reading."""
        if self._transport is None or self._transport.is_closing():
            return
        if on:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


class LinkServer:
    """Listens on the link's socket.  ``monotonic_ns`` is the clock."""

    def __init__(self, desk: Desk, monotonic_ns: Callable[[], int]) -> None:
        self._desk = desk
        self._monotonic_ns = monotonic_ns
        self._connections: set[Connection] = set()
        # A frame, what is left of a batch, or None: the connection's end.
        self._queue: deque[tuple[Connection, bytes | list[Facts] | None]] = deque()
        self._queued_bytes = 0
        self._paused = False
        self._news_at_ns = 0
        self._read_ns = monotonic_ns()
        self._wake = asyncio.Event()

    # ------------------------------------------------------------ connections

    def protocol(self) -> Connection:
        """The factory for the listening socket."""
        return Connection(self)

    def joined(self, connection: Connection) -> None:
        """A connection was accepted."""
        self._connections.add(connection)
        if self._paused:
            connection.pause(True)

    def gone(self, connection: Connection) -> None:
        """A connection ended; its end is queued behind what it sent."""
        self._connections.discard(connection)
        self._queue.append((connection, None))
        self._wake.set()

    def queue(self, connection: Connection, payload: bytes) -> None:
        """One frame arrived."""
        self._queue.append((connection, payload))
        self._queued_bytes += len(payload)
        if not self._paused and self._queued_bytes > QUEUE_HIGH:
            self._pause(True)
        self._wake.set()

    def refuse(self, connection: Connection, why: str) -> None:
        """A peer sent nonsense."""
        who = (
            "a peer that said no hello" if connection.worker is None else f"worker {connection.worker.worker}"
        )
        _log.warning("disconnected %s: %s", who, why)
        self._desk.nonsense()

    def send_table(self) -> None:
        """Send the table of now to every worker that said hello."""
        for connection in self._connections:
            if connection.worker is not None:
                connection.send(self._desk.table)

    @property
    def queued_bytes(self) -> int:
        """What has arrived and is not folded yet."""
        return self._queued_bytes

    def abort(self) -> None:
        """Cut every connection."""
        for connection in list(self._connections):
            connection.abort()

    def _pause(self, on: bool) -> None:
        self._paused = on
        for connection in self._connections:
            connection.pause(on)

    # ------------------------------------------------------------ folding

    async def run(self) -> None:
        """Fold what arrives until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                self._fold()
                await asyncio.sleep(0)
            self._read_ns = self._monotonic_ns()

    @property
    def read_ns(self) -> int:
        """When all that had arrived was folded: now, unless it is behind."""
        return self._read_ns if self._queue or self._paused else self._monotonic_ns()

    def fold_for(self, at_most_ns: int) -> None:
        """Fold what is queued without giving way (at the end)."""
        until_ns = self._monotonic_ns() + at_most_ns
        while self._queue and self._monotonic_ns() < until_ns:
            self._fold()

    def _fold(self) -> None:
        try:
            self.fold_slice()
        except Exception:  # one batch must not end the control process, nor come again for ever
            _log.exception("a batch of finished requests could not be booked")

    def fold_slice(self) -> None:
        """Fold for at most about ``SLICE_NS``, then acknowledge."""
        until_ns = self._monotonic_ns() + SLICE_NS
        touched: set[Connection] = set()
        try:
            while self._queue:
                connection, item = self._queue.popleft()
                if isinstance(item, bytes):
                    self._queued_bytes -= len(item)
                if item is None:
                    self._left(connection)
                elif not connection.refused:
                    touched.add(connection)
                    self._take(connection, item)
                if self._monotonic_ns() >= until_ns:
                    break
        finally:  # what could not be booked must not come again, nor leave the sockets unread
            for connection in touched:
                connection.ack()
            if self._paused and self._queued_bytes < QUEUE_LOW:
                self._pause(False)
        self._send_news()

    def _send_news(self) -> None:
        """Tell every worker what was learned; their beats see to it that this is looked at each second."""
        now_ns = self._monotonic_ns()
        if now_ns < self._news_at_ns:
            return
        self._news_at_ns = now_ns + NEWS_EVERY_NS
        news = self._desk.news()
        for connection in self._connections:
            if news is not None and connection.worker is not None:
                connection.send(news)

    def _left(self, connection: Connection) -> None:
        worker = connection.worker
        if worker is None:
            return
        if any(other.worker is worker for other in self._connections):
            return  # it is back on another connection already
        self._desk.left(worker)

    def _take(self, connection: Connection, item: bytes | list[Facts]) -> None:
        if isinstance(item, list):
            self._facts(connection, item)
            return
        try:
            self._message(connection, decode_up(item))
        except LinkError as error:
            connection.refuse(str(error))

    def _message(self, connection: Connection, message: Up) -> None:
        if isinstance(message, Hello):
            self._hello(connection, message)
        elif connection.worker is None:
            raise LinkError(f"{type(message).__name__} before Hello")
        elif isinstance(message, FactsBatch):
            self._facts(connection, message.facts)
        else:
            self._desk.beat(connection.worker, message)

    def _facts(self, connection: Connection, facts: list[Facts]) -> None:
        portion = _portion(facts)
        if portion < len(facts):  # a large batch must not hold the loop: the rest waits at the front
            self._queue.appendleft((connection, facts[portion:]))
            facts = facts[:portion]
        if connection.worker is not None:
            self._desk.facts(connection.worker, facts)

    def _hello(self, connection: Connection, hello: Hello) -> None:
        if hello.protocol != PROTOCOL:
            raise LinkError(f"protocol {hello.protocol}, this is {PROTOCOL}: restart the worker")
        if connection.worker is not None:
            raise LinkError("a second Hello on one connection")
        connection.worker = self._desk.hello(hello)
        connection.send(self._desk.table)
        learned = self._desk.learned
        if learned is not None:
            connection.send(learned)


def _portion(facts: list[Facts]) -> int:
    """How many of these make up one stride, at least one."""
    weight = 0
    for number, each in enumerate(facts, 1):
        weight += _STREAM_WEIGHT if each.streamed else 1
        if weight >= STRIDE:
            return number
    return len(facts)
