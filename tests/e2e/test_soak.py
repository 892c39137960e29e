"""A thousand streams at once for half a minute, a quarter of the clients leaving: nothing stays behind."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.helpers.crowd import Crowd, Seen, Wish, streamer
from tests.helpers.probed import probed, take_census
from tests.helpers.procs import Legato, eventually, open_files, rss_bytes, serve

pytestmark = pytest.mark.alone  # it measures memory: where control is starved of a processor, facts wait

STREAMS = 1000
#: Idle connections go soon, so that the test need not wait for them.
CONFIG = {"timeouts": {"upstream_keepalive": "1s"}}


def crowd_of(legato: Legato, events: int, every_ms: float, seed: int) -> list[Seen]:
    """A thousand streams; a seeded quarter leaves at seeded moments, from before the first byte on."""
    dice = random.Random(seed)
    leavers = set(dice.sample(range(STREAMS), STREAMS // 4))
    lasts_s = events * every_ms / 1000
    wishes = [
        Wish(
            number,
            events,
            every_ms,
            begin_s=dice.uniform(0, 1),
            leave_s=dice.uniform(0, lasts_s) if number in leavers else None,
        )
        for number in range(STREAMS)
    ]
    return Crowd(legato.data, wishes).result(lasts_s + 60)


def test_after_a_thousand_streams_everything_is_as_before(tmp_path: Path) -> None:
    census = tmp_path / "census"
    with streamer() as upstream, serve(upstream.url, config=CONFIG, program=probed(census)) as legato:
        (worker,) = legato.workers()
        (control,) = legato.controls()
        files = open_files(worker)
        held = take_census(worker, census)

        def as_before() -> bool:
            # A closed connection stays on its shelf until the next sweep, at most a second later.
            now = take_census(worker, census)
            assert now <= held, now - held  # the cause that a failure names
            return True

        def settled(booked: int) -> None:
            eventually(lambda: open_files(worker) <= files, 15, "the end of every connection", 0.1)
            eventually(
                lambda: legato.metrics().value("legato_requests_total") == booked, 15, "every record", 0.1
            )

        crowd_of(legato, 30, 200.0, seed=1)
        settled(STREAMS)
        eventually(as_before, 10, "the census of before", 0.1)
        before = rss_bytes(worker)

        seen = crowd_of(legato, 60, 500.0, seed=2)
        settled(2 * STREAMS)
        after = rss_bytes(worker)

        stayed = [one for one in seen if one.wish.leave_s is None]
        left = [one for one in seen if one.end == "left"]
        assert len(stayed) == STREAMS - STREAMS // 4
        assert len(left) > STREAMS // 5
        assert [one.wish.number for one in stayed if not one.right] == []
        eventually(as_before, 10, "the census of before", 0.1)
        assert abs(after - before) <= 0.05 * before, (before, after)
        print("RSS", before, after, (after - before) / before, held)
        assert (legato.workers(), legato.controls()) == ([worker], [control])
        metrics = legato.metrics()
        assert metrics.value("legato_requests_in_flight") == 0
        assert metrics.value("legato_dropped_total") == 0
        assert metrics.value("legato_requests_total", outcome="completed") >= 1.5 * STREAMS
