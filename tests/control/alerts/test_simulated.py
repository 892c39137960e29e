"""The live wiring says what the simulation says that chose the thresholds, alert by alert, to the second."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from proxy.control.alerts.judge import Judge, Verdict, key_of
from proxy.control.alerts.life import Life, Said
from proxy.control.alerts.rings import SLOT_NS, Book, Tally
from proxy.control.alerts.rules import Rules
from proxy.control.settle import GroupKey
from proxy.link import Match, SloSpec
from scoring.alarm_live import Speeds
from tests.control.alerts.hosts import World
from tests.scoring.alarm_run import FROZEN_P50_MS, FROZEN_P99_MS, Fired, run
from tests.scoring.alarm_run import Rules as Simulated
from tests.scoring.alarm_traffic import INCIDENTS, SLOT_S, Traffic, quantile_ms, simulate

KEY = GroupKey("canary", "llama", "chat")
#: The wall clock's slot of the simulation's first: any, but a minute need not begin there.
FIRST = 179_514_451
LABELS = tuple(zip(GroupKey._fields, KEY, strict=True))


def tally(traffic: Traffic, at: int) -> Tally:
    return Tally(
        judged=int(traffic.settled[at]),
        missed=int(traffic.missed[at]),
        tried=int(traffic.tried[at]),
        failed=int(traffic.failed[at]),
        counted=int(traffic.tried[at]),
        bad=int(traffic.bad[at]),
        awaited=int(traffic.streams[at]),
        overdue=int(traffic.overdue[at]),
        tokens=round(float(traffic.tokens_per_s[at]) * 1_000),
    )


def drift(traffic: Traffic, rules: Rules, at: int) -> Verdict:
    """As the simulation has it: this signal does not come from the slots."""
    last = slice(max(at - 29, 0), at + 1)
    gaps = traffic.gaps[last].sum(axis=0)
    p50, p99 = quantile_ms(gaps, 0.5), quantile_ms(gaps, 0.99)
    speeds = Speeds(None, None, None, 0)
    if p50 is not None and p99 is not None:
        many = int(traffic.settled[last].sum())
        speeds = Speeds(None, p50 / FROZEN_P50_MS, p99 / FROZEN_P99_MS, many)
    return Verdict("drift", LABELS[:2], "ticket", rules.drift.hold, rules.drift.evaluate(speeds))


def judged(traffic: Traffic) -> Iterator[tuple[Life, int]]:
    """A host's alerts after each slot, and when that ended."""
    stage = World(slos=[SloSpec("chat", Match(), ((0, 1),), 1, objective=0.98)]).hosts[0].alerts
    for at in range(traffic.slots):
        stage.own.advance(FIRST + at)
        stage.own.replace(FIRST + at, {KEY: tally(traffic, at)})
        stage.evaluate(stage.own, FIRST + at, [drift(traffic, stage.rules, at)])
        yield stage.life, (FIRST + at + 1) * SLOT_NS


def live(traffic: Traffic) -> list[Fired]:
    """What a host says of the same slots."""
    *_, (life, _) = judged(traffic)
    windows = {"1h/5m": "burn_1h", "6h/30m": "burn_6h"}

    def since(at_ns: int) -> float:
        return float((at_ns - FIRST * SLOT_NS) // 10**9)

    found = [
        Fired(
            windows.get(alert.named.get("window", ""), alert.rule),
            since(alert.fired_ns or 0),
            None if alert.resolved_ns is None else since(alert.resolved_ns),
        )
        for alert in life.history
    ]
    return sorted(found, key=lambda each: each.from_s)


@pytest.mark.parametrize("name", INCIDENTS)
def test_an_incident_fires_and_ends_when_the_simulation_says(name: str) -> None:
    incident = INCIDENTS[name]
    at_s = 7_200 + np.random.default_rng(17).uniform(0, 60)
    hours = (at_s + incident.length_s + 1_800) / 3_600
    traffic = simulate(7, hours, 5, incident, at_s)
    want = run(traffic, Simulated())
    assert want, "the incident is found"
    assert sorted(live(traffic)) == sorted(want)
    soon = [fired.from_s - at_s for fired in want if fired.from_s >= at_s]
    assert min(soon) < (600 if name.startswith("decode") else 60)


@pytest.mark.parametrize(
    ("name", "fires", "page"),
    [
        ("long prompts starve decoding", {"stalled", "spike"}, "stalled"),
        ("hang", {"stalled", "spike"}, "stalled"),
        ("10% errors", {"errors"}, "errors"),
        ("total outage", {"errors"}, "errors"),
    ],
)
@pytest.mark.parametrize("seed", [7, 8])
def test_one_incident_is_one_page_whatever_fires(name: str, fires: set[str], page: str, seed: int) -> None:
    incident = INCIDENTS[name]
    traffic = simulate(seed, (7_200 + incident.length_s + 1_800) / 3_600, 5, incident, 7_200)
    fired, pages = set(), []
    for life, now_ns in judged(traffic):
        fired |= {alert.rule for alert in life.firing()}
        for message in life.due(now_ns, 0, Said()):
            life.told(message, now_ns)
            if message.state == "firing" and message.notices[0].severity == "page":
                pages.append(message.rule)
    assert fires <= fired
    assert pages == [page]


def test_half_a_day_of_budget_burnt_is_seen_by_both_windows_alike() -> None:
    incident = INCIDENTS["total outage"]._replace(length_s=3_600)
    traffic = simulate(3, 9, 5, incident, 7 * 3_600)
    want = run(traffic, Simulated())
    assert {"burn_1h", "burn_6h", "errors"} <= {fired.rule for fired in want}
    assert sorted(live(traffic), key=str) == sorted(want, key=str)


def test_the_key_names_rule_and_group() -> None:
    assert key_of("spike", LABELS) == 'spike{backend="canary",model="llama",slo="chat"}'
    assert SLOT_S * 10**9 == SLOT_NS


def test_the_two_minutes_before_the_one_that_is_judged_are_not_usual() -> None:
    """A slow start must not hide itself: twelve good minutes, then two bad ones, then the one to judge."""
    book, judge = Book(), Judge()
    said = {}
    for at in range(15 * 6):
        book.advance(FIRST + at)
        missed = 5 if at >= 12 * 6 else 0
        book.replace(FIRST + at, {KEY: Tally(judged=10, missed=missed, tried=10)})
        said = {
            verdict.rule: verdict.said
            for verdict in judge.judge(book, Rules(), FIRST + at, lambda key: False)
        }
    assert said["spike"].evidence["usual_share"] < 0.001
    assert said["spike"].evidence["usual_requests"] == 600, "the middle of twelve minutes"
