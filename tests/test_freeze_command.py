"""``legato freeze``: what it asks, what it writes, what it says, and how it refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from proxy.commands.freeze import register
from proxy.curves import read_curves
from scoring.prefill import Curve
from tests.helpers.procs import free_port

MS = 1_000_000
CURVE = Curve(((100, 50 * MS), (4_000, 900 * MS)), observed=(100, 4_000), samples=412)
BIMODAL = Curve(((100, 50 * MS),), observed=(100, 100), samples=300, bimodal=True, fast_share=0.31)
NET = Curve(((100, 50 * MS),), observed=(100, 100), samples=300, net_of_cache=True)

app = typer.Typer()
register(app)


@app.command()
def other() -> None:
    """A second command, so that ``freeze`` is one by name, as in ``legato``."""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["freeze", *map(str, arguments)], env={"COLUMNS": "200", "TERM": "dumb"})


def pair(backend: str, model: str, curve: Curve | None, reason: str | None = None) -> dict[str, Any]:
    live = {
        "curve": None if curve is None else curve.to_plain(),
        "reason": reason,
        "tbt_p50_s": 0.021,
        "tbt_p99_s": None,
    }
    return {"backend": backend, "model": model, "live": live, "frozen": []}


TOLD = {
    "prefill": [
        pair("vllm", "llama", CURVE),
        pair("vllm", "", BIMODAL),
        pair("canary", "llama", None, "12 requests in the window, 200 are needed"),
        {"backend": "old", "model": "llama", "live": None, "frozen": []},
    ]
}


@contextmanager
def admin(body: Any, status: int = 200, **headers: str) -> Iterator[tuple[str, list[str | None]]]:
    """A listener that answers all requests so; its URL and the Authorization headers that came."""
    asked: list[str | None] = []
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("authorization"))
            self.send_response(status if self.path == "/api/curves" else 404)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join(5)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "curves.yaml"


def test_what_was_learned_is_in_the_file_and_the_rest_is_said(out: Path) -> None:
    with admin(TOLD) as (url, asked):
        done = run("--admin", url, "--out", out)
    assert done.exit_code == 0, done.output
    assert asked == [None]
    frozen = read_curves(str(out))
    assert [(each.backend, each.model, each.curve) for each in frozen.curves] == [
        ("vllm", "llama", CURVE),
        ("vllm", "", BIMODAL),
    ]
    assert (frozen.curves[0].tbt_p50_s, frozen.curves[0].tbt_p99_s) == (0.021, None)
    assert frozen.frozen_at.startswith("20")
    for words in ("100 to 4000", "50 ms to 900 ms", "412", "21 ms", "(none named)"):
        assert words in done.stdout
    assert "left out: canary, llama: 12 requests in the window, 200 are needed" in done.stdout
    assert "left out: old, llama: no stream yet" in done.stdout
    assert "{learned: curves.yaml, slack: 300ms, fallback: 2s}" in done.stdout
    assert "vllm, no model named: bimodal" in done.stderr
    assert "(31% of those" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (("--model", "llama"), [("vllm", "llama")]),
        (("--model", ""), [("vllm", "")]),
        (("--backend", "vllm"), [("vllm", "llama"), ("vllm", "")]),
    ],
)
def test_only_what_was_asked_for(out: Path, arguments: tuple[str, ...], written: list[Any]) -> None:
    with admin(TOLD) as (url, _):
        assert run("--admin", url, "--out", out, *arguments).exit_code == 0
    assert [(each.backend, each.model) for each in read_curves(str(out)).curves] == written


def test_another_backends_curves_are_not_written(out: Path) -> None:
    with admin(TOLD) as (url, _):
        done = run("--admin", url, "--out", out, "--backend", "canary")
    assert (done.exit_code, out.exists()) == (1, False)
    assert "vllm" not in done.stderr


def test_a_curve_net_of_cache_hits_says_so(out: Path) -> None:
    with admin({"prefill": [pair("vllm", "llama", NET)]}) as (url, _):
        done = run("--admin", url, "--out", out)
    assert done.exit_code == 0
    assert "prompt tokens that were not cached" in done.stderr


def test_the_environments_proxy_is_not_asked(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with admin(TOLD) as (url, _):
        assert run("--admin", url, "--out", out).exit_code == 0


def test_the_token_is_sent(out: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret-1\n")
    with admin(TOLD) as (url, asked):
        assert run("--admin", url.removeprefix("http://"), "--token-file", token, "--out", out).exit_code == 0
    assert asked == ["Bearer secret-1"]


def test_an_existing_file_is_replaced_only_by_force(out: Path) -> None:
    out.write_text("mine")
    with admin(TOLD) as (url, asked):
        refused = run("--admin", url, "--out", out)
        assert (refused.exit_code, out.read_text(), asked) == (2, "mine", [])
        assert "--force" in refused.stderr
        assert run("--admin", url, "--out", out, "--force").exit_code == 0
    assert len(read_curves(str(out)).curves) == 2


NOT_WRITTEN = {
    "no curve yet": ({"prefill": [TOLD["prefill"][2]]}, 200, ("canary, llama: 12 requests",)),
    "nothing at all": ({"prefill": []}, 200, ("let requests go through",)),
    "a token is needed": (
        {"error": {"status": 401, "message": "needs its token", "mend": "send 'Authorization: Bearer TOKEN' "
                   "with the token of admin.token_file"}},
        401,
        ("answered 401: needs its token", "the flag is --token-file FILE"),
    ),
    "an error of somebody else": (b"<html>", 502, ("answered 502", "--admin")),
    "a page": (b"<html>", 200, ("is no admin listener",)),
    "another JSON": ([1], 200, ("is no admin listener of this version",)),
    "another version": ({"prefill": [{"backend": "b"}]}, 200, ("not of this version", "model")),
    "a curve that is none": (
        {"prefill": [{**pair("b", "m", None), "live": {"curve": {"version": 2}}}]},
        200,
        ("not of this version",),
    ),
    "a terminal's sequences": ({"prefill": [pair("b\x1b[2J", "m", None, "so")]}, 200, ("b?[2J, m: so",)),
}  # fmt: skip


@pytest.mark.parametrize("said", NOT_WRITTEN)
def test_what_cannot_be_written_is_said_and_nothing_is(out: Path, said: str) -> None:
    body, status, words = NOT_WRITTEN[said]
    with admin(body, status) as (url, _):
        done = run("--admin", url, "--out", out)
    assert done.exit_code == 1, done.output
    for word in words:
        assert word in done.stderr
    assert not list(out.parent.iterdir())


def test_a_name_that_nobody_knows_is_answered_with_those_that_there_are(out: Path) -> None:
    with admin(TOLD) as (url, _):
        done = run("--admin", url, "--out", out, "--model", "lama")
    assert done.exit_code == 1
    assert "only of vllm, llama" in done.stderr


def test_nobody_is_there(out: Path) -> None:
    done = run("--admin", f"http://127.0.0.1:{free_port()}", "--out", out)
    assert done.exit_code == 1
    assert "cannot be reached" in done.stderr
    assert "admin.listen" in done.stderr


def test_a_redirect_gets_no_token(out: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret-1")
    with admin(TOLD) as (elsewhere, asked), admin(b"", 302, Location=f"{elsewhere}/api/curves") as (url, _):
        done = run("--admin", url, "--out", out, "--token-file", token)
    assert (done.exit_code, asked) == (1, [])
    assert "answered 302" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--admin", "ftp://x"), "give a URL such as http://"),
        (("--token-file", "/nowhere/token"), "/nowhere/token"),
        (("--token-file", "/dev/null"), "no token"),
    ],
)
def test_wrong_usage(out: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run("--out", out, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with admin(TOLD) as (url, asked):
        for place, said in (
            (tmp_path / "missing" / "curves.yaml", "cannot be written: the folder"),
            (tmp_path, "is a folder"),
        ):
            done = run("--admin", url, "--force", "--out", place)
            assert done.exit_code == 2
            assert said in done.stderr
        assert asked == []  # all curves may have to be fitted first: not for nothing


def test_help_teaches() -> None:
    done = run("--help")
    for words in ("legato freeze --out curves.yaml", "fallback", "Exit status: 0 written", "--force"):
        assert words in done.stdout
