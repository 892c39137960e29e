"""The trace file: one JSON line per scored stream, from which its score can be computed again.

Every time in it is an integer number of nanoseconds since t = 0 (``t0_unix_ns``: t = 0 by the wall clock),
so that reading it back gives the same score to the last deadline.  What a line says comes from settling
(``TraceLine``), who reads it is ``legato score``; here are its text and the file with its rotation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from proxy.control.record import TraceLine
from proxy.exporters.accesslog import LineWriter
from proxy.exporters.logtarget import LogTarget

#: Files kept beside the current one: FILE.1 (the youngest) ... FILE.3.
KEEP: Final = 3
#: Trace lines are long (20,000 arrivals are some 300 KB): fewer of them, more bytes than the access log.
MAX_LINES: Final = 4_000
MAX_BYTES: Final = 32 * 1024 * 1024

_encoder = msgspec.json.Encoder()


def encode(line: TraceLine) -> bytes:
    """One JSON line, without its newline."""
    return _encoder.encode(line)


def open_trace_log(
    path: str, *, rotate_bytes: int, on_trouble: Callable[[str], None] | None = None
) -> LineWriter:
    """A writer for ``path`` (not started) that rotates before a line would make the file too large."""
    target = LogTarget(path, rotate_bytes=rotate_bytes, keep=KEEP)
    return LineWriter(target, max_lines=MAX_LINES, max_bytes=MAX_BYTES, on_trouble=on_trouble)
