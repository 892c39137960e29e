"""``legato compare``: the verdict first, 80 columns are enough, watched, in scripts, refused with a mend."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from proxy.commands.compare import drawn, register
from proxy.commands.compared import compact, difference, experiment_page, look_page, shares, value
from proxy.control.api_compare import compare_router
from proxy.control.api_experiments import experiments_router
from proxy.control.core import Controller
from proxy.control.experiments.views import (
    EjectionView,
    ExperimentView,
    GuardrailView,
    HourView,
    TestView,
)
from proxy.link import FactsBatch
from tests.control.asked import listening
from tests.control.experiments.tables import Host, table
from tests.control.facts import facts
from tests.control.pictured import METRICS, Written, arm, picture
from tests.control.test_api_compare import compared
from tests.control.test_windows import Clock, ended
from tests.helpers.procs import eventually, free_port

COMMAND = "proxy.commands.compare"

app = typer.Typer()
register(app)


@app.command()
def other() -> None:
    """A second command, so that ``compare`` is one by name, as in ``legato``."""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", *arguments], env={"COLUMNS": "120", "TERM": "dumb"})


@cache
def two_backends() -> Controller:
    """Nobody adds to it."""
    return compared(Clock())


@dataclass
class Scene:
    """A Legato with these experiments, and requests of two backends."""

    experiments: Written
    control: Controller = field(default_factory=two_backends)
    host: Host = field(default_factory=lambda: Host(table({"ab": {"a": 1, "b": 1}})))

    @contextmanager
    def served(self, token: str | None = None) -> Iterator[str]:
        with listening(
            self.control,
            lambda reads, changes: [
                experiments_router(self.experiments, self.host.weights, reads, changes),
                compare_router(self.control, reads),
            ],
            token=token,
        ) as url:
            yield url


@pytest.fixture
def scene() -> Scene:
    return Scene(
        Written(
            picture(
                "old", state="stopped", since="2026-11-19T03:14:07.412Z", ended_by="ann", ended_for="done"
            ),
            picture(),
        )
    )


@pytest.fixture
def url(scene: Scene) -> Iterator[str]:
    with scene.served() as url:
        yield url


# ---------------------------------------------------------------- an experiment


def test_the_verdict_is_read_first_then_what_it_rests_on(url: str) -> None:
    told = run("--admin", url)
    assert told.exit_code == 0, told.output
    lines = told.output.splitlines()
    assert lines[0].startswith("new-vllm: stable against canary, since 2026-11-20 03:14:07 UTC by file")
    assert lines[1] == "canary is better on good requests: +3.1 points (1.2 to 5.0), margin 0.5"
    rows = [" ".join(line.split()) for line in lines]
    assert "good requests 96.20% 99.30% +3.10 points (+1.20 to +5.00) + better" in rows
    assert "TTFT 420 ms 510 ms +90 ms (+60 to +120) - worse" in rows
    assert "TTFT, geometric mean 420 ms 428 ms +2.0% (-1.0 to +4.1) = equivalent" in rows
    assert "failed requests 0.10% 0.00% -0.10 points (-2.00 to +1.80) ? 400 more" in rows
    assert "fluidity - - - ? undecided" in rows
    assert "failed requests: the interval tells the two not apart yet" in rows
    assert "cached prompt tokens 25.0% 61.0%" in rows
    assert "weights now: stable 80 (80%), canary 20 (20%), 4,212 and 1,033 requests" in rows
    order = [lines.index(title) for title in ("Undecided", "How it is judged", "What may explain it")]
    assert order == sorted(order)


def test_the_metric_that_decides_comes_first() -> None:
    view = picture(spec=msgspec.structs.replace(picture().spec, metric="ttft"))
    page = experiment_page(msgspec.to_builtins(view))
    assert [row.title for row in page.rows][:2] == ["TTFT", "good requests"]
    assert page.sections[1][1][0].startswith("TTFT decides; a difference within 21.0 ms is none")


def test_what_must_not_be_overlooked_stands_under_the_verdict() -> None:
    view = picture(
        integrity=[
            TestView("assignment", False, 0.6, "fine"),
            TestView("recorded:candidate", True, 1e-9, "3% of canary's requests were never recorded"),
        ],
        guardrail=GuardrailView("worse", "surely worse on errors", "2026-11-20T04:00:00.000Z"),
        metrics=[
            msgspec.structs.replace(METRICS[1], beyond_margin=True),
            *METRICS[:1],
        ],
        hour=HourView(14, 0.3, 0.05),
        ejections=[EjectionView("canary", "2026-11-20T05:00:00.000Z", None)],
        candidate=arm("canary", 900, failed_over=3, lost=2, overdue=136),
        control=arm("stable", 900, overdue=9),
        hosts=3,
        notes=["a note"],
    )  # fmt: skip
    text = painted(view)
    lines = text.splitlines()
    assert lines[2] == "! integrity: 3% of canary's requests were never recorded"
    assert lines[3].startswith("! guardrail: surely worse on errors (since 2026-11-20 04:00:00 UTC)")
    assert "integrity: 2 tests" not in text
    for said in (
        "! worse",
        "the hour from 14:00 UTC has 30.0% of the requests of stable, 5.0% of those of canary",
        "canary was out, or on its way back, from 2026-11-20 05:00:00 UTC to now",
        "canary: 3 requests answered by another backend",
        "canary: 2 requests lost with a killed worker",
        "canary: 136 requests are overdue and have not ended: in no metric yet",
        "counted by 3 control processes",
        "a note",
    ):
        assert said in " ".join(text.split()), said
    assert "stable: 9 requests" not in text, "so few are overdue at any moment"


def painted(view: ExperimentView, width: int = 120) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(drawn(experiment_page(msgspec.to_builtins(view))))
    return out.getvalue()


LONG = msgspec.structs.replace(
    METRICS[0], title="mean time per output token", effect=-0.28, low=-0.348, high=-0.213
)


@pytest.mark.parametrize("backend", ["canary", "a-rather-long-name-of-a-backend-7"])
def test_eighty_columns_are_enough(backend: str) -> None:
    view = picture(
        metrics=[*METRICS, LONG],
        candidate=arm(backend, 1033),
        spec=msgspec.structs.replace(picture().spec, candidate=backend),
    )
    text = painted(view, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for whole in (
        "-28.0 points (-34.8 to -21.3) + better",
        "+3.10 points (+1.20 to +5.00) + better",
        "? 400 more",
    ):
        assert whole in text


def test_colours_are_for_terminals(url: str) -> None:
    assert "\x1b" not in run("--admin", url).output
    out = io.StringIO()
    view = msgspec.to_builtins(picture())
    Console(file=out, width=80, force_terminal=True, color_system="standard").print(
        drawn(experiment_page(view))
    )
    assert re.search("\x1b\\[1;32mcanary is better", out.getvalue())


def test_text_from_elsewhere_cannot_move_the_cursor(scene: Scene) -> None:
    scene.experiments.held = [picture(headline="a\x1b[2Jb", by="\x9bx")]
    with scene.served() as url:
        told = run("--admin", url)
    assert "a?[2Jb" in told.output
    assert "\x1b" not in told.output
    assert "\x9b" not in told.output


def test_json_is_what_the_api_answers(url: str) -> None:
    told = json.loads(run("--admin", url, "--json").output)
    assert msgspec.convert(told, ExperimentView) == picture()


def test_by_its_name_and_the_latest_where_none_runs(scene: Scene) -> None:
    with scene.served() as url:
        assert run("old", "--admin", url).output.startswith("old: stable against canary, stopped")
        scene.experiments.stop("new-vllm", "ann", "enough")
        told = run("--admin", url).output
    assert told.startswith("new-vllm: stable against canary, stopped")
    assert "by ann: enough" in " ".join(told.split())


def test_several_that_run_are_listed(scene: Scene) -> None:
    scene.experiments.held.append(picture("second", headline="undecided on good requests"))
    with scene.served() as url:
        told = run("--admin", url)
        listed = json.loads(run("--admin", url, "--json").output)
    assert told.output.splitlines() == [
        "several experiments run; name one:",
        "  new-vllm: canary is better on good requests: +3.1 points (1.2 to 5.0), margin 0.5",
        "  second: undecided on good requests",
    ]
    assert len(listed["experiments"]) == 3


# ---------------------------------------------------------------- two backends, one look


def test_a_look_is_labelled_as_one(url: str) -> None:
    told = run("--a", "stable", "--b", "canary", "--window", "5m", "--admin", url)
    assert told.exit_code == 0, told.output
    lines = told.output.splitlines()
    assert lines[0] == "stable against canary, 2026-11-20 03:14:00 to 03:14:08 UTC, this host"
    assert lines[1].startswith(
        "one look, no experiment: canary against stable on good requests: better, +28.0"
    )
    rows = [" ".join(line.split()) for line in lines]
    assert "good requests 70.00% 98.00% +28.0 points (+21.3 to +34.8) + better" in rows
    assert any(row.startswith("TTFT p50 84.4 ms 63.2 ms -21.2 ms (") for row in rows)
    assert "not a randomised split" in " ".join(rows)
    assert "model qwen: 30% of stable's requests" in told.output


def test_a_look_at_one_model_and_as_json(url: str) -> None:
    arguments = ("--a", "stable", "--b", "canary", "--admin", url, "--model", "llama", "--slo", "default")
    assert "this host, model llama, slo default" in run(*arguments).output
    told = json.loads(run(*arguments, "--json").output)
    assert (told["kind"], told["model"], told["slo"]) == ("fixed_look", "llama", "default")


def test_a_look_at_a_backend_that_only_rejected_has_nothing_to_tell() -> None:
    clock = Clock()
    legato = compared(clock)
    legato.feed(FactsBatch([ended(clock, facts(status=404, backend="idle")) for _ in range(3)]))
    with Scene(Written(), legato).served() as url:
        told = run("--a", "stable", "--b", "idle", "--admin", url)
    assert told.exit_code == 0, told.output
    assert "idle against stable on good requests: an arm has no request that has it" in told.output
    rows = [" ".join(line.split()) for line in told.output.splitlines()]
    assert "good requests 70.00% - - ? undecided" in rows
    assert "errors 0.00% - - ? undecided" in rows


def test_a_look_at_one_host_where_all_were_meant_says_so(url: str) -> None:
    told = json.loads(run("--a", "stable", "--b", "canary", "--admin", url, "--json").output)
    page = look_page(told | {"scope": "host", "degraded": {"reason": "timeout", "since": "x"}})
    assert page.alarms == ["this host alone: all hosts cannot be asked (timeout)"]


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("unit", "metric", "effect", "low", "high", "shown"),
    [
        ("ratio", "good", 0.0312, 0.012, 0.05, "+3.12 points (+1.20 to +5.00)"),
        ("ratio", "good", 0.28, 0.213, 0.348, "+28.0 points (+21.3 to +34.8)"),
        ("ratio", "fluidity", -0.0012, -0.003, 0.0006, "-0.0012 (-0.0030 to +0.0006)"),
        ("seconds", "ttft", 0.09, 0.06, 0.12, "+90 ms (+60 to +120)"),
        ("seconds", "ttft", -0.0041, -0.006, -0.002, "-4.1 ms (-6.0 to -2.0)"),
        ("seconds", "ttft", 1.5, 0.2, 2.8, "+1.50 s (+0.20 to +2.80)"),
        ("seconds", "ttft", -0.06, None, None, "-60.0 ms"),
        ("seconds", "ttft", -0.06, None, -0.01, "-60.0 ms (? to -10.0)"),
        ("log_seconds", "log_ttft", 0.0953, 0.0, 0.2, "+10.0% (+0.0 to +22.1)"),
        ("ratio", "good", None, None, None, "-"),
    ],
)
def test_differences_are_in_units_that_people_think_in(
    unit: str, metric: str, effect: float | None, low: float | None, high: float | None, shown: str
) -> None:
    assert difference({"unit": unit, "metric": metric, "effect": effect, "low": low, "high": high}) == shown


def test_other_figures() -> None:
    assert [compact(count) for count in (40, 9_999, 12_345, 1_234_567)] == ["40", "9,999", "12k", "1.2M"]
    assert shares({"a": 1, "b": 2}) == "a 1 (33.3%), b 2 (66.7%)"
    assert [value("ratio", 0.9731), value("ratio", 0.97312, "fluidity")] == ["97.31%", "0.9731"]
    assert [value("seconds", 1.234), value("log_seconds", 0.0), value("seconds", None)] == [
        "1.23 s",
        "1 s",
        "-",
    ]


# ---------------------------------------------------------------- scripts

WORSE: tuple[tuple[dict[str, Any], int], ...] = (
    ({}, 0),
    ({"verdict": "undecided"}, 0),
    ({"verdict": "equivalent"}, 0),
    ({"verdict": "worse"}, 3),
    ({"guardrail": GuardrailView("worse", "on errors", "2026-11-20T04:00:00.000Z")}, 3),
    ({"state": "aborted", "ended_by": "x", "ended_for": "y"}, 3),
)


@pytest.mark.parametrize(("change", "status"), WORSE)
def test_a_script_hears_that_the_candidate_is_worse(
    scene: Scene, change: dict[str, Any], status: int
) -> None:
    scene.experiments.held = [picture(**change)]
    with scene.served() as url:
        assert run("new-vllm", "--fail-on", "worse", "--admin", url).exit_code == status
        assert run("new-vllm", "--fail-on", "worse", "--admin", url, "--json").exit_code == status
        assert run("new-vllm", "--admin", url).exit_code == 0


# ---------------------------------------------------------------- watching


class Sleeps:
    """In place of ``time.sleep``: something happens meanwhile; after the last, Ctrl-C."""

    def __init__(self, *events: Callable[[], object]) -> None:
        self.events = list(events)

    def __call__(self, seconds: float) -> None:
        assert seconds == 2.0
        if not self.events:
            raise KeyboardInterrupt
        self.events.pop(0)()


def test_in_a_pipe_each_change_is_a_line(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def becomes(*views: ExperimentView) -> Callable[[], None]:
        return lambda: setattr(scene.experiments, "held", list(views))

    worse = picture(verdict="worse", headline="canary is worse")
    sleeps = Sleeps(
        lambda: None,
        becomes(picture(headline="undecided")),
        becomes(),
        becomes(),
        becomes(worse),
        lambda: None,
    )
    monkeypatch.setattr(f"{COMMAND}.sleep", sleeps)
    with scene.served() as url:
        told = run("new-vllm", "--watch", "--admin", url)
    assert told.exit_code == 0, told.output
    lines = told.output.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in lines)
    assert [line.partition(" ")[2] for line in lines] == [
        "canary is better on good requests: +3.1 points (1.2 to 5.0), margin 0.5",
        "undecided",
        f"no answer: {url} answered 404: 'new-vllm' is no experiment of this Legato",
        "canary is worse",
    ]


def test_a_watch_ends_where_a_script_is_to_hear_of_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Sleeps(lambda: setattr(scene.experiments, "held", [picture(verdict="worse", headline="worse")]))
    monkeypatch.setattr(f"{COMMAND}.sleep", turns)
    with scene.served() as url:
        told = run("new-vllm", "--watch", "--fail-on", "worse", "--admin", url)
    assert told.exit_code == 3
    assert told.output.splitlines()[-1].endswith("Z worse")


def legato(url: str, out: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "proxy.cli", "compare", "--watch", "--admin", url],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "50"},
    )


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_ctrl_c_ends_a_watch_well(url: str, terminal: bool) -> None:
    reads, writes = pty.openpty() if terminal else os.pipe()
    os.set_blocking(reads, False)
    process = legato(url, writes)
    os.close(writes)
    seen = bytearray()

    def shown() -> bool:
        try:
            seen.extend(os.read(reads, 65_536))
        except OSError:  # nothing yet
            return False
        return b"canary is better" in seen

    try:
        eventually(shown)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        os.close(reads)
    assert (process.returncode, errors) == (0, b"")
    assert (b"\x1b[" in seen) is terminal


# ---------------------------------------------------------------- what goes wrong


def test_nobody_listens() -> None:
    told = run("--admin", f"127.0.0.1:{free_port()}")
    assert told.exit_code == 1
    assert "cannot be reached" in told.stderr
    assert "admin.listen" in told.stderr


def test_no_experiment_says_how_to_start_one(scene: Scene) -> None:
    scene.experiments.held = []
    with scene.served() as url:
        told = run("--admin", url)
    assert told.exit_code == 1
    assert "there is no experiment" in told.stderr
    assert "legato experiment start NAME" in told.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("new-vlm",), ("answered 404", "did you mean 'new-vllm'?")),
        (("--a", "stabel", "--b", "canary"), ("a: 'stabel' is no backend", "did you mean 'stable'?")),
        (("--a", "stable", "--b", "idle"), ("no request of idle ended in the last 1h", "longer window")),
        (("--a", "stable", "--b", "canary", "--window", "3d"), ("window: '3d' is too long",)),
        (("--watch", "--a", "stable", "--b", "stable"), ("name two backends",)),
    ],
)
def test_what_the_api_refuses_is_said_with_its_mend(
    url: str, arguments: tuple[str, ...], said: tuple[str, ...]
) -> None:
    told = run(*arguments, "--admin", url)
    assert told.exit_code == 1
    for words in said:
        assert words in told.stderr
    assert told.stdout == ""


def test_a_token_is_asked_for(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    with scene.served("s3cret") as url:
        refused = run("--admin", url)
        assert (refused.exit_code, "--token-file FILE" in refused.stderr) == (1, True)
        told = run("--admin", url, "--token-file", str(tmp_path / "token"))
    assert told.exit_code == 0
    assert "s3cret" not in told.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--a", "stable"), "name two backends"),
        (("--b", "stable"), "name two backends"),
        (("new-vllm", "--a", "x", "--b", "y"), "an experiment, or two backends"),
        (("--window", "1h"), "goes with --a and --b"),
        (("--model", "llama"), "goes with --a and --b"),
        (("--a", "x", "--b", "y", "--window", "5"), "a unit is needed"),
        (("--watch", "--json"), "one of --watch and --json"),
        (("--fail-on", "better"), "worse"),
        (("--admin", "ftp://x"), "not the URL of an admin listener"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], said: str) -> None:
    told = run(*arguments)
    assert told.exit_code == 2
    assert said in " ".join(told.output.replace("│", " ").split())


@pytest.mark.parametrize("body", [{}, {"experiments": [{"state": "running"}]}, {"experiments": None}, []])
def test_another_version_is_told_apart(monkeypatch: pytest.MonkeyPatch, body: Any) -> None:
    monkeypatch.setattr(f"{COMMAND}.Admin.get", lambda *_: body)
    for arguments in ((), ("new-vllm",), ("--a", "x", "--b", "y")):
        told = run(*arguments)
        assert told.exit_code == 1, arguments
        assert "is no admin listener of this version" in told.stderr


def test_help_teaches() -> None:
    told = run("--help").output
    for words in ("legato compare new-vllm --watch", "--fail-on", "Exit status: 0", "! worse by more"):
        assert words in told
