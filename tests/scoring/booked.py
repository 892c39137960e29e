"""Bookings for tests: the demo's distributions, strategies of odd ones, and what a list of them comes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from scoring.deadlines import Deadlines
from scoring.quantiles import quantile
from scoring.slot import BILLION, GRID_NS, HISTOGRAMS, OUTCOMES, RESULTS, Booking, Slot
from scoring.trace import Choice, gaps, miss_curve, score

DEADLINES = Deadlines(1_200_000_000, 40_000_000)


def demo_bookings(count: int, seed: int, sampled: int = 10) -> list[Booking]:
    """Requests as the demo's: TTFT 50 to 800 ms, gaps of some 30 ms (10 to 100) with a tail of 2% to 1 s,
    50 to 400 tokens; each ``sampled``-th has its miss rates."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        tokens = int(np.clip(rng.lognormal(np.log(200), 0.4), 50, 400))
        ttft_ns = np.clip(rng.lognormal(np.log(0.2e9), 0.6), 50e6, 800e6)
        gaps_ns = np.clip(rng.lognormal(np.log(30e6), 0.35, tokens - 1), 10e6, 100e6)
        tail = rng.random(tokens - 1) < 0.02
        gaps_ns[tail] = np.exp(rng.uniform(np.log(100e6), np.log(1e9), int(tail.sum())))
        at_ns = np.cumsum(np.concatenate(([ttft_ns], gaps_ns))).astype(np.int64)
        choice = Choice(at_ns, np.ones(tokens, dtype=np.int64))
        made.append(
            booking_of(
                choice,
                sampled=sampled if number % sampled == 0 else 0,
                prompt_tokens=int(rng.integers(32, 4000)),
            )
        )
    return made


def booking_of(choice: Choice, *, sampled: int, prompt_tokens: int) -> Booking:
    """A completed stream of one choice, scored; with a miss-rate curve for ``sampled``, if it is not 0."""
    end_ns = int(choice.at_ns[-1])
    scored = score([choice], DEADLINES, end_ns=end_ns, censored=False)
    assert scored.fluidity is not None
    assert scored.tbt is not None
    rates = (
        miss_curve([choice], DEADLINES.ttft_ns, GRID_NS, end_ns=end_ns, censored=False) if sampled else None
    )
    return Booking(
        outcome="completed",
        result="good" if scored.fluidity >= 0.9 else "bad",
        duration_ns=end_ns,
        output_tokens=scored.tokens,
        prompt_tokens=prompt_tokens,
        tokens=scored.tokens,
        met=scored.met,
        missed=scored.missed,
        under_target=scored.fluidity < 0.9,
        ttft_ns=scored.ttft_ns,
        tpot_ns=scored.tpot_ns,
        normalized_ns=scored.normalized_ns,
        longest_gap_ns=scored.tbt.max_ns,
        least_tbt_ns=scored.least_tbt_ns,
        gaps_ns=gaps([choice])[0],
        miss_rates=rates,
        miss_weight=sampled,
    )


NANOSECONDS = st.one_of(st.integers(0, 2_000), st.integers(10**6, 10**11))
MAYBE = st.one_of(st.none(), NANOSECONDS)
BOOKINGS: st.SearchStrategy[Booking] = st.builds(
    Booking,
    outcome=st.sampled_from(OUTCOMES),
    result=st.sampled_from(RESULTS),
    duration_ns=NANOSECONDS,
    output_tokens=st.integers(0, 10_000),
    prompt_tokens=st.integers(0, 10**6),
    tokens=st.integers(0, 10_000),
    met=st.integers(0, 500),
    missed=st.integers(0, 50),
    suspect=st.integers(0, 5),
    client_blocked=st.integers(0, 5),
    under_target=st.booleans(),
    ttft_ns=MAYBE,
    tpot_ns=st.one_of(st.none(), st.floats(0, 1e11)),
    normalized_ns=st.one_of(st.none(), st.floats(0, 1e11)),
    longest_gap_ns=MAYBE,
    least_tbt_ns=MAYBE,
    gaps_ns=st.one_of(
        st.none(), st.lists(NANOSECONDS, max_size=5).map(lambda ns: np.array(ns, dtype=np.int64))
    ),
    zero_gaps=st.integers(0, 3),
    miss_rates=st.one_of(
        st.none(), st.lists(st.one_of(st.floats(0, 1), st.just(np.nan)), min_size=24, max_size=24)
    ),
    miss_weight=st.one_of(st.just(1), st.integers(1, 100_000)),
)
SLOTS = st.builds(
    lambda bookings, level: slot_of(bookings, level), st.lists(BOOKINGS, max_size=6), st.integers(0, 6)
)


def slot_of(bookings: Sequence[Booking], level: int = 0) -> Slot:
    """A slot with these requests, lowered."""
    slot = Slot()
    for booking in bookings:
        slot.add(booking)
    slot.lower(level)
    return slot


def naive_sums(bookings: Sequence[Booking]) -> dict[str, Any]:
    """All exact sums, from the raw requests."""
    scored = [each for each in bookings if each.met + each.missed]
    return {
        "outcomes": {name: sum(each.outcome == name for each in bookings) for name in OUTCOMES},
        "results": {name: sum(each.result == name for each in bookings) for name in RESULTS},
        "deadlines": {
            name: sum(getattr(each, name) for each in bookings)
            for name in ("met", "missed", "suspect", "client_blocked")
        },
        "totals": {
            "output_tokens": sum(each.output_tokens for each in bookings),
            "prompt_tokens": sum(each.prompt_tokens for each in bookings),
            "tokens": sum(each.tokens for each in bookings),
            "scored": len(scored),
            "under_target": sum(each.under_target for each in scored),
        },
        "hists": {name: (len(values), sum(values)) for name, values in naive_values(bookings).items()},
        "samples": sum(each.miss_rates is not None for each in bookings),
    }


def sums_of(slot: Slot) -> dict[str, Any]:
    """The same of a slot."""
    return {
        "outcomes": slot.outcomes,
        "results": slot.results,
        "deadlines": slot.deadlines,
        "totals": slot.totals,
        "hists": {name: (hist.count, hist.sum) for name, hist in slot.hists.items()},
        "samples": 0 if slot.curve is None else slot.curve.samples,
    }


def naive_values(bookings: Sequence[Booking]) -> dict[str, list[int]]:
    """What each histogram was given, one by one."""
    values: dict[str, list[int]] = {name: [] for name in HISTOGRAMS}
    for each in bookings:
        values["duration"].append(each.duration_ns)
        for name in ("ttft", "tpot", "normalized", "longest_gap"):
            value = getattr(each, f"{name}_ns")
            if value is not None:
                values[name].append(round(value))
        values["tbt"] += ([] if each.gaps_ns is None else each.gaps_ns.tolist()) + [0] * each.zero_gaps
        due = each.met + each.missed
        if due:
            values["miss_rate"].append(-(-each.missed * BILLION // due))
            if each.least_tbt_ns is not None:
                values["least_tbt"].append(round(each.least_tbt_ns))
    return values


def assert_quantiles(slot: Slot, bookings: Sequence[Booking]) -> None:
    """Every quantile is within the error that the slot states."""
    for name, values in naive_values(bookings).items():
        values.sort()
        for q in (0.0, 0.01, 0.5, 0.9, 0.99, 1.0):
            found = slot.hists[name].quantile(q)
            if not values:
                assert found is None
                continue
            true = quantile(values, q)
            assert found is not None
            assert abs(found - true) <= slot.relative_error * true * (1 + 1e-12), (name, q, found, true)
