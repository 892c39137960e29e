"""One notifier with what waits for it, and the task that tells it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from proxy.control.alerts.notice import Message, Notice
from proxy.control.notify.backlog import Backlog, Waiting
from proxy.control.notify.base import Notifier, Outcome
from proxy.tasks import report

_log = logging.getLogger("legato.alerts")

#: A notifier that forgets (Alertmanager, after five minutes) is reminded this often.
REMIND_NS: Final = 45_000_000_000
#: So many alerts at most.
REMIND_MOST: Final = 1_024


async def pause(event: asyncio.Event, seconds: float | None) -> None:
    """Wait for the event, no longer than ``seconds``."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


@dataclass(frozen=True)
class Means:
    """What all lanes have in common: clocks (ns), waiting, chance, and who is told of what came of it."""

    unix_ns: Callable[[], int]
    monotonic_ns: Callable[[], int]
    pause: Callable[[asyncio.Event, float | None], Awaitable[None]]
    jitter: Callable[[], float]
    on_sent: Callable[[str, Message], None] | None = None
    told: Callable[[str, Message], bool] | None = None
    tally: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (kind, result)


class Lane:
    """See the module.  ``run`` ends after ``close``, when everything had one more attempt."""

    def __init__(self, notifier: Notifier, means: Means) -> None:
        self.notifier = notifier
        self.backlog = Backlog(means.jitter)
        self.last_sent_unix_ns: int | None = None
        self.last_error: str | None = None
        self.last_error_unix_ns: int | None = None
        self._means = means
        self._wake = asyncio.Event()
        self._closing = False
        self._failing = False
        self._firing: dict[str, Notice] = {}
        self._out: frozenset[str] = frozenset()  # incidents that fire now
        self._remind_at_ns: int | None = None

    # ------------------------------------------------------------ from outside

    def send(self, message: Message) -> None:
        """Put it at the end; never waits."""
        if self.notifier.forgets:
            firing = {**self._firing, **{each.key: each for each in message.notices}}
            self.hold(each for each in firing.values() if each.state == "firing")
        dropped = self.backlog.add(message, self._means.monotonic_ns())
        self._wake.set()
        if dropped is not None:
            self._give_up("too many messages wait")

    def hold(self, notices: Iterable[Notice]) -> None:
        """Those that fire: what tells of them is not given up, and who forgets is reminded of them."""
        held = tuple(notices)
        self._out = frozenset(each.incident for each in held)
        if not self.notifier.forgets:
            return
        self._firing = dict(list({each.key: each for each in held}.items())[-REMIND_MOST:])
        if not self._firing:
            self._remind_at_ns = None
        elif self._remind_at_ns is None:
            self._remind_at_ns = self._means.monotonic_ns() + REMIND_NS
            self._wake.set()

    def replace(self, notifier: Notifier) -> None:
        """The same one with other settings: what waits is tried with them at once."""
        self.notifier = notifier
        self.backlog.not_before_ns = 0
        self.backlog.reachable(self._means.monotonic_ns())
        self._wake.set()

    def close(self) -> None:
        """Try what waits once more, then end."""
        self._closing = True
        self._wake.set()

    def abandon(self, why: str) -> None:
        """Give up everything that waits."""
        for _ in self.backlog.take_all():
            self._give_up(why)

    # ------------------------------------------------------------ its task

    async def run(self) -> None:
        """Tell whatever comes, until closed."""
        while not self._closing:
            now_ns = self._means.monotonic_ns()
            waiting = self.backlog.first()
            due_ns = None if waiting is None else self.backlog.due_ns(waiting)
            if waiting is not None and due_ns is not None and due_ns <= now_ns:
                await self._try(waiting)
            elif (remind_ns := self._remind_ns()) is not None and remind_ns <= now_ns:
                await self._remind(now_ns)
            else:
                moments = [moment for moment in (due_ns, remind_ns) if moment is not None]
                seconds = (min(moments) - now_ns) / 1e9 if moments else None
                await self._means.pause(self._wake, seconds)
                self._wake.clear()
        await self._last_words()

    async def _try(self, waiting: Waiting) -> None:
        if waiting.failures and self._told(waiting.message):
            self.backlog.done(waiting)
            return
        self.backlog.trying(waiting)
        outcome = await self._tell(waiting.message)
        now_ns = self._means.monotonic_ns()
        if outcome.taken:
            self.backlog.done(waiting)
            self.backlog.reachable(now_ns)
            self._sent(waiting.message)
        elif not outcome.again:
            self.backlog.done(waiting)
            self._give_up(outcome.said)
        elif self.backlog.failed(waiting, outcome.wait_ns, now_ns, lasts=self._lasts(waiting.message)):
            self._failed(outcome.said)
        else:
            self._give_up(outcome.said)

    def _told(self, message: Message) -> bool:
        """Whether another host told it meanwhile."""
        try:
            return self._means.told is not None and self._means.told(self.notifier.name, message)
        except Exception as error:  # rather twice than never
            report("asking whether a message was told", error)
            return False

    async def _tell(self, message: Message) -> Outcome:
        try:
            return await self.notifier.tell(message)
        except Exception as error:  # one message must not end the lane
            report(f"notifier {self.notifier.name}", error)
            return Outcome(taken=False, said=f"an error of ours, {type(error).__name__}")

    def _lasts(self, message: Message) -> bool:
        """Whether anything that it says to fire does so still: who heard nothing of it is told yet."""
        return message.state == "firing" and any(each.incident in self._out for each in message.notices)

    async def _last_words(self) -> None:
        """One attempt for each message that waits, in order."""
        while (waiting := self.backlog.first()) is not None:
            self.backlog.trying(waiting)
            outcome = await self._tell(waiting.message)
            self.backlog.done(waiting)
            if outcome.taken:
                self._sent(waiting.message)
            else:
                self._give_up(outcome.said)

    # ------------------------------------------------------------ reminding

    def _remind_ns(self) -> int | None:
        if self._remind_at_ns is None:
            return None
        return max(self._remind_at_ns, self.backlog.not_before_ns)

    async def _remind(self, now_ns: int) -> None:
        self._remind_at_ns = now_ns + REMIND_NS
        try:
            outcome = await self.notifier.remind(tuple(self._firing.values()))
        except Exception as error:  # as above
            report(f"notifier {self.notifier.name}", error)
            return
        if outcome.taken:
            self._well()
        else:
            self._failed(outcome.said)

    # ------------------------------------------------------------ what came of it

    def _count(self, result: str) -> None:
        self._means.tally[self.notifier.kind, result] += 1

    def _sent(self, message: Message) -> None:
        self._count("sent")
        self.last_sent_unix_ns = self._means.unix_ns()
        self._well()
        if self._means.on_sent is not None:
            try:
                self._means.on_sent(self.notifier.name, message)
            except Exception as error:  # it was sent all the same
                report("telling of a message that was sent", error)

    def _well(self) -> None:
        if self._failing:
            _log.info("notifier %s (%s) takes messages again", self.notifier.name, self.notifier.where)
        self._failing = False

    def _failed(self, said: str) -> None:
        self._count("failed")
        self._trouble(said)
        if not self._failing:
            self._failing = True
            _log.warning(
                "notifier %s (%s): %s; it is tried again, %d wait",
                self.notifier.name,
                self.notifier.where,
                said,
                len(self.backlog),
            )

    def _give_up(self, said: str) -> None:
        self._count("given_up")
        self._trouble(said)
        self._failing = True
        _log.warning(
            "notifier %s (%s): a message was given up: %s", self.notifier.name, self.notifier.where, said
        )

    def _trouble(self, said: str) -> None:
        self.last_error, self.last_error_unix_ns = said, self._means.unix_ns()
