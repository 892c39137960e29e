"""This host's slots: whatever comes in whatever order, tens, minutes and hours say what was booked."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.control.fleet.book import Book, Packed, Sums, sums_of
from proxy.control.fleet.layout import Grain, decode_slot
from proxy.control.settle import GroupKey
from scoring import codec
from scoring.slot import Booking, Slot

S = 1_000_000_000
#: Ten seconds before an hour begins.
START = 494_444 * 3_600 * S - 10 * S
A, B = GroupKey("b", "llama", "chat"), GroupKey("b", "qwen", "chat")


def one(met: int = 1, missed: int = 0) -> Booking:
    return Booking("completed", "good", 5_000_000, output_tokens=met + missed, met=met, missed=missed)


def pack(book: Book) -> list[Packed]:
    *_, last = book.pack()
    return last


class Redis:
    """What stands there: the latest bytes of each slot."""

    def __init__(self) -> None:
        self.slots: dict[tuple[Grain, int], Packed] = {}

    def take(self, written: list[Packed]) -> None:
        for each in written:
            self.slots[each.grain, each.number] = each

    def of(self, grain: Grain) -> dict[int, dict[GroupKey, Slot]]:
        return {number: decode_slot(each.data) for (g, number), each in self.slots.items() if g is grain}

    def total(self, grain: Grain) -> Sums:
        out = Sums()
        for groups in self.of(grain).values():
            for slot in groups.values():
                out = out.plus(sums_of(slot))
        return out


def test_a_request_is_in_its_ten_its_minute_and_its_hour() -> None:
    book = Book()
    book.advance(START)
    book.add(A, START + S, one(met=3, missed=1))
    written = pack(book)
    assert [each.grain for each in written] == [Grain.TEN, Grain.MINUTE, Grain.HOUR]
    assert [each.number for each in written] == [each.grain.number(START + S) for each in written]
    assert {each.sums for each in written} == {Sums(1, 3, 1, 4)}
    assert pack(book) == []


def test_only_what_changed_is_packed_again_and_a_slot_is_written_whole() -> None:
    book = Book()
    book.advance(START)
    book.add(A, START, one())
    book.add(B, START, one())
    pack(book)
    book.add(B, START + S, one())
    assert book.dirty == 1
    for each in pack(book):
        assert {key: slot.requests for key, slot in decode_slot(each.data).items()} == {A: 1, B: 2}


def test_the_last_ten_of_an_hour_is_folded_and_still_takes_what_is_late() -> None:
    book, redis = Book(), Redis()
    book.advance(START)
    book.add(A, START, one())
    redis.take(pack(book))
    book.advance(START + 13 * S)  # the ten, its minute and its hour have closed
    assert pack(book) == []
    book.add(A, START + 9 * S, one())
    book.add(A, START + 12 * S, one())
    redis.take(pack(book))
    for grain in Grain:
        assert [groups[A].requests for _, groups in sorted(redis.of(grain).items())] == [2, 1]


def test_what_is_later_than_a_minute_goes_into_the_oldest_ten_that_is_kept() -> None:
    book, redis = Book(), Redis()
    book.advance(START)
    book.add(A, START, one())
    redis.take(pack(book))
    book.advance(START + 300 * S)
    book.add(A, START, one())
    redis.take(pack(book))
    tens = redis.of(Grain.TEN)
    assert sorted(tens) == [Grain.TEN.number(START), Grain.TEN.number(START + 230 * S)]
    assert redis.total(Grain.MINUTE).requests == redis.total(Grain.HOUR).requests == 2


def test_a_request_from_far_ahead_is_booked_now() -> None:
    book = Book()
    book.advance(START)
    book.add(A, START + 4_000 * S, one())
    assert pack(book)[0].number == Grain.TEN.number(START)


def test_a_book_that_was_not_told_the_time_for_minutes_books_by_the_time_it_is_given() -> None:
    book = Book()
    book.advance(START)
    book.add(A, START + 180 * S, one(), START + 180 * S)  # whoever writes waited for Redis so long
    assert pack(book)[0].number == Grain.TEN.number(START + 180 * S)


def test_what_is_no_request_is_refused_and_nothing_is_booked() -> None:
    book = Book()
    book.advance(START)
    with pytest.raises(ValueError, match="outcome"):
        book.add(A, START, one()._replace(outcome="odd"))
    assert pack(book) == []


def test_what_is_booked_between_two_steps_is_in_no_slot_or_in_all() -> None:
    book, redis = Book(), Redis()
    book.advance(START)
    book.add(A, START, one())
    book.add(B, START, one())
    for written in book.pack():
        redis.take(written)
        book.add(A, START + S, one())
    assert redis.total(Grain.TEN) == redis.total(Grain.MINUTE) == redis.total(Grain.HOUR)
    redis.take(pack(book))
    assert redis.total(Grain.TEN).requests == redis.total(Grain.HOUR).requests == 5


def test_memory_is_that_of_a_few_slots_however_long_it_runs() -> None:
    book = Book()
    for second in range(0, 3 * 3_600, 5):
        now = START + second * S
        book.advance(now)
        book.add(A, now, one())
        book.add(B, now - 40 * S, one())  # always late
        pack(book)
    held = {grain: len(cells) for grain, cells in book._cells.items()}
    assert held[Grain.TEN] <= 9
    assert held[Grain.MINUTE] <= 3
    assert held[Grain.HOUR] <= 2
    assert sum(len(cell.live) for cells in book._cells.values() for cell in cells.values()) <= 6


# ---------------------------------------------------------------- against an oracle

_steps = st.lists(
    st.one_of(
        st.tuples(st.just("book"), st.integers(-150, 12), st.integers(0, 2), st.integers(0, 5)),
        st.tuples(st.just("time"), st.integers(-30, 100), st.just(0), st.just(0)),
        st.tuples(st.just("jump"), st.integers(100, 4_000), st.just(0), st.just(0)),
        st.tuples(st.just("pack"), st.just(0), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(_steps)
def test_any_order_of_bookings_and_times_comes_to_the_same_sums(
    steps: list[tuple[str, int, int, int]],
) -> None:
    """The oracle: one slot per group of all that was booked; and every ten in its minute, in its hour."""
    book, redis, now = Book(), Redis(), START
    oracle: dict[GroupKey, Slot] = {}
    placed: Counter[int] = Counter()
    book.advance(now)
    for what, seconds, group, missed in steps:
        if what == "book":
            key, at_ns = GroupKey("b", f"m{group}", "s"), now + seconds * S
            booking = one(1, missed)._replace(
                ttft_ns=1_000.0 * (missed + 1), miss_rates=[missed / 9] * 24, miss_weight=1 + 300 * missed
            )
            book.add(key, at_ns, booking)
            oracle.setdefault(key, Slot()).add(booking)
            floor = Grain.TEN.number(book._now_ns - 70 * S)
            placed[max(Grain.TEN.number(at_ns), floor)] += 1
        elif what == "pack":
            redis.take(pack(book))
        else:
            now += seconds * S
            book.advance(now)
    redis.take(pack(book))
    tens = redis.of(Grain.TEN)
    assert {n: sum(slot.requests for slot in groups.values()) for n, groups in tens.items()} == placed
    for grain in Grain:
        for key, expected in oracle.items():
            merged = Slot()
            for groups in redis.of(grain).values():
                if key in groups:
                    merged.merge(groups[key])
            assert codec.pack(merged) == codec.pack(expected)
    for grain, length in ((Grain.MINUTE, 6), (Grain.HOUR, 360)):
        for number, groups in redis.of(grain).items():
            for key, slot in groups.items():
                below = [tens[ten][key] for ten in tens if ten // length == number and key in tens[ten]]
                assert slot.requests == sum(each.requests for each in below)
