"""Series over a window: their sums are the window's, their bounds join, and what is too much is refused."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, get_args

import httpx
import msgspec
import pytest

from proxy import clock as clocks
from proxy.control.api_windows import series_of
from proxy.control.core import Controller
from proxy.control.schema import ApiError
from proxy.control.timeseries import By, Metric, TimeSeries
from proxy.link import FactsBatch
from tests.control.facts import UNIX, S, facts, table
from tests.control.test_api import serving
from tests.control.test_windows import HOUR, MINUTE, Clock, control, ended, stream_now


def read(legato: Controller, metric: Metric, window: str, step: str | None, by: By = "none") -> TimeSeries:
    reader = series_of(legato, metric, window, step, by)
    for _ in reader.steps():
        pass
    return reader.answer()


def hours(clock: Clock, length: int) -> Controller:
    """A request a minute for so many hours, of two models in turn."""
    legato = control(clock)
    for minute in range(length * 60):
        legato.feed(FactsBatch([ended(clock, model=("llama", "qwen")[minute % 2])]))
        clock.now_ns += MINUTE
    return legato


@pytest.mark.parametrize(
    ("window", "step", "shown"), [("1h", "10s", 10), ("1h", "1m", 60), ("1h", "7m", 420), ("1h", None, 60)]
)
def test_steps_join_and_sum_to_the_window(window: str, step: str | None, shown: int) -> None:
    clock = Clock(UNIX // HOUR * HOUR)
    legato = hours(clock, 1)
    found = read(legato, "requests", window, step)
    (series,) = found.series
    assert sum(point.value or 0 for point in series.points) == 60
    assert found.step_s == shown
    assert all(before.to == after.from_ for before, after in pairwise(series.points))


def test_a_long_window_has_steps_of_minutes() -> None:
    clock = Clock(UNIX // HOUR * HOUR)
    legato = hours(clock, 3)
    found = read(legato, "requests", "2h", "90s")
    assert found.step_s == 120
    values = [point.value for point in found.series[0].points]
    assert set(values[1:-1]) == {2}
    assert len(values) in (60, 61)


@pytest.mark.parametrize(
    ("by", "series"), [("none", 1), ("backend", 1), ("model", 2), ("slo", 1), ("group", 2)]
)
def test_by_what_groups_share(by: Any, series: int) -> None:
    clock = Clock(UNIX // HOUR * HOUR)
    found = read(hours(clock, 1), "requests", "1h", "1m", by)
    assert len(found.series) == series
    assert sum(point.value or 0 for one in found.series for point in one.points) == 60
    if by == "model":
        assert [(one.backend, one.model, one.slo) for one in found.series] == [
            (None, "llama", None),
            (None, "qwen", None),
        ]


@pytest.mark.parametrize("metric", get_args(Metric))
def test_every_metric_has_a_value_and_a_unit(metric: Any) -> None:
    clock = Clock(UNIX // (10 * S) * 10 * S)
    legato = control(clock)
    legato.feed(FactsBatch([stream_now(clock, 80, 120), stream_now(clock, 100, 300)]))
    clock.now_ns += 5 * S
    found = read(legato, metric, "10s", "10s")
    assert found.unit in ("requests", "ratio", "seconds", "tokens per second")
    value = found.series[0].points[-1].value
    assert value is not None
    expected = {"requests": 2, "good_ratio": 0.5, "ttft_p99": 0.1, "tokens_per_second": 4 / 5, "tbt_p99": 0.2}
    if metric in expected:
        assert value == pytest.approx(expected[metric], rel=1 / 64)


def test_nothing_observed_is_null_and_no_requests_are_none() -> None:
    clock = Clock(UNIX // HOUR * HOUR)
    legato = hours(clock, 1)
    assert {p.value for p in read(legato, "ttft_p50", "1h", "1m").series[0].points} == {None}
    assert read(control(clock), "requests", "1h", "1m", "group").series == []


def test_too_many_points_are_refused_before_they_are_read() -> None:
    clock = Clock(UNIX // HOUR * HOUR)
    legato = control(clock)
    legato.feed(FactsBatch([ended(clock, model=f"m{n}") for n in range(40)]))
    with pytest.raises(ApiError) as refused:
        series_of(legato, "requests", "1d", "1m", "group")
    assert refused.value.problem.status == 422
    assert "step: '1m' makes" in refused.value.problem.message
    assert "by=none" in refused.value.problem.mend


# ---------------------------------------------------------------- over HTTP


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    legato = Controller(
        table(), instance="here", version="1", unix_ns=clocks.unix_ns, monotonic_ns=clocks.monotonic_ns
    )
    request = facts(100)
    request.received_unix_ns = clocks.unix_ns()
    legato.feed(FactsBatch([request]))
    with serving(legato) as client:
        yield client


def test_a_series_over_http(client: httpx.Client) -> None:
    answer = client.get("/api/timeseries?metric=requests&window=5m&step=1m&by=model")
    found = msgspec.json.decode(answer.content, type=TimeSeries)
    assert sum(point.value or 0 for point in found.series[0].points) == 1
    assert set(answer.json()["series"][0]["points"][0]) == {"from", "to", "value"}


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "metric: "),
        ("metric=joy", "metric: "),
        ("metric=requests&by=colour", "by: "),
        ("metric=requests&window=5", "window: '5': a unit is needed"),
        ("metric=requests&step=1s", "step: '1s' is too short: 10s to 1d is possible"),
        ("metric=requests&step=now", "step: 'now' is not a duration"),
        ("metric=requests&window=1m&step=5m", "step: '5m' is longer than the window '1m'"),
    ],
)
def test_what_is_wrong_is_named(client: httpx.Client, query: str, says: str) -> None:
    answer = client.get(f"/api/timeseries?{query}")
    assert answer.status_code == 422
    assert says in answer.json()["error"]["message"]
