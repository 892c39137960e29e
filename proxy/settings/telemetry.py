"""Where what was measured goes: Redis (one view of many hosts) and OpenTelemetry."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from proxy.settings.base import Settings
from proxy.settings.types import (
    Name,
    PositiveDuration,
    Ratio,
    Size,
    Switch,
    Unit,
    base_url,
    format_size,
)
from proxy.units import format_duration

#: Where neither the settings nor the standard variable say what share of traces to keep.
DEFAULT_TRACE_RATIO = 0.01
_S = 1_000_000_000
_MIB = 2**20
_SIGNAL = re.compile(r"/v1/(traces|metrics|logs)/*$")


def _no_credentials(value: Any) -> Any:
    if isinstance(value, str) and "@" in urlsplit(value.strip()).netloc:
        raise ValueError(
            f"{value!r}: a key does not belong into the URL: give it as a header, in headers_file"
        )
    return value


def collector_url(value: Any) -> Any:
    """The base URL of a collector; ``ValueError`` with the mend."""
    if isinstance(value, str) and (found := _SIGNAL.search(value.strip())):
        rest = value.strip()[: found.start()]
        raise ValueError(f"{value!r}: /v1/{found[1]} is put behind it: leave it out, write {rest}")
    return base_url(_no_credentials(value), "http://127.0.0.1:4318")


def signal_url(value: Any) -> Any:
    """The whole URL to which one signal goes, with its path; ``ValueError`` with the mend."""
    return base_url(_no_credentials(value), "http://127.0.0.1:4318/v1/traces")


def _between(low: int, high: int, form: Callable[[int], str]) -> AfterValidator:
    def check(value: int) -> int:
        if not low <= value <= high:
            raise ValueError(f"{form(value)}: write something from {form(low)} to {form(high)}")
        return value

    return AfterValidator(check)


Signal = Literal["traces", "metrics"]
Protocol = Literal["http/protobuf", "grpc"]
Patience = Annotated[PositiveDuration, _between(_S // 100, 600 * _S, format_duration)]
CollectorUrl = Annotated[str, BeforeValidator(collector_url), Unit("text", hint="http(s)://host:port[/base]")]
SignalUrl = Annotated[str, BeforeValidator(signal_url), Unit("text", hint="http(s)://host:port/path")]


class RedisTls(Settings):
    """TLS towards Redis, where its URL begins with `rediss`."""

    ca_file: str | None = Field(default=None, description="Trust these CAs (PEM) instead of the system's.")
    cert_file: str | None = Field(default=None, description="Client certificate in PEM.")
    key_file: str | None = Field(default=None, description="The client certificate's private key in PEM.")
    verify: Switch = Field(default=True, description="Check the server's certificate and name.")


class Redis(Settings):
    """One view of many hosts."""

    url: SecretStr | None = Field(
        default=None,
        description="`redis://`, `rediss://` (TLS), `unix://`; "
        "`redis+sentinel://host:port,host:port/SERVICE` and `redis+cluster://host:port,host:port` (`rediss+` "
        "for TLS), each with a user and `/DB` where there is one. One with a password belongs into "
        "`url_file`, or the variable `LEGATO_REDIS__URL`.",
    )
    url_file: str | None = Field(
        default=None, description="A file whose first line is the URL. Read at start only."
    )
    prefix: Name = Field(default="legato", description="Every key begins with it: one prefix, one fleet.")
    every: Annotated[PositiveDuration, _between(_S, 60 * _S, format_duration)] = Field(
        default=5 * _S,
        description="How often this host writes what it settled since; 1s to 60s.",
    )
    timeout: Annotated[PositiveDuration, _between(_S // 100, 60 * _S, format_duration)] = Field(
        default=2 * _S,
        description="Longest wait for a connection or an answer; then it counts as away. 10ms to 60s.",
    )
    memory: Annotated[Size, _between(_MIB, 2**40, format_size)] = Field(
        default=32 * _MIB,
        description="What waits here while Redis is away; past it the oldest goes, and is counted. "
        "At least 1MiB.",
    )
    tls: RedisTls = Field(default=RedisTls(), description="TLS towards Redis.")


class OtelTraces(Settings):
    """Which requests become spans."""

    export: Switch = Field(
        default=True,
        description="Export spans. Off: no span, and no header is touched. Without it "
        "`OTEL_TRACES_EXPORTER` (`none`).",
    )
    endpoint: SignalUrl | None = Field(
        default=None,
        description="Where spans go, as a whole URL, where that is not `otel.endpoint` with `/v1/traces`. "
        "Without it `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`.",
    )
    protocol: Protocol | None = Field(
        default=None,
        description="`otel.protocol` for spans, where it is another one. Without either "
        "`OTEL_EXPORTER_OTLP_TRACES_PROTOCOL`.",
    )
    timeout: Patience | None = Field(
        default=None,
        description="`otel.timeout` for spans, where it is another one. Without either "
        "`OTEL_EXPORTER_OTLP_TRACES_TIMEOUT`.",
    )
    ca_file: str | None = Field(
        default=None,
        description="`otel.ca_file` for spans, where it is another one. Without either "
        "`OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE`.",
    )
    ratio: Ratio | None = Field(
        default=None,
        description="Share of the requests whose client did not decide that are kept (as a span tree). "
        "Without it what `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG` say, else 1%. A client's own "
        "sampling flag is honoured.",
    )
    bad_per_second: float = Field(
        default=20.0,
        ge=0,
        le=10_000,
        description="Requests whose verdict is bad are kept beyond the ratio, at most so many a second. Of "
        "those the other services' spans may be missing: they were not told.",
    )
    propagate: Switch = Field(
        default=True,
        description="Send `traceparent` upstream, as child of the client's or anew. Off: headers stay as "
        "they are. Without it `OTEL_PROPAGATORS` (`none`).",
    )


class Otel(Settings):
    """OpenTelemetry over OTLP.  The standard variables `OTEL_*` fill in what stands nowhere else."""

    endpoint: CollectorUrl | None = Field(
        default=None,
        description="The collector, `http://host:4318`; `/v1/traces` and `/v1/metrics` are put behind it "
        "(gRPC: `http://host:4317`, as it is). Without it `OTEL_EXPORTER_OTLP_ENDPOINT`; without either "
        "nothing is exported and no header is touched.",
    )
    protocol: Protocol | None = Field(
        default=None,
        description="`grpc` needs the extra `legato[grpc]`. Without it `OTEL_EXPORTER_OTLP_PROTOCOL`, "
        "else `http/protobuf`.",
    )
    headers_file: str | None = Field(
        default=None,
        description="A file with headers for the collector, `name: value` a line (keys, tenants). Without "
        "it `OTEL_EXPORTER_OTLP_HEADERS`.",
    )
    ca_file: str | None = Field(
        default=None,
        description="Trust these CAs (PEM) instead of the system's. Without it "
        "`OTEL_EXPORTER_OTLP_CERTIFICATE`.",
    )
    timeout: Patience = Field(
        default=10 * _S,
        description="Longest wait for one export; nothing waits with it. Without it "
        "`OTEL_EXPORTER_OTLP_TIMEOUT`.",
    )
    traces: OtelTraces = Field(default=OtelTraces(), description="Which requests become spans.")
    metrics: Switch = Field(
        default=True,
        description="Export the metrics too. Without it `OTEL_METRICS_EXPORTER` (`none`).",
    )
    metrics_endpoint: SignalUrl | None = Field(
        default=None,
        description="Where metrics go, as a whole URL, where that is not `endpoint` with `/v1/metrics`. "
        "Without it `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT`.",
    )
    metrics_protocol: Protocol | None = Field(
        default=None,
        description="`protocol` for metrics, where it is another one. Without either "
        "`OTEL_EXPORTER_OTLP_METRICS_PROTOCOL`.",
    )
    metrics_timeout: Patience | None = Field(
        default=None,
        description="`timeout` for metrics, where it is another one. Without either "
        "`OTEL_EXPORTER_OTLP_METRICS_TIMEOUT`.",
    )
    metrics_ca_file: str | None = Field(
        default=None,
        description="`ca_file` for metrics, where it is another one. Without either "
        "`OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE`.",
    )
    exemplars: Switch = Field(
        default=True,
        description="Histograms, also those of `/metrics`, name the latest kept trace of each bucket. "
        "Without it `OTEL_METRICS_EXEMPLAR_FILTER` (`always_off`).",
    )
    every: Annotated[PositiveDuration, _between(_S, 3_600 * _S, format_duration)] = Field(
        default=60 * _S,
        description="How often metrics are exported; 1s to 1h. Without it `OTEL_METRIC_EXPORT_INTERVAL`.",
    )
    service_name: str = Field(
        default="legato",
        min_length=1,
        description="`service.name`. Without it `OTEL_SERVICE_NAME`, else what `OTEL_RESOURCE_ATTRIBUTES` "
        "says.",
    )
    attributes: dict[str, str] = Field(
        default={},
        description="Further resource attributes, as in `OTEL_RESOURCE_ATTRIBUTES`, over which they go.",
    )

    @property
    def traces_url(self) -> str | None:
        """Where spans go, as the exporter wants it; ``None``: none are exported, no header is touched."""
        return (self.traces.endpoint or self._signal("traces")) if self.traces.export else None

    @property
    def metrics_url(self) -> str | None:
        """Where metrics go, as the exporter wants it; ``None``: they are not exported."""
        return (self.metrics_endpoint or self._signal("metrics")) if self.metrics else None

    def protocol_of(self, signal: Signal) -> Protocol:
        """What is spoken."""
        own = self.traces.protocol if signal == "traces" else self.metrics_protocol
        return own or self.protocol or "http/protobuf"

    def timeout_of(self, signal: Signal) -> int:
        """Longest wait for one export, nanoseconds."""
        own = self.traces.timeout if signal == "traces" else self.metrics_timeout
        return self.timeout if own is None else own

    def ca_file_of(self, signal: Signal) -> str | None:
        """Whom to trust; ``None``: the system's."""
        own = self.traces.ca_file if signal == "traces" else self.metrics_ca_file
        return self.ca_file if own is None else own

    def _signal(self, name: Signal) -> str | None:
        if self.endpoint is None or self.protocol_of(name) == "grpc":
            return self.endpoint
        return f"{self.endpoint}/v1/{name}"
