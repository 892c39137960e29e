"""Settings of those who are told: what is accepted, what is refused and how, and no secret anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from proxy.cli import app
from proxy.config import Boot, Config, ConfigErrors, cares, destinations, redacted, watched_files
from proxy.settings.notify_url import host_of, problem_of, shown_url
from tests.helpers.settings import read, writer

KEY = "https://hooks.example.com/services/T0/B0/hunter2"


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a file ``legato.yaml``, beside files that it may name; gives its path."""
    (tmp_path / "slack.url").write_text(f"  {KEY}\r\nignored\n")
    (tmp_path / "secret").write_text("hunter2\n")
    (tmp_path / "token").write_text("hunter2")
    (tmp_path / "blank").write_text("\nhunter2\n")
    (tmp_path / "empty").write_text("")
    (tmp_path / "nonsense").write_text("hunter2\n")
    (tmp_path / "two words").write_text("hunter2 hunter2\n")
    return writer(tmp_path)


def notify(entries: str) -> str:
    return f"alerts: {{notify: [{entries}]}}\n"


def secrets(config: Config) -> list[tuple[str, ...]]:
    """Of each notifier: its name, and every secret in it, in clear text."""
    out = []
    for each in config.alerts.notify:
        told = each.webhook or each.slack or each.alertmanager
        values = [getattr(told, name, None) for name in ("url", "secret", "token")] if told else []
        out.append((each.called, *(value.get_secret_value() for value in values if value is not None)))
    return out


# ---------------------------------------------------------------- what is accepted


def test_every_kind_and_what_its_files_hold(write: Any) -> None:
    config = read(
        write(
            notify(
                "{slack: {url_file: slack.url}}, {log: on},"
                "{name: ops, webhook: {url: 'https://ops/a?b=c', secret_file: secret, timeout: 2s}},"
                "{alertmanager: {url: 'http://am:9093/base/', token_file: token}}"
            )
        )
    )
    assert secrets(config) == [
        ("slack", KEY),
        ("log",),
        ("ops", "https://ops/a?b=c", "hunter2"),
        ("alertmanager", "http://am:9093/base/", "hunter2"),
    ]
    assert config.alerts.notify[2].webhook is not None
    assert config.alerts.notify[2].webhook.timeout == 2_000_000_000


def test_a_variable_gives_the_whole_list_with_its_secrets(write: Any) -> None:
    told = [
        {"slack": {"url": KEY}},
        {"webhook": {"url": "http://h", "secret": "hunter2"}},
        {"alertmanager": {"url": "http://am", "token": "hunter2"}},
        {"log": True},
    ]
    config = read(write(notify("{log: on}")), {"LEGATO_ALERTS__NOTIFY": json.dumps(told)})
    assert secrets(config) == [
        ("slack", KEY),
        ("webhook", "http://h", "hunter2"),
        ("alertmanager", "http://am", "hunter2"),
        ("log",),
    ]
    whole = {"LEGATO_ALERTS": json.dumps({"notify": told})}
    assert read(write(""), whole).alerts.notify == config.alerts.notify


def test_nobody_by_default(write: Any) -> None:
    config = read(write(""))
    assert config.alerts.notify == ()
    assert [kind for kind, _ in destinations(config) if kind == "notify"] == []


# ---------------------------------------------------------------- what is refused

MISTAKES = [
    # (entries, key, mend)
    ("{name: a}", "alerts.notify[0]", "who is told? write one of webhook"),
    ("{slack: }", "alerts.notify[0]", "who is told?"),
    ("{log: off}", "alerts.notify[0]", "who is told?"),
    ("{log: on, slack: {url_file: slack.url}}", "alerts.notify[0]", "slack and log in one entry"),
    ("{log: on}, {log: on}", "alerts.notify[1]", "'log' is the name of another one too"),
    ("{log: on}, {name: log, slack: {url_file: slack.url}}", "alerts.notify[1].name", "a name of its own"),
    ("{name: 'a b', log: on}", "alerts.notify[0].name", "a name has letters"),
    ("{slak: {url_file: x}}", "alerts.notify[0].slak", "did you mean slack?"),
    ("{slack: {webhook_url: hunter2}}", "alerts.notify[0].slack.webhook_url", "known are url, url_file"),
    ("{webhook: {ulr_file: hunter2}}", "alerts.notify[0].webhook.ulr_file", "did you mean url_file?"),
    (f"{{slack: '{KEY}'}}", "alerts.notify[0].slack", "a mapping of settings is needed (url, url_file"),
    (f"'{KEY}'", "alerts.notify[0]", "what is written: a mapping of settings is needed (name, webhook"),
    ("{slack: {timeout: 5s}}", "alerts.notify[0].slack", "where to? write url_file: FILE"),
    (f"{{slack: {{url: '{KEY}'}}}}", "alerts.notify[0].slack.url", "or set LEGATO_ALERTS__NOTIFY as a whole"),
    (f"{{slack: {{url_file: '{KEY}'}}}}", "alerts.notify[0].slack.url_file", "a URL stands here"),
    ("{slack: {url_file: nowhere}}", "alerts.notify[0].slack.url_file", "cannot be read: No such file"),
    ("{slack: {url_file: empty}}", "alerts.notify[0].slack.url_file", "is empty"),
    ("{slack: {url_file: blank}}", "alerts.notify[0].slack.url_file", "its first line is empty"),
    ("{slack: {url_file: nonsense}}", "alerts.notify[0].slack.url_file", "begins with http:// or https://"),
    ("{slack: {url_file: slack.url, timeout: 0s}}", "alerts.notify[0].slack.timeout", "longer than 0"),
    ("{webhook: {url: 'http://h', url_file: x}}", "alerts.notify[0].webhook.url_file", "keep one of them"),
    ("{webhook: {url: [http://h]}}", "alerts.notify[0].webhook.url", "a text is needed"),
    ("{webhook: {url: 'hunter2.example.com'}}", "alerts.notify[0].webhook.url", "begins with http://"),
    ("{webhook: {url: 'http://u:hunter2@h'}}", "alerts.notify[0].webhook.url", "sign by secret_file"),
    ("{webhook: {url: 'http://hunter2@h'}}", "alerts.notify[0].webhook.url", "no user and password"),
    ("{webhook: {url: 'http://h:0/hunter2'}}", "alerts.notify[0].webhook.url", "host and port are needed"),
    ("{webhook: {url: 'http://h:hunter2/'}}", "alerts.notify[0].webhook.url", "a port is a number"),
    ("{webhook: {url: 'http://h/hunter2#x'}}", "alerts.notify[0].webhook.url", "has no '#'"),
    ("{webhook: {url: 'http://h/hunter2 x'}}", "alerts.notify[0].webhook.url", "no spaces"),
    ("{webhook: {url: 'http:///hunter2'}}", "alerts.notify[0].webhook.url", "host and port are needed"),
    ("{webhook: {url: 'http://[::1]hunter2/'}}", "alerts.notify[0].webhook.url", "host and port are needed"),
    ("{webhook: {url: ''}}", "alerts.notify[0].webhook.url", "a URL is needed"),
    (
        "{webhook: {url: 'https://hooks.slack.com/services/hunter2'}}",
        "alerts.notify[0].webhook.url",
        "write slack: {url_file: FILE} instead",
    ),
    (
        "{webhook: {url: 'http://h', secret: hunter2}}",
        "alerts.notify[0].webhook.secret",
        "put it into a file and name that with secret_file",
    ),
    (
        "{webhook: {url: 'http://h', secret_file: blank}}",
        "alerts.notify[0].webhook.secret_file",
        "write the secret",
    ),
    ("{webhook: {url: 'http://h', secret_file: empty}}", "alerts.notify[0].webhook.secret_file", "is empty"),
    (
        "{webhook: {url: 'http://h', secret_file: no}}",
        "alerts.notify[0].webhook.secret_file",
        "cannot be read",
    ),
    ("{alertmanager: {timeout: 5s}}", "alerts.notify[0].alertmanager", "url: http://alertmanager:9093"),
    (
        "{alertmanager: {url: 'http://a?b=hunter2'}}",
        "alerts.notify[0].alertmanager.url",
        "a base URL has no '?'",
    ),
    ("{alertmanager: {url: 'http://u:hunter2@a'}}", "alerts.notify[0].alertmanager.url", "token_file"),
    (
        "{alertmanager: {url: 'http://a', token: hunter2}}",
        "alerts.notify[0].alertmanager.token",
        "name that with token_file",
    ),
    (
        "{alertmanager: {url: 'http://a', token_file: 'two words'}}",
        "alerts.notify[0].alertmanager.token_file",
        "one word of plain ASCII",
    ),
]


@pytest.mark.parametrize(("entries", "key", "mend"), MISTAKES)
def test_a_mistake_is_named_with_its_place_and_the_mend_and_no_secret(
    write: Any, entries: str, key: str, mend: str
) -> None:
    path = write(notify(entries))
    with pytest.raises(ConfigErrors) as caught:
        read(path)
    (problem,) = caught.value.problems
    assert (problem.key, mend in problem.mend) == (key, True), problem
    assert problem.place == f"{path}:2"
    assert "hunter2" not in f"{caught.value!r} {problem!r}"


VARIABLES = [
    (
        "LEGATO_ALERTS__NOTIFY",
        '[{"slack": {"url": "https://h/hunter2"}',
        "what is written: is no JSON (Expecting",
    ),
    ("LEGATO_ALERTS__NOTIFY", "https://h/hunter2", "what is written: a list is needed"),
    ("LEGATO_ALERTS__NOTIFY", '["https://h/hunter2"]', "what is written: a mapping of settings is needed"),
    ("LEGATO_ALERTS__NOTIFY", '[{"slack": "https://h/hunter2"}]', "what is written: a mapping"),
    ("LEGATO_ALERTS__NOTIFY", '[{"slack": {"url": "hunter2"}}]', "begins with http://"),
    ("LEGATO_ALERTS__NOTIFY", '[{"slack": {"url": ["hunter2"]}}]', "a text is needed"),
    ("LEGATO_ALERTS__NOTIFY", '[{"webhook": {"url": "http://h", "secret": " "}}]', "the secret is empty"),
    (
        "LEGATO_ALERTS__NOTIFY",
        '[{"alertmanager": {"url": "http://h", "token": "hunter2 hunter2"}}]',
        "one word of plain ASCII",
    ),
    (
        "LEGATO_ALERTS__NOTIFY",
        '[{"webhook": {"url": "http://h", "secret": "hunter2", "secret_file": "x"}}]',
        "both give the secret",
    ),
    ("LEGATO_ALERTS", "https://h/hunter2", "what is written: a mapping of settings is needed"),
    ("LEGATO_ALERTS__NOTIFY__0__SLACK__URL", "https://h/hunter2", "a list is set as a whole"),
]


@pytest.mark.parametrize(("name", "text", "mend"), VARIABLES)
def test_a_mistake_in_a_variable_shows_nothing_of_it(write: Any, name: str, text: str, mend: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        read(write(""), {name: text})
    (problem,) = caught.value.problems
    assert (problem.place, mend in problem.mend) == (name, True), problem
    assert "hunter2" not in f"{caught.value!r} {problem!r}"


# ---------------------------------------------------------------- what is shown

ALL = notify(
    "{slack: {url_file: slack.url}}, {log: on},"
    "{name: ops, webhook: {url: 'http://ops.example.com:8080/hunter2?k=hunter2', secret_file: secret}},"
    "{name: plain, webhook: {url: 'https://plain.example.com'}},"
    "{alertmanager: {url: 'http://am:9093/base', token_file: token}}"
)


def test_who_is_told_in_words(write: Any) -> None:
    told = destinations(read(write(ALL)))
    assert told == [
        ("notify", "slack: Slack, by hooks.example.com"),
        ("notify", "log: a line on standard error"),
        ("notify", "ops: JSON to ops.example.com:8080, signed"),
        ("notify", "plain: JSON to plain.example.com"),
        ("notify", "alertmanager: Alertmanager at am:9093 with a token"),
    ]


def test_no_secret_is_shown_and_hosts_are(write: Any) -> None:
    config = read(write(ALL))
    shown = redacted(config)["alerts"]["notify"]
    assert "hunter2" not in f"{shown} {config!r} {destinations(config)} {cares(config)}"
    assert shown[0]["slack"]["url"] == "https://hooks.example.com/***"
    assert shown[2]["webhook"]["url"] == "http://ops.example.com:8080/***"
    assert shown[2]["webhook"]["secret"] == "***"
    assert shown[3]["webhook"]["url"] == "https://plain.example.com"
    assert shown[4]["alertmanager"]["url"] == "http://am:9093/***"
    assert shown[4]["alertmanager"]["token"] == "***"


def test_the_command_line_lists_who_is_told(write: Any) -> None:
    result = CliRunner().invoke(app, ["check", write(ALL)], env={"COLUMNS": "200", "LEGATO_CONFIG": ""})
    assert result.exit_code == 0, result.output
    assert "  notify   ops: JSON to ops.example.com:8080, signed" in result.output
    assert "hunter2" not in result.output


CARES = [
    ("{slack: {url_file: slack.url}}", None),
    ("{webhook: {url: 'http://127.0.0.1:1/x'}}", None),
    ("{alertmanager: {url: 'http://am:9093'}}", None),
    ("{webhook: {url: 'http://ops/x'}}", "notifier webhook: alerts go to ops in clear text: https is TLS"),
    (
        "{alertmanager: {url: 'http://am:9093', token_file: token}}",
        "notifier alertmanager: the token goes to am:9093 in clear text: https is TLS",
    ),
]


@pytest.mark.parametrize(("entries", "care"), CARES)
def test_what_deserves_a_look(write: Any, entries: str, care: str | None) -> None:
    found = [each for each in cares(read(write(notify(entries)))) if each.startswith("notifier")]
    assert found == ([] if care is None else [care])


# ---------------------------------------------------------------- reload


def test_another_secret_is_another_setting_and_its_file_is_watched(write: Any, tmp_path: Path) -> None:
    path = write("watch: on\n" + ALL)
    before = read(path)
    assert read(path).alerts == before.alerts
    (tmp_path / "secret").write_text("other\n")
    after = read(path)
    changed = [
        new.called for old, new in zip(before.alerts.notify, after.alerts.notify, strict=True) if old != new
    ]
    assert changed == ["ops"]
    files = watched_files(Boot(file=path, flags={}), after)
    assert {str(tmp_path / name) for name in ("slack.url", "secret", "token")} <= set(files)
    quiet = read(write(ALL))
    assert set(watched_files(Boot(file=path, flags={}), quiet)) == {path}


# ---------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("url", "host", "shown"),
    [
        ("https://h", "h", "https://h"),
        ("https://h/", "h", "https://h"),
        ("https://h:8443/a/b?c", "h:8443", "https://h:8443/***"),
        ("https://[::1]:9/x", "[::1]:9", "https://[::1]:9/***"),
        ("https://h?hunter2", "h", "https://h/***"),
        ("https://u:hunter2@h/x", "h", "https://h/***"),
        ("http://[hunter2", "?", "***"),
    ],
)
def test_of_a_url_the_host_is_shown(url: str, host: str, shown: str) -> None:
    assert (host_of(url), shown_url(url)) == (host, shown)


@pytest.mark.parametrize(
    "url", ["http://h", "https://h:1/a%20b?c=d&e=f", "http://[::1]:9093/base", " http://h "]
)
def test_urls_that_are_right(url: str) -> None:
    assert problem_of(url) is None
