"""The loop's lateness as told with a request: which spans, how many."""

from __future__ import annotations

import asyncio

import pytest

from proxy.relay import lag as module
from proxy.relay.lag import GRAIN_NS, INTERVAL_NS, Lateness, LoopLag, longest

MS = 1_000_000


def lag_of(*samples: tuple[int, int]) -> LoopLag:
    loop = asyncio.new_event_loop()
    try:
        lag = LoopLag(loop)
    finally:
        loop.close()
    for at_ms, late_ms in samples:
        lag.observe(at_ms * MS, late_ms * MS)
    return lag


def told(lag: LoopLag, from_ms: int, to_ms: int) -> list[tuple[float, float]]:
    return [(low / MS, high / MS) for low, high in lag.between(from_ms * MS, to_ms * MS).spans]


def test_only_notable_lateness_that_overlaps_is_told() -> None:
    lag = lag_of((100, 0), (200, 50), (300, 0), (400, 80), (900, 5))
    # Each reaches back to the sample before, at most by what was seen.
    assert told(lag, 0, 1000) == [(309, 400), (139, 200), (890, 900)]
    assert told(lag, 201, 308) == []
    assert told(lag, 201, 309) == [(309, 400)]
    assert told(lag, 200, 201) == [(139, 200)]
    assert lag.between(0, 1000 * MS).longest_ns == 80 * MS, "what was seen, without the doubt"
    assert lag_of((100, 0)).between(0, 1000 * MS) == Lateness([], 0)


@pytest.mark.parametrize("began_after_ms", range(1, 10))
@pytest.mark.parametrize("held_ms", [30, 200])
def test_a_span_covers_what_held_the_loop_whenever_it_began(
    monkeypatch: pytest.MonkeyPatch, began_after_ms: int, held_ms: int
) -> None:
    lag = lag_of()
    now_ns = 5_000 * MS
    monkeypatch.setattr(module, "monotonic_ns", lambda: now_ns)
    monkeypatch.setattr(lag, "_loop", type("Loop", (), {"call_later": lambda *_: None})())
    lag.start()
    began_ns, sampled_ns = now_ns + began_after_ms * MS, now_ns
    now_ns = began_ns + held_ms * MS
    # The end of a stream may be handled before the timer has its turn.
    before = lag.between(began_ns, now_ns)
    lag._tick()
    ((low_ns, high_ns),) = lag.between(began_ns, now_ns).spans
    assert before == lag.between(began_ns, now_ns), "told once, before and after"
    assert sampled_ns <= low_ns <= began_ns
    assert high_ns == now_ns


def test_a_little_lateness_of_ours_excuses_little_of_the_servers() -> None:
    ((low_ns, high_ns),) = lag_of((100, 2)).between(0, 1000 * MS).spans
    assert high_ns - low_ns == 4 * MS
    ((low_ns, high_ns),) = lag_of((1000, 300)).between(0, 2000 * MS).spans
    assert high_ns - low_ns == 300 * MS + INTERVAL_NS + GRAIN_NS


def test_many_short_ones_do_not_push_a_long_one_out() -> None:
    lag = lag_of((100, 60), *((200 + 12 * index, 2) for index in range(10_000)))
    assert told(lag, 0, 10**6)[0] == (29, 100)
    assert lag.between(0, 10**12).longest_ns == 60 * MS


def test_the_longest_are_kept_in_order_of_time() -> None:
    spans = [(0, 5), (10, 11), (20, 27), (30, 33)]
    assert longest(spans, 2) == ((0, 5), (20, 27))
    assert longest(spans[::-1], 9) == tuple(spans)
