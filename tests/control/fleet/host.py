"""One host's writer on a real Redis, driven by hand: the clocks stand still until a test moves them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import SecretStr

from proxy.control.fleet.connect import connect
from proxy.control.fleet.layout import Grain, HostValue, Keys, decode_host, decode_slot
from proxy.control.fleet.redis_store import RedisStore
from proxy.control.fleet.writer import Identity, Writer
from proxy.control.settle import GroupKey
from proxy.settings.telemetry import Redis
from scoring.slot import Booking
from tests.helpers.redis_server import RedisServer

S = 1_000_000_000
KEYS = Keys("test")
CHAT = GroupKey("default", "llama", "chat")
_T = TypeVar("_T")


def booking(met: int = 3, missed: int = 1) -> Booking:
    return Booking("completed", "good", 1_000_000, output_tokens=met + missed, met=met, missed=missed)


class Clock:
    """Both clocks of a host and the one of Redis; ``skew_ns``: how far Redis's is ahead."""

    def __init__(self) -> None:
        self.now_ns = time.time_ns()  # Redis drops what has expired by its own clock
        self.skew_ns = 0

    def unix_ns(self) -> int:
        return self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns

    def forward(self, seconds: float) -> None:
        self.now_ns += int(seconds * S)


class ByClock(RedisStore):
    """A store whose Redis has the test's clock, once it answers at all."""

    clock: Clock

    async def time_ns(self) -> int:
        await super().time_ns()
        return self.clock.now_ns + self.clock.skew_ns


class Host:
    """A writer that begins its rounds at once.  ``await host.round()`` is 5 s and a tick."""

    def __init__(
        self,
        url: str,
        clock: Clock | None = None,
        *,
        name: str = "00000000aaaaaaaa",
        memory: int = 32 << 20,
        timeout_s: float = 10,
    ) -> None:
        self.clock = clock or Clock()
        settings = Redis(url=SecretStr(url), timeout=int(timeout_s * S))
        self.store = ByClock(connect(settings, "legato-test"), KEYS, timeout_s)
        self.store.clock = self.clock
        self.name = name
        self.writer = Writer(
            self.store,
            Identity(name, "host-1", "0", self.clock.now_ns),
            every_ns=5 * S,
            memory_bytes=memory,
            picture=lambda: ([], []),
            lost=dict,
            unix_ns=self.clock.unix_ns,
            monotonic_ns=self.clock.monotonic_ns,
        )

    def settle(self, requests: int = 1, *, key: GroupKey = CHAT, worker: str = "w0") -> None:
        """So many requests of a worker ended just now."""
        writer = self.writer
        for _ in range(requests):
            writer.book.add(key, self.clock.now_ns + writer.offset.ns, booking())
        number = writer.losses._seen.get(worker, 0)
        writer.losses.seen(worker, number + requests)

    async def round(self, seconds: float = 5.0) -> None:
        self.clock.forward(seconds)
        await self.writer.tick()

    def status(self) -> tuple[str, str | None]:
        return self.writer.health.status, self.writer.health.reason

    @property
    def acknowledged(self) -> int:
        return self.writer.outbox.acknowledged.requests


@contextmanager
def impatient(store: RedisStore, seconds: float = 0.4) -> Iterator[None]:
    """For a server that stands still.  One that is well may take its time: the machine may be busy."""
    limit_s, store._limit_s = store._limit_s, seconds
    try:
        yield
    finally:
        store._limit_s = limit_s


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """On a loop of its own, whose connections must all be gone at the end."""
    return asyncio.run(coroutine)


# ---------------------------------------------------------------- what stands in Redis, past the product


def in_redis(server: RedisServer, grain: Grain, name: str | None = None) -> int:
    """Requests in all slots of a grain; ``name``: of one field."""
    total = 0
    with server.admin() as client:
        for key in client.scan_iter(f"test:1:slot:{grain.word}:*"):
            for field, data in client.hgetall(key).items():
                if name is None or field.decode() == name:
                    total += sum(slot.requests for slot in decode_slot(data).values())
    return total


def everywhere(server: RedisServer) -> list[int]:
    """Requests by each grain."""
    return [in_redis(server, grain) for grain in Grain]


def host_value(server: RedisServer, name: str) -> HostValue | None:
    with server.admin() as client:
        found = client.get(KEYS.host(name))
    return None if found is None else decode_host(found)
