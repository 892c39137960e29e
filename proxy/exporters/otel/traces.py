"""Spans to the collector: keep, build, hand to the SDK's batch processor.  Never waits, never raises.

One process makes one ``Traces``, after the last fork: the SDK starts a thread, a daemon, which alone speaks
to the collector.  What it cannot take is dropped and counted; a collector that hangs delays nobody, and the
end of the process neither.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import format_span_id

from proxy.config import Otel
from proxy.control.genai import server_of
from proxy.control.settle import Settled
from proxy.exporters.otel.calls import called
from proxy.exporters.otel.keep import Keep, KeepCounts
from proxy.exporters.otel.resource import resource_of, scope_of
from proxy.exporters.otel.spans import SpanBuilder
from proxy.exporters.otel.trouble import Trouble, last_words, silence_sdk
from proxy.exporters.otel.view import Conventions, Server
from proxy.exporters.otel.wire import Wire, WireError, wire_of
from proxy.link import Table

#: The names in ``vocabulary.EXPORTER`` and ``vocabulary.DROPPED``.
EXPORTER: Final = "otlp_traces"
SPANS: Final = "spans"
#: Of the variables ``OTEL_BSP_...``: what holds without them, as in the SDK.
_BSP: Final = {"MAX_QUEUE_SIZE": 2048, "MAX_EXPORT_BATCH_SIZE": 512, "SCHEDULE_DELAY": 5000}


class Traces:
    """A sink of settled batches.  ``table``: the one in force, for the backends' names and our own scheme.

    A setting that cannot be used (a file that is missing, gRPC without its extra) is told once and counted as
    a failure; then nothing is exported and nothing else is harmed.
    """

    def __init__(
        self,
        otel: Otel,
        *,
        instance: str,
        version: str,
        unix_ns: Callable[[], int],
        monotonic_ns: Callable[[], int],
        table: Callable[[], Table] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        variables = os.environ if environ is None else environ
        self._monotonic_ns = monotonic_ns
        self._table = table
        self._seen: Table | None = None
        self._servers: dict[str, Server] = {}
        self._keep = Keep(otel.traces.bad_per_second, monotonic_ns())
        self._trouble = Trouble("spans")
        self._offered = 0
        self._dropped = 0
        self._closed = False
        self._processor: BatchSpanProcessor | None = None
        silence_sdk()
        self._build = SpanBuilder(
            resource_of(otel, instance=instance, version=version),
            scope_of(version),
            Conventions.of(variables),
            lambda name: self._servers.get(name),
        )
        self._room = max(_bsp(variables, "MAX_QUEUE_SIZE"), 2)  # a request has two spans
        self._exporter: _Watched | None = None
        try:
            self._start(wire_of(otel, "traces", variables), variables)
        except ImportError:
            self._trouble.failed("otel.protocol grpc needs the extra: pip install 'legato[grpc]'")
        except WireError as error:
            self._trouble.failed(str(error))
        except Exception as error:  # whatever the SDK makes of its variables: spans are missing, nothing else
            self._trouble.failed(f"{type(error).__name__} when the exporter was set up")

    def __call__(self, batch: Sequence[Settled]) -> None:
        """Offer the spans of what is kept; ``kept_span`` of those becomes the span for exemplars."""
        if self._closed:
            return
        self._refresh()
        now_ns = self._monotonic_ns()
        for settled in batch:
            kept = self._keep(settled, now_ns)
            if kept is None:
                continue
            if self._full():
                self._dropped += 2 if called(settled.facts) else 1
                continue
            try:
                spans = self._build(settled, kept)
            except Exception:  # facts of another version: this trace is missing, the request is booked
                self._dropped += 1
                continue
            self._offer(spans)
            settled.kept_span = span_id_of(spans[-1])

    def close(self, deadline_s: float) -> None:
        """Export what is queued, for at most ``deadline_s``; what is left then is dropped, counted, told."""
        self._closed = True
        processor, exporter = self._processor, self._exporter
        if processor is None or exporter is None:
            return
        lost_before = exporter.lost  # told when it was
        # The SDK's own shutdown waits for its export: in a daemon thread, so that nothing waits for that.
        ender = threading.Thread(target=processor.shutdown, name="otlp-traces-end", daemon=True)
        ender.start()
        ender.join(max(deadline_s, 0.0))
        if ender.is_alive():
            exporter.give_up()
        left = self._offered - exporter.sent - lost_before
        if left > 0:
            self._trouble.left(left)

    def failures(self) -> dict[str, int]:
        """Exports that failed, retries not counted."""
        return {EXPORTER: self._trouble.failures}

    def dropped(self) -> dict[str, int]:
        """Spans that were kept and never exported; after ``close`` those that were still queued too."""
        exporter = self._exporter
        lost = 0 if exporter is None else exporter.lost
        left = self._offered - (0 if exporter is None else exporter.taken) if self._closed else 0
        return {SPANS: self._dropped + lost + left}

    @property
    def counts(self) -> KeepCounts:
        """What was kept, and why."""
        return self._keep.counts

    # ------------------------------------------------------------ inside

    def _start(self, wire: Wire, variables: Mapping[str, str]) -> None:
        self._trouble = Trouble(f"spans to {wire.endpoint}")
        self._exporter = _Watched(_exporter(wire), self._trouble)
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=self._room,
            schedule_delay_millis=_bsp(variables, "SCHEDULE_DELAY"),
            # The SDK refuses batches larger than the queue: a small queue alone would end all spans.
            max_export_batch_size=min(_bsp(variables, "MAX_EXPORT_BATCH_SIZE"), self._room),
        )

    def _full(self) -> bool:
        """Whether two more spans would not fit.  (The SDK's queue would push out the oldest, unseen.)"""
        exporter = self._exporter
        return self._processor is None or exporter is None or self._offered - exporter.taken + 2 > self._room

    def _offer(self, spans: Sequence[ReadableSpan]) -> None:
        processor = self._processor
        if processor is not None:
            self._offered += len(spans)
            for span in spans:
                processor.on_end(span)

    def _refresh(self) -> None:
        """Look whether another table is in force."""
        table = None if self._table is None else self._table()
        if table is not None and table is not self._seen:
            self._seen = table
            with contextlib.suppress(ValueError):  # no URL, though the settings took it: the peer will do
                self._servers = servers_of(table)
            self._build.scheme = "http" if table.tls_cert_file is None else "https"


class _Watched(SpanExporter):
    """The SDK's exporter, its results counted.  ``taken``: spans that left the queue; of them ``sent``: those
    that arrived, and ``lost``: those that did not."""

    def __init__(self, inner: SpanExporter, trouble: Trouble) -> None:
        self._inner = inner
        self._trouble = trouble
        self._over = False
        self.taken = 0
        self.sent = 0
        self.lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Called by the SDK's thread alone."""
        self.taken += len(spans)
        if self._over:
            self.lost += len(spans)
            return SpanExportResult.FAILURE
        last_words()  # of an export before
        try:
            result = self._inner.export(spans)
            reason = last_words()
        except Exception as error:  # an exporter's fault must not end the thread that exports
            result, reason = SpanExportResult.FAILURE, type(error).__name__
        if result is SpanExportResult.SUCCESS:
            self.sent += len(spans)
            self._trouble.worked()
        else:
            self.lost += len(spans)
            self._trouble.failed(reason)
        return result

    def give_up(self) -> None:
        """No export begins any more, and one that waits to try again does not."""
        self._over = True
        threading.Thread(target=self.shutdown, name="otlp-traces-stop", daemon=True).start()

    def shutdown(self) -> None:
        """Let go of connections; may wait for them."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held here."""
        return True


def _exporter(wire: Wire) -> SpanExporter:
    """By the protocol; either is imported only where it is used."""
    if wire.grpc:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc(**wire.grpc_options())
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http(**wire.http_options())


def _bsp(variables: Mapping[str, str], name: str) -> int:
    """One of the batch processor's variables; a value that is none is passed over, as they ask for."""
    try:
        value = int(variables.get(f"OTEL_BSP_{name}", ""))
    except ValueError:
        return _BSP[name]
    return value if value > 0 else _BSP[name]


def span_id_of(span: ReadableSpan) -> str | None:
    """Its id in hex, as exemplars name it."""
    return None if span.context is None else format_span_id(span.context.span_id)


def servers_of(table: Table) -> dict[str, Server]:
    """The backends' addresses as configured, by name."""
    found: dict[str, Server] = {}
    for backend in table.backends:
        address, port = server_of(backend)
        url = urlsplit(backend.url if backend.uds is None else "http:")
        found[backend.name] = Server(url.scheme, address, port, url.path.rstrip("/"))
    return found
