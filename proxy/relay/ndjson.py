"""Newline-delimited JSON, taken apart: ``NdjsonDecoder.decode(bytes) -> events``, sans-IO, linear, bounded.

One JSON value a line (https://github.com/ndjson/ndjson-spec, https://jsonlines.org), as Ollama streams:
lines end in LF, a CR before it belongs to the line end, blank lines say nothing, one byte order mark at the
start is dropped.  The interface is ``framing.SseDecoder``'s; events have no names.  ``flush()`` hands out a
last line whose end is missing: a value that came whole is whole without it.

Inside JSON no line end is spelled raw, so no line is ever part of two values.
"""

from __future__ import annotations

from typing import Final

from proxy.relay.framing import DEFAULT_LIMIT, Event

_BOM: Final = b"\xef\xbb\xbf"


class NdjsonDecoder:
    """An incremental decoder.  ``limit``: most bytes that one line may have, its end not counted.

    Past the limit ``overflowed`` turns true, the buffer is let go, and everything that follows is ignored.
    """

    __slots__ = ("_bom", "_limit", "_line", "crlf", "overflowed")

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._line = bytearray()  # a line whose end has not come yet
        self._bom: bytes | None = b""  # what was held of a possible byte order mark; None: past it
        self.overflowed = False
        self.crlf = False  # the last line end seen was CRLF

    @property
    def idle(self) -> bool:
        """Nothing is held: the next byte begins a new line."""
        return not (self._line or self._bom is not None or self.overflowed)

    def decode(self, data: bytes) -> list[Event]:
        """Take the next bytes, return the events that they complete."""
        if self.overflowed:
            return []
        if self._bom is not None:
            data = self._past_bom(data)
        events: list[Event] = []
        end = data.rfind(b"\n")
        if end < 0:
            self._hold(data)
            return events
        lines = data[:end].split(b"\n")
        if self._line:
            self._hold(lines[0])
            lines[0] = bytes(self._line)
            self._line.clear()
        self.crlf = lines[-1].endswith(b"\r")
        for line in lines:
            self._take(line, events)
        self._hold(data[end + 1 :])
        return events

    def flush(self) -> list[Event]:
        """The bytes have ended cleanly: return the last event, if its line end was missing."""
        events: list[Event] = []
        last = (self._bom or b"") + bytes(self._line)
        self._bom = None
        self._line.clear()
        self._take(last, events)
        return events

    def _take(self, line: bytes, events: list[Event]) -> None:
        """One whole line, without its LF."""
        if self.overflowed:
            return
        line = line.removesuffix(b"\r")
        if len(line) > self._limit:
            self._overflow()
        elif line and not line.isspace():
            events.append(Event(b"", line))

    def _hold(self, rest: bytes) -> None:
        """Keep the beginning of a line."""
        if rest and not self.overflowed:
            self._line += rest
            if len(self._line) - self._line.endswith(b"\r") > self._limit:
                self._overflow()

    def _overflow(self) -> None:
        self.overflowed = True
        self._line = bytearray()

    def _past_bom(self, data: bytes) -> bytes:
        """Drop one byte order mark at the very start; empty while that is undecided."""
        held = (self._bom or b"") + data
        if len(held) < 3 and _BOM.startswith(held):
            self._bom = held
            return b""
        self._bom = None
        return held.removeprefix(_BOM)
