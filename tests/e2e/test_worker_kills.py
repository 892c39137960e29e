"""Workers killed at random under load: no counter of the host goes down, here or in a real Prometheus.

Only the end of the control process begins the counters anew, and then they say so.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from signal import SIGKILL

import pytest

from deploy.grafana.build import dashboard
from tests.helpers.crowd import Crowd, Seen, Wish, streamer
from tests.helpers.procs import Legato, Metrics, eventually, serve
from tests.helpers.prometheus import Prometheus, Series, prometheus

pytestmark = pytest.mark.alone

JOB = "legato"
WORKERS = 4
KILLS = 6
SHORT, LONG = 600, 60
LOOK_EVERY_S = 0.1


def counters(metrics: Metrics) -> dict[str, float]:
    """Every series that may only rise, by name and labels."""
    ends = ("_total", "_bucket", "_count", "_sum")
    return {key: value for key, value in metrics.as_dict().items() if key.split("{")[0].endswith(ends)}


@dataclass
class Watch:
    """Our own scrapes, ten a second; ``falls`` tells each series that fell or went away."""

    looks: int = 0
    last: dict[str, float] = field(default_factory=dict)
    falls: list[str] = field(default_factory=list)
    failure: BaseException | None = None

    def look(self, legato: Legato) -> None:
        """One scrape, held against the one before."""
        now = counters(legato.metrics())
        self.falls += [
            f"{key}: {was} -> {now.get(key)}" for key, was in self.last.items() if now.get(key, -1) < was
        ]
        self.last = now
        self.looks += 1


@contextmanager
def watching(legato: Legato) -> Iterator[Watch]:
    watch, stop = Watch(), threading.Event()

    def run() -> None:
        try:
            while not stop.wait(LOOK_EVERY_S):
                watch.look(legato)
        except BaseException as error:
            watch.failure = error

    thread = threading.Thread(target=run, name="watch")
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join()
    if watch.failure is not None:
        raise watch.failure


@dataclass(frozen=True)
class Scene:
    """After the kills: what clients saw, what was watched, what Prometheus knows, what stands there now."""

    legato: Legato
    server: Prometheus
    seen: Sequence[Seen]
    watch: Watch
    settled: Metrics
    killed: int

    def dropped(self, what: str) -> float:
        return self.settled.value("legato_dropped_total", what=what)

    @property
    def right(self) -> int:
        return sum(one.right for one in self.seen)


def crowds(legato: Legato) -> list[Crowd]:
    """Short streams, some sixty a second, and long ones: together some ten seconds."""
    short = [Wish(n, 12, 20, begin_s=9.5 * n / SHORT) for n in range(SHORT)]
    long = [Wish(SHORT + n, 100, 40, begin_s=6.0 * n / LONG) for n in range(LONG)]
    return [Crowd(legato.data, wishes) for wishes in (short, long)]


def kill_some(legato: Legato, crowd: Crowd, dice: random.Random) -> list[int]:
    """Kill a worker again and again, at random moments while the crowd is there."""
    killed: list[int] = []
    while len(killed) < KILLS:
        time.sleep(dice.uniform(0.3, 1.8))
        assert any(seen.end == "open" for seen in crowd.seen), "nobody was left to notice"
        killed.append(dice.choice(legato.workers()))
        os.kill(killed[-1], SIGKILL)
    return killed


def _whole(legato: Legato, killed: list[int]) -> bool:
    """A worker in each place said hello."""
    workers = legato.workers()
    connected = legato.metrics().value("legato_workers")
    return len(workers) == connected == WORKERS and not set(workers) & set(killed)


def _told(legato: Legato) -> float:
    metrics = legato.metrics()
    return metrics.value("legato_requests_total") + metrics.value("legato_dropped_total", what="worker_lost")


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with (
        streamer() as upstream,
        serve(upstream.url, flags=["--workers", str(WORKERS)]) as legato,
        prometheus(legato=legato.admin) as server,
    ):
        server.scraped(JOB)
        with watching(legato) as watch:
            running = crowds(legato)
            killed = kill_some(legato, running[0], random.Random(20261122))
            seen = [one for crowd in running for one in crowd.result()]
            eventually(lambda: _whole(legato, killed), 10, "workers in place of all that died", 0.05)
            begun = sum(one.begun for one in seen)
            eventually(lambda: _told(legato) >= begun, 10, "all that clients saw begin in the books", 0.05)
            server.scraped(JOB, times=2)
        yield Scene(legato, server, seen, watch, legato.metrics(), len(killed))


# ---------------------------------------------------------------- workers


def test_no_counter_goes_down_in_our_own_scrapes(scene: Scene) -> None:
    assert scene.watch.looks > 20
    assert len(scene.watch.last) > 150
    assert scene.watch.falls == []


def test_no_counter_goes_down_in_prometheus(scene: Scene) -> None:
    names = sorted({key.split("{")[0] for key in scene.watch.last})
    resets = [one for name in names for one in scene.server.now(f"resets({name}[10m])")]
    assert len(resets) == len(scene.watch.last)
    assert [one for one in resets if one.last] == []
    assert scene.server.one("changes(legato_counting_since_seconds[10m])") == 0


def test_sums_are_what_clients_saw_but_for_what_is_counted_lost(scene: Scene) -> None:
    made, settled = SHORT + LONG, scene.settled
    completed = settled.value("legato_requests_total", outcome="completed")
    lost = scene.dropped("worker_lost")
    print(
        f"{made} made, {scene.right} right, {completed:.0f} booked, {lost:.0f} lost by {scene.killed} kills"
    )
    cut = sum(one.end == "cut" for one in scene.seen)
    assert cut + scene.right == made
    assert 0 < cut < made / 2
    # Nothing is counted that was not, and nothing twice.
    assert settled.value("legato_requests_total") == completed <= scene.right
    # What is not recorded is counted.  A client that was cut before any answer cannot know whether the worker
    # had taken its request up: at most so many may be missing from the sum of both.
    unknown = sum(one.end == "cut" and not one.begun for one in scene.seen)
    assert made - unknown <= completed + lost <= made
    assert unknown < cut
    assert scene.dropped("facts") == scene.dropped("settled_by_lost_control") == 0
    # The histograms and verdicts hold the same requests as the counter.
    assert settled.value("legato_slo_requests_total") == completed
    assert settled.value("legato_request_duration_seconds_count") == completed
    assert settled.value("legato_ttft_seconds_count") == completed


def test_prometheus_sums_what_stands_there(scene: Scene) -> None:
    assert scene.server.one('sum(legato_requests_total{outcome="completed"})') == scene.settled.value(
        "legato_requests_total", outcome="completed"
    )
    lost = scene.server.one('legato_dropped_total{what="worker_lost"}')
    assert lost == scene.dropped("worker_lost") > 0


# ---------------------------------------------------------------- the control process


def _fell(resets: list[Series]) -> set[str]:
    return {one.labels.get("outcome", "") for one in resets if one.last}


def test_counters_begin_anew_with_the_control_process_and_say_so(scene: Scene) -> None:
    legato, server = scene.legato, scene.server
    since = legato.metrics().value("legato_counting_since_seconds")
    begun_s = time.time()
    (control,) = legato.controls()
    os.kill(control, SIGKILL)
    eventually(lambda: legato.get("/readyz", 1)[0] == 200, 20, "readiness", 0.05)
    after = Crowd(legato.data, [Wish(n, 4, 5) for n in range(20)])
    assert all(one.right for one in after.result())
    eventually(lambda: legato.metrics().value("legato_requests_total") >= 20, 10, "every request", 0.05)
    lag = "legato_event_loop_lag_seconds_count"  # a sample each 10 ms: two beats of each worker
    eventually(lambda: legato.metrics().value(lag) > 100 * WORKERS, 10, "beats", 0.05)
    server.scraped(JOB, times=2)

    assert legato.metrics().value("legato_requests_total") == 20
    assert since < begun_s < legato.metrics().value("legato_counting_since_seconds") < time.time()
    assert _fell(server.now("resets(legato_requests_total[10m])")) == {"completed"}
    assert server.one("changes(legato_counting_since_seconds[10m])") == 1
    # Rates see through it: a restart is no fall, and tells nothing a second time (workers count on).
    for name, more in (("legato_requests_total", 20), ("legato_forward_delay_seconds_count", 20 * 5)):
        increase = server.one(f"sum(increase({name}[10m]))")
        assert increase == pytest.approx(scene.settled.value(name) + more, rel=0.1), name
    # The mark that the dashboard draws.
    (mark,) = (one["expr"] for one in dashboard()["annotations"]["list"])
    (restarted,) = server.now(mark.replace("$job", JOB))
    assert restarted.labels["instance"] == f"{legato.admin[0]}:{legato.admin[1]}"
