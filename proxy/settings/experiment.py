"""Comparing two backends of a split, and taking a failing one out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from proxy.settings.base import Settings
from proxy.settings.types import Name, PositiveDuration, Ratio, Switch

_S = 1_000_000_000

#: ``scoring.compare_sums.METRICS`` by name.
MetricName = Literal[
    "good", "fluidity", "deadline_misses", "ttft", "log_ttft", "normalized_latency", "errors"
]


class Experiment(Settings):
    """Which of two backends serves users better."""

    name: Name | None = Field(
        default=None, description="What it is called; without a name there is none. A name is used once."
    )
    control: Name | None = Field(default=None, description="The backend that is known.")
    candidate: Name | None = Field(default=None, description="The one that it is compared with.")
    split: Name | None = Field(
        default=None,
        description="The route (by its `name`) whose requests count, where both backends are in several.",
    )
    metric: MetricName = Field(default="good", description="What decides; the others are shown beside it.")
    margin: Ratio | None = Field(
        default=None,
        description="A difference that nobody minds: of shares in points (`0.5%`), of times in parts of the "
        "control's value. Without it 0.5 points, or 5%.",
    )
    requests: int = Field(
        default=1000,
        ge=50,
        le=100_000_000,
        description="How many requests of each arm it is planned for: intervals are tightest there, and no "
        "verdict comes before a twentieth of it.",
    )
    alpha: Ratio = Field(
        default=0.05,
        gt=0,
        lt=0.5,
        description="The chance, per metric, of ever calling a difference that is none.",
    )
    abort: Switch = Field(
        default=False,
        description="Send everything back to the control where the candidate is surely worse on good "
        "requests or errors, by more than the margin of each (0.5 points where `margin` is another's).",
    )


class Ejection(Settings):
    """When a backend of a split is taken out, and how it comes back.  Never the last one."""

    enabled: Switch = Field(default=False, description="Off: health is shown, and nothing is taken out.")
    failures: Ratio = Field(
        default=0.5,
        gt=0,
        description="Share of a backend's requests of the last `window` that failed: connection refused or "
        "reset, no answer, timeouts, 5xx but 503 (overloaded).",
    )
    requests: int = Field(default=10, ge=1, description="Fewer requests than these in `window` say nothing.")
    window: PositiveDuration = Field(default=30 * _S, description="What is looked at, from 1s on.")
    time: PositiveDuration = Field(
        default=30 * _S,
        description="How long it stays out the first time, from 1s on; doubled each time in a row, up to ten "
        "minutes. It comes back in steps of 10%, 30% and all of its weight, each `window` long.",
    )
