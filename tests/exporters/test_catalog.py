"""The catalog holds exactly what is promised, and its buckets keep the rule at its head."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.exporters import vocabulary
from proxy.exporters.catalog import (
    BOUND_LIMIT,
    BY_NAME,
    CATALOG,
    bounds_for,
    deadlines_of,
)
from proxy.link import DELAY_BOUNDS_NS, Match, SloSpec

L = ("backend", "model", "slo")

#: The promise, word for word: a change here is a breaking change.
PROMISED = {
    "legato_requests_total": ("counter", (*L, "outcome")),
    "legato_slo_requests_total": ("counter", (*L, "result")),
    "legato_token_deadlines_total": ("counter", (*L, "result")),
    "legato_ttft_seconds": ("histogram", L),
    "legato_tbt_seconds": ("histogram", L),
    "legato_tpot_seconds": ("histogram", L),
    "legato_request_duration_seconds": ("histogram", L),
    "legato_normalized_latency_seconds": ("histogram", L),
    "legato_longest_gap_seconds": ("histogram", L),
    "legato_fluidity_ratio": ("histogram", L),
    "legato_fluid_token_rate": ("gauge", L),
    "legato_output_tokens_total": ("counter", (*L, "source")),
    "legato_prompt_tokens_total": ("counter", (*L, "source")),
    "legato_requests_in_flight": ("gauge", L),
    "legato_requests_overdue": ("gauge", L),
    "legato_in_flight_missed_deadlines": ("gauge", L),
    "legato_backend_up": ("gauge", ("backend",)),
    "legato_backend_connections": ("gauge", ("backend", "state")),
    "legato_ttft_target_seconds": ("gauge", ("slo",)),
    "legato_tbt_target_seconds": ("gauge", ("slo",)),
    "legato_slo_objective_ratio": ("gauge", ("slo",)),
    "legato_prefill_drift_ratio": ("gauge", ("backend", "model")),
    "legato_forward_delay_seconds": ("histogram", ()),
    "legato_event_loop_lag_seconds": ("histogram", ()),
    "legato_client_blocked_seconds": ("histogram", ()),
    "legato_dropped_total": ("counter", ("what",)),
    "legato_unmeasured_total": ("counter", ("reason",)),
    "legato_export_failures_total": ("counter", ("exporter",)),
    "legato_experiment_weight": ("gauge", ("experiment", "backend")),
    "legato_experiment_requests_total": ("counter", ("experiment", "backend")),
    "legato_alerts": ("gauge", ("rule", "state")),
    "legato_config_reload_success": ("gauge", ()),
    "legato_build_info": ("gauge", ("version",)),
}
#: What this project exports beyond the promise.
ADDED = {
    "legato_tbt_drift_ratio": ("gauge", ("backend", "model", "at")),
    "legato_workers": ("gauge", ()),
    "legato_draining": ("gauge", ()),
    "legato_groups": ("gauge", ()),
    "legato_groups_limit": ("gauge", ()),
    "legato_counting_since_seconds": ("gauge", ()),
    "legato_backend_ejected": ("gauge", ("backend",)),
    "legato_mirrored_requests_total": ("counter", ("backend", "result")),
    "legato_notifications_total": ("counter", ("notifier", "result")),
    "legato_slo_watched": ("gauge", ("slo", "rule")),
    "legato_redis_up": ("gauge", ()),
    "legato_redis_clock_offset_seconds": ("gauge", ()),
    "legato_redis_waiting_bytes": ("gauge", ()),
}
HISTOGRAMS = [m.name for m in CATALOG if m.kind == "histogram"]
WITH_DEADLINES = [m.name for m in CATALOG if m.deadline is not None]


def test_the_catalog_is_what_was_promised_each_once() -> None:
    listed = {m.name: (m.kind, m.labels) for m in CATALOG}
    assert listed == PROMISED | ADDED
    assert len(listed) == len(CATALOG)


@pytest.mark.parametrize("metric", CATALOG, ids=lambda m: m.name)
def test_names_units_and_help_keep_the_conventions(metric: object) -> None:
    entry = BY_NAME[getattr(metric, "name")]  # noqa: B009  (parametrize types it as object)
    assert re.fullmatch(r"legato_[a-z][a-z0-9_]*[a-z]", entry.name)
    assert entry.name.endswith("_total") == (entry.kind == "counter")
    assert entry.name.removesuffix("_total").endswith("_seconds") == (entry.unit == "seconds")
    assert entry.help.endswith(".")
    assert "\n" not in entry.help
    assert "\\" not in entry.help
    assert set(entry.closed) <= set(entry.labels)


def test_the_closed_lists_hold_what_was_promised() -> None:
    assert list(vocabulary.OUTCOME) == [
        "completed",
        "client_cancelled",
        "rejected",
        "overloaded",
        "upstream_error",
        "timeout",
        "proxy_error",
    ]
    assert list(vocabulary.RESULT) == ["good", "bad", "excluded"]
    assert list(vocabulary.DEADLINE_RESULT) == ["met", "missed", "suspect", "client_blocked"]
    streaming = {"token_ids", "logprobs", "running_usage", "events", "events+usage"}
    assert set(vocabulary.OUTPUT_SOURCE) == streaming | {"usage"}
    assert {"facts", "settled_by_lost_control", "worker_lost", "access_log", "trace_log"} <= set(
        vocabulary.DROPPED
    )


def test_every_closed_value_has_its_one_sentence() -> None:
    for metric in CATALOG:
        for values in metric.closed.values():
            assert values
            for value, meaning in values.items():
                assert re.fullmatch(r"[a-z][a-z0-9_+]*", value)
                assert value != "other"  # kept for what no list knows
                assert meaning[0].isupper() or meaning[0].isdigit()
                assert meaning.endswith(".")


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_defaults_are_nineteen_ascending_boundaries(name: str) -> None:
    bounds = bounds_for(name)
    assert bounds == BY_NAME[name].bounds
    assert list(bounds) == sorted(set(bounds))
    assert len(bounds) == BOUND_LIMIT == 19


def test_the_delays_keep_the_buckets_that_workers_count_in() -> None:
    for name in (
        "legato_forward_delay_seconds",
        "legato_event_loop_lag_seconds",
        "legato_client_blocked_seconds",
    ):
        assert bounds_for(name, [0.07]) == tuple(ns / 1e9 for ns in DELAY_BOUNDS_NS)


def test_a_deadline_that_is_a_default_changes_nothing() -> None:
    assert bounds_for("legato_ttft_seconds", [0.5]) == bounds_for("legato_ttft_seconds")


def test_the_nearest_default_by_ratio_gives_way() -> None:
    before = set(bounds_for("legato_ttft_seconds"))
    after = set(bounds_for("legato_ttft_seconds", [0.24]))
    assert after - before == {0.24}
    assert before - after == {0.2}  # 0.24 / 0.2 = 1.2; 0.3 / 0.24 = 1.25


def test_a_deadline_never_gives_way_to_another() -> None:
    bounds = bounds_for("legato_tbt_seconds", [0.049, 0.05, 0.051])
    assert {0.049, 0.05, 0.051} <= set(bounds)
    assert len(bounds) == 19


def test_a_deadline_beyond_the_defaults_leaves_them_their_ends() -> None:
    bounds = bounds_for("legato_ttft_seconds", [0.0001, 900.0])
    assert bounds[0] == 0.0001
    assert bounds[1] == 0.005
    assert bounds[-2:] == (60.0, 900.0)
    assert len(bounds) == 19


def test_of_too_many_deadlines_the_first_are_taken() -> None:
    many = [0.0501 + i / 1000 for i in range(30)]
    bounds = bounds_for("legato_tbt_seconds", many)
    assert set(bounds) == {*many[:17], 0.001, 10.0}


@pytest.mark.parametrize("name", WITH_DEADLINES)
@given(deadlines=st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=40))
def test_any_deadlines_leave_a_valid_histogram(name: str, deadlines: list[float]) -> None:
    bounds = bounds_for(name, deadlines)
    assert list(bounds) == sorted(set(bounds))
    assert len(bounds) == 19
    assert all(math.isfinite(bound) and bound > 0 for bound in bounds)
    usable = list(dict.fromkeys(d for d in deadlines if d > 0 and math.isfinite(d)))
    assert set(usable[:17]) <= set(bounds)


def test_a_gauge_has_no_buckets() -> None:
    with pytest.raises(ValueError, match="only a histogram has buckets"):
        bounds_for("legato_workers")


def test_the_deadlines_of_an_slo_go_to_the_metrics_that_they_judge() -> None:
    chat = SloSpec("chat", Match(), ((0, 500_000_000), (8000, 2_000_000_000)), 50_000_000, target=0.9)
    batch = SloSpec("batch", Match(), ((0, 700_000_000),), 80_000_000, target=0.8, e2e_ns=90_000_000_000)
    slos = (chat, batch)
    assert deadlines_of("legato_ttft_seconds", slos) == (0.5, 2.0, 0.7)
    assert deadlines_of("legato_tbt_seconds", slos) == (0.05, 0.08)
    assert deadlines_of("legato_longest_gap_seconds", slos) == (0.05, 0.08)
    assert deadlines_of("legato_request_duration_seconds", slos) == (90.0,)
    assert deadlines_of("legato_fluidity_ratio", slos) == (0.9, 0.8)
    assert deadlines_of("legato_forward_delay_seconds", slos) == ()


@dataclass
class Mutable:
    """Not a ``SloSpec``, and good enough: what is read is four fields."""

    ttft_points: tuple[tuple[int, int], ...]
    tbt_ns: int
    e2e_ns: int | None
    target: float


def test_deadlines_are_read_by_shape() -> None:
    assert deadlines_of("legato_tbt_seconds", [Mutable(((0, 1),), 20_000_000, None, 0.9)]) == (0.02,)


# ---------------------------------------------------------------- over OTLP

#: What Prometheus's OTLP receiver puts behind a name, by the unit.
_BEHIND = {"s": ["seconds"], "By": ["bytes"], "1": []}


def by_prometheus(name: str, unit: str, kind: str) -> str:
    """The name that Prometheus gives a metric that comes over OTLP (its translation with suffixes)."""
    words = [word for word in re.split(r"[^a-zA-Z0-9:]", name) if word]
    main, _, per = unit.partition("/")
    assert not per, "a rate would be spelled out in the name"
    if "{" not in main:
        words += [word for word in _BEHIND[main] if word not in words]
    if kind == "counter":
        words = [word for word in words if word != "total"] + ["total"]
    if unit == "1" and kind == "gauge":
        words = [word for word in words if word != "ratio"] + ["ratio"]
    return "_".join(words)


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_prometheus_gives_a_metric_that_comes_over_otlp_the_same_name(name: str) -> None:
    metric = BY_NAME[name]
    assert by_prometheus(metric.otlp_name, metric.otlp_unit, metric.kind) == name
    assert re.fullmatch(r"legato\.[a-z][a-z0-9_]*[a-z]", metric.otlp_name)
    assert re.fullmatch(r"s|By|1|\{[a-z_]+\}", metric.otlp_unit)


@pytest.mark.parametrize(
    ("name", "over_otlp", "unit"),
    [
        ("legato_ttft_seconds", "legato.ttft", "s"),
        ("legato_requests_total", "legato.requests", "{request}"),
        ("legato_fluidity_ratio", "legato.fluidity_ratio", "1"),
        ("legato_slo_objective_ratio", "legato.slo_objective", "1"),
        ("legato_redis_waiting_bytes", "legato.redis_waiting", "By"),
        ("legato_fluid_token_rate", "legato.fluid_token_rate", "{tokens_per_second}"),
        ("legato_backend_up", "legato.backend_up", "{bool}"),
    ],
)
def test_names_and_units_over_otlp(name: str, over_otlp: str, unit: str) -> None:
    assert (BY_NAME[name].otlp_name, BY_NAME[name].otlp_unit) == (over_otlp, unit)


def test_no_two_metrics_share_a_name_over_otlp() -> None:
    assert len({metric.otlp_name for metric in CATALOG}) == len(CATALOG)
