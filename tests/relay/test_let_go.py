"""What is over is let go at once: no circle keeps it until a collection of garbage, which workers rarely do.

On uvloop, as workers run: it closes a transport without a word where the connect was cancelled between its
``connection_made`` and the turn in which the connect's task would have heard of it.
"""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import uvloop

from proxy.link import BackendSpec, Timeouts
from proxy.relay.exchange import Exchange
from proxy.relay.pool import Pool
from proxy.relay.pull import PullConnection, PullPool
from proxy.relay.shadow import Copy
from proxy.relay.upstream import Connection, Request
from tests.helpers.procs import free_port
from tests.relay.carried import FakeClient, answering, carrier, listening, read_request, until

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
KINDS = (Connection, Copy, Exchange, FakeClient, PullConnection)


Held = Callable[[], list[str]]


@pytest.fixture
def held() -> Iterator[Held]:
    """What there is now, by type, that was not there before; nothing is collected meanwhile."""

    def look() -> list[object]:
        return [one for one in gc.get_objects() if isinstance(one, KINDS)]

    gc.collect()
    before = {id(one) for one in look()}  # what a test that failed has left
    gc.disable()
    yield lambda: [type(one).__name__ for one in look() if id(one) not in before]
    gc.enable()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


@contextmanager
def at_connection_made(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], how: str
) -> Iterator[None]:
    """``act`` within the next ``connection_made``, or in a turn between it and the connect's own."""
    made = Connection.connection_made

    def told(self: Connection, transport: asyncio.BaseTransport) -> None:
        made(self, transport)
        if how == "within":
            act()
        else:
            asyncio.get_running_loop().call_soon(act)

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "connection_made", told)
        yield


@pytest.mark.parametrize("how", ["within", "behind"])
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_a_connect_that_is_given_up_when_it_has_just_been_made(
    held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, family: str
) -> None:
    async def script() -> None:
        path = str(tmp_path / "socket") if family == "unix" else None
        async with listening(silent) as url:
            server = await asyncio.start_unix_server(silent, path) if path else None
            pool = Pool(BackendSpec("b", url, uds=path), Timeouts())
            connecting = asyncio.ensure_future(pool.connect())
            made = at_connection_made(monkeypatch, connecting.cancel, how)
            with made, pytest.raises(asyncio.CancelledError):
                await connecting
            del connecting
            await until(lambda: held() == [])
            assert (pool.now().active, pool.now().idle, pool.now().connecting) == (0, 0, 0)
            if server is not None:
                server.close()

    uvloop.run(script())


@pytest.mark.parametrize("how", ["within", "behind"])
def test_a_client_that_leaves_when_its_upstream_was_just_connected_to(
    held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async def script() -> None:
        async with listening(silent) as url:
            at = carrier(tmp_path, url, url, ratio=0.0)
            client = FakeClient(at.worker)
            with at_connection_made(monkeypatch, client.leave, how):
                await asyncio.wait_for(at.ask(client), 30)
            (facts,) = at.requests
            assert (facts.end, facts.status, facts.error) == ("client_left", None, None)
            client.listener = None
            del client, facts
            at.told.clear()
            await until(lambda: held() == [])

    uvloop.run(script())


def test_a_request_whose_upstream_refuses(held: Held, tmp_path: Path) -> None:
    async def script() -> None:
        nobody = f"http://127.0.0.1:{free_port()}"
        at = carrier(tmp_path, nobody, nobody, ratio=0.0)
        client = FakeClient(at.worker)
        await asyncio.wait_for(at.ask(client), 30)
        assert client.ended == "connection_refused"
        client.listener = None
        del client
        await until(lambda: held() == [])

    uvloop.run(script())


@contextmanager
def unanswering() -> Iterator[str]:
    """The URL of a server that answers no connect at all: its queue is full, and nobody takes from it."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_copy_that_is_cut_while_it_connects(held: Held, tmp_path: Path) -> None:
    async def script(shadow: str) -> None:
        async with listening(answering(ANSWER)) as live:
            at = carrier(tmp_path, live, shadow)
            client = FakeClient(at.worker)
            await asyncio.wait_for(at.ask(client), 30)
            client.listener = None
            del client
            pools = at.worker.pools
            await until(lambda: pools["shadow"].now().connecting)
            at.worker.mirrors.cut("worker_stopped")
            assert [facts.end for facts in at.copies] == ["self"]
            pools["live"].close()
            await until(lambda: held() == [])

    with unanswering() as shadow:
        uvloop.run(script(shadow))


class NoSink:
    """Hears nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def test_a_pulled_request_whose_client_leaves(held: Held) -> None:
    async def script() -> None:
        asked: list[bytes] = []

        async def keeps_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await read_request(reader))
            await reader.read()

        async with listening(keeps_silent) as url:
            pool = PullPool(BackendSpec("b", url), Timeouts())
            connection = pool.take()
            assert connection is not None
            connection.send(NoSink(), Request(b"GET", b"/", [(b"Host", b"h")]), [], more=False)
            await until(lambda: asked)
            connection.abort()
            del connection
            await until(lambda: held() == [])
            assert pool.now().active == 0

    uvloop.run(script())
