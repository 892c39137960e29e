"""OpenTelemetry's standard variables: a layer below the file, and never a reason not to start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxy.config import ConfigErrors, Otel, cares
from proxy.settings import standard
from proxy.settings.telemetry import OtelTraces
from tests.helpers.settings import bare, read, writer

MS = 1_000_000
S = 1_000_000_000


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a file ``legato.yaml``; gives its path."""
    return writer(tmp_path)


BASE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}
FILLED: list[tuple[dict[str, str], str, Any]] = [
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://d:4318/"}, "endpoint", "http://d:4318"),
    (
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:4318/v1/traces"},
        "traces_url",
        "http://t:4318/v1/traces",
    ),
    (
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://m:4318/v1/metrics"},
        "metrics_url",
        "http://m:4318/v1/metrics",
    ),
    ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "protocol", "grpc"),
    ({"OTEL_EXPORTER_OTLP_TIMEOUT": "2500"}, "timeout", 2_500 * MS),
    ({"OTEL_EXPORTER_OTLP_CERTIFICATE": __file__}, "ca_file", __file__),
    ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, "traces_url", "http://c:4318"),
    ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, "metrics_url", "http://c:4318/v1/metrics"),
    ({"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"}, "metrics_protocol", "grpc"),
    ({"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "30000"}, "traces.timeout", 30 * S),
    ({"OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "250"}, "metrics_timeout", 250 * MS),
    ({"OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE": __file__}, "traces.ca_file", __file__),
    ({"OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE": __file__}, "metrics_ca_file", __file__),
    ({"OTEL_METRICS_EXEMPLAR_FILTER": "always_off"}, "exemplars", False),
    ({"OTEL_METRICS_EXEMPLAR_FILTER": "Trace_Based"}, "exemplars", True),
    ({"OTEL_SERVICE_NAME": "gate"}, "service_name", "gate"),
    ({"OTEL_RESOURCE_ATTRIBUTES": "a=b,service.name=in%20list"}, "service_name", "in list"),
    ({"OTEL_RESOURCE_ATTRIBUTES": "a=b", "OTEL_SERVICE_NAME": ""}, "service_name", "legato"),
    ({"OTEL_SERVICE_NAME": "gate", "OTEL_RESOURCE_ATTRIBUTES": "service.name=x"}, "service_name", "gate"),
    ({"OTEL_TRACES_SAMPLER_ARG": "0.25"}, "traces.ratio", 0.25),
    ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}, "traces.ratio", 1.0),
    (
        {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1e-3"},
        "traces.ratio",
        0.001,
    ),
    ({"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, "traces.ratio", 1.0),
    ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, "traces.ratio", 0.0),
    ({"OTEL_TRACES_EXPORTER": "otlp"}, "traces.export", True),
    ({"OTEL_TRACES_EXPORTER": "none"}, "traces.export", False),
    ({"OTEL_METRICS_EXPORTER": "none"}, "metrics", False),
    ({"OTEL_METRIC_EXPORT_INTERVAL": "30000"}, "every", 30 * S),
    ({"OTEL_PROPAGATORS": "none"}, "traces.propagate", False),
    ({"OTEL_PROPAGATORS": "tracecontext, baggage"}, "traces.propagate", True),
    ({"OTEL_SDK_DISABLED": "false"}, "traces_url", "http://c:4318/v1/traces"),
    ({"OTEL_SDK_DISABLED": "True"}, "traces_url", None),
    ({"OTEL_SDK_DISABLED": "true"}, "metrics_url", None),
]


def at(otel: Otel, dotted: str) -> Any:
    value: Any = otel
    for step in dotted.split("."):
        value = getattr(value, step)
    return value


@pytest.mark.parametrize(
    ("env", "dotted", "value"), FILLED, ids=[f"{env}-{dotted}" for env, dotted, _ in FILLED]
)
def test_standard_variables_fill_in_what_the_file_leaves_out(
    env: dict[str, str], dotted: str, value: Any
) -> None:
    config = bare(BASE | env)
    assert at(config.otel, dotted) == value
    disabled = env.get("OTEL_SDK_DISABLED", "").lower() == "true"
    unusable = any(
        name.endswith("_CERTIFICATE") for name in env
    )  # a CA that is none, and for http: noted, no failure
    assert len(config.notes) == (1 if disabled else 2 if unusable else 0), config.notes


def test_every_standard_variable_is_tried_here() -> None:
    tried = {name for env, _, _ in FILLED for name in env}
    assert tried == {known.name for known in standard.STANDARD}


def test_the_file_variables_of_ours_and_off_go_before_the_standard_ones(write: Any) -> None:
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://env:4318",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1000",
        "OTEL_SERVICE_NAME": "env",
        "OTEL_TRACES_SAMPLER": "always_on",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_METRIC_EXPORT_INTERVAL": "1000",
        "OTEL_PROPAGATORS": "none",
    }
    ours = {"LEGATO_OTEL__TIMEOUT": "7s"}
    config = read(
        write(
            """
            otel: {endpoint: http://file:4318, protocol: http/protobuf, service_name: file, metrics: on,
                   every: 9s, traces: {ratio: 3%, export: on, propagate: on}}
            """
        ),
        env | ours,
    )
    otel = config.otel
    assert (otel.endpoint, otel.protocol, otel.timeout) == ("http://file:4318", "http/protobuf", 7 * S)
    assert (otel.service_name, otel.every, otel.traces.ratio) == ("file", 9 * S, 0.03)
    assert (otel.traces.export, otel.traces.propagate, otel.metrics) == (True, True, True)
    assert config.notes == ()


@pytest.mark.parametrize(
    ("name", "value", "note"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4318", "a URL begins with http://"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c/v1/traces", "leave it out"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:hunter2@c", "in headers_file"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "c", "a URL begins with http://"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "only http/protobuf and grpc"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "milliseconds from 10 to 600000 are"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1", "milliseconds from 10 to 600000 are"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "9" * 30, "milliseconds from 10 to 600000 are"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "600001", "milliseconds from 10 to 600000 are"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "3600001", "milliseconds from 1000 to 3600000 are"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem", "cannot be read"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "5", "milliseconds from 1000 to 3600000 are"),
        ("OTEL_TRACES_SAMPLER", "xray", "is not known here"),
        ("OTEL_TRACES_SAMPLER", "traceidratio", "sampling flag is honoured all the same"),
        ("OTEL_TRACES_SAMPLER_ARG", "5%", "a number from 0 to 1 is needed"),
        ("OTEL_TRACES_SAMPLER_ARG", "nan", "a number from 0 to 1 is needed"),
        ("OTEL_TRACES_EXPORTER", "otlp,console", "'console' is not known here"),
        ("OTEL_METRICS_EXPORTER", "prometheus", "'prometheus' is not known here"),
        ("OTEL_PROPAGATORS", "b3", "only tracecontext is spoken"),
        ("OTEL_SDK_DISABLED", "yes", "write true or false"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "5", "milliseconds from 10 to 600000 are"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/json", "only http/protobuf and grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/nowhere.pem", "cannot be read"),
        ("OTEL_METRICS_EXEMPLAR_FILTER", "always_on", "of kept traces (trace_based)"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "30000", "is not read: one export lasts otel.traces.timeout"),
        ("OTEL_METRIC_EXPORT_TIMEOUT", "30000", "is not read: one export lasts otel.metrics_timeout"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "true", "is not read: http:// or https://"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "Delta", "metrics are exported cumulative"),
        (
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
            "base2_exponential_bucket_histogram",
            "the boundaries are the catalog's",
        ),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", "12", "is not read: texts are cut"),
        ("OTEL_CONFIG_FILE", "otel.yaml", "is not read"),
    ],
)
def test_a_bad_standard_variable_is_passed_over_and_said(name: str, value: str, note: str) -> None:
    config = bare({name: value})
    told = [sentence for sentence in cares(config) if note in sentence]
    assert len(told) == 1, cares(config)
    assert told[0].startswith(name)
    assert list(config.notes) == told
    assert "hunter" not in told[0]
    kept = {"OTEL_TRACES_SAMPLER": Otel(traces=OtelTraces(ratio=1.0))} if value == "traceidratio" else {}
    assert config.otel == kept.get(name, Otel())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "Cumulative"),
        ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "explicit_bucket_histogram"),
    ],
)
def test_what_asks_for_what_is_so_in_any_case_is_not_spoken_of(name: str, value: str) -> None:
    assert bare(BASE | {name: value}).notes == ()


PAIRS = {
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "1000",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "2000",
    "OTEL_EXPORTER_OTLP_CERTIFICATE": __file__,
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE": str(Path(__file__).parent / "__init__.py"),
}


def test_the_variable_of_a_signal_goes_before_that_of_both() -> None:
    otel = bare({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c:4318"} | PAIRS).otel
    assert (otel.protocol_of("traces"), otel.protocol_of("metrics")) == ("http/protobuf", "grpc")
    assert (otel.traces_url, otel.metrics_url) == ("https://c:4318/v1/traces", "https://c:4318")
    assert (otel.timeout_of("traces"), otel.timeout_of("metrics")) == (2 * S, 1 * S)
    own = PAIRS["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE"]
    assert (otel.ca_file_of("traces"), otel.ca_file_of("metrics")) == (own, __file__)


@pytest.mark.parametrize(
    ("own", "timeout_s"), [("", 3), (", traces: {timeout: 4s}", 4)], ids=["for both", "for one too"]
)
def test_what_the_file_says_for_both_signals_goes_before_the_variable_of_one(
    write: Any, own: str, timeout_s: int
) -> None:
    text = f"otel: {{endpoint: http://c:4318, protocol: http/protobuf, timeout: 3s{own}}}"
    otel = read(write(text), PAIRS).otel
    assert (otel.protocol_of("traces"), otel.protocol_of("metrics")) == ("http/protobuf", "http/protobuf")
    assert (otel.timeout_of("traces"), otel.timeout_of("metrics")) == (timeout_s * S, 3 * S)


def test_a_standard_variable_cannot_hide_a_mistake_of_the_file(write: Any) -> None:
    with pytest.raises(ConfigErrors, match=r"otel\.traces: .*a mapping of settings"):
        read(write("otel: {traces: on}"), {"OTEL_TRACES_SAMPLER_ARG": "0.5", "OTEL_SDK_DISABLED": "true"})
    with pytest.raises(ConfigErrors, match=r"otel: .*a mapping of settings"):
        read(write("otel: [x]"), {"OTEL_TRACES_SAMPLER_ARG": "0.5", "OTEL_SDK_DISABLED": "true"})
