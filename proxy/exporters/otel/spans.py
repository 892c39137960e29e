"""A settled request -> its spans, with the ids and times that it had.  No tracer is involved.

One SERVER span of the request as the client saw it, and, where the upstream was called, one CLIENT span below
it with the first token and the stalls as events.  Names, attributes and units: ``names.py``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from proxy.control.settle import Settled
from proxy.exporters.otel import names
from proxy.exporters.otel.calls import called, issued_ns, unix_ns
from proxy.exporters.otel.view import OTHER_METHOD, Conventions, Kept, Server, View, text, view_of
from proxy.link import Facts, TraceIds
from scoring.score import Stall

#: Stalls told as events; of more, those with the most lateness.
STALLS_MAX: Final = 32
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_UNSET: Final = Status(StatusCode.UNSET)
_ERROR: Final = Status(StatusCode.ERROR)
_NO_STATE: Final = TraceState()

Servers = Callable[[str], Server | None]


class SpanBuilder:
    """Builds spans under one resource.  ``servers``: a backend's address by its name."""

    def __init__(
        self,
        resource: Resource,
        scope: InstrumentationScope,
        conventions: Conventions,
        servers: Servers = lambda name: None,
        scheme: str = "http",
    ) -> None:
        self._resource = resource
        self._scope = scope
        self._conventions = conventions
        self._servers = servers
        self.scheme = scheme
        self._server_rows = names.spoken(names.SERVER, conventions)
        self._client_rows = names.spoken(names.CLIENT, conventions)

    def __call__(self, settled: Settled, kept: Kept) -> tuple[ReadableSpan, ...]:
        """The SERVER span, and the CLIENT span if the upstream was called.

        Raises ``ValueError`` for a request without ids, or with ids that are none.
        """
        facts = settled.facts
        trace = facts.trace
        if trace is None or facts.trace_id is None:
            raise ValueError("the request took part in no trace")
        server = None if facts.backend is None else self._servers(facts.backend)
        view = view_of(settled, kept, self._conventions, scheme=self.scheme, server=server)
        trace_id = int(facts.trace_id, 16)
        state = _NO_STATE if trace.state is None else TraceState.from_header([trace.state])
        context = _context(trace_id, trace.server, state, remote=False)
        has_client = called(facts)
        first = self._server(view, context, _parent(trace, trace_id, state), alone=not has_client)
        if not has_client:
            return (first,)
        return first, self._client(view, _context(trace_id, trace.client, state, remote=False), context)

    def _server(
        self, view: View, context: SpanContext, parent: SpanContext | None, *, alone: bool
    ) -> ReadableSpan:
        attributes: dict[str, Any] = {}
        names.fill(self._server_rows, view, attributes)
        names.fill(names.VERDICT, view, attributes)
        if alone:
            names.fill(names.DETAIL, view, attributes)
        for tag, value in view.facts.tags.items():
            attributes[names.TAG_PREFIX + tag] = text(value) or ""
        return self._span(
            _http_name(view),
            SpanKind.SERVER,
            context,
            parent,
            attributes,
            start_ns=view.facts.received_ns,
            facts=view.facts,
        )

    def _client(self, view: View, context: SpanContext, parent: SpanContext) -> ReadableSpan:
        attributes: dict[str, Any] = {}
        for rows in (self._client_rows, names.VERDICT, names.DETAIL):
            names.fill(rows, view, attributes)
        return self._span(
            _http_name(view, client=True) if view.call is None else _call_name(view),
            SpanKind.CLIENT,
            context,
            parent,
            attributes,
            start_ns=issued_ns(view.facts),
            facts=view.facts,
            events=events_of(view.settled),
        )

    def _span(
        self,
        name: str,
        kind: SpanKind,
        context: SpanContext,
        parent: SpanContext | None,
        attributes: dict[str, Any],
        *,
        start_ns: int,
        facts: Facts,
        events: BoundedList[Event] | tuple[Event, ...] = (),
    ) -> ReadableSpan:
        return ReadableSpan(
            name,
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=attributes,
            events=events,
            kind=kind,
            status=_ERROR if "error.type" in attributes else _UNSET,
            start_time=unix_ns(facts, start_ns),
            end_time=unix_ns(facts, max(facts.end_ns, start_ns)),
            instrumentation_scope=self._scope,
        )


def events_of(settled: Settled) -> BoundedList[Event] | tuple[Event, ...]:
    """The first token and the stalls, in the order of time; how many stalls were left out stands beside them.

    A stall's time is the start of its gap: the arrival before it, or t = 0.
    """
    score = settled.score
    if score is None:
        return ()
    facts, t0_ns = settled.facts, settled.t0_ns
    stalls = score.stalls
    if settled.thinned and score.worst is not None and score.worst not in stalls:
        stalls = (*stalls, score.worst)  # kept online; the arrivals that showed it were merged
    total = len(stalls)
    if total > STALLS_MAX:
        stalls = tuple(heapq.nlargest(STALLS_MAX, stalls, key=lambda stall: stall.late_ns))
    events: list[Event] = []
    if score.ttft_ns is not None:  # before a stall that begins with it
        events.append(Event(names.FIRST_TOKEN, {}, unix_ns(facts, t0_ns + score.ttft_ns)))
    events += [_stall(stall, unix_ns(facts, t0_ns + stall.at_ns)) for stall in stalls]
    events.sort(key=lambda event: event.timestamp)
    told = BoundedList.from_seq(STALLS_MAX + 1, events)
    told.dropped = total - len(stalls)
    return told


def _stall(stall: Stall, at_unix_ns: int) -> Event:
    attributes: dict[str, Any] = {
        names.LATE.name: round(stall.late_ns * 1e-9, 6),
        names.MISSED.name: stall.missed,
    }
    if stall.reason is not None:
        attributes[names.REASON.name] = stall.reason
    if stall.choice:
        attributes[names.CHOICE.name] = stall.choice
    return Event(names.STALL, attributes, at_unix_ns)


def _context(trace_id: int, span_id: str, state: TraceState, *, remote: bool) -> SpanContext:
    context = SpanContext(trace_id, int(span_id, 16), remote, _SAMPLED, state)
    if not context.is_valid:
        raise ValueError("an id of zeros, or too long, is none")
    return context


def _parent(trace: TraceIds, trace_id: int, state: TraceState) -> SpanContext | None:
    return None if trace.parent is None else _context(trace_id, trace.parent, state, remote=True)


def _http_name(view: View, *, client: bool = False) -> str:
    method = "HTTP" if view.method == OTHER_METHOD else view.method
    return method if client or view.route is None else f"{method} {view.route}"


def _call_name(view: View) -> str:
    operation = "" if view.call is None else view.call.operation
    return f"{operation} {view.model}" if view.model else operation
