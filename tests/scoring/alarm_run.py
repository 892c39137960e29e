"""The alert rules over simulated traffic, evaluated every 10 s as an instance would.

``python -m tests.scoring.alarm_run`` prints the tables: detection and resolution for each planted incident,
and pages in healthy days.  Thresholds were chosen on seeds from 100 on; seeds 0 to 19 are for the report.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from scoring.alarm_live import Drift, Flight, Speeds, Stalled
from scoring.alarm_rule import Evaluation, Hold, Phase
from scoring.alarm_share import COLD, SLOTS, Baseline, Errors, Numbers, Spike
from scoring.burn import BurnRate, Counts
from tests.scoring.alarm_traffic import (
    INCIDENTS,
    MILDER,
    SLOT_S,
    TBT_MS,
    Ints,
    Traffic,
    quantile_ms,
    simulate,
)

#: The frozen speeds: those of an ordinary load.
FROZEN_P50_MS: Final = TBT_MS * 1.08
FROZEN_P99_MS: Final = TBT_MS * 1.08 * 3.2
_HOUR: Final = 360
_GAP: Final = 12  # slots between the baseline and the minute that is judged
_FIVE_MINUTES: Final = 30
SOON: Final = ("spike", "errors", "stalled")


@dataclass(frozen=True)
class Rules:
    spike: Spike = field(default_factory=Spike)
    errors: Errors = field(default_factory=Errors)
    stalled: Stalled = field(default_factory=Stalled)
    drift: Drift = field(default_factory=Drift)
    burn_1h: BurnRate = field(default_factory=lambda: BurnRate(0.98, 14.4))
    burn_6h: BurnRate = field(default_factory=lambda: BurnRate(0.98, 6, 21_600, 1_800))


class Fired(NamedTuple):
    rule: str
    from_s: float  # when it began to fire
    until_s: float | None  # when it was resolved; None: not by the end


def run(traffic: Traffic, rules: Rules, names: Iterable[str] | None = None) -> list[Fired]:
    """All that fired, in order."""
    fired: list[Fired] = []
    for name in names or ("spike", "errors", "stalled", "drift", "burn_1h", "burn_6h"):
        hold: Hold = getattr(rules, name).hold
        phase, begun = Phase(), 0.0
        judge = _Judge(traffic, rules, name)
        for slot in range(SLOTS - 1, traffic.slots):
            now_s = (slot + 1.0) * SLOT_S
            before, phase = phase, hold.step(phase, judge.at(slot, phase), round(now_s * 1e9))
            if before.state == phase.state:
                continue
            if phase.state == "firing":
                begun = now_s
            elif before.state == "firing":
                fired.append(Fired(name, begun, now_s))
        if phase.state == "firing":
            fired.append(Fired(name, begun, None))
    return sorted(fired, key=lambda each: each.from_s)


class _Judge:
    """One rule, slot by slot, with what it needs of the past."""

    def __init__(self, traffic: Traffic, rules: Rules, name: str) -> None:
        self.traffic, self.rules, self.name = traffic, rules, name
        self._usual, self._taken = COLD, -_HOUR
        self._firing = np.zeros(traffic.slots, dtype=bool)
        due = traffic.tried.cumsum()
        self._sums = np.concatenate(([0], due)), np.concatenate(([0], traffic.bad.cumsum()))

    def at(self, slot: int, phase: Phase) -> Evaluation:
        self._firing[slot] = phase.state == "firing"
        if self.name == "spike":
            usual = self._baseline(self.traffic.settled, self.traffic.missed, slot)
            return self._minute(self.rules.spike, self.traffic.settled, self.traffic.missed, slot, usual)
        if self.name == "errors":
            usual = self._baseline(self.traffic.tried, self.traffic.failed, slot)
            return self._minute(self.rules.errors, self.traffic.tried, self.traffic.failed, slot, usual)
        if self.name == "stalled":
            return self.rules.stalled.evaluate(self._looks(slot))
        if self.name == "drift":
            return self.rules.drift.evaluate(self._speeds(slot))
        rule: BurnRate = getattr(self.rules, self.name)
        return rule.evaluate(self._counts(slot, rule.long_s), self._counts(slot, rule.short_s))

    def _baseline(self, due: Numbers, hit: Numbers, slot: int) -> Baseline:
        if slot - self._taken >= SLOTS:  # once a minute
            self._taken = slot
            to = max(slot + 1 - SLOTS - _GAP, 0)
            kept = slice(max(to - _HOUR, 0), to)
            self._usual = Baseline.of(due[kept], hit[kept], self._firing[kept])
        return self._usual

    def _minute(
        self, rule: Spike | Errors, due: Numbers, hit: Numbers, slot: int, usual: Baseline
    ) -> Evaluation:
        last = slice(slot + 1 - SLOTS, slot + 1)
        return rule.evaluate(due[last].tolist(), hit[last].tolist(), usual)  # type: ignore[union-attr]

    def _looks(self, slot: int) -> list[Flight]:
        traffic = self.traffic
        return [
            Flight(
                at * 10.0, int(traffic.streams[at]), int(traffic.overdue[at]), float(traffic.tokens_per_s[at])
            )
            for at in range(max(slot - 4, 0), slot + 1)
        ]

    def _speeds(self, slot: int) -> Speeds:
        last = slice(max(slot + 1 - _FIVE_MINUTES, 0), slot + 1)
        gaps = self.traffic.gaps[last].sum(axis=0)
        p50, p99 = quantile_ms(gaps, 0.5), quantile_ms(gaps, 0.99)
        if p50 is None or p99 is None:
            return Speeds(None, None, None, 0)
        return Speeds(None, p50 / FROZEN_P50_MS, p99 / FROZEN_P99_MS, int(self.traffic.settled[last].sum()))

    def _counts(self, slot: int, window_s: float) -> Counts:
        low = max(slot + 1 - round(window_s / SLOT_S), 0)
        due, bad = (int(sums[slot + 1] - sums[low]) for sums in self._sums)
        return Counts(due, bad, (slot + 1.0 - low) * SLOT_S)


class Planted(NamedTuple):
    """Of one incident: ``found_s``: seconds from its start, by each rule that fired; ``resolved_s``: from its
    end to the last resolution, ``None``: something was not; ``early``: what fired before it."""

    found_s: dict[str, float]
    resolved_s: float | None
    early: int

    @property
    def first_s(self) -> float | None:
        """When somebody is told."""
        return min(self.found_s.values(), default=None)


def planted(name: str, seed: int, per_s: float) -> tuple[Traffic, float, float]:
    """Two hours of healthy traffic, the incident, and half an hour; when it begins and ends, in seconds."""
    incident = {**INCIDENTS, **MILDER}[name]
    at_s = 7_200 + np.random.default_rng(seed + 1_000_000).uniform(0, 60)
    end_s = at_s + incident.length_s
    return simulate(seed, (end_s + 1_800) / 3_600, per_s, incident, at_s), at_s, end_s


def plant(name: str, seed: int, per_s: float, rules: Rules) -> Planted:
    """What the rules say of an incident."""
    traffic, at_s, end_s = planted(name, seed, per_s)
    return found(name, run(traffic, rules, (*SOON, "drift")), at_s, end_s)


def found(name: str, fired: list[Fired], at_s: float, end_s: float) -> Planted:
    """Which of ``fired`` told of it, and when."""
    wanted = ("drift",) if name.startswith("decode") else SOON
    told: dict[str, float] = {}
    for each in fired:
        if each.rule in wanted and at_s <= each.from_s <= end_s:
            told.setdefault(each.rule, each.from_s - at_s)
    ends = [each.until_s for each in fired if each.from_s >= at_s]
    last_s = None if None in ends else max((end for end in ends if end is not None), default=None)
    early = sum(each.from_s < at_s for each in fired)
    return Planted(told, None if last_s is None else last_s - end_s, early)


def healthy(seed: int, per_s: float, rules: Rules, calm: bool = False) -> list[Fired]:
    """What fires in a healthy day: nothing should."""
    return run(simulate(seed, 24, per_s, calm=calm), rules)


def table(seeds: Iterable[int], per_s: float, rules: Rules) -> Iterator[str]:
    """Lines of Markdown: each incident once for each seed."""
    seeds = list(seeds)
    yield f"| {per_s:g}/s up | found | first told: median, slowest | each rule | resolved | early |"
    yield "|---|---|---|---|---|---|"
    for name in (*INCIDENTS, *MILDER):
        got = [plant(name, seed, per_s, rules) for seed in seeds]
        times = sorted(each.first_s for each in got if each.first_s is not None)
        told = f"{times[len(times) // 2]:.0f} s, {times[-1]:.0f} s" if times else "-"
        after = [each.resolved_s for each in got if each.resolved_s is not None]
        last = f"{max(after):.0f} s ({len(after)})" if after else "-"
        each_rule = ", ".join(
            _by(rule, got) for rule in (*SOON, "drift") if any(rule in g.found_s for g in got)
        )
        early = sum(each.early for each in got)
        yield f"| {name} | {len(times)} of {len(seeds)} | {told} | {each_rule} | {last} | {early} |"
    yield ""


def _by(rule: str, got: list[Planted]) -> str:
    times = [each.found_s[rule] for each in got if rule in each.found_s]
    return f"{rule} {max(times):.0f} s" + ("" if len(times) == len(got) else f" ({len(times)})")


def days(seeds: Iterable[int], per_s: float, rules: Rules) -> Iterator[str]:
    """Lines of Markdown: pages in a healthy day, of a group whose misses come and go and of a calm one."""
    yield f"| seed ({per_s:g}/s up) | requests | worst minute: late, failed, overdue | pages | calm |"
    yield "|---|---|---|---|---|"
    for seed in seeds:
        day = simulate(seed, 24, per_s)
        shares = ", ".join(f"{share:.0%}" for share in worst_minutes(day))
        fired, calm = run(day, rules), healthy(seed, per_s, rules, calm=True)
        yield f"| {seed} | {int(day.tried.sum()):,} | {shares} | {_named(fired)} | {_named(calm)} |"


def worst_minutes(day: Traffic) -> list[float]:
    """The largest shares in a minute: of requests that missed a deadline, that failed, of streams overdue."""
    parts = (day.missed, day.settled), (day.failed, day.tried), (day.overdue, day.streams)
    return [_worst_minute(part, whole) for part, whole in parts]


def _worst_minute(part: Ints, whole: Ints) -> float:
    six = np.ones(SLOTS)
    parts, wholes = np.convolve(part, six, "valid"), np.convolve(whole, six, "valid")
    return float((parts / np.maximum(wholes, 1)).max())


def _named(fired: list[Fired]) -> str:
    return "none" if not fired else ", ".join(f"{each.rule} at {each.from_s / 3_600:.2f} h" for each in fired)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 20), metavar=("FROM", "TO"))
    parser.add_argument("--rates", type=float, nargs="+", default=[5.0])
    parser.add_argument("--only", choices=("incidents", "days"))
    options = parser.parse_args()
    rules, seeds = Rules(), range(*options.seeds)
    if options.only != "days":
        for per_s in options.rates:
            for line in table(seeds, per_s, rules):
                print(line, flush=True)
    if options.only != "incidents":
        for per_s in options.rates:
            for line in days(seeds, per_s, rules):
                print(line, flush=True)


if __name__ == "__main__":
    main()
