"""Server-sent events, taken apart: ``SseDecoder.decode(bytes) -> events``, sans-IO, linear, bounded.

The rules are the WHATWG's (https://html.spec.whatwg.org/multipage/server-sent-events.html, "Parsing an
event stream"): lines end in LF, CRLF or CR; one byte order mark at the start is dropped; a line that
begins with a colon is a comment; several ``data`` lines are joined by LF; an empty line dispatches the
event, if it had a ``data`` line at all; ``id`` and ``retry`` are remembered.

Two things go beyond them, since this decoder watches servers and is not a browser:

- ``flush()`` hands out an event whose last empty line is missing.  The standard drops it; clients that read
  line by line do not, and a finish reason in it did go by.
- A field named ``error`` is read as the data of an event named ``error``: llama.cpp wrote
  ``error: {...}`` into its streams until it took over OpenAI's shape.

No byte is looked at more than a fixed number of times, however the bytes are cut: what is incomplete is
kept in buffers that only grow, and only new bytes are searched.
"""

from __future__ import annotations

from typing import Final, NamedTuple

DEFAULT_LIMIT: Final = 4 * 1024 * 1024
_BOM: Final = b"\xef\xbb\xbf"
_DATA: Final = b"data: "


class Event(NamedTuple):
    """One dispatched event: its name (``b""`` when it has none) and its data, lines joined by LF."""

    name: bytes
    data: bytes


class SseDecoder:
    """An incremental decoder.  ``limit``: most bytes that one event (or one line) may have.

    Past the limit ``overflowed`` turns true, the buffers are let go, and everything that follows is
    ignored: a stream whose events cannot be held cannot be resumed in the middle of one.
    """

    __slots__ = (
        "_bom",
        "_data",
        "_has_data",
        "_limit",
        "_line",
        "_name",
        "_skip_lf",
        "comments",
        "crlf",
        "last_event_id",
        "overflowed",
        "retry_ms",
    )

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._line = bytearray()  # a line whose end has not come yet
        self._data = bytearray()  # the data lines of the event that is being read, joined
        self._has_data = False
        self._name = b""
        self._bom: bytes | None = b""  # what was held of a possible byte order mark; None: past it
        self._skip_lf = False  # a CR ended the last line: a LF that follows belongs to it
        self.overflowed = False
        self.crlf = False  # the last line end seen was CRLF
        self.comments = 0
        self.last_event_id = b""
        self.retry_ms: int | None = None

    @property
    def idle(self) -> bool:
        """Nothing is held: the next byte begins a new event."""
        return not (
            self._line
            or self._has_data
            or self._name
            or self._skip_lf
            or self._bom is not None
            or self.overflowed
        )

    def decode(self, data: bytes) -> list[Event]:
        """Take the next bytes, return the events that they complete."""
        if self.overflowed:
            return []
        if self._bom is not None:
            data = self._past_bom(data)
            if not data:
                return []
        if 13 in data or self._skip_lf:
            data = self._normalise(data)
        elif self.crlf and 10 in data:
            self.crlf = False
        events: list[Event] = []
        line = self._line
        if not line and not self._has_data and not self._name and data.endswith(b"\n\n"):
            self._whole(data, events)
            return events
        end = data.find(b"\n")
        if end < 0:
            self._hold(data)
            return events
        if line:
            line += data[:end]
            if len(line) > self._limit:
                self._overflow()
                return events
            first = bytes(line)
            line.clear()
        else:
            first = data[:end]
        self._take(first, events)
        lines = data[end + 1 :].split(b"\n")
        rest = lines.pop()
        for item in lines:
            self._take(item, events)
        self._hold(rest)
        return events

    def flush(self) -> list[Event]:
        """The bytes have ended cleanly: return the last event, if its closing empty line was missing."""
        events: list[Event] = []
        if self.overflowed:
            return events
        if self._line:
            last = bytes(self._line)
            self._line.clear()
            self._take(last, events)
        self._take(b"", events)
        return events

    def _whole(self, data: bytes, events: list[Event]) -> None:
        """``data`` holds complete events only; nearly all of them are one ``data:`` line."""
        for block in data[:-2].split(b"\n\n"):
            if (
                block.startswith(_DATA)
                and 10 not in block
                and len(block) <= self._limit
                and not self.overflowed
            ):
                events.append(Event(b"", block[6:]))
            elif block:
                for line in block.split(b"\n"):
                    self._take(line, events)
                self._take(b"", events)

    def _take(self, line: bytes, events: list[Event]) -> None:
        """One whole line."""
        if self.overflowed:
            return
        if not line:
            self._dispatch(events)
        elif len(line) > self._limit:
            self._overflow()
        elif line.startswith(b":"):
            self.comments += 1
        else:
            self._field(*line.partition(b":"))

    def _field(self, field: bytes, colon: bytes, value: bytes) -> None:
        value = value.removeprefix(b" ")
        if field == b"data":
            self._add(value)
        elif field == b"event":
            self._name = value
        elif field == b"id":
            if b"\0" not in value:
                self.last_event_id = value
        elif field == b"retry":
            if value.isdigit() and len(value) <= 12:
                self.retry_ms = int(value)
        elif field == b"error" and colon:
            self._name = b"error"
            self._add(value)

    def _add(self, value: bytes) -> None:
        """One more line of data."""
        if self._has_data:
            self._data += b"\n"
        self._has_data = True
        self._data += value
        if len(self._data) > self._limit:
            self._overflow()

    def _dispatch(self, events: list[Event]) -> None:
        if self._has_data:
            events.append(Event(self._name, bytes(self._data)))
            self._data.clear()
            self._has_data = False
        self._name = b""

    def _hold(self, rest: bytes) -> None:
        """Keep the beginning of a line."""
        if rest and not self.overflowed:
            self._line += rest
            if len(self._line) > self._limit:
                self._overflow()

    def _overflow(self) -> None:
        self.overflowed = True
        self._line = bytearray()
        self._data = bytearray()
        self._has_data = False

    def _past_bom(self, data: bytes) -> bytes:
        """Drop one byte order mark at the very start; empty while that is undecided."""
        held = (self._bom or b"") + data
        if len(held) < 3 and _BOM.startswith(held):
            self._bom = held
            return b""
        self._bom = None
        return held.removeprefix(_BOM)

    def _normalise(self, data: bytes) -> bytes:
        """Every line end as LF.  A CR ends its line at once; the LF of a CRLF may come later."""
        if self._skip_lf:
            if not data:
                return data
            self._skip_lf = False
            if data[0] == 10:
                data = data[1:]
        if 13 in data:
            self.crlf = b"\r\n" in data
            self._skip_lf = data[-1] == 13
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data
