"""Metrics to the collector every so often: the picture is taken in the loop, all else happens in a thread.

A collector that hangs delays nothing: while an export is out the next round is skipped and counted, and the
end of the process waits for its deadline, no longer.  Sums are cumulative, so that what one export lost the
next one brings.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult

from proxy.config import Otel
from proxy.control.genai import CallStats
from proxy.control.snapshot import Snapshot
from proxy.exporters.otel.metrics import metrics_data
from proxy.exporters.otel.resource import resource_of, scope_of
from proxy.exporters.otel.trouble import Trouble, last_words, silence_sdk
from proxy.exporters.otel.wire import Wire, WireError, wire_of

#: The name in ``vocabulary.EXPORTER``.
EXPORTER: Final = "otlp_metrics"


def _nothing() -> Sequence[CallStats]:
    return ()


class MetricsPush:
    """``snapshot`` and ``called`` (``GenAi.freeze``) are asked in the loop; what they give never changes.

    A setting that cannot be used is told once and counted as a failure; then nothing is exported and nothing
    else is harmed.
    """

    def __init__(
        self,
        otel: Otel,
        snapshot: Callable[[], Snapshot],
        *,
        instance: str,
        version: str,
        called: Callable[[], Sequence[CallStats]] = _nothing,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        variables = os.environ if environ is None else environ
        self._every_s = otel.every / 1e9
        self._timeout_ms = otel.timeout_of("metrics") / 1e6
        self._snapshot = snapshot
        self._called = called
        self._trouble = Trouble("metrics")
        self._out: threading.Thread | None = None
        silence_sdk()
        self._resource = resource_of(otel, instance=instance, version=version)
        self._scope = scope_of(version)
        self._exporter: MetricExporter | None = None
        try:
            self._exporter = _exporter(wire_of(otel, "metrics", variables))
        except ImportError:
            self._trouble.failed("otel.protocol grpc needs the extra: pip install 'legato[grpc]'")
        except WireError as error:
            self._trouble.failed(str(error))
        except Exception as error:  # whatever the SDK makes of its variables: only this export is missing
            self._trouble.failed(f"{type(error).__name__} when the exporter was set up")

    async def run(self) -> None:
        """Export every so often, until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            self.begin()

    def begin(self) -> None:
        """Take the picture now and send it off; skipped, and counted, while the one before is out."""
        exporter = self._exporter
        if exporter is None:
            return
        if self._out is not None and self._out.is_alive():
            self._trouble.failed("the export before has not ended")
            return
        try:
            picture = (exporter, self._snapshot(), self._called())
            # A daemon: an export that hangs at the end of the process must not keep it.
            out = threading.Thread(target=self._export, args=picture, name="otlp-metrics", daemon=True)
            out.start()
        except Exception as error:  # a picture that fails, or no thread to be had, ends no later round
            self._trouble.failed(f"{type(error).__name__} when the metrics were read")
            return
        self._out = out

    async def close(self, deadline_s: float) -> None:
        """One last export, for at most ``deadline_s`` with what is still out; then let go of connections."""
        exporter = self._exporter
        if exporter is None:
            return
        loop = asyncio.get_running_loop()
        end_s = loop.time() + deadline_s
        if await self._ended(deadline_s):
            self.begin()
        self._exporter = None  # whoever calls ``begin`` from now on does nothing
        if not await self._ended(end_s - loop.time()):
            self._trouble.failed("the last export did not end in time")
        # Closing may wait for what is out.
        threading.Thread(target=exporter.shutdown, name="otlp-metrics-stop", daemon=True).start()

    def failures(self) -> dict[str, int]:
        """Exports that failed, retries not counted, and rounds that were skipped."""
        return {EXPORTER: self._trouble.failures}

    async def _ended(self, within_s: float) -> bool:
        """Whether nothing is out; waits for it for a while."""
        out = self._out
        if out is not None and out.is_alive():
            await asyncio.to_thread(out.join, max(within_s, 0.0))
        return out is None or not out.is_alive()

    def _export(self, exporter: MetricExporter, snapshot: Snapshot, called: Sequence[CallStats]) -> None:
        last_words()  # of an export before
        try:
            data = metrics_data(snapshot, called, self._resource, self._scope)
            result = exporter.export(data, timeout_millis=self._timeout_ms)
            reason = last_words()
        except Exception as error:  # an exporter's fault is an export that failed
            result, reason = MetricExportResult.FAILURE, type(error).__name__
        if result is MetricExportResult.SUCCESS:
            self._trouble.worked()
        else:
            self._trouble.failed(reason)


def _exporter(wire: Wire) -> MetricExporter:
    """By the protocol; either is imported only where it is used."""
    if wire.grpc:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as Grpc

        return Grpc(**wire.grpc_options())
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as Http

    return Http(**wire.http_options())
