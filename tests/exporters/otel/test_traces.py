"""Spans on their way to a real receiver: one that answers, refuses, is slow, hangs, or is not there."""

from __future__ import annotations

import logging
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
import trustme
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from proxy.config import Otel
from proxy.exporters.otel.traces import EXPORTER, SPANS, Traces, servers_of
from proxy.exporters.otel.view import Server
from proxy.exporters.vocabulary import DROPPED
from proxy.exporters.vocabulary import EXPORTER as EXPORTERS
from proxy.link import BackendSpec
from tests.control.facts import table
from tests.exporters.otel.asked import CLIENT, SERVER, TRACE, chat, ids, plain, refused
from tests.helpers.otlp import Receiver, Span, receiver, spans_in
from tests.helpers.procs import eventually

FAST = {"OTEL_BSP_SCHEDULE_DELAY": "10"}
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's own variable: batches leave after 10 ms."""
    for name, value in FAST.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What reaches the log of a process.  (``caplog`` also listens where nobody else does.)"""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    root, handler, level = logging.getLogger(), Lines(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield lines
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


def make(endpoint: str, **fields: Any) -> Traces:
    """Of one host; ``timeout`` in seconds."""
    seconds = fields.pop("timeout", 5.0)
    made_table = fields.pop("table", None)
    otel = Otel.model_construct(
        **(Otel(endpoint=endpoint).__dict__ | {"timeout": int(seconds * 1e9)} | fields)
    )
    return Traces(
        otel, instance="host-1", version="9", unix_ns=time.time_ns, monotonic_ns=lambda: 0, table=made_table
    )


def numbered(count: int, first: int = 1) -> list[Any]:
    """So many requests, each in a trace of its own: two spans each."""
    return [
        chat(trace_id=f"{number:032x}", trace=ids(server=f"{number:016x}", client=f"{number + 2**40:016x}"))
        for number in range(first, first + count)
    ]


# ---------------------------------------------------------------- it works


def test_kept_requests_arrive_with_their_resource(collector: Receiver) -> None:
    traces = make(collector.url, attributes={"deployment.environment.name": "test"})
    batch = [
        chat(),
        chat(trace=ids(sampled=False, server="3" * 16, client="4" * 16)),  # good, not sampled
        plain(end="no_response", status=502, trace=ids(sampled=False, server="5" * 16, client="6" * 16)),
        refused(trace=ids(server="7" * 16)),
        plain(trace=None),
    ]
    traces(batch)
    spans = collector.wait_spans(5)
    assert [(span.kind, span.span_id, span.attributes["legato.kept"]) for span in spans] == [
        ("SERVER", SERVER, "sampled"),
        ("CLIENT", CLIENT, "sampled"),
        ("SERVER", "5" * 16, "bad"),
        ("CLIENT", "6" * 16, "bad"),
        ("SERVER", "7" * 16, "sampled"),
    ]
    assert [settled.kept_span for settled in batch] == [CLIENT, None, "6" * 16, "7" * 16, None]
    resource = spans[0].resource
    assert resource == resource | {
        "service.name": "legato",
        "service.instance.id": "host-1",
        "service.version": "9",
        "deployment.environment.name": "test",
        "telemetry.sdk.language": "python",
    }
    traces.close(5)
    assert (traces.failures(), traces.dropped()) == ({EXPORTER: 0}, {SPANS: 0})
    assert EXPORTER in EXPORTERS
    assert SPANS in DROPPED


def test_the_resource_takes_the_standard_variables(
    collector: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=p-1,a=theirs,service.name=no")
    traces = make(collector.url, service_name="edge", attributes={"a": "ours"})
    traces([chat()])
    resource = collector.wait_spans(2)[0].resource
    assert (resource["service.name"], resource["k8s.pod.name"], resource["a"]) == ("edge", "p-1", "ours")
    traces.close(5)


def test_headers_and_compression(
    collector: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-variable=1,x-tenant=variable")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    (tmp_path / "headers").write_text("# keys\nAuthorization: Bearer k:1\n\nx-tenant: acme\n")
    traces = make(collector.url, headers_file=str(tmp_path / "headers"))
    traces([chat()])
    collector.wait_spans(2)
    headers = collector.requests[0].headers
    assert headers == headers | {
        "authorization": "Bearer k:1",
        "x-tenant": "acme",
        "x-variable": "1",
        "content-encoding": "gzip",
        "content-type": "application/x-protobuf",
    }
    traces.close(5)


def test_a_netrc_does_not_replace_the_configured_key(
    collector: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "headers").write_text("authorization: Bearer ours\n")
    traces = make(collector.url, headers_file=str(tmp_path / "headers"))
    traces([chat()])
    collector.wait_spans(2)
    assert collector.requests[0].headers["authorization"] == "Bearer ours"
    traces.close(5)


def test_tls_by_a_ca_of_our_own(tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the environment names other CAs, which ``requests`` would put before ours."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/ssl/certs/ca-certificates.crt")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with receiver(context) as collector:
        traces = make(collector.url, ca_file=str(tmp_path / "ca.pem"))
        traces([chat()])
        collector.wait_spans(2)
        traces.close(5)
        stranger = make(collector.url, timeout=0.5)
        stranger([chat()])
        eventually(lambda: stranger.failures()[EXPORTER] == 1)
        stranger.close(5)
        assert len(collector.spans()) == 2
        assert "cannot be exported" in str(told)


def test_backends_are_named_as_configured(collector: Receiver) -> None:
    specs = (
        BackendSpec("a", "https://vllm.example/base"),
        BackendSpec("b", "http://[fd00::1]:8000"),
        BackendSpec("c", "http://localhost", uds="/run/v.sock"),
    )
    import msgspec

    held = msgspec.structs.replace(table(), backends=specs, tls_cert_file="cert.pem")
    assert servers_of(held) == {
        "a": Server("https", "vllm.example", 443, "/base"),
        "b": Server("http", "fd00::1", 8000),
        "c": Server("http", "/run/v.sock"),
    }
    traces = make(collector.url, table=lambda: held)
    traces([chat(backend="b"), plain(backend="a", path="/v1/models", method="GET")])
    one, two, _, four = collector.wait_spans(4)
    assert one.attributes["url.scheme"] == "https"  # our own listener has a certificate
    assert (two.attributes["server.address"], two.attributes["server.port"]) == ("fd00::1", 8000)
    assert four.attributes["url.full"] == "https://vllm.example:443/base/v1/models"
    traces.close(5)


# ---------------------------------------------------------------- it does not


@pytest.mark.parametrize("status", [429, 503])
def test_what_may_be_tried_again_is(collector: Receiver, status: int) -> None:
    collector.answer(status, retry_after=0.05)
    traces = make(collector.url)
    traces([chat()])
    eventually(lambda: collector.attempts >= 2)
    collector.answer()
    assert len(collector.wait_spans(2)) == 2
    traces.close(5)
    assert (traces.failures(), traces.dropped()) == ({EXPORTER: 0}, {SPANS: 0})


def test_a_refusal_loses_the_batch_and_is_told_once_each_way(collector: Receiver, told: list[str]) -> None:
    collector.answer(400)
    traces = make(collector.url)
    for number in range(1, 4):
        traces(numbered(1, number))
        eventually(lambda number=number: traces.failures() == {EXPORTER: number})  # type: ignore[misc]
    assert traces.dropped() == {SPANS: 6}
    assert collector.attempts == 3  # a 400 will be one again
    collector.answer()
    traces(numbered(2, 9))
    collector.wait_spans(4)
    eventually(lambda: len(told) == 2)
    bad, good = told
    where = f"spans to {collector.url}/v1/traces"
    why = "Failed to export spans batch code: 400, reason: Bad Request"
    assert bad == f"{where} cannot be exported (told once): {why}"
    assert good == f"{where} are exported again; 3 exports have failed so far"
    traces.close(5)


def test_a_redirect_is_no_success(collector: Receiver, told: list[str]) -> None:
    """As from http to https: the SDK neither follows it nor says so."""
    collector.answer(308)
    traces = make(collector.url)
    traces([chat()])
    eventually(lambda: traces.failures() == {EXPORTER: 1})
    eventually(lambda: "308, a redirect" in str(told))
    traces.close(5)
    assert (traces.dropped(), collector.attempts) == ({SPANS: 2}, 1)


def test_a_collector_that_is_not_there_floods_nothing(told: list[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        traces = make(f"http://127.0.0.1:{unused.getsockname()[1]}", timeout=0.2)
        for number in range(1, 4):
            traces(numbered(1, number))
            eventually(lambda number=number: traces.failures()[EXPORTER] == number)  # type: ignore[misc]
    assert len(told) == 1
    traces.close(1)
    assert traces.dropped() == {SPANS: 6}


def test_a_full_queue_drops_and_counts(collector: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue holds ten: a hung collector holds five of them in its hand."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    collector.hang()
    traces = make(collector.url, timeout=30)
    traces(numbered(2))
    eventually(lambda: collector.attempts == 1, what="the first batch in its hands")
    began = time.monotonic()
    batch = numbered(50, 100)
    traces(batch)
    assert time.monotonic() - began < 0.5
    assert traces.dropped() == {SPANS: 90}
    assert [settled.kept_span is not None for settled in batch] == [True] * 5 + [False] * 45
    collector.answer()
    assert len(collector.wait_spans(14)) == 14
    traces.close(5)
    assert traces.dropped() == {SPANS: 90}


@pytest.mark.parametrize(
    ("variables", "largest"),
    [
        ({"MAX_QUEUE_SIZE": "2"}, 2),  # smaller than a batch, which the SDK refuses
        ({"MAX_QUEUE_SIZE": "1"}, 2),  # a request has two spans
        ({"MAX_QUEUE_SIZE": "-5", "MAX_EXPORT_BATCH_SIZE": "0"}, 2),
        ({"MAX_EXPORT_BATCH_SIZE": "1"}, 1),
        ({"SCHEDULE_DELAY": "0", "MAX_EXPORT_BATCH_SIZE": "2"}, 2),
        ({"SCHEDULE_DELAY": "often", "MAX_EXPORT_BATCH_SIZE": "2"}, 2),
    ],
    ids=str,
)
def test_no_variable_of_the_batches_ends_the_spans(
    variables: dict[str, str], largest: int, monkeypatch: pytest.MonkeyPatch, collector: Receiver
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_BSP_{name}", value)
    traces = make(collector.url)
    for number in (1, 2):
        traces(numbered(1, number))
        eventually(lambda number=number: len(collector.spans()) == 2 * number)  # type: ignore[misc]
    assert max(len(spans_in(request.message)) for request in collector.requests) <= largest
    traces.close(5)
    assert (traces.failures(), traces.dropped()) == ({EXPORTER: 0}, {SPANS: 0})


def test_grpc_without_its_extra_is_said_and_harms_nothing(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    harmless(make("http://127.0.0.1:4317", protocol="grpc"), told, "legato[grpc]")


@pytest.mark.parametrize(
    ("field", "content", "words"),
    [
        ("headers_file", None, "No such file"),
        ("headers_file", "x-key: k\nno colon SECRET\n", "line 2"),
        ("ca_file", None, "invalid path"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_without_what_is_in_it(
    field: str, content: str | None, words: str, tmp_path: Path, told: list[str]
) -> None:
    if content is not None:
        (tmp_path / "file").write_text(content)
    traces = make("https://127.0.0.1:1", timeout=0.1, **{field: str(tmp_path / "file")})
    traces([chat()])
    eventually(lambda: traces.failures() == {EXPORTER: 1})
    eventually(lambda: words in str(told))
    assert "SECRET" not in str(told)
    traces.close(1)


def test_a_key_that_is_no_header_stands_in_no_log(
    collector: Receiver, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20SECRET%0Ax")
    traces = make(collector.url)
    traces([chat()])
    eventually(lambda: traces.failures() == {EXPORTER: 1})
    eventually(lambda: len(told) == 1)
    assert told[0].endswith("reason: InvalidHeader")
    traces.close(1)


def harmless(traces: Traces, told: list[str], words: str) -> None:
    """It takes what comes, counts it as dropped, said why once, and ends."""
    batch = numbered(3)
    traces(batch)
    assert traces.failures() == {EXPORTER: 1}
    assert traces.dropped() == {SPANS: 6}
    assert [settled.kept_span for settled in batch] == [None] * 3
    assert [words in line for line in told] == [True]
    traces.close(1)


def test_facts_of_another_version_cost_their_own_spans_only(collector: Receiver) -> None:
    traces = make(collector.url)
    broken = chat(trace_id="no id")
    traces([broken, chat()])
    assert len(collector.wait_spans(2)) == 2
    assert broken.kept_span is None
    assert traces.dropped() == {SPANS: 1}
    traces.close(5)


def test_keys_in_variables_are_in_no_log(
    collector: Receiver, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    """The SDK warns of a header that it cannot read, with the header."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization: Bearer SECRET")
    collector.answer(400)
    traces = make(collector.url)
    traces([chat()])
    eventually(lambda: traces.failures() == {EXPORTER: 1})
    assert "SECRET" not in str(told)
    traces.close(1)


# ---------------------------------------------------------------- the end


def test_what_is_queued_is_exported_at_the_end(collector: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    traces = make(collector.url)
    traces(numbered(5))
    assert collector.spans() == []
    traces.close(5)
    assert len(collector.spans()) == 10
    traces(numbered(1, 50))  # too late: nobody is there any more
    assert traces.dropped() == {SPANS: 0}


def hung_http() -> Any:
    return receiver()


@contextmanager
def hung_socket() -> Iterator[str]:
    """Takes connections and says nothing, whatever protocol is spoken."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_hung_collector_delays_the_end_by_its_deadline_only(protocol: str) -> None:
    with hung_socket() as url:
        traces = make(url, timeout=60, protocol=protocol)
        traces(numbered(600))
        time.sleep(0)  # the exporter's thread may have taken its first batch, or not
        began = time.monotonic()
        traces.close(0.3)
        assert time.monotonic() - began < 3.0  # the SDK itself would wait 30 s
        dropped = traces.dropped()[SPANS]
        assert 1200 - 512 <= dropped <= 1200


PROCESS = """
import sys, time
from tests.exporters.otel.test_traces import make, numbered
traces = make({url!r}, timeout=60, protocol={protocol!r})
traces(numbered(600))
time.sleep(0.2)
began = time.monotonic()
traces.close(0.3)
print("closed", time.monotonic() - began < 3.0, flush=True)
"""


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_process_ends_while_the_collector_hangs(protocol: str, tmp_path: Path) -> None:
    """No thread and no hook of the SDK's, of requests' or of gRPC's keeps the interpreter from its end."""
    with hung_socket() as url:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", PROCESS.format(url=url, protocol=protocol)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert (done.returncode, done.stdout) == (0, "closed True\n"), done.stderr
        assert "Traceback" not in done.stderr
        assert time.monotonic() - began < 25  # most of it imports; half a minute more if anything waited


# ---------------------------------------------------------------- gRPC


@contextmanager
def grpc_receiver() -> Iterator[tuple[str, Callable[[], list[Span]], list[dict[str, str]]]]:
    """A real gRPC server: its URL, the spans that came, the metadata of each call."""
    requests: list[Any] = []
    metadata: list[dict[str, str]] = []

    def export(request: Any, context: Any) -> Any:
        requests.append(request)
        metadata.append(dict(context.invocation_metadata()))
        return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(2))
    handler = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=trace_service_pb2.ExportTraceServiceRequest.FromString,
        response_serializer=trace_service_pb2.ExportTraceServiceResponse.SerializeToString,
    )
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield (
            f"http://127.0.0.1:{port}",
            lambda: [span for request in requests for span in spans_in(request)],
            metadata,
        )
    finally:
        server.stop(0)


def test_grpc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-variable=1,x-tenant=variable")
    (tmp_path / "headers").write_text("X-Tenant: acme\n")
    with grpc_receiver() as (url, spans, metadata):
        traces = make(url, protocol="grpc", headers_file=str(tmp_path / "headers"))
        traces([chat()])
        eventually(lambda: len(spans()) == 2)
        traces.close(5)
    assert [span.trace_id for span in spans()] == [TRACE] * 2
    assert (metadata[0]["x-tenant"], metadata[0]["x-variable"]) == ("acme", "1")
    assert traces.failures() == {EXPORTER: 0}
