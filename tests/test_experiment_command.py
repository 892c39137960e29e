"""``legato experiment``: what it asks for, what it shows, and how it refuses."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import msgspec
import pytest
import typer
from typer.testing import CliRunner, Result

from proxy.commands.experiment import METRICS, register
from proxy.commands.told import experiment_lines, split_lines
from proxy.control.api_experiments import ExperimentList, experiments_router
from proxy.control.core import Controller
from proxy.control.experiments.views import GuardrailView, TestView
from proxy.settings.experiment import MetricName
from tests.control.asked import listening
from tests.control.experiments.tables import Host, table
from tests.control.pictured import Written, picture
from tests.helpers.procs import free_port

SPLITS = {"stable+canary": {"stable": 90, "canary": 10}, "other": {"a": 1, "b": 1}}

app = typer.Typer()
register(app)


@app.command()
def other() -> None:
    """A second command, so that ``experiment`` is one by name, as in ``legato``."""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["experiment", *arguments], env={"COLUMNS": "120", "TERM": "dumb"})


@dataclass
class Scene:
    """A Legato with two splits and an experiment."""

    experiments: Written = field(default_factory=lambda: Written(picture()))
    host: Host = field(default_factory=lambda: Host(table(SPLITS)))

    @contextmanager
    def served(self, token: str | None = None, write_token: str | None = None) -> Iterator[str]:
        control = Controller(
            table(SPLITS), instance="here", version="1", unix_ns=self.host.clock, monotonic_ns=self.host.clock
        )
        with listening(
            control,
            lambda reads, changes: [experiments_router(self.experiments, self.host.weights, reads, changes)],
            token=token,
            write_token=write_token,
        ) as url:
            yield url


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def url(scene: Scene) -> Iterator[str]:
    with scene.served() as url:
        yield url


START = ("start", "try-2", "--control", "stable", "--candidate", "canary")


# ---------------------------------------------------------------- start and stop


def test_an_experiment_begins_and_ends(scene: Scene, url: str) -> None:
    told = run(*START, "--author", "ann", "--admin", url)
    assert told.exit_code == 0, told.output
    assert told.output.splitlines() == [
        "started try-2 in split stable+canary",
        "  read it with: legato compare try-2 --watch",
    ]
    told = run("stop", "try-2", "--author", "bob", "--reason", "enough", "--admin", url)
    assert told.exit_code == 0, told.output
    assert told.output.startswith("stopped try-2: canary is better")
    assert scene.experiments.said == [("start", "try-2", "ann"), ("stop", "try-2", "bob", "enough")]


def test_terms_are_given_with_units(scene: Scene, url: str) -> None:
    terms = (
        "--split",
        "ab",
        "--metric",
        "ttft",
        "--margin",
        "0.5%",
        "--requests",
        "500",
        "--alpha",
        "1%",
        "--abort",
    )
    assert run(*START, *terms, "--admin", url).exit_code == 0
    (spec,) = [each for each in scene.experiments.specs if each.name == "try-2"]
    assert (spec.split, spec.metric, spec.margin, spec.requests, spec.alpha, spec.abort) == (
        "ab",
        "ttft",
        0.005,
        500,
        0.01,
        True,
    )


def test_without_terms_they_are_the_configurations_defaults(scene: Scene, url: str) -> None:
    assert run(*START, "--admin", url).exit_code == 0
    (spec,) = scene.experiments.specs
    assert (spec.split, spec.metric, spec.margin, spec.requests, spec.alpha, spec.abort) == (
        None,
        "good",
        None,
        1000,
        0.05,
        False,
    )


def test_who_asks_is_the_login_name_unless_it_is_said(scene: Scene, url: str) -> None:
    assert run(*START, "--admin", url).exit_code == 0
    assert scene.experiments.said == [("start", "try-2", pwd.getpwuid(os.getuid()).pw_name)]


def test_a_user_without_a_name_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.commands.experiment.os.getuid", lambda: 2**31 - 7)
    told = run(*START)
    assert told.exit_code == 2
    assert "say who asks" in told.output


# ---------------------------------------------------------------- weights


def test_weights_are_put_in_force_and_taken_back(scene: Scene, url: str) -> None:
    given = ("weights", "stable+canary", "stable=50", "canary=50", "--author", "ann", "--reason", "ramp")
    told = run(*given, "--admin", url)
    assert told.exit_code == 0, told.output
    assert told.output.splitlines() == [
        "split stable+canary: canary 50 (50%), stable 50 (50%)",
        "  by ann since 2027-01-15 08:00:00 UTC: ramp",
        "  the file says canary 10 (10%), stable 90 (90%)",
    ]
    assert scene.host.arms("stable+canary") == {"stable": 50, "canary": 50}
    told = run("weights", "stable+canary", "--clear", "--reason", "back", "--admin", url)
    assert told.output.splitlines() == ["split stable+canary: canary 10 (10%), stable 90 (90%)"]
    assert scene.host.arms("stable+canary") == {"stable": 90, "canary": 10}


def test_weights_are_shown(url: str) -> None:
    every = ["split other: a 1 (50%), b 1 (50%)", "split stable+canary: canary 10 (10%), stable 90 (90%)"]
    assert run("weights", "--admin", url).output.splitlines() == every
    assert run("weights", "other", "--admin", url).output.splitlines() == every[:1]
    told = run("weights", "zzz", "--admin", url)
    assert told.exit_code == 1
    assert "there is no split 'zzz'\n  known are: other, stable+canary" in told.stderr


def test_what_health_and_other_hosts_do_to_weights_is_told() -> None:
    word = {"weights": {"a": 1, "b": 3}, "author": "ann", "reason": "x", "at": "2026-11-20T03:14:07.412Z"}
    view = {
        "name": "ab", "weights": {"a": 1, "b": 1}, "file_weights": {"a": 1, "b": 1}, "override": None,
        "ejected": {"a": 0.0, "b": 0.3}, "experiment": "try-2", "elsewhere": word,
    }  # fmt: skip
    assert list(split_lines(view)) == [
        "split ab (experiment try-2): a 1 (50%), b 1 (50%)",
        "  a is out",
        "  b is back to 30% of its weight",
        "  other hosts have a 1 (25%), b 3 (75%) by ann: another file",
    ]


# ---------------------------------------------------------------- status


def test_status_tells_of_experiments_and_splits(url: str) -> None:
    told = run("status", "--admin", url)
    assert told.exit_code == 0, told.output
    assert told.output.splitlines() == [
        "new-vllm: running, stable against canary",
        "  canary is better on good requests: +3.1 points (1.2 to 5.0), margin 0.5",
        "  good decides, margin 0.5%, planned for 1,000 requests an arm",
        "  since 2026-11-20 03:14:07 UTC by file",
        "  assigned: stable 4,212 (4,209 ended), canary 1,033 (1,030 ended)",
        "  weights: stable 80 (80%), canary 20 (20%)",
        "split other: a 1 (50%), b 1 (50%)",
        "split stable+canary: canary 10 (10%), stable 90 (90%)",
    ]
    assert run("status", "new-vllm", "--admin", url).output.splitlines() == told.output.splitlines()[:6]


def test_status_as_json_is_what_the_api_answers(url: str) -> None:
    every = msgspec.json.decode(run("status", "--json", "--admin", url).output, type=ExperimentList)
    assert [view.spec.name for view in every.experiments] == ["new-vllm"]
    assert '"state": "running"' in run("status", "new-vllm", "--json", "--admin", url).output


def test_status_shouts_where_it_must() -> None:
    view = picture(
        state="aborted",
        until="2026-11-20T04:00:00.000Z",
        ended_by="experiment new-vllm",
        ended_for="worse",
        guardrail=GuardrailView("worse", "surely worse on errors", "2026-11-20T04:00:00.000Z"),
        integrity=[TestView("assignment", True, 1e-9, "not assigned as the weights say")],
    )
    lines = list(experiment_lines(msgspec.to_builtins(view)))
    assert "  until 2026-11-20 04:00:00 UTC by experiment new-vllm: worse" in lines
    assert "  ! guardrail: surely worse on errors" in lines
    assert "  ! integrity: not assigned as the weights say" in lines


def test_no_experiment_says_how_to_start_one(scene: Scene) -> None:
    scene.experiments.held = []
    with scene.served() as url:
        assert "start one: legato experiment start NAME" in run("status", "--admin", url).output


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("start", "new-vllm", "--control", "a", "--candidate", "b"), ("answered 409", "used once")),
        (
            ("stop", "nobody", "--reason", "x"),
            ("answered 404", "'nobody' is no experiment", "`legato experiment status` lists them"),
        ),
        (("weights", "zz", "a=1", "--reason", "x"), ("answered 404", "there are other")),
        (("weights", "other", "a=1", "--reason", "x"), ("answered 422", "no weight for b", "{a: 1, b: 1}")),
        (("weights", "other", "a=1", "c=1", "--reason", "x"), ("'c' is none of its backends",)),
        (("status", "new-vlm"), ("answered 404", "did you mean 'new-vllm'?")),
    ],
)
def test_what_the_api_refuses_is_said_with_its_mend(
    url: str, arguments: tuple[str, ...], said: tuple[str, ...]
) -> None:
    told = run(*arguments, "--admin", url)
    assert told.exit_code == 1, told.output
    for words in said:
        assert words in told.stderr
    assert told.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [START, ("stop", "new-vllm", "--reason", "x"), ("weights", "other", "a=1", "b=2", "--reason", "x")],
    ids=lambda arguments: arguments[0],
)
def test_changes_need_their_token(scene: Scene, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    for name in ("reads", "writes"):
        (tmp_path / name).write_text(f"{name}\n")
    with scene.served(token="reads", write_token="writes") as url:
        refused = run(*arguments, "--admin", url, "--token-file", str(tmp_path / "reads"))
        assert refused.exit_code == 1
        assert "answered 401" in refused.stderr
        assert "write_token_file" in refused.stderr
        assert (scene.experiments.said, scene.host.said("other")) == ([], None)
        assert run("status", "--admin", url, "--token-file", str(tmp_path / "reads")).exit_code == 0
        assert run(*arguments, "--admin", url, "--token-file", str(tmp_path / "writes")).exit_code == 0


def test_nobody_listens() -> None:
    for arguments in (START, ("status",), ("weights",)):
        told = run(*arguments, "--admin", f"127.0.0.1:{free_port()}")
        assert told.exit_code == 1
        assert "cannot be reached" in told.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("start", "x", "--control", "a"), "--candidate"),
        (("start", "a b", "--control", "a", "--candidate", "b"), "'a b': a name has letters"),
        (("start", "x", "--control", "", "--candidate", "b"), "'': a name has letters"),
        ((*START, "--metric", "fluidty"), "'fluidty' is no metric: did you mean fluidity?"),
        ((*START, "--metric", "bad"), "there are good, fluidity, deadline_misses, ttft"),
        ((*START, "--author", ""), "it is empty"),
        ((*START, "--split", " "), "it is empty"),
        (("stop", "x", "--reason", ""), "it is empty: write a few words"),
        (("stop", "x", "--reason", "x" * 301), "301 characters: at most 300"),
        (("weights", "other", "--clear", "--reason", " "), "it is empty"),
        ((*START, "--margin", "half"), "is not a ratio"),
        ((*START, "--alpha", "5"), "write 5% if percent is meant"),
        ((*START, "--requests", "3"), "--requests"),
        (("stop", "x"), "--reason"),
        (("weights", "other", "a"), "write a backend and its weight"),
        (("weights", "other", "a=-1"), "write a backend and its weight"),
        (("weights", "other", "a=1.5"), "write a backend and its weight"),
        (("weights", "other", "a=1", "a=2", "--reason", "x"), "named twice"),
        (("weights", "other", "a=1"), "say why"),
        (("weights", "other", "--clear"), "say why"),
        (("weights", "other", "a=1", "--clear", "--reason", "x"), "give weights, or --clear"),
        (("weights", "--clear", "--reason", "x"), "name the split"),
        (("status", "--admin", "ftp://x"), "not the URL of an admin listener"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], said: str) -> None:
    told = run(*arguments)
    assert told.exit_code == 2
    assert said in " ".join(told.output.replace("│", " ").split())


def test_metrics_are_those_of_the_configuration() -> None:
    assert get_args(MetricName) == METRICS


@pytest.mark.parametrize(
    ("command", "said"),
    [("start", "token for changes"), ("weights", "token for reading"), ("status", "the admin token,")],
)
def test_help_names_the_token_that_is_needed(command: str, said: str) -> None:
    told = CliRunner().invoke(app, ["experiment", command, "--help"], env={"COLUMNS": "160"}).output
    assert said in told


def test_another_version_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.commands.experiment.Admin.get", lambda *_: {})
    monkeypatch.setattr("proxy.commands.experiment.Admin.send", lambda *_: [])
    for arguments in (START, ("status",), ("status", "x"), ("weights",), ("stop", "x", "--reason", "y")):
        told = run(*arguments)
        assert (told.exit_code, "of this version" in told.stderr) == (1, True), arguments


def test_help_teaches() -> None:
    told = run("--help").output
    for words in ("legato experiment start new-vllm", "--reason ramp", "Exit status: 0"):
        assert words in told
