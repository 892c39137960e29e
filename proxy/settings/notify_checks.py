"""What single values of ``alerts.notify`` cannot show, and what is in the files that it names.

No message holds a part of a URL, a secret or a token.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import SecretStr

from proxy.settings.alerts import Alerts
from proxy.settings.files import readable
from proxy.settings.notify import Alertmanager, Notifier, Slack, Webhook
from proxy.settings.notify_url import host_of, problem_of, shown_url
from proxy.settings.tree import Loc, Tree

Finding = tuple[Loc, str]
_LINE_MOST = 8_192
_VARIABLE = "LEGATO_ALERTS__NOTIFY"
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_SLACK = "hooks.slack.com"
#: A secret's field, and what it is called.
_SECRETS = {"secret": "the secret", "token": "the token"}


def first_line(path: str) -> SecretStr:
    """The first line of a file.  Raises ``OSError``."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return SecretStr(file.readline(_LINE_MOST).strip())


# ---------------------------------------------------------------- what is wrong


def notify_findings(alerts: Alerts, tree: Tree) -> Iterator[Finding]:
    """What does not go together."""
    names: set[str] = set()
    for index, each in enumerate(alerts.notify):
        loc: Loc = ("alerts", "notify", index)
        if not each.kinds:
            yield loc, "who is told? write one of webhook: {...}, slack: {...}, alertmanager: {...}, log: on"
            continue
        if len(each.kinds) > 1:
            yield loc, f"{' and '.join(each.kinds)} in one entry: make an entry of its own for each"
            continue
        if each.called in names:
            at = (*loc, "name") if each.name else loc
            yield at, f"{each.called!r} is the name of another one too: give each a name of its own"
        names.add(each.called)
        if told := each.webhook or each.slack or each.alertmanager:
            yield from _over_http((*loc, each.kinds[0]), told, tree)


def _over_http(loc: Loc, told: Webhook | Slack | Alertmanager, tree: Tree) -> Iterator[Finding]:
    yield from _address(loc, told, tree)
    for name in _SECRETS:
        if name in type(told).model_fields:
            yield from _secret(loc, name, getattr(told, name), getattr(told, f"{name}_file"), tree)


def _address(loc: Loc, told: Webhook | Slack | Alertmanager, tree: Tree) -> Iterator[Finding]:
    by_file = None if isinstance(told, Alertmanager) else told.url_file
    if told.url is not None and by_file is not None:
        yield (*loc, "url_file"), "url and url_file both say where to: keep one of them"
        return
    if told.url is None and by_file is None:
        ways = "url: http://alertmanager:9093" if isinstance(told, Alertmanager) else "url_file: FILE"
        yield loc, f"where to? write {ways}"
        return
    url, at = told.url, (*loc, "url")
    if url is None and by_file is not None:
        at = (*loc, "url_file")
        if "://" in by_file:
            yield at, "a URL stands here: put it into a file, and write that file's path"
            return
        missing = list(readable(at, by_file))
        yield from missing
        if missing:
            return
        url = first_line(by_file)
    elif isinstance(told, Slack) and not tree.place(at).startswith("LEGATO_"):
        mend = f"put it into a file and name that with url_file, or set {_VARIABLE} as a whole"
        yield at, f"the URL of a Slack webhook is a secret and does not belong here: {mend}"
        return
    assert url is not None
    yield from _url(at, url.get_secret_value(), told)


def _url(at: Loc, text: str, told: Webhook | Slack | Alertmanager) -> Iterator[Finding]:
    if not text.strip() and at[-1] == "url_file":
        yield at, "its first line is empty: write the URL there"
    elif (wrong := problem_of(text, base=isinstance(told, Alertmanager))) is not None:
        yield at, wrong
    elif isinstance(told, Webhook) and host_of(text) == _SLACK:
        yield at, "Slack does not read this JSON: write slack: {url_file: FILE} instead of webhook"


def _secret(loc: Loc, name: str, given: SecretStr | None, path: str | None, tree: Tree) -> Iterator[Finding]:
    """A secret, from a variable or a file: no empty one, and none in the configuration itself."""
    at, called = (*loc, name), _SECRETS[name]
    if given is not None and path is not None:
        yield (*loc, f"{name}_file"), f"{name} and {name}_file both give {called}: keep one of them"
        return
    if given is not None and not tree.place(at).startswith("LEGATO_"):
        yield at, f"a secret does not belong here: put it into a file and name that with {name}_file"
        return
    if path is not None:
        at = (*loc, f"{name}_file")
        missing = list(readable(at, path))
        yield from missing
        if missing:
            return
        given = first_line(path)
    if given is not None:
        text = given.get_secret_value()
        if not text.strip():
            yield at, f"its first line is empty: write {called} there" if path else f"{called} is empty"
        elif name == "token" and not (text.isascii() and text.isprintable() and " " not in text):
            yield at, "a bearer token is one word of plain ASCII"


# ---------------------------------------------------------------- what is read, shown and watched


def read_notifiers(alerts: Alerts) -> Alerts:
    """With what its files hold in place of their names' fields.  Raises ``OSError``."""
    return alerts.model_copy(update={"notify": tuple(_read(each) for each in alerts.notify)})


def _read(each: Notifier) -> Notifier:
    told = each.webhook or each.slack or each.alertmanager
    if told is None:
        return each
    held = {}
    for name in ("url", *_SECRETS):
        path = getattr(told, f"{name}_file", None)
        if path is not None and getattr(told, name) is None:
            held[name] = first_line(path)
    return each.model_copy(update={each.kinds[0]: told.model_copy(update=held)}) if held else each


def notify_files(alerts: Alerts) -> list[str]:
    """The files that hold URLs, secrets and tokens."""
    told = [each.webhook or each.slack or each.alertmanager for each in alerts.notify]
    names = ("url_file", "secret_file", "token_file")
    return [path for each in told for name in names if (path := getattr(each, name, None)) is not None]


def notify_destinations(alerts: Alerts) -> list[tuple[str, str]]:
    """Who is told, for people: ``("notify", a sentence)``; of a URL only the host."""
    return [("notify", f"{each.called}: {_words(each)}") for each in alerts.notify]


def _words(each: Notifier) -> str:
    told = each.webhook or each.slack or each.alertmanager
    if told is None:
        return "a line on standard error"
    where = "?" if told.url is None else host_of(told.url.get_secret_value())
    if isinstance(told, Webhook):
        return f"JSON to {where}" + (", signed" if told.secret is not None else "")
    if isinstance(told, Slack):
        return f"Slack, by {where}"
    return f"Alertmanager at {where}" + (" with a token" if told.token is not None else "")


def cares_of_notifiers(alerts: Alerts) -> Iterator[str]:
    """What is allowed and still deserves a look."""
    for each in alerts.notify:
        told = each.webhook or each.slack or each.alertmanager
        if told is None or told.url is None:
            continue
        url = told.url.get_secret_value().strip()
        where = host_of(url)
        if url.startswith("https://") or where.startswith(_LOCAL):
            continue
        held = "token" if isinstance(told, Alertmanager) else "key" if isinstance(told, Slack) else None
        if isinstance(told, Alertmanager) and told.token is None:
            continue
        what = f"the {held} goes" if held else "alerts go"
        yield f"notifier {each.called}: {what} to {where} in clear text: https is TLS"


def hide_urls(alerts: Alerts, written: list[dict[str, object]]) -> None:
    """Show of each URL the host, in settings as they are written for people."""
    for each, out in zip(alerts.notify, written, strict=True):
        told = each.webhook or each.slack or each.alertmanager
        inner = out[each.kinds[0]] if told is not None else None
        if told is not None and told.url is not None and isinstance(inner, dict):
            inner["url"] = shown_url(told.url.get_secret_value())
