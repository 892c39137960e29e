"""Delays, drops and blind spots of a window: what came since its old end, by a clock that we set."""

from __future__ import annotations

import sys

import pytest

from proxy.control.core import Controller
from proxy.control.record import iso_time
from proxy.control.summary import ProxySummary, summarise
from proxy.control.windowed import summarise_window
from proxy.link import FactsBatch
from tests.control.facts import UNIX, S, at, streamed
from tests.control.test_windows import HOUR, MINUTE, Clock, control, ended
from tests.control.test_workers import BUCKETS, beat, hello

SECOND_NS = 1_000_000_000


def forwarded(legato: Controller, quick: int, slow: int, **fields: object) -> None:
    """A beat: so many chunks were quick all in all, so many slow ones (beyond every bound)."""
    counts = [quick, *[0] * (BUCKETS - 2), slow]
    legato.feed(beat(forward=counts, forward_sum_ns=slow * 5 * SECOND_NS, **fields))


def minutes(legato: Controller, clock: Clock, count: int) -> None:
    for _ in range(count * 60):
        clock.now_ns += S
        legato.sweep()


def proxy(legato: Controller, window_ns: int) -> ProxySummary:
    return summarise_window(legato, window_ns).proxy


def test_a_slow_hour_of_yesterday_is_not_in_the_last_minutes() -> None:
    clock = Clock()
    legato = control(clock)
    legato.feed(hello())
    forwarded(legato, 100, 50)
    minutes(legato, clock, 30)
    forwarded(legato, 1_100, 50)
    clock.now_ns += S
    ever, late = summarise(legato).proxy.forward, proxy(legato, 5 * MINUTE).forward
    assert (ever.count, ever.sum_s) == (1_150, 250)
    assert (late.count, late.sum_s) == (1_000, 0)
    assert ever.p99_s != late.p99_s == late.p50_s
    assert proxy(legato, 2 * HOUR).forward == ever


@pytest.mark.parametrize("window_ns", [MINUTE, 10 * MINUTE, HOUR, 3 * HOUR])
def test_it_says_since_when_and_that_is_close(window_ns: int) -> None:
    clock = Clock(UNIX // MINUTE * MINUTE)
    legato = control(clock)
    legato.feed(hello())
    assert proxy(legato, window_ns).since == iso_time(clock.now_ns)
    for done in range(5 * 60):
        forwarded(legato, done, 0)
        minutes(legato, clock, 1)
    found = summarise_window(legato, window_ns)
    most_s = window_ns / 1e9 + 60 + 60  # outwards to a slot, and to a picture
    chunks_s = found.proxy.forward.count * 60
    assert found.window_s - 60 <= chunks_s <= most_s
    assert found.proxy.since <= found.covered_from


def test_blind_spots_and_link_errors_are_of_the_window() -> None:
    clock = Clock()
    legato = control(clock)
    legato.feed(hello())

    def unseen() -> None:
        stream = {"unmeasured": "shed"}
        legato.feed(FactsBatch([ended(clock, streamed(at(80), end_ms=90, of=stream))]))

    unseen()
    legato.nonsense()
    minutes(legato, clock, 3)
    assert sum(proxy(legato, MINUTE).unmeasured.values()) == 0
    assert proxy(legato, MINUTE).link_errors == 0
    unseen()
    legato.nonsense()
    late = proxy(legato, MINUTE)
    assert (sum(late.unmeasured.values()), late.link_errors) == (1, 1)
    assert sum(summarise(legato).proxy.unmeasured.values()) == 2


def test_a_day_of_pictures_is_small() -> None:
    clock = Clock()
    legato = control(clock)
    legato.feed(hello())
    for step in range(8_700):
        forwarded(legato, step, step)
        clock.now_ns += 10 * S
        legato.sweep()
    kept = {id(each): each for each in (*legato.shares._tens, *legato.shares._minutes)}
    assert 1_446 < len(kept) <= 366 + 1_446
    held = sum(sys.getsizeof(each) + sys.getsizeof(each.counts) for each in kept.values())
    assert held < 3_000_000


def test_a_clock_that_was_set_back_goes_on_with_pictures() -> None:
    clock = Clock()
    legato = control(clock)
    legato.feed(hello())
    minutes(legato, clock, 1)
    clock.now_ns -= HOUR
    forwarded(legato, 10, 0)
    minutes(legato, clock, 5)
    forwarded(legato, 15, 0)
    assert proxy(legato, MINUTE).forward.count == 5
