"""Upwards, from a worker to its control process: who it is, what ended, and once a second how it goes."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

#: Upper bounds, in nanoseconds, of the delay histograms in a ``Beat``: 2^14 (16 us) doubling to 2^32 (4.3 s).
DELAY_BOUNDS_NS: Final = tuple(1 << i for i in range(14, 33))

META_TOKENS_BITS: Final = 20
META_TOKENS_MAX: Final = (1 << META_TOKENS_BITS) - 1
META_BYTES_MAX: Final = (1 << 40) - 1

#: Sessions of a sticky split are told apart into so many groups (a power of two).
BUCKETS: Final = 512


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
    epoch: str = ""  # the split's ``SplitSpec.epoch`` when it decided
    bucket: int = 0  # of ``BUCKETS``: by bits of the session that do not decide the arm; drawn for ``no_key``


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
    mirror_of: str | None = None  # a copy for a shadow backend: the id of the request whose copy it is
    copied: str | None = None  # the shadow backend to which a copy of this request went

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


class Waiting(Struct, frozen=True, array_like=True):
    """A stream in flight that is overdue; ``missed``: deadlines of tokens so far."""

    id: str
    overdue_ns: int
    missed: int
    request_id: str | None = None
    trace_id: str | None = None


class GroupNow(Struct, array_like=True):
    """The streams in flight of one (backend, model, slo): a picture, replaced by the next, never added."""

    backend: str
    model: str
    slo: str
    in_flight: int
    overdue: int  # their next token is; where only the duration is promised: they take longer than that
    missed: int  # deadlines of tokens missed so far, the overdue token's included
    worst_overdue_ns: int
    tokens_per_s: float = 0.0  # as counted while they stream, since the picture before
    awaited: int = 0  # of those in flight: a deadline is running, so that they can be overdue
    worst: list[Waiting] = []  # a few of the overdue ones, the most overdue first; only a worker tells them


class BackendNow(Struct, array_like=True):
    """One backend's pool as this worker sees it."""

    name: str
    up: bool
    active: int
    idle: int
    connecting: int
    addresses: int


class Assigned(Struct, array_like=True):
    """What one split assigned to one backend in one epoch, counted as it was decided, by how
    (``Assignment.by``).

    ``buckets``: of ``session + no_key`` by ``Assignment.bucket``, ``BUCKETS`` numbers; empty where the split
    is not sticky, or without an epoch.
    """

    split: str
    backend: str
    epoch: str = ""
    session: int = 0
    draw: int = 0
    no_key: int = 0
    forced: int = 0
    buckets: list[int] = []


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
    mirror_dropped: dict[str, int] = {}  # shadow backend -> copies that were drawn and not begun


Up = Hello | FactsBatch | Beat
