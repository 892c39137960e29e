"""Requests that took part in a trace, settled and ready to become spans."""

from __future__ import annotations

from typing import Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource

from proxy.control.settle import Settled, settle
from proxy.exporters.otel.resource import scope_of
from proxy.exporters.otel.spans import SpanBuilder
from proxy.exporters.otel.view import Conventions, Kept, Server
from proxy.link import Asked, TraceIds, Usage
from tests.control.facts import MS, T0, at, facts, streamed
from tests.helpers.otlp import Span, spans_in

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT, SERVER, CLIENT = "00f067aa0ba902b7", "1111111111111111", "2222222222222222"
BACKEND = Server("http", "vllm.example", 8000)


def ids(**fields: Any) -> TraceIds:
    """A place in a trace that the client began and sampled."""
    given: dict[str, Any] = {
        "server": SERVER,
        "client": CLIENT,
        "parent": PARENT,
        "sampled": True,
        "theirs": True,
    }
    return TraceIds(**(given | fields))


def chat(*events: Any, end_ms: int = 200, of: dict[str, Any] | None = None, **fields: Any) -> Settled:
    """A streamed chat that was answered; without events two tokens, both in time."""
    given: dict[str, Any] = {
        "trace_id": TRACE,
        "trace": ids(),
        "head_ns": T0 + 50 * MS,
        "connected_ns": T0,
        "upstream_addr": "10.0.0.7:8000",
    }
    told = {"usage": Usage(12, 2, 4, 1), "response_id": "chatcmpl-1", "model": "llama-3-70b"}
    made = streamed(*(events or (at(80), at(120))), end_ms=end_ms, of=told | (of or {}), **(given | fields))
    return settle(made, "host-1")


def plain(end_ms: int = 40, **fields: Any) -> Settled:
    """A request that was not streamed."""
    given: dict[str, Any] = {"trace_id": TRACE, "trace": ids(), "connected_ns": T0, "head_ns": T0 + 30 * MS}
    return settle(facts(end_ms, **(given | fields)), "host-1")


def refused(status: int = 400, error: str = "bad_request", **fields: Any) -> Settled:
    """A request that we refused: nothing was sent upstream."""
    given: dict[str, Any] = {"end": "refused", "status": status, "error": error, "backend": None}
    return plain(**(given | {"sent_ns": None, "connected_ns": None, "head_ns": None, "model": None} | fields))


def spans(settled: Settled, kept: Kept = "sampled", opt_in: str = "", **of: Any) -> list[Span]:
    """Its spans, through OTLP and back."""
    build = SpanBuilder(
        Resource({"service.name": "legato"}),
        scope_of("1"),
        Conventions.of({"OTEL_SEMCONV_STABILITY_OPT_IN": opt_in} | of),
        {"default": BACKEND}.get,
    )
    message = encode_spans(build(settled, kept))
    return spans_in(type(message).FromString(message.SerializeToString()))


def both(settled: Any, **options: Any) -> tuple[Span, Span]:
    """Its SERVER and its CLIENT span."""
    server, client = spans(settled, **options)
    assert (server.kind, client.kind) == ("SERVER", "CLIENT")
    return server, client


__all__ = ["CLIENT", "MS", "PARENT", "SERVER", "T0", "TRACE", "Asked", "Usage", "at", "chat", "ids", "plain"]
__all__ += ["both", "refused", "spans"]
