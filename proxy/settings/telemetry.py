"""Where what was measured goes: Redis (one view of many hosts) and OpenTelemetry."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr

from proxy.settings.base import Settings
from proxy.settings.types import (
    Name,
    PositiveDuration,
    Ratio,
    Size,
    Switch,
    Url,
)

#: Where neither the settings nor the standard variable say what share of traces to keep.
DEFAULT_TRACE_RATIO = 0.01
_S = 1_000_000_000
_MIB = 2**20


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
    url_file: str | None = Field(default=None, description="A file whose first line is the URL.")
    prefix: Name = Field(default="legato", description="Every key begins with it: one prefix, one fleet.")
    every: PositiveDuration = Field(
        default=5 * _S, description="How often this host writes what it settled since."
    )
    timeout: PositiveDuration = Field(
        default=2 * _S, description="Longest wait for a connection or an answer; then it counts as away."
    )
    memory: Size = Field(
        default=32 * _MIB,
        description="What waits here while Redis is away; past it the oldest goes, and is counted.",
    )
    tls: RedisTls = Field(default=RedisTls(), description="TLS towards Redis.")


class OtelTraces(Settings):
    """Which requests become spans."""

    ratio: Ratio | None = Field(
        default=None,
        description="Share of the requests whose client did not decide that are kept (as a span tree). "
        "Without it `OTEL_TRACES_SAMPLER_ARG`, else 1%. A client's own sampling flag is honoured.",
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
        "they are.",
    )


class Otel(Settings):
    """OpenTelemetry over OTLP.  The standard variables `OTEL_*` fill in what stands nowhere else."""

    endpoint: Url | None = Field(
        default=None,
        description="The collector, `http://host:4318`; `/v1/traces` and `/v1/metrics` are put behind it. "
        "Without it `OTEL_EXPORTER_OTLP_ENDPOINT`; without either nothing is exported and no header is "
        "touched.",
    )
    protocol: Literal["http/protobuf", "grpc"] | None = Field(
        default=None,
        description="`grpc` needs the extra `legato[grpc]`. Without it `OTEL_EXPORTER_OTLP_PROTOCOL`, "
        "else `http/protobuf`.",
    )
    headers_file: str | None = Field(
        default=None,
        description="A file with headers for the collector, `name: value` a line (keys, tenants).",
    )
    ca_file: str | None = Field(default=None, description="Trust these CAs (PEM) instead of the system's.")
    timeout: PositiveDuration = Field(
        default=10 * _S, description="Longest wait for one export; nothing waits with it."
    )
    traces: OtelTraces = Field(default=OtelTraces(), description="Which requests become spans.")
    metrics: Switch = Field(default=True, description="Export the metrics too.")
    every: PositiveDuration = Field(default=60 * _S, description="How often metrics are exported.")
    service_name: str = Field(
        default="legato", description="`service.name`; `OTEL_SERVICE_NAME` goes before it."
    )
    attributes: dict[str, str] = Field(
        default={}, description="Further resource attributes, as in `OTEL_RESOURCE_ATTRIBUTES`."
    )
