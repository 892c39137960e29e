"""Those who are told of alerts, one kind a model.

What a secret is made of is a ``SecretStr``: it comes from a file that is named here, or from the variable
``LEGATO_ALERTS__NOTIFY``.  After loading it stands in the field, wherever it came from.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr

from proxy.settings.base import Settings
from proxy.settings.types import Name, PositiveDuration, Switch

_S = 1_000_000_000
_TIMEOUT = "For one attempt, from the connection to the end of the answer."
#: The kinds, in the order in which they are documented.
KINDS: tuple[Literal["webhook", "slack", "alertmanager", "log"], ...] = (
    "webhook",
    "slack",
    "alertmanager",
    "log",
)


class Webhook(Settings):
    """JSON by POST, signed where there is a secret."""

    url: SecretStr | None = Field(
        default=None, description="Where to. One that holds a key belongs into `url_file`."
    )
    url_file: str | None = Field(default=None, description="A file whose first line is the URL.")
    secret: SecretStr | None = Field(
        default=None,
        description="The secret of the signature (HMAC-SHA256 of time and body). By variable only.",
    )
    secret_file: str | None = Field(default=None, description="A file whose first line is the secret.")
    timeout: PositiveDuration = Field(default=5 * _S, description=_TIMEOUT)


class Slack(Settings):
    """An incoming webhook of Slack's."""

    url: SecretStr | None = Field(
        default=None, description="The webhook's URL, which is a secret. By variable only."
    )
    url_file: str | None = Field(default=None, description="A file whose first line is the webhook's URL.")
    timeout: PositiveDuration = Field(default=5 * _S, description=_TIMEOUT)


class Alertmanager(Settings):
    """Prometheus's Alertmanager, by its API v2."""

    url: SecretStr | None = Field(default=None, description="Its base URL, `http://alertmanager:9093`.")
    token: SecretStr | None = Field(
        default=None, description="A bearer token, where it needs one. By variable only."
    )
    token_file: str | None = Field(default=None, description="A file whose first line is the token.")
    timeout: PositiveDuration = Field(default=5 * _S, description=_TIMEOUT)


class Notifier(Settings):
    """One of these."""

    name: Name | None = Field(default=None, description="What it is called; without it, its kind.")
    webhook: Webhook | None = Field(default=None, description="JSON by POST.")
    slack: Slack | None = Field(default=None, description="Slack.")
    alertmanager: Alertmanager | None = Field(default=None, description="Alertmanager.")
    log: Switch = Field(default=False, description="A line on standard error.")

    @property
    def kinds(self) -> list[Literal["webhook", "slack", "alertmanager", "log"]]:
        """What it was said to be: one kind, if it passed the check."""
        return [kind for kind in KINDS if getattr(self, kind) not in (None, False)]

    @property
    def called(self) -> str:
        """Its name."""
        return self.name or next(iter(self.kinds), "")
