"""Alerts of this host: what is fed, when the rules are asked, and who tells.

``__call__`` takes settled requests, ``tick`` comes once a second: it looks at what is in flight, and every
10 s, when a slot is over, the rules are asked.  Where hosts share, ``sync`` (``together.py``) asks them about
everybody's traffic instead, and the holder of a lease tells; while the store is away each host judges and
tells by itself.  Nothing here may raise into the control process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from proxy.control.alerts.judge import Judge, Verdict
from proxy.control.alerts.life import Life, Said
from proxy.control.alerts.notice import Worst
from proxy.control.alerts.rings import BAD, FAILED, MISSED, SLOT_NS, Book, settled_tally
from proxy.control.alerts.rules import Rules
from proxy.control.alerts.signals import Down, ExperimentAlarm, Signals
from proxy.control.alerts.teller import Outbox, Teller
from proxy.control.alerts.together import Together
from proxy.control.alerts.worst import ALL_KINDS, Worsts, kinds_of, worst_first, worst_of, worst_waiting
from proxy.control.core import Controller
from proxy.control.settle import GroupKey, Settled
from proxy.control.shared import Shared
from proxy.link import Waiting
from proxy.settings.alerts import Alerts as Settings
from proxy.tasks import report

#: A clock that moved so much more or less than time did has jumped.
JUMP_NS: Final = 30_000_000_000
#: After a pause of so long what waits for its time waits anew.
PAUSE_NS: Final = 60_000_000_000
#: A group's look at the end of a slot stands for so many slots before it that nobody looked at.
_LOOKS_MOST: Final = 3
_TROUBLES_MOST: Final = 10


class Alerts:
    """See the module.

    ``down``: backends that cannot be reached (default: what workers' last attempts say); ``experiments``:
    what experiments warn of; ``outbox``: who tells people, which may be set later.
    """

    def __init__(
        self,
        settings: Settings,
        controller: Controller,
        *,
        outbox: Outbox | None = None,
        down: Callable[[], Iterable[Down]] | None = None,
        experiments: Callable[[], Iterable[ExperimentAlarm]] = tuple,
    ) -> None:
        self._controller = controller
        self.settings = settings
        self.rules = Rules.of(settings, controller.slos)
        self.own = Book()
        self.worsts = Worsts()
        self.life = Life()
        self.judge = Judge()
        self.teller = Teller(outbox, controller.now_unix_ns)
        self.together = Together(self)
        self.offset_ns = 0  # of the clock that all hosts agree on
        self.local: list[Verdict] = []  # what this host sees by itself
        self.last: dict[str, Verdict] = {}  # the last evaluation, by key
        self.judged: int | None = None  # the last slot that was judged
        self._signals = Signals(controller, down=down, experiments=experiments)
        self._open: int | None = None  # the slot that time is in
        self._ticked: tuple[int, int] | None = None  # wall clock and monotonic
        self._tokens: dict[GroupKey, float] = {}
        self._waiting: dict[GroupKey, list[Waiting]] = {}  # the last that workers said
        self._looks = 0
        self._troubles = 0

    # ------------------------------------------------------------ settings

    def configure(self, settings: Settings) -> None:
        """New settings, or a new table: what fires goes on, unless nobody watches it any more."""
        self.settings = settings
        self.rules = rules = Rules.of(settings, self._controller.slos)
        self.life.drop(lambda alert: rules.watches(alert.rule, alert.named.get("slo")), self.now_ns())

    @property
    def said(self) -> Said:
        """What notices say beside the alert."""
        return Said(self._controller.instance, self.settings.url)

    # ------------------------------------------------------------ what is fed

    def __call__(self, batch: Sequence[Settled]) -> None:
        """Settled requests."""
        try:
            slot = self.now_ns() // SLOT_NS
            self.own.advance(slot)
            for settled in batch:
                self._add(settled)
        except Exception as error:  # counting for alerts must not cost the books anything
            self._trouble("counting for alerts", error)

    def _add(self, settled: Settled) -> None:
        key = self._controller.ledger.cap.admit(settled.group, new=False)
        facts = settled.facts
        at_ns = facts.received_unix_ns + facts.end_ns - facts.received_ns + self.offset_ns
        slot = at_ns // SLOT_NS
        tally = settled_tally(settled)
        self.own.add(key, slot, tally)
        for kind in kinds_of(tally[MISSED], tally[FAILED], tally[BAD]):
            score = settled.score
            worst = worst_of(
                facts.id,
                facts.request_id,
                facts.trace_id,
                settled.outcome.value,
                None if score is None else score.missed,
                None if score is None else score.fluidity,
            )
            self.worsts.add(key, slot, kind, worst)

    def tick(self) -> None:
        """About once a second."""
        try:
            self._tick()
        except Exception as error:  # what only looks on must not end the control process
            self._trouble("alerts", error)

    def _tick(self) -> None:
        now_ns = self.now_ns()
        self._notice_jumps(now_ns)
        slot = now_ns // SLOT_NS
        groups = self._controller.workers.groups_now(self._controller.ledger.cap)
        self._waiting = self._controller.workers.waiting(self._controller.ledger.cap)
        for now in groups:
            key = GroupKey(now.backend, now.model, now.slo)
            self._tokens[key] = self._tokens.get(key, 0.0) + now.tokens_per_s
        self._looks += 1
        if self._open is None:
            self._open = slot
            self.own.advance(slot)
        if slot <= self._open:
            return
        self.own.advance(slot)
        for over in range(max(self._open, slot - _LOOKS_MOST), slot):
            for now in groups:
                key = GroupKey(now.backend, now.model, now.slo)
                self.own.look(key, over, now.awaited, now.overdue, self._tokens[key] / self._looks)
        self._open, self._tokens, self._looks = slot, {}, 0
        self.local = list(self._signals.judge(self.rules, now_ns))
        if self.together.alone:
            self.evaluate(self.own, slot - 1, self.local)
            # Also before the store was ever reached: who told of it alone tells its end.
            self.teller.tell(self.life, self.now_ns(), self.settings.repeat, self.said, alone=True)
            if not self.together.shares:
                self.teller.forget_news()

    async def sync(self, shared: Shared) -> None:
        """Every few seconds, with other hosts; may raise ``Unshared``."""
        await self.together.sync(shared)

    # ------------------------------------------------------------ judging

    def evaluate(self, book: Book, slot: int, local: Iterable[Verdict]) -> None:
        """Ask all rules about the end of ``slot``."""
        now_ns = (slot + 1) * SLOT_NS
        if self.judged is not None and (slot - self.judged) * SLOT_NS > PAUSE_NS:
            self.life.rebase(now_ns)
        self.judged = slot
        verdicts = [*self.judge.judge(book, self.rules, slot, self.life.fires), *local]
        self.last = {verdict.key: verdict for verdict in verdicts}
        self.life.step(verdicts, now_ns, lambda verdict: self.worst_of(verdict, slot))

    def worst_of(self, verdict: Verdict, slot: int) -> tuple[Worst, ...]:
        """The requests that show it: this host's, and what others told of theirs."""
        return tuple(worst_first([*self.own_worst(verdict, slot), *self.together.worst(verdict.key)]))

    def own_worst(self, verdict: Verdict, slot: int) -> list[Worst]:
        """This host's."""
        if verdict.rule == "stalled" and verdict.group in self._waiting:
            return worst_first(worst_waiting(each) for each in self._waiting[verdict.group])
        kinds = ALL_KINDS if verdict.group is None else (verdict.kind,)
        return worst_first(
            worst
            for key in self._shown_by(verdict)
            for kind in kinds
            for worst in self.worsts.of(key, slot, kind)
        )

    def _shown_by(self, verdict: Verdict) -> Iterator[GroupKey]:
        if verdict.group is not None:
            yield verdict.group
        elif verdict.rule in ("burn_rate", "drift", "backend_down"):
            wanted = {name: value for name, value in verdict.labels if name in GroupKey._fields}
            for key in self.own.groups:
                if all(getattr(key, name) == value for name, value in wanted.items()):
                    yield key

    # ------------------------------------------------------------ time

    def now_ns(self) -> int:
        """The wall clock that all hosts agree on."""
        return self._controller.now_unix_ns() + self.offset_ns

    def _notice_jumps(self, now_ns: int) -> None:
        monotonic_ns = self._controller.now_monotonic_ns()
        before, self._ticked = self._ticked, (now_ns, monotonic_ns)
        if before is None:
            return
        went_ns = now_ns - before[0]
        if abs(went_ns - (monotonic_ns - before[1])) <= JUMP_NS:
            return
        # What was counted cannot be placed any more: begin anew, with what fires.
        self.own, self.judged, self._open = Book(), None, None
        self.worsts.clear()
        self.judge.clear()
        self.together.restart()
        self.life.rebase(now_ns)

    def _trouble(self, what: str, error: Exception) -> None:
        self._troubles += 1
        if self._troubles <= _TROUBLES_MOST:
            report(what, error)

    # ------------------------------------------------------------ looking

    @property
    def judged_ns(self) -> int | None:
        """The end of the last slot that was judged."""
        return None if self.judged is None else (self.judged + 1) * SLOT_NS

    def counts(self) -> dict[tuple[str, str], int]:
        """By (rule, state): how many are out or wait, of each rule that is watched."""
        out = {(rule, state): 0 for rule in sorted(self.rules.on) for state in ("pending", "firing")}
        for alert in self.life.alerts.values():
            place = (alert.rule, alert.phase.state)
            out[place] = out.get(place, 0) + 1
        return out
