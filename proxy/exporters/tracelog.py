"""The trace file: one JSON line per scored stream, from which its score can be computed again.

Every time in it is an integer number of nanoseconds since t = 0 (``t0_unix_ns``: t = 0 by the wall clock),
so that reading it back gives the same score to the last deadline.  What is a trace line's own business is
here: its text, its reader, and the file with its rotation; its content comes from settling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from proxy.control.record import SCHEMA, TraceLine
from proxy.exporters.accesslog import LineWriter
from proxy.exporters.logtarget import LogTarget
from scoring.outcome import Outcome, is_censored

#: Files kept beside the current one: FILE.1 (the youngest) ... FILE.3.
KEEP: Final = 3
#: Trace lines are long (20,000 arrivals are some 300 KB): fewer of them, more bytes than the access log.
MAX_LINES: Final = 4_000
MAX_BYTES: Final = 32 * 1024 * 1024

_OUTCOMES: Final = frozenset(Outcome)


class _Readable(TraceLine, frozen=True, kw_only=True):
    """What ``decode`` takes: lines that do not say ``censored`` are as good, their outcome tells."""

    censored: bool | None = None  # type: ignore[assignment]  # wider on purpose; decode narrows it again


_encoder = msgspec.json.Encoder()
_decoder: Final[msgspec.json.Decoder[_Readable]] = msgspec.json.Decoder(_Readable)


class TraceError(ValueError):
    """A line that is no trace line of this schema; says what is wrong with it."""


def encode(line: TraceLine) -> bytes:
    """One JSON line, without its newline."""
    return _encoder.encode(line)


def decode(text: bytes | str) -> TraceLine:
    """Read one line back; ``TraceError`` with the reason where it is none.  Unknown fields are ignored."""
    try:
        line = _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TraceError(str(error)) from error
    if line.schema != SCHEMA:
        raise TraceError(f"schema {line.schema}: this version reads schema {SCHEMA}")
    if isinstance(line.events, msgspec.UnsetType) == isinstance(line.choices, msgspec.UnsetType):
        raise TraceError("a line has either `events` or, for several choices, `choices`")
    if line.outcome not in _OUTCOMES:
        raise TraceError(f"outcome {line.outcome!r} is none of: {', '.join(Outcome)}")
    fields = msgspec.structs.asdict(line)
    if line.censored is None:
        fields["censored"] = is_censored(Outcome(line.outcome), False)
    return TraceLine(**fields)


def open_trace_log(
    path: str, *, rotate_bytes: int, on_trouble: Callable[[str], None] | None = None
) -> LineWriter:
    """A writer for ``path`` (not started) that rotates before a line would make the file too large."""
    target = LogTarget(path, rotate_bytes=rotate_bytes, keep=KEEP)
    return LineWriter(target, max_lines=MAX_LINES, max_bytes=MAX_BYTES, on_trouble=on_trouble)
