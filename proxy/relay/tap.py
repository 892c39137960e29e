"""The tap: framing, dialect, counting and scoring for one response.  It never raises into the relay.

``open_tap(...)`` chooses by the response's content type: an event stream gets a ``StreamTap``, a JSON body a
``BodyTap``, anything else a ``NullTap``.  ``feed(data, at_ns)`` is called once for each piece of the body,
after it was handed to the client; any exception switches measuring off for that stream
(``unmeasured="tap_error"``), is counted in ``faults``, and the stream goes on.
"""

from __future__ import annotations

from typing import Protocol

from proxy.link import Stream
from proxy.relay.body import BodyTap, NullTap
from proxy.relay.decompress import Inflater, UnknownEncoding, open_inflater
from proxy.relay.dialects.registry import by_path
from proxy.relay.streamtap import StreamTap


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
) -> Tap:
    """The tap for a response whose head has come.

    ``t0_ns``: the moment from which deadlines count.  ``arrivals_cap``: events kept, over all choices.
    ``choices``: how many the request asked for.  Never raises.
    """
    try:
        return _open(path, content_type, content_encoding, (ttft_ns, tbt_ns, t0_ns), arrivals_cap, choices)
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
) -> Tap:
    kind = content_type.partition(b";")[0].strip().lower()
    streamed = kind == b"text/event-stream"
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
    tap = StreamTap(by_path(path), inflater, *times_ns, arrivals_cap, choices)
    tap.unmeasured = reason
    return tap
