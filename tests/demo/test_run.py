"""A whole demo run with real processes and a tiny workload; and runs that fail."""

from __future__ import annotations

import asyncio
import io
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from deploy.demo import command, real
from deploy.demo.processes import DemoError, Family
from deploy.demo.run import run
from deploy.demo.scenario import Scenario, simulated
from deploy.demo.workload import Lengths, Request, lane

REQUESTS = tuple(Request(number, number * 50_000_000, 40 + number, 6) for number in range(4))


def small(**changes: object) -> Scenario:
    """The demo's scenario with four short requests."""
    return replace(simulated(0, 5), requests=REQUESTS, **changes)  # type: ignore[arg-type]


def play(scenario: Scenario) -> tuple[int, str]:
    """Run it; exit status and what was printed."""
    out = io.StringIO()
    status = asyncio.run(run(scenario, Console(file=out, width=100), redraw=False))
    return status, out.getvalue()


def test_a_small_run_through_real_processes_adds_up() -> None:
    status, shown = play(small())
    assert status == 0, shown
    assert "simulated engines" in shown
    requests = next(line for line in shown.splitlines() if line.startswith("│ requests  "))
    assert re.findall(r"\d+", requests) == ["4", "4"]
    tokens = next(line for line in shown.splitlines() if "output tokens" in line)
    assert re.findall(r"\d+", tokens) == ["24", "24"]
    (port,) = re.findall(r"Legato: http://127.0.0.1:(\d+)", shown)
    with pytest.raises(OSError, match=r"refused|Connect"):
        asyncio.run(asyncio.wait_for(asyncio.open_connection("127.0.0.1", int(port)), 5))


def test_an_engine_that_dies_at_once_ends_the_demo_with_its_words() -> None:
    scenario = small()
    dies = (sys.executable, "-c", "print('no such model'); raise SystemExit(3)")
    broken = replace(scenario.arms[1], command=dies)
    with pytest.raises(DemoError, match=r"chunked ended with status 3:\nno such model"):
        play(replace(scenario, arms=(scenario.arms[0], broken)))


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    async def start() -> None:
        async with Family(tmp_path) as family:
            await family.start("engine", ["/no/such/program"])

    with pytest.raises(DemoError, match=r"engine cannot start: /no/such/program"):
        asyncio.run(start())


def test_one_that_is_never_ready_is_given_up_and_ended(tmp_path: Path) -> None:
    pids: list[int] = []

    async def start() -> None:
        async with Family(tmp_path) as family:
            child = await family.start("engine", [sys.executable, "-c", "import time; time.sleep(60)"])
            pids.append(child.process.pid)
            await child.ready("http://127.0.0.1:9/health", within_s=0.2)

    with pytest.raises(DemoError, match=r"engine is not ready after 0.2 s \(status None, cannot connect"):
        asyncio.run(start())
    assert not os.path.exists(f"/proc/{pids[0]}")


def test_lanes_wait_for_their_answers_and_are_the_same_for_the_same_seed() -> None:
    lengths = Lengths(40, 0.2, 10, 80)
    made = [lane(seed, 0, lengths, lengths, count=5, pause_s=0.1) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_real_without_its_packages_says_the_command_and_exits_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "missing", lambda: ["gguf"])
    app = typer.Typer()
    command.register(app)
    result = CliRunner().invoke(app, ["--real"])
    assert result.exit_code == 2
    assert "pip install 'legato[real]'" in result.output
