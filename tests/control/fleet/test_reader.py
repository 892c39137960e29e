"""The merged view: equal to one host that saw everything, whatever else stands in Redis."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from proxy.control.fleet.layout import LAYOUT, Grain, GroupValue, SlotValue, encode
from proxy.control.fleet.reader import GROUPS_MOST, Reader
from proxy.control.fleet.store import StoreError
from proxy.control.settle import GroupKey, settle
from proxy.control.windows import Booked, WindowBook, Windowed
from proxy.exporters.catalog import OTHER
from proxy.link import BackendNow, Facts, GroupNow
from scoring import codec
from scoring.slot import Booking, Slot
from tests.control.facts import UNIX, S, facts
from tests.control.fleet.fakes import KEYS, Memory, Ticks, reader, run
from tests.control.test_windows import HOUR, MINUTE, Clock, ended, stream_now

DAY = 24 * HOUR
LLAMA = GroupKey("default", "llama", "default")


def three_hosts(length: int) -> tuple[Memory, WindowBook, Clock]:
    """A request each ten seconds on one of three hosts in turn, and the book of one that saw them all."""
    clock = Clock(UNIX - UNIX % HOUR + 14 * MINUTE + 7 * S)
    every, memory = WindowBook(clock.now_ns), Memory()
    booked: dict[str, list[Booked]] = {"a": [], "b": [], "c": []}
    for number in range(length // (10 * S)):
        made = stream_now(clock, 80, 110 + number % 90) if number % 3 else ended(clock, status=503)
        booked["abc"[number % 3 - number % 2]].append(
            every.add(GroupKey("default", ("llama", "qwen")[number % 2], "default"), settle(made, "one"))
        )
        clock.now_ns += 10 * S
        every.advance(clock.now_ns)
    for host, ended_there in booked.items():
        memory.write(host, ended_there)
    return memory, every, clock


def packed(read: Windowed) -> dict[GroupKey | None, bytes]:
    """Sums and histograms to the last bit; the curve's sample is each host's own."""
    found: dict[GroupKey | None, bytes] = {}
    for key, slot in [(None, read.total), *read.groups.items()]:
        bare = Slot()
        bare.merge(slot)
        bare.curve = None
        found[key] = codec.pack(bare)
    return found


@pytest.fixture(scope="module")
def two_hours() -> tuple[Memory, WindowBook, Clock]:
    """Only to be read."""
    return three_hosts(2 * HOUR)


@pytest.mark.parametrize("window_ns", [10 * S, MINUTE, 5 * MINUTE, 30 * MINUTE, HOUR])
def test_it_equals_one_host_that_saw_everything(
    window_ns: int, two_hours: tuple[Memory, WindowBook, Clock]
) -> None:
    memory, every, clock = two_hours
    found = run(reader(memory, Ticks(clock.now_ns)).read(window_ns, clock.now_ns))
    read = found.windowed
    start_ns = clock.now_ns - window_ns
    assert read.start_ns <= start_ns < read.start_ns + max(window_ns // 20, 10 * S)
    same = every.windows.view(None, read.start_ns, clock.now_ns)
    groups = {key: every.windows.view((key,), read.start_ns, clock.now_ns).slot for key in every.keys}
    assert same.start_ns == read.start_ns
    assert read.total.requests > 0
    expected = Windowed(same.slot, {key: slot for key, slot in groups.items() if slot.requests}, 0, 0)
    assert packed(read) == packed(expected)


@pytest.mark.parametrize(
    ("window_ns", "step_ns"),
    [(5 * MINUTE, 10 * S), (HOUR, MINUTE), (2 * HOUR, 15 * MINUTE), (2 * HOUR, HOUR)],
)
def test_each_step_of_a_series_equals_that_of_one_host(
    window_ns: int, step_ns: int, two_hours: tuple[Memory, WindowBook, Clock]
) -> None:
    memory, every, clock = two_hours
    first_ns = (clock.now_ns - window_ns) // step_ns * step_ns
    bounds = [(at_ns, at_ns + step_ns) for at_ns in range(first_ns, clock.now_ns, step_ns)]
    taken: dict[int, Windowed] = {}

    def take(index: int, groups: dict[GroupKey, Slot]) -> None:
        total = Slot()
        for slot in groups.values():
            total.merge(slot)
        taken[index] = Windowed(total, groups, *bounds[index])

    asked = reader(memory, Ticks(clock.now_ns))
    assert run(asked.series("requests", bounds, take, lambda: "made")) == "made"
    assert len(taken) >= len(bounds) - 1  # nothing ended in the last seconds
    for index, read in taken.items():
        same = {key: every.windows.view((key,), *bounds[index]).slot for key in read.groups}
        total = every.windows.view(None, *bounds[index]).slot
        assert packed(read) == packed(Windowed(total, same, 0, 0)), index


def test_a_day_is_read_from_hours(two_hours: tuple[Memory, WindowBook, Clock]) -> None:
    memory, _, clock = two_hours
    found = run(reader(memory, Ticks(clock.now_ns)).read(DAY, clock.now_ns))
    assert found.windowed.total.requests == 2 * 360
    assert found.instances == 3
    assert memory.most <= 16


def test_instances_are_those_that_wrote_within_the_window() -> None:
    memory, _, clock = three_hosts(10 * MINUTE)
    memory.wrote["gone"] = (clock.now_ns - 2 * HOUR) // S
    assert run(reader(memory, Ticks(clock.now_ns)).read(HOUR, clock.now_ns)).instances == 3
    assert run(reader(memory, Ticks(clock.now_ns)).read(DAY, clock.now_ns)).instances == 4


# ---------------------------------------------------------------- what is kept


def test_an_answer_is_kept_for_some_seconds_and_the_next_is_new() -> None:
    memory, _, clock = three_hosts(MINUTE)
    monotonic = Ticks()
    asked = reader(memory, Ticks(clock.now_ns), monotonic)

    async def ask() -> None:
        first = await asked.read(HOUR, clock.now_ns)
        calls = memory.asked
        for _ in range(3):
            assert await asked.read(HOUR, clock.now_ns) is first
        assert memory.asked == calls
        assert await asked.read(DAY, clock.now_ns) is not first
        monotonic.now_ns += 5 * S
        assert await asked.read(HOUR, clock.now_ns) is not first

    run(ask())


def test_those_who_ask_the_same_at_once_wait_for_one_answer() -> None:
    memory, _, clock = three_hosts(MINUTE)
    asked = reader(memory, Ticks(clock.now_ns))

    async def ask() -> None:
        found = await asyncio.gather(*(asked.read(HOUR, clock.now_ns) for _ in range(5)))
        assert all(each is found[0] for each in found)

    run(ask())
    calls = memory.asked
    again = reader(memory, Ticks(clock.now_ns))
    run(again.read(HOUR, clock.now_ns))
    assert memory.asked == 2 * calls


def test_what_took_long_is_kept_longer() -> None:
    memory, _, clock = three_hosts(MINUTE)
    monotonic = Ticks(step_ns=S)
    asked = reader(memory, Ticks(clock.now_ns), monotonic)

    async def ask() -> None:
        begun_ns = monotonic.now_ns
        first = await asked.read(HOUR, clock.now_ns)
        took_ns = monotonic.now_ns - begun_ns
        monotonic.step_ns = 0
        monotonic.now_ns += 8 * took_ns
        assert await asked.read(HOUR, clock.now_ns) is first
        monotonic.now_ns += 4 * took_ns
        assert await asked.read(HOUR, clock.now_ns) is not first

    run(ask())


def test_answers_that_are_kept_are_few() -> None:
    memory, _, clock = three_hosts(MINUTE)
    asked = reader(memory, Ticks(clock.now_ns))

    async def ask() -> None:
        first = await asked.read(10 * S, clock.now_ns)
        for minutes in range(1, 20):
            await asked.read(minutes * MINUTE, clock.now_ns)
        assert await asked.read(10 * S, clock.now_ns) is not first

    run(ask())


def test_answers_that_are_old_are_let_go() -> None:
    memory, _, clock = three_hosts(MINUTE)
    monotonic = Ticks()
    asked = reader(memory, Ticks(clock.now_ns), monotonic)

    async def ask() -> None:
        for minutes in range(1, 4):
            await asked.read(minutes * MINUTE, clock.now_ns)
        monotonic.now_ns += 600 * S
        await asked.hosts()
        assert list(asked._answers._answers) == ["hosts"]

    run(ask())


@pytest.mark.parametrize(("value", "most"), [(10, 16), (100_000, 13), (2_000_000, 4)])
def test_many_hosts_are_asked_for_fewer_slots_at_once(value: int, most: int) -> None:
    memory, now_ns = Memory(), UNIX - UNIX % HOUR + 50 * MINUTE
    fields = {host: bytes(value) for host in ("a", "b", "c")}  # whatever it is
    for back in range(21):
        memory.hashed[KEYS.slot(Grain.MINUTE, Grain.MINUTE.number(now_ns) - back)] = fields
    asked = reader(memory, Ticks(now_ns))
    run(asked.read(20 * MINUTE, now_ns))
    assert memory.most == most
    assert asked.nonsense == 3 * 21  # each slot once


# ---------------------------------------------------------------- nonsense and failures


def strangers(clock: Clock) -> list[bytes]:
    good = codec.pack(Slot())
    return [
        b"",
        b"\xc1",
        b"hello",
        msgspec.msgpack.encode({"layout": 1}),
        encode(SlotValue(LAYOUT + 1, [GroupValue("b", "m", "s", good)])),
        encode(SlotValue(LAYOUT, [GroupValue("b", "m", "s", b"broken")])),
        encode(SlotValue(LAYOUT, [GroupValue("b", "m", "s", good[:-1])])),
        msgspec.msgpack.encode([LAYOUT, [["b", "m", 3, good]]]),
    ]


def test_nonsense_is_passed_over_and_counted() -> None:
    memory, every, clock = three_hosts(MINUTE)
    place = KEYS.slot(Grain.HOUR, Grain.HOUR.number(clock.now_ns))
    memory.hashed[place] |= {f"x{n}": value for n, value in enumerate(strangers(clock))}
    asked = reader(memory, Ticks(clock.now_ns))
    found = run(asked.read(DAY, clock.now_ns)).windowed
    assert found.total.requests == 6
    assert {key.model for key in found.groups} == {"llama", "qwen"}
    assert asked.nonsense == len(strangers(clock))
    assert every.keys  # the hosts' own are all there


def test_half_of_a_broken_value_is_not_in_the_sums() -> None:
    memory, _, clock = three_hosts(MINUTE)
    place = KEYS.slot(Grain.HOUR, Grain.HOUR.number(clock.now_ns))
    (field, data), *_ = memory.hashed[place].items()
    value = msgspec.msgpack.decode(data, type=SlotValue)
    broken = [msgspec.structs.replace(each, packed=each.packed[:-2]) for each in value.groups]
    memory.hashed[place]["broken"] = encode(SlotValue(LAYOUT, broken))
    asked = reader(memory, Ticks(clock.now_ns))
    assert run(asked.read(DAY, clock.now_ns)).windowed.total.requests == 6
    assert asked.nonsense == len(broken)
    assert field != "broken"


def test_groups_without_end_become_one() -> None:
    memory, clock = Memory(), Clock()
    once = Booking("completed", "good", 1_000)
    memory.write("a", (Booked(GroupKey("b", f"m{n}", "s"), clock.now_ns, once) for n in range(1_000)))
    found = run(reader(memory, Ticks(clock.now_ns)).read(DAY, clock.now_ns)).windowed
    assert len(found.groups) == GROUPS_MOST
    assert found.groups[GroupKey(OTHER, OTHER, OTHER)].requests == 1_000 - GROUPS_MOST + 1
    assert found.total.requests == 1_000


def test_redis_away_is_told_at_once_for_a_moment_and_then_tried_again() -> None:
    memory, _, clock = three_hosts(MINUTE)
    monotonic, unix = Ticks(), Ticks(clock.now_ns)
    asked = reader(memory, unix, monotonic)

    async def fails() -> int:
        before = memory.asked
        with pytest.raises(StoreError) as told:
            await asked.read(HOUR, clock.now_ns)
        assert told.value.reason == "slow"
        return memory.asked - before

    async def story() -> None:
        memory.fails = "slow"
        assert await fails() == 1
        assert asked.away == ("slow", clock.now_ns)
        unix.now_ns += S
        assert await fails() == 0
        with pytest.raises(StoreError):
            await asked.find("r1")
        monotonic.now_ns += 3 * S
        assert await fails() == 1
        assert asked.away == ("slow", clock.now_ns)  # since the first time
        monotonic.now_ns += 3 * S
        memory.fails = None
        assert (await asked.read(HOUR, clock.now_ns)).windowed.total.requests == 6
        assert asked.away is None

    run(story())


def test_the_clock_is_that_of_redis() -> None:
    memory, _, clock = three_hosts(MINUTE)
    behind = reader(memory, Ticks(clock.now_ns - 2 * HOUR), offset_ns=2 * HOUR)
    assert run(behind.read(MINUTE, behind.now_ns())).windowed.total.requests == 6


# ---------------------------------------------------------------- now


def test_what_is_in_flight_is_added_up_over_hosts() -> None:
    memory, unix = Memory(), Ticks(UNIX)
    for host, up, worst_ns in (("a", True, 5_000_000), ("b", False, 4_000_000)):
        groups = [GroupNow(*LLAMA, 3, 1, 2, worst_ns, 10.0)]
        memory.picture(host, UNIX, groups, [BackendNow("gpu", up, 2, 1, 0, 4)])
    memory.picture("old", UNIX - 200 * S, [GroupNow(*LLAMA, 9, 9, 9, 9)], [])
    memory.picture("odd", UNIX, [], [])
    memory.stored[KEYS.now("odd")] = b"odd"
    asked = reader(memory, unix)
    found = run(asked.now())
    assert found.groups == (GroupNow(*LLAMA, 6, 2, 4, 5_000_000, 20.0),)
    (gpu,) = found.backends
    assert (gpu.name, gpu.up, gpu.active, gpu.idle, gpu.addresses) == ("gpu", True, 4, 2, 4)
    assert (found.instances, asked.nonsense) == (2, 1)


def test_who_writes_its_slots_once_a_minute_is_in_flight_all_the_time() -> None:
    memory = Memory()
    memory.picture("a", UNIX, [GroupNow(*LLAMA, 3, 1, 2, 0, 10.0)], [])
    memory.wrote["a"] = UNIX // S - 100
    found = run(reader(memory, Ticks(UNIX)).now())
    assert (found.instances, [each.in_flight for each in found.groups]) == (1, [3])


# ---------------------------------------------------------------- records


def named(**names: str) -> Facts:
    return facts(100, **names)


def test_a_record_is_found_by_each_of_its_names() -> None:
    memory = Memory()
    records = [
        settle(named(id=f"id{n}", request_id=f'q"{n}', trace_id=f"t{n}"), "other").record for n in range(20)
    ]
    for record in records:
        memory.record(record)
    memory.streams[KEYS.recent].insert(3, b"nonsense")
    asked = reader(memory, Ticks(UNIX), Ticks(step_ns=S))
    for name in ("id7", 'q"7', "t7"):
        assert run(asked.find(name)) == records[7], name
    for name in ("id", "other", "", "id77", "default"):  # parts, and what stands elsewhere in it
        assert run(asked.find(name)) is None, name
    assert asked.nonsense >= 1


def test_who_looks_for_one_after_the_other_asks_redis_once_a_second() -> None:
    memory, monotonic = Memory(), Ticks()
    asked = reader(memory, Ticks(UNIX), monotonic)
    for number in range(10):
        assert run(asked.find(f"unknown{number}")) is None
    assert memory.asked == 2
    monotonic.now_ns += S
    memory.record(settle(named(id="late"), "other").record)
    assert run(asked.find("late")) is not None


def test_all_records_are_read_once_each() -> None:
    memory = Memory()
    record = settle(named(id="one"), "other").record
    memory.record(record)
    memory.record(msgspec.structs.replace(record, id="two"))
    memory.streams[KEYS.worst] = [*memory.streams[KEYS.recent], b"nonsense"]
    asked = reader(memory, Ticks(UNIX))
    assert sorted(each.id for each in run(asked.records())) == ["one", "two"]
    assert asked.nonsense == 1


# ---------------------------------------------------------------- giving way


def many(hosts: int, groups: int, slots: int, now_ns: int) -> Memory:
    """As if each group had been busy in each minute and hour."""
    memory, slot = Memory(), Slot()
    for number in range(30):
        slot.add(Booking("completed", "good", 2_000_000_000 + number, output_tokens=9, ttft_ns=1e8 + number))
    values = [GroupValue("b", f"m{n}", "s", codec.pack(slot)) for n in range(groups)]
    data = encode(SlotValue(LAYOUT, values))
    for grain in (Grain.MINUTE, Grain.HOUR):
        for back in range(slots):
            key = KEYS.slot(grain, grain.number(now_ns) - back)
            memory.hashed[key] = {f"h{host}": data for host in range(hosts)}
    return memory


@pytest.mark.alone
def test_a_long_read_gives_way_every_few_milliseconds() -> None:
    now_ns = UNIX - UNIX % HOUR + 90 * S  # 59 slots of a minute and one of an hour
    memory = many(3, 16, 61, now_ns)
    asked = Reader(memory, KEYS, offset_ns=lambda: 0, unix_ns=Ticks(now_ns), monotonic_ns=time.monotonic_ns)
    gaps: list[float] = []

    async def watch() -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            at = time.thread_time()
            gaps.append(at - last)
            last = at

    async def both() -> int:
        watching = asyncio.create_task(watch())
        found = await asked.read(HOUR, now_ns)
        watching.cancel()
        return found.windowed.total.requests

    assert run(both()) > 10_000
    gaps.sort()
    assert len(gaps) > 20
    assert gaps[-2] < 0.02, gaps[-5:]  # 3 ms and the work of one group; loose for a busy machine
