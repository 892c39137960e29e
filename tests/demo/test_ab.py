"""The demo as an experiment: one URL, requests that Legato splits, a comparison that adds up."""

from __future__ import annotations

import asyncio
import io
import re
from collections import Counter
from dataclasses import replace

import typer
from rich.console import Console
from typer.testing import CliRunner

from deploy.demo import ab, command
from deploy.demo.load import Progress
from deploy.demo.scenario import EXPERIMENT, simulated
from deploy.demo.workload import Request

REQUESTS = tuple(Request(number, number * 30_000_000, 40 + number, 6) for number in range(24))


def test_a_small_run_is_split_counted_and_compared() -> None:
    scenario = replace(simulated(0, 5, experiment=True), requests=REQUESTS)
    assert len({arm.model for arm in scenario.arms}) == 1, "nothing in a request says who shall serve it"
    out = io.StringIO()
    status = asyncio.run(ab.run(scenario, Console(file=out, width=100), redraw=False))
    shown = out.getvalue()
    assert status == 0, shown
    assert re.search(rf"{EXPERIMENT}: prefill-first against chunked", shown)
    (row,) = (line for line in shown.splitlines() if line.startswith("assigned"))
    assert sum(map(int, re.findall(r"\d+", row))) == len(REQUESTS)
    assert "undecided on good requests" in shown, "24 requests are no evidence"
    assert "run it again, or longer (--seconds)" in " ".join(shown.split())


def view(**counts: int) -> ab.Json:
    arm = {"assigned": 5, "recorded": 5}
    return {"control": arm, "candidate": arm | counts}


def test_what_does_not_add_up_is_said() -> None:
    sent = Progress(sent=10, done=10)
    assert ab.accounts(view(), sent) == []
    assert ab.accounts(view(recorded=4), sent) == ["10 requests were sent, Legato counted 9 as recorded"]
    assert ab.accounts(view(assigned=6), sent) == ["10 requests were sent, Legato counted 11 as assigned"]
    failed = Progress(sent=10, done=10, failures=Counter({"status 502, whole": 2}))
    assert ab.accounts(view(recorded=4), failed) == ["2 of 10 requests failed: status 502, whole"]


def test_flags_that_do_not_go_together_are_refused() -> None:
    app = typer.Typer()
    command.register(app)
    for flags, named in ((["--ab", "--sweep"], "leave --ab out"), (["--ab", "--picture", "x"], "--picture")):
        result = CliRunner().invoke(app, flags)
        assert result.exit_code == 2
        assert named in re.sub(r"[\s│]+", " ", result.output)
