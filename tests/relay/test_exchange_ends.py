"""A request that ends while its upstream is connected to, in whichever turn, ends once and sends nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proxy.errors import UpstreamError
from proxy.relay.pool import Pool
from proxy.relay.upstream import Connection
from tests.relay.carried import FakeClient, carrier, listening, until


@pytest.mark.parametrize(
    ("ends", "told"), [("leaves", ("client_left", None)), ("abandoned", ("self", "internal"))]
)
@pytest.mark.parametrize("connect", ["under way", "just made", "just failed"])
def test_it_ends_once_and_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connect: str, ends: str, told: tuple[str, str | None]
) -> None:
    heard: list[bytes] = []

    async def listens(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())

    async def script() -> None:
        async with listening(listens) as url:
            at = carrier(tmp_path, url, url, ratio=0.0)
            client = FakeClient(at.worker)
            exchange = at.exchange(client)
            right = Pool.connect

            def end() -> None:
                if ends == "leaves":
                    client.leave()
                else:
                    exchange.abandon("self")

            async def connecting(pool: Pool) -> Connection:
                made = await right(pool) if connect == "just made" else None
                # It comes before the request's own task hears of what follows here.
                asyncio.get_running_loop().call_soon(end)
                if connect == "under way":
                    await asyncio.Event().wait()
                if made is None:
                    raise UpstreamError("connect_failed", "connection_refused")
                return made

            monkeypatch.setattr(Pool, "connect", connecting)
            await asyncio.wait_for(exchange.run(), 30)
            assert (exchange.end, exchange.error) == told
            assert client.ended == told[1], "answered once, unless it left"
            await until(lambda: heard or connect != "just made")
            assert heard in ([], [b""])
            assert at.worker.pools["live"].now().active == 0

    asyncio.run(script())
