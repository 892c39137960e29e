"""Slots and miss-rate curves: their sums, their laws, their stated errors."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring import codec
from scoring.quantiles import quantile
from scoring.slot import GRID_NS, Booking, MissCurve, Slot
from tests.scoring.booked import (
    BOOKINGS,
    SLOTS,
    assert_quantiles,
    naive_sums,
    slot_of,
    sums_of,
)

SECOND = 1_000_000_000


def one(duration_s: float = 1) -> Booking:
    return Booking("completed", "good", round(duration_s * SECOND), output_tokens=7)


@given(st.lists(SLOTS, min_size=1, max_size=5), st.data())
def test_merging_is_associative_and_commutative_to_the_last_byte(
    slots: list[Slot], data: st.DataObject
) -> None:
    def grouped(parts: list[Slot]) -> Slot:
        whole = Slot()
        if len(parts) == 1:
            whole.merge(parts[0])
            return whole
        cut = data.draw(st.integers(1, len(parts) - 1))
        whole = grouped(parts[:cut])
        whole.merge(grouped(parts[cut:]))
        return whole

    before = [codec.pack(slot) for slot in slots]
    straight = grouped(slots)
    shuffled = grouped(data.draw(st.permutations(slots)))
    assert codec.pack(straight) == codec.pack(shuffled)
    assert [codec.pack(slot) for slot in slots] == before


@given(st.lists(BOOKINGS, max_size=12), st.integers(0, 12), st.integers(0, 6))
def test_merging_slots_is_adding_their_requests(bookings: list[Booking], cut: int, level: int) -> None:
    merged = slot_of(bookings[:cut])
    merged.merge(slot_of(bookings[cut:]))
    assert codec.pack(merged) == codec.pack(slot_of(bookings))
    assert sums_of(merged) == naive_sums(bookings)
    assert_quantiles(merged, bookings)
    merged.lower(level)
    assert merged.relative_error == 2.0 ** (level - 7)
    assert_quantiles(merged, bookings)


@given(st.lists(BOOKINGS, max_size=30))
def test_a_slots_fluidity_and_rate(bookings: list[Booking]) -> None:
    slot = slot_of(bookings)
    scored = [each for each in bookings if each.met + each.missed]
    ascending = sorted(each.met / (each.met + each.missed) for each in scored)
    for q in (0.01, 0.5, 1.0):
        found = slot.fluidity(q)
        assert (found is None) == (not scored)
        if found is not None:
            missed = 1 - quantile(ascending, q)
            assert abs((1 - found) - missed) <= slot.relative_error * missed + 1e-8
    rate, reason = slot.fluid_rate()
    least = sorted(float("inf") if each.least_tbt_ns is None else each.least_tbt_ns for each in scored)
    true = quantile(least, 0.99) if least else float("inf")
    if true == float("inf"):
        assert rate is None
        assert reason is not None
    elif true:
        assert rate is not None
        assert abs(1e9 / rate - true) <= slot.relative_error * true * (1 + 1e-9)


def test_odd_values_are_booked_as_what_they_can_be() -> None:
    slot = Slot()
    slot.add(
        Booking("completed", "good", -5, output_tokens=2**80, ttft_ns=float("nan"), tpot_ns=float("inf"))
    )
    slot.add(Booking("completed", "good", 5, gaps_ns=np.array([-3, 4]), met=10**12, missed=1))
    assert slot.hists["duration"].quantile(0) == slot.hists["ttft"].quantile(1) == 0
    assert slot.totals["output_tokens"] == slot.hists["tpot"].maximum == 2**53
    assert (slot.hists["tbt"].zeros, slot.hists["tbt"].sum) == (1, 4)
    fluidity = slot.fluidity(0)
    assert fluidity is not None
    assert fluidity < 1  # one in 10**12 is not none
    codec.unpack(codec.pack(slot))


@pytest.mark.parametrize(
    "booking",
    [
        Booking("finished", "good", 5),
        Booking("completed", "fair", 5),
        Booking("completed", "good", 5, miss_rates=[0.5] * 23),
    ],
)
def test_what_is_no_booking_is_refused_and_changes_nothing(booking: Booking) -> None:
    slot = slot_of([one()])
    with pytest.raises(ValueError, match=r"known are|one for each"):
        slot.add(booking)
    assert codec.pack(slot) == codec.pack(slot_of([one()]))


RATES = st.lists(st.one_of(st.just(0.0), st.just(1.0), st.floats(2**-10, 1)), min_size=24, max_size=24)


@given(st.lists(RATES, min_size=1, max_size=20), st.integers(0, 3))
def test_the_miss_curve_is_within_its_stated_error(requests: list[list[float]], bits: int) -> None:
    curve = MissCurve()
    for rates in requests:
        curve.add(np.array(rates))
    curve.lower(bits)
    assert curve.samples == len(requests)
    for q in (0.5, 0.99):
        for found, column in zip(curve.quantile(q), zip(*requests, strict=True), strict=True):
            true = quantile(sorted(column), q)
            assert found is not None
            assert abs(found - true) <= curve.relative_error * true
            assert (found == 0) == (true == 0)


def test_a_request_that_stands_for_several_counts_as_those() -> None:
    weighted, plain = MissCurve(), MissCurve()
    for rate, weight in ((0.0, 970), (0.25, 29), (0.5, 1)):
        weighted.add(np.full(24, rate), weight)
        for _ in range(weight):
            plain.add(np.full(24, rate))
    assert (weighted.samples, plain.samples) == (3, 1_000)
    assert (weighted.counts == plain.counts).all()
    assert weighted.quantile(0.97) == [0.0] * 24
    slot = slot_of([Booking("completed", "good", 5, miss_rates=[0.5] * 24, miss_weight=7)])
    assert slot.curve is not None
    assert (slot.curve.samples, int(slot.curve.counts[0].sum())) == (1, 7)


@given(RATES, RATES, st.integers(0, 3), st.integers(0, 3))
def test_merged_curves_have_the_coarser_resolution(
    a: list[float], b: list[float], bits_a: int, bits_b: int
) -> None:
    curves = [MissCurve(), MissCurve(), MissCurve()]
    for curve, requests in zip(curves, ([a], [b], [a, b]), strict=True):
        for rates in requests:
            curve.add(np.array(rates))
    one, other, both = curves
    one.lower(bits_a)
    other.lower(bits_b)
    both.lower(min(bits_a, bits_b))
    one.merge(other)
    assert (one.bits, one.samples) == (both.bits, 2)
    assert np.array_equal(one.counts, both.counts)
    assert other.bits == bits_b


def test_a_point_without_deadlines_is_unknown_and_the_grid_ascends() -> None:
    curve = MissCurve()
    curve.add(np.array([np.nan] * 4 + [0.0] * 20))
    assert curve.quantile(0.5) == [None] * 4 + [0.0] * 20
    assert (GRID_NS[0], GRID_NS[-1], len(GRID_NS)) == (5_000_000, 1_000_000_000, 24)
    assert all(1.25 < b / a < 1.27 for a, b in pairwise(GRID_NS))
