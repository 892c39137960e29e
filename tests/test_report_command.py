"""``legato report``: findings first, the same in every form, and errors that say what to do."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from proxy.commands import screen
from proxy.commands.admin import Admin, Unanswered
from proxy.commands.morning import (
    counted,
    findings,
    lasting,
    markdown,
    number,
    plain,
    sections,
    share,
    time,
    worst_of,
)
from proxy.commands.overnight import drifted, fired
from proxy.commands.report import register
from proxy.control.core import Controller
from proxy.link import BackendNow, FactsBatch
from tests.control.facts import S, at, streamed
from tests.control.test_api import serving
from tests.control.test_windows import Clock, control, ended, stream_now
from tests.control.test_workers import beat, hello, now

app = typer.Typer()
register(app)


@app.command()
def other() -> None:
    """A second command, so that ``report`` is one by name, as in ``legato``."""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["report", *arguments])


def night(clock: Clock) -> Controller:
    """Ten good streams, two bad ones, a failure, two in flight of which one is overdue, a backend down."""
    legato = control(clock)
    legato.feed(hello())
    batch = [stream_now(clock, 80, 120) for _ in range(10)]
    batch += [ended(clock, streamed(at(90), at(2_000), end_ms=2_001, id="slow", model="x|y"))]
    batch += [ended(clock, streamed(at(600), end_ms=601, id="late")), ended(clock, status=503)]
    legato.feed(FactsBatch(batch))
    down = BackendNow("default", False, 2, 0, 0, 1)
    legato.feed(beat(now(in_flight=2, overdue=1, missed=3, worst=70_000_000), backends=[down]))
    clock.now_ns += S
    return legato


@contextmanager
def admin(token: str | None = None) -> Iterator[str]:
    with serving(night(Clock()), token) as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with admin() as base:
        yield base


def test_a_table_says_first_what_needs_attention(url: str) -> None:
    told = run("--admin", url)
    assert told.exit_code == 0, told.output
    lines = told.output.splitlines()
    assert lines[0].startswith("Legato 1 on here: 2026-11-20T")
    assert lines[2] == "Needs attention"
    assert "default / llama / default: 83.33% good, 99.00% promised (2 bad)" in told.output
    assert "now: 1 of 2 streams are overdue, the worst by 70 ms" in told.output
    assert "not reached: default" in told.output
    order = [lines.index(title) for title in ("Promises", "Times", "Worst requests", "Is it us?")]
    assert order == sorted(order)
    assert "Are we blind?" in lines
    assert told.output.index("slow") < told.output.index("late  ")


@pytest.mark.parametrize("width", [80, 120])
def test_a_narrow_terminal_loses_no_name_and_no_figure(
    url: str, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    narrow = partial(Console, width=width, highlight=False, emoji=False, markup=False)
    monkeypatch.setattr(screen, "console", lambda piped: narrow())
    lines = run("--admin", url).output.splitlines()
    tables = lines[lines.index("Promises") + 3 :]
    assert max(map(len, tables)) <= max(width, len("  deadlines taken out of the scores:") + 60)
    text = "\n".join(tables)
    for shown in (
        "default",
        "llama",
        "x|y",
        "83.33%",
        "99.00%",
        "0.5263",
        "1.85 s late at 90 ms",
        "completed",
    ):
        assert shown in text
    assert ("backend / model / slo" in lines) == (width == 80)  # names on a line of their own


def test_markdown_holds_the_same_and_escapes_names(url: str) -> None:
    told = run("--admin", url, "--md").output
    assert told.startswith("# Legato 1 on here")
    assert "- now: 1 of 2 streams are overdue" in told
    assert "x\\|y" in told
    assert "| --- | --- | --- | ---: |" in told
    widths = {line.replace("\\|", "").count("|") for line in told.splitlines() if line.startswith("| slow")}
    assert widths == {9}


def test_json_is_the_summary_with_findings_and_the_worst(url: str) -> None:
    told = json.loads(run("--admin", url.removeprefix("http://"), "--json", "--window", "5m").output)
    assert told["schema"] == 1
    assert told["summary"] | {"asked_s": 300} == told["summary"]
    assert told["summary"]["total"]["requests"] == 13
    assert {record["id"] for record in told["worst"]} == {"slow", "late"}
    assert any("83.33% good" in finding for finding in told["findings"])


def test_the_window_moves_on() -> None:
    clock = Clock()
    legato = night(clock)
    clock.now_ns += 600 * S
    with serving(legato) as client:
        told = json.loads(run("--admin", str(client.base_url), "--json", "--window", "5m").output)
    assert told["summary"]["total"]["requests"] == 0
    assert told["worst"] == []
    assert told["findings"][-1] == "no request ended in this time"


# ---------------------------------------------------------------- what goes wrong


def test_nobody_listens_says_which_url_and_which_flag() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    told = run("--admin", f"127.0.0.1:{port}")
    assert told.exit_code == 1
    assert f"the admin listener at http://127.0.0.1:{port} cannot be reached" in told.stderr
    assert "--admin URL" in told.stderr
    assert "Traceback" not in told.output


def test_a_token_is_asked_for_and_taken(tmp_path: Path) -> None:
    token = tmp_path / "token"
    with admin("s3cret") as base:
        refused = run("--admin", base)
        assert refused.exit_code == 1
        assert "answered 401: this API needs its token" in refused.stderr
        assert "--token-file FILE" in refused.stderr
        token.write_text("wrong\n")
        assert run("--admin", base, "--token-file", str(token)).exit_code == 1
        token.write_text("s3cret\n")
        told = run("--admin", base, "--token-file", str(token))
        assert told.exit_code == 0
        assert "s3cret" not in told.output + refused.output


def test_a_window_that_the_api_refuses_says_why(url: str) -> None:
    told = run("--admin", url, "--window", "3d")
    assert told.exit_code == 1
    assert "window: '3d' is too long: 10s to 1d is possible" in told.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--window", "5"], "'5': a unit is needed, for example 5m"),
        (["--window", "soon"], "is not a duration"),
        (["--scope", "flet"], "'flet': write fleet or host"),
        (["--md", "--json"], "one of --md and --json"),
        (["--admin", "ftp://x"], "not the URL of an admin listener"),
        (["--admin", "http://x:port"], "not the URL of an admin listener"),
        (["--admin", "http://me:pw@x"], "not the URL of an admin listener"),
        (["--token-file", "/nonexistent/token"], "No such file"),
        (["--token-file", "/dev/null"], "holds no token"),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], says: str) -> None:
    told = run(*arguments)
    assert told.exit_code == 2
    assert says in " ".join(told.output.replace("│", " ").split())


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"{}", b"[]", b'{"requests": []}', b"null"])
@pytest.mark.parametrize("status", [200, 302, 404])
def test_another_server_is_told_apart(body: bytes, status: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Location", "http://127.0.0.1:9/")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        told = run("--admin", f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        server.server_close()
    assert told.exit_code == 1
    assert "is no admin listener of" in " ".join(told.stderr.split())


def test_help_teaches() -> None:
    told = CliRunner().invoke(app, ["report", "--help"], env={"COLUMNS": "120"}).output
    for piece in ("--window", "--token-file", "Exit status: 0", "legato report --window 12h"):
        assert piece in told


# ---------------------------------------------------------------- the parts


def test_an_empty_legato_has_a_whole_report() -> None:
    with serving(control(Clock())) as client:
        summary = httpx.get(f"{client.base_url}/api/summary?window=1h").json()
    assert findings(summary) == ["no request ended in this time"]
    assert "## Are we blind?" in markdown("empty", sections(summary, []))


def test_an_objective_that_is_just_reached_is_no_finding() -> None:
    with serving(night(Clock())) as client:
        summary = httpx.get(f"{client.base_url}/api/summary?window=1h").json()
    llama = next(group for group in summary["groups"] if group["model"] == "llama")
    assert any("83.33% good" in finding for finding in findings(summary))
    llama["objective"] = llama["good_ratio"]
    assert not any("83.33% good" in finding for finding in findings(summary))
    llama["objective"] = None  # its SLO is gone
    assert not any("83.33% good" in finding for finding in findings(summary))


def test_worst_leaves_out_what_ended_before_and_what_missed_nothing() -> None:
    def record(id: str, at: str, missed: int | None, duration_s: float = 1.0) -> dict[str, Any]:
        return {"id": id, "time": at, "missed": missed, "duration_s": duration_s}

    records = [
        record("old", "2026-11-20T03:00:00.000Z", 9),
        record("long", "2026-11-20T03:00:00.000Z", 8, duration_s=3_600),
        record("fine", "2026-11-20T03:20:00.000Z", 0),
        record("unmeasured", "2026-11-20T03:20:00.000Z", None),
        *(record(f"n{n}", "2026-11-20T03:20:00.000Z", 1) for n in range(20)),
    ]
    found = [each["id"] for each in worst_of(records, "2026-11-20T03:10:00.000Z")]
    assert found[:2] == ["long", "n0"]
    assert len(found) == 10


def test_figures() -> None:
    assert [time(value) for value in (None, 0, 2e-6, 0.0123, 1.5, 59.94, 59.96, 3_700)] == [
        "-", "0 s", "2 us", "12.3 ms", "1.5 s", "59.9 s", "1 min", "1 h 1 min",
    ]  # fmt: skip
    assert [lasting(value) for value in (0.4, 81.5, 126, 3_600, 43_199.7, 90_000, 172_800)] == [
        "0 s", "1 min 22 s", "2 min 6 s", "1 h", "12 h", "1 d 1 h", "2 d",
    ]  # fmt: skip
    assert [share(value) for value in (None, 0, 0.99, 0.99999, 1)] == [
        "-", "0.00%", "99.00%", ">99.99%", "100.00%",
    ]  # fmt: skip
    assert (number(None), number(12.3456)) == ("-", "12.35")
    assert counted({"a": 0, "b": 1, "c": 3}) == "3 c, 1 b"
    assert plain("a\x1b[31m\n") == "a?[31m?"


# ---------------------------------------------------------------- what else happened


def alert(rule: str, fired: str | None, resolved: str | None, **labels: str) -> dict[str, Any]:
    return {"key": rule, "rule": rule, "labels": labels, "fired": fired, "resolved": resolved}


def frozen(prefill: float | None, p50: float | None = None, p99: float | None = None) -> dict[str, Any]:
    return {"file": "curves.yaml", "prefill_drift": prefill, "tbt_p50_drift": p50, "tbt_p99_drift": p99}


NIGHT = {
    "/api/alerts": {
        "firing": [alert("spike", "2026-11-20T02:50:00.000Z", None, backend="stable", slo="chat")],
        "history": [
            alert("spike", "2026-11-20T02:50:00.000Z", None, backend="stable", slo="chat"),
            alert("errors", "2026-11-20T01:00:00.000Z", "2026-11-20T03:00:00.000Z", backend="stable"),
            alert("drift", "2026-11-19T21:00:00.000Z", "2026-11-19T22:00:00.000Z", backend="stable"),
        ],
    },
    "/api/curves": {
        "prefill": [
            {"backend": "stable", "model": "llama", "frozen": [frozen(1.8, 1.1, 1.9)]},
            {"backend": "canary", "model": "", "frozen": [frozen(1.0), frozen(None)]},
        ]
    },
}


def test_alerts_that_fired_in_the_window_are_one_finding() -> None:
    (told,) = fired(NIGHT["/api/alerts"], "2026-11-20T02:00:00.000Z")
    assert told == (
        "alerts that fired: spike of stable / chat from 2026-11-20T02:50:00.000Z and still does; "
        "errors of stable from 2026-11-20T01:00:00.000Z to 2026-11-20T03:00:00.000Z"
    )
    assert fired({"firing": [], "history": NIGHT["/api/alerts"]["history"][2:]}, "2026-11-20T02:00:00Z") == []
    many = [alert("spike", f"2026-11-20T02:0{i}:00.000Z", None) for i in range(6)]
    assert fired({"firing": many, "history": []}, "2026-11-20T02:00:00Z")[0].endswith("; and 3 more")


def test_speeds_that_left_what_was_frozen_are_one_finding() -> None:
    told = drifted(NIGHT["/api/curves"], "here")
    assert told == [
        "slower than frozen (as here sees it): stable / llama prefill 1.80 times, tbt p99 1.90 times "
        "(curves.yaml)"
    ]
    assert drifted({"prefill": [{"backend": "b", "model": "m", "frozen": [frozen(1.2, 0.5)]}]}, "here") == []


@pytest.mark.parametrize("form", ["--json", "--md", ""])
def test_the_report_holds_both_in_every_form(form: str, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    get = Admin.get

    def found(self: Admin, path: str, asked: Any) -> Any:
        return NIGHT.get(path) or get(self, path, asked)

    monkeypatch.setattr(Admin, "get", found)
    told = " ".join(run("--admin", url, *filter(None, [form])).output.split())
    assert "alerts that fired: spike of stable / chat" in told
    assert "slower than frozen (as here sees it): stable / llama prefill 1.80 times" in told


@pytest.mark.parametrize(
    ("status", "says"), [(404, None), (500, "/api/alerts could not be read"), (None, "/api/alerts could not")]
)
def test_a_report_does_without_what_is_not_there(
    status: int | None, says: str | None, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    get = Admin.get

    def found(self: Admin, path: str, asked: Any) -> Any:
        if path == "/api/alerts":
            raise Unanswered("no", status)
        return get(self, path, asked)

    monkeypatch.setattr(Admin, "get", found)
    told = run("--admin", url, "--json")
    assert told.exit_code == 0
    said = [finding for finding in json.loads(told.output)["findings"] if "could not be read" in finding]
    assert len(said) == (says is not None)
    assert not says or said[0].startswith(says)
