"""A server that hangs raises an alarm while it hangs, and what is booked in the end is exact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
from tests.helpers.truth import Line, judged, missed_by, raw_of, trace_lines

pytestmark = pytest.mark.alone

MS, S = 1_000_000, 1_000_000_000
STREAMS = 6
#: 20 ms of the 25 that are allowed: some 50 tokens before the server hangs leave slack of 0.35 s at most.
PLAN = Plan(gaps_ms=[20] * 120)
HANG_S = 5.0
SLOS = [{"name": "tight", "ttft": "100ms", "tbt": "25ms"}]


@dataclass(frozen=True)
class Picture:
    """What the readers were shown at a moment (wall clock)."""

    at_ns: int
    summary: dict[str, Any]  # in_flight, over all groups
    overdue: float
    missed: float
    in_flight: float


def look(legato: Legato) -> Picture:
    metrics = legato.metrics()
    flight = legato.json("/api/summary")["total"]["in_flight"]
    names = ("requests_overdue", "in_flight_missed_deadlines", "requests_in_flight")
    return Picture(time.time_ns(), flight, *(metrics.value(f"legato_{name}") for name in names))


@pytest.fixture(scope="module")
def server() -> Iterator[Pacer]:
    with pacer() as process:
        yield process


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


@pytest.fixture
def legato(server: Pacer, trace: Path) -> Iterator[Legato]:
    config = {"backends": {"default": {"url": server.url}}, "slos": SLOS, "trace_log": str(trace)}
    with serve(config=config) as process:
        yield process


def ask(legato: Legato, name: str, plan: Plan = PLAN) -> RawClient:
    client = RawClient(legato.data, timeout_s=30)
    client.send(plan.request(name))
    return client


def watch(legato: Legato, until_s: float) -> list[Picture]:
    pictures = []
    while time.monotonic() < until_s:
        pictures.append(look(legato))
        time.sleep(0.03)
    return pictures


def first_due_ns(lines: list[Line], after_ns: int) -> int:
    """By the wall clock: the first deadline, of the stalls over 2 s, that passed after ``after_ns``."""
    found: list[int] = []
    for line in lines:
        moments = [*(event[0] for event in line["events"]), line["end_ns"]]
        for start_ns, late_ns, _, _, _ in raw_of(line).stalls:
            came_ns = next(one for one in moments if one > start_ns)
            if late_ns > 2 * S:
                found.append(line["t0_unix_ns"] + came_ns - late_ns)
    return min(due_ns for due_ns in found if due_ns > after_ns)


def test_a_server_that_hangs_shows_while_it_hangs(legato: Legato, server: Pacer, trace: Path) -> None:
    clients = [ask(legato, f"r{number}") for number in range(STREAMS)]
    with ThreadPoolExecutor() as pool:
        reading = [pool.submit(client.response) for client in clients[:-1]]
        busy = watch(legato, time.monotonic() + 1.3)
        os.kill(server.pid, SIGSTOP)
        try:
            stopped_s, stopped_ns = time.monotonic(), time.time_ns()
            late = ask(legato, "late")  # the kernel takes it, nobody answers
            hanging = watch(legato, stopped_s + HANG_S - 1.5)
            clients[-1].close()  # one gives up
            hanging += watch(legato, stopped_s + HANG_S)
        finally:
            os.kill(server.pid, SIGCONT)
        over_ns = time.time_ns()
        eventually(lambda: look(legato).overdue == 0, 4, "the end of what is overdue")
        reading.append(pool.submit(late.response))
        assert all(one.result().end == "complete" for one in reading)
    late.close()
    for client in clients:
        client.close()
    lines = trace_lines(trace, STREAMS + 1)

    # While it hung.  The alarm:
    due_ns = first_due_ns(lines, stopped_ns)
    risen = [next(p.at_ns for p in hanging if seen(p)) for seen in (_in_metrics, _in_summary)]
    to_alarm_s = [(at_ns - due_ns) / S for at_ns in risen]
    print(
        f"overdue {to_alarm_s[0]:.2f} s (metrics), {to_alarm_s[1]:.2f} s (summary) after the first deadline"
    )
    assert all(seconds < 2 for seconds in to_alarm_s), to_alarm_s
    # ... counts each stream, the one without a head and, until it left, the one that gave up:
    assert max(p.overdue for p in hanging) == max(p.summary["overdue"] for p in hanging) == STREAMS + 1
    assert hanging[-1].overdue == STREAMS
    # ... and grows with each beat:
    worst = sorted({p.summary["worst_overdue_s"] for p in hanging})
    assert len(worst) >= 4
    assert worst == list(dict.fromkeys(p.summary["worst_overdue_s"] for p in hanging)), "it only grows"
    assert worst[-1] > HANG_S - 2.5
    missed = list(dict.fromkeys(p.missed for p in hanging if p.summary["overdue"] == STREAMS + 1))
    assert missed == sorted(missed)
    assert len(missed) >= 2
    # ... by as much as is true at that moment (pictures are up to a beat old).
    alive = [line for line in lines if line["outcome"] == "completed"]
    for picture in hanging:
        if picture.overdue == STREAMS:
            low, high = (
                sum(_missed_at(line, picture.at_ns + d) for line in alive) for d in (-2 * S, S // 10)
            )
            assert low <= picture.missed <= high, (low, picture, high)
    # The rate of tokens: that of the streams, and none.
    assert 0.4 < max(p.summary["tokens_per_s"] for p in busy) / (STREAMS * 50) < 1.6
    assert hanging[-1].summary["tokens_per_s"] == 0

    # Afterwards all of it is booked, once and exactly.
    def empty() -> bool:
        picture = look(legato)
        nothing = dict.fromkeys(("requests", "overdue", "missed_deadlines"), 0)
        none = nothing | dict.fromkeys(("worst_overdue_s", "tokens_per_s"), 0.0)
        return picture.summary == none and picture.missed == picture.in_flight == 0

    eventually(empty, 4, "an empty picture")
    _equal_the_oracle(legato, lines, trace)
    lefts = [line["id"] for line in lines if line["outcome"] == "client_cancelled"]
    assert len(lefts) == 1
    assert sum(line["t0_unix_ns"] + line["end_ns"] > over_ns for line in alive) == STREAMS


def _in_metrics(picture: Picture) -> bool:
    return picture.overdue > 0 and picture.missed > 0


def _in_summary(picture: Picture) -> bool:
    return bool(picture.summary["overdue"] and picture.summary["missed_deadlines"])


def _missed_at(line: Line, unix_ns: int) -> int:
    return missed_by(line, unix_ns - line["t0_unix_ns"])


def _equal_the_oracle(legato: Legato, lines: list[Line], trace: Path) -> None:
    truth = {line["id"]: judged(line) for line in lines}
    scored = subprocess.run(
        [sys.executable, "-m", "proxy.cli", "score", "--json", str(trace)], capture_output=True, check=True
    )
    offline = {one["id"]: one for one in json.loads(scored.stdout)["requests"]}
    records = {record["id"]: record for record in legato.records()}
    assert truth.keys() == offline.keys() == records.keys()
    for name, true in truth.items():
        assert true.missed + true.suspect > 3 * S // (25 * MS), "each of them waited"
        for said in (offline[name], records[name]):
            assert (said["met"], said["missed"], said["fluidity"]) == (
                true.met,
                true.missed,
                pytest.approx(true.fluidity, abs=1e-6),
            )
    metrics = legato.metrics()
    for result in ("met", "missed", "suspect", "client_blocked"):
        booked = metrics.value("legato_token_deadlines_total", result=result)
        assert booked == sum(getattr(true, result) for true in truth.values()), result
