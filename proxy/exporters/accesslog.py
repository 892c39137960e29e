"""The bounded writer behind the access log and the trace log: it never makes its caller wait.

``offer`` appends to a queue that is bounded in lines and bytes, and a thread of its own writes.  A stuck
pipe, a full disk or a dead reader stops nobody: the queue fills, further lines are dropped and counted.
A failed write is counted and tried again, less and less often, from the byte where it stopped; a target
that heals goes on with whole lines.  At every moment ``offered == written + dropped + queued``.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final

import msgspec

from proxy.exporters.logtarget import LogTarget

#: How long the writer gathers lines once one has come: a burst costs one wake-up and one write.
LINGER_S: Final = 0.05
#: How long ``flush`` waits beyond its deadline for a thread that hangs in a system call.
_GRACE_S: Final = 0.2

_encoder = msgspec.json.Encoder()


def encode_line(record: msgspec.Struct) -> bytes:
    """One JSON line, without its newline."""
    return _encoder.encode(record)


@dataclass(frozen=True, slots=True)
class WriterCounts:
    """Lines since the start; ``failures`` are failed system calls."""

    offered: int
    written: int
    dropped: int
    queued: int
    failures: int


class LineWriter:
    """Writes lines to ``target`` (a path, or ``-`` for standard output) from a thread of its own.

    ``on_trouble`` gets one sentence when writing begins to fail and one when it works again; it is called
    in the writer's thread and must neither block nor raise.  ``backoff_s``: the first and the longest pause
    after a failure.
    """

    def __init__(
        self,
        target: LogTarget,
        *,
        max_lines: int = 10_000,
        max_bytes: int = 8 * 1024 * 1024,
        backoff_s: tuple[float, float] = (0.1, 5.0),
        linger_s: float = LINGER_S,
        on_trouble: Callable[[str], None] | None = None,
    ) -> None:
        self._target = target
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._backoff_s = backoff_s
        self._linger_s = linger_s
        self._on_trouble = on_trouble
        self._work = threading.Condition()
        # Below: guarded by _work.
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._offset = 0  # bytes of the first line that are written
        self._drained = True  # nothing waited: the next line may be the first of a burst
        self._offered = self._written = self._dropped = self._failures = 0
        self._reopen = True  # the first opening is one, too
        self._closing = self._give_up = False
        # Below: the writer's own.
        self._in_trouble = False
        self._generation = 0
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=f"log {target.name}", daemon=True)
        self._started = False

    # ------------------------------------------------------------ the caller's side

    def start(self) -> None:
        """Start the thread; it opens the target at once, so that trouble shows early."""
        self._started = True
        self._thread.start()

    def offer(self, line: bytes) -> bool:
        """Queue one line (without its newline), or drop and count it; never waits for the target."""
        size = len(line) + 1
        with self._work:
            self._offered += 1
            full = len(self._queue) >= self._max_lines or self._queued_bytes + size > self._max_bytes
            if full or self._closing:
                self._dropped += 1
                return False
            self._queue.append(line + b"\n")
            self._queued_bytes += size
            if len(self._queue) == 1:
                self._work.notify()
            return True

    def reopen(self) -> None:
        """Close the file and open its path again (SIGHUP after logrotate's rename)."""
        with self._work:
            if self._closing:
                return
            self._reopen = True
            self._work.notify()
        self._wake()

    def counts(self) -> WriterCounts:
        """The numbers of one moment."""
        with self._work:
            return WriterCounts(self._offered, self._written, self._dropped, len(self._queue), self._failures)

    @property
    def thread_alive(self) -> bool:
        """Whether the thread still runs; after a ``flush`` only one that hangs in a system call does."""
        return self._thread.is_alive()

    def flush(self, deadline_s: float) -> WriterCounts:
        """Write what is queued, for at most ``deadline_s``; the rest counts as dropped.  The writer's end."""
        with self._work:
            again, self._closing = self._closing, True
            self._work.notify()
        if not again:
            self._end_thread(deadline_s)
        with self._work:
            self._dropped += len(self._queue)
            self._queue.clear()
            self._queued_bytes = 0
        return self.counts()

    def _end_thread(self, deadline_s: float) -> None:
        if self._started:
            self._wake()
            self._thread.join(deadline_s)
        if self._thread.is_alive():
            with self._work:
                self._give_up = True
            self._wake()
            self._thread.join(_GRACE_S)
        if not self._thread.is_alive():  # else it hangs in a system call and keeps what it holds
            os.close(self._wake_r)
            os.close(self._wake_w)

    def _wake(self) -> None:
        """Interrupt the writer's waiting for a target or for the end of a pause."""
        # A full pipe has woken it often enough already.
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_w, b"x")

    # ------------------------------------------------------------ the writer's thread

    def _run(self) -> None:
        first_s, longest_s = self._backoff_s
        pause_s = first_s
        while self._await_work():
            try:
                progress = self._step()
            except OSError as error:
                self._failed(error)
                self._wait_until_woken(pause_s)
                pause_s = min(2 * pause_s, longest_s)
            else:
                if progress:
                    pause_s = first_s
                    self._healthy()
        self._target.close()

    def _await_work(self) -> bool:
        """Wait for a line or an order; ``False`` ends the thread."""
        with self._work:
            while not (self._queue or self._reopen or self._closing):
                self._work.wait()
            if self._drained and not (self._reopen or self._closing):
                self._drained = False
                self._work.wait(self._linger_s)
            return not self._give_up and bool(self._queue or self._reopen or not self._closing)

    def _step(self) -> bool:
        """One write of whole lines, or of the part of one that fits; ``True`` if the target did its part."""
        with self._work:
            reopen, self._reopen = self._reopen, False
            line_bytes = len(self._queue[0]) if self._queue else 0
        if reopen:
            self._target.close()
        try:
            fd, room = self._target.ready(line_bytes, between_lines=self._offset == 0)
        finally:
            if self._generation != self._target.generation:
                self._generation = self._target.generation
                self._offset = 0  # what was written of the first line went to another file
        if not line_bytes:
            return True
        if self._target.blocks and not self._writable(fd):
            return False
        try:
            written = os.write(fd, self._gather(room))
        except BlockingIOError:
            return False
        self._advance(written)
        return True

    def _gather(self, room: int) -> bytes:
        """The next bytes: as many whole lines as fit into ``room``, or the first part of one."""
        with self._work:
            if not self._queue:
                return b""  # given up meanwhile
            parts = [self._queue[0][self._offset : self._offset + room]]
            room -= len(self._queue[0]) - self._offset
            for line in islice(self._queue, 1, None):
                room -= len(line)
                if room < 0:
                    break
                parts.append(line)
        return b"".join(parts)

    def _advance(self, written: int) -> None:
        with self._work:
            self._offset += written
            while self._queue and self._offset >= len(self._queue[0]):
                size = len(self._queue.popleft())
                self._offset -= size
                self._queued_bytes -= size
                self._written += 1
            self._drained = not self._queue

    def _writable(self, fd: int) -> bool:
        """Wait until the target takes a write; ``False`` when woken for another reason."""
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        poll.register(self._wake_r, select.POLLIN)
        events = dict(poll.poll())
        if self._wake_r in events:
            self._clear_wake()
            return False
        return True

    def _wait_until_woken(self, timeout_s: float) -> None:
        poll = select.poll()
        poll.register(self._wake_r, select.POLLIN)
        if poll.poll(timeout_s * 1000):
            self._clear_wake()

    def _clear_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_r, 4096)

    def _failed(self, error: OSError) -> None:
        with self._work:
            self._failures += 1
        if not self._in_trouble and self._on_trouble is not None:
            self._on_trouble(
                f"{self._target.name}: {error.strerror or error}; lines are kept as long as there is room, "
                "then dropped and counted; writing is tried again"
            )
        self._in_trouble = True

    def _healthy(self) -> None:
        if self._in_trouble and self._on_trouble is not None:
            self._on_trouble(f"{self._target.name}: writing works again")
        self._in_trouble = False
