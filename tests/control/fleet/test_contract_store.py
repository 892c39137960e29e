"""What holds with every way to run Redis: all hosts' numbers are those of one host that saw everything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from proxy.control.fleet.store import StoreError
from proxy.control.settle import GroupKey
from proxy.control.windows import Windowed
from proxy.link import BackendNow, Facts
from scoring import codec
from scoring.window import Windows
from tests.control.facts import S, at, facts, streamed
from tests.control.fleet.host import impatient
from tests.control.fleet.places import PLACES, Place, Pod, pods
from tests.control.test_api import serving
from tests.control.test_windows import HOUR, MINUTE, Clock, ended
from tests.control.test_workers import beat, now


@pytest.fixture(scope="module", params=PLACES)
def shared(request: pytest.FixtureRequest) -> Iterator[Place]:
    with PLACES[request.param]() as place:
        yield place


@pytest.fixture
def place(shared: Place) -> Place:
    shared.flush()
    return shared


def clock() -> Clock:
    """Now: Redis forgets by its own clock."""
    return Clock(time.time_ns())


def some(pod: Pod, number: int) -> list[Facts]:
    """A good stream, a late one and a failure, of models that take turns."""
    model = ("llama", "qwen", "phi")[number % 3]
    late_ms = 120 + 37 * (number % 11)
    return [
        ended(pod.clock, streamed(at(80), at(100 + number % 5), at(130), end_ms=140, model=model)),
        ended(pod.clock, streamed(at(90), at(late_ms), end_ms=late_ms + 1, model=model)),
        *([ended(pod.clock, facts(60, status=503, model=model))] if number % 4 == 0 else []),
    ]


def exact(read: Windowed) -> dict[GroupKey | None, bytes]:
    """Every sum, histogram and curve, to the last bit."""
    return {key: codec.pack(slot) for key, slot in [(None, read.total), *read.groups.items()]}


def seen_by(every: Windows, read: Windowed) -> Windowed:
    """The same stretch, of the one that saw everything."""
    bounds = read.start_ns, read.end_ns + 1
    groups = {key: every.view((key,), *bounds).slot for key in read.groups}
    assert groups.keys() == set(every.keys)
    return Windowed(every.view(None, *bounds).slot, groups, *bounds)


def oracle(at_ns: int) -> Windows:
    every = Windows()
    every.advance(at_ns)
    return every


def test_all_hosts_are_one(place: Place) -> None:
    time_ = clock()
    every = oracle(time_.now_ns)

    async def story() -> None:
        async with pods(place, time_, "a", "b", "c", "late", every=every) as (a, b, c, late):
            for number in range(24):  # six minutes
                for pod in (a, b, c):
                    pod.ends(*some(pod, number))
                    assert await pod.round() == "ok"
                every.advance(time_.now_ns)
            for window_ns in (MINUTE, 5 * MINUTE, HOUR, 24 * HOUR):
                for pod in (b, late):
                    found = await pod.reader.read(window_ns, pod.reader.now_ns())
                    read = found.windowed
                    assert read.total.requests > 10
                    assert exact(read) == exact(seen_by(every, read)), (window_ns, place.url)
                    assert found.instances == 3
            day = (await late.reader.read(24 * HOUR, late.reader.now_ns())).windowed
            sums = [pod.fleet.state().acknowledged for pod in (a, b, c)]
            assert day.total.requests == sum(each["requests"] for each in sums) == 3 * 24 * 2 + 3 * 6
            assert day.total.deadlines["missed"] == sum(each["missed"] for each in sums) > 0

    asyncio.run(story())


def test_a_record_is_found_on_another_pod_by_each_of_its_names(place: Place) -> None:
    async def story() -> None:
        async with pods(place, clock(), "a", "b") as (a, b):
            a.ends(ended(a.clock, facts(100, id="the-id", request_id="theirs", trace_id="f" * 32)))
            await a.round()
            found = [await b.reader.find(name) for name in ("the-id", "theirs", "f" * 32, "nobody")]
            assert [None if each is None else each.instance for each in found] == ["a", "a", "a", None]
            kept = a.controller.store.find("the-id")
            assert kept is not None
            assert found[0] == kept.settled.record
            assert [each.id for each in await b.reader.records()] == ["the-id"]

    asyncio.run(story())


def test_what_is_in_flight_is_added_up(place: Place) -> None:
    async def story() -> None:
        async with pods(place, clock(), "a", "b") as (a, b):
            for pod, up in ((a, False), (b, True)):
                gpu = BackendNow("gpu", up, 1, 2, 3, 4)
                pod.controller.feed(
                    beat(now(in_flight=2, overdue=1, missed=3, worst=70_000_000), backends=[gpu])
                )
                await pod.round()
            found = await a.reader.now()
            assert [(each.in_flight, each.overdue, each.missed) for each in found.groups] == [(4, 2, 6)]
            assert [(each.name, each.up, each.active) for each in found.backends] == [("gpu", True, 2)]
            assert found.instances == 2

    asyncio.run(story())


#: After which command the connection is cut; ``None``: the server stands still until nobody waits any more.
LOST = (b"HSET", b"EXPIREAT", b"SET", b"ZADD", None)


def test_what_was_written_and_never_answered_counts_once(place: Place) -> None:
    async def story(command: bytes | None) -> None:
        async with pods(place, clock(), "a", "b") as (a, b):
            a.ends(*some(a, 0))
            await a.well()
            a.ends(*some(a, 4))
            store = a.fleet.writer._store
            with place.losing(command), impatient(store) if command is None else nullcontext():
                assert await a.round() == "degraded"
            await a.well()
            read = (await b.reader.read(HOUR, b.reader.now_ns())).windowed
            assert read.total.requests == a.fleet.state().acknowledged["requests"] == 6, command

    # What is said over TLS, or to the master that a Sentinel names, no shim can count.
    for command in LOST if place.shims else LOST[-1:]:
        place.flush()
        asyncio.run(story(command))


def test_away_and_back_nothing_is_lost(place: Place) -> None:
    """The last test of each place: a Sentinel fails over once."""
    time_ = clock()
    every = oracle(time_.now_ns)

    async def story() -> None:
        async with pods(place, time_, "a", "b", every=every) as (a, b):
            for pod in (a, b):
                pod.ends(*some(pod, 0))
                assert await pod.round() == "ok"
            place.crash()
            for number in range(6):
                for pod in (a, b):
                    pod.ends(*some(pod, number))
                    assert await pod.round() == "degraded"
            with pytest.raises(StoreError) as told:
                await a.reader.read(HOUR, a.reader.now_ns())
            state = a.fleet.state()
            assert (told.value.reason, a.reader.away) == (state.reason, (state.reason, state.since_unix_ns))
            place.back()
            for pod in (a, b):
                await pod.well()
                await pod.well()
            time_.now_ns += 10 * S
            every.advance(time_.now_ns)
            read = (await b.reader.read(HOUR, b.reader.now_ns())).windowed
            assert exact(read) == exact(seen_by(every, read))
            assert b.reader.away is None
            assert a.fleet.dropped() == {name: 0 for name in a.fleet.dropped()}

    asyncio.run(story())


# ---------------------------------------------------------------- over HTTP, one server


def test_the_api_shows_all_hosts_then_one_then_all_again() -> None:
    time_ = clock()

    async def write(place: Place) -> None:
        async with pods(place, time_, "a", "b") as both:
            for pod in both:
                pod.ends(*some(pod, 0))
                assert await pod.round() == "ok"

    with PLACES["standalone"]() as place:
        asyncio.run(write(place))
        asked = Pod(place, time_, "asked")
        with serving(asked.controller) as client:

            def shown() -> list[object]:
                found = client.get("/api/summary?window=1h")
                assert found.status_code == 200
                summary = found.json()
                degraded = summary["degraded"] and summary["degraded"]["reason"]
                return [summary["scope"], summary["instances"], summary["total"]["requests"], degraded]

            assert shown() == ["fleet", 2, 6, None]
            place.crash()
            time_.now_ns += 30 * S
            assert shown() == ["host", 1, 0, "away"]
            assert client.get("/healthz").status_code == 200
            place.back()
            asyncio.run(write(place))
            time_.now_ns += 5 * S
            assert shown() == ["fleet", 2, 6, None]
