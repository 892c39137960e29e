"""Summaries and curves of a window: the numbers of the slots, the bounds they cover, and clear refusals."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import msgspec
import pytest

from proxy import clock as clocks
from proxy.control.api_windows import wanted_of
from proxy.control.core import Controller
from proxy.control.record import iso_time
from proxy.control.scope import HERE
from proxy.control.summary import Summary, summarise
from proxy.control.timeseries import Reader
from proxy.control.windowed import MissRates, miss_rates, summarise_window
from proxy.link import FactsBatch
from tests.control.facts import BATCH, UNIX, S, facts, table
from tests.control.test_api import serving
from tests.control.test_windows import HOUR, MINUTE, Clock, control, ended, stream_now
from tests.control.test_workers import beat, hello, now


def busy(clock: Clock) -> Controller:
    """Two streams and a failure now; something in flight."""
    legato = control(clock)
    legato.feed(hello())
    legato.feed(
        FactsBatch([stream_now(clock, 80, 120), stream_now(clock, 100, 300), ended(clock, status=503)])
    )
    legato.feed(beat(now(in_flight=2, overdue=1, missed=3, worst=70_000_000)))
    return legato


def test_the_same_shape_and_numbers_as_since_the_start() -> None:
    clock = Clock()
    legato = busy(clock)
    clock.now_ns += 3 * S
    ever, window = summarise(legato), summarise_window(legato, HOUR)
    for field in (
        "requests", "outcomes", "results", "good_ratio", "share_under_target", "deadlines",
        "deadline_miss_rate", "output_tokens", "prompt_tokens", "in_flight", "fluid_token_rate_reason",
    ):  # fmt: skip
        assert getattr(window.total, field) == getattr(ever.total, field), field
    for field in ("ttft_s", "tbt_s", "tpot_s", "normalized_latency_s", "duration_s", "fluidity"):
        ours = msgspec.structs.asdict(getattr(window.total, field))
        assert ours == pytest.approx(msgspec.structs.asdict(getattr(ever.total, field)), rel=1 / 64), field
    assert window.total.fluid_token_rate == pytest.approx(ever.total.fluid_token_rate, rel=1 / 64)
    assert [group.model for group in window.groups] == [group.model for group in ever.groups] == ["llama"]
    assert window.groups[0].objective == legato.slos[-1].objective
    assert (window.proxy, window.backends) == (ever.proxy, ever.backends)


def test_it_says_what_it_covers() -> None:
    clock = Clock(UNIX // (10 * S) * 10 * S + 4 * S)
    legato = control(clock)
    assert (summarise(legato).asked_s, summarise(legato).window_s) == (None, 0)
    clock.now_ns += 2 * HOUR
    legato.feed(FactsBatch([ended(clock)]))
    found = summarise_window(legato, 5 * MINUTE)
    assert (found.asked_s, found.window_s) == (300, 304)  # outwards to a slot of 10 s
    assert found.covered_from == iso_time(clock.now_ns - 304 * S)
    assert found.covered_to == found.at == iso_time(clock.now_ns)
    assert found.relative_error == pytest.approx(1 / 128)
    clock.now_ns += 21 * S
    assert summarise_window(legato, 5 * MINUTE).window_s == 305


def test_what_began_a_moment_ago_covers_a_moment() -> None:
    clock = Clock()
    legato = control(clock)
    clock.now_ns += 30 * S
    assert 30 <= summarise_window(legato, HOUR).window_s <= 42


def test_in_flight_only_is_a_group_too() -> None:
    clock = Clock()
    legato = control(clock)
    legato.feed(hello())
    legato.feed(beat(now(in_flight=2)))
    found = summarise_window(legato, MINUTE)
    assert [(group.requests, group.in_flight.requests) for group in found.groups] == [(0, 2)]
    assert found.total.fluid_token_rate_reason == "no stream was scored"


def test_no_curve_and_no_rate_say_why() -> None:
    clock = Clock()
    legato = control(clock)
    legato.feed(FactsBatch([ended(clock)]))
    (group,) = miss_rates(legato, MINUTE).groups
    assert (group.miss_rate, group.miss_rate_reason) == (None, "no stream with deadlines was sampled")
    assert (group.fluid_token_rate, group.fluid_token_rate_reason) == (None, "no stream was scored")
    legato.feed(FactsBatch([stream_now(clock, 900)]))  # late, and one token: no deadline helps
    reason = miss_rates(legato, MINUTE).total.fluid_token_rate_reason
    assert reason == "TTFT: 1 of 1 streams reach their target with no TBT deadline"


def test_the_rate_is_that_of_the_quantile_that_the_settings_name() -> None:
    clock = Clock()
    legato = control(clock)
    legato.feed(FactsBatch([stream_now(clock, 100, 100 + gap) for gap in (20, 30, 80)]))
    rates = []
    for quantile, gap_s in ((0.3, 0.02), (0.5, 0.03), (0.99, 0.08)):
        legato.ledger.rate_quantile = quantile
        wanted = wanted_of(legato, clock.now_ns, "fluid_token_rate", "1m", "1m", "none")
        reader = Reader(legato.windows, wanted)
        list(reader.steps())
        (series,) = reader.answer(HERE).series
        told = {
            summarise(legato).total.fluid_token_rate,
            legato.snapshot().groups[0].fluid_token_rate,
        }
        rates.append(summarise_window(legato, MINUTE).total.fluid_token_rate)
        assert all(rate == pytest.approx(rates[-1], rel=0.02) for rate in told), told
        told_of = miss_rates(legato, MINUTE).total
        assert told_of.fluid_token_rate == rates[-1]
        curve = told_of.miss_rate
        assert curve is not None
        assert curve.quantile == quantile
        assert [bool(rate) for rate in curve.at_quantile] == [tbt_s < gap_s for tbt_s in curve.tbt_s]
        same = curve.at_quantile == curve.p50, curve.at_quantile == curve.p99
        assert same == (quantile == 0.5, quantile == 0.99)
        assert [point.value for point in series.points if point.value is not None] == [rates[-1]]
    assert rates == pytest.approx([1 / 0.02, 1 / 0.03, 1 / 0.08], rel=0.02)


def test_curves_fall_as_the_deadline_grows() -> None:
    clock = Clock()
    curve = miss_rates(busy(clock), MINUTE).total.miss_rate
    assert curve is not None
    assert (curve.samples, curve.scored, len(curve.tbt_s)) == (2, 2, 24)
    assert (curve.tbt_s[0], curve.tbt_s[-1]) == (0.005, 1.0)
    known = [rate for rate in curve.p99 if rate is not None]
    assert known == sorted(known, reverse=True)


@pytest.mark.alone
def test_sixty_four_groups_answer_in_time() -> None:
    clock = Clock()
    legato = control(clock)
    for _ in range(30):
        for _ in range(4):
            legato.feed(FactsBatch([ended(clock, model=f"m{n}") for n in range(62)]))
        clock.now_ns += 10 * S
    summarise_window(legato, HOUR)  # merged once
    clock.now_ns += 8 * S
    spent = []
    for _ in range(5):
        begun = time.thread_time()
        found = msgspec.json.encode(summarise_window(legato, HOUR))
        spent.append(time.thread_time() - begun)
    assert len(msgspec.json.decode(found)["groups"]) == 62
    assert min(spent) < 0.05


# ---------------------------------------------------------------- over HTTP


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    legato = Controller(
        table(BATCH), instance="here", version="1", unix_ns=clocks.unix_ns, monotonic_ns=clocks.monotonic_ns
    )
    request = facts(100)
    request.received_unix_ns = clocks.unix_ns()
    legato.feed(FactsBatch([request]))
    with serving(legato) as client:
        yield client


@pytest.mark.parametrize("window", ["10s", "5m", "1h", "1h30m", "1d", "24h"])
def test_a_window_over_http(client: httpx.Client, window: str) -> None:
    for _ in range(2):  # merged, then kept
        found = msgspec.json.decode(
            client.get("/api/summary", params={"window": window}).content, type=Summary
        )
        assert found.asked_s is not None
        assert found.asked_s >= 10
    assert client.get("/api/curves/miss-rate", params={"window": window}).status_code == 200


def test_requests_show_in_the_window_and_curves_have_a_default(client: httpx.Client) -> None:
    assert client.get("/api/summary?window=1h").json()["total"]["requests"] == 1
    assert (
        msgspec.json.decode(client.get("/api/curves/miss-rate").content, type=MissRates).total.miss_rate
        is None
    )


@pytest.mark.parametrize(
    ("window", "says"),
    [
        ("5", "window: '5': a unit is needed"),
        ("", "window: '' is not a duration"),
        ("soon", "window: 'soon' is not a duration"),
        ("5 parsecs", "'parsecs' is not a unit of time"),
        ("1s", "window: '1s' is too short: 10s to 1d is possible"),
        ("0", "window: '0' is too short"),
        ("2d", "window: '2d' is too long: 10s to 1d is possible"),
        ("-5m", "window: '-5m' is not a duration"),
    ],
)
@pytest.mark.parametrize("path", ["/api/summary", "/api/curves/miss-rate"])
def test_a_bad_window_is_named_with_its_mend(client: httpx.Client, path: str, window: str, says: str) -> None:
    answer = client.get(path, params={"window": window})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert says in error["message"]
    assert "for example 5m" in error["mend"]
