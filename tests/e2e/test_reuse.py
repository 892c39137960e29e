"""Connections to the upstream are used again, but not those of a server that hangs up behind its answers."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.procs import Legato, eventually
from tests.helpers.rawclient import PLAIN_CHAT, RawClient, post
from tests.helpers.upstream import (
    SSE_HEAD,
    Connection,
    Upstream,
    chat_chunk,
    json_response,
    respond,
)

CLIENTS, REQUESTS = 8, 100
PROMISE = b"Keep-Alive: timeout=5, max=100\r\n\r\n"
STREAM = (
    SSE_HEAD.removesuffix(b"\r\n")
    + PROMISE
    + chunk(chat_chunk({"content": "a"}))
    + chunk(chat_chunk({}, finish="stop"))
    + LAST_CHUNK
)


def statuses(legato: Legato, bodies: list[bytes]) -> Counter[int]:
    """What several clients get who ask again as soon as they are answered."""

    def one_client(_: int) -> Counter[int]:
        seen: Counter[int] = Counter()
        for number in range(REQUESTS):
            with RawClient(legato.data) as client:
                client.send(post(body=bodies[number % len(bodies)]))
                seen[client.response().status] += 1
        return seen

    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(one_client, range(CLIENTS)), Counter())


def test_a_server_that_keeps_its_connections_is_soon_trusted(legato: Legato, upstream: Upstream) -> None:
    """At first only rested connections are used; then one serves a client that asks again and again."""
    upstream.use(respond(json_response({})))
    with RawClient(legato.data) as client:

        def no_new_connection() -> bool:
            before = len(upstream.connections)
            for _ in range(100):
                client.send(post(body=PLAIN_CHAT))
                assert client.response().status == 200
            return 0 < len(upstream.connections) == before

        eventually(no_new_connection, 10, "100 requests on connections that were there")


@pytest.mark.alone  # the server must come to closing within the 100 ms that a connection rests
def test_a_server_that_closes_behind_every_answer_costs_no_request(
    legato: Legato, upstream: Upstream
) -> None:
    async def like_llama_cpp(conn: Connection) -> None:
        await conn.request()
        await conn.send(STREAM)

    upstream.use(like_llama_cpp)
    assert statuses(legato, [post()[-74:]]) == {200: CLIENTS * REQUESTS}


@pytest.mark.alone  # the server must come to closing within the 100 ms that a connection rests
def test_a_server_that_closes_behind_streams_only_costs_no_request(
    legato: Legato, upstream: Upstream
) -> None:
    async def like_llama_cpp(conn: Connection) -> None:
        while True:
            asked = await conn.request()
            if asked.body != PLAIN_CHAT:
                await conn.send(STREAM)
                return
            await conn.send(json_response({}))

    upstream.use(like_llama_cpp)
    assert statuses(legato, [PLAIN_CHAT, b'{"stream":true}']) == {200: CLIENTS * REQUESTS}
