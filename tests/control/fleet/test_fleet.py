"""Behind a controller: what is settled is in Redis, and no trouble with it shows anywhere else."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import msgspec
import pytest
from pydantic import SecretStr

from proxy.control.core import Controller
from proxy.control.fleet.fleet import Fleet
from proxy.control.fleet.layout import Grain, Keys, decode_host, decode_now, decode_record
from proxy.control.settle import GroupKey
from proxy.control.windows import Booked
from proxy.exporters.vocabulary import DROPPED, EXPORTER
from proxy.link import BackendNow, Facts, Hello
from proxy.settings.telemetry import Redis
from tests.control.facts import UNIX, at, facts, streamed, table
from tests.control.fleet.host import Clock, booking, everywhere
from tests.control.test_workers import beat, now
from tests.helpers.procs import eventually
from tests.helpers.redis_server import RedisServer

S = 1_000_000_000
KEYS = Keys("test")


def controller_of() -> Controller:
    return Controller(
        table(), instance="host-1", version="1.2", unix_ns=time.time_ns, monotonic_ns=time.monotonic_ns
    )


def joined(url: str, controller: Controller) -> Fleet:
    settings = Redis(url=SecretStr(url), prefix="test", every=S, timeout=10 * S)
    fleet = Fleet(settings, controller, unix_ns=time.time_ns, monotonic_ns=time.monotonic_ns)
    controller.join(fleet)
    controller.add_sink(fleet)
    controller.watch_exporter(fleet.failures, fleet.dropped)
    return fleet


def just_now(given: Facts) -> Facts:
    return msgspec.structs.replace(given, received_unix_ns=given.received_unix_ns - UNIX + time.time_ns())


def test_what_is_settled_here_is_in_redis(server: RedisServer) -> None:
    async def script() -> None:
        controller = controller_of()
        fleet = joined(server.url, controller)
        assert fleet.state().status == "starting"
        task = asyncio.create_task(fleet.run())
        worker = controller.hello(Hello(1, 0, 1, "w0", 1, 0, 0))
        batch = [
            just_now(streamed(at(80), at(120), end_ms=130, seq=1)),
            just_now(streamed(at(80), at(900), end_ms=910, seq=2, id="late")),
            just_now(facts(seq=3)),
        ]
        controller.facts(worker, batch)
        controller.beat(worker, beat(now(in_flight=2), backends=[BackendNow("default", True, 2, 1, 0, 1)]))
        await asyncio.to_thread(eventually, lambda: fleet.state().acknowledged["requests"] == 3, 5)
        state = fleet.state()
        assert (state.status, state.reason, state.waiting_slots) == ("ok", None, 0)
        assert state.written_unix_ns is not None
        assert abs(state.offset_ns) < S
        assert everywhere(server) == [3, 3, 3]
        stats = controller.snapshot().groups[0]
        assert state.acknowledged == {
            "requests": sum(stats.outcomes.values()),
            "met": stats.deadlines["met"],
            "missed": stats.deadlines["missed"],
            "output_tokens": sum(stats.output_tokens.values()),
        }
        await asyncio.to_thread(eventually, lambda: server.ask("XLEN", KEYS.recent) >= 3, 5)
        await fleet.close(30)
        await asyncio.wait([task], timeout=10)  # a busy machine may take longer than it is waited for
        assert task.cancelled()
        with server.admin() as client:
            assert client.get(KEYS.seen("w0")) == b"3"
            picture = client.get(KEYS.now(state.incarnation))
            assert picture is not None
            assert decode_now(picture).groups[0].in_flight == 2
            assert decode_now(picture).backends == [BackendNow("default", True, 2, 1, 0, 1)]
            worst = [decode_record(fields[b"r"]) for _, fields in client.xrange(KEYS.worst)]
            assert [msgspec.json.decode(each)["id"] for each in worst] == ["late"]
            assert all(client.ttl(key) > 0 for key in (KEYS.recent, KEYS.worst))

    asyncio.run(script())


def test_a_lost_control_process_is_told_by_the_next(server: RedisServer) -> None:
    async def script() -> None:
        first = controller_of()
        fleet = joined(server.url, first)
        await fleet.writer.pack()
        worker = first.hello(Hello(1, 0, 1, "w0", 1, 0, 0))
        first.facts(worker, [just_now(facts(seq=seq)) for seq in range(1, 5)])
        await fleet.writer.close(1)
        first.facts(worker, [just_now(facts(seq=seq)) for seq in range(5, 8)])  # and is killed

        second = controller_of()
        fleet = joined(server.url, second)
        second.hello(Hello(1, 0, 1, "w0", 8, 7, 0))
        await fleet.writer.close(1)
        dropped = second.snapshot().dropped
        assert (dropped["settled_by_lost_control"], dropped["settled_before_write"]) == (7, 3)
        with server.admin() as client:
            told = client.get(KEYS.host(fleet.state().incarnation))
        assert told is not None
        assert decode_host(told).lost == {"settled_before_write": 3}

    asyncio.run(script())


def test_a_record_that_cannot_be_built_keeps_nothing_else_back(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def script() -> None:
        controller = controller_of()
        fleet = joined(server.url, controller)
        worker = controller.hello(Hello(1, 0, 1, "w0", 1, 0, 0))
        controller.facts(worker, [just_now(facts(seq=1))])
        fleet([SimpleNamespace(score=None)])  # type: ignore[list-item]
        fleet.writer._round_at_ns = 0
        await fleet.writer.tick()
        assert fleet.state().status == "ok"
        assert fleet.state().acknowledged["requests"] == 1
        await fleet.close(30)

    asyncio.run(script())
    assert caplog.text.count("sharing a record failed: AttributeError") == 1


@pytest.mark.parametrize("url", ["redis://user:hunter2@127.0.0.1:1", "unix:///nowhere/redis.sock"])
def test_without_redis_all_else_goes_on(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async def script() -> None:
        controller = controller_of()
        fleet = joined(url, controller)
        task = asyncio.create_task(fleet.run())
        worker = controller.hello(Hello(1, 0, 1, "w0", 1, 5, 0))
        controller.facts(worker, [just_now(facts(seq=6))])
        await asyncio.to_thread(eventually, lambda: fleet.state().status == "degraded", 5)
        state = fleet.state()
        assert state.reason == "away"
        assert controller.ready
        snapshot = controller.snapshot()
        assert snapshot.export_failures["redis"] >= 1
        assert snapshot.dropped["settled_before_write"] == 0
        assert not task.done()
        await fleet.close(0.2)
        assert task.done()

    asyncio.run(script())
    assert caplog.text.count("Redis: away") == 1
    assert "hunter2" not in caplog.text


def test_names_of_what_is_counted_are_in_the_closed_lists() -> None:
    fleet = joined("redis://127.0.0.1:1", controller_of())
    assert set(fleet.failures()) <= set(EXPORTER)
    assert set(fleet.dropped()) <= set(DROPPED)


def test_no_two_starts_share_a_field_and_not_all_write_at_once() -> None:
    fleets = [joined("redis://127.0.0.1:1", controller_of()) for _ in range(50)]
    assert len({fleet.state().incarnation for fleet in fleets}) == 50
    phases = [fleet.writer.identity.phase() for fleet in fleets]
    assert min(phases) < 0.3
    assert max(phases) > 0.7
    assert all(0 <= phase < 1 for phase in phases)


def test_a_request_is_booked_by_the_clock_of_redis() -> None:
    fleet = joined("redis://127.0.0.1:1", controller_of())
    fleet.writer.offset.ns = 3_600 * S
    at_ns = time.time_ns()
    fleet.booked(Booked(GroupKey("b", "m", "s"), at_ns, booking()))
    *_, written = fleet.writer.book.pack()
    assert written[0].number == Grain.TEN.number(at_ns + 3_600 * S)


def test_sixty_four_groups_are_packed_in_short_steps() -> None:
    """The loop of the control process is given back between them."""
    fleet = joined("redis://127.0.0.1:1", controller_of())
    book = fleet.writer.book
    clock = Clock()
    book.advance(clock.now_ns)
    for number in range(64):
        book.add(GroupKey("b", f"m{number}", "s"), clock.now_ns, booking())
    steps = list(book.pack())
    assert len(steps) == 65
    assert [each.grain for each in steps[-1]] == list(Grain)
