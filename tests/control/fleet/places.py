"""Each way to run Redis, with what a test does to it, and whole hosts on it whose clocks a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final

from pydantic import SecretStr

from proxy.control.core import Controller
from proxy.control.fleet.fleet import Fleet, FleetState
from proxy.control.fleet.layout import Keys
from proxy.control.fleet.reader import Reader
from proxy.control.windows import Booked
from proxy.link import Facts, FactsBatch, Hello
from proxy.settings.telemetry import Redis, RedisTls
from scoring.window import Windows
from tests.control.facts import S, table
from tests.control.test_windows import Clock
from tests.helpers.redis_server import (
    RedisServer,
    redis_acl,
    redis_cluster,
    redis_sentinel,
    redis_server,
    redis_tls,
)
from tests.helpers.redis_shim import Shim

#: Of a server that is well and on a busy machine; ``patience`` says less where a test waits for it.
TIMEOUT_S: Final = 10.0
PREFIX: Final = "legato"


@dataclass
class Place:
    """``crash``: the server (the master, a node) is gone; ``back``: someone serves its keys again.

    ``keeps``: whether what was acknowledged before is still there then.  ``shims``: those in front of it.
    """

    url: str
    servers: Callable[[], list[RedisServer]]
    crash: Callable[[], None]
    back: Callable[[], None]
    tls: RedisTls = field(default_factory=RedisTls)
    shims: list[Shim] = field(default_factory=list)
    keeps: bool = False

    def settings(self) -> Redis:
        """As a user would give them."""
        return Redis(url=SecretStr(self.url), prefix=PREFIX, tls=self.tls, timeout=int(TIMEOUT_S * S))

    @contextmanager
    def losing(self, command: bytes | None) -> Iterator[None]:
        """The answer to this command is lost (``None``: to all, of the first server), and must have been."""
        if command is None:
            server = self.servers()[0]
            server.pause()
            yield
            server.resume()
            return
        cuts = sum(shim.cuts for shim in self.shims)
        for shim in self.shims:
            shim.cut(command)
        yield
        for shim in self.shims:
            shim.forward()
        assert sum(shim.cuts for shim in self.shims) > cuts

    def flush(self) -> None:
        """Nothing is there any more."""
        for server in self.servers():
            server.ask("FLUSHALL")


def _one(server: RedisServer, url: str = "", **fields: object) -> Place:
    return Place(url or server.url, lambda: [server], server.kill, server.start, **fields)  # type: ignore[arg-type]


def _through(server: RedisServer, shim: Shim) -> Place:
    url = server.url.replace(f":{server.port}", f":{shim.port}")
    return _one(server, url, shims=[shim])


@contextmanager
def standalone() -> Iterator[Place]:
    """One server."""
    with redis_server() as server, Shim(server.address) as shim:
        yield _through(server, shim)


@contextmanager
def acl() -> Iterator[Place]:
    """A user with the least rights."""
    with redis_acl() as server, Shim(server.address) as shim:
        yield _through(server, shim)


@contextmanager
def tls() -> Iterator[Place]:
    """TLS with a client's certificate."""
    with redis_tls(mutual=True) as (server, pem):
        yield _one(server, tls=RedisTls(ca_file=pem.ca, cert_file=pem.cert, key_file=pem.key))


@contextmanager
def sentinel() -> Iterator[Place]:
    """A failover for a crash: once, since the old master stays away."""
    with redis_sentinel() as found:
        found.patience(60)  # a server that stands still for a moment is none that is down

        def crash() -> None:
            found.replicated()
            found.patience(0.3)
            found.master.kill()

        def back() -> None:
            found.failover()
            found.patience(60)  # as before: to clients a master that counts as down is none

        yield Place(found.url, lambda: [found.current()], crash, back, keeps=True)


@contextmanager
def cluster() -> Iterator[Place]:
    """Three masters; one of them crashes and comes back empty."""
    with redis_cluster(shims=True) as found:
        # The one that every round needs: of the other keys none may happen to be on a given node.
        first = found.node_of(Keys(PREFIX).hosts)

        def back() -> None:
            first.start()
            found.wait_ok()

        servers = [first, *(node for node in found.nodes if node is not first)]
        yield Place(found.url, lambda: servers, first.kill, back, shims=found.shims)


PLACES: Final = {each.__name__: each for each in (standalone, acl, tls, sentinel, cluster)}


class Pod:
    """One control process with its fleet, driven by hand; ``every`` is told of each booking too."""

    def __init__(
        self,
        place: Place,
        clock: Clock,
        name: str,
        every: Windows | None = None,
    ) -> None:
        self.clock = clock
        self.controller = Controller(
            table(), instance=name, version="1", unix_ns=clock, monotonic_ns=clock, sinks=()
        )
        self.fleet = Fleet(place.settings(), self.controller, unix_ns=clock, monotonic_ns=clock)
        self._every = every
        store = self.fleet.writer._store
        asked = store.time_ns

        async def by_clock() -> int:
            await asked()
            return clock.now_ns

        store.time_ns = by_clock  # type: ignore[method-assign]
        self.controller.join(self)
        self.controller.add_sink(self.fleet)
        self.controller.feed(Hello(1, 0, 0, f"worker-of-{name}", 1, 0, 0))

    # ------------------------------------------------------------ core.Fleet, with an ear for the test

    @property
    def reader(self) -> Reader:
        return self.fleet.reader

    def booked(self, booked: Booked) -> None:
        if self._every is not None:
            self._every.add(booked.key, booked.at_ns, booked.booking)
        self.fleet.booked(booked)

    def seen(self, worker: str, number: int) -> None:
        self.fleet.seen(worker, number)

    def hello(self, hello: Hello) -> None:
        self.fleet.hello(hello)

    def state(self) -> FleetState:
        return self.fleet.state()

    # ------------------------------------------------------------ what it does

    def ends(self, *requests: Facts) -> None:
        """These ended here just now."""
        self.controller.feed(FactsBatch(list(requests)))

    async def round(self, seconds: float = 5.0) -> str:
        """So much later: write what is due; how it went."""
        self.clock.now_ns += int(seconds * S)
        await self.fleet.writer.tick()
        return self.fleet.state().status

    async def well(self, most: int = 200) -> None:
        """Rounds until everything is written; real servers need real time between those that fail."""
        for _ in range(most):
            if await self.round(2.0) == "ok" and not self.fleet.state().waiting_slots:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(self.fleet.state())


@asynccontextmanager
async def pods(
    place: Place, clock: Clock, *names: str, every: Windows | None = None
) -> AsyncIterator[list[Pod]]:
    """So many; all let go of their connections at the end."""
    made = [Pod(place, clock, name, every) for name in names]
    try:
        yield made
    finally:
        for each in made:
            await each.fleet.close(1)
