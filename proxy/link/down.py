"""Downwards, from the control process to its workers: the table, acknowledgements, what was learned."""

from __future__ import annotations

from msgspec import Struct


class BackendSpec(Struct, frozen=True, omit_defaults=True):
    """Where requests go.  ``url`` is http(s)://host[:port][/base] ; ``uds`` a socket path instead of TCP."""

    name: str
    url: str
    uds: str | None = None
    resolve_ns: int = 30_000_000_000
    max_connections: int = 10_000
    max_age_ns: int = 0  # 0: connections are not retired by age
    transport: str = "native"  # or "httpx"
    host: str = "auto"  # Host sent on: "preserve" the client's, "upstream": the URL's; auto: that for https
    tls_verify: bool = True
    tls_ca_file: str | None = None
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    tls_server_name: str | None = None


class Match(Struct, frozen=True, omit_defaults=True):
    """Every given condition must hold; globs as in ``fnmatch``; header names in lower case.

    ``prompt_tokens``: the estimated prompt, least and most (``None``: no most), both included; SLOs only.
    """

    path: str | None = None
    model: str | None = None
    header: dict[str, str] = {}
    prompt_tokens: tuple[int, int | None] | None = None


class SplitSpec(Struct, frozen=True, omit_defaults=True):
    """Several backends behind one route: each gets its weight's share of the sum.

    ``sticky``: what a session is told by: ``("header", name in lower case)``, ``("cookie", name)``,
    ``("field", key of the body's top level)``, ``("client", "address")``; ``None``: each request is drawn.
    """

    name: str  # what its assignments are counted under
    arms: tuple[tuple[str, int], ...]  # (backend, weight >= 0), by name; the sum is more than 0
    seed: str  # of the keyed hash: the same seed, arms and weights assign alike wherever they are
    sticky: tuple[str, str] | None = None
    force: str | None = None  # a header (lower case) that names the backend to take
    failover: bool = False  # a backend that cannot be connected to: another one is taken
    epoch: str = ""  # names these weights in a running experiment; "": there is none, and none is counted


class MirrorSpec(Struct, frozen=True, omit_defaults=True):
    """A share of a route's requests is also sent to a shadow backend; what it answers is measured only."""

    backend: str
    ratio: float  # 0 to 1
    most: int = 64  # copies in flight at once, per worker
    body_limit: int = 1024 * 1024  # a request with a larger body is not copied
    timeout_ns: int = 300_000_000_000  # a copy that takes longer is given up
    leave_out: tuple[str, ...] = ()  # headers (lower case) that copies do not carry


class RouteSpec(Struct, frozen=True, omit_defaults=True):
    """First match wins; a table without routes sends everything to its first backend."""

    match: Match
    backend: str  # with a split: the one of the most weight
    dialect: str | None = None  # its name; None: told by the path and the first event
    split: SplitSpec | None = None
    mirror: MirrorSpec | None = None


class LearnedCurve(Struct, frozen=True, array_like=True):
    """What was learned of one backend's prefill for one model (``""``: requests that name none).

    ``points``: ((prompt_tokens, ns), ...) sorted, at least one; without slack.
    """

    backend: str
    model: str
    points: tuple[tuple[int, int], ...]


class SloSpec(Struct, frozen=True, omit_defaults=True):
    """First match wins.  The first token's deadline is, by the first of these that there is:

    the one of ``curves`` for the request's backend and model, later by ``slack_ns``; ``quadratic``: (ns, and
    per prompt token and per its square femtoseconds); ``ttft_points``: ((prompt_tokens, ttft_ns), ...)
    sorted, at least one: a constant or table, a learned curve's fallback, or what a quadratic gives at 0.
    """

    name: str
    match: Match
    ttft_points: tuple[tuple[int, int], ...]
    tbt_ns: int
    target: float = 0.9
    objective: float = 0.99
    e2e_ns: int | None = None
    quadratic: tuple[int, int, int] | None = None
    curves: tuple[LearnedCurve, ...] = ()
    slack_ns: int = 0  # of ``curves``
    live: bool = False  # learned curves are shown beside it, and judge nothing: the fallback is promised
    pages: bool = True  # False: shown and compared, but nobody is woken by it
    duration_only: bool = False  # ``e2e`` is all that is promised: no token is owed a deadline


class Timeouts(Struct, frozen=True, omit_defaults=True):
    """Durations in nanoseconds; 0 means off."""

    connect_ns: int = 5_000_000_000
    first_byte_ns: int = 0
    idle_ns: int = 0
    upstream_keepalive_ns: int = 4_000_000_000
    client_keepalive_ns: int = 120_000_000_000
    client_head_ns: int = 60_000_000_000  # a client that connects and does not finish its head or body
    drain_delay_ns: int = 0
    drain_ns: int = 600_000_000_000


class Tracing(Struct, frozen=True, omit_defaults=True):
    """Requests take part in traces (W3C Trace Context).

    ``ratio``: share of the traces sampled where the client has not decided; ``propagate``: tell the upstream.
    """

    ratio: float
    propagate: bool = True


class Table(Struct, frozen=True, tag=True):
    """All that a worker needs to know; replaced whole, never mutated (protocol: the first frame down)."""

    version: int
    backends: tuple[BackendSpec, ...]
    routes: tuple[RouteSpec, ...]
    slos: tuple[SloSpec, ...]  # never empty; the last one matches everything
    timeouts: Timeouts = Timeouts()
    exclude: tuple[str, ...] = ()  # path globs that pass unmeasured and unrecorded
    record_headers: dict[str, str] = {}  # tag -> header name (lower case); "request_id" is one of them
    trusted_proxies: tuple[str, ...] = ()
    forwarded_headers: bool = False  # add X-Forwarded-For/-Proto/-Host upstream
    request_id_header: str | None = None  # set this header upstream (when absent) and on the response
    body_limit: int = 64 * 1024 * 1024  # beyond it a request body is streamed instead of held
    body_budget: int = 1024 * 1024 * 1024  # bytes of request bodies held by this worker at once
    stream_buffer: int = 1024 * 1024  # bytes that wait for one slow client before its upstream pauses
    stream_budget: int = 256 * 1024 * 1024  # the same over all streams of this worker
    head_limit: int = 64 * 1024  # bytes of a request head; beyond it 431
    bytes_per_token: float = 4.0
    measure: bool = True
    arrivals_cap: int = 20_000  # events kept per stream; beyond it they are thinned
    tls_cert_file: str | None = None  # the data listener's own certificate
    tls_key_file: str | None = None
    tracing: Tracing | None = None  # None: no ids are drawn and no header is touched


class Ack(Struct, frozen=True, tag=True):
    """Every record numbered up to and including ``seq`` is settled."""

    seq: int


class PromptModel(Struct, frozen=True, array_like=True):
    """How long one model's prompts are: ``fixed_tokens + text_bytes / bytes_per_token``."""

    bytes_per_token: float
    fixed_tokens: float = 0.0  # what a chat template adds to any prompt

    def tokens(self, text_bytes: int) -> int:
        """The tokens of a prompt with this many bytes of text (no text: none)."""
        return round(self.fixed_tokens + text_bytes / self.bytes_per_token) if text_bytes else 0


class PromptModels(Struct, frozen=True, tag=True):
    """What was learned of prompt lengths, by model as clients name it (``""``: they name none).

    All of it after a hello, later what has changed; a model that is not in it stays as it was.
    """

    models: dict[str, PromptModel]


Down = Table | Ack | PromptModels
