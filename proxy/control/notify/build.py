"""From the settings of a notifier to what tells."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import SecretStr

from proxy.control.notify.alertmanager import PATH, Alertmanager
from proxy.control.notify.base import Notifier, Origin
from proxy.control.notify.http import Post
from proxy.control.notify.log import Log
from proxy.control.notify.slack import Slack
from proxy.control.notify.webhook import Webhook
from proxy.settings.notify import Notifier as Settings
from proxy.settings.notify_url import host_of


def build(settings: Settings, origin: Origin, unix_ns: Callable[[], int]) -> Notifier:
    """One notifier.  Its settings have passed the check, and hold what their files hold."""
    name = settings.called
    if settings.log:
        return Log(name)
    told = settings.webhook or settings.slack or settings.alertmanager
    if told is None or told.url is None:
        raise ValueError(f"notifier {name!r} has no kind or no URL")
    url = told.url.get_secret_value().strip()
    where = host_of(url)
    if settings.alertmanager is not None:
        post = Post(url.rstrip("/") + PATH, told.timeout, origin.version, unix_ns)
        return Alertmanager(name, where, post, _plain(settings.alertmanager.token))
    post = Post(url, told.timeout, origin.version, unix_ns)
    if settings.slack is not None:
        return Slack(name, where, post)
    assert settings.webhook is not None
    secret = _plain(settings.webhook.secret)
    key = None if secret is None else secret.encode()
    return Webhook(name, where, post=post, secret=key, origin=origin, unix_ns=unix_ns)


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
