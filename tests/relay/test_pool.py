"""The pool on real sockets: two loopback addresses stand for two servers behind one name."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from proxy.errors import UpstreamError
from proxy.link import BackendSpec, Timeouts
from proxy.relay.headers import ResponseHead
from proxy.relay.pool import Pool
from proxy.relay.shelf import REST_NS
from proxy.relay.upstream import Connection, Request

ONE, TWO, THREE = "127.0.0.1", "127.0.0.2", "127.0.0.3"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
S = 1_000_000_000


class Sink:
    """Takes one response."""

    def __init__(self) -> None:
        self.done = asyncio.get_running_loop().create_future()

    def on_connected(self, at_ns: int) -> None: ...
    def on_request_sent(self, at_ns: int) -> None: ...
    def on_head(self, head: ResponseHead, at_ns: int) -> None: ...
    def on_chunk(self, data: bytes, start: int, at_ns: int) -> None: ...
    def on_bodies(self, bodies: list[bytes], at_ns: int) -> None: ...
    def on_upload_room(self, room: bool) -> None: ...

    def on_end(self, at_ns: int) -> None:
        self.done.set_result("complete")

    def on_failure(self, kind: str, at_ns: int) -> None:
        self.done.set_result(kind)


class Servers:
    """The same port on several loopback addresses; answers what is asked when ``gate`` is open."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.accepted: list[str] = []
        self.closed: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = writer.get_extra_info("sockname")[0]
        self.accepted.append(host)
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await self.gate.wait()
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.append(host)
        finally:
            writer.close()


@asynccontextmanager
async def serving(*hosts: str) -> AsyncIterator[Servers]:
    with socket.create_server((ONE, 0)) as probe:
        port: int = probe.getsockname()[1]
    servers = Servers(port)
    listening = [await asyncio.start_server(servers.serve, host, port) for host in hosts]
    try:
        yield servers
    finally:
        for server in listening:
            server.close()


class Names:
    """What the resolver says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
        self.hosts = list(hosts)
        self.asked = 0

        async def getaddrinfo(_: object, host: str, port: int, **__: object) -> list[Any]:
            assert host == "models.test"
            self.asked += 1
            if not self.hosts:
                raise socket.gaierror(socket.EAI_AGAIN, "not now")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (h, port)) for h in self.hosts]

        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)


def pool_of(servers: Servers, host: str = "models.test", **more: Any) -> Pool:
    timeouts = Timeouts(**{key: more.pop(key) for key in list(more) if key in Timeouts.__struct_fields__})
    return Pool(BackendSpec("one", f"http://{host}:{servers.port}", **more), timeouts)


async def got(pool: Pool) -> Connection:
    return pool.take() or await pool.connect()


async def exchange(pool: Pool) -> str:
    """One request; returns the address that served it."""
    connection = await got(pool)
    sink = Sink()
    peer = connection.peer
    connection.send(sink, Request(b"GET", b"/", [(b"Host", b"x")]), [], more=False)
    assert await sink.done == "complete"
    return peer.rpartition(":")[0]


async def until(look: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not look():  # noqa: ASYNC110 - a condition of any kind
            await asyncio.sleep(0)


def rest(pool: Pool) -> None:
    """Make every idle connection one that has rested."""
    for address in pool._addresses:
        for shelf in address.shelves:
            for connection in shelf.idlers:
                connection.idle_since_ns -= 2 * REST_NS
                connection.born_ns -= 2 * REST_NS


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def state(pool: Pool) -> tuple[int, int, int]:
    now = pool.now()
    return now.active, now.idle, now.connecting


# ---------------------------------------------------------------- addresses


def test_every_address_of_a_name_is_used_the_least_loaded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        Names(monkeypatch, ONE, TWO)
        async with serving(ONE, TWO) as servers:
            pool = pool_of(servers)
            held = [await got(pool) for _ in range(6)]
            await until(lambda: len(servers.accepted) == 6)
            assert sorted(servers.accepted) == [ONE] * 3 + [TWO] * 3
            assert state(pool) == (6, 0, 0)
            assert pool.now().addresses == 2
            for connection in held:
                if connection.peer.startswith(TWO):
                    connection.abort()
            await until(lambda: state(pool) == (3, 0, 0))
            more = [await got(pool) for _ in range(3)]
            assert [connection.peer.startswith(TWO) for connection in more] == [True] * 3
            pool.close()

    run(main())


def test_a_name_is_asked_again_and_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        names = Names(monkeypatch, ONE)
        async with serving(ONE, TWO) as servers:
            pool = pool_of(servers, resolve_ns=1)  # due at every request
            assert await exchange(pool) == ONE
            names.hosts = [TWO]
            asked = names.asked
            pool.take()
            await until(lambda: names.asked > asked and pool._resolving is None)
            assert await exchange(pool) == TWO
            await until(lambda: ONE in servers.closed)  # the idle connection to what is gone
            names.hosts = []  # the name server has a bad minute: what was known stays in use
            for _ in range(3):
                assert await exchange(pool) == TWO
            assert pool.now().addresses == 1
            pool.close()

    run(main())


def test_between_two_resolutions_the_name_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        names = Names(monkeypatch, ONE)
        async with serving(ONE) as servers:
            pool = pool_of(servers, resolve_ns=3600 * S)
            for _ in range(5):
                await exchange(pool)
            assert names.asked == 1
            pool.close()

    run(main())


def test_an_address_that_refuses_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        Names(monkeypatch, ONE, THREE, TWO)
        async with serving(ONE, TWO) as servers:  # nobody listens on THREE
            pool = pool_of(servers)
            for _ in range(9):
                assert (await got(pool)).peer.rpartition(":")[0] in (ONE, TWO)
            assert pool.up
            dead = next(address for address in pool._addresses if address.host == THREE)
            assert dead.down_until_ns > 0
            pool.close()

    run(main())


@pytest.mark.parametrize(
    ("hosts", "end", "code"),
    [([], "connect_failed", "name_not_resolved"), ([THREE], "connect_failed", "connection_refused")],
)
def test_nobody_there(monkeypatch: pytest.MonkeyPatch, hosts: list[str], end: str, code: str) -> None:
    async def main() -> None:
        Names(monkeypatch, *hosts)
        async with serving(ONE) as servers:
            pool = pool_of(servers)
            with pytest.raises(UpstreamError) as caught:
                await pool.connect()
            assert (caught.value.end, caught.value.code) == (end, code)
            assert state(pool) == (0, 0, 0)
            assert not pool.up
            pool.close()

    run(main())


def test_a_connect_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving(ONE) as servers:
            pool = pool_of(servers, ONE, connect_ns=20_000_000)

            async def never(*_: object, **__: object) -> None:
                await asyncio.Event().wait()

            monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", never)
            with pytest.raises(UpstreamError) as caught:
                await pool.connect()
            assert (caught.value.end, caught.value.code) == ("timeout_connect", "connect_timeout")
            assert state(pool) == (0, 0, 0)
            pool.close()

    run(main())


# ---------------------------------------------------------------- connections


def test_a_rested_connection_is_used_again() -> None:
    async def main() -> None:
        async with serving(ONE) as servers:
            pool = pool_of(servers, ONE)
            for _ in range(5):
                await exchange(pool)
                rest(pool)
            assert servers.accepted == [ONE]
            assert state(pool) == (0, 1, 0)
            pool.close()
            await until(lambda: servers.closed == [ONE])
            assert state(pool) == (0, 0, 0)

    run(main())


def test_a_connection_beyond_its_age_is_not_used_again() -> None:
    async def main() -> None:
        async with serving(ONE) as servers:
            pool = pool_of(servers, ONE, max_age_ns=60 * S)
            await exchange(pool)
            rest(pool)
            (connection,) = pool._addresses[0].shelves[0].idlers
            connection.born_ns -= 61 * S  # it grew old while it was idle
            await exchange(pool)
            assert servers.accepted == [ONE] * 2
            await until(lambda: state(pool) == (0, 1, 0))
            (connection,) = pool._addresses[0].shelves[0].idlers
            rest(pool)
            taken = pool.take()
            assert taken is connection
            taken.born_ns -= 61 * S  # and this one while it was busy
            sink = Sink()
            taken.send(sink, Request(b"GET", b"/", []), [], more=False)
            await sink.done
            await until(lambda: state(pool) == (0, 0, 0))
            pool.close()

    run(main())


def test_a_connection_that_was_idle_too_long_is_closed() -> None:
    async def main() -> None:
        async with serving(ONE) as servers:
            pool = pool_of(servers, ONE, upstream_keepalive_ns=4 * S)
            await exchange(pool)
            (connection,) = pool._addresses[0].shelves[0].idlers
            pool.sweep(connection.idle_since_ns + 4 * S - 1)
            assert not connection.closed
            pool.sweep(connection.idle_since_ns + 4 * S)
            assert connection.closed
            await until(lambda: state(pool) == (0, 0, 0))
            pool.close()

    run(main())


def test_a_full_pool_says_so() -> None:
    async def main() -> None:
        async with serving(ONE) as servers:
            servers.gate.clear()
            pool = pool_of(servers, ONE, max_connections=2)
            held = [await got(pool) for _ in range(2)]
            assert pool.full
            held[0].abort()
            await until(lambda: not pool.full)
            connecting = asyncio.ensure_future(pool.connect())
            await asyncio.sleep(0)
            assert pool.full, "one that is being opened counts"
            (await connecting).abort()
            pool.close()
            held[1].abort()
            await until(lambda: state(pool) == (0, 0, 0))

    run(main())


def test_a_connect_that_is_given_up_is_counted_by_nobody() -> None:
    async def main() -> None:
        async with serving(ONE) as servers:
            pool = pool_of(servers, ONE)
            # Its transport came up, and then its client left.
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_connection(
                lambda: Connection(pool._addresses[0]), ONE, servers.port
            )
            transport.abort()
            await until(lambda: len(servers.closed) >= 1)
            assert state(pool) == (0, 0, 0)
            pool.close()

    run(main())
