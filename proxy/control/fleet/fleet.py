"""One view of many hosts: what is settled here goes to Redis, what all settled is read from it.

Imported only where Redis is configured.  Nothing here waits for Redis but the task of ``run``, and the
readers' own questions.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from proxy.control.core import Controller
from proxy.control.fleet.answers import Away
from proxy.control.fleet.connect import connect
from proxy.control.fleet.health import Status
from proxy.control.fleet.layout import Keys
from proxy.control.fleet.reader import Reader
from proxy.control.fleet.redis_store import RedisStore
from proxy.control.fleet.shared import RedisShared
from proxy.control.fleet.writer import Identity, Picture, Writer
from proxy.control.settle import Settled
from proxy.control.windows import Booked
from proxy.link import BackendNow, Hello
from proxy.settings.telemetry import Redis

#: Part of the deadline of ``close`` that may pass until the task of ``run`` has ended.
_LEAVE_S: Final = 0.1
#: Requests that are in nobody's slots: what every host tells of itself in ``HostValue.lost``.
_LOST: Final = ("facts", "worker_lost", "settled_before_write", "redis_slots")


@dataclass(frozen=True, slots=True)
class FleetState:
    """How the sharing goes.  ``reason``: one word, set while ``status`` is degraded.

    ``acknowledged``: requests, met, missed and output_tokens that Redis has of this control process.
    ``waiting_*``: of slots that Redis has not acknowledged.  ``written_unix_ns``: when it last had
    acknowledged everything.  ``offset_ns``: Redis's clock less the host's, 0 until it is known.
    """

    incarnation: str
    status: Status
    reason: str | None
    since_unix_ns: int
    offset_ns: int
    waiting_bytes: int
    waiting_slots: int
    written_unix_ns: int | None
    acknowledged: dict[str, int]
    offset_known: bool = False


class Fleet:
    """See the module.  ``ValueError`` for settings without a URL that can be used."""

    def __init__(
        self,
        settings: Redis,
        controller: Controller,
        *,
        unix_ns: Callable[[], int],
        monotonic_ns: Callable[[], int],
    ) -> None:
        self._controller = controller
        self._monotonic_ns = monotonic_ns
        self._failed = 0
        self._task: asyncio.Task[object] | None = None
        identity = Identity(
            secrets.token_hex(8), controller.instance, controller.version, controller.since_unix_ns
        )
        keys = Keys(settings.prefix)
        store = RedisStore(connect(settings, f"legato-{identity.incarnation}"), keys, settings.timeout / 1e9)
        self.writer = Writer(
            store,
            identity,
            every_ns=settings.every,
            memory_bytes=settings.memory,
            picture=self._picture,
            lost=self._lost,
            unix_ns=unix_ns,
            monotonic_ns=monotonic_ns,
        )
        self.shared = RedisShared(store, identity.incarnation, self.writer.now_ns)
        self.reader = Reader(
            store,
            keys,
            offset_ns=lambda: self.writer.offset.ns,
            unix_ns=unix_ns,
            monotonic_ns=monotonic_ns,
            trouble=self._trouble,
        )

    # ------------------------------------------------------------ what the controller tells

    def booked(self, booked: Booked) -> None:
        """One request was booked."""
        writer = self.writer
        try:
            writer.book.add(booked.key, booked.at_ns + writer.offset.ns, booked.booking, writer.now_ns())
        except ValueError:  # the windows would have refused it before
            self._failed += 1

    def seen(self, worker: str, number: int) -> None:
        """A worker's requests up to this number are booked."""
        self.writer.losses.seen(worker, number)

    def hello(self, hello: Hello) -> None:
        """A worker connected; what its last control process took with it is looked up."""
        self.writer.losses.hello(hello.incarnation, hello.acked)

    def __call__(self, batch: Sequence[Settled]) -> None:
        """Some of their records are shared."""
        self.writer.records.take(batch, self._monotonic_ns())

    # ------------------------------------------------------------ running

    async def run(self) -> None:
        """Write until cancelled."""
        self._task = asyncio.current_task()
        await self.writer.run()

    async def close(self, deadline_s: float) -> None:
        """Write what there is; ends the task of ``run`` first.  Takes no longer than about the deadline."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + deadline_s
        task = self._task
        if task is not None and not task.done() and task is not asyncio.current_task():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task], timeout=min(_LEAVE_S, deadline_s))
        await self.writer.close(max(until_s - loop.time(), 0))

    # ------------------------------------------------------------ what others see

    def failures(self) -> dict[str, int]:
        """For the exporters' failures."""
        return {"redis": self.writer.health.failures + self._failed}

    def dropped(self) -> dict[str, int]:
        """For what was dropped."""
        return {
            "redis_slots": self.writer.outbox.lost,
            "settled_before_write": self.writer.losses.settled_before_write,
        }

    def state(self) -> FleetState:
        """How it goes."""
        writer = self.writer
        return FleetState(
            incarnation=writer.identity.incarnation,
            status=writer.health.status,
            reason=writer.health.reason,
            since_unix_ns=writer.health.since_unix_ns,
            offset_ns=writer.offset.ns,
            waiting_bytes=writer.outbox.waiting_bytes,
            waiting_slots=writer.outbox.waiting_slots,
            written_unix_ns=writer.written_unix_ns,
            acknowledged=writer.outbox.acknowledged._asdict(),
            offset_known=writer.offset.known,
        )

    def _lost(self) -> dict[str, int]:
        counts = self._controller.workers.dropped() | self.dropped()
        return {name: counts[name] for name in _LOST if counts[name]}

    def _trouble(self) -> Away | None:
        health = self.writer.health
        return Away(health.reason or "error", health.since_unix_ns) if health.status == "degraded" else None

    def _picture(self) -> Picture:
        controller = self._controller
        groups = controller.workers.groups_now(controller.ledger.cap)
        backends = [
            BackendNow(each.name, each.up, each.active, each.idle, each.connecting, each.addresses)
            for each in controller.workers.backends()
        ]
        return list(groups), backends
