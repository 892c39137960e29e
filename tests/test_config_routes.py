"""Routes over several backends: what is read of them, what is refused, and what ``legato check`` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from proxy import cli
from proxy.config import Boot, Config, ConfigErrors, cares, load, redacted
from proxy.link import Match, RouteSpec, SplitSpec
from proxy.tables import build_table
from proxy.words import destination

BACKENDS = """backends:
  stable: {url: http://a}
  canary: {url: http://b}
  next: {url: http://c, transport: httpx}
"""


def read(tmp_path: Path, routes: str, more: str = "") -> Config:
    path = tmp_path / "legato.yaml"
    path.write_text(BACKENDS + f"routes: {routes}\n" + more)
    return load(Boot(file=str(path), flags={}), {})


def wrong(tmp_path: Path, routes: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigErrors) as caught:
        read(tmp_path, routes)
    assert {Path(found.place).name for found in caught.value.problems} == {"legato.yaml:5"}
    return [(found.key, found.mend) for found in caught.value.problems]


FULL = (
    "[{split: {stable: 90, canary: 10}, sticky: {header: X-Session-Id}, force: {header: X-To}, failover: on}]"
)
ARMS = (("canary", 10), ("stable", 90))
SPLITS: list[tuple[str, SplitSpec, str]] = [
    (
        "{split: {stable: 90, canary: 10}}",
        SplitSpec("canary+stable", ARMS, "canary+stable"),
        "stable 90%, canary 10%; drawn for each request",
    ),
    (
        FULL[1:-1],
        SplitSpec("canary+stable", ARMS, "canary+stable", ("header", "x-session-id"), "x-to", True),
        "stable 90%, canary 10%; sticky by header x-session-id; forced by header x-to; failover",
    ),
    (
        "{split: {canary: '1', stable: 2, next: 0}, sticky: {field: user}, seed: '', name: chat}",
        SplitSpec("chat", (("canary", 1), ("next", 0), ("stable", 2)), "", ("field", "user")),
        "canary 33.3%, stable 66.7%, next 0%; sticky by field user",
    ),
    (
        "{split: {stable: 999999, canary: 1}, sticky: {client: address}, seed: off}",
        SplitSpec("canary+stable", (("canary", 1), ("stable", 999999)), "off", ("client", "address")),
        "stable 99.9999%, canary 0.0001%; sticky by client address",
    ),
    (
        "{split: {stable: 1, canary: 1}, sticky: {cookie: Sid, header: off}, force: {header: off}}",
        SplitSpec("canary+stable", (("canary", 1), ("stable", 1)), "canary+stable", ("cookie", "Sid")),
        "stable 50%, canary 50%; sticky by cookie Sid",
    ),
]


@pytest.mark.parametrize(("text", "split", "said"), SPLITS)
def test_what_is_read(tmp_path: Path, text: str, split: SplitSpec, said: str) -> None:
    config = read(tmp_path, f"[{text}]")
    (route,) = build_table(config, 1).routes
    heaviest = max(split.arms, key=lambda arm: arm[1])[1]
    assert route.split == split
    assert dict(split.arms)[route.backend] == heaviest
    assert destination(config.routes[0]) == said


@pytest.mark.parametrize("text", ["{split: {canary: 7}}", "{backend: canary}"])
def test_one_backend_is_no_split(tmp_path: Path, text: str) -> None:
    config = read(tmp_path, f"[{text}]")
    assert build_table(config, 1).routes == (RouteSpec(Match(), "canary"),)
    assert destination(config.routes[0]) == "canary"


def test_the_seed_is_shown_to_nobody(tmp_path: Path) -> None:
    config = read(tmp_path, "[{split: {stable: 1, canary: 1, next: 1}, seed: hunter2}]")
    assert redacted(config)["routes"][0]["seed"] == "***"
    assert "hunter2" not in repr(config)
    split = build_table(config, 1).routes[0].split
    assert split is not None
    assert split.seed == "hunter2"


def test_what_is_shown_can_be_read_again(tmp_path: Path) -> None:
    config = read(tmp_path, FULL)
    shown = redacted(config)["routes"]
    assert shown[0]["split"] == {"stable": 90, "canary": 10}
    assert shown[0]["sticky"]["header"] == "x-session-id"
    assert build_table(
        read(tmp_path, yaml.safe_dump(shown, default_flow_style=True, width=9999)), 1
    ).routes == (build_table(config, 1).routes)


TWO = "split: {stable: 1, canary: 1}"
MEND = "a weight is a whole number"
MISTAKES: list[tuple[str, str, str]] = [
    ("{split: {}}", "split", "no backend has a weight above 0"),
    ("{split: {stable: 0, canary: 0}}", "split", "no backend has a weight above 0"),
    ("{split: {stable: 0}}", "split", "no backend has a weight above 0"),
    ("{split: {stable: 90%, canary: 10}}", "split.stable", f"'90%': {MEND}"),
    ("{split: {stable: -1, canary: 10}}", "split.stable", f"'-1': {MEND}"),
    ("{split: {stable: 0.5, canary: 10}}", "split.stable", f"'0.5': {MEND}"),
    ("{split: {stable: , canary: 10}}", "split.stable", "nothing: a weight, for example 90, is needed"),
    ("{split: {stable: 1000001, canary: 10}}", "split.stable", "a weight is at most 1000000"),
    ("{split: {stable: 1, canry: 1}}", "split", "'canry' is no backend: did you mean 'canary'?"),
    ("{split: [stable, canary]}", "split", "a mapping is needed"),
    ("{split: {stable: 1, canary: 1}, backend: next}", "", "either backend: NAME or split"),
    ("{backend: stable, sticky: {header: x}}", "sticky", "only with a split over several backends"),
    ("{split: {stable: 1}, sticky: {header: x}}", "sticky", "only with a split over several backends"),
    ("{backend: stable, force: {header: x}}", "force", "only with a split"),
    ("{backend: stable, failover: on}", "failover", "only with a split"),
    ("{backend: stable, seed: x}", "seed", "only with a split"),
    ("{backend: stable, name: x}", "name", "only with a split"),
    (f"{{{TWO}, sticky: {{header: a, cookie: b}}}}", "sticky", "header: a and cookie: b: a session"),
    (f"{{{TWO}, sticky: {{header: Authorization}}}}", "sticky.header", "carries a secret"),
    (f"{{{TWO}, sticky: {{header: cookie}}}}", "sticky.header", "write cookie: NAME"),
    (f"{{{TWO}, sticky: {{header: a b}}}}", "sticky.header", "is not a header's name"),
    (f"{{{TWO}, sticky: {{cookie: a b}}}}", "sticky.cookie", "is not a cookie's name"),
    (f"{{{TWO}, sticky: {{field: model}}}}", "sticky.field", "write 'user', 'safety_identifier' or"),
    (f"{{{TWO}, sticky: {{client: ip}}}}", "sticky.client", "write 'address'"),
    (f"{{{TWO}, sticky: {{heder: x}}}}", "sticky.heder", "did you mean header?"),
    (f"{{{TWO}, sticky: session}}", "sticky", "a mapping of settings is needed"),
    (f"{{{TWO}, force: {{header: x-api-key}}}}", "force.header", "carries a secret"),
    (f"{{{TWO}, force: x}}", "force", "a mapping of settings is needed (header)"),
    (f"{{{TWO}, failover: maybe}}", "failover", "write on or off"),
    (f"{{{TWO}, name: a b}}", "name", "a name has letters"),
    ("{split: {stable: 1, next: 1}, failover: on}", "failover", "backend next has transport httpx"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "key", "mend"), MISTAKES, ids=[text for text, _, _ in MISTAKES])
def test_each_mistake_has_its_place_and_its_mend(tmp_path: Path, text: str, key: str, mend: str) -> None:
    ((where, told),) = wrong(tmp_path, f"[{text}]")
    assert where == ".".join(["routes[0]", key] if key else ["routes[0]"])
    assert mend in told


def test_what_is_left_of_a_bad_split_is_not_judged(tmp_path: Path) -> None:
    found = wrong(tmp_path, "[{split: {stable: x, canary: 10}, sticky: {header: a}, failover: on}]")
    assert [key for key, _ in found] == ["routes[0].split.stable"]


def test_a_name_is_given_once(tmp_path: Path) -> None:
    found = wrong(tmp_path, f"[{{{TWO}, name: x, match: {{path: /a}}}}, {{{TWO}, name: x}}]")
    assert found == [("routes[1].name", "'x' is the name of another route too: choose one of its own")]


ALIKE: list[tuple[str, list[str]]] = [
    ("{split: {stable: 1, canary: 1}, match: {path: /a}}, {split: {canary: 1, stable: 1}}", []),
    (
        "{split: {stable: 9, canary: 1}, match: {path: /a}}, {split: {stable: 1, canary: 1}}",
        ["routes[1].split"],
    ),
    ("{split: {stable: 9, canary: 1}, match: {path: /a}}, {split: {stable: 1, canary: 1}, name: b}", []),
    (
        "{backend: next, match: {path: /x}}, {split: {stable: 9, canary: 1}, match: {path: /a}}, "
        "{split: {stable: 9, canary: 1}, match: {path: /b}}, {split: {canary: 9, stable: 1}}",
        ["routes[3].split"],
    ),
    ("{split: {stable: 9, canary: 1}, match: {path: /a}}, {split: {stable: 1, canary: 1, next: 1}}", []),
]


@pytest.mark.parametrize(("routes", "places"), ALIKE)
def test_one_split_has_its_weights_once(tmp_path: Path, routes: str, places: list[str]) -> None:
    """Without names they would share theirs, and the status would show the one's weights as the other's."""
    if not places:
        read(tmp_path, f"[{routes}]")
        return
    found = wrong(tmp_path, f"[{routes}]")
    assert [key for key, _ in found] == places
    assert "by other weights: give these routes names" in found[0][1]


CARES: list[tuple[str, list[str]]] = [
    (f"[{{{TWO}}}]", ["backend next is used by no route"]),
    ("[{split: {stable: 1, canary: 1, next: 1}}]", []),
    ("[{split: {stable: 1, canary: 1, next: 0}}]", ["route 0: next has weight 0, nothing goes there"]),
    (
        "[{split: {stable: 1, canary: 1, next: 0}, force: {header: x}}]",
        ["route 0: next has weight 0, only forced requests go there"],
    ),
    (
        f"[{{{TWO}, match: {{path: /a}}}}, {{{TWO}, match: {{path: /b}}}}, {{backend: next}}]",
        [
            "routes 0 and 1 split over the same backends: their assignments are counted together unless they "
            "have names"
        ],
    ),
    (f"[{{{TWO}, match: {{path: /a}}, name: a}}, {{{TWO}, match: {{path: /b}}}}, {{backend: next}}]", []),
]


@pytest.mark.parametrize(("routes", "told"), CARES)
def test_what_deserves_a_look(tmp_path: Path, routes: str, told: list[str]) -> None:
    assert cares(read(tmp_path, routes)) == told


def test_what_no_route_takes_is_answered_404(tmp_path: Path) -> None:
    config: Any = read(tmp_path, "[{backend: next, match: {path: /a}}]")
    assert cares(config)[0] == "no route matches everything: what matches none is answered 404"


def test_check_shows_the_shares(tmp_path: Path) -> None:
    file = tmp_path / "legato.yaml"
    file.write_text(BACKENDS + f"routes: {FULL}\n")
    done = CliRunner().invoke(cli.app, ["check", str(file)], env={"COLUMNS": "200"})
    said = "stable 90%, canary 10%; sticky by header x-session-id; forced by header x-to; failover"
    assert f"  route    everything -> {said}" in done.stdout.splitlines()


COMPARED = """
routes:
  - {match: {path: /v1/*}, split: {stable: 90, canary: 10}}
  - {backend: stable, mirror: {backend: next, share: 5%}}
experiment: {name: new, control: stable, candidate: canary, margin: 0.5%, requests: 5000, abort: on}
ejection: {enabled: on, time: 1m}
"""


def test_check_shows_copies_experiment_and_ejection(tmp_path: Path) -> None:
    file = tmp_path / "legato.yaml"
    file.write_text(BACKENDS.replace(", transport: httpx", "") + COMPARED)
    done = CliRunner().invoke(cli.app, ["check", str(file)], env={"COLUMNS": "200"})
    shown = done.stdout.splitlines()
    assert "  route    everything -> stable; copies of 5% to next" in shown, done.output
    by = "by good, margin 0.5%, planned for 5,000 requests of each, sent back where it is surely worse"
    assert f"  compare  new: canary against stable {by}" in shown
    few = "50% of at least 10 requests in 30s failed"
    assert f"  eject    a backend of a split where {few}: out for 1m and longer" in shown
