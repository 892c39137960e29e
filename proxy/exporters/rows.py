"""One immutable ``Snapshot`` -> what is exported of it: the samples and histograms of each metric, guarded.

Every exporter renders these rows, so that ``/metrics`` and OTLP say the same.  Guards, each against a fault
that would make a reader reject everything: label values are cut at ``LABEL_LIMIT`` characters and made valid
UTF-8; groups that are then equal are summed; of more groups than ``GROUP_LIMIT`` the last are summed into
one; values outside a closed list are summed into ``other``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from proxy.control.snapshot import (
    BackendStats,
    Drift,
    Exemplar,
    ExperimentStats,
    GroupStats,
    Hist,
    RedisStats,
    SloStats,
    Snapshot,
    Watched,
)
from proxy.exporters.catalog import GROUP_LIMIT, OTHER
from proxy.exporters.metric import Metric
from proxy.exporters.vocabulary import Values
from proxy.link import GroupNow

#: Characters of a label value; a longer one is cut.
LABEL_LIMIT: Final = 128

Labels = tuple[str, ...]  # label values, clean, in the order of the metric's ``labels``
Sample = tuple[Labels, int | float]


@dataclass(frozen=True, slots=True)
class Row:
    """One exported group: its labels, what is settled, what is in flight."""

    labels: Labels
    stats: GroupStats
    now: GroupNow


@dataclass(frozen=True, slots=True)
class View:
    """What the samples are taken from: one for all metrics of a snapshot."""

    snapshot: Snapshot
    rows: list[Row]


def view_of(snapshot: Snapshot) -> View:
    """The groups by clean labels, at most ``GROUP_LIMIT``; settled groups first, then those only in flight.

    ``ValueError`` where groups that share their labels have different buckets.
    """
    return View(snapshot, _rows(snapshot))


def samples(metric: Metric, view: View) -> Iterable[Sample]:
    """The values of a counter or a gauge; nothing for what has no value."""
    return _SOURCES[metric.name](metric, view)


def histograms(metric: Metric, view: View) -> Iterator[tuple[Labels, Hist]]:
    """The buckets of a histogram."""
    if not metric.labels:
        yield (), _PROCESS_HISTOGRAMS[metric.name](view.snapshot)
        return
    for row in view.rows:
        hist = row.stats.hists.get(metric.name)
        if hist is not None:
            yield row.labels, hist


@lru_cache(maxsize=8 * GROUP_LIMIT)
def clean(value: str) -> str:
    """A label's value: cut, and valid UTF-8."""
    return value[:LABEL_LIMIT].encode("utf-8", "replace").decode()


# ---------------------------------------------------------------- groups


def _rows(snapshot: Snapshot) -> list[Row]:
    named = [_key(g.backend, g.model, g.slo) for g in snapshot.groups]
    named += [_key(n.backend, n.model, n.slo) for n in snapshot.now]
    kept = list(dict.fromkeys(named))
    rest: Labels = (OTHER, OTHER, OTHER)
    if len(kept) > GROUP_LIMIT:
        kept = [*[key for key in kept if key != rest][: GROUP_LIMIT - 1], rest]
    exported = set(kept)
    keys = iter(key if key in exported else rest for key in named)
    stats: dict[Labels, GroupStats] = {}
    for group in snapshot.groups:
        key = next(keys)
        stats[key] = _add_stats(stats[key], group) if key in stats else group
    now: dict[Labels, GroupNow] = {}
    for flight in snapshot.now:
        key = next(keys)
        now[key] = _add_now(now[key], flight) if key in now else flight
    empty = _empty_stats(snapshot.groups)
    nothing = GroupNow("", "", "", 0, 0, 0, 0)
    return [Row(key, stats.get(key, empty), now.get(key, nothing)) for key in kept]


@lru_cache(maxsize=4 * GROUP_LIMIT)
def _key(backend: str, model: str, slo: str) -> Labels:
    return clean(backend), clean(model), clean(slo)


def _empty_stats(groups: Iterable[GroupStats]) -> GroupStats:
    """A group that nothing was booked to yet, with the buckets that the others have."""
    hists = {
        name: Hist(hist.bounds, (0,) * len(hist.counts), 0.0)
        for group in groups
        for name, hist in group.hists.items()
    }
    return GroupStats("", "", "", {}, {}, {}, hists, {}, {}, None)


def _add_stats(one: GroupStats, two: GroupStats) -> GroupStats:
    return GroupStats(
        one.backend,
        one.model,
        one.slo,
        _add_counts(one.outcomes, two.outcomes),
        _add_counts(one.results, two.results),
        _add_counts(one.deadlines, two.deadlines),
        _add_hists(one.hists, two.hists),
        _add_counts(one.output_tokens, two.output_tokens),
        _add_counts(one.prompt_tokens, two.prompt_tokens),
        None,  # a quantile cannot be added
    )


def _add_counts(one: Mapping[str, int], two: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + two.get(name, 0) for name in {**one, **two}}


def _add_hists(one: Mapping[str, Hist], two: Mapping[str, Hist]) -> dict[str, Hist]:
    out = {**one, **two}
    for name in one.keys() & two.keys():
        a, b = one[name], two[name]
        if a.bounds != b.bounds:
            raise ValueError(f"{name}: two groups that share their labels have different buckets")
        counts = tuple(x + y for x, y in zip(a.counts, b.counts, strict=True))
        out[name] = Hist(a.bounds, counts, a.sum + b.sum, _latest(a.exemplars, b.exemplars))
    return out


def _latest(one: tuple[Exemplar, ...], two: tuple[Exemplar, ...]) -> tuple[Exemplar, ...]:
    """Per bucket the later of two."""
    by_bucket: dict[int, Exemplar] = {}
    for each in sorted((*one, *two), key=lambda exemplar: exemplar.at_unix_ns):
        by_bucket[each.bucket] = each
    return tuple(by_bucket[bucket] for bucket in sorted(by_bucket))


def _add_now(one: GroupNow, two: GroupNow) -> GroupNow:
    return GroupNow(
        one.backend,
        one.model,
        one.slo,
        one.in_flight + two.in_flight,
        one.overdue + two.overdue,
        one.missed + two.missed,
        max(one.worst_overdue_ns, two.worst_overdue_ns),
        one.tokens_per_s + two.tokens_per_s,
        one.awaited + two.awaited,
    )


# ---------------------------------------------------------------- samples

_Source = Callable[[Metric, View], Iterable[Sample]]


def _listed(values: Values, counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """A count for every value of a closed list, and ``other`` for what is in none."""
    for value in values:
        yield value, counts.get(value, 0)
    unknown = [count for value, count in counts.items() if value not in values]
    if unknown:
        yield OTHER, sum(unknown)


def _per_group_and(label: str, counts: Callable[[GroupStats], Mapping[str, int]]) -> _Source:
    def read(metric: Metric, view: View) -> Iterator[Sample]:
        values = metric.closed[label]
        for row in view.rows:
            for value, count in _listed(values, counts(row.stats)):
                yield (*row.labels, value), count

    return read


def _in_flight(number: Callable[[GroupNow], int]) -> _Source:
    return lambda _, view: [(row.labels, number(row.now)) for row in view.rows]


def _fluid_token_rate(_: Metric, view: View) -> Iterator[Sample]:
    for row in view.rows:
        if row.stats.fluid_token_rate is not None:
            yield row.labels, row.stats.fluid_token_rate


def _backend_connections(metric: Metric, view: View) -> Iterator[Sample]:
    for backend in view.snapshot.backends:
        for state in metric.closed["state"]:
            yield (clean(backend.name), state), _connections(backend, state)


def _connections(backend: BackendStats, state: str) -> int:
    return {"active": backend.active, "idle": backend.idle, "connecting": backend.connecting}[state]


def _drifts(view: View) -> Iterator[tuple[Labels, Drift]]:
    """By their labels, the first of those whose labels are the same."""
    seen: set[Labels] = set()
    for each in view.snapshot.drifts:
        labels = clean(each.backend), clean(each.model)
        if labels not in seen:
            seen.add(labels)
            yield labels, each


def _prefill_drift(_: Metric, view: View) -> Iterator[Sample]:
    for labels, each in _drifts(view):
        if each.prefill is not None:
            yield labels, each.prefill


def _tbt_drift(metric: Metric, view: View) -> Iterator[Sample]:
    for labels, each in _drifts(view):
        for at in metric.closed["at"]:
            if at in each.tbt:
                yield (*labels, at), each.tbt[at]


def _of_process(label: str, counts: Callable[[Snapshot], Mapping[str, int]]) -> _Source:
    def read(metric: Metric, view: View) -> Iterator[Sample]:
        for value, count in _listed(metric.closed[label], counts(view.snapshot)):
            yield (value,), count

    return read


def _one(value: Callable[[View], int | float]) -> _Source:
    return lambda _, view: [((), value(view))]


def _of_slo(value: Callable[[SloStats], float | None]) -> _Source:
    def read(_: Metric, view: View) -> Iterator[Sample]:
        for slo in view.snapshot.slos:
            found = value(slo)
            if found is not None:
                yield (clean(slo.name),), found

    return read


def _slo_watched(metric: Metric, view: View) -> Iterator[Sample]:
    for slo in view.snapshot.slos:
        for rule in metric.closed["rule"]:
            yield (clean(slo.name), rule), int(rule not in slo.unwatched)


def _of_redis(value: Callable[[RedisStats], int | float | None]) -> _Source:
    def read(_: Metric, view: View) -> Iterator[Sample]:
        redis = view.snapshot.redis
        told = None if redis is None else value(redis)
        if told is not None:
            yield (), told

    return read


def _by_both(one: str, other: str, counts: Callable[[Watched], Mapping[tuple[str, str], int]]) -> _Source:
    """Two closed labels: a value for every pair, and what is in neither list in ``other``."""

    def read(metric: Metric, view: View) -> Iterator[Sample]:
        told = counts(view.snapshot.watched)
        firsts = dict.fromkeys([*metric.closed[one], *(first for first, _ in told)])
        merged: dict[str, dict[str, int]] = {}
        for first in firsts:
            held = merged.setdefault(first if first in metric.closed[one] else OTHER, {})
            for (name, second), count in told.items():
                if name == first:
                    held[second] = held.get(second, 0) + count
        for first, held in merged.items():
            for second, count in _listed(metric.closed[other], held):
                yield (first, second), count

    return read


def _mirrored(metric: Metric, view: View) -> Iterator[Sample]:
    told = view.snapshot.watched.mirrored
    for backend in dict.fromkeys(backend for backend, _ in told):
        held = {result: count for (name, result), count in told.items() if name == backend}
        for result, count in _listed(metric.closed["result"], held):
            yield (clean(backend), result), count


def _of_arms(value: Callable[[ExperimentStats], int | float]) -> _Source:
    def read(_: Metric, view: View) -> Iterator[Sample]:
        for arm in view.snapshot.watched.experiments:
            yield (clean(arm.experiment), clean(arm.backend)), value(arm)

    return read


_SOURCES: Final[Mapping[str, _Source]] = {
    "legato_requests_total": _per_group_and("outcome", lambda g: g.outcomes),
    "legato_slo_requests_total": _per_group_and("result", lambda g: g.results),
    "legato_token_deadlines_total": _per_group_and("result", lambda g: g.deadlines),
    "legato_output_tokens_total": _per_group_and("source", lambda g: g.output_tokens),
    "legato_prompt_tokens_total": _per_group_and("source", lambda g: g.prompt_tokens),
    "legato_fluid_token_rate": _fluid_token_rate,
    "legato_requests_in_flight": _in_flight(lambda now: now.in_flight),
    "legato_requests_overdue": _in_flight(lambda now: now.overdue),
    "legato_in_flight_missed_deadlines": _in_flight(lambda now: now.missed),
    "legato_backend_up": lambda _, v: [
        ((clean(b.name),), int(b.up or b.name in v.snapshot.watched.not_down)) for b in v.snapshot.backends
    ],
    "legato_backend_connections": _backend_connections,
    "legato_ttft_target_seconds": _of_slo(lambda slo: slo.ttft_target_s),
    "legato_tbt_target_seconds": _of_slo(lambda slo: slo.tbt_target_s),
    "legato_slo_objective_ratio": _of_slo(lambda slo: slo.objective),
    "legato_slo_watched": _slo_watched,
    "legato_prefill_drift_ratio": _prefill_drift,
    "legato_tbt_drift_ratio": _tbt_drift,
    "legato_dropped_total": _of_process("what", lambda s: s.dropped),
    "legato_unmeasured_total": _of_process("reason", lambda s: s.unmeasured),
    "legato_export_failures_total": _of_process("exporter", lambda s: s.export_failures),
    "legato_redis_up": _of_redis(lambda redis: int(redis.up)),
    "legato_redis_clock_offset_seconds": _of_redis(lambda redis: redis.offset_s),
    "legato_redis_waiting_bytes": _of_redis(lambda redis: redis.waiting_bytes),
    "legato_backend_ejected": lambda _, v: [
        ((clean(name),), int(out)) for name, out in v.snapshot.watched.ejected.items()
    ],
    "legato_mirrored_requests_total": _mirrored,
    "legato_experiment_weight": _of_arms(lambda arm: arm.share),
    "legato_experiment_requests_total": _of_arms(lambda arm: arm.requests),
    "legato_alerts": _by_both("rule", "state", lambda watched: watched.alerts),
    "legato_notifications_total": _by_both("notifier", "result", lambda watched: watched.notified),
    "legato_config_reload_success": _one(lambda v: int(v.snapshot.reload_ok)),
    "legato_build_info": lambda _, v: [((clean(v.snapshot.version),), 1)],
    "legato_workers": _one(lambda v: v.snapshot.workers),
    "legato_draining": _one(lambda v: int(v.snapshot.draining)),
    "legato_groups": _one(lambda v: len(v.rows)),
    "legato_groups_limit": _one(lambda _: GROUP_LIMIT),
    "legato_counting_since_seconds": _one(lambda v: v.snapshot.since_unix_ns / 1e9),
}

_PROCESS_HISTOGRAMS: Final[Mapping[str, Callable[[Snapshot], Hist]]] = {
    "legato_forward_delay_seconds": lambda s: s.forward,
    "legato_event_loop_lag_seconds": lambda s: s.lag,
    "legato_client_blocked_seconds": lambda s: s.blocked,
}
