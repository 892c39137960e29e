"""The summary of the admin API: what was settled since the start, what is in flight, and our own share.

The same over a window: ``windowed.py``.

Pure: from the books to frozen structs.  Quantiles of ``*_s`` come from sketches (relative error at most 1%),
those of ``proxy`` from exported buckets (the bucket's upper bound).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

from msgspec import Meta, Struct

from proxy.control.core import Controller
from proxy.control.ledger import DURATION, FLUIDITY, NORMALIZED, TBT, TPOT, TTFT, GroupBook, bounds_of
from proxy.control.record import iso_time
from proxy.control.scope import DEGRADED, HERE, Degraded, Share
from proxy.control.settle import GroupKey
from proxy.control.snapshot import Hist, Snapshot
from proxy.link import GroupNow, SloSpec
from scoring.sketch import RELATIVE_ERROR, LogHistogram

Seconds = Annotated[float | None, Meta(description="seconds; null where nothing was observed")]


class Quantiles(Struct, frozen=True):
    """Quantiles over requests, or over gaps between tokens for ``tbt_s``."""

    p50: Seconds
    p90: Seconds
    p99: Seconds
    max: Seconds


class FluidityQuantiles(Struct, frozen=True):
    """The lower end matters: ``p1`` is what the worst of a hundred requests had."""

    p1: float | None
    p50: float | None


class InFlight(Struct, frozen=True):
    """The streams in flight now; a picture of the last beats, in no total."""

    requests: int
    overdue: Annotated[
        int,
        Meta(
            description="streams whose next token is overdue now; of an SLO that promises the duration only "
            "(`e2e`): those that take longer than that"
        ),
    ]
    missed_deadlines: Annotated[int, Meta(description="deadlines missed so far")]
    worst_overdue_s: float
    tokens_per_s: Annotated[
        float,
        Meta(description="tokens per second that streams brought between the last two beats, as counted"),
    ]


class GroupSummary(Struct, frozen=True, kw_only=True):
    """One (backend, model, slo), or everything (``null`` names)."""

    backend: str | None
    model: str | None
    slo: str | None
    requests: int
    outcomes: dict[str, int]
    results: dict[str, int]
    good_ratio: Annotated[float | None, Meta(description="good / (good + bad)")]
    objective: Annotated[
        float | None,
        Meta(description="the share of good requests that the SLO promises; null: none in force"),
    ]
    fluidity: FluidityQuantiles
    share_under_target: Annotated[
        float | None, Meta(description="share of scored streams below their target")
    ]
    deadlines: Annotated[dict[str, int], Meta(description="met, missed, suspect, client_blocked")]
    deadline_miss_rate: Annotated[float | None, Meta(description="missed / (met + missed)")]
    ttft_s: Quantiles
    tbt_s: Quantiles
    tpot_s: Quantiles
    normalized_latency_s: Quantiles
    duration_s: Quantiles
    output_tokens: int
    prompt_tokens: int
    fluid_token_rate: Annotated[
        float | None,
        Meta(description="tokens per second at which `fluid_rate.quantile` of requests (99%) stay fluid"),
    ]
    fluid_token_rate_reason: Annotated[str | None, Meta(description="why there is none")]
    in_flight: InFlight


class DelayShare(Struct, frozen=True):
    """A delay of our own: upper bounds of the buckets in which the quantiles fall."""

    count: int
    p50_s: float | None
    p99_s: float | None
    p999_s: float | None
    sum_s: float


class ProxySummary(Struct, frozen=True):
    """Is it us?  And are we blind?"""

    since: Annotated[str, Meta(description="delays, drops and blind spots are counted from here")]

    forward: DelayShare
    event_loop_lag: DelayShare
    client_blocked: DelayShare
    workers: int
    link_errors: Annotated[int, Meta(description="peers cut off the workers' link for nonsense")]
    dropped: dict[str, int]
    unmeasured: dict[str, int]
    export_failures: dict[str, int]
    draining: bool
    instance: Annotated[str, Meta(description="all of this is of this host alone, whatever the scope")]


class BackendSummary(Struct, frozen=True):
    """One backend's pools over all workers of the scope."""

    name: str
    up: bool
    active: int
    idle: int
    connecting: int
    addresses: int


class Summary(Struct, frozen=True, kw_only=True):
    """What ended within a stretch of time, what is in flight now, and our own share."""

    instance: str
    version: str
    since: Annotated[str, Meta(description="the start of the control process")]
    at: str
    scope: Annotated[str, Meta(description="`fleet`: all hosts; `host`: this one")]
    instances: Annotated[
        int,
        Meta(description="control processes that wrote within the window; one that was restarted is two"),
    ]
    degraded: Annotated[Degraded | None, Meta(description=DEGRADED)]
    asked_s: Annotated[float | None, Meta(description="`window`; null: everything since the start")]
    covered_from: Annotated[str, Meta(description="requests that ended from here ...")]
    covered_to: Annotated[
        str, Meta(description="... to here are in `total` and `groups`: all slots it touches")
    ]
    window_s: Annotated[float, Meta(description="from `covered_from` to `covered_to`")]
    relative_error: Annotated[float, Meta(description="quantiles are at most this far from the true ones")]
    total: GroupSummary
    groups: list[GroupSummary]
    backends: list[BackendSummary]
    proxy: ProxySummary


def summarise(controller: Controller) -> Summary:
    """The summary of this moment."""
    snapshot = controller.snapshot()
    now = {GroupKey(each.backend, each.model, each.slo): each for each in snapshot.now}
    books = controller.ledger.groups
    empty = GroupBook(bounds_of(controller.slos))
    total = GroupBook(bounds_of(controller.slos))
    for book in books.values():
        total.merge(book)
    keys = sorted(books.keys() | now.keys())
    promised, quantile = promises(controller), controller.ledger.rate_quantile
    return frame(
        controller,
        snapshot,
        asked_ns=None,
        covered=(snapshot.since_unix_ns, snapshot.at_unix_ns),
        relative_error=RELATIVE_ERROR,
        total=_group(None, total, snapshot.now, None, quantile),
        groups=[
            _group(
                key, books.get(key, empty), [now[key]] if key in now else [], promised.get(key.slo), quantile
            )
            for key in keys
        ],
    )


def promises(controller: Controller) -> dict[str, SloSpec]:
    """The SLOs in force, by name."""
    return {slo.name: slo for slo in controller.slos}


def why_no_rate(slo: SloSpec | None, rate: float | None, reason: str | None) -> str | None:
    """Why a group has no fluid token rate."""
    if rate is None and slo is not None and slo.duration_only:
        return "the SLO promises no token deadlines"
    return reason


def frame(
    controller: Controller,
    snapshot: Snapshot,
    *,
    asked_ns: int | None,
    covered: tuple[int, int],
    relative_error: float,
    total: GroupSummary,
    groups: list[GroupSummary],
    share: Share = HERE,
) -> Summary:
    """The summary around its groups; ``covered`` in unix nanoseconds."""
    from_ns, to_ns = covered
    return Summary(
        instance=snapshot.instance,
        version=snapshot.version,
        since=iso_time(snapshot.since_unix_ns),
        at=iso_time(snapshot.at_unix_ns),
        scope=share.scope,
        instances=share.instances,
        degraded=share.degraded,
        asked_s=None if asked_ns is None else asked_ns / 1e9,
        covered_from=iso_time(from_ns),
        covered_to=iso_time(to_ns),
        window_s=round((to_ns - from_ns) / 1e9, 3),
        relative_error=relative_error,
        total=total,
        groups=groups,
        backends=[
            BackendSummary(b.name, b.up, b.active, b.idle, b.connecting, b.addresses)
            for b in snapshot.backends
        ],
        proxy=_proxy(controller, snapshot, None if asked_ns is None else from_ns),
    )


def _group(
    key: GroupKey | None,
    book: GroupBook,
    now: Iterable[GroupNow],
    slo: SloSpec | None,
    rate_quantile: float,
) -> GroupSummary:
    rate, reason = book.rate(rate_quantile)
    sketches = book.sketches
    return GroupSummary(
        backend=None if key is None else key.backend,
        model=None if key is None else key.model,
        slo=None if key is None else key.slo,
        requests=sum(book.outcomes.values()),
        outcomes=dict(book.outcomes),
        results=dict(book.results),
        good_ratio=ratio(book.results["good"], book.results["good"] + book.results["bad"]),
        objective=None if slo is None else slo.objective,
        fluidity=FluidityQuantiles(*(rounded(sketches[FLUIDITY].quantile(q)) for q in (0.01, 0.5))),
        share_under_target=ratio(book.under_target, book.scored),
        deadlines=dict(book.deadlines),
        deadline_miss_rate=ratio(book.deadlines["missed"], book.deadlines["met"] + book.deadlines["missed"]),
        ttft_s=_quantiles(sketches[TTFT]),
        tbt_s=_quantiles(sketches[TBT]),
        tpot_s=_quantiles(sketches[TPOT]),
        normalized_latency_s=_quantiles(sketches[NORMALIZED]),
        duration_s=_quantiles(sketches[DURATION]),
        output_tokens=_tokens(book.output_tokens),
        prompt_tokens=_tokens(book.prompt_tokens),
        fluid_token_rate=rounded(rate),
        fluid_token_rate_reason=why_no_rate(slo, rate, reason),
        in_flight=in_flight(now),
    )


def in_flight(now: Iterable[GroupNow]) -> InFlight:
    """The beats' pictures of several groups in one."""
    held = list(now)
    return InFlight(
        requests=sum(each.in_flight for each in held),
        overdue=sum(each.overdue for each in held),
        missed_deadlines=sum(each.missed for each in held),
        worst_overdue_s=round(max((each.worst_overdue_ns for each in held), default=0) / 1e9, 6),
        tokens_per_s=round(sum(each.tokens_per_s for each in held), 1),
    )


def _quantiles(sketch: LogHistogram) -> Quantiles:
    return Quantiles(*(rounded(sketch.quantile(q)) for q in (0.5, 0.9, 0.99, 1.0)))


def _proxy(controller: Controller, snapshot: Snapshot, from_ns: int | None) -> ProxySummary:
    link_errors, since_ns = controller.link_errors, snapshot.since_unix_ns
    if from_ns is not None:
        snapshot, link_errors, since_ns = controller.shares.since(from_ns, snapshot, link_errors)
    return ProxySummary(
        since=iso_time(since_ns),
        forward=_delay(snapshot.forward),
        event_loop_lag=_delay(snapshot.lag),
        client_blocked=_delay(snapshot.blocked),
        workers=snapshot.workers,
        link_errors=link_errors,
        dropped=snapshot.dropped,
        unmeasured=snapshot.unmeasured,
        export_failures=snapshot.export_failures,
        draining=snapshot.draining,
        instance=snapshot.instance,
    )


def _delay(hist: Hist) -> DelayShare:
    return DelayShare(
        count=hist.count,
        p50_s=bucket_quantile(hist, 0.5),
        p99_s=bucket_quantile(hist, 0.99),
        p999_s=bucket_quantile(hist, 0.999),
        sum_s=round(hist.sum, 6),
    )


def bucket_quantile(hist: Hist, q: float) -> float | None:
    """The upper bound of the bucket that holds the q-quantile (the last bound where it lies beyond)."""
    wanted = q * hist.count
    if not hist.count:
        return None
    seen = 0
    for bound, counted in zip(hist.bounds, hist.counts, strict=False):
        seen += counted
        if seen >= wanted:
            return bound
    return hist.bounds[-1]


def ratio(part: int, whole: int) -> float | None:
    """As the summary tells it, ``None`` where there is nothing to divide by."""
    return round(part / whole, 6) if whole else None


def rounded(value: float | None) -> float | None:
    """To the sixth decimal: microseconds, where the unit is seconds."""
    return None if value is None else round(value, 6)


def _tokens(by_source: Mapping[str, int]) -> int:
    return sum(by_source.values())
