"""The sampler of the loop's lateness, on a loop whose clock a test moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from proxy.relay import lag as module
from proxy.relay.lag import INTERVAL_NS, LoopLag

MS = 1_000_000


class FakeLoop:
    """Keeps what is to be called; ``now_ns`` is the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 5_000 * MS
        self.next: Callable[[], None] | None = None
        monkeypatch.setattr(module, "monotonic_ns", lambda: self.now_ns)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        assert delay_s == INTERVAL_NS / 1e9
        self.next = callback

    def tick(self, late_ns: int) -> None:
        assert self.next is not None
        self.now_ns += INTERVAL_NS + late_ns
        self.next()


def sampled(monkeypatch: pytest.MonkeyPatch, *late_ns: int) -> LoopLag:
    loop = FakeLoop(monkeypatch)
    lag = LoopLag(cast(Any, loop))
    lag.start()
    for one in late_ns:
        loop.tick(one)
    return lag


def test_a_tick_in_time_is_no_lateness_and_neither_is_a_timers_grain(monkeypatch: pytest.MonkeyPatch) -> None:
    lag = sampled(monkeypatch, 0, MS)
    assert lag.recent == 2
    assert lag.mean_and_reset_ns() == 0
    assert list(lag.marks) == []
    assert sum(lag.histogram.counts) == 2
    assert lag.histogram.sum_ns == 0


def test_lateness_is_counted_remembered_and_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    lag = sampled(monkeypatch, 0, 101 * MS, 21 * MS, MS + MS // 2)
    assert [late for _, late in lag.long_marks] == [100 * MS, 20 * MS]
    assert list(lag.marks) == [], "half a millisecond is told by the histogram alone"
    assert lag.mean_and_reset_ns() == (100 * MS + 20 * MS + MS // 2) // 4
    assert lag.mean_and_reset_ns() == 0, "since the last call"
    assert lag.histogram.sum_ns == 120 * MS + MS // 2


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    lag = sampled(monkeypatch, *[5 * MS, 50 * MS] * 5000)
    assert (len(lag.marks), len(lag.long_marks)) == (512, 1024)
    assert sum(lag.histogram.counts) == 10_000
