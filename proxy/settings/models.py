"""The settings, their names and their defaults: frozen models that hold plain values (ns, bytes, ratios).

A name here is a promise to users.  Every field says what it means: the reference is made from it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PrivateAttr, SecretStr

from proxy.settings.alerts import Alerts
from proxy.settings.base import Settings
from proxy.settings.experiment import Ejection, Experiment
from proxy.settings.route import Route
from proxy.settings.slo import Slo
from proxy.settings.telemetry import Otel, Redis
from proxy.settings.types import (
    Duration,
    Globs,
    Header,
    HeaderName,
    Listen,
    Listens,
    Log,
    LogFile,
    Name,
    Networks,
    OffDuration,
    PositiveDuration,
    Ratio,
    Size,
    Switch,
    Url,
)

_MS = 1_000_000
_S = 1_000_000_000
_MIB = 2**20


class ListenTls(Settings):
    """TLS on the data listener; both files are read again when the configuration is reloaded."""

    cert_file: str | None = Field(
        default=None, description="Certificate chain in PEM; with it `listen` speaks TLS."
    )
    key_file: str | None = Field(
        default=None, description="The certificate's private key in PEM, without a passphrase."
    )


class Admin(Settings):
    """The admin listener: probes, metrics and the API."""

    listen: Listen = Field(
        default="127.0.0.1:9464",
        description="Where the API, `/metrics`, `/healthz` and `/readyz` are served. Read at start only.",
    )
    token_file: str | None = Field(
        default=None,
        description="A file with the bearer token that readers of the API send. Without one only "
        "loopback clients are served (`/healthz`, `/readyz` and `/metrics` are open to all).",
    )
    write_token_file: str | None = Field(
        default=None,
        description="A file with the token that changes need; without it the reading token serves for both.",
    )
    token: SecretStr | None = Field(
        default=None,
        description="The token itself. Only by the variable `LEGATO_ADMIN__TOKEN`, never in a file.",
    )
    write_token: SecretStr | None = Field(
        default=None, description="The token for changes. Only by the variable `LEGATO_ADMIN__WRITE_TOKEN`."
    )


class BackendTls(Settings):
    """TLS towards a backend whose URL is https."""

    verify: Switch = Field(
        default=True, description="Check the server's certificate. Switch it off for tests only."
    )
    ca_file: str | None = Field(default=None, description="Trust these CAs (PEM) instead of the system's.")
    cert_file: str | None = Field(
        default=None, description="Client certificate in PEM, for servers that ask for one."
    )
    key_file: str | None = Field(default=None, description="The client certificate's private key in PEM.")
    server_name: str | None = Field(
        default=None, description="The name to send (SNI) and to check, where it is not the URL's host."
    )


class Backend(Settings):
    """One server, or all addresses of one name."""

    url: Url = Field(
        default="", description="Where the server is; a base path is put before the request's own."
    )
    uds: str | None = Field(
        default=None, description="Connect to this Unix socket; `url` then only gives the Host header."
    )
    resolve: PositiveDuration = Field(
        default=30 * _S, description="How often the name is resolved again; all its addresses are used."
    )
    max_connections: int = Field(
        default=10_000,
        ge=1,
        description="Connections at once per worker; a request beyond them is answered 503 at once.",
    )
    max_age: OffDuration = Field(default=0, description="A connection older than this is not used again.")
    transport: Literal["native", "httpx"] = Field(
        default="native",
        description="`httpx` takes httpx's own transport: slower, HTTP/2, a second opinion in an incident.",
    )
    host: Literal["auto", "preserve", "upstream"] = Field(
        default="auto",
        description="The Host header sent: `preserve` the client's, `upstream` the URL's; `auto` is "
        "`upstream` for https and `preserve` else.",
    )
    tls: BackendTls = Field(default=BackendTls(), description="TLS towards this backend.")


class Timeouts(Settings):
    """How long to wait; there is no limit on a whole request."""

    connect: OffDuration = Field(default=5 * _S, description="To connect to a backend, TLS included.")
    first_byte: OffDuration = Field(
        default=0, description="From the request's last byte to the response's first."
    )
    idle: OffDuration = Field(default=0, description="Between two reads of a response's body.")
    upstream_keepalive: OffDuration = Field(
        default=4 * _S,
        description="An idle connection to a backend is kept this long. Servers on uvicorn (vLLM) "
        "close theirs after 5 s: stay below.",
    )
    client_keepalive: OffDuration = Field(
        default=120 * _S, description="An idle client connection is kept this long."
    )
    client_head: OffDuration = Field(
        default=60 * _S,
        description="A client has this long to finish a request's head, and to go on with its body.",
    )
    drain_delay: Duration = Field(
        default=0,
        description="After SIGTERM: not ready, but still accepting. Some 15 s behind Kubernetes services.",
    )
    drain: Duration = Field(
        default=600 * _S, description="After that: how long streams in flight may take to finish."
    )


class Body(Settings):
    """Request bodies."""

    limit: Size = Field(
        default=64 * _MIB, description="A larger body is streamed through, and its model is not read."
    )
    budget: Size = Field(
        default=1024 * _MIB, description="Bytes of request bodies that a worker holds at once."
    )


class Stream(Settings):
    """Responses on their way to slow clients."""

    buffer: Size = Field(
        default=_MIB, description="What may wait for one client before reading its upstream pauses."
    )
    budget: Size = Field(default=256 * _MIB, description="The same over all streams of a worker.")


class RequestId(Settings):
    """A request identifier of ours."""

    header: Header = Field(
        default=None,
        description="Set this header upstream where the client sent none, and on the response "
        "(`x-request-id`). Off: no header is added.",
    )


class FluidRate(Settings):
    """The fluid token rate: how many tokens per second the server may promise."""

    quantile: Ratio = Field(
        default=0.99,
        gt=0,
        lt=1,
        description="The rate at which this share of the requests reaches its SLO's `fluidity`: 1 over this "
        "quantile of the least TBT deadline.",
    )


class Config(Settings):
    """Everything; ready to use."""

    listen: Listens = Field(
        default=("127.0.0.1:8080",), description="Where clients connect. Read at start only."
    )
    tls: ListenTls = Field(default=ListenTls(), description="TLS on `listen`.")
    admin: Admin = Field(default=Admin(), description="The admin listener.")
    workers: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Data processes; one serves thousands of streams. Read at start only.",
    )
    backends: dict[Name, Backend] = Field(
        default={}, description="The servers behind, by name. At least one."
    )
    routes: tuple[Route, ...] = Field(
        default=(), description="First match wins; without routes everything goes to the first backend."
    )
    slos: tuple[Slo, ...] = Field(
        default=(),
        description="First match wins. Where no rule matches everything, one named `default` with the "
        "defaults below is put at the end; without any rule it is the only one.",
    )
    exclude: Globs = Field(default=(), description="Paths that pass through unmeasured and unrecorded.")
    record_headers: dict[Name, HeaderName] = Field(
        default={"request_id": "x-request-id"},
        description="Request headers that go into records, logs and spans, never into metrics: tag to "
        "header. `request_id` fills the record's field of that name, the others its `tags`.",
    )
    fluid_rate: FluidRate = Field(default=FluidRate(), description="The fluid token rate.")
    trusted_proxies: Networks = Field(default=(), description="Clients whose `X-Forwarded-For` is believed.")
    forwarded_headers: Switch = Field(
        default=False, description="Add `X-Forwarded-For`, `-Proto` and `-Host` upstream."
    )
    request_id: RequestId = Field(default=RequestId(), description="A request identifier of ours.")
    timeouts: Timeouts = Field(default=Timeouts(), description="How long to wait.")
    body: Body = Field(default=Body(), description="Request bodies.")
    stream: Stream = Field(default=Stream(), description="Responses on their way to slow clients.")
    head_limit: Size = Field(
        default=64 * 1024, description="Bytes of a request's head; beyond it the answer is 431."
    )
    measure: Switch = Field(
        default=True, description="Score streams. Off: only forward, and record what needs no scoring."
    )
    bytes_per_token: float = Field(
        default=4.0,
        gt=0,
        le=64,
        description="Estimates the prompt's tokens before the server reports them: text bytes / this.",
    )
    arrivals_cap: int = Field(
        default=20_000,
        ge=100,
        le=1_000_000,
        description="Arrivals kept per stream; beyond it they are thinned, and the record says so.",
    )
    access_log: Log = Field(
        default="-",
        description="One JSON line per request: `-` is standard output. What cannot be written is dropped.",
    )
    trace_log: LogFile = Field(
        default=None, description="Arrivals of every scored stream, for `legato score`."
    )
    trace_log_max: Size = Field(
        default=100 * _MIB, description="The trace log is rotated (to `.1`) at this size."
    )
    ejection: Ejection = Field(
        default=Ejection(), description="Take a failing backend out of its splits for a while."
    )
    experiment: Experiment = Field(
        default=Experiment(), description="Compare two backends of a split, from the start on."
    )
    alerts: Alerts = Field(default=Alerts(), description="Tell somebody.")
    redis: Redis = Field(default=Redis(), description="One view of many hosts.")
    otel: Otel = Field(default=Otel(), description="OpenTelemetry: spans and metrics over OTLP.")
    watch: Switch = Field(default=False, description="Reload when the file changed, as SIGHUP does.")
    _notes: tuple[str, ...] = PrivateAttr(default=())

    @property
    def notes(self) -> tuple[str, ...]:
        """What was passed over when this was read (standard variables), one sentence each."""
        return self._notes

    def note(self, notes: tuple[str, ...]) -> None:
        """Keep what was passed over."""
        self._notes = notes
