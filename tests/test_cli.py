"""The command line: what it says, what it hands to the supervisor, and how it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from proxy import cli

cli._register()


def legato(*arguments: str, env: dict[str, str] | None = None) -> Result:
    clean = {name: None for name in os.environ if name.startswith("LEGATO_")}
    return CliRunner().invoke(
        cli.app, arguments, env={**clean, "COLUMNS": "200", "TERM": "dumb", **(env or {})}
    )


@pytest.fixture
def execs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have replaced this process."""
    calls: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: calls.append(arguments))
    return calls


def boot(execs: list[list[str]]) -> dict[str, Any]:
    (command,) = execs
    assert command[:-1] == [sys.executable, "-P", "-m", "proxy.supervisor", "--boot"]
    return dict(json.loads(command[-1]))


# ---------------------------------------------------------------- serve


def test_serve_hands_the_supervisor_what_it_needs(execs: list[list[str]]) -> None:
    done = legato("serve", "--upstream", "http://127.0.0.1:8000", "--ttft", "300ms", "--tbt", "30ms")

    assert (done.exit_code, done.output) == (0, "")
    told = boot(execs)
    assert told["file"] is None
    assert told["flags"] == {"upstream": "http://127.0.0.1:8000", "ttft": "300ms", "tbt": "30ms"}
    assert told["bind"].pop("version")
    assert told["bind"] == {
        "listen": ["127.0.0.1:8080"],
        "admin": "127.0.0.1:9464",
        "workers": 1,
        "drain_delay_s": 0,
        "drain_s": 600,
        "upstreams": "default http://127.0.0.1:8000",
        "tls": False,
    }


def test_serve_with_a_file_variables_and_every_flag(execs: list[list[str]], tmp_path: Path) -> None:
    file = tmp_path / "legato.yaml"
    backends = ", ".join(f"b{number}: {{url: http://b{number}}}" for number in range(6))
    file.write_text(f"backends: {{{backends}}}\ntimeouts: {{drain: 1m}}\nlisten: 127.0.0.1:1\n")
    flags = ["--config", str(file), "--listen", "127.0.0.1:2", "--listen", "unix:/tmp/x", "--admin", ":3"]
    flags += ["--workers", "2", "--access-log", "off", "--trace-log", str(tmp_path / "trace")]

    done = legato(
        "serve", *flags, env={"LEGATO_TIMEOUTS__DRAIN_DELAY": "1500ms", "LEGATO_LISTEN": "127.0.0.1:4"}
    )

    assert done.exit_code == 0, done.output
    told = boot(execs)
    assert told["file"] == str(file)
    assert told["flags"] == {
        "listen": ["127.0.0.1:2", "unix:/tmp/x"],
        "admin": ":3",
        "workers": 2,
        "access_log": "off",
        "trace_log": str(tmp_path / "trace"),
    }
    bind = told["bind"]
    assert (bind["listen"], bind["admin"], bind["workers"]) == (["127.0.0.1:2", "unix:/tmp/x"], ":3", 2)
    assert (bind["drain_delay_s"], bind["drain_s"]) == (1.5, 60)
    assert bind["upstreams"] == "b0 http://b0, b1 http://b1, b2 http://b2, and 3 more"


def test_the_file_may_come_from_a_variable(execs: list[list[str]], tmp_path: Path) -> None:
    file = tmp_path / "legato.yaml"
    file.write_text("backends: {a: {url: http://a}}")
    assert legato("serve", env={"LEGATO_CONFIG": str(file)}).exit_code == 0
    assert boot(execs)["file"] == str(file)


def test_serve_refuses_with_every_problem_and_starts_nothing(execs: list[list[str]]) -> None:
    flags = ["--upstream", "localhost:8000", "--ttft", "500", "--tls-cert", "a.pem", "--listen", "8080"]
    done = legato("serve", *flags)

    assert done.exit_code == 2
    assert execs == []
    assert done.stdout == ""
    assert "4 problems in the configuration:" in done.stderr
    for line in (
        "--upstream: backends.default.url: 'localhost:8000': a URL begins with http://",
        "--ttft: slos[0].ttft: '500': a unit is needed, for example 500ms or 500s",
        "--tls-cert: tls.cert_file: cert_file without key_file: give both",
        "--listen: listen: '8080': a port is needed, for example 127.0.0.1:8080",
    ):
        assert line in done.stderr


def test_an_unreachable_upstream_is_no_reason_not_to_start(execs: list[list[str]]) -> None:
    assert legato("serve", "--upstream", "http://no.such.host.invalid:1").exit_code == 0
    assert len(execs) == 1


def test_a_misspelt_flag_is_explained() -> None:
    done = legato("serve", "--lisen", "x")
    assert done.exit_code == 2
    assert "--listen" in done.output


# ---------------------------------------------------------------- check, version, help


def test_check_tells_what_it_understood(tmp_path: Path) -> None:
    file = tmp_path / "legato.yaml"
    file.write_text(
        """
backends: {a: {url: http://a:1}, s: {uds: /run/s}}
routes: [{match: {model: "x*"}, backend: s}]
slos:
  - {name: long, match: {header: {x-work: batch}}, e2e: 2m}
  - {name: chat, ttft: {0: 500ms, 8000: 2s}}
admin: {listen: 0.0.0.0:9464}
"""
    )
    done = legato("check", str(file))
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"ok: {file}",
        "  listen   127.0.0.1:8080 (http)",
        "  admin    0.0.0.0:9464",
        "  backend  a: http://a:1",
        "  backend  s: http://localhost over unix:/run/s",
        "  route    model x* -> s",
        "  route    everything else -> 404",
        "  slo      long: e2e 2m for 99% of header x-work: batch",
        "  slo      chat: ttft 500ms at 0 prompt tokens, 2s at 8000 prompt tokens, tbt 50ms, fluidity 90% "
        "for 99% of everything",
        "  care     admin listens on 0.0.0.0:9464 without a token: only loopback is served the API",
        "  care     no route matches everything: what matches none is answered 404",
        "  care     backend a is used by no route",
    ]


def test_check_refuses(tmp_path: Path) -> None:
    file = tmp_path / "legato.yaml"
    file.write_text("backends: {a: {url: http://a:1}}\nlistne: x\n")
    done = legato("check", str(file), env={"LEGATO_TBT": "5"})
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"{file}:2: listne: 'listne' is no setting: did you mean listen?" in done.stderr
    assert "LEGATO_TBT: slos[0].tbt: '5': a unit is needed" in done.stderr


def test_check_without_a_file_says_so() -> None:
    done = legato("check")
    assert done.exit_code == 2
    assert "no file was given: legato check FILE, or LEGATO_CONFIG" in done.stderr
    done = legato("check", env={"LEGATO_UPSTREAM": "http://a", "LEGATO_TBT": "5"})
    assert "no file was given" not in done.stderr  # it is not what is wrong
    assert "no file was given" not in legato("serve").stderr


def test_version() -> None:
    assert legato("version").stdout.startswith("legato 0.")
    assert legato("--version").stdout == legato("version").stdout


COMMANDS = [
    ("serve",),
    ("freeze",),
    ("report",),
    ("score",),
    ("compare",),
    ("demo",),
    *(("alerts", name) for name in ("list", "test", "backtest")),
    ("experiment",),
    *(("experiment", name) for name in ("start", "stop", "weights", "status")),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_flows_to_the_width(command: tuple[str, ...]) -> None:
    """No line ends before the next word would have had no room."""
    for width in (80, 100):
        lines = legato(*command, "--help", env={"COLUMNS": str(width)}).output.splitlines()
        for line, following in pairwise(map(str.rstrip, lines)):
            if line and following and line[0] == following[0] == " ":
                assert len(line) + 1 + len(following.split()[0]) >= width, (line, following)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ["serve", "check", "score", "demo", "version", "legato serve --upstream http://127.0.0.1:8000"]),
        (("serve",), ["--upstream", "--tls-key", "Examples", "LEGATO_TIMEOUTS__CONNECT=2s", "SIGHUP"]),
        (("check",), ["FILE", "every problem at once"]),
    ],
)
def test_help_teaches(command: tuple[str, ...], words: list[str]) -> None:
    done = legato(*command, "--help")
    assert done.exit_code == 0
    for word in words:
        assert word in done.output


# ---------------------------------------------------------------- the real thing


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LEGATO_")}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env=clean,
        check=False,
    )


def test_help_needs_nothing_heavy() -> None:
    heavy = "['numpy', 'fastapi', 'uvicorn', 'pydantic', 'httpx', 'msgspec', 'prometheus_client', 'yaml']"
    done = python(
        "-c", f"import sys, proxy.cli; proxy.cli._register(); print([m for m in {heavy} if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_what_lies_in_the_working_directory_is_not_imported(tmp_path: Path) -> None:
    """A folder named ``proxy`` where one happens to stand must not replace ours."""
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    script = Path(sys.executable).with_name("legato")
    port = "127.0.0.1:99999"
    done = python(str(script), "serve", "--upstream", "http://a", "--listen", port, cwd=tmp_path)
    assert "'99999' is not a port" in done.stderr
    done = python(str(script), "serve", "--upstream", "http://a", "--listen", "192.0.2.1:80", cwd=tmp_path)
    assert done.returncode == 1
    assert "legato: cannot listen on 192.0.2.1:80: this host has no such address" in done.stderr
