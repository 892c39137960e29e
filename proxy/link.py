"""The link between a data worker and the control process: messages, frames, bounds.

One Unix stream socket per worker carries length-prefixed msgpack frames (msgspec).  Upwards go the
facts of finished requests and, once a second, a beat; downwards go the table (routes, deadlines,
limits) and acknowledgements.  All times are integer nanoseconds: ``*_unix_ns`` of the wall clock,
other ``*_ns`` of the worker's monotonic clock, or a duration where the name says so.

A frame is a 4-byte big-endian length and that many bytes of msgpack.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec
from msgspec import Struct

PROTOCOL: Final = 1
MAX_FRAME: Final = 64 * 1024 * 1024
_HEAD: Final = struct.Struct(">I")


# ---------------------------------------------------------------- downwards: control -> worker


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


class RouteSpec(Struct, frozen=True, omit_defaults=True):
    """First match wins; a table without routes sends everything to its first backend."""

    match: Match
    backend: str  # with a split: the one of the most weight
    dialect: str | None = None  # its name; None: told by the path and the first event
    split: SplitSpec | None = None


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


# ---------------------------------------------------------------- upwards: worker -> control


class Hello(Struct, frozen=True, tag=True):
    """First frame up on every connection.

    ``acked`` records were settled by control processes before this connection: a new control process
    has lost their sums.  ``dropped`` records never arrived anywhere (the bounded buffer was full).
    """

    protocol: int
    worker: int
    pid: int
    incarnation: str
    next_seq: int
    acked: int
    dropped: int


class Usage(Struct, frozen=True, array_like=True):
    """Token counts as the server reported them; ``None`` where it said nothing."""

    prompt: int | None = None
    output: int | None = None
    cached: int | None = None
    reasoning: int | None = None


class TraceIds(Struct, frozen=True, array_like=True):
    """A request's place in its trace (``Facts.trace_id``): span ids of 16 hex digits, drawn at the start.

    ``parent`` is the client's span, ``server`` ours of the whole request, ``client`` ours of the request sent
    upstream, a child of ``server``.  ``theirs``: the client decided on ``sampled``, else the ratio did.
    """

    server: str
    client: str
    parent: str | None = None
    sampled: bool = False
    theirs: bool = False
    state: str | None = None  # tracestate, as the client sent it


class Asked(Struct, frozen=True, array_like=True):
    """What a request asked of sampling, where it said so."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None


class ChoiceScore(Struct, frozen=True, array_like=True):
    """One choice's score as the tap kept it while it streamed: exact also where arrivals were thinned.

    Durations in nanoseconds; ``*_at_ns`` relative to t = 0.  Deadlines that passed after the last token (a
    censored end) are not in it: at ``end_ns`` (relative to t = 0) they are
    ``(end_ns - due_ns) // tbt_ns + 1`` more if ``end_ns > due_ns``.
    """

    tokens: int
    late: int  # tokens that came after their deadline; met = tokens - late
    missed: int
    late_ns: int  # the sum over late tokens
    due_ns: int  # the next token's deadline
    worst_at_ns: int = 0  # the stall with the most lateness: the start of its gap, how late, deadlines missed
    worst_late_ns: int = 0
    worst_missed: int = 0
    longest_gap_ns: int = 0  # between two arrivals; 0 unless arrivals were thinned (the arrivals tell it)
    finished: bool = False  # its finish reason went by: a cut after that finds nothing owed


class Stream(Struct, array_like=True):
    """What the tap saw of one response.  ``*_ns`` are monotonic stamps, ``None``: never happened.

    ``choices``: per choice a packed little-endian int64 array ``[at_ns, meta, at_ns, meta, ...]`` with
    ``at_ns`` relative to t = 0 and ``meta = tokens | content_bytes << 20`` (both saturating).
    """

    dialect: str
    choices: tuple[bytes, ...] = ()
    events: int = 0  # events that carried output
    tokens: int = 0  # tokens counted while streaming
    tokens_source: str = "events"  # token_ids | logprobs | running_usage | events
    usage: Usage = Usage()
    finish_reason: str | None = None
    finished: bool = False  # the dialect's own end (finish reason, completion event) was seen
    error: str | None = None  # an error event's type or code, never its message
    response_id: str | None = None
    first_event_ns: int | None = None
    first_reasoning_ns: int | None = None
    first_answer_ns: int | None = None
    first_tool_ns: int | None = None
    thinned: bool = False
    unmeasured: str | None = None  # closed list: exporters/catalog.py
    scores: tuple[ChoiceScore, ...] = ()  # in the order of ``choices``, by the deadlines that were applied
    broken: int = 0  # events that could not be read, skipped (not output as far as is known)
    several: bool = False  # some event told more than one token (token ids, logprobs, running usage)
    reported: tuple[int, ...] = ()  # per choice, in the order of ``choices``: the server's own count, or -1
    model: str | None = None  # as the response names it, cut to a bound


class Assignment(Struct, frozen=True, array_like=True):
    """How a split decided: ``Facts.backend`` is where the request went, ``backend`` where it was to go.

    The two differ only by failover: then ``failed`` says why ``backend`` could not be reached.  ``by``:
    ``session`` | ``draw`` (the route is not sticky) | ``no_key`` (it is, and the request had no key: drawn) |
    ``forced`` (by the route's header; no assignment, as far as statistics go).
    """

    split: str  # its name
    backend: str
    by: str
    session: int | None = None  # 64 bits of a keyed hash of the session's key; None unless by ``session``
    failed: str | None = None  # our own word for what came of connecting, as in ``Facts.error``


class Facts(Struct, array_like=True):
    """Everything known about one finished request.

    ``end``: how it ended, seen from the wire:
    ``complete`` | ``truncated`` (upstream died in mid-body) | ``client_left`` | ``connect_failed`` |
    ``no_response`` (died before a head) | ``bad_response`` (nonsense instead of HTTP) | ``timeout_connect`` |
    ``timeout_first_byte`` | ``timeout_idle`` | ``pool_full`` | ``refused`` (our own 4xx) | ``self`` (ours).
    t = 0 is ``sent_ns`` (``None``: nothing was sent upstream; deadlines then count from ``received_ns``).
    """

    seq: int
    id: str
    received_unix_ns: int
    received_ns: int
    end_ns: int
    end: str
    method: str
    path: str
    status: int | None  # what the client was told, None if nothing
    streamed: bool  # the response was an event stream
    stream_asked: bool  # the request asked for one
    model: str | None
    backend: str | None
    slo: str
    ttft_target_ns: int
    tbt_target_ns: int
    prompt_tokens_estimated: int
    choices_asked: int = 1
    request_id: str | None = None
    tags: dict[str, str] = {}
    upstream_addr: str | None = None
    error: str | None = None  # our own words, from a closed vocabulary
    sent_ns: int | None = None
    pool_wait_ns: int = 0
    connect_ns: int = 0
    head_ns: int | None = None
    first_byte_ns: int | None = None
    stream: Stream | None = None  # None: not measured
    blocked: tuple[tuple[int, int], ...] = ()  # [from_ns, to_ns]: not read, for a slow client
    forward_p99_ns: int = 0  # stamp -> handed to the client's transport
    loop_lag_max_ns: int = 0
    attempts: int = 1
    trace_id: str | None = None
    target: float = 0.9  # the fluidity to reach, as promised at the start; so is ``e2e_ns``
    e2e_ns: int | None = None
    lags: tuple[tuple[int, int], ...] = ()  # [from_ns, to_ns]: our own loop was late, the longest spans
    prompt_text_bytes: int = 0  # 0: unknown, or the prompt was not text alone
    connected_ns: int | None = None  # the connection that carried the request was ready (a kept one: taken)
    trace: TraceIds | None = None  # None: tracing is not configured
    asked: Asked | None = None  # only where tracing is configured
    assignment: Assignment | None = None  # None: no split decided

    @property
    def assigned(self) -> str | None:
        """The backend that the request was to go to: ``backend``, but for failover."""
        return self.backend if self.assignment is None else self.assignment.backend

    @property
    def session(self) -> int | None:
        """Its session, as a keyed hash of 64 bits; ``None``: it has none that is known."""
        return None if self.assignment is None else self.assignment.session

    @property
    def forced(self) -> bool:
        """The client chose the backend."""
        return self.assignment is not None and self.assignment.by == "forced"


class FactsBatch(Struct, tag=True):
    """Finished requests, oldest first, ``seq`` ascending."""

    facts: list[Facts]


class GroupNow(Struct, array_like=True):
    """The streams in flight of one (backend, model, slo): a picture, replaced by the next, never added."""

    backend: str
    model: str
    slo: str
    in_flight: int
    overdue: int
    missed: int  # deadlines missed so far, the overdue token's included
    worst_overdue_ns: int
    tokens_per_s: float = 0.0  # as counted while they stream, since the picture before


class BackendNow(Struct, array_like=True):
    """One backend's pool as this worker sees it."""

    name: str
    up: bool
    active: int
    idle: int
    connecting: int
    addresses: int


class Assigned(Struct, array_like=True):
    """What one split assigned to one backend, counted as it was decided, by how (``Assignment.by``).

    ``before``: how many of ``session + draw + no_key`` were assigned when the split's present weights began.
    """

    split: str
    backend: str
    session: int = 0
    draw: int = 0
    no_key: int = 0
    forced: int = 0
    before: int = 0


class Beat(Struct, tag=True):
    """Once a second.  Counters are cumulative since the worker's start; histograms are counts per bucket
    of ``DELAY_BOUNDS_NS`` (one more for what lies beyond) and the sum in nanoseconds."""

    at_unix_ns: int
    groups: list[GroupNow]
    backends: list[BackendNow]
    clients: int
    forward: list[int]
    forward_sum_ns: int
    lag: list[int]
    lag_sum_ns: int
    blocked: list[int]
    blocked_sum_ns: int
    dropped: dict[str, int]  # what -> count (closed list: exporters/catalog.py)
    table_version: int
    measuring: bool
    draining: bool
    rss_bytes: int
    assigned: list[Assigned] = []  # by split and backend; recorded requests only, all of which end as facts


Up = Hello | FactsBatch | Beat

#: Upper bounds, in nanoseconds, of the delay histograms in a ``Beat``: 2^14 (16 us) doubling to 2^32 (4.3 s).
DELAY_BOUNDS_NS: Final = tuple(1 << i for i in range(14, 33))

META_TOKENS_BITS: Final = 20
META_TOKENS_MAX: Final = (1 << META_TOKENS_BITS) - 1
META_BYTES_MAX: Final = (1 << 40) - 1


class LinkError(Exception):
    """The peer sent something that is no frame of this protocol."""


class Frames:
    """Incremental decoder of frames: ``feed(bytes) -> list[payload]``; raises ``LinkError`` on nonsense."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads that are complete now."""
        buffer = self._buffer
        buffer += data
        out: list[bytes] = []
        at = 0
        while len(buffer) - at >= 4:
            (size,) = _HEAD.unpack_from(buffer, at)
            if size > MAX_FRAME:
                raise LinkError(f"frame of {size} bytes, at most {MAX_FRAME} are allowed")
            if len(buffer) - at - 4 < size:
                break
            out.append(bytes(buffer[at + 4 : at + 4 + size]))
            at += 4 + size
        if at:
            del buffer[:at]
        return out


_encoder = msgspec.msgpack.Encoder()
_up: msgspec.msgpack.Decoder[Up] = msgspec.msgpack.Decoder(Up)
_down: msgspec.msgpack.Decoder[Down] = msgspec.msgpack.Decoder(Down)


def frame(message: Up | Down) -> bytes:
    """Encode one message with its length."""
    payload = _encoder.encode(message)
    return _HEAD.pack(len(payload)) + payload


def decode_up(payload: bytes) -> Up:
    """Decode what a worker sent; ``LinkError`` if it is no message."""
    try:
        return _up.decode(payload)
    except msgspec.MsgspecError as error:
        raise LinkError(str(error)) from error


def decode_down(payload: bytes) -> Down:
    """Decode what the control process sent; ``LinkError`` if it is no message."""
    try:
        return _down.decode(payload)
    except msgspec.MsgspecError as error:
        raise LinkError(str(error)) from error
