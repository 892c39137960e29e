"""One or several hosts under a clock that a test sets: requests go in, messages come out.

world = World(hosts=2, shared=True)
world.run(60, lambda host: host.ends(missed=1))
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from proxy.control.alerts.notice import Message, Notice
from proxy.control.alerts.stage import Alerts
from proxy.control.core import Controller, Sink
from proxy.control.notify.sender import NotifierState
from proxy.control.settle import Settled, settle
from proxy.control.shared import Unshared
from proxy.link import BackendSpec, Facts, GroupNow, SloSpec, Table, Waiting
from proxy.settings.alerts import Alerts as Settings
from tests.control.facts import UNIX, S, at, facts, streamed, table
from tests.control.test_windows import Clock, ended
from tests.control.test_workers import beat, hello
from tests.helpers.shared import MemoryShared, Place

#: The start of a slot and of a minute.
START = UNIX // (60 * S) * 60 * S
GROUP = {"backend": "default", "model": "llama", "slo": "default"}


@dataclass
class Told:
    """One message that reached a notifier."""

    at_s: float
    host: str
    name: str
    message: Message

    @property
    def notices(self) -> tuple[Notice, ...]:
        return self.message.notices


@dataclass
class Out:
    """Who tells: takes messages, and hands them over after ``slow_s``; never to who is in ``refuse``."""

    world: World
    host: str
    names: tuple[str, ...] = ("ops",)
    slow_s: float = 0
    refuse: tuple[str, ...] = ()
    waiting: list[tuple[float, str, Message]] = field(default_factory=list)
    held: tuple[Notice, ...] = ()
    taken: Callable[[str, Message], None] = lambda name, message: None
    told: Callable[[str, Message], bool] = lambda name, message: False

    def send(self, message: Message, only: Iterable[str] | None = None) -> None:
        for name in self.names if only is None else only:
            self.waiting.append((self.world.now_s + self.slow_s, name, message))

    def hold(self, notices: Iterable[Notice]) -> None:
        self.held = tuple(notices)

    def states(self) -> list[NotifierState]:
        return []

    @property
    def refused_ns(self) -> int:
        waits = [at_s - self.slow_s for at_s, name, _ in self.waiting if name in self.refuse]
        return int((self.world.now_s - min(waits)) * S) if waits else 0

    def deliver(self) -> None:
        due = [each for each in self.waiting if each[0] <= self.world.now_s and each[1] not in self.refuse]
        self.waiting = [each for each in self.waiting if each not in due]
        for _, name, message in due:
            if self.told(name, message):
                continue
            self.world.told.append(Told(self.world.now_s, self.host, name, message))
            self.taken(name, message)


class Host:
    """A control process without its process."""

    def __init__(self, world: World, name: str, settings: Settings, of: Table, out: Out) -> None:
        self.world, self.name, self.out = world, name, out
        self.controller = Controller(
            of, instance=name, version="1", unix_ns=world.clock, monotonic_ns=world.monotonic
        )
        self.alerts = Alerts(settings, self.controller, outbox=out)
        self.sinks: list[Sink] = [self.alerts]
        self._known: dict[tuple[Any, ...], Settled] = {}
        out.taken, out.told = self.alerts.teller.taken, self.alerts.teller.told
        self.shared = MemoryShared(world.place, name)
        self.alive = True
        self.seq = 0
        self.controller.feed(hello())

    def ends(self, good: int = 0, missed: int = 0, failed: int = 0, **fields: Any) -> None:
        """So many requests end now."""
        batch = []
        for kind, count in (("good", good), ("missed", missed), ("failed", failed)):
            for _ in range(count):
                self.seq += 1
                batch.append(self._settled(kind, fields))
        if batch:
            for sink in self.sinks:
                sink(batch)

    def _settled(self, kind: str, fields: dict[str, Any]) -> Settled:
        """Settled once for each kind, since that is what takes time; the rest is its id and when it ended."""
        name = (kind, *sorted(fields.items()))
        known = self._known.get(name)
        if known is None:
            events = {"good": (at(50), at(90)), "missed": (at(50), at(900))}.get(kind)
            of = facts(5, **{"status": 500, **fields}) if events is None else streamed(*events, **fields)
            known = self._known[name] = settle(of, self.name, duration_only=self._duration_only(of))
            self.controller.ledger.cap.admit(known.group)
        made = replace(known.facts, seq=self.seq, id=f"{self.name}-{kind}-{self.seq}")
        return dataclasses.replace(known, facts=ended(self.world.clock, made))

    def _duration_only(self, of: Facts) -> bool:
        return any(slo.name == of.slo and slo.duration_only for slo in self.controller.slos) and not of.target

    def flies(
        self,
        awaited: int,
        overdue: int,
        tokens_per_s: float = 0.0,
        *,
        slo: str = "default",
        names: bool = True,
        **fields: Any,
    ) -> None:
        """So many streams are in flight; the worker names those overdue, the first one hangs longest.

        They have missed less than those that ``ends(missed=...)``.
        """
        late = [
            Waiting(f"{self.name}-hangs-{number}", (50 - number) * S, 9 - number, f"r{number}", "4bf92f35")
            for number in range(min(overdue, 5) if names else 0)
        ]
        group = GroupNow("default", "llama", slo, awaited, overdue, 0, 0, tokens_per_s, awaited, late)
        self.controller.feed(beat(group, **fields))


class World:
    """``monotonic``: goes on like time, whatever happens to ``clock``."""

    def __init__(
        self,
        hosts: int = 1,
        *,
        shared: bool = False,
        settings: Mapping[str, Any] | None = None,
        slos: Iterable[SloSpec] = (),
        backends: Iterable[str] = (),
        slow_s: float = 0,
    ) -> None:
        self.clock, self.monotonic = Clock(START), Clock(7 * S)
        self.place = Place(self.clock)
        self.is_shared = shared
        self.told: list[Told] = []
        self.settings = Settings.model_validate({"rules": RULES, **(settings or {})})
        specs = tuple(BackendSpec(name, f"http://{name}") for name in backends)
        self.table = Table(version=1, backends=specs, routes=(), slos=table(*slos).slos)
        self.slow_s = slow_s
        self.hosts = [self.host(f"host{number}") for number in range(hosts)]

    def host(self, name: str) -> Host:
        return Host(self, name, self.settings, self.table, Out(self, name, slow_s=self.slow_s))

    @property
    def now_s(self) -> float:
        return (self.clock.now_ns - START) / S

    def run(self, seconds: int, each: Callable[[Host], None] = lambda host: None) -> None:
        """Seconds go by; ``each`` is called once a second for each living host."""

        async def through() -> None:
            for _ in range(seconds):
                self.clock.now_ns += S
                self.monotonic.now_ns += S
                for number, host in enumerate(self.hosts):
                    if not host.alive:
                        continue
                    each(host)
                    host.alerts.tick()
                    if self.is_shared and round(self.now_s) % 5 == number % 5:
                        await self._sync(host)
                    host.out.deliver()

        asyncio.run(through())

    async def _sync(self, host: Host) -> None:
        try:
            await host.alerts.sync(host.shared)
        except Unshared:
            return

    def of(self, rule: str, state: str) -> list[Told]:
        return [each for each in self.told if (each.message.rule, each.message.state) == (rule, state)]


#: All but what this process' own health says.
RULES = ("burn_rate", "spike", "errors", "stalled", "drift", "backend_down", "experiment")
