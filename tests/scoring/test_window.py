"""The windows against a list of raw requests; bounds, lateness, turnover."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring import codec
from scoring.shelf import HOUR
from scoring.slot import Booking, MissCurve, Slot
from scoring.window import MEBIBYTE, TEN_NS, Key, View, Windows
from tests.scoring.booked import (
    BOOKINGS,
    assert_quantiles,
    demo_bookings,
    naive_sums,
    slot_of,
    sums_of,
)

SECOND = 1_000_000_000
START = 500_000 * TEN_NS + 3 * SECOND  # 53 minutes and 23 s past an hour
DAY = 86_400 * SECOND


def one(duration_s: float = 1) -> Booking:
    return Booking("completed", "good", round(duration_s * SECOND), output_tokens=7)


class Oracle:
    """Every request with the start of the slot in which the rules put it."""

    def __init__(self, windows: Windows, cap: int) -> None:
        self.windows = windows
        self.cap = cap
        self.now: int | None = None
        self.booked: list[tuple[Key, int, Booking]] = []
        self.groups: list[Key] = []

    def advance(self, now_ns: int) -> None:
        self.now = now_ns if self.now is None else max(self.now, now_ns)
        self.windows.advance(now_ns)

    def add(self, key: Key, at_ns: int, booking: Booking) -> None:
        self.windows.add(key, at_ns, booking)
        if self.now is None or self.now < at_ns <= self.now + 60 * SECOND:
            self.now = at_ns
        at_ns = min(at_ns, self.now)
        closed = (self.now - 2 * SECOND) // TEN_NS
        if at_ns // TEN_NS < (closed // HOUR - 24) * HOUR:
            at_ns = closed * TEN_NS
        if key not in self.groups and len(self.groups) >= self.cap:
            key = "other"
        elif key not in self.groups:
            self.groups.append(key)
        self.booked.append((key, at_ns, booking))

    def within(self, view: View, keys: list[Key] | None) -> list[Booking]:
        return [
            booking
            for key, at_ns, booking in self.booked
            if view.start_ns <= at_ns < view.end_ns and (keys is None or key in keys)
        ]

    def check(self, view: View, keys: list[Key] | None) -> None:
        expected = self.within(view, keys)
        assert sums_of(view.slot) == naive_sums(expected) or view.slot.level >= MissCurve.BITS
        assert sums_of(view.slot) | {"samples": 0} == naive_sums(expected) | {"samples": 0}
        assert_quantiles(view.slot, expected)


AGES = st.one_of(
    st.integers(0, 30 * SECOND),
    st.integers(0, 2 * 3600 * SECOND),
    st.integers(0, 2 * DAY),
    st.integers(-2 * DAY, 0),
)
STEPS = st.one_of(st.integers(0, 15 * SECOND), st.integers(0, 1200 * SECOND), st.integers(0, DAY // 3))
EVENTS = st.lists(st.tuples(STEPS, st.sampled_from("abcde"), AGES, BOOKINGS), max_size=25)
WINDOWS = st.lists(
    st.tuples(AGES, AGES, st.sampled_from((None, ["a"], ["b", "other"], ["a", "b", "c", "other"], []))),
    min_size=1,
    max_size=4,
)


@given(EVENTS, WINDOWS, st.sampled_from((64 * MEBIBYTE, 1_620_000, 1)))
@settings(max_examples=120, deadline=None)
def test_every_view_holds_exactly_the_requests_of_its_bounds(
    events: list[tuple[int, str, int, Booking]],
    asked: list[tuple[int, int, list[Key] | None]],
    budget: int,
) -> None:
    oracle = Oracle(Windows(cap_groups=3, budget_bytes=budget), cap=3)
    now = START
    for step, key, age, booking in events:
        now += step
        if step % 3:  # a clock that is told only now and then
            oracle.advance(now)
        oracle.add(key, now - age, booking)
    for from_age, to_age, keys in asked:
        view = oracle.windows.view(keys, now - from_age, now - to_age)
        oracle.check(view, keys)
        cells = oracle.windows.series(keys, now - from_age, now - to_age, 30 * 60 * SECOND)
        for cell in cells:
            oracle.check(cell, keys)
        assert all(a.end_ns == b.start_ns for a, b in pairwise(cells))
        assert sum(cell.slot.requests for cell in cells) == view.slot.requests


@given(EVENTS)
@settings(max_examples=60, deadline=None)
def test_the_total_is_its_groups(events: list[tuple[int, str, int, Booking]]) -> None:
    windows = Windows(cap_groups=3)
    now = START
    for step, key, age, booking in events:
        now += step
        windows.advance(now)
        windows.add(key, now - age, booking)
    everything = windows.view(None, 0, now + 1)
    parts = Slot()
    for group in windows.keys:
        parts.merge(windows.view([group], 0, now + 1).slot)
    assert codec.pack(parts) == codec.pack(everything.slot)
    assert codec.pack(windows.view(windows.keys, 0, now + 1).slot) == codec.pack(parts)


def test_before_anything_there_is_nothing() -> None:
    windows = Windows()
    assert windows.view(None, 0, START)[1:] == (0, 0)
    assert windows.view(None, 0, START).slot.requests == 0
    assert windows.series(None, 0, START, TEN_NS) == []
    windows.advance(START)
    assert windows.view(["a"], START - DAY, START).slot.requests == 0


def test_bounds_are_those_of_the_slots_that_are_kept() -> None:
    windows = Windows()
    for minute in range(26 * 60):
        windows.advance(START + minute * 60 * SECOND)
        windows.add("a", START + minute * 60 * SECOND, one())
    now = START + (26 * 60 - 1) * 60 * SECOND

    def bounds(from_age_s: int, to_age_s: int) -> tuple[int, int]:
        view = windows.view(["a"], now - from_age_s * SECOND, now - to_age_s * SECOND)
        assert view.slot.requests == sum(
            view.start_ns <= START + minute * 60 * SECOND < view.end_ns for minute in range(26 * 60)
        )
        return view.start_ns, view.end_ns

    def down(at_ns: int, to_s: int) -> int:
        return at_ns // (to_s * SECOND) * (to_s * SECOND)

    assert bounds(59 * 60, 7) == (down(now - 59 * 60 * SECOND, 10), down(now - 7 * SECOND, 10) + TEN_NS)
    assert bounds(7200, 5000) == (down(now - 7200 * SECOND, 60), down(now - 5000 * SECOND, 60) + 60 * SECOND)
    assert bounds(23 * 3600, 0) == (down(now - 23 * 3600 * SECOND, 60), down(now, 10) + TEN_NS)
    start, _ = bounds(10**9 // SECOND + 40 * 3600, 0)
    assert DAY <= now - start <= DAY + 3600 * SECOND  # a day is kept, and what the clock's hour adds
    assert bounds(50 * 3600, 40 * 3600)[0] == bounds(50 * 3600, 40 * 3600)[1]
    assert bounds(0, -3600) == (down(now, 10), down(now, 10) + TEN_NS)


def test_nothing_is_missing_at_any_moment() -> None:
    windows = Windows()
    for number in range(90):  # an hour ends at the 40th
        now = START + number * TEN_NS
        windows.advance(now)
        windows.add("a", now, one())
        for keys in (None, ["a"]):
            assert windows.view(keys, 0, now + 1).slot.requests == number + 1
            assert windows.view(keys, now - 90 * SECOND, now + 1).slot.requests == min(number + 1, 10)


def test_a_ring_turns_over_and_a_silent_group_makes_room() -> None:
    windows = Windows(cap_groups=2)
    for key in ("a", "b", "c"):
        windows.add(key, START, one())
    assert list(windows.keys) == ["a", "b", "other"]
    held = windows.held_bytes
    for minute in range(27 * 60):
        now = START + minute * 60 * SECOND
        windows.advance(now)
        windows.add("a", now, one())
    assert list(windows.keys) == ["a"]
    windows.add("d", now, one())
    assert list(windows.keys) == ["a", "d"]
    assert 24 * 60 <= windows.view(["a"], 0, now + 1).slot.requests <= 25 * 60
    assert windows.held_bytes < held + 1_000_000


def test_series_steps_are_raised_where_only_longer_slots_are_kept() -> None:
    windows = Windows()
    for number in range(3 * 360):
        windows.advance(START + number * TEN_NS)
        windows.add("a", START + number * TEN_NS, one())
    now = START + (3 * 360 - 1) * TEN_NS
    recent = windows.series(["a"], now - 600 * SECOND, now, TEN_NS)
    assert {view.end_ns - view.start_ns for view in recent} == {TEN_NS}
    assert {view.slot.requests for view in recent} == {1}
    older = windows.series(["a"], now - 7200 * SECOND, now, 90 * SECOND)
    assert {view.end_ns - view.start_ns for view in older[1:-1]} == {120 * SECOND}
    assert {view.slot.requests for view in older[1:-1]} == {12}
    for step_ns in (0, -TEN_NS, TEN_NS + 1):
        with pytest.raises(ValueError, match="multiple of 10 s"):
            windows.series(None, 0, now, step_ns)


@pytest.mark.parametrize(
    ("at_age_s", "slot_age_s"),
    [
        (0, 0),
        (25, 25),  # closed, kept: opened again
        (3000, 3000),
        (4 * 3600, 4 * 3600),  # only its minute is kept
        (40 * 3600, 2),  # older than all: the oldest that is open
        (-30, -30),  # a little ahead: the clock was told late
        (-3600, 0),  # far ahead: a mistake
    ],
)
def test_where_late_and_odd_times_go(at_age_s: int, slot_age_s: int) -> None:
    windows = Windows()
    for minute in range(6 * 60):
        windows.advance(START + minute * 60 * SECOND)
    now = START + (6 * 60 - 1) * 60 * SECOND
    windows.add("a", now - at_age_s * SECOND, one())
    for later in range(3):  # open, then closed, then rolled up
        for keys in (None, ["a"]):
            begun = windows.view(keys, now - slot_age_s * SECOND, now - slot_age_s * SECOND + 1)
            assert begun.slot.requests == 1
            assert begun.end_ns - begun.start_ns <= 60 * SECOND
            assert windows.view(keys, 0, now + DAY).slot.requests == 1  # by way of minutes and hours too
        for _ in range(40):
            windows.advance(now + later * 1200 * SECOND + 20 * SECOND)


def test_a_flood_of_late_ones_stays_bounded_and_exact() -> None:
    windows = Windows()
    windows.advance(START)
    for number in range(600):
        windows.add("a", START - (number * 37 % 300) * TEN_NS, one())
    assert len(windows._rings["a"].open) <= 9
    assert windows.view(["a"], 0, START + 1).slot.requests == 600
    assert windows.view(None, 0, START + 1).slot.requests == 600


def test_what_is_due_is_done_even_by_a_slow_clock() -> None:
    windows = Windows()
    for key in range(65):
        windows.add(key, START, one())
    for turn in range(1, 5):
        windows.advance(START + turn * TEN_NS)
    rings = [windows._total, *windows._rings.values()]
    assert len(rings) == 66
    assert not any(ring.open for ring in rings)
    assert windows.view(None, 0, START + 1).slot.requests == 65


def test_a_whole_slot_can_be_folded_in() -> None:
    bookings = demo_bookings(20, seed=2)
    windows, by_one = Windows(), Windows()
    windows.fold("a", START, slot_of(bookings))
    for booking in bookings:
        by_one.add("a", START, booking)
    assert codec.pack(windows.view(None, 0, START + 1).slot) == codec.pack(
        by_one.view(["a"], 0, START + 1).slot
    )


def test_there_must_be_a_group() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Windows(cap_groups=0)


def test_what_ended_since_any_moment_is_the_view_of_it() -> None:
    """By way of marks: whatever came late, stayed away or jumped, at every moment."""
    windows, rng = Windows(cap_groups=3), random.Random(8)
    now = START
    for step in range(1_500):
        now += rng.choice((1, 1, 7, 30, 61)) * SECOND if step % 200 else 4_000 * SECOND
        windows.advance(now)
        key = rng.choice("aab" if step % 300 < 250 else "c")
        late_s = rng.choice((0, 0, 0, 0, 15, 100, 700, 5_000))
        windows.add(key, now - late_s * SECOND, one(rng.randrange(1, 9)))
        if step % 7 == 0:
            for key_asked in (None, "a", "b", "c"):
                age_s = round(10 ** rng.uniform(0, 4.9))
                start, end = windows.since(now - age_s * SECOND)
                found = windows.closed_since(key_asked, start)
                windows.open_since(key_asked, start, found)
                view = windows.view(None if key_asked is None else [key_asked], now - age_s * SECOND, now + 1)
                assert (view.start_ns, view.end_ns) == (start, end)
                assert codec.pack(found) == codec.pack(view.slot), (step, key_asked, age_s)
    assert all(len(ring.marks._far) > 20 for key, ring in windows._rings.items() if key != "c")
    assert all(len(ring.marks._late) <= 7 for ring in windows._rings.values())
