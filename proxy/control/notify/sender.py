"""Telling people of alerts: each notifier has its own queue and task, so that none holds up another.

``send`` never waits.  What cannot be told is tried again (see ``backlog.py``), and counted where it is lost.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from msgspec import Struct

from proxy.control.alerts.notice import Message, Notice
from proxy.control.notify.base import Kind, Origin, Outcome
from proxy.control.notify.build import build
from proxy.control.notify.lane import Lane, Means, pause
from proxy.control.notify.sample import rehearse
from proxy.settings.notify import Notifier as NotifierSettings
from proxy.tasks import spawn


class NotifierState(Struct, frozen=True):
    """One notifier for people: ``where`` is its host; ``last_error`` is in our words.  Unix nanoseconds."""

    name: str
    kind: Kind
    where: str
    waiting: int
    last_sent_unix_ns: int | None
    last_error: str | None
    last_error_unix_ns: int | None


class Sender:
    """See the module.

    ``on_sent(name, message)`` is called, on the loop, when a notifier took a message; ``told(name, message)``
    says that it took it from another host.  ``pause(event, seconds)`` and ``jitter()`` are for tests.
    """

    def __init__(
        self,
        notifiers: Sequence[NotifierSettings],
        *,
        instance: str,
        version: str,
        unix_ns: Callable[[], int],
        monotonic_ns: Callable[[], int],
        on_sent: Callable[[str, Message], None] | None = None,
        told: Callable[[str, Message], bool] | None = None,
        pause: Callable[[asyncio.Event, float | None], Awaitable[None]] = pause,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._origin = Origin(instance, version)
        self._means = Means(unix_ns, monotonic_ns, pause, jitter, on_sent, told)
        self._settings: dict[str, NotifierSettings] = {}
        self._lanes: dict[str, Lane] = {}
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._running = False
        self.configure(notifiers)

    # ------------------------------------------------------------ settings

    def configure(self, notifiers: Sequence[NotifierSettings]) -> None:
        """These are told from now on; what waits for one that keeps its name and kind waits on."""
        wanted = {each.called: each for each in notifiers}
        for name in self._lanes.keys() - wanted.keys():
            self._remove(name)
        for name, settings in wanted.items():
            if self._settings.get(name) == settings:
                continue
            notifier = build(settings, self._origin, self._means.unix_ns)
            if name in self._lanes and self._lanes[name].notifier.kind == notifier.kind:
                self._lanes[name].replace(notifier)
            else:
                self._remove(name)
                self._lanes[name] = Lane(notifier, self._means)
        self._settings = wanted
        if self._running:
            self._start()

    def _remove(self, name: str) -> None:
        lane, task = self._lanes.pop(name, None), self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
        if lane is not None:
            lane.abandon("the notifier was taken out of the configuration")

    # ------------------------------------------------------------ telling

    def send(self, message: Message, only: Iterable[str] | None = None) -> None:
        """Tell every notifier, or ``only`` those of these names.  Never waits."""
        if self._running:
            self._start()  # a task that failed is none that stays away
        names = self._lanes.keys() if only is None else self._lanes.keys() & set(only)
        for name in names:
            self._lanes[name].send(message)

    def hold(self, notices: Iterable[Notice]) -> None:
        """These fire now and are told by this host; nothing else does.

        Notifiers that forget (Alertmanager) are reminded of them.  Without this call they are reminded of
        what ``send`` said last; a host that takes over from another, or stops telling, says so by it.
        """
        held = tuple(notices)
        for lane in self._lanes.values():
            lane.hold(held)

    async def test(self, name: str) -> tuple[Outcome, ...]:
        """Tell one notifier a sample, past its queue: what came of each message.  May raise ``KeyError``."""
        return await rehearse(self._lanes[name].notifier, self._origin, self._means.unix_ns())

    # ------------------------------------------------------------ its life

    async def run(self) -> None:
        """Tell until cancelled; what waits then is for ``close``."""
        self._running = True
        self._start()
        await asyncio.Event().wait()

    def _start(self) -> None:
        for name, lane in self._lanes.items():
            task = self._tasks.get(name)
            if task is None or task.done():
                self._tasks[name] = spawn(lane.run(), f"notifier {name}")

    async def close(self, deadline_s: float) -> None:
        """One last attempt for what waits; after ``deadline_s`` the rest is given up."""
        self._running = False
        for lane in self._lanes.values():
            lane.close()
        self._start()
        tasks = list(self._tasks.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=deadline_s)
            for task in late:
                task.cancel()
        for lane in self._lanes.values():
            lane.abandon("Legato ended")

    # ------------------------------------------------------------ for people

    @property
    def names(self) -> tuple[str, ...]:
        """Of the notifiers, in the configuration's order."""
        return tuple(self._settings)

    def counts(self) -> dict[tuple[str, str], int]:
        """By (kind, ``sent`` | ``failed`` | ``given_up``): messages since the start, ``failed``: attempts."""
        kinds = {lane.notifier.kind for lane in self._lanes.values()}
        zero = {(kind, result): 0 for kind in kinds for result in ("sent", "failed", "given_up")}
        return zero | dict(self._means.tally)

    @property
    def refused_ns(self) -> int:
        """How long the oldest message that was tried in vain has waited; 0 where none does."""
        since = [ns for lane in self._lanes.values() if (ns := lane.backlog.refused_since_ns) is not None]
        return self._means.monotonic_ns() - min(since) if since else 0

    def states(self) -> list[NotifierState]:
        """Each notifier, in the configuration's order."""
        return [_state(self._lanes[name]) for name in self._settings]


def _state(lane: Lane) -> NotifierState:
    told = lane.notifier
    return NotifierState(
        told.name,
        told.kind,
        told.where,
        len(lane.backlog),
        lane.last_sent_unix_ns,
        lane.last_error,
        lane.last_error_unix_ns,
    )
