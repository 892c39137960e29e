"""One trace through three programs: a client that traces, Legato, and a server that traces, all real.

Client and server are OpenTelemetry's own tracer and propagator; their spans and Legato's go to one receiver.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import SpanKind, TraceFlags, Tracer, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.otlp import Receiver, Span, receiver
from tests.helpers.procs import Legato, eventually, serve
from tests.helpers.rawclient import RawClient, post
from tests.helpers.upstream import (
    SSE_HEAD,
    Connection,
    Request,
    Script,
    Upstream,
    chat_events,
    json_response,
    scripted,
    serve_forever,
)

W3C = TraceContextTextMapPropagator()
SAMPLED = TraceFlags.SAMPLED
#: What the client says of the answer that it wants: seconds before its second token.
QUICK, SLOW = 0.0, 0.4


def tracer(name: str, endpoint: str | None, sampler: Sampler = ALWAYS_ON) -> Tracer:
    """A service that sends each span as it ends; ``endpoint`` ``None``: that keeps them to itself."""
    provider = TracerProvider(sampler, Resource({"service.name": name}), shutdown_on_exit=False)
    if endpoint is not None:
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
    return provider.get_tracer("test")


def engine(upstream_tracer: Tracer, seen: list[dict[str, str]]) -> Script:
    """A chat server that takes part in traces; ``seen``: the header fields of each request."""

    async def answer(conn: Connection, request: Request) -> None:
        fields = {name.decode().lower(): value.decode() for name, value in request.head.headers}
        seen.append(fields)
        if request.method == b"GET":
            await conn.send(json_response({"error": "no"}, b"404 Not Found"))
            return
        pause_s = json.loads(request.body)["user"]
        with upstream_tracer.start_as_current_span("generate", W3C.extract(fields), SpanKind.SERVER):
            events = chat_events(["one", "two", "three"])
            await conn.send(SSE_HEAD + chunk(events[0]) + chunk(events[1]))
            await asyncio.sleep(float(pause_s))
            await conn.send(b"".join(chunk(event) for event in events[2:]))
        # It ends before its answer does: what comes after that may have to wait for a processor.
        await conn.send(LAST_CHUNK)

    return serve_forever(answer)


@dataclass
class Three:
    """The three programs and where their spans go."""

    legato: Legato
    collector: Receiver
    seen: list[dict[str, str]]
    upstream: Upstream

    def ask(self, *more: tuple[str, str], pause_s: float = QUICK) -> None:
        """One streamed chat to its end."""
        body = json.dumps(
            {"model": "tiny", "stream": True, "max_tokens": 3, "temperature": 0.5, "user": str(pause_s)}
            | {"messages": [{"role": "user", "content": "a prompt of ours"}]}
        )
        self.send(post("/v1/chat/completions?key=SECRET", body.encode(), *more))

    def send(self, request: bytes) -> None:
        """One request, its answer read."""
        with RawClient(self.legato.data) as client:
            client.send(request)
            client.read_into(client.begin())

    def of(self, name: str, count: int) -> list[Span]:
        """The spans of one service, as soon as there are so many."""

        def found() -> list[Span]:
            return [span for span in self.collector.spans() if span.resource["service.name"] == name]

        eventually(lambda: len(found()) >= count, 10, f"{count} spans of {name}")
        assert len(found()) == count
        return found()


@contextmanager
def three(ratio: float, *, propagate: bool = True, hung: bool = False) -> Iterator[Three]:
    """Legato before the engine, both exporting to one receiver.

    ``hung``: it takes spans and says nothing (and the engine sends none, lest it wait itself).
    """
    seen: list[dict[str, str]] = []
    with receiver() as collector, ExitStack() as stack:
        if hung:
            collector.hang()
        traces = tracer("engine", None if hung else collector.url, ParentBased(ALWAYS_ON))
        up = stack.enter_context(scripted(engine(traces, seen)))
        config = {
            "slos": [{"name": "chat", "ttft": "300ms", "tbt": "100ms"}],
            "otel": {
                "endpoint": collector.url,
                "traces": {"ratio": ratio, "propagate": propagate},
                "metrics": False,
                "timeout": "30s",
            },
        }
        env = {
            "OTEL_BSP_SCHEDULE_DELAY": "20",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        }
        with serve(up.url, config=config, env=env) as legato:
            yield Three(legato, collector, seen, up)


@pytest.fixture(scope="module")
def by_flag() -> Iterator[Three]:
    """Nothing is sampled but what the client's flag says."""
    with three(0) as made:
        yield made


@pytest.fixture(autouse=True)
def forget(by_flag: Three) -> None:
    """Each test sees its own requests only."""
    by_flag.seen.clear()
    by_flag.collector.requests.clear()


def traced(of: Three, sampler: Sampler, pause_s: float) -> str:
    """Ask within a span of the client's; its trace id."""
    with tracer("client", of.collector.url, sampler).start_as_current_span("ask", kind=SpanKind.CLIENT):
        fields: dict[str, str] = {}
        W3C.inject(fields)
        of.ask(*fields.items(), pause_s=pause_s)
        return f"{get_current_span().get_span_context().trace_id:032x}"


def test_client_then_legato_twice_then_server(by_flag: Three) -> None:
    trace_id = traced(by_flag, ALWAYS_ON, SLOW)
    (asked,) = by_flag.of("client", 1)
    server, client = by_flag.of("legato", 2)
    (generated,) = by_flag.of("engine", 1)
    tree = [asked, server, client, generated]
    assert {span.trace_id for span in tree} == {trace_id}
    assert [span.parent for span in tree] == ["", asked.span_id, server.span_id, client.span_id]
    assert [span.kind for span in tree] == ["CLIENT", "SERVER", "CLIENT", "SERVER"]
    assert (server.name, client.name) == ("POST /v1/chat/completions", "chat tiny")
    for outer, inner in ((asked, server), (server, client), (client, generated)):
        slack_ns = 2_000_000  # two clocks: the wall's when it came, and the monotonic one from there
        assert outer.start_unix_ns - slack_ns <= inner.start_unix_ns
        assert inner.end_unix_ns <= outer.end_unix_ns + slack_ns
    assert 0.39e9 < client.end_unix_ns - client.start_unix_ns < 3e9


def test_what_the_spans_of_a_late_answer_say(by_flag: Three) -> None:
    traced(by_flag, ALWAYS_ON, SLOW)
    server, client = by_flag.of("legato", 2)
    assert server.resource == server.resource | {
        "service.name": "legato",
        "deployment.environment.name": "test",
    }
    record = by_flag.legato.record(trace_id=server.trace_id)
    given = client.attributes
    assert given == given | {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "tiny",
        "gen_ai.response.finish_reasons": ["stop"],
        "server.address": "127.0.0.1",
        "server.port": int(by_flag.upstream.url.rpartition(":")[2]),
        "legato.id": record["id"],
        "legato.kept": "sampled",
        "legato.slo": "chat",
        "legato.slo_result": record["slo_result"],
        "legato.fluidity": record["fluidity"],
        "legato.missed": record["missed"],
        "legato.ttft_s": record["ttft_s"],
        "legato.late_s": record["late_s"],
    }
    assert record["missed"] > 0
    first, stall = (event for event in client.events if event.name.startswith("legato."))
    assert (first.name, stall.name) == ("legato.first_token", "legato.stall")
    assert stall.attributes["legato.stall.late_s"] == record["worst_stall"]["late_s"]
    assert server.start_unix_ns <= first.at_unix_ns <= server.end_unix_ns
    everything = repr(by_flag.collector.spans())
    assert "SECRET" not in everything
    assert "a prompt of ours" not in everything


def test_a_client_that_does_not_sample_is_not_overruled(by_flag: Three) -> None:
    trace_id = traced(by_flag, ALWAYS_OFF, QUICK)
    traced(by_flag, ALWAYS_ON, QUICK)  # whose spans come after any of the other's
    assert {span.trace_id for span in by_flag.of("legato", 2)}.isdisjoint({trace_id})
    _, trace, _, flags = by_flag.seen[0]["traceparent"].split("-")
    assert (trace, int(flags, 16) & SAMPLED) == (trace_id, 0)


def test_a_bad_request_is_kept_late_without_the_others_spans(by_flag: Three) -> None:
    trace_id = traced(by_flag, ALWAYS_OFF, SLOW)
    server, client = by_flag.of("legato", 2)
    assert server.trace_id == trace_id
    assert client.attributes["legato.kept"] == "bad"
    _, trace, parent, flags = by_flag.seen[0]["traceparent"].split("-")
    assert (trace, parent, int(flags, 16) & SAMPLED) == (trace_id, client.span_id, 0)
    by_flag.of("engine", 0)
    by_flag.of("client", 0)


def test_what_is_no_call_of_a_model_is_http(by_flag: Three) -> None:
    fields: dict[str, str] = {}
    with tracer("client", by_flag.collector.url).start_as_current_span("list", kind=SpanKind.CLIENT):
        W3C.inject(fields)
        line = (
            f"GET /v1/models?key=SECRET HTTP/1.1\r\nhost: x\r\ntraceparent: {fields['traceparent']}\r\n\r\n"
        )
        by_flag.send(line.encode())
    server, client = by_flag.of("legato", 2)
    assert (server.name, client.name) == ("GET /v1/models", "GET")
    assert (server.status, client.status) == ("UNSET", "ERROR")
    assert client.attributes["url.full"] == f"{by_flag.upstream.url}/v1/models"


def test_a_trace_begins_here_where_there_is_none() -> None:
    with three(1) as of:
        of.ask()
        server, client = of.of("legato", 2)
        (generated,) = of.of("engine", 1)
        assert server.parent == ""
        assert generated.parent == client.span_id
        assert of.seen[0]["traceparent"] == f"00-{server.trace_id}-{client.span_id}-01"


@pytest.mark.alone
def test_headers_can_be_left_alone_and_a_hung_collector_delays_nobody() -> None:
    mine = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with three(1, propagate=False, hung=True) as of:
        of.ask(("traceparent", mine))
        of.ask()
        assert of.seen[0]["traceparent"] == mine
        assert "traceparent" not in of.seen[1]
        eventually(lambda: of.collector.attempts == 1, what="spans that were taken and never answered")
        began = time.monotonic()
        of.ask()
        assert time.monotonic() - began < 1.0
        assert of.legato.metrics().value("legato_export_failures_total", exporter="otlp_traces") == 0
        began = time.monotonic()
        assert of.legato.stop() == 0
        assert time.monotonic() - began < 5.0
