"""What a killed worker takes with it is counted, all of it and nothing else, whenever it is killed.

What clients saw begin was begun.  Of what was cut before any answer a client cannot know.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest

from tests.helpers.crowd import Crowd, Seen, Streamer, Wish, streamer
from tests.helpers.procs import Legato, alive, eventually, serve
from tests.helpers.rawclient import RawClient, get, post
from tests.helpers.upstream import Connection, scripted

pytestmark = pytest.mark.alone

STREAMS = 100


@pytest.fixture(scope="module")
def upstream() -> Iterator[Streamer]:
    with streamer() as server:
        yield server


@pytest.fixture(scope="module")
def legato(upstream: Streamer) -> Iterator[Legato]:
    with serve(upstream.url, flags=["--workers", "1"]) as process:
        yield process


def busily(condition: Callable[[], bool]) -> None:
    """Wait without a pause: what is to be caught lasts for some milliseconds."""
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.0005)


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        eventually(lambda pid=pid: not alive(pid), 5, "a death", 0.01)  # type: ignore[misc]


def books(legato: Legato) -> dict[str, float]:
    """What is recorded, and what is told to be lost."""
    metrics = legato.metrics()
    out = {"recorded": metrics.value("legato_requests_total")}
    for what in ("worker_lost", "settled_by_lost_control", "facts"):
        out[what] = metrics.value("legato_dropped_total", what=what)
    return out


def back(legato: Legato, dead: Sequence[int]) -> None:
    """Wait until somebody stands in for who died."""

    def there() -> bool:
        present = {*legato.workers(), *legato.controls()}
        whole = len(present) == 2 and not present & set(dead)
        return whole and legato.metrics().value("legato_workers") == 1

    eventually(there, 20, "everybody's successor", 0.05)


def at_rest(legato: Legato, dead: Sequence[int], least: int) -> dict[str, float]:
    """The books when somebody stands in for who died, so many are in them, and no more come."""

    back(legato, dead)
    eventually(lambda: sum(books(legato).values()) >= least, 20, f"{least} requests in the books", 0.05)
    was = books(legato)
    lag = legato.metrics().value("legato_event_loop_lag_seconds_count")
    eventually(lambda: legato.metrics().value("legato_event_loop_lag_seconds_count") > lag, 20, "a beat")
    assert books(legato) == was, "and nothing is added later"
    return was


def check(before: dict[str, float], after: dict[str, float], seen: Sequence[Seen]) -> float:
    """All that clients saw begin is recorded or lost, once; returns the lost."""
    more = {name: after[name] - before[name] for name in after}
    begun = sum(one.begun for one in seen)  # a head came: surely begun
    untold = sum(one.end == "cut" and not one.begun for one in seen)
    assert begun <= sum(more.values()) <= begun + untold, (more, begun, untold)
    assert more["recorded"] <= sum(one.right for one in seen)
    return more["worker_lost"]


def test_requests_that_were_answered_and_not_told_yet(legato: Legato) -> None:
    before = books(legato)
    (worker,) = legato.workers()
    crowd = Crowd(legato.data, [Wish(n, 2, 1) for n in range(STREAMS)])
    busily(lambda: all(one.end != "open" for one in crowd.seen))
    kill(worker)
    seen = crowd.result()
    assert all(one.right for one in seen)
    lost = check(before, at_rest(legato, [worker], int(sum(before.values())) + STREAMS), seen)
    print(f"{lost:.0f} answered requests died in the worker")
    assert lost > 0, "it was killed within its 50 ms: else this test has seen nothing"


def test_streams_that_began_since_the_last_beat(legato: Legato) -> None:
    before = books(legato)
    (worker,) = legato.workers()
    crowd = Crowd(legato.data, [Wish(n, 100, 100) for n in range(STREAMS)])
    busily(lambda: crowd.begun == STREAMS)
    kill(worker)
    seen = crowd.result()
    assert all(one.end == "cut" for one in seen)
    assert check(before, at_rest(legato, [worker], int(sum(before.values())) + STREAMS), seen) == STREAMS


def test_a_worker_and_the_control_process_at_once(legato: Legato) -> None:
    (worker,), (control,) = legato.workers(), legato.controls()
    done = Crowd(legato.data, [Wish(n, 2, 1) for n in range(40)]).result()
    assert all(one.right for one in done)
    recorded = books(legato)["recorded"]
    eventually(lambda: books(legato)["recorded"] >= recorded, 5, "a beat")
    crowd = Crowd(legato.data, [Wish(n, 100, 100) for n in range(STREAMS)])
    busily(lambda: crowd.begun == STREAMS)
    kill(control, worker)
    crowd.result()
    # The next control process begins at nothing, and finds what both had begun since the worker's start.
    after = at_rest(legato, [worker, control], 40 + STREAMS)
    assert after["recorded"] == after["facts"] == 0
    assert after["worker_lost"] >= STREAMS
    assert after["worker_lost"] + after["settled_by_lost_control"] == 40 + STREAMS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_graceful_end_takes_nothing_along(legato: Legato, number: signal.Signals) -> None:
    before = books(legato)
    (worker,) = legato.workers()
    crowd = Crowd(legato.data, [Wish(n, 20, 50) for n in range(STREAMS)])
    busily(lambda: crowd.begun == STREAMS)
    os.kill(worker, number)
    seen = crowd.result()
    assert all(one.right if number == signal.SIGTERM else one.end == "cut" for one in seen)
    after = at_rest(legato, [worker], int(sum(before.values())) + STREAMS)
    assert after == before | {"recorded": before["recorded"] + STREAMS}


# ---------------------------------------------------------------- what has no record, and what has two


async def hold(conn: Connection) -> None:
    """A server that answers nobody."""
    await conn.request()
    await conn.told()


def test_excluded_paths_count_for_nothing_and_refused_requests_and_copies_do() -> None:
    with scripted(hold) as backend, scripted(hold) as shadow, ExitStack() as stack:
        config = {
            "workers": 1,
            "exclude": ["/quiet*"],
            "backends": {"default": {"url": backend.url}, "next": {"url": shadow.url}},
            "routes": [{"backend": "default", "mirror": {"backend": "next"}}],
        }
        legato = stack.enter_context(serve(config=config))
        (worker,) = legato.workers()
        for sent in [get("/quiet/health")] * 5 + [post()] * 10:
            stack.enter_context(RawClient(legato.data)).send(sent)
        eventually(lambda: len(backend.requests) == 15, 10, "all requests there")

        def let_go() -> int:  # copies that were not begun, since the machine was busy
            (told,) = legato.json("/api/mirrors")["shadows"]
            return int(told["results"].get("dropped", 0))

        eventually(lambda: len(shadow.requests) + let_go() == 10, 10, "all copies there")
        refused = stack.enter_context(RawClient(legato.data))
        refused.send(b"nonsense\r\n\r\n")
        assert refused.response().status == 400
        kill(worker)
        begun = 10 + len(shadow.requests) + 1
        eventually(lambda: sum(books(legato).values()) >= begun, 20, "every record in the books")
        after = books(legato)
        assert after["recorded"] <= 1, "the refused one may have been told"
        assert after["recorded"] + after["worker_lost"] == sum(after.values()) == begun
        back(legato, [worker])
