"""Settled requests by the time of their end: the same numbers as the ledger, cut by a clock that we set."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import pytest

from proxy.control.core import Controller
from proxy.control.ledger import DURATION, TBT, TTFT, GroupBook, bounds_of
from proxy.control.settle import GroupKey, settle
from proxy.control.windows import CURVES_A_SLOT, DAY_NS, _Sample, booking_of, by
from proxy.link import Facts, FactsBatch
from scoring.slot import GRID_NS, MissCurve, Slot
from tests.control.facts import MS, UNIX, S, at, facts, streamed, table

MINUTE = 60 * S
HOUR = 60 * MINUTE
LLAMA = GroupKey("default", "llama", "default")


@dataclass
class Clock:
    """A wall clock that a test sets."""

    now_ns: int = UNIX

    def __call__(self) -> int:
        return self.now_ns


def control(clock: Clock) -> Controller:
    return Controller(table(), instance="here", version="1", unix_ns=clock, monotonic_ns=clock)


def ended(clock: Clock, of: Facts | None = None, **fields: object) -> Facts:
    """A request that ends now."""
    made = of if of is not None else facts(100, **fields)
    made.received_unix_ns = clock.now_ns - (made.end_ns - made.received_ns)
    return made


def stream_now(clock: Clock, *at_ms: int) -> Facts:
    return ended(clock, streamed(*map(at, at_ms), end_ms=at_ms[-1] + 1))


def requests(control: Controller, window_ns: int) -> int:
    return control.windows.read(window_ns, control.now_unix_ns()).total.requests


def test_each_request_is_in_the_windows_that_hold_its_end() -> None:
    clock = Clock()
    legato = control(clock)
    for _ in range(120):  # one a second
        legato.feed(FactsBatch([ended(clock)]))
        clock.now_ns += S
        legato.sweep()
    for window_ns, least in ((10 * S, 10), (MINUTE, 60), (HOUR, 120), (DAY_NS, 120)):
        found = requests(legato, window_ns)
        assert least <= found <= min(least + 20, 120), window_ns


def test_what_left_the_window_is_gone() -> None:
    clock = Clock()
    legato = control(clock)
    legato.feed(FactsBatch([ended(clock)]))
    assert requests(legato, MINUTE) == 1
    clock.now_ns += 2 * MINUTE
    legato.feed(FactsBatch([ended(clock), ended(clock)]))
    assert requests(legato, MINUTE) == 2
    assert requests(legato, HOUR) == 3


@pytest.mark.parametrize("seconds", [0, 1, 9, 10, 11, 13, 29, 31, 61])
def test_what_closed_and_what_is_open_overlap_nowhere(seconds: int) -> None:
    clock = Clock(UNIX // (10 * S) * 10 * S)
    legato = control(clock)
    for _ in range(45):
        legato.feed(FactsBatch([ended(clock)]))
        clock.now_ns += S
    assert requests(legato, HOUR) == 45  # read once ...
    for _ in range(seconds):
        legato.feed(FactsBatch([ended(clock)]))
        clock.now_ns += S
    assert requests(legato, HOUR) == 45 + seconds  # ... and read anew
    assert requests(legato, 10 * S) <= 10 + 12


@pytest.mark.parametrize("second", range(10))
def test_the_shortest_window_counts_nothing_twice(second: int) -> None:
    clock = Clock(UNIX // (10 * S) * 10 * S - 5 * S)
    legato = control(clock)
    legato.feed(FactsBatch([ended(clock)]))
    clock.now_ns += (5 + second) * S
    assert requests(legato, 10 * S) == 1


def test_a_model_that_is_only_ever_rejected_gets_no_label() -> None:
    clock = Clock()
    legato = control(clock)
    legato.feed(FactsBatch([ended(clock, model="nobody", status=404)]))
    legato.feed(FactsBatch([ended(clock, model="nobody", status=404), ended(clock, model="llama")]))
    read = legato.windows.read(MINUTE, clock.now_ns)
    assert {key.model: slot.requests for key, slot in read.groups.items()} == {"other": 2, "llama": 1}
    assert set(legato.ledger.groups) == set(read.groups)


def test_groups_sum_to_the_total_and_carry_the_labels_of_the_ledger() -> None:
    clock = Clock()
    legato = control(clock)
    names = [f"m{n}" for n in range(200)]
    batch = [ended(clock, model=name, status=status) for name in names for status in (404, 200)]
    batch += [ended(clock, model="late", status=404)]
    legato.feed(FactsBatch(batch))
    read = legato.windows.read(MINUTE, clock.now_ns)
    assert {key: slot.requests for key, slot in read.groups.items()} == {
        key: sum(book.outcomes.values()) for key, book in legato.ledger.groups.items()
    }
    assert len(read.groups) <= 64
    assert sum(slot.requests for slot in read.groups.values()) == read.total.requests == len(batch)


def test_a_window_over_everything_is_the_ledger() -> None:
    clock = Clock()
    legato = control(clock)
    batch = [
        stream_now(clock, 80, 120, 300),
        stream_now(clock, 150, 151, 152, 600),
        ended(clock, streamed(at(40), at(90, 3), end_ms=95)),
        ended(clock, streamed(at(60), end_ms=2_000, end="client_left")),
        ended(clock, status=503),
        ended(clock),
    ]
    legato.feed(FactsBatch(batch))
    slot = legato.windows.read(HOUR, clock.now_ns).total
    book: GroupBook = legato.ledger.groups[LLAMA]
    assert (slot.outcomes, slot.results, slot.deadlines) == (book.outcomes, book.results, book.deadlines)
    assert (slot.totals["scored"], slot.totals["under_target"]) == (book.scored, book.under_target)
    assert slot.totals["output_tokens"] == sum(book.output_tokens.values())
    assert slot.totals["prompt_tokens"] == sum(book.prompt_tokens.values())
    for name, sketch in (("ttft", TTFT), ("tbt", TBT), ("duration", DURATION)):
        ours, theirs = slot.hists[name], book.sketches[sketch]
        assert ours.count == theirs.count
        for q in (0.5, 0.99, 1.0):
            assert (ours.quantile(q) or 0) / 1e9 == pytest.approx(theirs.quantile(q), rel=1 / 64)
    assert bounds_of(legato.slos)


def test_what_a_settled_request_is_booked_as() -> None:
    booked = booking_of(settle(streamed(at(80), at(120), at(300), end_ms=310), "here"))
    assert booked.gaps_ns is not None
    assert booked.gaps_ns.tolist() == [40 * MS, 180 * MS]
    assert (booked.outcome, booked.tokens, booked.missed) == ("completed", 3, 3)
    assert (booked.ttft_ns, booked.longest_gap_ns) == (80 * MS, 180 * MS)
    plain = booking_of(settle(facts(100), "here"))
    assert (plain.duration_ns, plain.ttft_ns, plain.gaps_ns, plain.met) == (100 * MS, None, None, 0)


def test_curves_are_of_a_sample_that_follows_the_rate() -> None:
    clock = Clock(UNIX // (10 * S) * 10 * S)
    legato = control(clock)

    def ten(streams: int) -> Slot:
        legato.feed(FactsBatch([stream_now(clock, 80, 120) for _ in range(streams)]))
        slot = legato.windows.windows.view(None, clock.now_ns, clock.now_ns + 1).slot
        clock.now_ns += 10 * S
        return slot

    samples = [slot.curve.samples for slot in map(ten, (5, 200, 200, 3)) if slot.curve is not None]
    assert samples[0] == 5
    assert 52 <= samples[1] <= 53  # 20, then ten that stand for 2 each, for 4, for 8, the rest for 16
    assert CURVES_A_SLOT <= samples[2] <= CURVES_A_SLOT + 4  # it begins with 1, 2, 4, 8
    assert 1 <= samples[3] <= 2


def test_a_sampled_curve_is_that_of_all_whatever_the_rate() -> None:
    """Busy slots without a miss, quiet ones in which everybody waited: 3% of the requests, not 20%."""
    clock = Clock(UNIX // (10 * S) * 10 * S)
    legato = control(clock)
    exact = MissCurve()
    for ten in range(40):
        busy = ten % 2
        gap_ms, streams = (40, 160) if busy else (2_000, 5)  # the first token is just in time
        legato.feed(FactsBatch([stream_now(clock, 100, 100 + gap_ms) for _ in range(streams)]))
        for _ in range(streams):
            exact.add(np.where(np.array(GRID_NS) < gap_ms * MS, 0.5, 0.0))
        clock.now_ns += 10 * S
        legato.sweep()
    curve = legato.windows.read(HOUR, clock.now_ns).total.curve
    assert curve is not None
    assert curve.samples < 0.35 * 20 * 165
    shares = [each.counts[:, 1:].sum(axis=1) / each.counts.sum(axis=1) for each in (curve, exact)]
    assert np.abs(np.subtract(*shares)).max() < 0.005
    shown, true = curve.quantile(0.96), exact.quantile(0.96)
    assert [rate == 0 for rate in shown] == [rate == 0 for rate in true]


@pytest.mark.parametrize("seed", range(4))
def test_weights_add_up_to_the_requests(seed: int) -> None:
    rng, sample, over, every = random.Random(seed), _Sample(0), 0, 0
    for ten in range(1, 400):
        requests = round(10 ** rng.uniform(0, 4)) if rng.random() < 0.3 else 3
        weights = [weight for _ in range(requests) if (weight := sample.take(ten))]
        assert weights
        over += sum(weights) - requests
        every += requests
        assert abs(sum(weights) - requests) <= 2 * max(weights)  # the last stride may be the first longer one
        assert len(weights) <= CURVES_A_SLOT + 10 * math.log2(requests + 1)
    assert abs(over) < 0.02 * every


def test_of_groups_that_differ_in_rate_each_weighs_what_it_is() -> None:
    both, bad = MissCurve(), 0
    samples = {requests: _Sample(0) for requests in (2_000, 100)}
    for ten in range(1, 31):
        for requests, sample in samples.items():
            for _ in range(requests):
                weight = sample.take(ten)
                if weight:
                    both.add(np.full(len(GRID_NS), 0.5 if requests == 100 else 0.0), weight)
                bad += requests == 100
    assert both.counts[0].sum() == pytest.approx(30 * 2_100, rel=0.03)
    assert both.counts[0][1:].sum() == pytest.approx(bad, rel=0.05)
    assert both.quantile(0.9)[0] == 0
    assert both.quantile(0.97)[0] == pytest.approx(0.5, rel=both.relative_error)


def test_the_miss_curve_is_that_of_the_streams() -> None:
    clock = Clock()
    legato = control(clock)
    legato.feed(FactsBatch([stream_now(clock, 80, 180, 280), ended(clock)]))
    curve = legato.windows.read(MINUTE, clock.now_ns).total.curve
    assert curve is not None
    assert curve.samples == 1  # what was not streamed has none
    rates = curve.quantile(0.5)
    assert rates[0] is not None
    assert rates[0] > 0.8  # 5 ms a token
    assert rates[-1] == 0  # 1 s a token


def test_what_was_read_is_kept_for_the_next_that_asks_and_not_for_long() -> None:
    clock = Clock()
    legato = control(clock)
    legato.feed(FactsBatch([ended(clock)]))
    book = legato.windows
    clock.now_ns += 15 * S
    legato.sweep()
    for minutes in range(1, 9):
        assert len(list(book.prepare(minutes * MINUTE, clock.now_ns))) == 2  # all together, and the one group
    assert list(book.prepare(8 * MINUTE, clock.now_ns)) == []
    assert len(book._read) == 3
    legato.feed(FactsBatch([ended(clock)]))  # is beside what closed, where it was
    assert list(book.prepare(8 * MINUTE, clock.now_ns)) == []
    assert requests(legato, 8 * MINUTE) == 2
    clock.now_ns += 3 * S
    legato.sweep()
    assert not book._read


def test_what_closes_between_the_steps_of_an_answer_is_counted_once() -> None:
    clock = Clock(UNIX // (10 * S) * 10 * S)
    legato = control(clock)
    for name in ("llama", "mistral", "qwen"):
        legato.feed(FactsBatch([ended(clock, model=name)]))
    clock.now_ns += 11 * S  # still open
    steps = legato.windows.prepare(HOUR, clock.now_ns)
    next(steps)
    next(steps)
    clock.now_ns += 2 * S
    legato.sweep()  # closed, after one group was read
    legato.feed(FactsBatch([ended(clock, model="qwen")]))
    list(steps)
    read = legato.windows.read(HOUR, clock.now_ns)
    assert {key.model: slot.requests for key, slot in read.groups.items()} == {
        "llama": 1, "mistral": 1, "qwen": 2,
    }  # fmt: skip
    assert read.total.requests == 4


def test_a_clock_that_was_set_back_loses_nothing() -> None:
    clock = Clock()
    legato = control(clock)
    legato.feed(FactsBatch([ended(clock)]))
    assert requests(legato, HOUR) == 1
    clock.now_ns -= 5 * MINUTE
    legato.feed(FactsBatch([ended(clock)]))
    assert requests(legato, HOUR) >= 1
    clock.now_ns += 6 * MINUTE
    assert requests(legato, HOUR) == 2


def test_keys_by_what_they_share() -> None:
    keys = [GroupKey("b", "x", "s"), GroupKey("a", "x", "s"), GroupKey("a", "y", "s")]
    assert by(keys, "backend") == {"a": [keys[1], keys[2]], "b": [keys[0]]}
    assert list(by(keys, "model")) == ["x", "y"]
