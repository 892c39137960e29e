"""Who is told of what."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from proxy.settings.base import Settings
from proxy.settings.notify import Notifier
from proxy.settings.types import OffDuration, Url

_S = 1_000_000_000

RuleName = Literal["burn_rate", "spike", "errors", "stalled", "drift", "backend_down", "experiment", "proxy"]
ALL_RULES: tuple[RuleName, ...] = (
    "burn_rate",
    "spike",
    "errors",
    "stalled",
    "drift",
    "backend_down",
    "experiment",
    "proxy",
)


class Alerts(Settings):
    """Which rules are watched, and who is told."""

    rules: tuple[RuleName, ...] = Field(default=ALL_RULES, description="The rules that are watched.")
    notify: tuple[Notifier, ...] = Field(
        default=(), description="Who is told. Without anybody alerts are shown by the API and the metrics."
    )
    repeat: OffDuration = Field(
        default=4 * 3600 * _S, description="A firing alert is told again after this long."
    )
    url: Url | None = Field(
        default=None, description="Where people reach the admin API, for the links in notifications."
    )
