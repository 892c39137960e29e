"""All rules over what the slots hold, once every 10 s: from a ``Book`` to ``Verdict``s.

Which counts each rule is fed, and when, is as in the simulation that chose its thresholds
(``tests/scoring/alarm_run.py``); a test holds both together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np

from proxy.control.alerts.notice import Severity
from proxy.control.alerts.rings import (
    FAILED,
    JUDGED,
    MISSED,
    SLOT_S,
    TRIED,
    Book,
)
from proxy.control.alerts.rules import SEVERITY, Rules
from proxy.control.alerts.worst import Kind
from proxy.control.settle import GroupKey
from scoring.alarm_rule import Evaluation, Hold
from scoring.alarm_share import COLD, SLOTS, Baseline, Errors, Spike
from scoring.burn import Counts

#: Slots of a baseline, and between it and the minute that is judged.
HOUR: Final = 360
GAP: Final = 12
#: Looks at the streams in flight that are kept for a rule.
LOOKS: Final = 7

Labels = tuple[tuple[str, str], ...]


class Verdict(NamedTuple):
    """What a rule says now of what its ``labels`` name."""

    rule: str
    labels: Labels
    severity: Severity
    hold: Hold
    said: Evaluation
    group: GroupKey | None = None  # whose requests show it
    kind: Kind = "missed"

    @property
    def key(self) -> str:
        """Rule and labels: the same on every host."""
        return key_of(self.rule, self.labels)


def key_of(rule: str, labels: Labels) -> str:
    """``spike{backend="canary",model="llama",slo="chat"}``."""
    return rule + "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}"


class Judge:
    """See the module.  Keeps the baselines (a minute each) and in which slots which alert fired."""

    def __init__(self) -> None:
        self._usual: dict[str, tuple[int, Baseline]] = {}
        self._fired: dict[str, set[int]] = {}

    def clear(self) -> None:
        """Slots were renumbered: the clock jumped."""
        self._usual.clear()
        self._fired.clear()

    def judge(self, book: Book, rules: Rules, slot: int, firing: Callable[[str], bool]) -> Iterator[Verdict]:
        """Every group and SLO at the end of ``slot``; ``firing(key)``: whether that alert fires by now."""
        for key in sorted(book.groups):
            labels: Labels = (("backend", key.backend), ("model", key.model), ("slo", key.slo))
            if rules.watches("errors", key.slo):
                yield self._share(book, "errors", rules.errors, key, labels, slot, firing)
            if rules.watches("spike", key.slo):
                yield self._share(book, "spike", rules.spike, key, labels, slot, firing)
            if rules.watches("stalled", key.slo):
                said = rules.stalled.evaluate(book.flights(key, slot + 1, LOOKS))
                yield Verdict("stalled", labels, SEVERITY["stalled"], rules.stalled.hold, said, key)
        if "burn_rate" in rules.on:
            yield from _burns(book, rules, slot)
        self._forget(slot)

    def _share(
        self,
        book: Book,
        name: str,
        rule: Spike | Errors,
        key: GroupKey,
        labels: Labels,
        slot: int,
        firing: Callable[[str], bool],
    ) -> Verdict:
        alert = key_of(name, labels)
        if firing(alert):
            self._fired.setdefault(alert, set()).add(slot)
        due, hit = (JUDGED, MISSED) if name == "spike" else (TRIED, FAILED)
        usual = self._baseline(book, alert, key, (due, hit), slot)
        minute = book.rows(key, slot + 1, SLOTS)
        said = rule.evaluate(minute[:, due].tolist(), minute[:, hit].tolist(), usual)
        return Verdict(
            name, labels, SEVERITY[name], rule.hold, said, key, "missed" if name == "spike" else "failed"
        )

    def _baseline(
        self, book: Book, alert: str, key: GroupKey, columns: tuple[int, int], slot: int
    ) -> Baseline:
        begun = max(book.groups[key].begun, book.begun)
        taken, usual = self._usual.get(alert, (begun - 1, COLD))
        if slot - taken < SLOTS:
            return usual
        to = slot + 1 - SLOTS - GAP
        count = min(to - begun, HOUR)
        if count > 0:
            rows = book.rows(key, to, count)
            fired = self._fired.get(alert)
            exclude = None
            if fired:
                exclude = np.fromiter((at in fired for at in range(to - count, to)), np.bool_, count)
            usual = Baseline.of(rows[:, columns[0]], rows[:, columns[1]], exclude)
        else:
            usual = COLD
        self._usual[alert] = (slot, usual)
        return usual

    def _forget(self, slot: int) -> None:
        """Once a minute: what is too old to matter."""
        if slot % SLOTS:
            return
        oldest = slot - HOUR - GAP - 2 * SLOTS
        for alert, fired in list(self._fired.items()):
            fired -= {at for at in fired if at < oldest}
            if not fired:
                del self._fired[alert]
        for alert in [alert for alert, (taken, _) in self._usual.items() if taken < slot - 2 * SLOTS]:
            del self._usual[alert]


def _burns(book: Book, rules: Rules, slot: int) -> Iterator[Verdict]:
    for slo, burns in sorted(rules.burns.items()):
        if slo not in book.slos:
            continue
        for window, severity, rule in burns:
            labels: Labels = (("slo", slo), ("window", window))
            long, short = (_counts(book, slo, slot, each_s) for each_s in (rule.long_s, rule.short_s))
            said = rule.evaluate(long, short)
            yield Verdict("burn_rate", labels, severity, rule.hold, said)


def _counts(book: Book, slo: str, slot: int, window_s: float) -> Counts:
    count = max(round(window_s / SLOT_S), 1)
    counted, bad = book.long(slo, slot + 1, count)
    return Counts(counted, bad, (slot + 1 - max(book.begun, slot + 1 - count)) * float(SLOT_S))
