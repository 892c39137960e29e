"""Many groups and many hosts: what is kept, and for how long the control process does nothing else."""

from __future__ import annotations

import asyncio
import time

import pytest

from proxy.control.alerts.exchange import Exchange, pack
from proxy.control.alerts.rings import GROUPS, KEPT, SLOT_NS, Book, Tally
from proxy.control.settle import GroupKey
from proxy.exporters.catalog import OTHER
from tests.control.alerts.hosts import START, Host, World
from tests.control.facts import S
from tests.helpers.shared import MemoryShared

SLOT = START // SLOT_NS
SOME = Tally(judged=10, missed=1, tried=10, failed=1, counted=10, bad=2, awaited=3, overdue=1, tokens=900)


def group(host: int, number: int) -> GroupKey:
    return GroupKey("default", f"model-{host}-{number}", "default")


def written(world: World, slots: int, hosts: int = 20, groups: int = 64) -> None:
    """What so many hosts wrote, each with groups that no other one has."""
    for host in range(hosts):
        value = pack({group(host, number): SOME for number in range(groups)})
        for slot in range(SLOT - slots, SLOT + 1):
            name = f"alerts:10s:{slot}"
            world.place.hashes.setdefault(name, {})[f"other{host}"] = value
            world.place.until_ns[name] = 2**62


def test_more_groups_than_fit_are_one_and_none_is_lost() -> None:
    """Models are named by clients: twenty hosts may each have admitted names of their own."""
    world = World(shared=True)
    written(world, 2)
    book = Book()

    async def read() -> float:
        exchange, shared = Exchange(), MemoryShared(world.place, "me")
        await exchange.read(shared, book, SLOT)
        began_s = time.thread_time()
        await exchange.read(shared, book, SLOT)
        return time.thread_time() - began_s

    assert asyncio.run(read()) < 0.5, "it was a minute"
    assert len(book.groups) == GROUPS
    tallies = book.tallies(SLOT)
    assert sum(tally.tried for tally in tallies.values()) == 20 * 64 * 10
    assert tallies[group(0, 7)] == SOME, "who was there first stays"
    assert tallies[GroupKey(OTHER, OTHER, OTHER)].tried == (20 * 64 - GROUPS + 1) * 10


def test_a_group_that_had_nothing_for_an_hour_gives_way() -> None:
    book = Book()
    book.advance(1_000)
    for number in range(GROUPS + 20):
        book.add(group(0, number), 1_000, (1, 0, 1, 0, 1, 0))
    for slot in (1_001, 1_001 + KEPT):
        book.advance(slot)
        book.add(group(1, 1), slot, (1, 0, 1, 0, 1, 0))
        book.add(group(0, 1), slot, (1, 0, 1, 0, 1, 0))
        assert (group(1, 1) in book.groups) == (slot == 1_001 + KEPT)
    assert len(book.groups) == 2


@pytest.mark.alone  # it measures time
def test_reading_the_past_hour_lets_others_have_their_turn() -> None:
    world = World(shared=True)
    written(world, 130)
    turns_s: list[float] = []

    async def go() -> None:
        reading = asyncio.ensure_future(Exchange().read(MemoryShared(world.place, "me"), Book(), SLOT))
        while not reading.done():
            began_s = time.thread_time()  # the processor's: a busy machine is not the code's
            await asyncio.sleep(0)
            turns_s.append(time.thread_time() - began_s)

    asyncio.run(go())
    # A slot takes some milliseconds, what is asked for in one turn 60 times that.
    assert max(turns_s) < sum(turns_s) / 8


@pytest.mark.parametrize("call", ["fetch", "fetch_many", "lease", "put"])
def test_a_clock_that_jumps_while_hosts_are_asked_leaves_nothing_half_read(call: str) -> None:
    """What was being read then belongs to other slots; the past hour is read again with the next round."""
    world = World(2, shared=True)

    def each(host: Host) -> None:
        host.ends(good=2)

    world.run(600, each)
    host, other = world.hosts
    ask = getattr(host.shared, call)

    async def jump(*given: object) -> object:
        world.clock.now_ns += 40 * S
        host.alerts.tick()
        setattr(host.shared, call, ask)
        return await ask(*given)

    setattr(host.shared, call, jump)
    world.run(30, each)
    assert not host.alerts.together.alone
    mine, others = (each.alerts.together._merged for each in (host, other))
    assert mine.head is not None
    assert mine.head - mine.begun >= 60
    assert mine.long("default", mine.head - 2, 60) == others.long("default", mine.head - 2, 60)
    assert mine.long("default", mine.head - 2, 60)[0] > 1_800
