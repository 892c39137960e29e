"""Which rules are watched, where their limits lie, and who is told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from proxy.settings.base import Settings
from proxy.settings.notify import Notifier
from proxy.settings.types import OffDuration, PositiveDuration, Ratio, Url

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


class BurnWindow(Settings):
    """A long and a short window, and how fast both must burn."""

    burn: float = Field(
        default=14.4,
        gt=0,
        allow_inf_nan=False,
        description="Fires where bad requests use up what the objective leaves so many times faster than "
        "allowed. What no outage reaches, `1 / (1 - objective)`, is refused.",
    )
    long: PositiveDuration = Field(
        default=3_600 * _S, description="The long window: is it enough to matter? Up to 6h, what is kept."
    )
    short: PositiveDuration = Field(
        default=300 * _S, description="The short one: does it still go on? Shorter than `long`."
    )
    severity: Literal["page", "ticket"] = Field(default="page", description="How urgent it is.")


class SpikeLimits(Settings):
    """Requests of the last minute with at least one missed deadline."""

    share: Ratio = Field(default=0.25, gt=0, le=1, description="Fewer than these are no spike.")
    times: float = Field(
        default=3.0,
        ge=1,
        allow_inf_nan=False,
        description="So many times the usual share of the last hour.",
    )
    requests: int = Field(default=5, ge=1, description="So many requests at least; each counts once.")


class ErrorLimits(Settings):
    """Requests of the last minute that failed."""

    share: Ratio = Field(default=0.05, gt=0, le=1, description="Fewer than these are no reason.")
    times: float = Field(
        default=3.0,
        ge=1,
        allow_inf_nan=False,
        description="So many times the usual share of the last hour.",
    )
    requests: int = Field(default=5, ge=1, description="So many requests at least; each counts once.")


class StalledLimits(Settings):
    """Streams that wait for tokens that should have come."""

    share: Ratio = Field(default=0.5, gt=0, le=1, description="Of those in flight, over `over`, are overdue.")
    over: PositiveDuration = Field(default=20 * _S, description="For how long: 10s, 20s, up to 60s.")
    streams: int = Field(default=5, ge=1, description="So many of them at least.")
    silent: PositiveDuration = Field(
        default=30 * _S,
        description="Or: no stream had a token for so long, while two are overdue. Up to 60s.",
    )


class DriftLimits(Settings):
    """How many times slower than frozen (`ttft: {learned: FILE}`), for three minutes."""

    prefill: float = Field(
        default=1.5, gt=1, allow_inf_nan=False, description="The first token's time, by the prompt's length."
    )
    tbt_p50: float = Field(
        default=1.6, gt=1, allow_inf_nan=False, description="The median time between tokens."
    )
    tbt_p99: float = Field(default=2.5, gt=1, allow_inf_nan=False, description="Its 99th percentile.")


class Alerts(Settings):
    """Which rules are watched, and who is told."""

    rules: tuple[RuleName, ...] = Field(default=ALL_RULES, description="The rules that are watched.")
    burn_rates: tuple[BurnWindow, ...] = Field(
        default=(),
        description="The windows of `burn_rate`, for every SLO. Without any: 1h and 5m at 14.4, 6h and "
        "30m at 6, as far as an SLO's objective lets them fire.",
    )
    spike: SpikeLimits = Field(default=SpikeLimits(), description="When missed deadlines are a spike.")
    errors: ErrorLimits = Field(default=ErrorLimits(), description="When failures are too many.")
    stalled: StalledLimits = Field(default=StalledLimits(), description="When streams in flight are stuck.")
    drift: DriftLimits = Field(default=DriftLimits(), description="When a server became slower.")
    notify: tuple[Notifier, ...] = Field(
        default=(), description="Who is told. Without anybody alerts are shown by the API and the metrics."
    )
    repeat: OffDuration = Field(
        default=4 * 3600 * _S, description="A firing alert is told again after this long."
    )
    url: Url | None = Field(
        default=None, description="Where people reach the admin API, for the links in notifications."
    )
