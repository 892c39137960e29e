"""Those who are told of alerts, one kind a model."""

from __future__ import annotations

from pydantic import Field, SecretStr

from proxy.settings.base import Settings
from proxy.settings.types import PositiveDuration, Switch

_S = 1_000_000_000


class Webhook(Settings):
    """JSON by POST, signed where there is a secret."""

    url: SecretStr | None = Field(
        default=None, description="Where to. One that holds a key belongs into `url_file`."
    )
    url_file: str | None = Field(default=None, description="A file whose first line is the URL.")
    secret_file: str | None = Field(
        default=None,
        description="A file with the secret of the signature (HMAC-SHA256 of time and body).",
    )
    timeout: PositiveDuration = Field(default=5 * _S, description="For one attempt.")


class Slack(Settings):
    """An incoming webhook of Slack's."""

    url_file: str | None = Field(default=None, description="A file whose first line is the webhook's URL.")
    timeout: PositiveDuration = Field(default=5 * _S, description="For one attempt.")


class Alertmanager(Settings):
    """Prometheus's Alertmanager, by its API v2."""

    url: str | None = Field(default=None, description="Its base URL, `http://alertmanager:9093`.")
    token_file: str | None = Field(
        default=None, description="A file with a bearer token, where it needs one."
    )
    timeout: PositiveDuration = Field(default=5 * _S, description="For one attempt.")


class Notifier(Settings):
    """One of these."""

    name: str | None = Field(default=None, description="What it is called; without it, its kind.")
    webhook: Webhook | None = Field(default=None, description="JSON by POST.")
    slack: Slack | None = Field(default=None, description="Slack.")
    alertmanager: Alertmanager | None = Field(default=None, description="Alertmanager.")
    log: Switch = Field(default=False, description="A line on standard error.")
