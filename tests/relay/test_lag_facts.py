"""The loop's lateness as told with a request: which spans, how many."""

from __future__ import annotations

import asyncio

from proxy.relay.lag import LoopLag, longest

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


def test_only_notable_lateness_that_overlaps_is_told() -> None:
    lag = lag_of((100, 0), (200, 50), (300, 0), (400, 80), (900, 5))
    assert lag.between(0, 1000 * MS) == [(895 * MS, 900 * MS), (320 * MS, 400 * MS), (150 * MS, 200 * MS)]
    assert lag.between(201 * MS, 319 * MS) == []
    assert lag.between(201 * MS, 320 * MS) == [(320 * MS, 400 * MS)]


def test_the_longest_are_kept_in_order_of_time() -> None:
    spans = [(0, 5), (10, 11), (20, 27), (30, 33)]
    assert longest(spans, 2) == ((0, 5), (20, 27))
    assert longest(spans[::-1], 9) == tuple(spans)
