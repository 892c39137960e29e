"""One worker in this process, its link's end in the test's hands, and requests without a client's socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from proxy.clock import monotonic_ns, unix_ns
from proxy.link import BackendSpec, Facts, Match, MirrorSpec, RouteSpec, SloSpec, Table
from proxy.relay.call import read_call
from proxy.relay.exchange import Exchange
from proxy.relay.headers import Fields, Framing
from proxy.relay.worker import Worker
from tests.helpers.rawclient import CHAT, STREAMED_CHAT

MS = 1_000_000
SLO = SloSpec("s", Match(), ((0, 500 * MS),), 50 * MS)


class FakeClient:
    """What an exchange asks of its client; what was written is kept.  ``slow``: it never reads again."""

    def __init__(self, worker: Worker, body: bytes = STREAMED_CHAT, *, slow: bool = False) -> None:
        self.worker, self.slow = worker, slow
        self.protocol = SimpleNamespace(scheme="http")
        self.peer = ("127.0.0.1", 4711)
        self.method, self.target, self.version = b"POST", CHAT.encode(), "1.1"
        self.fields: Fields = [(b"Host", b"h"), (b"Content-Length", b"%d" % len(body))]
        self.body = [body]
        self.body_size = len(body)
        worker.body_room -= len(body)
        self.complete, self.streaming, self.upload_chunked = True, False, False
        self.gone = self.started = self.chunked = False
        self.backlog = 0
        self.received_ns, self.received_unix_ns = monotonic_ns(), unix_ns()
        self.written: list[bytes] = []
        self.listener: Any = None
        self.ended: str | None = None

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def start(self, status: int, reason: bytes, fields: Fields, framing: Framing) -> None:
        self.started, self.chunked = True, framing.length is None

    def send_all(self, bodies: list[bytes]) -> None:
        self.written += bodies
        if self.slow:
            self.listener.on_backlog(True)

    def drop_body(self) -> None:
        self.worker.body_room += sum(map(len, self.body))
        self.body = []

    def finish(self) -> None:
        self.ended = "complete"

    def cut(self) -> None:
        self.ended = "cut"

    def refuse(self, code: str) -> int:
        self.ended = code
        return 502

    def resume_upload(self) -> None: ...

    def leave(self) -> None:
        """As when its connection is lost."""
        self.gone = True
        self.drop_body()
        self.listener.on_client_gone()


class Carrier:
    """The worker, and what it would tell control."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.told: list[Facts] = []
        worker.link.facts = lambda build: self.told.append(build(len(self.told) + 1))  # type: ignore[method-assign]

    def exchange(self, client: FakeClient, *, recorded: bool = True) -> Exchange:
        """A request, not yet begun."""
        call = read_call("POST", CHAT, client.fields, client.body, False, False)
        arm = self.worker.routes.choose(call, client.fields)
        assert arm is not None
        exchange = Exchange(self.worker, cast(Any, client), call, arm, recorded=recorded)
        client.listener = exchange
        return exchange

    async def ask(self, client: FakeClient | None = None, *, recorded: bool = True) -> Exchange:
        """A whole request, and its facts."""
        exchange = self.exchange(client or FakeClient(self.worker), recorded=recorded)
        await exchange.run()
        self.worker.ended(exchange)
        return exchange

    @property
    def requests(self) -> list[Facts]:
        return [facts for facts in self.told if facts.mirror_of is None]

    @property
    def copies(self) -> list[Facts]:
        return [facts for facts in self.told if facts.mirror_of is not None]


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[str]:
    """A server on this loop, by its URL; at the end nobody is waited for."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """One request with a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
    return head + await reader.readexactly(length)


def answering(raw: bytes, accepted: list[str] | None = None) -> Handler:
    """Every request with the same bytes; each connection leaves a word in ``accepted``."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if accepted is not None:
            accepted.append("one")
        while True:
            await read_request(reader)
            writer.write(raw)

    return handler


def carrier(folder: Path, backend: str, shadow: str, **mirror: Any) -> Carrier:
    """A worker with one route, whose requests are copied to ``shadow``."""
    worker = Worker(0, str(folder / "nobody"))
    spec = MirrorSpec("shadow", **({"ratio": 1.0} | mirror))
    worker.apply(
        Table(
            1,
            (BackendSpec("live", backend), BackendSpec("shadow", shadow)),
            (RouteSpec(Match(), "live", mirror=spec),),
            (SLO,),
        )
    )
    return Carrier(worker)


async def until(look: Callable[[], object], within_s: float = 5.0) -> None:
    """Let the loop run until ``look`` is true."""
    end = asyncio.get_running_loop().time() + within_s
    while not look():
        assert asyncio.get_running_loop().time() < end, "it did not come to be"
        await asyncio.sleep(0.001)
