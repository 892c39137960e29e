"""What readers of the control process see: one immutable picture of all that was counted.

Exporters, the admin API and (later) alerts render a ``Snapshot``; none of them touches the ledger.
Counters are cumulative since ``since_unix_ns`` (the start of this control process); what is in flight is a
picture of the last beats, never added to anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from proxy.link import GroupNow


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One request of a histogram's bucket whose trace was kept; ids in hex (32 and 16 digits)."""

    bucket: int  # its index in ``Hist.counts``
    value: float  # in the metric's unit
    at_unix_ns: int
    trace_id: str
    span_id: str


@dataclass(frozen=True, slots=True)
class Hist:
    """Counts per bucket, not cumulative: ``counts[i]`` holds values up to and including ``bounds[i]``, the
    last what lies beyond.

    ``bounds`` and ``sum`` are in the metric's own unit (seconds, or a ratio).  ``exemplars``: at most one a
    bucket, in the buckets' order.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    exemplars: tuple[Exemplar, ...] = ()

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class GroupStats:
    """Settled totals of one (backend, model, slo).  Histograms are keyed by their metric's name."""

    backend: str
    model: str
    slo: str
    outcomes: dict[str, int]
    results: dict[str, int]
    deadlines: dict[str, int]  # met, missed, suspect, client_blocked
    hists: dict[str, Hist]
    output_tokens: dict[str, int]  # by tokens_source
    prompt_tokens: dict[str, int]  # by prompt_tokens_source
    fluid_token_rate: float | None  # tokens per second; None: no value (see the summary for the reason)


@dataclass(frozen=True, slots=True)
class BackendStats:
    """One backend as all workers together see it now: ``up`` if any worker reaches it."""

    name: str
    up: bool
    active: int
    idle: int
    connecting: int
    addresses: int


@dataclass(frozen=True, slots=True)
class SloStats:
    """One SLO's promises; ``ttft_target_s`` is the smallest of one by prompt length, both targets ``None``
    where it promises the duration only.

    ``unwatched``: rules of alerts that page nobody for it.
    """

    name: str
    ttft_target_s: float | None
    tbt_target_s: float | None
    objective: float
    unwatched: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Drift:
    """What is learned now over what was frozen, of one backend and model: 1.0 is as fast, 2.0 twice as slow.

    ``prefill`` is ``None`` and ``tbt`` (keys ``p50``, ``p99``) lacks what either side cannot tell.
    """

    backend: str
    model: str
    prefill: float | None
    tbt: dict[str, float]

    @property
    def known(self) -> bool:
        """Whether there is any ratio."""
        return self.prefill is not None or bool(self.tbt)


@dataclass(frozen=True, slots=True)
class RedisStats:
    """How sharing through Redis stands: ``up``: the last write was acknowledged; ``offset_s``: Redis's clock
    minus ours (``None``: not known yet); ``waiting_bytes``: what is kept until Redis takes it."""

    up: bool
    offset_s: float | None
    waiting_bytes: int


@dataclass(frozen=True, slots=True)
class ExperimentStats:
    """One experiment's arm: its share of the traffic by the weights in force (0 to 1), and what it was
    assigned since this process counts."""

    experiment: str
    backend: str
    share: float
    requests: int


@dataclass(frozen=True, slots=True)
class Watched:
    """What those who watch the traffic say of themselves; counters since the start.

    ``alerts``: how many by (rule, state); ``notified``: by (notifier kind, result); ``mirrored``: by (shadow
    backend, result); ``ejected``: backends of splits; ``not_down``: backends of which it says
    nothing any more that the pools could not connect to them.
    """

    experiments: tuple[ExperimentStats, ...] = ()
    alerts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    notified: Mapping[tuple[str, str], int] = field(default_factory=dict)
    mirrored: Mapping[tuple[str, str], int] = field(default_factory=dict)
    ejected: Mapping[str, bool] = field(default_factory=dict)
    not_down: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one moment."""

    at_unix_ns: int
    since_unix_ns: int
    instance: str
    version: str
    groups: tuple[GroupStats, ...]
    now: tuple[GroupNow, ...]  # merged over workers, labels capped as those of ``groups``
    backends: tuple[BackendStats, ...]
    slos: tuple[SloStats, ...]
    forward: Hist  # seconds from a chunk's stamp to its handing over to the client's transport
    lag: Hist  # seconds that a worker's event loop ran late
    blocked: Hist  # seconds that reading an upstream was paused for a slow client
    dropped: dict[str, int] = field(default_factory=dict)
    unmeasured: dict[str, int] = field(default_factory=dict)
    export_failures: dict[str, int] = field(default_factory=dict)
    reload_ok: bool = True
    workers: int = 0
    draining: bool = False
    drifts: tuple[Drift, ...] = ()  # where there is a live curve and a frozen one
    redis: RedisStats | None = None  # None: not configured
    watched: Watched = field(default_factory=Watched)
