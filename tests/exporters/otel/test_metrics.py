"""What a collector decodes is what ``/metrics`` says of the same snapshot.

Two readers that know nothing of our code: Prometheus's parser on one side, opentelemetry-proto on the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.openmetrics import parser

from proxy.control.snapshot import Snapshot
from proxy.exporters.catalog import CATALOG, GROUP_LIMIT
from proxy.exporters.otel.metrics import metrics_data
from proxy.exporters.prometheus import LABEL_LIMIT, OPENMETRICS, render
from proxy.link import GroupNow
from tests.exporters.pictures import everything, group, large, snapshot
from tests.helpers.otlp import attributes_of

Key = tuple[str, frozenset[tuple[str, str]]]
CUMULATIVE = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE


def decoded(picture: Snapshot) -> dict[str, metrics_pb2.Metric]:
    """Over the wire and back, each metric once."""
    data = metrics_data(
        picture, (), Resource({"service.name": "legato"}), InstrumentationScope("legato", "1")
    )
    request = type(encode_metrics(data))()
    request.ParseFromString(encode_metrics(data).SerializeToString())
    (resource,) = request.resource_metrics
    (scope,) = resource.scope_metrics
    metrics = {metric.name: metric for metric in scope.metrics}
    assert len(metrics) == len(scope.metrics)
    return metrics


def numbers(name: str, points: Iterable[Any]) -> Iterator[tuple[Key, float]]:
    for point in points:
        yield (
            (name, frozenset(attributes_of(point.attributes).items())),
            getattr(point, point.WhichOneof("value")),
        )


def buckets(name: str, points: Iterable[Any]) -> Iterator[tuple[Key, float]]:
    for point in points:
        labels = attributes_of(point.attributes)
        uppers = [*map(repr, point.explicit_bounds), "+Inf"]
        for le, total in zip(uppers, accumulate(point.bucket_counts), strict=True):
            yield (f"{name}_bucket", frozenset({**labels, "le": le}.items())), total
        yield (f"{name}_count", frozenset(labels.items())), point.count
        yield (f"{name}_sum", frozenset(labels.items())), point.sum


def over_otlp(picture: Snapshot) -> dict[Key, float]:
    """Every sample under the name that ``/metrics`` gives it; one that comes twice fails."""
    found: dict[Key, float] = {}
    names = {metric.otlp_name: metric.name for metric in CATALOG}
    for over, metric in decoded(picture).items():
        kind = metric.WhichOneof("data")
        points = getattr(metric, str(kind)).data_points
        read = buckets if kind == "histogram" else numbers
        for key, value in read(names[over], points):
            assert key not in found
            found[key] = value
    return found


def families(picture: Snapshot) -> list[Any]:
    text = render(picture, OPENMETRICS)[0].decode()
    return list(parser.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


def on_the_page(picture: Snapshot) -> dict[Key, float]:
    return {
        (s.name, frozenset(s.labels.items())): s.value for family in families(picture) for s in family.samples
    }


@pytest.mark.parametrize("picture", [snapshot(), everything(), large(64)], ids=["empty", "everything", "64"])
def test_a_collector_reads_what_stands_on_the_page(picture: Snapshot) -> None:
    assert over_otlp(picture) == on_the_page(picture)


def test_every_metric_of_the_catalog_is_there_with_its_kind_unit_and_text() -> None:
    found = decoded(everything())
    assert set(found) == {metric.otlp_name for metric in CATALOG}
    for metric in CATALOG:
        told = found[metric.otlp_name]
        wanted = {"counter": "sum", "gauge": "gauge", "histogram": "histogram"}[metric.kind]
        assert (told.WhichOneof("data"), told.unit, told.description) == (
            wanted,
            metric.otlp_unit,
            metric.help,
        )


def test_points_count_from_the_start_of_the_control_process_and_are_cumulative() -> None:
    for metric in decoded(everything()).values():
        data = getattr(metric, str(metric.WhichOneof("data")))
        for point in data.data_points:
            assert point.time_unix_nano == 1_800_000_010_000_000_000
            if metric.WhichOneof("data") != "gauge":
                assert point.start_time_unix_nano == 1_800_000_000_500_000_000
        if metric.WhichOneof("data") == "sum":
            assert (data.is_monotonic, data.aggregation_temporality) == (True, CUMULATIVE)
        elif metric.WhichOneof("data") == "histogram":
            assert data.aggregation_temporality == CUMULATIVE


def test_least_and_greatest_are_not_kept_and_not_said() -> None:
    point = decoded(everything())["legato.ttft"].histogram.data_points[0]
    assert not point.HasField("min")
    assert not point.HasField("max")


def test_exemplars_are_those_of_the_page() -> None:
    picture = everything()
    page = {
        (s.name, s.exemplar.labels["trace_id"], s.exemplar.labels["span_id"], s.exemplar.value)
        for family in families(picture)
        for s in family.samples
        if s.exemplar is not None
    }
    wire = {
        (f"{name}_bucket", e.trace_id.hex(), e.span_id.hex(), e.as_double)
        for name, metric in ((m.name, decoded(picture).get(m.otlp_name)) for m in CATALOG)
        if metric is not None and metric.WhichOneof("data") == "histogram"
        for point in metric.histogram.data_points
        for e in point.exemplars
    }
    assert len(page) > 100
    assert wire == page


# ---------------------------------------------------------------- guards


def test_names_that_no_message_may_hold_are_replaced() -> None:
    picture = snapshot((group(model="a\ud800b", backend="m" * 200),))
    labels = attributes_of(decoded(picture)["legato.requests"].sum.data_points[0].attributes)
    assert (labels["model"], labels["backend"]) == ("a?b", "m" * LABEL_LIMIT)


def test_at_most_64_groups_and_nothing_lost() -> None:
    picture = snapshot(
        tuple(group(model=f"m{i}") for i in range(200)),
        (GroupNow("stable", "only-in-flight", "chat", 1, 0, 0, 0),),
    )
    found = over_otlp(picture)
    completed = [
        value
        for (name, labels), value in found.items()
        if name == "legato_requests_total" and ("outcome", "completed") in labels
    ]
    assert (len(completed), sum(completed)) == (GROUP_LIMIT, 200)
    assert found == on_the_page(picture)
