"""``legato alerts test``: what a receiver is sent, what the command says of it, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from proxy.commands import alerts_test
from tests.helpers.alertmanager import alertmanager
from tests.helpers.procs import eventually, free_port
from tests.helpers.receiver import CLOSE, HANG, Behaviour, Receiver, receiver, status
from tests.helpers.settings import writer

app = typer.Typer()
alerts_test.register(app)


@app.command()
def other() -> None:
    """A second command, so that ``test`` is one by name, as in ``legato alerts``."""


def run(*arguments: object, **env: str) -> Result:
    return CliRunner().invoke(
        app, ["test", *map(str, arguments)], env={"COLUMNS": "200", "TERM": "dumb", **env}
    )


def notify(*entries: str) -> str:
    return "alerts: {notify: [" + ", ".join(entries) + "]}\n"


def webhook(server: Receiver, name: str = "ops", more: str = "") -> str:
    return f"{{name: {name}, webhook: {{url: '{server.url}'{more}}}}}"


@pytest.fixture
def write(tmp_path: Path) -> Any:
    return writer(tmp_path)


def test_a_webhook_is_told_that_it_fires_and_that_it_is_over(write: Any) -> None:
    with receiver() as ops:
        result = run("ops", "--config", write(notify(webhook(ops), "{log: on}")))
        told = [json.loads(got.body) for got in ops.received]
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        f"ops (webhook, {ops.where})",
        "  firing   taken: answered 200",
        "  resolved taken: answered 200",
    ]
    assert [each["state"] for each in told] == ["firing", "resolved"]
    assert {each["notices"][0]["incident"] for each in told} == {told[0]["notices"][0]["incident"]}
    (notice,) = told[0]["notices"]
    assert notice["summary"].startswith("This is a test")
    assert (notice["rule"], notice["labels"], notice["severity"]) == ("test", {"test": "true"}, "ticket")


def test_slack_by_a_file_beside_the_configuration(write: Any, tmp_path: Path) -> None:
    with receiver() as slack:
        (tmp_path / "slack.url").write_text(slack.url + "\n")
        result = run("slack", "--config", write(notify("{slack: {url_file: slack.url}}")))
        texts = [json.loads(got.body)["text"] for got in slack.received]
    assert result.exit_code == 0, result.output
    assert "k3y" not in result.output
    assert texts[0].startswith(":large_yellow_circle: test firing: This is a test of Legato's alerts")
    assert texts[1].startswith(":large_green_circle: test resolved")


def test_a_page_is_one(write: Any) -> None:
    with receiver() as ops:
        assert run("--all", "--severity", "page", "-c", write(notify(webhook(ops)))).exit_code == 0
        assert json.loads(ops.received[0].body)["notices"][0]["severity"] == "page"


FAILURES: list[tuple[Behaviour, str]] = [
    (status(500), "firing   not taken: answered 500; an alert would be tried again"),
    (status(403), "firing   not taken: answered 403"),
    (status(307, Location="/"), "firing   not taken: answered 307, a redirect, and none is followed"),
    (HANG, "firing   not taken: no answer within 200ms; an alert would be tried again"),
    (CLOSE, "firing   not taken: it closed the connection, or what it answers is no HTTP; an alert would"),
]


@pytest.mark.parametrize(("behaviour", "line"), FAILURES)
def test_what_went_wrong_is_said_once_and_in_words(write: Any, behaviour: Behaviour, line: str) -> None:
    with receiver() as ops:
        ops.answers(behaviour)
        result = run("ops", "--config", write(notify(webhook(ops, more=", timeout: 200ms"))))
        assert len(ops.received) == 1, "no retries, and no end of what nobody heard of"
    assert result.exit_code == 1
    assert result.output.splitlines()[1].strip().startswith(line)
    assert "k3y" not in result.output


def test_all_are_tried_whatever_the_first_says(write: Any) -> None:
    with receiver() as ops:
        nowhere = f"{{name: away, webhook: {{url: 'http://127.0.0.1:{free_port()}/k3y'}}}}"
        result = run("--all", "--config", write(notify(nowhere, webhook(ops))))
        assert len(ops.received) == 2
    assert result.exit_code == 1
    assert "  firing   not taken: it refuses connections; an alert would be tried again" in result.output


def test_the_real_alertmanager_pages_and_is_not_told_the_end(write: Any) -> None:
    with receiver() as pager, alertmanager(pager.url, group_wait="1s") as server:
        result = run("alertmanager", "-c", write(notify(f"{{alertmanager: {{url: '{server.url}'}}}}")))
        assert result.exit_code == 0, result.output
        assert result.output.splitlines()[1:] == [
            "  firing   taken: answered 200",
            "  resolved not told: it resolves by itself (resolve_timeout), and decides who is told",
        ]
        eventually(lambda: pager.received, 15, "the page, after group_wait")
        (alert,) = json.loads(pager.received[0].body)["alerts"]
    assert (alert["labels"]["alertname"], alert["labels"]["test"], alert["status"]) == (
        "LegatoTest",
        "true",
        "firing",
    )


USAGE = [
    (("nobody",), "there is no notifier 'nobody'; there are log, ops"),
    ((), "name one notifier, or give --all; there are log, ops"),
    (("ops", "--all"), "name one notifier, or give --all"),
    (("ops", "--severity", "bad"), "write ticket or page"),
]


@pytest.mark.parametrize(("arguments", "said"), USAGE)
def test_wrong_usage(write: Any, arguments: tuple[str, ...], said: str) -> None:
    path = write(notify("{log: on}", "{name: ops, webhook: {url: 'http://ops.invalid'}}"))
    result = run(*arguments, "--config", path)
    assert (result.exit_code, said in result.output) == (2, True), result.output


def test_nobody_is_told(write: Any) -> None:
    path = write("")
    result = run("ops", "--config", path)
    assert (result.exit_code, f"alerts.notify in {path} is empty" in result.output) == (2, True)


def test_no_configuration_is_no_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEGATO_CONFIG", raising=False)
    result = run("slack")
    assert result.exit_code == 2
    assert "no configuration was given: --config FILE or LEGATO_CONFIG" in result.output


def test_a_configuration_that_is_wrong(write: Any) -> None:
    result = run("ops", "--config", write("alerts: {notify: [{slack: {url: 'https://h/k3y'}}]}"))
    assert result.exit_code == 2
    assert "does not belong here" in result.output
    assert "k3y" not in result.output


def test_a_configuration_whose_backend_is_given_by_a_flag(tmp_path: Path) -> None:
    path = tmp_path / "legato.yaml"
    path.write_text(notify("{log: on}"))
    result = run("log", LEGATO_CONFIG=str(path))
    assert result.exit_code == 0, result.output
