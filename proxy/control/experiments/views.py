"""What readers see of an experiment: one picture, complete, in JSON as it stands here."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from proxy.control.experiments.spec import ExperimentSpec

State = Literal["running", "stopped", "aborted"]


class Reason(Struct, frozen=True):
    """Why a metric is undecided: a code that stays, and a sentence for people."""

    code: str
    what: str


class MetricView(Struct, frozen=True, kw_only=True):
    """One metric: the candidate against the control."""

    metric: str
    title: Annotated[str, Meta(description="The metric in words.")]
    unit: Annotated[Literal["ratio", "seconds", "log_seconds"], Meta(description="Of all figures here.")]
    better: Annotated[Literal["more", "less"], Meta(description="Which of the two is better.")]
    control: float | None
    candidate: float | None
    effect: Annotated[float | None, Meta(description="Candidate minus control, weights' changes taken out.")]
    low: Annotated[float | None, Meta(description="The effect's interval, which holds at every moment.")]
    high: float | None
    margin: Annotated[float | None, Meta(description="A difference that nobody minds.")]
    verdict: Literal["better", "worse", "equivalent", "undecided"]
    beyond_margin: Annotated[bool, Meta(description="Worse, and surely by more than the margin.")]
    reasons: Annotated[list[Reason], Meta(description="Why it is undecided.")]
    more_requests: Annotated[
        int | None,
        Meta(description="About as many more, of both arms, until a verdict; null: that cannot be said."),
    ]
    design_effect: Annotated[float, Meta(description="By what factor sessions inflate the variance.")]
    independent_requests: Annotated[
        float, Meta(description="What was seen is worth so many independent requests per arm.")
    ]


class QuantileView(Struct, frozen=True):
    """A quantile of an arm over all its requests, with bounds that hold at every moment."""

    quantile: float
    value_s: float | None
    low_s: float | None
    high_s: float | None


class ArmView(Struct, frozen=True, kw_only=True):
    """One arm: what was counted, and what may explain a difference."""

    backend: str
    assigned: Annotated[int, Meta(description="Requests, counted when they were assigned.")]
    recorded: Annotated[int, Meta(description="Requests, counted when they were settled.")]
    failed_over: Annotated[int, Meta(description="Failures of this arm that another backend answered.")]
    in_flight: Annotated[int, Meta(description="Assigned, and plausibly not ended yet.")]
    lost: Annotated[int, Meta(description="Assigned, and lost with a worker that was killed.")]
    overdue: Annotated[
        int, Meta(description="Of those in flight: overdue for some seconds by now; in no metric yet.")
    ] = 0
    ttft: list[QuantileView]
    normalized_latency: list[QuantileView]
    in_flight_per_address: Annotated[
        float | None, Meta(description="Requests in flight over the backend's addresses, mean over time.")
    ]
    cached_share: Annotated[
        float | None, Meta(description="Cached prompt tokens over all, of requests that tell both.")
    ]
    prompt_tokens_p50: float | None
    prompt_tokens_p90: float | None


class EpochArm(Struct, frozen=True):
    """What one arm was assigned, and settled, under some weights."""

    assigned: int
    recorded: int


class EpochView(Struct, frozen=True, kw_only=True):
    """Some weights, and all stretches in which they were in force."""

    weights: dict[str, int]
    share: Annotated[float | None, Meta(description="The candidate's of what goes to either arm.")]
    control: EpochArm
    candidate: EpochArm
    in_force: bool


class TestView(Struct, frozen=True):
    """Whether what the comparison rests on can be trusted."""

    name: Annotated[str, Meta(description="assignment | recorded:control | recorded:candidate | rejected")]
    alarm: bool
    p_value: float
    what: str

    __test__ = False  # not one of pytest's


class GuardrailView(Struct, frozen=True):
    """Whether the candidate is surely worse by the margin on good requests or errors; said once, it stays."""

    state: Literal["ok", "worse"]
    what: str | None = None
    since: str | None = None


class HourView(Struct, frozen=True):
    """The hour of the day (UTC) of which the two arms' shares of their own requests differ most."""

    hour: int
    control: float
    candidate: float


class EjectionView(Struct, frozen=True):
    """A backend of the split was out, or on its way back, meanwhile."""

    backend: str
    since: str
    until: str | None


class ExperimentView(Struct, frozen=True, kw_only=True):
    """One experiment, whole."""

    spec: ExperimentSpec
    split: Annotated[
        str | None, Meta(description="The split it runs in; null where this host has none such.")
    ]
    state: State
    since: Annotated[str, Meta(description="ISO 8601, UTC.")]
    until: str | None
    by: Annotated[str, Meta(description="Who started it: `file`, or a name that was given.")]
    ended_by: str | None
    ended_for: str | None
    verdict: Annotated[
        Literal["better", "worse", "equivalent", "undecided"],
        Meta(description="Of the metric that decides: the candidate's."),
    ]
    headline: Annotated[str, Meta(description="The verdict in a sentence.")]
    metrics: list[MetricView]
    control: ArmView
    candidate: ArmView
    epochs: list[EpochView]
    integrity: list[TestView]
    guardrail: GuardrailView
    clustered: Annotated[bool, Meta(description="Requests of one session are taken as one another's.")]
    occupied: Annotated[
        list[int],
        Meta(description="Groups of sessions (of 512) with requests, by arm; empty if not clustered."),
    ]
    hour: HourView | None
    ejections: list[EjectionView]
    hosts: Annotated[int, Meta(description="Control processes whose counts are in here, past ones included.")]
    notes: Annotated[list[str], Meta(description="What else a reader should know.")]


class ExperimentAlarm(Struct, frozen=True):
    """Somebody should look: ``guardrail`` (the candidate is surely worse) or ``integrity``."""

    name: str
    kind: Literal["guardrail", "integrity"]
    what: str
    since_unix_ns: int
