"""The tap: framing, dialect, counting and scoring for one response.  It never raises into the relay.

``open_tap(...)`` chooses by the response's content type: an event stream (SSE, NDJSON) gets a
``StreamTap``, a JSON body a ``BodyTap``, anything else a ``NullTap``.  ``feed(data, at_ns)`` is called once
for each piece of the body, after it was handed to the client; any exception switches measuring off for that
stream (``unmeasured="tap_error"``), is counted in ``faults``, and the stream goes on.
"""

from __future__ import annotations

from typing import Final, Protocol

from proxy.link import Stream
from proxy.relay.body import BodyTap, NullTap
from proxy.relay.decompress import Inflater, UnknownEncoding, open_inflater
from proxy.relay.dialects.base import Dialect
from proxy.relay.dialects.registry import by_name, by_path
from proxy.relay.streamtap import StreamTap

_SSE: Final = b"text/event-stream"
#: Media types of event streams: server-sent events, and one JSON value a line under all its names.
_STREAMS: Final = frozenset(
    (_SSE, b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"application/x-jsonlines")
)


def is_stream(content_type: bytes) -> bool:
    """Whether a response of this type is an event stream."""
    return _media_type(content_type) in _STREAMS


def _media_type(content_type: bytes) -> bytes:
    return content_type.partition(b";")[0].strip().lower()


class Tap(Protocol):
    """What the relay knows of a tap.  Stamps are absolute, monotonic, in nanoseconds."""

    @property
    def faults(self) -> int:
        """Exceptions caught: each one a bug of ours."""

    @property
    def unmeasured(self) -> str | None:
        """Why this stream is not measured, a word of the catalog's closed list; ``None``: it is."""

    @property
    def tokens(self) -> int:
        """Tokens counted so far."""

    @property
    def finished(self) -> bool:
        """The answer is whole: the finish reason of every choice went by (or what the dialect has for it)."""

    def feed(self, data: bytes, at_ns: int, /) -> None:
        """Look at the next piece of the body, which arrived at ``at_ns``.  Never raises."""

    def finish(self, at_ns: int, complete: bool = True, /) -> None:
        """The body is over; ``complete``: it ended as it should, nobody cut it.  Never raises."""

    def to_stream(self) -> Stream:
        """The facts for the control process.  Never raises."""

    def overdue_ns(self, now_ns: int, /) -> int:
        """How long the next token is overdue; 0 or less: none is."""

    def missed_by(self, now_ns: int, /) -> int:
        """Deadlines missed, with those that have passed for tokens still awaited."""


def open_tap(
    *,
    path: str,
    content_type: bytes,
    content_encoding: bytes,
    ttft_ns: int,
    tbt_ns: int,
    t0_ns: int,
    arrivals_cap: int,
    choices: int,
    dialect: str | None = None,
) -> Tap:
    """The tap for a response whose head has come.

    ``t0_ns``: the moment from which deadlines count.  ``arrivals_cap``: events kept, over all choices.
    ``choices``: how many the request asked for.  ``dialect``: the name of the one that the route sets.  Never
    raises.
    """
    set_one = None if dialect is None else by_name(dialect)
    times_ns = (ttft_ns, tbt_ns, t0_ns)
    try:
        return _open(path, content_type, content_encoding, times_ns, arrivals_cap, choices, set_one)
    except Exception:
        tap = NullTap()
        tap.faults, tap.unmeasured = 1, "tap_error"
        return tap


def _open(
    path: str,
    content_type: bytes,
    content_encoding: bytes,
    times_ns: tuple[int, int, int],
    arrivals_cap: int,
    choices: int,
    dialect: Dialect | None,
) -> Tap:
    kind = _media_type(content_type)
    streamed = kind in _STREAMS
    if not streamed and not (kind == b"application/json" or kind.endswith(b"+json")):
        return NullTap()
    inflater: Inflater | None = None
    reason: str | None = None
    try:
        inflater = open_inflater(content_encoding)
    except UnknownEncoding:
        reason = "encoding"
    if not streamed:
        return NullTap() if reason is not None else BodyTap(path, inflater)
    tap = StreamTap(
        dialect or by_path(path),
        inflater,
        *times_ns,
        arrivals_cap,
        choices,
        lines=kind != _SSE,
        fixed=dialect is not None,
    )
    tap.unmeasured = reason
    return tap
