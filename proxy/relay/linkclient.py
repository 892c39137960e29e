"""The worker's end of the link: bounded, and never in a stream's way.

Facts are numbered and batched.  They are kept until the control process acknowledges that it settled
them; past the bound the oldest are let go (the gap in the numbers tells control how many).  When the
link is lost it is opened again, and what was not acknowledged is sent once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Callable
from typing import Final, cast

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
    decode_down,
    frame,
)

log = logging.getLogger("legato.worker")

_KEEP_BYTES: Final = 32 * 1024 * 1024
_BATCH: Final = 64
_FLUSH_S: Final = 0.05
_RETRY_S: Final = 0.2


class LinkClient(asyncio.Protocol):
    """See the module.  On the loop, ``on_table`` is called with each table, ``on_learned`` with what was
    learned of prompts' lengths."""

    def __init__(
        self,
        worker: int,
        pid: int,
        path: str,
        on_table: Callable[[Table], None],
        on_learned: Callable[[PromptModels], None] = lambda _: None,
    ) -> None:
        self.worker = worker
        self.pid = pid
        self.path = path
        self.on_table = on_table
        self.on_learned = on_learned
        self.incarnation = secrets.token_hex(8)
        self.next_seq = 1
        self.acked = 0
        self.dropped = 0
        self._fresh: list[Facts] = []
        self._kept: deque[tuple[int, bytes]] = deque()  # (last seq of the batch, frame), oldest first
        self._kept_bytes = 0
        self._unsent = 0  # how many at the right end of _kept are still to be written
        self._transport: asyncio.Transport | None = None
        self._frames = Frames()
        self._paused = False
        self._closed = False
        self._flush_handle: asyncio.TimerHandle | None = None
        self._drained = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    # ------------------------------------------------------------------ facts and beats

    def facts(self, build: Callable[[int], Facts]) -> None:
        """Number a finished request and send it soon."""
        seq = self.next_seq
        self.next_seq += 1
        self._fresh.append(build(seq))
        if len(self._fresh) >= _BATCH:
            self._flush()
        elif self._flush_handle is None:
            self._flush_handle = self._loop.call_later(_FLUSH_S, self._flush)

    def beat(self, beat: Beat) -> None:
        """Send a beat if somebody ``hears`` it: the next one replaces it anyway."""
        if self._transport is not None and not self._paused:
            self._flush()
            self._transport.write(frame(beat))

    def _flush(self) -> None:
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        if self._fresh:
            payload = frame(FactsBatch(self._fresh))
            self._kept.append((self._fresh[-1].seq, payload))
            self._kept_bytes += len(payload)
            self._unsent += 1
            self._fresh = []
            while self._kept_bytes > _KEEP_BYTES and len(self._kept) > 1:
                self._let_go()
        self._write()

    def _let_go(self) -> None:
        last, payload = self._kept.popleft()
        self._kept_bytes -= len(payload)
        log.warning("the link's buffer is full: facts up to number %d are let go", last)
        self._unsent = min(self._unsent, len(self._kept))

    def _write(self) -> None:
        transport = self._transport
        while transport is not None and self._unsent and not self._paused:
            transport.write(self._kept[-self._unsent][1])
            self._unsent -= 1

    @property
    def backlog(self) -> int:
        """Finished requests that nobody has settled yet."""
        return self.next_seq - 1 - self.acked

    @property
    def hears(self) -> bool:
        """The link is there, and takes what is written."""
        return self._transport is not None and not self._paused

    @property
    def behind(self) -> bool:
        """Control settles more slowly than requests end here, or not at all: what can wait should."""
        return self._kept_bytes > _KEEP_BYTES // 4

    # ------------------------------------------------------------------ the connection

    async def keep(self) -> None:
        """Hold the link: connect, and again after each loss, until ``close``."""
        while not self._closed:
            if self._transport is None:
                with contextlib.suppress(OSError):
                    await self._loop.create_unix_connection(lambda: self, self.path)
            await asyncio.sleep(_RETRY_S)

    async def close(self, wait_s: float) -> None:
        """Deliver what is left, at most ``wait_s`` long."""
        self._flush()
        self._drained.clear()
        if self.backlog:
            try:
                await asyncio.wait_for(self._drained.wait(), wait_s)
            except TimeoutError:
                log.warning("%d finished requests were not settled before the end", self.backlog)
        self._closed = True
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses
        self._frames = Frames()
        self._paused = False
        hello = Hello(
            PROTOCOL, self.worker, self.pid, self.incarnation, self.next_seq, self.acked, self.dropped
        )
        self._transport.write(frame(hello))
        self._unsent = len(self._kept)
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._frames.feed(data):
                message = decode_down(payload)
                if isinstance(message, Ack):
                    self._ack(message.seq)
                elif isinstance(message, PromptModels):
                    self.on_learned(message)
                else:
                    self.on_table(message)
        except LinkError as error:
            log.error("the control process sent what is no frame: %s", error)
            if self._transport is not None:
                self._transport.abort()

    def _ack(self, seq: int) -> None:
        self.acked = max(self.acked, seq)
        while self._kept and self._kept[0][0] <= seq:
            _, payload = self._kept.popleft()
            self._kept_bytes -= len(payload)
        self._unsent = min(self._unsent, len(self._kept))
        if not self.backlog:
            self._drained.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._paused = False

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._write()
