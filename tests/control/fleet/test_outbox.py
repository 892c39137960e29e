"""What waits is bounded, the least needed goes first, and only what is in no slot at all counts as lost."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.control.fleet.book import Packed, Sums
from proxy.control.fleet.layout import Grain
from proxy.control.fleet.outbox import Outbox

HOUR = 494_444
MINUTE = HOUR * 60
TEN = HOUR * 360
ROOM = 1 << 20


def packed(grain: Grain, number: int, requests: int = 1, size: int = 1_000, generation: int = 0) -> Packed:
    return Packed(grain, number, bytes(size), Sums(requests, requests, 0, requests), generation)


def test_the_latest_of_each_slot_waits_shorter_slots_first() -> None:
    box = Outbox(ROOM)
    for each in (packed(Grain.HOUR, HOUR), packed(Grain.TEN, TEN + 1), packed(Grain.TEN, TEN)):
        box.put(each)
    latest = packed(Grain.TEN, TEN, 2)
    box.put(latest)
    assert [(each.grain, each.number) for each in box.waiting()] == [
        (Grain.TEN, TEN),
        (Grain.TEN, TEN + 1),
        (Grain.HOUR, HOUR),
    ]
    assert box.waiting()[0] is latest
    assert box.waiting_slots == 3
    assert box.waiting_bytes == box.held_bytes > 3_000


def test_an_answer_counts_the_hour_once_however_often_it_is_written() -> None:
    box = Outbox(ROOM)
    for requests in (2, 2, 5):
        hour = packed(Grain.HOUR, HOUR, requests)
        box.put(hour)
        box.acknowledge(hour, 0)
        box.acknowledge(packed(Grain.TEN, TEN, requests), 0)
    assert box.acknowledged == Sums(5, 5, 0, 5)
    later = packed(Grain.HOUR, HOUR + 1, 3)
    box.put(later)
    box.acknowledge(later, 0)
    assert box.acknowledged.requests == 8
    assert box.waiting_slots == 0


def test_an_answer_to_bytes_that_are_old_leaves_the_new_ones_waiting() -> None:
    box = Outbox(ROOM)
    old, new = packed(Grain.TEN, TEN), packed(Grain.TEN, TEN, 2)
    box.put(old)
    box.put(new)
    assert not box.acknowledge(old, 0)
    assert box.waiting() == [new]
    assert box.acknowledge(new, 0), "Redis had some of it before"


def test_what_was_acknowledged_waits_again_all_of_it_or_the_last() -> None:
    box = Outbox(ROOM)
    for number in range(4):
        ten = packed(Grain.TEN, TEN + number)
        box.put(ten)
        box.acknowledge(ten, at_ns=number)
    assert box.again(since_ns=2) == 2
    assert [each.number for each in box.waiting()] == [TEN + 2, TEN + 3]
    assert box.again() == 2
    assert box.waiting_slots == 4


def test_acknowledged_slots_go_first_then_waiting_tens_then_minutes_and_nothing_is_lost() -> None:
    box = Outbox(10 * 1_500)
    kept = [packed(Grain.TEN, TEN + number) for number in range(3)]
    for ten in kept:
        box.put(ten)
        box.acknowledge(ten, 0)
    for number in range(10):
        box.put(packed(Grain.TEN, TEN + 10 + number))
    assert box.again() == 0, "no room was left for what was acknowledged"
    box.put(packed(Grain.MINUTE, MINUTE))
    box.put(packed(Grain.HOUR, HOUR))
    assert [each.number for each in box.waiting() if each.grain is Grain.TEN] == list(
        range(TEN + 12, TEN + 20)
    )
    for number in range(1, 12):
        box.put(packed(Grain.MINUTE, MINUTE + number))
    assert [each.grain for each in box.waiting()] == [Grain.MINUTE] * 9 + [Grain.HOUR]
    assert box.lost == 0


def test_an_hour_that_must_go_is_counted_less_what_redis_has_of_it() -> None:
    box = Outbox(3 * 1_500)
    hours = [packed(Grain.HOUR, HOUR + number, 10 * (number + 1)) for number in range(4)]
    box.put(hours[0])
    box.acknowledge(hours[0], 0)
    box.put(packed(Grain.HOUR, HOUR, 15))
    for hour in hours[1:]:
        box.put(hour)
    assert box.lost == 5
    assert [each.number for each in box.waiting()] == [HOUR + 1, HOUR + 2, HOUR + 3]


def test_the_latest_hour_stays_however_small_the_room() -> None:
    box = Outbox(1)
    box.put(packed(Grain.TEN, TEN))
    box.put(packed(Grain.HOUR, HOUR, 7))
    assert [each.grain for each in box.waiting()] == [Grain.HOUR]
    assert box.lost == 0


def test_what_redis_would_drop_at_once_is_not_written_any_more() -> None:
    box = Outbox(ROOM)
    box.put(packed(Grain.TEN, TEN, 4))
    box.put(packed(Grain.HOUR, HOUR, 4))
    box.forget(Grain.TEN.expires_s(TEN) + 1)
    assert [each.grain for each in box.waiting()] == [Grain.HOUR]
    assert box.lost == 0
    box.forget(Grain.HOUR.expires_s(HOUR) + 1)
    assert box.waiting() == []
    assert box.lost == 4


def test_two_books_of_one_host_are_told_apart() -> None:
    box = Outbox(ROOM)
    for generation in (0, 1):
        hour = packed(Grain.HOUR, HOUR, 3, generation=generation)
        box.put(hour)
        box.acknowledge(hour, 0)
    assert box.acknowledged.requests == 6


_moves = st.tuples(
    st.sampled_from(["put", "ack", "again", "forget"]),
    st.sampled_from(list(Grain)),
    st.integers(0, 5),
    st.integers(1, 4_000),
)


@settings(max_examples=200, deadline=None)
@given(st.integers(1_000, 20_000), st.lists(_moves, max_size=80))
def test_the_bound_holds_and_the_bytes_add_up(room: int, moves: list[tuple[str, Grain, int, int]]) -> None:
    box = Outbox(room)
    first = {Grain.TEN: TEN, Grain.MINUTE: MINUTE, Grain.HOUR: HOUR}
    largest = 0
    for what, grain, number, size in moves:
        if what == "put":
            largest = max(largest, size + 500)
            box.put(packed(grain, first[grain] + number, size=size))
        elif what == "ack" and box.waiting_slots:
            box.acknowledge(box.waiting()[number % box.waiting_slots], 0)
        elif what == "again":
            box.again()
        elif what == "forget":
            box.forget(HOUR * 3_600 + size)
        assert box.held_bytes <= max(room, largest)
        assert box.waiting_bytes == sum(len(each.data) + 500 for each in box.waiting())
    while box.waiting_slots:
        box.acknowledge(box.waiting()[0], 0)
    assert box.waiting_bytes == 0
