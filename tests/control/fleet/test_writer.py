"""What is settled stands in Redis once: real servers, clocks moved by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from proxy.control.fleet.layout import HOST_S, NOW_S, RECENT_MOST, WORST_MOST, Grain, decode_now
from tests.control.fleet.host import (
    CHAT,
    KEYS,
    Clock,
    Host,
    S,
    everywhere,
    host_value,
    impatient,
    in_redis,
    run,
)
from tests.helpers.procs import eventually
from tests.helpers.redis_server import RedisServer
from tests.helpers.redis_shim import Shim


def test_a_round_writes_slots_sums_and_who_it_was(server: RedisServer) -> None:
    async def script() -> None:
        host = Host(server.url)
        host.settle(2)
        await host.round()
        assert host.status() == ("ok", None)
        assert everywhere(server) == [2, 2, 2]
        told = host_value(server, host.name)
        assert told is not None
        assert told.sums == {"requests": 2, "met": 6, "missed": 2, "output_tokens": 8}
        assert (told.host, told.version) == ("host-1", "0")
        with server.admin() as client:
            assert client.get(KEYS.seen("w0")) == b"2"
            assert client.zrange(KEYS.hosts, 0, -1) == [host.name.encode()]
            now = client.get(KEYS.now(host.name))
            assert now is not None
            assert decode_now(now).host == "host-1"
            assert 0 < client.ttl(KEYS.now(host.name)) <= NOW_S
            for key in (KEYS.host(host.name), KEYS.seen("w0"), KEYS.hosts):
                assert 0 < client.ttl(key) <= HOST_S
            for grain in Grain:
                number = grain.number(host.clock.now_ns - 5 * S)
                assert client.expiretime(KEYS.slot(grain, number)) == grain.expires_s(number)
        await host.store.close(1)

    run(script())


def test_writing_again_changes_nothing_and_what_comes_is_added(server: RedisServer) -> None:
    async def script() -> None:
        host = Host(server.url)
        for _ in range(30):  # two minutes and a half
            host.settle()
            await host.round()
        assert everywhere(server) == [30, 30, 30]
        host.writer.outbox.again()
        await host.round()
        assert everywhere(server) == [30, 30, 30]
        assert host.acknowledged == 30
        await host.store.close(1)

    run(script())


def test_what_waits_after_its_time_was_up_is_not_called_written(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script() -> None:
        host = Host(server.url)
        host.settle()
        await host.round()
        written = host.writer.written_unix_ns
        assert written == host.clock.now_ns
        host.settle()
        monkeypatch.setattr("proxy.control.fleet.writer._WRITE_NS", -1)
        await host.round()
        assert host.status() == ("ok", None)
        assert host.writer.outbox.waiting_slots > 0
        assert host.writer.written_unix_ns == written
        monkeypatch.undo()
        await host.round()
        assert host.writer.outbox.waiting_slots == 0
        assert host.writer.written_unix_ns == host.clock.now_ns
        await host.store.close(1)

    run(script())


def test_two_hosts_do_not_see_each_other(server: RedisServer) -> None:
    async def script() -> None:
        one, two = Host(server.url), Host(server.url, name="00000000bbbbbbbb")
        for host, requests in ((one, 3), (two, 4)):
            host.settle(requests)
            await host.round()
        assert everywhere(server) == [7, 7, 7]
        assert [in_redis(server, Grain.HOUR, host.name) for host in (one, two)] == [3, 4]
        for host in (one, two):
            await host.store.close(1)

    run(script())


@pytest.mark.parametrize("command", [b"HSET", b"SET", b"EXPIREAT", b"ZADD"])
def test_a_write_whose_answer_is_lost_counts_once(server: RedisServer, command: bytes) -> None:
    async def script(shim: Shim) -> None:
        host = Host(shim.url)
        host.settle()
        await host.round()
        shim.cut(command)
        host.settle(2)
        await host.round()
        assert host.status()[0] == "degraded"
        assert shim.cuts == 1
        await host.round(0.3)
        assert host.status() == ("ok", None)
        assert everywhere(server) == [3, 3, 3]
        assert host.acknowledged == 3
        told = host_value(server, host.name)
        assert told is not None
        assert told.sums["requests"] == 3
        await host.store.close(1)

    with Shim(server.address) as shim:
        run(script(shim))


@pytest.mark.alone
def test_a_hung_redis_delays_the_end_by_no_more_than_its_deadline(server: RedisServer) -> None:
    async def script() -> None:
        host = Host(server.url)
        host.settle()
        await host.round()
        server.pause()
        try:
            host.settle()
            begun = time.monotonic()
            await host.writer.close(0.2)
            assert 0.2 <= time.monotonic() - begun < 1
        finally:
            server.resume()

    run(script())


def test_the_end_writes_what_there_is(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async def script() -> None:
        host = Host(server.url)
        await host.round()
        host.settle(4)
        await host.writer.close(30)

    with caplog.at_level("WARNING", "legato.fleet"):
        run(script())
    assert everywhere(server) == [4, 4, 4]
    assert not caplog.records


def test_streams_of_records_are_capped(server: RedisServer) -> None:
    async def script() -> None:
        host = Host(server.url)
        for _ in range(15):
            await host.store.add_records([b"r"] * 200, [b"w"] * 100)
        assert RECENT_MOST <= server.ask("XLEN", KEYS.recent) <= RECENT_MOST * 1.1
        assert WORST_MOST <= server.ask("XLEN", KEYS.worst) <= WORST_MOST * 1.3
        await host.store.close(1)

    run(script())


# ---------------------------------------------------------------- clocks


def test_what_is_settled_while_redis_clock_goes_back_is_in_one_book_or_the_other(
    server: RedisServer,
) -> None:
    async def script() -> None:
        host = Host(server.url)
        groups = [CHAT._replace(model=f"m{number}") for number in range(20)]
        for group in groups:
            host.settle(key=group)
        await host.round()
        settled = 20

        async def busy() -> None:
            nonlocal settled
            while not done:
                host.settle(key=groups[settled % 20])
                settled += 1
                await asyncio.sleep(0)

        host.clock.skew_ns = -3_000 * S
        done = False
        load = asyncio.create_task(busy())
        await host.round()
        done = True
        await load
        assert host.writer.book.generation == 1
        for _ in range(2):  # the change of books was a round of its own
            await host.round()
        assert everywhere(server) == [settled] * 3
        assert host.acknowledged == settled
        host.settle(7)
        assert host.writer.unwritten == 7, "of what both books held"
        await host.store.close(1)

    run(script())


@pytest.mark.parametrize("skew_s", [-3_000, -3, 0, 4, 3_000])
def test_slots_are_those_of_redis_clock(server: RedisServer, skew_s: int) -> None:
    async def script() -> None:
        clock = Clock()
        clock.skew_ns = skew_s * S
        host = Host(server.url, clock)
        host.settle()  # before Redis was ever asked: by the host's own clock
        await host.round()
        for _ in range(12):
            host.settle()
            await host.round()
        assert host.writer.offset.ns == skew_s * S
        assert everywhere(server) == [13, 13, 13]
        number = Grain.TEN.number(clock.now_ns + clock.skew_ns - 5 * S)
        assert server.ask("EXISTS", KEYS.slot(Grain.TEN, number)) == 1
        told = host_value(server, host.name)
        assert told is not None
        assert told.offset_ns == skew_s * S
        assert host.acknowledged == 13
        await host.store.close(1)

    run(script())


# ---------------------------------------------------------------- what a lost control process took with it


def test_what_was_settled_and_not_written_is_counted_by_the_next_control_process(
    server: RedisServer,
) -> None:
    async def script() -> None:
        first = Host(server.url)
        first.settle(10)
        await first.round()
        first.settle(3)  # settled, acknowledged to the worker, and then it is killed
        await first.store.close(1)

        second = Host(server.url, first.clock, name="00000000cccccccc")
        second.writer.losses.hello("w0", 13)
        second.writer.losses.hello("w1", 0)  # a worker that is new
        second.settle(2, worker="w1")
        await second.round()
        assert second.writer.losses.settled_before_write == 3
        with server.admin() as client:
            assert client.get(KEYS.seen("w0")) == b"10"
        second.writer.losses.seen("w0", 14)
        second.writer.losses.hello("w0", 14)  # its link broke and came back
        await second.round()
        assert second.writer.losses.settled_before_write == 3
        with server.admin() as client:
            assert client.get(KEYS.seen("w0")) == b"14"
        await second.store.close(1)

    run(script())


def test_the_look_up_waits_for_redis_and_nothing_is_overwritten_before(server: RedisServer) -> None:
    async def script() -> None:
        server.ask("SET", KEYS.seen("w0"), "5")
        host = Host(server.url)
        host.writer.losses.hello("w0", 9)
        host.writer.losses.seen("w0", 12)
        server.pause()
        try:
            with impatient(host.store):
                await host.round()
            assert host.writer.losses.settled_before_write == 0
        finally:
            server.resume()
        await host.round()
        assert host.writer.losses.settled_before_write == 4
        assert server.ask("GET", KEYS.seen("w0")) == b"12"
        await host.store.close(1)

    run(script())


@pytest.mark.parametrize("stands", ["", "ten", "-3", "9" * 5_000])
def test_what_is_no_number_counts_as_nothing_known(server: RedisServer, stands: str) -> None:
    async def script() -> None:
        server.ask("SET", KEYS.seen("w0"), stands)
        host = Host(server.url)
        host.writer.losses.hello("w0", 9)
        await host.round()
        assert host.status() == ("ok", None)
        assert host.writer.losses.settled_before_write == 9
        await host.store.close(1)

    run(script())


def test_a_worker_that_connects_while_redis_is_asked_is_no_error(server: RedisServer) -> None:
    async def script() -> None:
        host = Host(server.url)
        host.writer.losses.hello("w0", 9)
        asked = host.store.seen

        async def meanwhile(workers: Sequence[str]) -> list[int | None]:
            host.writer.losses.hello("w1", 5)
            return await asked(workers)

        host.store.seen = meanwhile  # type: ignore[method-assign]
        await host.round()
        assert host.status() == ("ok", None)
        await host.round()
        assert host.writer.losses.settled_before_write == 9 + 5
        await host.store.close(1)

    run(script())


# ---------------------------------------------------------------- the task


def test_the_task_writes_by_itself_and_ends_when_told(server: RedisServer) -> None:
    async def script() -> None:
        host = Host(server.url)
        host.clock.unix_ns = host.clock.monotonic_ns = time.time_ns  # type: ignore[method-assign]
        host.writer._unix_ns = host.writer._monotonic_ns = time.time_ns
        host.writer.health._monotonic_ns = time.time_ns
        host.writer._round_at_ns = 0
        host.settle(5)
        task = asyncio.create_task(host.writer.run())
        await asyncio.to_thread(eventually, lambda: everywhere(server) == [5, 5, 5], 5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await host.store.close(1)

    run(script())


def test_an_error_of_ours_ends_nothing(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async def script() -> None:
        host = Host(server.url)

        def fails() -> object:
            raise KeyError(host.name)

        picture, host.writer._picture = host.writer._picture, fails  # type: ignore[assignment]
        host.settle()
        await host.round()
        assert host.status() == ("degraded", "error")
        host.writer._picture = picture
        await host.round()
        assert host.status() == ("ok", None)
        await host.store.close(1)

    run(script())
    assert "KeyError" in caplog.text
    assert "aaaaaaaa" not in caplog.text


def test_trouble_is_told_once_and_its_end(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "legato.fleet")

    async def script() -> None:
        host = Host("redis://user:hunter2@127.0.0.1:1")
        for _ in range(20):
            await host.round(1)
        assert host.status() == ("degraded", "away")
        assert host.writer.health.failures >= 5
        await host.store.close(1)

    run(script())
    assert caplog.text.count("Redis") == 1
    assert "hunter2" not in caplog.text
