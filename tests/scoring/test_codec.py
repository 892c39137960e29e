"""The packed forms: exact both ways, canonical, small, and nothing but ``ValueError`` for nonsense."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring import codec
from scoring.sketch import LEVEL_MAX, LogHistogram
from scoring.slot import Booking, Slot
from tests.scoring.booked import BOOKINGS, SLOTS, demo_bookings, slot_of, sums_of

VALUES = st.one_of(st.integers(0, 10**13), st.floats(0, 1e300), st.just(5e-324))
HISTOGRAMS = st.builds(
    lambda pairs, level: histogram_of(pairs, level),
    st.lists(st.tuples(VALUES, st.integers(1, 2**40)), max_size=20),
    st.integers(0, LEVEL_MAX),
)
RUNS = st.dictionaries(st.integers(0, 2**16 - 1), SLOTS, max_size=4)


def histogram_of(pairs: list[tuple[float, int]], level: int = 0) -> LogHistogram:
    histogram = LogHistogram()
    for value, times in pairs:
        histogram.add(value, times)
    histogram.lower(level)
    return histogram


def is_same(one: Slot, other: Slot) -> bool:
    a, b = one.curve, other.curve
    if a is None or b is None:
        curves = a is b
    else:
        curves = (a.bits, a.samples) == (b.bits, b.samples) and np.array_equal(a.counts, b.counts)
    return curves and one.level == other.level and sums_of(one) == sums_of(other) and one.hists == other.hists


@given(HISTOGRAMS)
def test_a_histogram_comes_back_exactly(histogram: LogHistogram) -> None:
    packed = codec.pack_histogram(histogram)
    again = codec.unpack_histogram(packed)
    assert again == histogram
    assert again.level == histogram.level
    assert codec.pack_histogram(again) == packed
    assert [type(again.sum), type(again.minimum)] == [type(histogram.sum), type(histogram.minimum)]


@given(SLOTS)
def test_a_slot_comes_back_exactly(slot: Slot) -> None:
    packed = codec.pack(slot)
    again = codec.unpack(packed)
    assert is_same(again, slot)
    assert codec.pack(again) == packed


@given(RUNS)
def test_a_run_comes_back_exactly(slots: dict[int, Slot]) -> None:
    packed = codec.pack_run(slots)
    again = codec.unpack_run(packed)
    assert list(again) == sorted(slots)
    assert all(is_same(again[place], slots[place]) for place in slots)
    assert codec.pack_run(again) == packed


@given(RUNS, st.integers(0, 2**16), st.integers(0, 2**16))
def test_reading_part_of_a_run_into_a_slot_is_merging_that_part(
    slots: dict[int, Slot], low: int, high: int
) -> None:
    read, merged = Slot(), Slot()
    codec.read_run(codec.pack_run(slots), lambda place: read if low <= place < high else None)
    for place, slot in slots.items():
        if low <= place < high:
            merged.merge(slot)
    assert codec.pack(read) == codec.pack(merged)


@given(RUNS, st.integers(0, LEVEL_MAX))
def test_lowering_a_run_lowers_each_slot(slots: dict[int, Slot], level: int) -> None:
    packed = codec.lowered(codec.pack_run(slots), level)
    for slot in slots.values():
        slot.lower(level)
    assert packed == codec.pack_run(slots)


def test_large_sums_and_counts_are_exact_up_to_the_stated_bounds() -> None:
    histogram = histogram_of([(3, 2**48 - 1), (2**53, 2**42)])
    assert codec.unpack_histogram(codec.pack_histogram(histogram)) == histogram
    assert histogram.sum == 3 * (2**48 - 1) + 2**95
    for _ in range(2):
        histogram.add(3, 2**47)
    with pytest.raises(ValueError, match="6 bytes"):
        codec.pack_histogram(histogram)
    with pytest.raises(ValueError, match=r"2\*\*96"):
        codec.pack_histogram(histogram_of([(2**60, 2**40)]))
    with pytest.raises(ValueError, match="up to 360"):
        codec.pack_run(dict.fromkeys(range(361), Slot()))


def test_equal_content_has_equal_bytes_whatever_way_it_came() -> None:
    bookings = demo_bookings(30, seed=1)
    backwards, halves = slot_of(bookings[::-1]), slot_of(bookings[:11])
    halves.merge(slot_of(bookings[11:]))
    assert codec.pack(slot_of(bookings)) == codec.pack(backwards) == codec.pack(halves)


def test_how_small_it_is() -> None:
    """The figures that the README states, with a tenth to spare: demo's distributions, 200 requests."""
    slots = {number: slot_of(demo_bookings(200, seed=number)) for number in range(12)}
    for level, most in enumerate((1060, 700, 500, 340, 270, 220, 190)):
        for slot in slots.values():
            slot.lower(level)
        assert len(codec.pack_run(slots)) / len(slots) < most


def test_another_layout_must_get_another_version() -> None:
    """The first bytes of a slot name the numbers that it has; who changes them, changes VERSION."""
    assert codec.pack(Slot())[:6] == struct.pack("<BcHH", 1, b"R", 1, 95)


# ---------------------------------------------------------------- nonsense

READERS = (codec.unpack_histogram, codec.unpack, codec.unpack_run, lambda data: codec.lowered(data, 2))


def assert_refused_or_read(data: bytes) -> None:
    for read in READERS:
        with suppress(ValueError):
            read(data)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    for read in READERS:
        with pytest.raises(ValueError, match=r"."):
            read(data)


def deflated(raw: bytes) -> bytes:
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    return deflate.compress(raw) + deflate.flush()


@given(
    st.sampled_from((b"H", b"R")),
    st.lists(
        st.lists(st.one_of(st.integers(0, 40), st.integers(0, 2**96 - 1)), min_size=9, max_size=95),
        max_size=2,
    ),
    st.binary(max_size=200),
)
@settings(max_examples=300)
def test_random_numbers_in_a_right_frame(kind: bytes, rows: list[list[int]], counts: bytes) -> None:
    each = {b"H": 9, b"R": 95}[kind]
    rows = [(row + [0] * each)[:each] for row in rows]
    assert_refused_or_read(codec._packed(kind, range(len(rows)), rows, counts))


@given(st.lists(BOOKINGS, min_size=1, max_size=3), st.data())
def test_a_slot_with_a_byte_changed_cut_off_or_added(bookings: list[Booking], data: st.DataObject) -> None:
    packed = bytearray(codec.pack(slot_of(bookings)))
    at = data.draw(st.integers(0, len(packed) - 1))
    for broken in (packed[:at], packed + b"x"):
        with pytest.raises(ValueError, match=r"."):
            codec.unpack(bytes(broken))
    packed[at] ^= data.draw(st.integers(1, 255))
    assert_refused_or_read(bytes(packed))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "version None"),
        (b"\x09R" + bytes(8), "version 9"),
        (struct.pack("<BcHHI", 1, b"X", 0, 0, 0), "kind b'X'"),
        (struct.pack("<BcHHI", 1, b"R", 361, 95, 0) + bytes(800), "head"),
        (struct.pack("<BcHHI", 1, b"R", 1, 94, 0) + bytes(800), "head"),
        (struct.pack("<BcHHI", 1, b"R", 2, 95, 0) + struct.pack("<HH", 5, 5), "ascend"),
        (codec.pack_run({}), "0 slots: one"),
        (codec.pack_histogram(LogHistogram()), "kind b'H'"),
    ],
)
def test_the_reason_is_said(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        codec.unpack(data)


def test_a_bomb_does_not_go_off() -> None:
    """Bytes that announce little and inflate to much are refused before they take the memory."""
    numbers = codec._packed(b"R", [0], [[0] * 95], b"")
    bomb = numbers[: -len(deflated(b""))] + deflated(bytes(200_000_000))
    greedy = [0] * 95
    greedy[23 + 3 : 95 : 9], greedy[23 + 4 : 95 : 9] = [6656] * 8, [6] * 8
    announced = codec._packed(b"R", range(360), [greedy] * 360, b"")
    tracemalloc.start()
    for data in (bomb, announced):
        with pytest.raises(ValueError, match="longer or shorter"):
            codec.unpack_run(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000
