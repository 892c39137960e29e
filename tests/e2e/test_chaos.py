"""Processes killed under load: no byte is lost that need not be, and every request is accounted for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.helpers.crowd import Crowd, Streamer, Wish, streamer
from tests.helpers.procs import Legato, alive, eventually, serve

pytestmark = pytest.mark.alone

BACK_S = 5.0
STREAMS = 100


@pytest.fixture(scope="module")
def upstream() -> Iterator[Streamer]:
    with streamer() as server:
        yield server


def wishes(count: int, *, events: int, every_ms: float, spread_s: float = 0.0) -> list[Wish]:
    """``count`` streams that begin evenly within ``spread_s``."""
    return [Wish(n, events, every_ms, begin_s=spread_s * n / count) for n in range(count)]


def kill(pid: int) -> float:
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid), 5, "a death")
    return time.monotonic()


def accounted(legato: Legato) -> float:
    """Requests that some sum or some loss counter holds."""
    metrics = legato.metrics()
    lost = ("facts", "settled_by_lost_control", "worker_lost")
    return metrics.value("legato_requests_total") + sum(
        metrics.value("legato_dropped_total", what=what) for what in lost
    )


def expect_accounted(legato: Legato, made: int) -> None:
    """Exactly this many, and not one more a while later."""
    eventually(lambda: accounted(legato) >= made, 10, f"{made} requests accounted for", 0.05)
    assert accounted(legato) == made
    beat = legato.metrics().value("legato_event_loop_lag_seconds_count")
    eventually(
        lambda: legato.metrics().value("legato_event_loop_lag_seconds_count") > beat, 5, "a beat", 0.05
    )
    assert accounted(legato) == made


# ---------------------------------------------------------------- the control process


def test_the_control_process_killed_under_load(upstream: Streamer) -> None:
    with serve(upstream.url) as legato:
        workers, (control,) = legato.workers(), legato.controls()
        # Long streams, and short ones that end all the time, before, during and after the death.
        long = Crowd(legato.data, wishes(STREAMS, events=80, every_ms=60))
        short = Crowd(legato.data, wishes(300, events=4, every_ms=10, spread_s=4.5))
        eventually(lambda: legato.metrics().value("legato_requests_total") >= 20, 10, "some requests booked")
        assert long.begun == STREAMS
        booked = legato.metrics().value("legato_requests_total")
        dead_at = kill(control)
        eventually(lambda: legato.get("/readyz", 1)[0] == 200, 20, "readiness")
        took_s = time.monotonic() - dead_at
        assert [seen.wish.number for seen in (*long.result(), *short.result()) if not seen.right] == []
        assert took_s < BACK_S
        assert (legato.workers(), len(legato.controls())) == (workers, 1)

        expect_accounted(legato, STREAMS + 300)
        metrics = legato.metrics()
        lost = metrics.value("legato_dropped_total", what="settled_by_lost_control")
        assert lost >= booked
        assert metrics.value("legato_dropped_total") == lost, "nothing else was lost"
        assert metrics.value("legato_requests_total", outcome="completed") == STREAMS + 300 - lost
        assert "control" in legato.stderr
        assert "SIGKILL" in legato.stderr


def test_the_control_process_killed_again_and_again(upstream: Streamer) -> None:
    with serve(upstream.url, flags=["--workers", "2"]) as legato:
        workers = legato.workers()
        crowd = Crowd(legato.data, wishes(400, events=5, every_ms=20, spread_s=6))
        for _ in range(3):
            before = crowd.begun
            eventually(lambda before=before: crowd.begun >= before + 20, 10, "more requests")  # type: ignore[misc]
            (control,) = legato.controls()
            kill(control)
            eventually(lambda: legato.get("/readyz", 1)[0] == 200, 20, "readiness")
        assert all(seen.right for seen in crowd.result())
        assert legato.workers() == workers
        eventually(lambda: legato.metrics().value("legato_workers") == 2, 5, "both workers")
        expect_accounted(legato, 400)


# ---------------------------------------------------------------- workers


def test_two_workers_are_one_to_every_reader(upstream: Streamer) -> None:
    with serve(upstream.url, flags=["--workers", "2"]) as legato:
        crowd = Crowd(legato.data, wishes(STREAMS, events=12, every_ms=10))
        assert all(seen.right for seen in crowd.result())
        eventually(
            lambda: legato.metrics().value("legato_requests_total") >= STREAMS, 10, "every request", 0.05
        )
        metrics = legato.metrics()
        tokens = 10 * STREAMS  # 12 events: ten words, the finish reason, [DONE]
        assert metrics.value("legato_requests_total", outcome="completed") == STREAMS
        assert metrics.value("legato_slo_requests_total") == STREAMS
        assert metrics.value("legato_output_tokens_total") == tokens
        assert metrics.value("legato_ttft_seconds_count") == STREAMS
        assert metrics.value("legato_tbt_seconds_count") == tokens - STREAMS
        assert metrics.value("legato_dropped_total") == 0
        assert metrics.value("legato_workers") == 2
        # The access log's lines gather for a moment before they are written.
        eventually(lambda: len({record["id"] for record in legato.records()}) == STREAMS, 10, "every line")


def test_a_worker_killed_under_load(upstream: Streamer) -> None:
    with serve(upstream.url, flags=["--workers", "2"]) as legato:
        victim, other = legato.workers()
        (control,) = legato.controls()
        before = Crowd(legato.data, wishes(40, events=4, every_ms=5))
        assert all(seen.right for seen in before.result())
        # One after the other: of a burst one worker may accept everything.
        crowd = Crowd(legato.data, wishes(STREAMS, events=100, every_ms=60, spread_s=1))
        eventually(
            lambda: legato.metrics().value("legato_requests_in_flight") == STREAMS, 10, "all in a beat", 0.05
        )
        kill(victim)
        eventually(
            lambda: len(legato.workers()) == 2 and legato.metrics().value("legato_workers") == 2,
            10,
            "two workers",
        )
        after = Crowd(legato.data, wishes(40, events=4, every_ms=5))
        assert all(seen.right for seen in after.result())
        seen = crowd.result()
        cut = [one for one in seen if one.end == "cut"]
        right = [one for one in seen if one.right]
        assert len(cut) + len(right) == STREAMS
        assert 0 < len(cut) < STREAMS

        expect_accounted(legato, 80 + STREAMS)
        metrics = legato.metrics()
        assert metrics.value("legato_dropped_total", what="worker_lost") == len(cut)
        assert metrics.value("legato_requests_total", outcome="completed") == 80 + len(right)
        assert legato.controls() == [control]
        assert other in legato.workers()
        assert victim not in legato.workers()


def test_the_only_worker_killed_leaves_connections_waiting_not_refused(upstream: Streamer) -> None:
    with serve(upstream.url) as legato:
        (victim,) = legato.workers()
        kill(victim)
        crowd = Crowd(legato.data, wishes(20, events=4, every_ms=5))
        assert all(seen.right for seen in crowd.result())
        expect_accounted(legato, 20)
