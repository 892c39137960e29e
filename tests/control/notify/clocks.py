"""A clock that moves when somebody waits, and notifiers that do as they are told."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import ClassVar

from proxy.control.alerts.notice import Message, Notice
from proxy.control.notify.base import Kind, Notifier, Outcome
from tests.control.notify.notices import BORN

TAKEN = Outcome(taken=True, said="answered 200")
AGAIN = Outcome(taken=False, said="answered 500", again=True)
REFUSED = Outcome(taken=False, said="answered 403")


class Clock:
    """Nanoseconds; nobody sleeps.  A pause ends at ``stop_ns``, where time stands still."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.stop_ns = math.inf

    def monotonic_ns(self) -> int:
        return self.now_ns

    def unix_ns(self) -> int:
        return BORN + self.now_ns

    async def pause(self, event: asyncio.Event, seconds: float | None) -> None:
        await asyncio.sleep(0)
        if event.is_set():
            return
        if seconds is None or self.now_ns + seconds * 1e9 > self.stop_ns:
            await event.wait()
        else:
            self.now_ns += math.ceil(seconds * 1e9)


class Scripted(Notifier):
    """Gives these outcomes in turn, the last one for ever; notes what it was told, and when (seconds)."""

    kind: ClassVar[Kind] = "webhook"

    def __init__(self, clock: Clock, *outcomes: Outcome | Exception) -> None:
        super().__init__("ops", "ops.example.com")
        self.clock = clock
        self.outcomes = list(outcomes or (TAKEN,))
        self.told: list[tuple[float, str]] = []

    async def tell(self, message: Message) -> Outcome:
        self.told.append((self.clock.now_ns / 1e9, message.id))
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Forgetful(Scripted):
    """As Alertmanager: it is reminded."""

    kind: ClassVar[Kind] = "alertmanager"
    forgets: ClassVar[bool] = True

    def __init__(self, clock: Clock, *outcomes: Outcome | Exception) -> None:
        super().__init__(clock, *outcomes)
        self.reminded: list[tuple[float, list[str]]] = []

    async def remind(self, notices: Sequence[Notice]) -> Outcome:
        self.reminded.append((self.clock.now_ns / 1e9, sorted(each.key for each in notices)))
        return TAKEN
