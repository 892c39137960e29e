"""The life of an alert: pending, firing, resolved; what is told of it, and what is remembered.

``step`` takes the verdicts of one evaluation; ``due`` says what somebody is to be told, ``told`` that it was
handed over.  Time is wall clock, the end of the slot that was judged.  Nothing here knows who is told, or
that there are other hosts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Final, NamedTuple

from proxy.control.alerts.judge import Labels, Verdict
from proxy.control.alerts.notice import Message, Notice, Severity, State, Worst
from proxy.control.alerts.words import link, over, runbook, summary
from scoring.alarm_rule import Evaluation, Hold, Phase

#: Alerts that are remembered.
HISTORY: Final = 200
#: What is over and was told stays at hand so long, for the host that has to say so.
OVER_NS: Final = 900 * 10**9
#: After what explained it a held alert is not told for so long: a stream books what it missed when it ends.
_HELD_AFTER_NS: Final = 90 * 10**9
#: Nobody speaks of these any more when they are over; of groups nobody does when they have no requests.
_ENDS_WITH_ITS_CAUSE: Final = frozenset({"backend_down", "experiment", "proxy"})
_GONE: Final = Evaluation(False, True, None, 0.0, {}, "")
_NOTHING: Final = Evaluation(False, False, None, 0.0, {}, "nothing is known of it any more")


class _Cause(NamedTuple):
    """While ``rule`` fires, and for a while after it, ``holds`` with the same ``labels`` are not told."""

    rule: str
    labels: tuple[str, ...]
    holds: frozenset[str]

    def of(self, alert: Alert) -> tuple[str | None, ...]:
        """What both have in common."""
        return tuple(alert.named.get(name) for name in self.labels)


#: One incident is one page: the first of these that fits says why the others fire.
_CAUSES: Final = (
    _Cause("backend_down", ("backend",), frozenset({"spike", "errors", "stalled", "drift"})),
    # Streams that stand still miss deadlines, which are booked when they end: half a minute later.
    _Cause("stalled", ("backend", "model", "slo"), frozenset({"spike"})),
)
_EXPLAIN: Final = frozenset(cause.rule for cause in _CAUSES)


@dataclass(slots=True)
class Alert:
    """One alert that is not ok.  ``number``: messages that said that it fires; ``told_ns``: the last one."""

    rule: str
    labels: Labels
    key: str
    severity: Severity
    hold: Hold
    phase: Phase
    said: Evaluation
    worst: tuple[Worst, ...] = ()
    incident: str = ""
    began_ns: int = 0  # since when the condition holds
    fired_ns: int | None = None
    resolved_ns: int | None = None
    number: int = 0
    told_ns: int | None = None
    told_end: bool = False
    held_by: str | None = None  # the key of the alert that explains it
    was_held: bool = False
    alone: bool = False  # it was told by this host while it could not ask the others
    peak: float | None = None
    shown: Evaluation | None = None  # what was said of it when it last fired

    @property
    def named(self) -> dict[str, str]:
        """Its labels by name."""
        return dict(self.labels)

    @property
    def tells(self) -> bool:
        """Worth telling: what was held back and is calm by now was part of what is over."""
        return self.number > 0 or self.said.fires or not self.was_held

    def take(self, incident: str, fired_ns: int) -> None:
        """It is the same as another host's."""
        self.incident, self.fired_ns = incident, fired_ns


@dataclass(frozen=True)
class Said:
    """What notices say beside the alert itself."""

    host: str = ""
    url: str | None = None


@dataclass
class Life:
    """All alerts of one host."""

    alerts: dict[str, Alert] = field(default_factory=dict)  # pending and firing
    over: dict[str, Alert] = field(default_factory=dict)  # told, resolved, by incident
    history: deque[Alert] = field(default_factory=lambda: deque(maxlen=HISTORY))

    # ------------------------------------------------------------ evaluating

    def step(
        self,
        verdicts: Iterable[Verdict],
        now_ns: int,
        worst: Callable[[Verdict], tuple[Worst, ...]] = lambda verdict: (),
    ) -> None:
        """One evaluation.  An alert that nobody judges any more is over once it is quiet for long."""
        seen = set()
        for verdict in verdicts:
            key = verdict.key
            seen.add(key)
            alert = self.alerts.get(key)
            if alert is None:
                if not verdict.said.fires:
                    continue
                alert = Alert(
                    verdict.rule, verdict.labels, key, verdict.severity, verdict.hold, Phase(), verdict.said
                )
            alert.hold, alert.severity = verdict.hold, verdict.severity
            self._move(alert, verdict.said, now_ns)
            if alert.phase.state != "ok" and (verdict.said.fires or not alert.worst):
                alert.worst = worst(verdict) or alert.worst
        for key in self.alerts.keys() - seen:
            gone = self.alerts[key].rule in _ENDS_WITH_ITS_CAUSE
            self._move(self.alerts[key], _GONE if gone else _NOTHING, now_ns)
        self._hold_back(now_ns)
        for incident in [i for i, a in self.over.items() if now_ns - (a.resolved_ns or 0) > OVER_NS]:
            del self.over[incident]

    def _move(self, alert: Alert, said: Evaluation, now_ns: int) -> None:
        before, alert.phase = alert.phase.state, alert.hold.step(alert.phase, said, now_ns)
        state = alert.phase.state
        if said is not _NOTHING and said is not _GONE:
            alert.said = said
        if said.fires:
            alert.shown = said
            if said.value is not None:
                alert.peak = said.value if alert.peak is None else max(alert.peak, said.value)
        if state == "firing" and before != "firing":
            alert.began_ns, alert.fired_ns = alert.phase.since_ns, now_ns
            alert.incident = incident_of(alert.key, now_ns)
            self.history.append(alert)
        if state == "ok":
            self.alerts.pop(alert.key, None)
            if before == "firing":
                self._end(alert, now_ns)
        else:
            self.alerts[alert.key] = alert

    def _end(self, alert: Alert, now_ns: int) -> None:
        alert.resolved_ns = now_ns
        self.over[alert.incident] = alert

    def drop(self, keep: Callable[[Alert], bool], now_ns: int) -> None:
        """Rules changed: what is not kept is over now."""
        for key in [key for key, alert in self.alerts.items() if not keep(alert)]:
            alert = self.alerts.pop(key)
            if alert.phase.state == "firing":
                self._end(alert, now_ns)

    def rebase(self, now_ns: int) -> None:
        """The clock jumped: what waits begins to wait anew, what fires goes on."""
        for alert in self.alerts.values():
            alert.phase = replace(alert.phase, calm_ns=None, judged_ns=now_ns)
            if alert.phase.state == "pending" or alert.phase.since_ns > now_ns:
                alert.phase = replace(alert.phase, since_ns=now_ns)
            if alert.told_ns is not None:
                alert.told_ns = min(alert.told_ns, now_ns)

    def _hold_back(self, now_ns: int) -> None:
        lately = [a for a in self.over.values() if now_ns - (a.resolved_ns or 0) < _HELD_AFTER_NS]
        firing = self.firing()
        out = [alert for alert in (*lately, *firing) if alert.rule in _EXPLAIN and alert.tells]
        for alert in self.alerts.values():
            alert.held_by = None
        for cause in _CAUSES:
            found = {cause.of(alert): alert.key for alert in out if alert.rule == cause.rule}
            for alert in firing if found else ():
                if alert.held_by is None and alert.rule in cause.holds:
                    alert.held_by = found.get(cause.of(alert))
                    alert.was_held |= alert.held_by is not None

    # ------------------------------------------------------------ telling

    def due(self, now_ns: int, repeat_ns: int, said: Said) -> list[Message]:
        """What is to be told now: of one rule and state one message."""
        found: dict[tuple[str, State], list[Notice]] = {}
        for alert in self._over():
            if alert.number and not alert.told_end:
                found.setdefault((alert.rule, "resolved"), []).append(self.notice(alert, now_ns, said))
        for alert in self.firing():
            again = alert.told_ns is not None and bool(repeat_ns) and now_ns - alert.told_ns >= repeat_ns
            first = alert.number == 0 and alert.tells
            if alert.held_by is None and (first or again):
                found.setdefault((alert.rule, "firing"), []).append(self.notice(alert, now_ns, said))
        return [
            Message(message_id(notices), rule, state, tuple(notices))
            for (rule, state), notices in found.items()
        ]

    def told(self, message: Message, now_ns: int) -> None:
        """It was handed to those who tell."""
        for notice in message.notices:
            alert = self.find(notice.incident)
            if alert is None:
                continue
            if notice.state == "resolved":
                alert.told_end = True
            else:
                alert.number, alert.told_ns = max(alert.number, notice.number + 1), now_ns

    def notice(self, alert: Alert, now_ns: int, said: Said) -> Notice:
        """As it is told now."""
        ended = alert.resolved_ns
        now = alert.said if ended is not None else alert.shown or alert.said
        text = summary(alert.rule, alert.named, now, alert.began_ns)
        if ended is not None:
            text = over(alert.rule, alert.named, alert.began_ns, ended)
        elif alert.rule in _EXPLAIN and (held := self._held(alert.key)):
            alerts = "alert of its requests is" if held == 1 else "alerts of its requests are"
            text += f" ({held} more {alerts} held back)"
        return Notice(
            key=alert.key,
            incident=alert.incident,
            number=alert.number if ended is None else 0,
            state="firing" if ended is None else "resolved",
            rule=alert.rule,
            severity=alert.severity,
            labels=alert.named,
            summary=text,
            value=now.value,
            threshold=now.threshold,
            figures=dict(now.evidence),
            since_unix_ns=alert.began_ns,
            fired_unix_ns=alert.fired_ns or now_ns,
            resolved_unix_ns=ended,
            at_unix_ns=now_ns,
            host=said.host,
            worst=alert.worst,
            url=link(said.url, alert.key),
            runbook=runbook(alert.rule),
        )

    # ------------------------------------------------------------ looking

    def firing(self) -> list[Alert]:
        """Those that are out, by their keys."""
        return [self.alerts[key] for key in sorted(self.alerts) if self.alerts[key].phase.state == "firing"]

    def pending(self) -> list[Alert]:
        """Those that wait."""
        return [self.alerts[key] for key in sorted(self.alerts) if self.alerts[key].phase.state == "pending"]

    def fires(self, key: str) -> bool:
        """Whether that alert is out."""
        alert = self.alerts.get(key)
        return alert is not None and alert.phase.state == "firing"

    def find(self, incident: str) -> Alert | None:
        """By its incident, if it fires or is over for a short while."""
        found = self.over.get(incident)
        if found is not None:
            return found
        return next((alert for alert in self.alerts.values() if alert.incident == incident), None)

    def _over(self) -> Iterator[Alert]:
        yield from sorted(self.over.values(), key=lambda alert: alert.key)

    def _held(self, key: str) -> int:
        return sum(alert.held_by == key for alert in self.alerts.values())


def incident_of(key: str, fired_ns: int) -> str:
    """The same on every host that saw it begin to fire at the same slot."""
    return blake2b(f"{key} {fired_ns}".encode(), digest_size=8).hexdigest()


def message_id(notices: Iterable[Notice]) -> str:
    """The same for the same content."""
    parts = sorted(f"{each.incident} {each.state} {each.number}" for each in notices)
    return blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
