"""A route's mirror: what is read of it, what is refused, and what ``legato check`` says."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config import Boot, Config, ConfigErrors, cares, load
from proxy.link import MirrorSpec
from proxy.tables import build_table

BACKENDS = """backends:
  stable: {url: http://a}
  canary: {url: http://b}
  odd: {url: http://c, transport: httpx}
"""
S = 1_000_000_000


def read(tmp_path: Path, routes: str) -> Config:
    path = tmp_path / "legato.yaml"
    path.write_text(BACKENDS + f"routes: {routes}\n")
    return load(Boot(file=str(path), flags={}), {})


@pytest.mark.parametrize(
    ("mirror", "spec"),
    [
        ("{backend: canary}", MirrorSpec("canary", 1.0, 64, 1 << 20, 300 * S)),
        (
            "{backend: canary, share: 5%, most: 3, body_limit: 2KiB, timeout: 15m}",
            MirrorSpec("canary", 0.05, 3, 2048, 900 * S),
        ),
        ("{}", None),
    ],
)
def test_what_is_read(tmp_path: Path, mirror: str, spec: MirrorSpec | None) -> None:
    (route,) = build_table(read(tmp_path, f"[{{backend: stable, mirror: {mirror}}}]"), 1).routes
    assert route.mirror == spec


def test_what_carries_a_secret_is_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    routes = "[{backend: stable, mirror: {backend: canary, credentials: drop}}]"
    mirror = build_table(read(tmp_path, routes), 1).routes[0].mirror
    assert mirror is not None
    assert {"authorization", "cookie", "x-api-key", "api-key", "x-goog-api-key"} <= set(mirror.leave_out)


WRONG = [
    ("backend: stable, mirror: {share: 5%}", "backend", "copies need a shadow: write backend: NAME"),
    (
        "backend: stable, mirror: {backend: canari}",
        "backend",
        "'canari' is no backend: did you mean 'canary'?",
    ),
    (
        "backend: stable, mirror: {backend: x9}",
        "backend",
        "'x9' is no backend: known are canary, odd, stable",
    ),
    ("backend: stable, mirror: {backend: stable}", "backend", "'stable' serves this route itself"),
    ("split: {stable: 1, canary: 0}, mirror: {backend: canary}", "backend", "serves this route itself"),
    (
        "backend: stable, mirror: {backend: odd}",
        "backend",
        "copies go by the native one: leave transport out",
    ),
    ("backend: stable, mirror: {backend: canary, timeout: 16m}", "timeout", "16m: a copy is compared with"),
    ("backend: stable, mirror: {backend: canary, most: 0}", "most", ""),
    ("backend: stable, mirror: {backend: canary, share: 101%}", "share", ""),
]


@pytest.mark.parametrize(("route", "key", "mend"), WRONG)
def test_what_is_refused_names_the_place_and_the_mend(
    tmp_path: Path, route: str, key: str, mend: str
) -> None:
    with pytest.raises(ConfigErrors) as caught:
        read(tmp_path, f"[{{{route}}}]")
    (problem,) = caught.value.problems
    assert problem.key == f"routes[0].mirror.{key}"
    assert mend in problem.mend


def test_what_deserves_a_look(tmp_path: Path) -> None:
    routes = "[{backend: stable, mirror: {backend: canary}}]"
    assert not any("canary" in said for said in cares(read(tmp_path, routes))), "a shadow is used"
    both = "[{match: {path: /a}, backend: canary}, {backend: stable, mirror: {backend: canary}}]"
    said = "route 1: canary serves another route too: what copies cost it is felt there"
    assert said in cares(read(tmp_path, both))
