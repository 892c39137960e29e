"""``gen_ai.client.*`` as a collector gets them: the conventions' names, units, boundaries and attributes."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics

from proxy.control.genai import CallSet
from proxy.exporters.otel.genai import CONVENTIONS, calls
from proxy.exporters.otel.metrics import metrics_data
from proxy.link import BackendSpec, Facts, Usage
from tests.control.facts import at, facts, streamed
from tests.control.test_genai import counted
from tests.exporters.pictures import snapshot

#: As the conventions say (repository open-telemetry/semantic-conventions-genai, gen-ai-metrics.md).
SECONDS = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
TOKENS = [
    1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864,
]  # fmt: skip
BACKENDS = (BackendSpec("default", "http://vllm:8000"), BackendSpec("canary", "https://canary"))
CHAT = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "llama",
    "server.address": "vllm",
    "server.port": 8000,
}


def exported(*every: Facts) -> dict[str, Any]:
    """Their histograms by name, as the SDK holds them."""
    stats = counted(*every, backends=BACKENDS)
    data = metrics_data(snapshot(), stats, Resource({}), InstrumentationScope("legato", "1"))
    metrics = data.resource_metrics[0].scope_metrics[0].metrics
    return {metric.name: metric for metric in metrics if metric.name.startswith("gen_ai.")}


def test_names_and_units_are_the_conventions() -> None:
    named = {
        value for name, value in vars(gen_ai_metrics).items() if name.startswith("GEN_AI_CLIENT_OPERATION")
    } | {gen_ai_metrics.GEN_AI_CLIENT_TOKEN_USAGE}
    assert {each.name for each in CONVENTIONS} == named
    units = {each.name: each.unit for each in CONVENTIONS}
    assert units.pop("gen_ai.client.token.usage") == "{token}"
    assert set(units.values()) == {"s"}


def test_a_stream_with_usage_fills_all_four_with_the_conventions_boundaries() -> None:
    found = exported(
        streamed(at(100), at(120), at(180), end_ms=200, of={"usage": Usage(prompt=17, output=3)})
    )
    assert set(found) == {each.name for each in CONVENTIONS}
    for name, metric in found.items():
        for point in metric.data.data_points:
            assert list(point.explicit_bounds) == (TOKENS if name.endswith("usage") else SECONDS)

    def only(name: str) -> Any:
        (point,) = found[f"gen_ai.client.operation.{name}"].data.data_points
        assert point.attributes == CHAT
        return point

    assert (only("duration").count, only("duration").sum) == (1, 0.2)
    assert (only("time_to_first_chunk").count, only("time_to_first_chunk").sum) == (1, 0.1)
    between = only("time_per_output_chunk")
    assert (between.count, between.sum) == (2, pytest.approx(0.08))
    assert [i for i, n in enumerate(between.bucket_counts) if n] == [1, 3]  # 20 ms, 60 ms
    usage = {
        point.attributes["gen_ai.token.type"]: (point.count, point.sum)
        for point in found["gen_ai.client.token.usage"].data.data_points
    }
    assert usage == {"input": (1, 17), "output": (1, 3)}


def test_without_usage_no_tokens_are_reported_however_many_were_counted() -> None:
    assert "gen_ai.client.token.usage" not in exported(streamed(at(100), at(120)))


def test_what_is_not_streamed_has_a_duration_alone() -> None:
    assert set(exported(facts(300))) == {"gen_ai.client.operation.duration"}


def test_errors_are_told_on_the_duration_alone() -> None:
    failed = facts(50, status=429, head_ns=facts().sent_ns)
    found = exported(failed, streamed(at(10), at(20)))
    points = found["gen_ai.client.operation.duration"].data.data_points
    assert [point.attributes.get("error.type") for point in points] == ["429", None]
    (chunk,) = found["gen_ai.client.operation.time_per_output_chunk"].data.data_points
    assert "error.type" not in chunk.attributes


def test_attributes_that_are_not_known_are_absent() -> None:
    stats = counted(facts(10, model=None), backends=())
    assert stats[0].attributes == CallSet("chat", "openai")
    ((attributes, _),) = dict(calls(stats))[CONVENTIONS[0]]
    assert attributes == {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai"}
