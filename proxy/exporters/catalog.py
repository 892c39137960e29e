"""Every metric once: name, type, unit, labels, help, buckets.

The catalog is data; the values of closed labels stand in ``vocabulary.py``.  What renders it
(``prometheus.py``), what fills it (the control process) and what documents it (``reference.py``) read the
same entries, so none of them can name a metric or a label value that the others do not know.

Buckets: at most 20 a histogram, ``+Inf`` included.  ``bounds_for`` puts the configured deadlines among
the boundaries by this rule:

1. The deadlines are taken in the order given (first match wins there too, so the most important come
   first), each once, at most 17; what is not a positive finite number is left out.
2. A deadline that is no boundary yet becomes one.  While there is room nothing gives way; then the default
   boundary nearest to it by ratio does (the smaller of two equally near).
3. The lowest and the highest default never give way, and a deadline never does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, Protocol

from proxy.exporters.metric import Deadline, Metric
from proxy.exporters.vocabulary import (
    ALERT_STATE,
    CONNECTION_STATE,
    DEADLINE_RESULT,
    DRIFT_AT,
    DROPPED,
    EXPORTER,
    MIRRORED,
    NOTIFIED,
    NOTIFIER,
    OUTCOME,
    OUTPUT_SOURCE,
    PROMPT_SOURCE,
    RESULT,
    RULE,
    UNMEASURED,
    WATCHED_RULE,
    Values,
)
from proxy.link import DELAY_BOUNDS_NS

#: At most so many groups (backend, model, slo) are exported; ``model`` beyond them is ``OTHER``.
GROUP_LIMIT: Final = 64
OTHER: Final = "other"
#: Buckets of one histogram, ``+Inf`` included, and so one boundary fewer.
BUCKET_LIMIT: Final = 20
BOUND_LIMIT: Final = BUCKET_LIMIT - 1
_KEPT_DEADLINES: Final = BOUND_LIMIT - 2  # the lowest and the highest default stay

# ---------------------------------------------------------------- the metrics

GROUP: Final = ("backend", "model", "slo")

# Nineteen boundaries each.
_TTFT: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0,
)  # fmt: skip
_TBT: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05,
    0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_GAP: Final = (
    0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
    0.5, 0.75, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
_DURATION: Final = (
    0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0,
    15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0, 600.0, 1200.0,
)  # fmt: skip
_NORMALIZED: Final = (
    0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06,
    0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0,
)  # fmt: skip
_FLUIDITY: Final = (
    0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85,
    0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 1.0,
)  # fmt: skip
_DELAY: Final = tuple(bound / 1e9 for bound in DELAY_BOUNDS_NS)


def _counter(name: str, help_: str, *labels: str, unit: str, **closed: Values) -> Metric:
    return Metric(name, "counter", unit, (*labels, *closed), help_, MappingProxyType(closed))


def _gauge(name: str, help_: str, *labels: str, unit: str, **closed: Values) -> Metric:
    return Metric(name, "gauge", unit, (*labels, *closed), help_, MappingProxyType(closed))


def _histogram(
    name: str, help_: str, *labels: str, bounds: tuple[float, ...], deadline: Deadline | None = None
) -> Metric:
    unit = "ratio" if name.endswith("_ratio") else "seconds"
    return Metric(name, "histogram", unit, labels, help_, bounds=bounds, deadline=deadline)


CATALOG: Final[tuple[Metric, ...]] = (
    # settled: booked once, when a request ends
    _counter(
        "legato_requests_total", "Requests that ended, by outcome.", *GROUP, unit="requests", outcome=OUTCOME
    ),
    _counter(
        "legato_slo_requests_total",
        "Requests that ended, by the verdict of their SLO.",
        *GROUP,
        unit="requests",
        result=RESULT,
    ),
    _counter(
        "legato_token_deadlines_total",
        "Token deadlines, booked when the request ends; the miss rate is missed / (met + missed).",
        *GROUP,
        unit="deadlines",
        result=DEADLINE_RESULT,
    ),
    _histogram(
        "legato_ttft_seconds",
        "Time from the request's last byte sent upstream to the first event that carries output.",
        *GROUP,
        bounds=_TTFT,
        deadline="ttft",
    ),
    _histogram(
        "legato_tbt_seconds",
        "Time between tokens: each gap between two events that carry output.",
        *GROUP,
        bounds=_TBT,
        deadline="tbt",
    ),
    _histogram(
        "legato_tpot_seconds",
        "Time per output token of a request: (last token - first token) / (tokens - 1).",
        *GROUP,
        bounds=_TBT,
        deadline="tbt",
    ),
    _histogram(
        "legato_request_duration_seconds",
        "Time from the request's last byte sent upstream to the end of the response.",
        *GROUP,
        bounds=_DURATION,
        deadline="e2e",
    ),
    _histogram(
        "legato_normalized_latency_seconds",
        "Request duration divided by its output tokens.",
        *GROUP,
        bounds=_NORMALIZED,
    ),
    _histogram(
        "legato_longest_gap_seconds",
        "The longest gap between two tokens of a request.",
        *GROUP,
        bounds=_GAP,
        deadline="tbt",
    ),
    _histogram(
        "legato_fluidity_ratio",
        "Fluidity-index of a request: the share of its token deadlines that were met.",
        *GROUP,
        bounds=_FLUIDITY,
        deadline="target",
    ),
    _gauge(
        "legato_fluid_token_rate",
        "Tokens per second at which 99% of requests (`fluid_rate.quantile`) stay fluid.",
        *GROUP,
        unit="tokens per second",
    ),
    _counter(
        "legato_output_tokens_total",
        "Output tokens, by what counted them.",
        *GROUP,
        unit="tokens",
        source=OUTPUT_SOURCE,
    ),
    _counter(
        "legato_prompt_tokens_total",
        "Prompt tokens, by what counted them.",
        *GROUP,
        unit="tokens",
        source=PROMPT_SOURCE,
    ),
    # provisional: the streams in flight, a picture that the next one replaces
    _gauge("legato_requests_in_flight", "Requests in flight now.", *GROUP, unit="requests"),
    _gauge(
        "legato_requests_overdue",
        "Streams in flight whose next token is overdue now; where an SLO promises the duration only (`e2e`): "
        "those that take longer than that.",
        *GROUP,
        unit="requests",
    ),
    _gauge(
        "legato_in_flight_missed_deadlines",
        "Token deadlines that the streams in flight have missed so far; booked when the requests end.",
        *GROUP,
        unit="deadlines",
    ),
    _gauge(
        "legato_backend_up",
        "0 where no worker could connect to the backend when it last tried, within five minutes; else 1.",
        "backend",
        unit="bool",
    ),
    _gauge(
        "legato_backend_connections",
        "Connections to the backend.",
        "backend",
        unit="connections",
        state=CONNECTION_STATE,
    ),
    # what was promised
    _gauge(
        "legato_ttft_target_seconds",
        "The TTFT deadline; of one by prompt length (table, quadratic, learned), its smallest. Absent "
        "for an SLO that promises the duration only (`e2e`).",
        "slo",
        unit="seconds",
    ),
    _gauge(
        "legato_tbt_target_seconds", "The configured TBT deadline; absent likewise.", "slo", unit="seconds"
    ),
    _gauge("legato_slo_objective_ratio", "The share of requests that shall be good.", "slo", unit="ratio"),
    _gauge(
        "legato_slo_watched",
        "1 where a rule may page for an SLO, by the SLO's own terms, else 0.",
        "slo",
        unit="bool",
        rule=WATCHED_RULE,
    ),
    _gauge(
        "legato_prefill_drift_ratio",
        "The current prefill curve over the frozen one.",
        "backend",
        "model",
        unit="ratio",
    ),
    _gauge(
        "legato_tbt_drift_ratio",
        "The current time between tokens over that in the frozen file.",
        "backend",
        "model",
        unit="ratio",
        at=DRIFT_AT,
    ),
    # the proxy itself: is it us, are we blind
    _histogram(
        "legato_forward_delay_seconds",
        "Time from a chunk's arrival to the moment it was handed to the client's transport.",
        bounds=_DELAY,
    ),
    _histogram("legato_event_loop_lag_seconds", "How late the workers' event loops ran.", bounds=_DELAY),
    _histogram(
        "legato_client_blocked_seconds",
        "Pauses of upstream reading because a client was too slow.",
        bounds=_DELAY,
    ),
    _counter(
        "legato_dropped_total", "What was given up so that no stream waits.", unit="items", what=DROPPED
    ),
    _counter(
        "legato_unmeasured_total",
        "Streams that were passed on unmeasured.",
        unit="requests",
        reason=UNMEASURED,
    ),
    _counter(
        "legato_export_failures_total",
        "Failed attempts to hand data out.",
        unit="attempts",
        exporter=EXPORTER,
    ),
    _gauge(
        "legato_redis_up",
        "1 if the last write to Redis was acknowledged, else 0; absent where no Redis is configured.",
        unit="bool",
    ),
    _gauge(
        "legato_redis_clock_offset_seconds",
        "Redis's clock minus this host's, as measured last; slots of time are by Redis's clock.",
        unit="seconds",
    ),
    _gauge(
        "legato_redis_waiting_bytes",
        "What is kept in memory until Redis takes it.",
        unit="bytes",
    ),
    _gauge(
        "legato_backend_ejected",
        "1 while a failing backend is taken out of its splits, or not yet back with all of its weight.",
        "backend",
        unit="bool",
    ),
    _counter(
        "legato_mirrored_requests_total",
        "Copies of requests for a shadow backend; they are in no other metric.",
        "backend",
        unit="requests",
        result=MIRRORED,
    ),
    _gauge(
        "legato_experiment_weight",
        "Share of the traffic.",
        "experiment",
        "backend",
        unit="share",
    ),
    _counter(
        "legato_experiment_requests_total",
        "Requests of an experiment's arm.",
        "experiment",
        "backend",
        unit="requests",
    ),
    _gauge(
        "legato_alerts",
        "Alerts that are out now.",
        unit="alerts",
        rule=RULE,
        state=ALERT_STATE,
    ),
    _counter(
        "legato_notifications_total",
        "Messages to those who are told of alerts.",
        unit="items",
        notifier=NOTIFIER,
        result=NOTIFIED,
    ),
    _gauge(
        "legato_config_reload_success",
        "1 if the last reading of the configuration succeeded, else 0.",
        unit="bool",
    ),
    _gauge("legato_build_info", "Always 1; the version is its label.", "version", unit="bool"),
    _gauge("legato_workers", "Data processes that are connected to the control process.", unit="processes"),
    _gauge("legato_draining", "1 while this instance drains, else 0.", unit="bool"),
    _gauge("legato_groups", "Groups (backend, model, slo) that are exported.", unit="groups"),
    _gauge(
        "legato_groups_limit",
        "The most groups that are exported; models beyond it are booked as `other`.",
        unit="groups",
    ),
    _gauge(
        "legato_counting_since_seconds",
        "Unix time from which the counters count: the start of the control process.",
        unit="seconds",
    ),
)

BY_NAME: Final[Mapping[str, Metric]] = MappingProxyType({metric.name: metric for metric in CATALOG})


# ---------------------------------------------------------------- buckets


class Slo(Protocol):
    """What ``deadlines_of`` reads of an SLO (``link.SloSpec`` has it); times in nanoseconds."""

    @property
    def ttft_points(self) -> tuple[tuple[int, int], ...]: ...
    @property
    def tbt_ns(self) -> int: ...
    @property
    def e2e_ns(self) -> int | None: ...
    @property
    def target(self) -> float: ...


def deadlines_of(metric: str, slos: Iterable[Slo]) -> tuple[float, ...]:
    """The configured deadlines that belong among a histogram's boundaries: its unit, the SLOs' order."""
    kind = BY_NAME[metric].deadline
    out: list[float] = []
    for slo in slos:
        if kind == "ttft":
            out += [ttft_ns / 1e9 for _, ttft_ns in slo.ttft_points]
        elif kind == "tbt":
            out.append(slo.tbt_ns / 1e9)
        elif kind == "e2e" and slo.e2e_ns:
            out.append(slo.e2e_ns / 1e9)
        elif kind == "target":
            out.append(slo.target)
    return tuple(out)


def bounds_for(metric: str, deadlines_s: Iterable[float] = ()) -> tuple[float, ...]:
    """Ascending upper bounds of a histogram's buckets without ``+Inf``, at most 19, the deadlines among them.

    ``deadlines_s`` are in the metric's unit (``deadlines_of`` picks them); a metric that has no deadline
    ignores them.  The rule that says which default gives way stands at the head of this module.
    """
    entry = BY_NAME[metric]
    if entry.kind != "histogram":
        raise ValueError(f"{metric} is a {entry.kind}: only a histogram has buckets")
    bounds = set(entry.bounds)
    if entry.deadline is None:
        return tuple(sorted(bounds))
    wanted = _distinct(deadlines_s)[:_KEPT_DEADLINES]
    may_go = set(sorted(bounds)[1:-1]) - set(wanted)
    for deadline in wanted:
        if deadline in bounds:
            continue
        if len(bounds) >= BOUND_LIMIT:
            nearest = min(may_go, key=lambda bound: (abs(math.log(bound / deadline)), bound))
            may_go.remove(nearest)
            bounds.remove(nearest)
        bounds.add(deadline)
    return tuple(sorted(bounds))


def _distinct(deadlines: Iterable[float]) -> list[float]:
    """The positive finite ones, each once, in the order given."""
    return list(dict.fromkeys(d for d in deadlines if math.isfinite(d) and d > 0))
