"""A ``Snapshot`` as the SDK's ``MetricsData``, built by hand from the rows that ``/metrics`` is rendered of.

Nothing is recorded through the SDK: one of its records costs more than a request may.  Counters and
histograms are cumulative since the control process began, which is the start of every point.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from opentelemetry.sdk.metrics import Exemplar as SdkExemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from proxy.control.genai import CallStats
from proxy.control.snapshot import Exemplar, Hist, Snapshot
from proxy.exporters import metric as ours
from proxy.exporters.catalog import CATALOG, GROUP_LIMIT
from proxy.exporters.otel.genai import calls
from proxy.exporters.rows import Labels, View, histograms, samples, view_of

Attributes = Mapping[str, str | int]

_CUMULATIVE = AggregationTemporality.CUMULATIVE


def metrics_data(
    snapshot: Snapshot, called: Sequence[CallStats], resource: Resource, scope: InstrumentationScope
) -> MetricsData:
    """Everything that is exported: the catalog's metrics, and the conventions' of the calls of models.

    A metric without a value is absent.
    """
    since_ns, at_ns = snapshot.since_unix_ns, snapshot.at_unix_ns
    found = list(_of_catalog(view_of(snapshot), since_ns, at_ns))
    for each, points in calls(called):
        told = [point(attributes, hist, since_ns, at_ns) for attributes, hist in points]
        if told:
            found.append(Metric(each.name, each.help, each.unit, Histogram(told, _CUMULATIVE)))
    scoped = ScopeMetrics(scope, found, scope.schema_url or "")
    return MetricsData([ResourceMetrics(resource, [scoped], resource.schema_url)])


def _of_catalog(view: View, since_ns: int, at_ns: int) -> Iterator[Metric]:
    for metric in CATALOG:
        data: Histogram | Sum | Gauge
        if metric.kind == "histogram":
            data = Histogram(
                [
                    point(_attributes(metric.labels, labels), hist, since_ns, at_ns)
                    for labels, hist in histograms(metric, view)
                ],
                _CUMULATIVE,
            )
        else:
            data = _numbers(metric, samples(metric, view), since_ns, at_ns)
        if data.data_points:
            yield Metric(metric.otlp_name, metric.help, metric.otlp_unit, data)


def _numbers(
    metric: ours.Metric, told: Iterable[tuple[Labels, int | float]], since_ns: int, at_ns: int
) -> Sum | Gauge:
    points = [
        NumberDataPoint(_attributes(metric.labels, labels), since_ns, at_ns, value) for labels, value in told
    ]
    return Gauge(points) if metric.kind == "gauge" else Sum(points, _CUMULATIVE, is_monotonic=True)


def point(attributes: Attributes, hist: Hist, since_ns: int, at_ns: int) -> HistogramDataPoint:
    """One histogram; least and greatest are not kept, and absent."""
    return HistogramDataPoint(
        attributes=attributes,
        start_time_unix_nano=since_ns,
        time_unix_nano=at_ns,
        count=hist.count,
        sum=hist.sum,
        bucket_counts=hist.counts,
        explicit_bounds=hist.bounds,
        min=None,  # type: ignore[arg-type]  # optional on the wire, and so to the encoder
        max=None,  # type: ignore[arg-type]
        exemplars=[_exemplar(each) for each in hist.exemplars],
    )


def _exemplar(exemplar: Exemplar) -> SdkExemplar:
    return SdkExemplar(
        filtered_attributes={},
        value=exemplar.value,
        time_unix_nano=exemplar.at_unix_ns,
        span_id=int(exemplar.span_id, 16),
        trace_id=int(exemplar.trace_id, 16),
    )


@lru_cache(maxsize=64 * GROUP_LIMIT)
def _attributes(names: Labels, values: Labels) -> Attributes:
    return dict(zip(names, values, strict=True))  # shared by all points that have them: never changed
