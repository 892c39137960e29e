"""From the command line to a verdict: an experiment is started, fed, read and ended on a served Legato."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.helpers.procs import Legato, eventually, serve
from tests.helpers.rawclient import CHAT, STREAMED_CHAT, RawClient, post
from tests.helpers.upstream import chat_stream, json_response, respond, scripted

REQUESTS = 400


@pytest.fixture(scope="module")
def legato() -> Iterator[Legato]:
    """Two backends, half of the traffic each: one answers, one is overloaded."""
    with (
        scripted(respond(chat_stream(["a", "b"]))) as stable,
        scripted(respond(json_response({}, b"503 Busy"))) as canary,
    ):
        config = {
            "backends": {"stable": {"url": stable.url}, "canary": {"url": canary.url}},
            "routes": [{"split": {"stable": 50, "canary": 50}}],
            "slos": [{"name": "chat", "ttft": "5s", "tbt": "5s"}],
        }
        with serve(config=config) as process:
            yield process


def legato_says(legato: Legato, *arguments: str) -> tuple[int, str, str]:
    """Status, what it wrote, and to standard error."""
    command = [sys.executable, "-P", "-m", "proxy.cli", *arguments, "--admin", legato.admin_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout, done.stderr


def traffic(legato: Legato, count: int) -> None:
    with RawClient(legato.data) as client:
        for _ in range(count):
            client.send(post(CHAT, STREAMED_CHAT))
            client.response()


def test_an_experiment_from_its_start_to_its_end(legato: Legato) -> None:
    start = ("experiment", "start", "try", "--control", "stable", "--candidate", "canary", "--author", "ann")
    status, said, wrong = legato_says(legato, *start, "--margin", "1%", "--requests", "200")
    assert (status, wrong) == (0, ""), wrong
    assert said.startswith("started try in split canary+stable")
    assert legato_says(legato, *start)[0] == 1, "a name is used once"

    def in_force() -> bool:
        traffic(legato, 1)
        view = legato.json("/api/experiments/try")
        return bool(view["control"]["assigned"] + view["candidate"]["assigned"])

    eventually(in_force, 10, "the worker counts", 0.1)
    traffic(legato, REQUESTS)

    def verdict() -> bool:
        view = legato.json("/api/experiments/try")
        return [view["verdict"], view["guardrail"]["state"]] == ["worse"] * 2

    eventually(verdict, 15, "a verdict", 0.2)
    status, said, wrong = legato_says(legato, "compare", "--fail-on", "worse")
    assert (status, wrong) == (3, ""), said
    lines = said.splitlines()
    assert lines[0].startswith("try: stable against canary, since ")
    assert lines[1].startswith("canary is worse than stable on good requests: -")
    rows = [" ".join(line.split()) for line in lines]
    assert any(row.startswith("good requests 100.00% 0.00% -100.0 points (") for row in rows), said
    assert any(row.startswith("errors 0.00% 100.00% +100.0 points (") for row in rows), said
    assert "integrity: 4 tests, no alarm" in said

    view = json.loads(legato_says(legato, "compare", "try", "--json")[1])
    assert (view["spec"]["margin"], view["by"], view["guardrail"]["state"]) == (0.01, "ann", "worse")

    status, said, wrong = legato_says(
        legato, "experiment", "weights", "canary+stable", "stable=100", "canary=0", "--reason", "worse"
    )
    assert (status, wrong) == (0, "")
    assert said.startswith("split canary+stable (experiment try): canary 0 (0%), stable 100 (100%)")
    assert legato_says(legato, "experiment", "stop", "try", "--reason", "done", "--author", "ann")[0] == 0
    said = legato_says(legato, "experiment", "status", "try")[1]
    assert said.startswith("try: stopped, stable against canary")
    assert "by ann: done" in said
    assert "by " in legato_says(legato, "experiment", "weights")[1], "the weights stay"


def test_two_backends_at_one_look(legato: Legato) -> None:
    traffic(legato, 4)
    status, said, wrong = legato_says(legato, "compare", "--a", "stable", "--b", "canary", "--window", "5m")
    assert (status, wrong) == (0, "")
    lines = said.splitlines()
    assert lines[1].startswith(
        "one look, no experiment: canary against stable on good requests: worse, -100.0"
    )
    assert "start an experiment" in " ".join(said.split())
