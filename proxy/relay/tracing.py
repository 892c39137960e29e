"""A request's place in a trace: W3C Trace Context, level 2 (https://www.w3.org/TR/trace-context-2/).  Pure.

``traceparent`` is read as the specification says: version 00 to the letter, a later one by its first four
fields, anything else (several of them, too) as if there were none.  Then the trace begins here, and a
``tracestate`` is of no trace: it does not travel on.  What a new trace sends upstream is always version 00.

Ids are drawn from the system, so no two processes or hosts share a sequence.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Final

from proxy.link import TraceIds, Tracing
from proxy.relay.headers import Fields

#: Characters of ``tracestate`` that are kept, as the specification asks of everybody at least.
STATE_MAX: Final = 512

_PARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16
_SAMPLED: Final = 1
_RANDOM: Final = 2  # the client drew the trace id at random: true for as long as the trace lives
_KNOWN: Final = _SAMPLED | _RANDOM

Parent = tuple[str, str, int]  # trace id, span id, flags


class Traces:
    """What one table says of traces.  ``random(n)``: n random bytes."""

    __slots__ = ("_bound", "_propagate", "_random", "asks")

    def __init__(self, tracing: Tracing | None, random: Callable[[int], bytes] = os.urandom) -> None:
        self.asks = tracing is not None  # ids are drawn, and spans tell what was asked of sampling
        self._propagate = tracing is not None and tracing.propagate
        # As OpenTelemetry's TraceIdRatioBased: every host and service decides alike.
        self._bound = 0 if tracing is None else round(tracing.ratio * 2**64)
        self._random = random

    def begin(self, fields: Fields) -> tuple[str | None, TraceIds | None]:
        """The trace of a request with these header fields, and our spans in it; never raises.

        Without tracing there are no spans, and no trace but the client's: a record is found by it.
        """
        parents = [value for name, value in fields if len(name) == 11 and name.lower() == b"traceparent"]
        parent = read_parent(parents[0]) if len(parents) == 1 else None
        if not self.asks:
            return (None if parent is None else parent[0]), None
        trace_id, server, client = self._draw()
        if parent is None:
            return trace_id, TraceIds(server, client, sampled=int(trace_id[16:], 16) < self._bound)
        states = [value for name, value in fields if len(name) == 10 and name.lower() == b"tracestate"]
        sampled = bool(parent[2] & _SAMPLED)
        return parent[0], TraceIds(server, client, parent[1], sampled, True, _state(states))

    def _draw(self) -> tuple[str, str, str]:
        """A trace id and two span ids, none of them zero."""
        while True:
            drawn = self._random(32).hex()
            trace_id, server, client = drawn[:32], drawn[32:48], drawn[48:]
            if trace_id != _NO_TRACE and server != _NO_SPAN and client != _NO_SPAN:
                return trace_id, server, client

    def inject(self, fields: Fields, trace_id: str, ids: TraceIds) -> Fields:
        """``fields`` as they go upstream: as child of our client span, unless headers are left as they are.

        ``traceparent`` stands where the client's stood, as it spelled the name, else at the end.
        """
        if not self._propagate:
            return fields
        flags = _SAMPLED if ids.sampled else 0
        out: Fields = []
        at = -1
        for field in fields:
            size = len(field[0])
            if size == 11 and field[0].lower() == b"traceparent":
                if at >= 0:
                    continue
                at = len(out)
            elif size == 10 and not ids.theirs and field[0].lower() == b"tracestate":
                continue
            out.append(field)
        if at >= 0 and ids.theirs:  # hence valid
            flags |= int(out[at][1].strip(b" \t")[53:55], 16) & _RANDOM
        value = f"00-{trace_id}-{ids.client}-{flags:02x}".encode()
        if at >= 0:
            out[at] = (out[at][0], value)
        else:
            out.append((b"traceparent", value))
        return out


def read_parent(value: bytes) -> Parent | None:
    """The trace, the span and the flags that a ``traceparent`` names; ``None``: it is invalid."""
    match = _PARENT.fullmatch(value.strip(b" \t"))
    if match is None:
        return None
    version, trace_id, span, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    parent = trace_id.decode("ascii"), span.decode("ascii"), int(flags, 16) & _KNOWN
    return None if parent[0] == _NO_TRACE or parent[1] == _NO_SPAN else parent


def _state(values: list[bytes]) -> str | None:
    """All of ``tracestate``, as it was sent; past the bound its last members go, whole."""
    if not values:
        return None
    text = (values[0] if len(values) == 1 else b",".join(values)).decode("latin-1").strip(" \t")
    if len(text) > STATE_MAX:
        text = text[: max(text.rfind(",", 0, STATE_MAX + 1), 0)].rstrip(" \t")
    return text if text and text.isascii() and text.replace("\t", " ").isprintable() else None
