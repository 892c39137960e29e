"""Small values and leases: one contract for Redis in every form and for the tests' own store in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from proxy.control.fleet.connect import connect
from proxy.control.fleet.layout import Keys
from proxy.control.fleet.redis_store import RedisStore
from proxy.control.fleet.shared import RedisShared
from proxy.control.shared import Shared, Unshared
from proxy.control.sharing import Sharing
from tests.control.fleet.places import PLACES, PREFIX, TIMEOUT_S, Place
from tests.helpers.redis_server import redis_server
from tests.helpers.shared import MemoryShared
from tests.helpers.shared import Place as Memory

TTL_S = 60.0


@pytest.fixture(scope="module", params=["memory", *PLACES])
def place(request: pytest.FixtureRequest) -> Iterator[Place | Memory]:
    if request.param == "memory":
        yield Memory(time.monotonic_ns)
        return
    with PLACES[request.param]() as made:
        yield made


@asynccontextmanager
async def hosts(place: Place | Memory, *names: str) -> AsyncIterator[list[Shared]]:
    if isinstance(place, Memory):
        yield [MemoryShared(place, name) for name in names]
        return
    settings = place.settings()
    stores = [RedisStore(connect(settings, name), Keys(PREFIX), TIMEOUT_S) for name in names]
    try:
        yield [RedisShared(store, name, time.time_ns) for store, name in zip(stores, names, strict=True)]
    finally:
        for store in stores:
            await store.close(1)


def test_what_one_host_writes_every_host_reads(place: Place | Memory) -> None:
    async def story() -> None:
        async with hosts(place, "a", "b") as (a, b):
            assert (a.me, b.me) == ("a", "b")
            assert await a.fetch("none") == {}
            await a.put("sums", {"a": b"1", "x": b"\0\xff"}, TTL_S)
            await b.put("sums", {"b": b"2"}, TTL_S)
            await a.put("sums", {"a": b"3"}, TTL_S)
            both = {"a": b"3", "b": b"2", "x": b"\0\xff"}
            assert await a.fetch("sums") == await b.fetch("sums") == both
            await b.drop("sums", "x", "nothing")
            await b.put("other", {"b": b"4"}, TTL_S)
            assert await a.fetch_many(["sums", "none", "other"]) == [
                {"a": b"3", "b": b"2"},
                {},
                {"b": b"4"},
            ]

    asyncio.run(story())


def test_the_first_who_writes_is_read_by_all(place: Place | Memory) -> None:
    async def story() -> None:
        async with hosts(place, "a", "b") as (a, b):
            assert await b.put_new("names", "one", b"b was first", TTL_S) == b"b was first"
            assert await a.put_new("names", "one", b"a came later", TTL_S) == b"b was first"
            assert await a.fetch("names") == {"one": b"b was first"}

    asyncio.run(story())


@pytest.mark.alone
def test_one_holds_the_lease_until_it_lets_it_run_out(place: Place | Memory) -> None:
    async def story() -> None:
        async with hosts(place, "a", "b", "c") as (a, b, c):
            assert await a.lease("alerts", 1) == "a"
            assert await b.lease("alerts", 1) == "a"
            assert await b.lease("other", TTL_S) == "b", "another lease"
            begin_s = time.monotonic()
            while time.monotonic() - begin_s < 1.3:  # renewed, it does not run out
                assert await a.lease("alerts", 1) == "a"
                assert await c.lease("alerts", 1) == "a"
                await asyncio.sleep(0.1)
            while (holder := await b.lease("alerts", 1)) == "a":  # noqa: ASYNC110  (Redis tells nobody)
                await asyncio.sleep(0.05)
            assert holder == "b"
            assert 1.0 <= time.monotonic() - begin_s - 1.2 < 4.0
            assert await a.lease("alerts", 1) == "b"

    asyncio.run(story())


def test_a_hash_is_gone_after_its_time(place: Place | Memory) -> None:
    async def story() -> None:
        async with hosts(place, "a") as (a,):
            await a.put("brief", {"a": b"1"}, 1)
            async with asyncio.timeout(30):
                while await a.fetch("brief"):  # noqa: ASYNC110  (Redis tells nobody)
                    await asyncio.sleep(0.05)

    asyncio.run(story())


def test_a_store_that_is_away_says_so_in_one_word() -> None:
    async def story() -> None:
        with redis_server() as server:
            place = Place(server.url, lambda: [server], server.kill, server.start)
            async with hosts(place, "a") as (a,):
                await a.put("sums", {"a": b"1"}, TTL_S)
                server.kill()
                for ask in (
                    a.fetch("sums"),
                    a.put("sums", {"a": b"2"}, TTL_S),
                    a.put_new("sums", "b", b"2", TTL_S),
                    a.drop("sums", "a"),
                    a.lease("alerts", 1),
                ):
                    with pytest.raises(Unshared) as told:
                        await ask
                    assert told.value.reason == "away"
                server.start()
                server.ask("SET", Keys(PREFIX).shared("sums"), "no hash")
                assert await a.fetch("sums") == {}
                with pytest.raises(Unshared) as told:
                    await a.put("sums", {"a": b"2"}, TTL_S)
                assert told.value.reason == "wrong_type"

    asyncio.run(story())


def test_parts_take_turns_and_one_that_fails_leaves_the_others_theirs() -> None:
    memory = Memory(lambda: 0)
    told: list[str] = []

    async def good(shared: Shared) -> None:
        told.append(shared.me)
        await shared.put("good", {shared.me: b"1"}, TTL_S)

    async def bad(_: Shared) -> None:
        told.append("bad")
        raise ValueError("what another host wrote")

    async def slow(_: Shared) -> None:
        await asyncio.sleep(3600)

    async def story() -> None:
        a = MemoryShared(memory, "a")
        sharing = Sharing(a, [("bad", bad), ("good", good)])
        await sharing.once()
        assert (told, sharing.failures()) == (["bad", "a"], {"redis": 1})
        memory.away = True
        sharing = Sharing(a, [("good", good), ("bad", bad)])
        await sharing.once()
        assert (told, sharing.failures()) == (["bad", "a", "a"], {"redis": 1}), "the rest need not try"
        begin_s = time.monotonic()
        await Sharing(a, [("slow", slow)]).close(0.05)
        assert time.monotonic() - begin_s < 2

    asyncio.run(story())
