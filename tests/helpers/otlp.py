"""A real OTLP/HTTP receiver in a thread: decodes by opentelemetry-proto, and can misbehave.

with receiver() as collector:
    ... export to collector.url ...
    collector.spans() / collector.metrics()
    collector.answer(503) / collector.answer(429, retry_after=1) / collector.answer(400) / collector.hang()
"""

from __future__ import annotations

import gzip
import ssl
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.helpers.procs import eventually

TRACES, METRICS = "/v1/traces", "/v1/metrics"
_REQUESTS: dict[str, type[Any]] = {
    TRACES: trace_service_pb2.ExportTraceServiceRequest,
    METRICS: metrics_service_pb2.ExportMetricsServiceRequest,
}
_RESPONSES: dict[str, type[Any]] = {
    TRACES: trace_service_pb2.ExportTraceServiceResponse,
    METRICS: metrics_service_pb2.ExportMetricsServiceResponse,
}


@dataclass(frozen=True)
class Received:
    """One request as it came: header names in lower case, ``message`` decoded, ``raw`` decompressed."""

    path: str
    headers: dict[str, str]
    raw: bytes
    message: Any


@dataclass(frozen=True)
class Event:
    """A span event."""

    name: str
    at_unix_ns: int
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Span:
    """One span, ids in hex, ``parent`` empty for a root; ``kind`` and ``status`` as words."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent: str
    start_unix_ns: int
    end_unix_ns: int
    attributes: dict[str, Any]
    events: tuple[Event, ...]
    dropped_events: int
    status: str
    status_message: str
    state: str
    resource: dict[str, Any]
    scope: str


@dataclass(frozen=True)
class Metric:
    """One metric: ``data`` is the protobuf message with its points."""

    name: str
    unit: str
    kind: str  # "sum", "gauge", "histogram", ...
    data: metrics_pb2.Metric
    resource: dict[str, Any]
    scope: str

    @property
    def points(self) -> Sequence[Any]:
        """Its data points, whatever its kind."""
        return list(getattr(self.data, self.kind).data_points)


def plain(value: common_pb2.AnyValue) -> Any:
    """An attribute's value in Python."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return attributes_of(value.kvlist_value.values)
    return None if kind is None else getattr(value, kind)


def attributes_of(pairs: Any) -> dict[str, Any]:
    """Attributes as a dict; a key that came twice fails."""
    found = {pair.key: plain(pair.value) for pair in pairs}
    assert len(found) == len(pairs), [pair.key for pair in pairs]
    return found


@dataclass
class Receiver:
    """What came, and how to answer what comes."""

    url: str = ""
    requests: list[Received] = field(default_factory=list)
    attempts: int = 0  # requests that came, those not answered 200 too
    _status: int = 200
    _retry_after: float | None = None
    _released: threading.Event = field(default_factory=threading.Event)
    _hanging: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    # ------------------------------------------------------------ how it behaves

    def answer(self, status: int = 200, retry_after: float | None = None) -> None:
        """From now on; whatever hangs is answered so too."""
        with self._lock:
            self._status, self._retry_after, self._hanging = status, retry_after, False
        self._released.set()

    def hang(self) -> None:
        """From now on take requests and answer none."""
        with self._lock:
            self._released = threading.Event()
            self._hanging = True

    # ------------------------------------------------------------ what came

    def spans(self, name: str | None = None) -> list[Span]:
        """All spans that were answered 200, in the order of their arrival."""
        found = [span for received in self._of(TRACES) for span in spans_in(received.message)]
        return [span for span in found if name is None or span.name == name]

    def wait_spans(self, count: int, within_s: float = 10.0) -> list[Span]:
        """The spans, as soon as there are ``count``."""
        eventually(lambda: len(self.spans()) >= count, within_s, f"{count} spans")
        return self.spans()

    def metrics(self, name: str | None = None) -> list[Metric]:
        """All metrics that were answered 200, in the order of their arrival."""
        found: list[Metric] = []
        for received in self._of(METRICS):
            for resource in received.message.resource_metrics:
                about = attributes_of(resource.resource.attributes)
                for scope in resource.scope_metrics:
                    found += [
                        Metric(
                            metric.name,
                            metric.unit,
                            metric.WhichOneof("data"),
                            metric,
                            about,
                            scope.scope.name,
                        )
                        for metric in scope.metrics
                    ]
        return [metric for metric in found if name is None or metric.name == name]

    def wait_metrics(self, name: str, within_s: float = 10.0) -> list[Metric]:
        """The metrics of that name, as soon as there is one."""
        return eventually(lambda: self.metrics(name), within_s, name)

    def _of(self, path: str) -> list[Received]:
        with self._lock:
            return [received for received in self.requests if received.path == path]

    # ------------------------------------------------------------ the server's side

    def take(self, received: Received) -> tuple[int, float | None]:
        """Keep a request and say how it is answered; waits while it hangs."""
        with self._lock:
            self.attempts += 1
            released, hanging = self._released, self._hanging
        if hanging:
            released.wait()
        with self._lock:
            if self._status == 200:
                self.requests.append(received)
            return self._status, self._retry_after


def spans_in(message: Any) -> list[Span]:
    """The spans of one ``ExportTraceServiceRequest``."""
    return [
        _span(span, attributes_of(resource.resource.attributes), scope.scope.name)
        for resource in message.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _span(span: trace_pb2.Span, resource: dict[str, Any], scope: str) -> Span:
    return Span(
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        start_unix_ns=span.start_time_unix_nano,
        end_unix_ns=span.end_time_unix_nano,
        attributes=attributes_of(span.attributes),
        events=tuple(
            Event(event.name, event.time_unix_nano, attributes_of(event.attributes)) for event in span.events
        ),
        dropped_events=span.dropped_events_count,
        status=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        status_message=span.status.message,
        state=span.trace_state,
        resource=resource,
        scope=scope,
    )


def _unpacked(body: bytes, encoding: str) -> bytes:
    if encoding == "gzip":
        return gzip.decompress(body)
    return zlib.decompress(body) if encoding == "deflate" else body


@contextmanager
def receiver(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver on a free port of 127.0.0.1; nothing of it outlives the block, hanging or not."""
    state = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            if self.path not in _REQUESTS:
                self._say(404, b"")
                return
            raw = _unpacked(body, headers.get("content-encoding", ""))
            message = _REQUESTS[self.path]()
            message.ParseFromString(raw)
            status, retry_after = state.take(Received(self.path, headers, raw, message))
            answer = _RESPONSES[self.path]().SerializeToString() if status == 200 else b"not now"
            self._say(status, answer, retry_after)

        def _say(self, status: int, body: bytes, retry_after: float | None = None) -> None:
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(body)))
                if retry_after is not None:
                    self.send_header("Retry-After", f"{retry_after:g}")
                self.end_headers()
                self.wfile.write(body)
            except OSError:  # who asked has left
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that leaves in the middle

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    state.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="otlp receiver", daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.answer(503)
        server.shutdown()
        server.server_close()
        thread.join(5)
