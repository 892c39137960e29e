"""What a host sees by itself: slower than frozen, an experiment's warnings, Legato's own trouble."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from proxy.control.alerts.notice import Notice
from proxy.control.alerts.signals import Itself
from proxy.control.snapshot import Hist, RedisStats, Snapshot
from proxy.curves import read_curves
from proxy.link import FactsBatch
from proxy.settings.slo import LearnedTtft, Slo
from tests.control.alerts.hosts import RULES, Host, World
from tests.control.facts import MS, S, at, streamed
from tests.control.test_windows import ended
from tests.helpers.curves import learned

LAG = Hist((0.001, 0.01, 0.1, 1.0), (0, 0, 0, 0, 0), 0.0)


# ---------------------------------------------------------------- drift


def frozen(tmp_path: Path, host: Host) -> None:
    """What the file says of default and llama: prefill 1 ms, gaps of 20 ms, the 99th percentile 30 ms."""
    path = learned(tmp_path / "curves.yaml", ("default", "llama", MS))
    slo = Slo(ttft=LearnedTtft(learned=path, slack=S, fallback=((0, S),)))
    assert isinstance(slo.ttft, LearnedTtft)
    slo.ttft.freeze(read_curves(path))
    host.controller.prefills.freeze([slo])


def paced(gap_ms: int) -> Any:
    """A stream each ten seconds whose tokens come so far apart."""

    def each(host: Host) -> None:
        if round(host.world.now_s) % 10 == 0:
            made = streamed(*(at(50 + gap_ms * index) for index in range(50)), end_ms=5_000)
            host.controller.feed(FactsBatch([ended(host.world.clock, made)]))

    return each


@pytest.mark.parametrize(("gap_ms", "fires"), [(30, False), (40, True)])
def test_a_decode_twice_as_slow_is_told_though_every_deadline_is_met(
    gap_ms: int, fires: bool, tmp_path: Path
) -> None:
    world = World()
    host = world.hosts[0]
    frozen(tmp_path, host)
    world.run(300, paced(20))
    assert not world.told
    world.run(600, paced(gap_ms))
    assert len(world.told) == int(fires)
    if fires:
        (notice,) = world.told[0].notices
        assert (notice.rule, notice.severity) == ("drift", "ticket")
        assert notice.labels == {"backend": "default", "model": "llama"}
        assert "tbt_p50 is 2.0" in notice.summary
        assert world.told[0].at_s <= 900
        world.run(900, paced(20))
        assert [each.message.state for each in world.told] == ["firing", "resolved"]


def test_without_a_frozen_curve_nothing_drifts() -> None:
    world = World()
    world.run(300, paced(20))
    world.run(600, paced(45))
    assert not world.told
    assert not any(key.startswith("drift") for key in world.hosts[0].alerts.last)


# ---------------------------------------------------------------- experiments


@dataclass
class Warned:
    name: str
    kind: str
    what: str


@pytest.mark.parametrize(("kind", "severity"), [("guardrail", "page"), ("integrity", "ticket")])
def test_what_an_experiment_warns_of_is_told_and_is_over_when_it_says_no_more(
    kind: str, severity: str
) -> None:
    world = World()
    warned = [Warned("new-vllm", kind, "12 of 80 requests of canary failed, 1 of 80 of stable")]
    world.hosts[0].alerts._signals._experiments = lambda: list(warned)
    world.run(30)
    (notice,) = world.told[0].notices
    assert (notice.rule, notice.severity) == ("experiment", severity)
    assert notice.labels == {"experiment": "new-vllm", "kind": kind}
    assert notice.summary.startswith("experiment new-vllm: 12 of 80 requests of canary failed")
    warned.clear()
    world.run(200)
    assert [each.message.state for each in world.told] == ["firing", "resolved"]


# ---------------------------------------------------------------- Legato itself


def snapshot(**fields: Any) -> Snapshot:
    given: dict[str, Any] = {
        "at_unix_ns": 0,
        "since_unix_ns": 0,
        "instance": "here",
        "version": "1",
        "groups": (),
        "now": (),
        "backends": (),
        "slos": (),
        "forward": LAG,
        "lag": LAG,
        "blocked": LAG,
    }
    return Snapshot(**(given | fields))


def lag(*counts: int) -> Hist:
    return replace(LAG, counts=counts)


def after(seconds: int, of: Any) -> dict[str, bool]:
    """Which of them fire after a look each half minute at ``of(looks so far)``."""
    itself, said = Itself(), {}
    for look in range(seconds // 30 + 1):
        now_ns = look * 30 * S
        assert itself.due(now_ns)
        said = {what: each.fires for what, each in itself.judge(snapshot(**of(look)), now_ns)}
        assert not itself.due(now_ns + 29 * S)
    return said


@pytest.mark.parametrize(
    ("of", "seconds", "fires"),
    [
        (lambda look: {}, 600, set()),
        (lambda look: {"lag": lag(1_000 * look, 0, 0, 0, 0)}, 300, set()),
        (lambda look: {"lag": lag(1_000 * look, 0, 20 * look, 0, 0)}, 300, {"lag"}),
        (lambda look: {"lag": lag(1_000 * look, 0, 500, 0, 0)}, 300, set()),  # long ago
        (lambda look: {"dropped": {"facts": 7}}, 300, set()),  # long ago
        (lambda look: {"dropped": {"facts": look // 3}}, 300, {"dropped"}),
        (lambda look: {"dropped": {"arrivals": 1000 * look}}, 300, set()),  # very long streams are ordinary
        (lambda look: {"unmeasured": {"tap_error": 30 * look}}, 300, {"unmeasured"}),
        (lambda look: {"unmeasured": {"switched_off": 30 * look, "no_tokens": 30 * look}}, 300, set()),
        (lambda look: {"unmeasured": {"tap_error": look}}, 300, set()),  # of hardly any stream
        (lambda look: {"export_failures": {"otlp": look}}, 300, {"exporters"}),
        (lambda look: {"export_failures": {"otlp": look}}, 270, set()),  # not yet for five minutes
        (lambda look: {"export_failures": {"otlp": min(look, 8)}}, 600, set()),  # it works again
        (lambda look: {"redis": RedisStats(False, None, 0)}, 300, {"redis"}),
        (lambda look: {"redis": RedisStats(False, None, 0)}, 270, set()),
        (lambda look: {"redis": RedisStats(look == 5, None, 0)}, 300, set()),
    ],
)
def test_trouble_of_its_own(of: Any, seconds: int, fires: set[str]) -> None:
    said = after(seconds, of)
    assert {what for what, each in said.items() if each} == fires
    assert ("redis" in said) == ("redis" in of(0))


def test_trouble_of_its_own_is_a_ticket_of_its_host() -> None:
    world = World(settings={"rules": (*RULES, "proxy")})
    failures = iter(range(10_000))
    world.hosts[0].controller.watch_exporter(lambda: {"otlp": next(failures)}, dict)
    world.run(480)
    notices: list[Notice] = [notice for each in world.told for notice in each.notices]
    (notice,) = notices
    assert notice.labels == {"host": "host0", "what": "exporters"}
    assert notice.severity == "ticket"
    assert "exporting by otlp failed" in notice.summary


def test_a_clock_that_goes_back_is_no_trouble() -> None:
    itself = Itself()
    list(itself.judge(snapshot(dropped={"facts": 5}), 900 * S))
    assert not any(said.fires for _, said in itself.judge(snapshot(dropped={"facts": 7}), 10 * S))
