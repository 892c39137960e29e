"""The access log and the trace log, fed from settled batches through bounded writers that drop and count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from proxy.control.settle import Settled
from proxy.control.timeline import trace_line
from proxy.exporters.accesslog import LineWriter, encode_line
from proxy.exporters.logtarget import LogTarget
from proxy.exporters.tracelog import encode, open_trace_log

#: Access log and trace log, by the name that the metrics give them.
ACCESS: Final = "access_log"
TRACE: Final = "trace_log"


def record_line(settled: Settled) -> bytes:
    """A line of the access log."""
    return encode_line(settled.record)


def arrivals_line(settled: Settled) -> bytes | None:
    """A line of the trace log; ``None`` for what was not scored."""
    line = trace_line(settled)
    return None if line is None else encode(line)


_LINES: Final[dict[str, Callable[[Settled], bytes | None]]] = {ACCESS: record_line, TRACE: arrivals_line}


class Target(msgspec.Struct, frozen=True):
    """Where a log goes.  ``path`` ``None``: nowhere; ``rotate_bytes`` 0: others rotate it."""

    path: str | None = None
    rotate_bytes: int = 0


class Logs:
    """Both logs; ``configure`` may be called again at any time.  ``trouble`` is called from any thread."""

    def __init__(self, trouble: Callable[[str], None]) -> None:
        self._trouble = trouble
        self._targets: dict[str, Target] = {}
        self._writers: dict[str, LineWriter] = {}
        self._past_dropped: dict[str, int] = {}
        self._past_failures: dict[str, int] = {}

    def configure(self, access: Target, trace: Target) -> None:
        """Open what is new, close what is gone, leave alone (but open again) what stays."""
        for name, target in ((ACCESS, access), (TRACE, trace)):
            if self._targets.get(name, Target()) == target:
                if name in self._writers:
                    self._writers[name].reopen()
                continue
            self._close(name, 0.2)
            self._targets[name] = target
            if target.path is not None:
                writer = self._open(name, target.path, target.rotate_bytes)
                self._writers[name] = writer
                writer.start()

    def __call__(self, batch: Sequence[Settled]) -> None:
        """Offer every request of a batch to the logs that are on."""
        for name, writer in self._writers.items():
            to_line = _LINES[name]
            for settled in batch:
                line = to_line(settled)
                if line is not None:
                    writer.offer(line)

    def _open(self, name: str, path: str, rotate_bytes: int) -> LineWriter:
        if name == TRACE:
            return open_trace_log(path, rotate_bytes=rotate_bytes, on_trouble=self._trouble)
        return LineWriter(LogTarget(path), on_trouble=self._trouble)

    def close(self, deadline_s: float) -> None:
        """Write what is queued, for at most ``deadline_s`` in all."""
        for left, name in zip((2, 1), (TRACE, ACCESS), strict=True):
            self._close(name, deadline_s / left)

    def dropped(self) -> dict[str, int]:
        """Lines that were given up, by log."""
        return {name: self._total(name, self._past_dropped, "dropped") for name in _LINES}

    def failures(self) -> dict[str, int]:
        """Writes that failed, by log."""
        return {name: self._total(name, self._past_failures, "failures") for name in _LINES}

    def _total(self, name: str, past: dict[str, int], what: str) -> int:
        writer = self._writers.get(name)
        now = 0 if writer is None else getattr(writer.counts(), what)
        return past.get(name, 0) + int(now)

    def _close(self, name: str, deadline_s: float) -> None:
        writer = self._writers.pop(name, None)
        self._targets.pop(name, None)
        if writer is not None:
            counts = writer.flush(deadline_s)
            self._past_dropped[name] = self._past_dropped.get(name, 0) + counts.dropped
            self._past_failures[name] = self._past_failures.get(name, 0) + counts.failures
