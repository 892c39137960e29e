"""Spans on their way to a real receiver that takes them, over HTTP and gRPC."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import msgspec
import pytest
import trustme
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from proxy.exporters.otel.traces import EXPORTER, SPANS, servers_of
from proxy.exporters.otel.view import Server
from proxy.exporters.otel.wire import Wire, wire_of
from proxy.exporters.vocabulary import DROPPED
from proxy.exporters.vocabulary import EXPORTER as EXPORTERS
from proxy.link import BackendSpec
from tests.control.facts import table
from tests.exporters.otel.asked import CLIENT, SERVER, TRACE, chat, ids, plain, refused
from tests.exporters.otel.sending import make, of
from tests.helpers.otlp import Receiver, Span, receiver, spans_in
from tests.helpers.procs import eventually
from tests.helpers.settings import bare

pytestmark = pytest.mark.usefixtures("fast")


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
    monkeypatch.setenv(
        "OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=p-1,a=theirs,service.name=no,service.instance.id=p-1"
    )
    traces = make(collector.url, service_name="edge", attributes={"a": "ours"})
    traces([chat()])
    resource = collector.wait_spans(2)[0].resource
    assert (resource["service.name"], resource["k8s.pod.name"], resource["a"]) == ("edge", "p-1", "ours")
    assert resource["service.instance.id"] == "p-1"  # who says it outside knows better than the host's name
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


def test_the_certificate_of_a_signal_goes_before_that_of_both(tmp_path: Path) -> None:
    ours, another = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(str(tmp_path / "ours.pem"))
    another.cert_pem.write_to_path(str(tmp_path / "another.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.issue_cert("127.0.0.1").configure_cert(context)
    with receiver(context) as collector:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path / "another.pem"),
            "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE": str(tmp_path / "ours.pem"),
            "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "2500",
        }
        otel = bare(variables).otel
        traces = of(otel)
        traces([chat()])
        collector.wait_spans(2)
        traces.close(5)
    assert wire_of(otel, "metrics", {}) == Wire(collector.url, True, 2.5, {}, str(tmp_path / "another.pem"))


def test_backends_are_named_as_configured(collector: Receiver) -> None:
    specs = (
        BackendSpec("a", "https://vllm.example/base"),
        BackendSpec("b", "http://[fd00::1]:8000"),
        BackendSpec("c", "http://localhost", uds="/run/v.sock"),
    )
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
