"""Whose fault a stall was: ours, the slow client's, or the server's own.

The worker is stopped (SIGSTOP) for 200 ms: its loop does nothing in that time, and it learns of it as of any
other lateness.  What is measured depends on a machine that others use too: a test tries again where the
moments did not fall as it needs them, but never because of what was said of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import pytest

from tests.helpers.pacer import Pacer, Plan, pacer
from tests.helpers.procs import Legato, eventually, serve
from tests.helpers.rawclient import RawClient
from tests.helpers.truth import Line, judged, raw_of, trace_lines

pytestmark = pytest.mark.alone

MS, S = 1_000_000, 1_000_000_000
STREAMS = 8
SLOS = [{"name": "tight", "ttft": "100ms", "tbt": "25ms"}]
PAUSE = 10  # the server pauses before this event


def plan(pace_ms: float, pause_ms: float, after: int = 10) -> Plan:
    """Ten events, a pause of the server's own, and more events."""
    return Plan([pace_ms] * PAUSE + [pause_ms] + [pace_ms] * after)


@pytest.fixture(scope="module")
def server() -> Iterator[Pacer]:
    with pacer() as process:
        yield process


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trace") / "trace.jsonl"


@pytest.fixture(scope="module")
def legato(server: Pacer, trace: Path) -> Iterator[Legato]:
    config = {
        "backends": {"default": {"url": server.url}},
        "slos": SLOS,
        "trace_log": str(trace),
        "stream": {"buffer": "64KiB"},
    }
    with serve(config=config) as process:
        yield process


@dataclass(frozen=True)
class Stop:
    """When the worker did nothing, by the wall clock."""

    from_ns: int
    to_ns: int


@dataclass(frozen=True)
class Stall:
    """One late token, by the oracle: when it came, and whether what it missed was taken out."""

    start_ns: int
    at_ns: int
    late_ns: int
    missed: int
    reason: str | None


def stop_worker(legato: Legato, for_s: float) -> Stop:
    (worker,) = legato.workers()
    os.kill(worker, SIGSTOP)
    from_ns = time.time_ns()
    time.sleep(for_s)
    to_ns = time.time_ns()
    os.kill(worker, SIGCONT)
    return Stop(from_ns, to_ns)


def stream(legato: Legato, name: str, what: Plan) -> RawClient:
    client = RawClient(legato.data, timeout_s=30)
    client.send(what.request(name))
    return client


def settled(legato: Legato, trace: Path, name: str) -> tuple[dict[str, Any], Line]:
    """The record and the trace line of a request."""
    record = legato.record(request_id=name)
    eventually(lambda: record["id"] in trace.read_text(), 5, "its trace line")
    (line,) = (line for line in trace_lines(trace, 1) if line["id"] == record["id"])
    return record, line


def stalls_of(line: Line) -> list[Stall]:
    moments = [at for at, _ in line["events"]]
    return [
        Stall(start, next(at for at in moments if at > start), late, missed, reason)
        for start, late, missed, _, reason in judged(line).stalls
    ]


def the_pause(line: Line) -> Stall:
    """The stall that the server's own pause made."""
    start_ns = line["events"][PAUSE - 1][0]
    (stall,) = (stall for stall in stalls_of(line) if stall.start_ns == start_ns)
    return stall


def assert_booked(record: dict[str, Any], line: Line) -> None:
    """The record says what the oracle says of the trace line, with its marks."""
    true, raw = judged(line), raw_of(line)
    assert (record["met"], record["missed"]) == (true.met, true.missed)
    assert record["suspect"] is (true.suspect > 0)
    assert record["stalls"] == sum(stall[4] is None for stall in true.stalls)
    assert record["late_s"] == pytest.approx(true.late_ns / S, abs=1e-6)
    taken = true.suspect + true.client_blocked
    assert raw.missed == true.missed + taken
    said = {"fluidity": pytest.approx(raw.fluidity, abs=1e-6), "met": raw.met, "missed": raw.missed}
    assert record["raw"] == (said if taken else None)


def booked(legato: Legato, result: str) -> float:
    return legato.metrics().value("legato_token_deadlines_total", result=result)


def test_the_stalls_of_a_blocked_loop_are_suspect_and_the_servers_are_not(
    legato: Legato, trace: Path
) -> None:
    before = {result: booked(legato, result) for result in ("met", "missed", "suspect")}
    seen: list[tuple[dict[str, Any], Line]] = []
    for attempt in range(4):
        stop, names = _crowd(legato, attempt)
        told = [settled(legato, trace, name) for name in names]
        seen += told
        if all(_ours(line, stop) is not None for _, line in told):
            break
    else:
        pytest.skip("this machine did not keep the moments of this test")
    for record, line in told:
        ours = _ours(line, stop)
        assert ours is not None
        assert ours.reason == "suspect", (ours, line["marks"])
        assert ours.missed >= 2
        assert the_pause(line).reason is None, (the_pause(line), line["marks"])
        assert the_pause(line).missed >= 4
        assert record["worst_stall"]["late_s"] >= 0.1
        assert record["raw"]["missed"] - record["missed"] >= ours.missed
        assert 0.18 < record["proxy"]["loop_lag_max_s"] < (stop.to_ns - stop.from_ns) / S + 0.2
        assert_booked(record, line)
    for result, had in before.items():
        assert booked(legato, result) - had == sum(getattr(judged(line), result) for _, line in seen)


def _crowd(legato: Legato, attempt: int) -> tuple[Stop, list[str]]:
    clients, names = [], [f"a{attempt}-{number}" for number in range(STREAMS)]
    for name in names:  # no two at the same moment of their pace
        clients.append(stream(legato, name, plan(20, 300, after=45)))
        time.sleep(0.003)
    with ThreadPoolExecutor() as pool:
        reading = [pool.submit(client.response) for client in clients]
        time.sleep(0.75)  # 0.2 s, the server's pause, and a quarter of a second of events
        stop = stop_worker(legato, 0.2)
        assert all(one.result().end == "complete" for one in reading)
    for client in clients:
        client.close()
    return stop, names


def _ours(line: Line, stop: Stop) -> Stall | None:
    """The one stall around the stop, if it is as meant: the token was there, and read when the loop woke."""
    from_ns, to_ns = stop.from_ns - line["t0_unix_ns"], stop.to_ns - line["t0_unix_ns"]
    found = [stall for stall in stalls_of(line) if stall.start_ns < to_ns and stall.at_ns > from_ns]
    paused = [stall for stall in stalls_of(line) if stall.start_ns == line["events"][PAUSE - 1][0]]
    if len(found) != 1 or not paused or found == paused:
        return None
    return found[0] if to_ns <= found[0].at_ns < to_ns + 20 * MS else None


def test_a_stream_that_ends_as_soon_as_the_loop_wakes_up_was_late_by_us(legato: Legato, trace: Path) -> None:
    with stream(legato, "end", Plan([24] * 12)) as client:
        answer = client.begin()
        while answer.reader.body.count(b"data: ") < 10:
            client.read_into(answer, at_least=len(answer.reader.body) + 1)
        stop_worker(legato, 0.25)
        assert client.read_into(answer).end == "complete"
    record, line = settled(legato, trace, "end")
    last = stalls_of(line)[-1]
    assert (last.at_ns, last.reason) == (line["events"][-1][0], "suspect"), line["marks"]
    assert record["missed"] == record["raw"]["missed"] - sum(
        stall.missed for stall in stalls_of(line) if stall.reason
    )
    assert_booked(record, line)


def test_a_worker_that_stood_still_does_not_call_its_own_lateness_overdue(legato: Legato) -> None:
    clients = [stream(legato, f"still{number}", Plan([20] * 170)) for number in range(STREAMS)]
    with ThreadPoolExecutor() as pool:
        reading = [pool.submit(client.response) for client in clients]
        time.sleep(0.5)
        stop_worker(legato, 1.3)  # a beat was due meanwhile; the tokens wait in the kernel
        pictures = []
        until_s = time.monotonic() + 1.3
        while time.monotonic() < until_s:
            pictures.append(legato.json("/api/summary")["total"]["in_flight"])
            time.sleep(0.02)
        assert all(one.result().end == "complete" for one in reading)
    for client in clients:
        client.close()
    assert max(picture["requests"] for picture in pictures) == STREAMS
    assert [picture for picture in pictures if picture["overdue"]] == []
    # The tokens of the time in which it stood still came in that time, not all in the second after it.
    rates = [
        picture["tokens_per_s"] / (STREAMS * 50) for picture in pictures if picture["requests"] == STREAMS
    ]
    assert max(rates) < 1.7
    assert rates[-1] > 0.4


@pytest.mark.parametrize(
    ("pace_ms", "stop_after_ms", "stop_ms", "why"),
    [
        (24, 240, 100, "shorter than the stall"),
        (20, 20, 200, "over when the token came"),
    ],
)
def test_lateness_of_ours_that_does_not_explain_a_stall_of_the_servers(
    legato: Legato, trace: Path, pace_ms: float, stop_after_ms: int, stop_ms: int, why: str
) -> None:
    for attempt in range(6):
        name = f"{stop_ms}-{attempt}"
        with stream(legato, name, plan(pace_ms, 300)) as client:
            answer = client.begin()
            while answer.reader.body.count(b"data: ") < PAUSE:
                client.read_into(answer, at_least=len(answer.reader.body) + 1)
            time.sleep(stop_after_ms / 1000)
            stop = stop_worker(legato, stop_ms / 1000)
            assert client.read_into(answer).end == "complete"
        record, line = settled(legato, trace, name)
        assert_booked(record, line)
        stall = the_pause(line)
        woke_ns = stop.to_ns - line["t0_unix_ns"]
        stopped_ns = woke_ns - (stop.from_ns - line["t0_unix_ns"])
        if stop_after_ms > 200:  # it came while the worker did not run, and was late by far more
            as_meant = woke_ns <= stall.at_ns < woke_ns + 20 * MS and stall.late_ns > stopped_ns + 50 * MS
        else:  # it came long after, late by less than the worker was
            as_meant = stall.at_ns > woke_ns + 40 * MS and stall.late_ns < stopped_ns - 10 * MS
        if as_meant:
            break
    else:
        pytest.skip("this machine did not keep the moments of this test")
    assert stall.reason is None, (why, stall, line["marks"])
    assert stall.missed >= 4
    assert record["missed"] >= stall.missed


def test_stalls_that_overlap_a_pause_for_a_slow_client_are_the_clients(legato: Legato, trace: Path) -> None:
    before = booked(legato, "client_blocked")
    with RawClient(legato.data, rcvbuf=4096, timeout_s=30) as slow:
        slow.send(Plan([24] * 80, size=150_000).request("slow"))
        overdue = []
        until_s = time.monotonic() + 3.5
        while time.monotonic() < until_s:  # it reads nothing
            overdue.append(legato.json("/api/summary")["total"]["in_flight"]["overdue"])
            time.sleep(0.1)
        assert not any(overdue[-15:]), "what waits for the client is not overdue"
        assert slow.response().end == "complete"
    record, line = settled(legato, trace, "slow")
    assert record["proxy"]["client_blocked_s"] > 1
    blocked = [stall for stall in stalls_of(line) if stall.reason == "client_blocked"]
    assert max(stall.late_ns for stall in blocked) > S // 2
    marks = [mark for mark in line["marks"] if mark[1] == "client_blocked"]
    assert {stall.start_ns for stall in blocked} <= {mark[0] for mark in marks}
    assert sum(mark[2] for mark in marks) == judged(line).client_blocked
    assert record["raw"]["missed"] - record["missed"] >= S // 2 // (25 * MS)
    assert booked(legato, "client_blocked") - before == judged(line).client_blocked
    assert_booked(record, line)
