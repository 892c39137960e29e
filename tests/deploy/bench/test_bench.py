"""The bench's arithmetic, and its programs against each other: what it reports must be what happened."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.bench import __main__ as bench
from deploy.bench import soak
from deploy.bench.figures import FIGURES, Figure, Results, Row
from deploy.bench.loads import LOADS, chosen
from deploy.bench.processes import Cores, free_port, started
from deploy.bench.programs import BenchError, Programs, build
from deploy.bench.rounds import Bench, Running, measure
from deploy.bench.targets import DIRECT
from tests.helpers.procs import eventually

DELAY = Figure("paced", "p50_us", "delay", "us", added=True)
COST = Figure("paced", "cpu_us_per_unit", "CPU", "us")


def row(number: int, target: str, p50_us: float, cpu: float | None, load: str = "paced") -> Row:
    return {
        "round": number,
        "target": target,
        "load": load,
        "p50_us": p50_us,
        "cpu_us_per_unit": cpu,
        "lost": 0,
    }


ROWS = [
    row(0, "direct", 20, None),
    row(0, "legato", 50, 10),
    row(0, "legato again", 56, 11),
    row(0, "naive", 120, 40),
    row(1, "direct", 30, None),
    row(1, "legato", 70, 12),
    row(1, "legato again", 70, 12),
    row(1, "naive", 130, 60),
]


def test_delays_are_added_over_the_direct_way_of_the_same_round() -> None:
    results = Results(ROWS)
    assert results.values(DELAY, "legato") == {0: 30.0, 1: 40.0}
    assert results.median(DELAY, "legato") == 35.0
    assert results.values(DELAY, "direct") == {0: 20.0, 1: 30.0}


def test_a_scraped_load_is_compared_with_the_unscraped_direct_way() -> None:
    results = Results([*ROWS, row(0, "legato", 55, 10, "paced scraped")])
    scraped = Figure("paced scraped", "p50_us", "delay", "us", added=True)
    assert results.values(scraped, "legato") == {0: 35.0}


def test_ratios_are_taken_within_a_round_first() -> None:
    ratio = Results(ROWS).ratio(COST, "legato", "naive")
    assert ratio is not None
    assert (ratio.low, ratio.high) == (12 / 60, 10 / 40)
    assert ratio.median == pytest.approx((0.2 + 0.25) / 2)


def test_the_summary_names_every_target_and_the_control() -> None:
    (entry,) = [entry for entry in Results(ROWS).summary() if entry["figure"] == "delay added per chunk, p50"]
    assert entry["median"] == {"direct": 25.0, "legato": 35.0, "legato again": 38.0, "naive": 100.0}
    assert set(entry["ratio_median_low_high"]) == {"legato / naive", "legato again / legato"}


def test_a_missing_round_is_no_zero() -> None:
    results = Results(ROWS[:-1])
    assert results.values(COST, "naive") == {0: 40.0}
    assert results.ratio(COST, "legato", "nginx") is None


def test_faults_are_found() -> None:
    assert Results(ROWS).faults() == []
    broken = {**ROWS[0], "lost": 3}
    assert Results([broken]).faults() == [broken]


def test_every_figure_belongs_to_a_load() -> None:
    assert {figure.load for figure in FIGURES} == {load.name for load in LOADS}


def test_an_unknown_load_is_named_with_what_there_is() -> None:
    assert [load.name for load in chosen("paced,memory", quick=True)] == ["paced", "memory"]
    every = [load.name for load in chosen(None, quick=False)]
    assert [load.name for load in chosen(",".join(every), quick=False)] == every  # each can be asked for
    with pytest.raises(ValueError, match=r"'nope'.*saturated"):
        chosen("nope", quick=False)


@pytest.mark.parametrize("parse", [bench.parse, soak.parse])
def test_a_place_that_cannot_be_written_is_told_before_the_run(
    parse: Callable[[list[str]], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--out", str(tmp_path / "nodir" / "results.json")])
    assert ended.value.code == 2
    assert "nodir is not there; make it" in capsys.readouterr().err
    parse(["--out", str(tmp_path / "results.json")])
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BenchError, match="apt-get install gcc"):
        build(tmp_path)


# ---------------------------------------------------------------- the C programs

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return build(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def upstream(programs: Programs, tmp_path: Path) -> Iterator[int]:
    port = free_port()
    with started([str(programs.upstream), str(port)], port, None, tmp_path / "log"):
        yield port


def load(programs: Programs, port: int, arguments: str) -> Row:
    command = [str(programs.load), str(port), *arguments.split()]
    result: Row = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout)
    return result


@needs_gcc
def test_paced_streams_arrive_whole_and_in_their_time(programs: Programs, upstream: int) -> None:
    paced = "stream --connections 5 --events 20 --interval-us 5000 --delay-us 10000 --spread-ms 10"
    result = load(programs, upstream, paced)
    assert (result["events"], result["streams"]) == (100, 5)
    assert [result[key] for key in ("lost", "out_of_order", "bad_status", "broken", "unfinished")] == [0] * 5
    assert result["elapsed_s"] >= 0.105
    assert result["first_p50_us"] >= 10_000


@needs_gcc
def test_lockstep_streams_arrive_whole(programs: Programs, upstream: int) -> None:
    lockstep = f"stream --connections 8 --events 200 --delay-us 0 --spread-ms 0 --lockstep {upstream}"
    result = load(programs, upstream, lockstep)
    assert (result["events"], result["streams"], result["lost"]) == (1600, 8, 0)


@needs_gcc
def test_requests_with_large_bodies_are_answered(programs: Programs, upstream: int) -> None:
    result = load(programs, upstream, "requests --connections 2 --seconds 0.2 --body-bytes 1000000")
    assert result["requests"] > 2
    assert result["broken"] == 0


def accepted(port: int) -> int:
    """Connections to a local port that are established, as the kernel lists them."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(words[1].endswith(f":{port:04X}") and words[3] == "01" for words in lines)


@needs_gcc
def test_a_server_that_dies_is_seen_as_loss(programs: Programs, tmp_path: Path) -> None:
    port = free_port()
    with started([str(programs.upstream), str(port)], port, None, tmp_path / "log") as server:
        eventually(lambda: accepted(port) == 0, 10, "the end of the connection that tried the port")
        endless = "stream --connections 2 --events 100000 --interval-us 1000 --delay-us 0 --spread-ms 0"
        client = subprocess.Popen([str(programs.load), str(port), *endless.split()], stdout=subprocess.PIPE)
        eventually(lambda: accepted(port) == 2, 10, "two connections at the upstream")
        server.kill()
        out, _ = client.communicate(timeout=20)
    result = json.loads(out)
    assert result["broken"] == 2
    assert result["lost"] > 0


@needs_gcc
def test_a_measurement_carries_the_clients_figures(programs: Programs, upstream: int, tmp_path: Path) -> None:
    bench = Bench(programs, Cores(None, None), tmp_path)
    direct = Running(DIRECT, upstream, free_port(), upstream, None)
    (requests,) = chosen("requests", quick=False)
    quick = type(requests)("requests", "", "requests", "--connections 2 --seconds 0.2")
    result = measure(bench, direct, quick)
    assert result["requests"] > 0
    assert result["cpu_us_per_unit"] is None  # there is no proxy
