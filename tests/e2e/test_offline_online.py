"""What ``legato score`` finds in the trace log is what was booked live, number by number, marks included.

A crowd of streams: server's stalls, a worker that stands still, slow clients, clients that leave, several
choices, servers that cut or hang, counts that are completed by usage.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
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

from proxy.offline import Overrides, score_line
from scoring.score import StreamScore
from tests.helpers.pacer import Pacer, Plan, pacer
from tests.helpers.procs import Legato, eventually, serve
from tests.helpers.truth import Line, judged, raw_of, trace_lines

STREAMS = 260
SLOW = 3
MS = 1_000_000
SLOS = [
    {"name": "strict", "match": {"model": "strict"}, "ttft": "30ms", "tbt": "12ms", "fluidity": 0.95},
    {"name": "tight", "ttft": "60ms", "tbt": "25ms"},
]


@dataclass(frozen=True)
class Visit:
    """One client: what it asks for, when it comes, when it leaves, how long it reads nothing."""

    name: str
    model: str
    plan: Plan
    begin_s: float
    leave_s: float | None = None
    idle_s: float = 0.0


def visits() -> list[Visit]:
    dice = random.Random(7)
    found = []
    for number in range(STREAMS):
        gaps = [dice.choice((5, 10, 20, 20, 24)) + dice.random() for _ in range(dice.randint(2, 60))]
        for _ in range(dice.randint(0, 2)):  # the server's own stalls
            gaps[dice.randrange(len(gaps))] = dice.randint(60, 400)
        choices = 2 if number % 5 == 0 else 1
        end = "cut" if number % 7 == 1 else "hang" if number % 7 == 2 else "done"
        leaves = end == "hang" or number % 9 == 4
        tokens = len(gaps) + len(gaps) // 3 if number % 3 == 0 else 0
        plan = Plan(gaps, choices, end, tokens=tokens, finish_first=dice.choice((0, 5)) if choices > 1 else 0)
        leave_s = sum(gaps) / 1000 * dice.uniform(0.3, 0.9) + (0.6 if end == "hang" else 0)
        model = "strict" if number % 2 else "tiny"
        found.append(Visit(f"v{number}", model, plan, 2.5 * dice.random(), leave_s if leaves else None))
    slow = Plan([24] * 60, size=150_000)
    return found + [Visit(f"slow{number}", "tiny", slow, 0.2, idle_s=3.0) for number in range(SLOW)]


async def visit(address: tuple[str, int], wish: Visit) -> None:
    await asyncio.sleep(wish.begin_s)
    sock = socket.socket()
    if wish.idle_s:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, address)
    reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
    writer.write(wish.plan.request(wish.name, wish.model))
    await asyncio.sleep(wish.idle_s)
    try:
        async with asyncio.timeout(wish.leave_s):
            tail = b""
            while (data := await reader.read(65536)) and not tail.endswith(b"\r\n0\r\n\r\n"):
                tail = (tail + data)[-16:]
                if tail.endswith(b"\r\n0\r\n\r\n"):
                    break
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()


async def crowd(address: tuple[str, int], wishes: list[Visit]) -> None:
    await asyncio.gather(*(visit(address, wish) for wish in wishes))


@pytest.fixture(scope="module")
def server() -> Iterator[Pacer]:
    with pacer() as process:
        yield process


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


@pytest.fixture
def legato(server: Pacer, trace: Path) -> Iterator[Legato]:
    config = {
        "backends": {"default": {"url": server.url}},
        "slos": SLOS,
        "trace_log": str(trace),
        "stream": {"buffer": "64KiB"},
    }
    with serve(config=config) as process:
        yield process


def seconds(ns: float | None) -> float | None:
    """As the record's: rounded to the microsecond."""
    return None if ns is None else round(ns * 1e-9, 6)


def ratio(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def as_record(score: StreamScore) -> dict[str, Any]:
    """What the record must say of a score, for every number that comes of one."""
    tbt, worst, raw = score.tbt, score.worst, score.raw
    names = ("p50", "p90", "p99", "max")
    return {
        "censored": score.censored,
        "suspect": score.suspect > 0,
        "ttft_s": seconds(score.ttft_ns),
        "tbt_s": tbt and {name: seconds(getattr(tbt, f"{name}_ns")) for name in names},
        "tpot_s": seconds(score.tpot_ns),
        "normalized_latency_s": seconds(score.normalized_ns),
        "duration_s": seconds(score.duration_ns),
        "fluidity": ratio(score.fluidity),
        "on_time_ratio": ratio(score.on_time_ratio),
        "met": score.met,
        "missed": score.missed,
        "late_s": seconds(score.late_ns),
        "least_tbt_s": seconds(score.least_tbt_ns),
        "stalls": score.stall_count,
        "raw": raw and {"fluidity": ratio(raw.fluidity), "met": raw.met, "missed": raw.missed},
        "worst_stall": worst
        and {"at_s": seconds(worst.at_ns), "late_s": seconds(worst.late_ns), "missed": worst.missed},
    }


def as_printed(score: StreamScore, name: str) -> dict[str, Any]:
    """What ``legato score --json`` must print of a score: to the nanosecond."""

    def exact(ns: float | None) -> float | None:
        return None if ns is None else round(ns / 1e9, 9)

    tbt = score.tbt
    return {
        "id": name,
        "fluidity": score.fluidity,
        "on_time_ratio": score.on_time_ratio,
        "met": score.met,
        "missed": score.missed,
        "ttft_s": exact(score.ttft_ns),
        "tbt_s": tbt and {p: exact(getattr(tbt, f"{p}_ns")) for p in ("p50", "p90", "p99", "max")},
        "tpot_s": exact(score.tpot_ns),
        "normalized_latency_s": exact(score.normalized_ns),
        "least_tbt_s": exact(score.least_tbt_ns),
        "stalls": score.stall_count,
        "censored": score.censored,
    }


def test_offline_and_online_agree_number_by_number(legato: Legato, trace: Path) -> None:
    wishes = visits()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(asyncio.run, crowd(legato.data, wishes))
        (worker,) = legato.workers()
        for _ in range(3):  # our own lateness
            time.sleep(0.6)
            os.kill(worker, SIGSTOP)
            time.sleep(0.15)
            os.kill(worker, SIGCONT)
        running.result(60)
    eventually(lambda: len(legato.records()) == len(wishes), 10, "a record for each")
    records = {record["id"]: record for record in legato.records()}
    measured = {name for name, record in records.items() if record["met"] is not None}
    lines = {line["id"]: line for line in trace_lines(trace, len(measured))}
    assert lines.keys() == measured
    assert len(measured) >= len(wishes) * 0.95

    printed = _score(trace)
    raw_lines = trace.read_bytes().splitlines()
    scores = {one.id: one.score for one in (score_line(raw, Overrides()) for raw in raw_lines)}
    for name, score in scores.items():
        record, wanted = records[name], as_record(score)
        assert {key: record[key] for key in wanted} == wanted, name
        assert printed[name] == as_printed(score, name)
        _as_the_oracle(score, lines[name])
    _as_the_counters(legato, list(scores.values()))
    _of_every_kind(records, lines, scores)


def _score(trace: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "proxy.cli", "score", "--json", str(trace)]
    done = subprocess.run(command, capture_output=True, check=True)
    said = json.loads(done.stdout)
    assert said["summary"]["bad_lines"] == 0
    return {one["id"]: one for one in said["requests"]}


def _as_the_oracle(score: StreamScore, line: Line) -> None:
    """The same by the rule as it is written, token by token."""
    true, raw = judged(line), raw_of(line)
    assert not line["thinned"]
    names = ("tokens", "met", "missed", "suspect", "client_blocked", "late_ns", "fluidity")
    for name in names:
        assert getattr(score, name) == getattr(true, name), (name, line)
    found = [(s.at_ns, s.late_ns, s.missed, s.choice, s.reason) for s in score.stalls]
    assert found == sorted(true.stalls, key=lambda stall: (stall[0], stall[3]))
    if score.raw is not None:
        assert (score.raw.fluidity, score.raw.met, score.raw.missed) == (raw.fluidity, raw.met, raw.missed)
    else:
        assert (score.met, score.missed) == (raw.met, raw.missed)


def _as_the_counters(legato: Legato, scores: list[StreamScore]) -> None:
    metrics = legato.metrics()
    for result in ("met", "missed", "suspect", "client_blocked"):
        booked = metrics.value("legato_token_deadlines_total", result=result)
        assert booked == sum(getattr(score, result) for score in scores), result


def _of_every_kind(
    records: dict[str, dict[str, Any]], lines: dict[str, Line], scores: dict[str, StreamScore]
) -> None:
    """The crowd was what it was meant to be: nothing above was true for want of cases."""
    outcomes = [record["outcome"] for record in records.values()]
    assert outcomes.count("completed") > STREAMS // 4
    assert outcomes.count("client_cancelled") > STREAMS // 20
    assert outcomes.count("upstream_error") > STREAMS // 20
    every = scores.values()
    assert sum("choices" in line for line in lines.values()) > STREAMS // 10
    assert sum(score.censored and score.missed > 0 for score in every) > 5
    assert sum(score.suspect > 0 for score in every) > 10
    assert sum(score.client_blocked > 0 for score in every) == SLOW
    assert sum(stall.reason is None for score in every for stall in score.stalls) > STREAMS // 4
    assert sum(record["tokens_source"] == "events+usage" for record in records.values()) > 10
    assert sum(any(line.get("finished", ())) for line in lines.values()) > 0
    assert {record["slo"] for record in records.values()} == {"strict", "tight"}
