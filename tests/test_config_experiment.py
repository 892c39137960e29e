"""The file's experiment: what is read of it, and what is refused, with its place and the mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config import Boot, Config, ConfigErrors, load
from proxy.control.experiments.spec import ExperimentSpec, place, spec_of
from proxy.tables import build_table

BACKENDS = "backends: {stable: {url: http://a}, canary: {url: http://b}, other: {url: http://c}}\n"
ONE = "[{split: {stable: 90, canary: 10}}]"
CHAT = "{name: chat, match: {path: /v1/chat*}, split: {stable: 1, canary: 1}}"
REST = "{name: rest, split: {stable: 1, canary: 1, other: 1}}"
ODD = "{name: odd, match: {path: /odd}, split: {stable: 1, other: 1}}"
STICKY = "{match: {path: /a}, split: {stable: 1, canary: 1}, sticky: {client: address}}"
EVEN = "{split: {stable: 1, canary: 1}}"


def read(tmp_path: Path, experiment: str, routes: str = ONE) -> Config:
    path = tmp_path / "legato.yaml"
    path.write_text(BACKENDS + f"routes: {routes}\nexperiment: {experiment}\n")
    return load(Boot(file=str(path), flags={}), {})


def test_without_a_name_there_is_none(tmp_path: Path) -> None:
    assert spec_of(read(tmp_path, "{}").experiment) is None


def test_it_is_read_and_placed(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "{name: new-vllm, control: stable, candidate: canary, metric: ttft, margin: 2%, requests: 500, "
        "alpha: 1%, abort: on}",
    )
    spec = spec_of(config.experiment)
    assert spec == ExperimentSpec(
        "new-vllm", "stable", "canary", None, "ttft", margin=0.02, requests=500, alpha=0.01, abort=True
    )
    assert place(spec, build_table(config, 1)).name == "canary+stable"


PLACED = [
    ("", ONE, "canary+stable"),
    (", split: chat", f"[{CHAT}, {REST}]", "chat"),
    (", split: rest", f"[{CHAT}, {REST}]", "rest"),
    ("", f"[{ODD}, {CHAT}]", "chat"),
]


@pytest.mark.parametrize(("split", "routes", "name"), PLACED)
def test_the_split_is_found(tmp_path: Path, split: str, routes: str, name: str) -> None:
    config = read(tmp_path, f"{{name: x, control: stable, candidate: canary{split}}}", routes)
    spec = spec_of(config.experiment)
    assert spec is not None
    assert place(spec, build_table(config, 1)).name == name


A = "name: x, control: stable, candidate: canary"
WRONG = [
    ("{control: stable, candidate: canary}", ONE, "experiment.name", "write name: NAME"),
    ("{name: x, control: stable}", ONE, "experiment.candidate", "candidate: NAME"),
    ("{name: x, candidate: stable}", ONE, "experiment.control", "control: NAME"),
    ("{name: x, control: stabel, candidate: canary}", ONE, "experiment.control", "did you mean 'stable'?"),
    ("{name: x, control: stable, candidate: stable}", ONE, "experiment.candidate", "another backend"),
    ("{name: x, control: stable, candidate: other}", ONE, "experiment", "split: {stable: 90, other: 10}"),
    (f"{{{A}}}", "[{backend: stable}]", "experiment", "no route is split over stable and canary"),
    (f"{{{A}}}", f"[{CHAT}, {REST}]", "experiment.split", "split: chat or split: rest"),
    (f"{{{A}}}", f"[{STICKY}, {REST}]", "experiment.split", "give the one that counts a name"),
    (f"{{{A}, split: caht}}", f"[{CHAT}, {REST}]", "experiment.split", "did you mean 'chat'?"),
    (f"{{{A}, split: odd}}", f"[{CHAT}, {ODD}]", "experiment.split", "not over stable and canary"),
    (f"{{{A}}}", f"[{STICKY}, {EVEN}]", "experiment.split", "some are not: give them names"),
    (f"{{{A}, margin: 150%}}", ONE, "experiment.margin", ""),
    (f"{{{A}, metric: speed}}", ONE, "experiment.metric", "'good'"),
    (f"{{{A}, alpha: 0}}", ONE, "experiment.alpha", ""),
]


@pytest.mark.parametrize(("experiment", "routes", "key", "mend"), WRONG)
def test_what_is_wrong_is_named_with_its_mend(
    tmp_path: Path, experiment: str, routes: str, key: str, mend: str
) -> None:
    with pytest.raises(ConfigErrors) as caught:
        read(tmp_path, experiment, routes)
    (problem,) = caught.value.problems
    assert problem.key == key
    assert mend in problem.mend
    assert Path(problem.place).name.startswith("legato.yaml:")


def test_routes_that_are_wrong_themselves_are_told_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors) as caught:
        read(tmp_path, f"{{{A}}}", "[{split: {stable: -1, canary: 1}}]")
    assert [problem.key for problem in caught.value.problems] == ["routes[0].split.stable"]
