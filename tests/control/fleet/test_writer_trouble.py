"""What is settled stands in Redis once, whatever Redis does meanwhile: real servers, clocks moved by hand."""

from __future__ import annotations

import asyncio
import time

import pytest

from proxy.control.fleet.layout import Grain
from proxy.control.settle import GroupKey
from tests.control.fleet.host import KEYS, Host, S, everywhere, host_value, impatient, in_redis, run
from tests.helpers.redis_server import RedisServer, redis_server
from tests.helpers.redis_shim import Shim


def test_away_for_a_minute_nothing_is_lost_and_it_catches_up_within_seconds() -> None:
    async def script(server: RedisServer) -> None:
        host = Host(server.url)
        host.settle()
        await host.round()
        server.kill()
        settled = 1
        for _ in range(60):
            host.settle(2)
            settled += 2
            await host.round(1)
        assert host.status() == ("degraded", "away")
        assert host.writer.outbox.waiting_slots > 0
        server.start()
        tries = 0
        while host.status()[0] != "ok":
            await host.round(0.5)
            tries += 1
        assert tries <= 10  # 5 s: the longest wait between two tries, and a round
        await host.round()
        # It came back empty: what it had acknowledged before is there again too.
        assert everywhere(server) == [settled] * 3
        assert host.acknowledged == settled
        with server.admin() as client:
            assert client.get(KEYS.seen("w0")) == b"%d" % settled
        await host.store.close(1)

    with redis_server() as server:
        run(script(server))


@pytest.mark.parametrize("rounds", [0, 1], ids=["packed by the end alone", "waited before"])
def test_what_redis_never_got_is_told_at_the_end(rounds: int, caplog: pytest.LogCaptureFixture) -> None:
    async def script(server: RedisServer) -> None:
        host = Host(server.url)
        host.settle(5)
        await host.round()
        server.kill()
        host.settle(3)
        for _ in range(rounds):
            await host.round()
        host.settle(4, key=GroupKey("other", "llama", "chat"))
        await host.writer.close(30)

    with redis_server() as server, caplog.at_level("WARNING", "legato.fleet"):
        run(script(server))
    *_, last = [record.getMessage() for record in caplog.records]
    assert last.startswith(
        "Redis at the end: away; it has not acknowledged 7 requests that were settled here"
    )
    assert "Redis at the end" not in "".join(record.getMessage() for record in caplog.records[:-1])


def test_an_end_without_time_tells_what_was_not_even_packed(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def script() -> None:
        host = Host(server.url)
        await host.round()
        host.settle(2)
        await host.writer.close(0)

    with caplog.at_level("WARNING", "legato.fleet"):
        run(script())
    (told,) = [record.getMessage() for record in caplog.records]
    assert "its time was up; it has not acknowledged 2 requests" in told


@pytest.mark.alone
def test_a_redis_that_hangs_costs_its_timeout_and_no_round(server: RedisServer) -> None:
    async def script() -> None:
        host = Host(server.url, timeout_s=0.4)
        host.settle()
        await host.round()
        server.pause()
        try:
            host.settle()
            begun = time.monotonic()
            await host.round()
            assert time.monotonic() - begun < 3 * 0.4 + 0.5
            assert host.status() == ("degraded", "slow")
            host.settle()
            await host.round()  # booked and packed all the same
            assert host.writer.outbox.waiting_slots >= 3
        finally:
            server.resume()
        await host.round()
        assert host.status() == ("ok", None)
        assert everywhere(server) == [3, 3, 3]
        await host.store.close(1)

    run(script())


def _full(server: RedisServer, on: bool) -> None:
    server.ask("CONFIG", "SET", "maxmemory", "1" if on else "0")


def _replica(server: RedisServer, on: bool) -> None:
    server.ask("REPLICAOF", *(("127.0.0.1", "1") if on else ("NO", "ONE")))


def _no_replicas(server: RedisServer, on: bool) -> None:
    server.ask("CONFIG", "SET", "min-replicas-to-write", "1" if on else "0")


@pytest.mark.parametrize(
    ("trouble", "reason"), [(_full, "full"), (_replica, "read_only"), (_no_replicas, "no_replicas")]
)
def test_a_redis_that_refuses_writes(server: RedisServer, trouble: object, reason: str) -> None:
    assert callable(trouble)

    async def script() -> None:
        host = Host(server.url)
        host.settle()
        await host.round()
        trouble(server, True)
        try:
            host.settle()
            await host.round()
            assert host.status() == ("degraded", reason)
        finally:
            trouble(server, False)
        await host.round()
        assert host.status() == ("ok", None)
        assert everywhere(server) == [2, 2, 2]
        await host.store.close(1)

    run(script())


def test_a_redis_that_is_loading_or_babbles(server: RedisServer) -> None:
    async def script(shim: Shim) -> None:
        host = Host(shim.url)
        host.settle()
        for said, reason in (
            (b"-LOADING Redis is loading the dataset in memory\r\n", "loading"),
            (b"-NOAUTH Authentication required.\r\n", "auth"),
            (b"-NOPERM this user has no permissions\r\n", "forbidden"),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", "nonsense"),
        ):
            shim.babble(said)
            await host.round()
            assert host.status() == ("degraded", reason), said
        shim.forward()
        await host.round()
        assert host.status() == ("ok", None)
        assert everywhere(server) == [1, 1, 1]
        await host.store.close(1)

    with Shim(server.address) as shim:
        run(script(shim))


def test_something_else_at_one_of_our_keys_holds_up_no_other(server: RedisServer) -> None:
    async def script() -> None:
        host = Host(server.url)
        ten = KEYS.slot(Grain.TEN, Grain.TEN.number(host.clock.now_ns))
        server.ask("SET", ten, "mine")
        host.settle()
        await host.round()
        assert host.status() == ("degraded", "wrong_type")
        assert everywhere_but_tens(server) == [1, 1]
        assert server.ask("EXISTS", KEYS.seen("w0")) == 0, "not all of its requests are in all slots"
        assert host_value(server, host.name) is not None
        assert server.ask("GET", ten) == b"mine"
        server.ask("DEL", ten)
        await host.round()
        assert host.status() == ("ok", None)
        assert everywhere(server) == [1, 1, 1]
        await host.store.close(1)

    def everywhere_but_tens(server: RedisServer) -> list[int]:
        return [in_redis(server, Grain.MINUTE), in_redis(server, Grain.HOUR)]

    run(script())


def test_a_redis_that_lost_its_data_without_a_word_gets_it_again(server: RedisServer) -> None:
    async def script() -> None:
        host = Host(server.url)
        for _ in range(8):
            host.settle()
            await host.round()
        server.ask("FLUSHALL")
        await host.round()  # nothing new: only who it is was gone
        await host.round(1)
        assert everywhere(server) == [8, 8, 8]
        with server.admin() as client:
            assert client.get(KEYS.seen("w0")) == b"8"
        await host.store.close(1)

    run(script())


def test_a_failover_gets_what_was_acknowledged_just_before(server: RedisServer) -> None:
    """Its last seconds were not replicated: after any trouble they are written once more."""

    async def script() -> None:
        host = Host(server.url)
        for _ in range(4):
            host.settle()
            await host.round()
        ten = KEYS.slot(Grain.TEN, Grain.TEN.number(host.clock.now_ns - 20 * S))
        assert server.ask("DEL", ten) == 1
        server.ask("CLIENT", "PAUSE", "800")
        with impatient(host.store):
            await host.round()
        assert host.status()[0] == "degraded"
        await asyncio.sleep(0.8)
        await host.round()
        await host.round(1)  # the slot was missing: all that is kept goes there once more
        assert host.status() == ("ok", None)
        assert everywhere(server) == [4, 4, 4]
        await host.store.close(1)

    run(script())


def test_one_slot_that_is_gone_tells_that_something_was_lost(server: RedisServer) -> None:
    """In a Cluster the keys that would tell otherwise are on another server."""

    async def script() -> None:
        host = Host(server.url)
        for _ in range(4):
            host.settle()
            await host.round()
        for grain in Grain:
            server.ask("DEL", KEYS.slot(grain, grain.number(host.clock.now_ns)))
            server.ask("DEL", KEYS.slot(grain, grain.number(host.clock.now_ns - 15 * S)))
        host.settle()
        await host.round()
        await host.round(1)
        assert everywhere(server) == [5, 5, 5]
        await host.store.close(1)

    run(script())


def test_a_redis_that_has_an_older_state_gets_all_again(server: RedisServer) -> None:
    async def script() -> None:
        host = Host(server.url)
        host.settle()
        await host.round()
        with server.admin() as client:
            before = client.get(KEYS.host(host.name))
            assert before is not None
            for _ in range(4):
                host.settle()
                await host.round()
            # A replica took over that lacks the last 20 s; no connection broke.
            client.set(KEYS.host(host.name), before)
            client.delete(KEYS.slot(Grain.TEN, Grain.TEN.number(host.clock.now_ns - 20 * S)))
        await host.round()
        await host.round(1)
        assert everywhere(server) == [5, 5, 5]
        await host.store.close(1)

    run(script())


def test_after_a_refusal_the_way_is_looked_for_anew(server: RedisServer) -> None:
    """Behind one name another server may be the master by now: the old connection would never know."""

    async def script(shim: Shim) -> None:
        host = Host(shim.url)
        await host.round()
        await host.round()
        assert shim.connections == 1
        _replica(server, True)
        try:
            await host.round()
        finally:
            _replica(server, False)
        await host.round()
        assert shim.connections == 2
        await host.store.close(1)

    with Shim(server.address) as shim:
        run(script(shim))
