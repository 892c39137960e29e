"""``/metrics``: one immutable ``Snapshot`` as Prometheus text or OpenMetrics.

The text is built here, from label strings that are made once per group, since ``prometheus_client``'s own
exposition of the same series takes several times as long (64 groups are about 11,000 series) and the control
process renders between other duties.  What it writes is held against that library's parsers by the tests.

Guards, each against a fault that would make a scraper reject everything: label values are cut at
``LABEL_LIMIT`` characters and made valid UTF-8; groups that are then equal are summed; of more groups than
``GROUP_LIMIT`` the last are summed into one; values outside a closed list are summed into ``other``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Final

from proxy.control.snapshot import BackendStats, Drift, GroupStats, Hist, Snapshot
from proxy.exporters.catalog import CATALOG, GROUP_LIMIT, OTHER, Metric
from proxy.exporters.vocabulary import Values
from proxy.link import GroupNow

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
#: Characters of a label value; a longer one is cut.
LABEL_LIMIT: Final = 128

_Key = tuple[str, str, str]  # backend, model, slo
_Sample = tuple[str, int | float]  # rendered labels with their braces (or ""), value


def render(snapshot: Snapshot, accept: str | None) -> tuple[bytes, str]:
    """The exposition and its content type, chosen by the request's ``Accept`` (absent: Prometheus text)."""
    openmetrics = _wants_openmetrics(accept)
    view = _View(snapshot, _rows(snapshot))
    out: list[str] = []
    for metric in CATALOG:
        if metric.exported:
            out.append(_head(metric, openmetrics))
            if metric.kind == "histogram":
                for labels, hist in _histograms(metric, view):
                    _add_histogram(out, metric.name, labels, hist)
            else:
                name = metric.name
                samples = _SOURCES[name](metric, view)
                out += [f"{name}{labels} {_number(value)}\n" for labels, value in samples]
    if openmetrics:
        out.append("# EOF\n")
    return "".join(out).encode(), OPENMETRICS if openmetrics else TEXT


# ---------------------------------------------------------------- negotiation


def _wants_openmetrics(accept: str | None) -> bool:
    """Whether OpenMetrics 1.0 is accepted and not liked less than the classic text."""
    openmetrics = text = 0.0
    for item in (accept or "").lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        given = dict(pair for p in parameters if len(pair := p.replace(" ", "").split("=", 1)) == 2)
        quality = _quality(given.get("q", "1"))
        if kind == "application/openmetrics-text" and given.get("version", "1.0.0") == "1.0.0":
            openmetrics = max(openmetrics, quality)
        elif kind == "text/plain" and given.get("version", "0.0.4") == "0.0.4":
            text = max(text, quality)
    return openmetrics > 0 and openmetrics >= text


def _quality(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0


# ---------------------------------------------------------------- groups


@dataclass(frozen=True, slots=True)
class _Row:
    """One exported group: its labels without braces, what is settled, what is in flight."""

    labels: str
    stats: GroupStats
    now: GroupNow


@dataclass(frozen=True, slots=True)
class _View:
    """What the samples are taken from."""

    snapshot: Snapshot
    rows: list[_Row]


def _rows(snapshot: Snapshot) -> list[_Row]:
    """The groups by clean key, at most ``GROUP_LIMIT``; settled groups first, then those only in flight."""
    named = [_key(g.backend, g.model, g.slo) for g in snapshot.groups]
    named += [_key(n.backend, n.model, n.slo) for n in snapshot.now]
    kept = list(dict.fromkeys(named))
    rest: _Key = (OTHER, OTHER, OTHER)
    if len(kept) > GROUP_LIMIT:
        kept = [*[key for key in kept if key != rest][: GROUP_LIMIT - 1], rest]
    exported = set(kept)
    keys = iter(key if key in exported else rest for key in named)
    stats: dict[_Key, GroupStats] = {}
    for group in snapshot.groups:
        key = next(keys)
        stats[key] = _add_stats(stats[key], group) if key in stats else group
    now: dict[_Key, GroupNow] = {}
    for flight in snapshot.now:
        key = next(keys)
        now[key] = _add_now(now[key], flight) if key in now else flight
    empty = _empty_stats(snapshot.groups)
    nothing = GroupNow("", "", "", 0, 0, 0, 0)
    return [_Row(_group_labels(key), stats.get(key, empty), now.get(key, nothing)) for key in kept]


@lru_cache(maxsize=4 * GROUP_LIMIT)
def _key(backend: str, model: str, slo: str) -> _Key:
    return _clean(backend), _clean(model), _clean(slo)


def _clean(value: str) -> str:
    return value[:LABEL_LIMIT].encode("utf-8", "replace").decode()


@lru_cache(maxsize=4 * GROUP_LIMIT)
def _group_labels(key: _Key) -> str:
    return ",".join(_pair(name, value) for name, value in zip(("backend", "model", "slo"), key, strict=True))


def _pair(name: str, value: str) -> str:
    escaped = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'{name}="{escaped}"'


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
        out[name] = Hist(a.bounds, counts, a.sum + b.sum)
    return out


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
    )


# ---------------------------------------------------------------- samples


def _labels(**values: str) -> str:
    return "{" + ",".join(_pair(name, _clean(value)) for name, value in values.items()) + "}"


def _listed(values: Values, counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """A count for every value of a closed list, and ``other`` for what is in none."""
    for value in values:
        yield value, counts.get(value, 0)
    unknown = [count for value, count in counts.items() if value not in values]
    if unknown:
        yield OTHER, sum(unknown)


_Source = Callable[[Metric, _View], Iterable[_Sample]]


def _per_group_and(label: str, counts: Callable[[GroupStats], Mapping[str, int]]) -> _Source:
    def samples(metric: Metric, view: _View) -> Iterator[_Sample]:
        values = metric.closed[label]
        for row in view.rows:
            for value, count in _listed(values, counts(row.stats)):
                yield f'{{{row.labels},{label}="{value}"}}', count

    return samples


def _in_flight(number: Callable[[GroupNow], int]) -> _Source:
    return lambda _, view: [(f"{{{row.labels}}}", number(row.now)) for row in view.rows]


def _fluid_token_rate(_: Metric, view: _View) -> Iterator[_Sample]:
    for row in view.rows:
        if row.stats.fluid_token_rate is not None:
            yield f"{{{row.labels}}}", row.stats.fluid_token_rate


def _backend_connections(metric: Metric, view: _View) -> Iterator[_Sample]:
    for backend in view.snapshot.backends:
        for state in metric.closed["state"]:
            yield _labels(backend=backend.name, state=state), _connections(backend, state)


def _connections(backend: BackendStats, state: str) -> int:
    return {"active": backend.active, "idle": backend.idle, "connecting": backend.connecting}[state]


def _drifts(view: _View) -> Iterator[tuple[str, Drift]]:
    """By their labels without braces, the first of those whose labels are the same."""
    seen: set[str] = set()
    for each in view.snapshot.drifts:
        labels = f"{_pair('backend', _clean(each.backend))},{_pair('model', _clean(each.model))}"
        if labels not in seen:
            seen.add(labels)
            yield labels, each


def _prefill_drift(_: Metric, view: _View) -> Iterator[_Sample]:
    for labels, each in _drifts(view):
        if each.prefill is not None:
            yield f"{{{labels}}}", each.prefill


def _tbt_drift(metric: Metric, view: _View) -> Iterator[_Sample]:
    for labels, each in _drifts(view):
        for at in metric.closed["at"]:
            if at in each.tbt:
                yield f'{{{labels},at="{at}"}}', each.tbt[at]


def _of_process(label: str, counts: Callable[[Snapshot], Mapping[str, int]]) -> _Source:
    def samples(metric: Metric, view: _View) -> Iterator[_Sample]:
        for value, count in _listed(metric.closed[label], counts(view.snapshot)):
            yield _labels(**{label: value}), count

    return samples


def _one(value: Callable[[_View], int | float]) -> _Source:
    return lambda _, view: [("", value(view))]


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
    "legato_backend_up": lambda _, v: [(_labels(backend=b.name), int(b.up)) for b in v.snapshot.backends],
    "legato_backend_connections": _backend_connections,
    "legato_ttft_target_seconds": lambda _, v: [
        (_labels(slo=slo.name), slo.ttft_target_s) for slo in v.snapshot.slos
    ],
    "legato_tbt_target_seconds": lambda _, v: [
        (_labels(slo=slo.name), slo.tbt_target_s) for slo in v.snapshot.slos
    ],
    "legato_slo_objective_ratio": lambda _, v: [
        (_labels(slo=slo.name), slo.objective) for slo in v.snapshot.slos
    ],
    "legato_prefill_drift_ratio": _prefill_drift,
    "legato_tbt_drift_ratio": _tbt_drift,
    "legato_dropped_total": _of_process("what", lambda s: s.dropped),
    "legato_unmeasured_total": _of_process("reason", lambda s: s.unmeasured),
    "legato_export_failures_total": _of_process("exporter", lambda s: s.export_failures),
    "legato_config_reload_success": _one(lambda v: int(v.snapshot.reload_ok)),
    "legato_build_info": lambda _, v: [(_labels(version=v.snapshot.version), 1)],
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


def _histograms(metric: Metric, view: _View) -> Iterator[tuple[str, Hist]]:
    """A histogram's label strings (without braces) and buckets."""
    if not metric.labels:
        yield "", _PROCESS_HISTOGRAMS[metric.name](view.snapshot)
        return
    for row in view.rows:
        hist = row.stats.hists.get(metric.name)
        if hist is not None:
            yield row.labels, hist


# ---------------------------------------------------------------- text


@lru_cache(maxsize=2 * len(CATALOG))
def _head(metric: Metric, openmetrics: bool) -> str:
    family = metric.name
    if openmetrics and metric.kind == "counter":
        family = family.removesuffix("_total")
    unit = f"# UNIT {family} {metric.unit}\n" if openmetrics and family.endswith(f"_{metric.unit}") else ""
    return f"# HELP {family} {metric.help}\n# TYPE {family} {metric.kind}\n{unit}"


@lru_cache(maxsize=256)
def _le(bounds: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(f'le="{_number(bound)}"}} ' for bound in (*bounds, math.inf))


def _add_histogram(out: list[str], name: str, labels: str, hist: Hist) -> None:
    start = f"{name}_bucket{{{labels}," if labels else f"{name}_bucket{{"
    totals = list(accumulate(hist.counts))
    out += [f"{start}{le}{total}\n" for le, total in zip(_le(hist.bounds), totals, strict=True)]
    braced = f"{{{labels}}}" if labels else ""
    out.append(f"{name}_count{braced} {totals[-1]}\n{name}_sum{braced} {_number(hist.sum)}\n")


def _number(value: int | float) -> str:
    """As both formats want it: ``repr`` round-trips, only what is not finite is spelled differently."""
    if isinstance(value, int) or math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
