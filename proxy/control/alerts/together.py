"""Several hosts, one judgement: each judges the merged traffic of all, one of them tells.

The host that holds the lease tells; it is renewed with every ``sync``, and free 20 s after its holder's last:
another one takes it, knows what fires since it judged all along, reads what notifiers took, and tells the
rest.  Who is refused by notifiers lets it go (``yielding.py``).

Hosts that saw the same slot call an alert by the same incident; where they began apart, they agree on the one
that was told, or else on the oldest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from proxy.control.alerts.exchange import Exchange, HostSays, Incident, LocalVerdict
from proxy.control.alerts.judge import Verdict
from proxy.control.alerts.life import Alert
from proxy.control.alerts.notice import Worst
from proxy.control.alerts.rings import SLOT_NS, Book
from proxy.control.alerts.yielding import Yielding
from proxy.control.shared import Shared
from proxy.control.shared_names import ALERTS, ALERTS_LEASE_S, ALERTS_SENT, ALERTS_SENT_KEPT_S
from scoring.alarm_rule import Evaluation

if TYPE_CHECKING:
    from proxy.control.alerts.stage import Alerts

#: Without the store for so long, a host judges and tells by itself.
AWAY_NS: Final = 15_000_000_000
#: A slot is judged so long after its end: by then all hosts have told of it.
WAIT_NS: Final = 4_000_000_000
#: What a host says counts for so long; what it called an alert for longer, since it may have died.
_HEARD_NS: Final = 30_000_000_000
_CALLED_NS: Final = 300_000_000_000
#: Of so many alerts a host tells the requests that show them.
_WORST_MOST: Final = 64
_VERDICTS_MOST: Final = 1_000
#: Slots that were missed are judged one by one, up to so many.
_CATCH_UP: Final = 3
#: When more is written than this, what is old is taken away.
_SENT_MOST: Final = 500
_SENT_OLD_NS: Final = 86_400_000_000_000


class Together:
    """See the module.  ``shares``: hosts ever shared; ``alone``: this one judges by itself now."""

    def __init__(self, stage: Alerts) -> None:
        self._stage = stage
        self._exchange = Exchange()
        self._merged = Book()
        self._heard: dict[str, HostSays] = {}
        self._yielding = Yielding()
        self._synced_ns: int | None = None  # the wall clock that all agree on
        self.holder: str | None = None
        self.me: str | None = None

    @property
    def shares(self) -> bool:
        """Whether there is anybody to share with."""
        return self._synced_ns is not None

    @property
    def alone(self) -> bool:
        """No store, or none that answers."""
        synced_ns = self._synced_ns
        return synced_ns is None or not 0 <= self._stage.now_ns() - synced_ns <= AWAY_NS

    @property
    def holds(self) -> bool:
        """This host had the lease when it last looked."""
        return self.holder is not None and self.holder == self.me

    def restart(self) -> None:
        """The clock jumped."""
        self._exchange = self._exchange.anew()
        self._merged = Book()
        self._heard = {}
        if self._synced_ns is not None:
            self._synced_ns = 0

    # ------------------------------------------------------------ every few seconds

    async def sync(self, shared: Shared) -> None:
        """Tell, hear, judge, and tell people if that is ours.  ``Unshared`` may come from anywhere: what was
        done stays done, and the next call goes on."""
        stage, exchange = self._stage, self._exchange
        stage.offset_ns = shared.now_unix_ns() - (stage.now_ns() - stage.offset_ns)
        now_ns = stage.now_ns()
        self.me = shared.me
        await exchange.write(shared, stage.own)
        await self._write_news(shared)
        self.holder = await shared.lease(ALERTS, ALERTS_LEASE_S) if self._wants(now_ns) else None
        await exchange.read(shared, self._merged, now_ns // SLOT_NS)
        heard = await exchange.say(shared, self._says(now_ns))
        sent = await shared.fetch(ALERTS_SENT)
        if self._exchange is not exchange:
            return  # the clock jumped meanwhile: what was read cannot be placed, the next round begins anew
        self._heard = heard
        # From here on nothing waits: the picture is whole.
        self._synced_ns = now_ns
        over = stage.teller.note(stage.life, sent)
        self._judge(now_ns)
        self._agree(now_ns, over)
        stage.teller.note(stage.life, sent)
        if self.holds:
            stage.teller.tell(stage.life, now_ns, stage.settings.repeat, stage.said)
        else:
            stage.teller.release()
            stage.teller.tell_ends(stage.life, now_ns, stage.said)
        # So that who takes over knows what this host calls them.
        await exchange.say(shared, self._says(now_ns))
        if self.holds:
            await self._tidy(shared, sent, now_ns)

    def _wants(self, now_ns: int) -> bool:
        others = [said.yields for said in self._heard.values() if abs(now_ns - said.at_ns) <= _HEARD_NS]
        return self._yielding.wants(now_ns, self._stage.teller.refused_ns, others)

    async def _write_news(self, shared: Shared) -> None:
        news = self._stage.teller.news()
        if news:
            await shared.put(ALERTS_SENT, news, ALERTS_SENT_KEPT_S)
            self._stage.teller.written(news)

    async def _tidy(self, shared: Shared, sent: dict[str, bytes], now_ns: int) -> None:
        if len(sent) <= _SENT_MOST:
            return
        old = [
            field
            for field, value in sent.items()
            if not value.isdigit() or now_ns - int(value) > _SENT_OLD_NS
        ]
        oldest = sorted(sent.keys() - set(old), key=lambda field: int(sent[field]))
        await shared.drop(ALERTS_SENT, *old, *oldest[: max(len(oldest) - 10 * _SENT_MOST, 0)])

    # ------------------------------------------------------------ judging

    def _judge(self, now_ns: int) -> None:
        stage = self._stage
        slot = (now_ns - WAIT_NS) // SLOT_NS - 1
        first = slot if stage.judged is None else stage.judged + 1
        if stage.judged is not None and slot < stage.judged - _CATCH_UP:
            first = slot  # judged by another clock
        local = list(self._combined(now_ns))
        for each in range(max(first, slot - _CATCH_UP + 1), slot + 1):
            stage.evaluate(self._merged, each, local)

    def _combined(self, now_ns: int) -> Iterator[Verdict]:
        """What hosts see by themselves: of one key that which fires, else the largest."""
        found: dict[str, Verdict] = {}
        for verdict in (*self._stage.local, *self._others(now_ns)):
            held = found.get(verdict.key)
            if verdict.rule in self._stage.rules.on and (held is None or _graver(verdict, held)):
                found[verdict.key] = verdict
        yield from found.values()

    def _others(self, now_ns: int) -> Iterator[Verdict]:
        for said in self._heard.values():
            if abs(now_ns - said.at_ns) <= _HEARD_NS:
                for told in said.verdicts[:_VERDICTS_MOST]:
                    with suppress(ValueError, TypeError):  # another version's
                        yield told.verdict()

    def worst(self, key: str) -> Iterable[Worst]:
        """What others told of the requests that show an alert."""
        now_ns = self._stage.now_ns()
        for said in self._heard.values():
            if abs(now_ns - said.at_ns) <= _HEARD_NS:  # else those that hung there hang no more
                yield from said.worst.get(key, ())

    # ------------------------------------------------------------ agreeing

    def _says(self, now_ns: int) -> HostSays:
        stage = self._stage
        slot = now_ns // SLOT_NS
        # Also of what does not fire yet: whoever tells of it first knows the requests of all.
        near = [verdict for verdict in stage.last.values() if _near(verdict.said)][:_WORST_MOST]
        own = {verdict.key: tuple(stage.own_worst(verdict, slot)) for verdict in near}
        return HostSays(
            now_ns,
            [LocalVerdict.of(verdict) for verdict in stage.local],
            {
                alert.key: Incident(alert.incident, alert.fired_ns, alert.number)
                for alert in stage.life.firing()
                if alert.fired_ns is not None
            },
            {key: worst for key, worst in own.items() if worst},
            self._exchange.again,
            self._yielding.yields,
        )

    def _agree(self, now_ns: int, over: set[str]) -> None:
        """Call each alert as the others do, unless this host told it under its own name."""
        for alert in self._stage.life.firing():
            if alert.number and not alert.alone:
                continue
            known = [
                found
                for said in self._heard.values()
                if abs(now_ns - said.at_ns) <= _CALLED_NS
                and (found := said.incidents.get(alert.key)) is not None
                and found.incident not in over
            ]
            best = min([*known, _incident(alert)], key=_order)
            if best.incident != alert.incident and not alert.number:
                alert.take(best.incident, best.fired_ns)


def _order(each: Incident) -> tuple[bool, int, str]:
    return not each.number, each.fired_ns, each.incident


def _incident(alert: Alert) -> Incident:
    return Incident(alert.incident, alert.fired_ns or 0, alert.number)


def _near(said: Evaluation) -> bool:
    return said.fires or (said.value is not None and said.value >= said.threshold / 2)


def _graver(one: Verdict, other: Verdict) -> bool:
    if one.said.fires != other.said.fires:
        return one.said.fires
    # Who knows something is heard before who knows nothing.
    return _value(one) > _value(other)


def _value(verdict: Verdict) -> float:
    return -1.0 if verdict.said.value is None else verdict.said.value
