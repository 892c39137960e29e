"""What the admin API tells of two backends over a window: pure, from slots to frozen structs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal, NamedTuple

from msgspec import Meta, Struct

from proxy.control.experiments import words
from proxy.control.experiments.views import Reason
from proxy.control.record import iso_time
from proxy.control.scope import DEGRADED, Degraded, Share
from proxy.control.settle import GroupKey
from proxy.control.windows import Windowed
from proxy.exporters.catalog import OTHER
from scoring.compare import QuantileBounds, Verdict
from scoring.compare_fixed import METRIC, FixedLook, Look, difference, look, wilson
from scoring.slot import Slot

ALPHA: Final = 0.05
WARNING: Final = (
    "One look: the intervals hold for one window that was chosen beforehand, not for a page that is watched "
    "until it shows a difference. They compare whoever was sent to either backend, not a randomised split, "
    "and take each request for independent, which requests of one session are not. To decide, start an "
    "experiment."
)
TITLES: Final = words.TITLES | {"with_misses": "streams with a miss"}
_REASONS: Final = {
    "interval": "the interval tells the two apart no more than it shows them alike",
    "too_few": "either arm needs 50 requests that have it (for an interval of a mean 10)",
    "no_data": "an arm has no request that has it",
    "no_variance": "all requests are alike, which says nothing of the next",
    "not_kept": "windows keep its sum, not how it varies from request to request: no interval",
}
#: Shares of a model that differ by more than this, and mean lengths by more than this factor, are said.
_SHARE_APART: Final = 0.1
_LENGTH_APART: Final = 1.2


class LookArm(Struct, frozen=True, kw_only=True):
    """What one backend did in the window."""

    backend: str
    requests: int
    outcomes: dict[str, int]
    results: dict[str, int]
    models: Annotated[dict[str, int], Meta(description="requests by model")]
    prompt_tokens_mean: float | None
    output_tokens_mean: float | None


class LookMetric(Struct, frozen=True, kw_only=True):
    """One metric; times in seconds, shares and fluidity from 0 to 1, `log_ttft` in ln(seconds)."""

    metric: str
    title: Annotated[str, Meta(description="the metric in words")]
    unit: Annotated[Literal["ratio", "seconds", "log_seconds"], Meta(description="of all figures here")]
    better: Annotated[Literal["more", "less"], Meta(description="which of the two is better")]
    control: float | None
    candidate: float | None
    effect: Annotated[float | None, Meta(description="candidate minus control")]
    low: Annotated[float | None, Meta(description="95% interval, for one look; null: see `reasons`")]
    high: float | None
    margin: Annotated[float | None, Meta(description="a difference that nobody minds")]
    verdict: Verdict
    reasons: Annotated[list[Reason], Meta(description="why it is undecided")]
    counts: Annotated[
        dict[str, int], Meta(description="requests that have it; of `deadline_misses`: deadlines")
    ]


class LookBounds(Struct, frozen=True):
    """A quantile of one arm's TTFT in seconds, and its 95% interval; null: the requests do not bound it."""

    value: float | None
    low: float | None
    high: float | None


class LookQuantile(Struct, frozen=True, kw_only=True):
    """One quantile of TTFT over requests that were answered."""

    q: float
    control: LookBounds
    candidate: LookBounds
    effect: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    reasons: list[Reason]


class CompareLook(Struct, frozen=True, kw_only=True):
    """Two backends over a window, for one look; no experiment."""

    kind: Literal["fixed_look"] = "fixed_look"
    warning: str = WARNING
    control: LookArm
    candidate: LookArm
    model: str | None
    slo: str | None
    asked_s: float
    covered_from: str
    covered_to: str
    scope: str
    instances: int
    degraded: Annotated[Degraded | None, Meta(description=DEGRADED)]
    alpha: Annotated[float, Meta(description="the chance, per row, that a true difference lies outside")]
    metrics: list[LookMetric]
    ttft_quantiles: list[LookQuantile]
    notes: Annotated[list[str], Meta(description="what the numbers do not say, and what may explain them")]


class Asked(NamedTuple):
    """The question; ``model``, ``slo``: only these requests."""

    control: str
    candidate: str
    model: str | None
    slo: str | None
    window_ns: int


class NothingToCompare(Exception):
    """Of these backends no such request ended in the window."""

    def __init__(self, backends: list[str]) -> None:
        super().__init__(", ".join(backends))
        self.backends = backends


def compared(asked: Asked, read: Windowed, share: Share) -> CompareLook:
    """The answer; raises ``NothingToCompare``."""
    slots = [_slots(read.groups, name, asked) for name in (asked.control, asked.candidate)]
    control, candidate = (
        _arm(name, of) for name, of in zip((asked.control, asked.candidate), slots, strict=True)
    )
    if empty := [arm.backend for arm in (control, candidate) if not arm.requests]:
        raise NothingToCompare(empty)
    merged = [_merged(of.values()) for of in slots]
    found = look(merged[0], merged[1], ALPHA)
    return CompareLook(
        control=control,
        candidate=candidate,
        model=asked.model,
        slo=asked.slo,
        asked_s=asked.window_ns / 1e9,
        covered_from=iso_time(read.start_ns),
        covered_to=iso_time(read.end_ns),
        scope=share.scope,
        instances=share.instances,
        degraded=share.degraded,
        alpha=ALPHA,
        metrics=[_metric(each) for each in found.metrics],
        ttft_quantiles=_quantiles(found),
        notes=[
            *_apart(control, candidate),
            *_rejected((control.backend, candidate.backend), merged),
            *_unsaid(read.groups, merged),
        ],
    )


def _slots(groups: Mapping[GroupKey, Slot], backend: str, asked: Asked) -> dict[GroupKey, Slot]:
    return {
        key: slot
        for key, slot in groups.items()
        if key.backend == backend and asked.model in (None, key.model) and asked.slo in (None, key.slo)
    }


def _merged(slots: Iterable[Slot]) -> Slot:
    merged = Slot()
    for slot in slots:
        merged.merge(slot)
    return merged


def _arm(backend: str, slots: Mapping[GroupKey, Slot]) -> LookArm:
    models: dict[str, int] = {}
    for key, slot in slots.items():
        models[key.model] = models.get(key.model, 0) + slot.requests
    requests = sum(models.values())

    def mean(total: str) -> float | None:
        return round(sum(slot.totals[total] for slot in slots.values()) / requests, 1) if requests else None

    return LookArm(
        backend=backend,
        requests=requests,
        outcomes=_added(slot.outcomes for slot in slots.values()),
        results=_added(slot.results for slot in slots.values()),
        models=dict(sorted(models.items())),
        prompt_tokens_mean=mean("prompt_tokens"),
        output_tokens_mean=mean("output_tokens"),
    )


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    out: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            out[name] = out.get(name, 0) + count
    return out


# ---------------------------------------------------------------- how it is told


def _metric(each: Look) -> LookMetric:
    return LookMetric(
        metric=each.metric,
        title=TITLES[each.metric],
        unit=words.unit_of(each.metric),
        better="more" if METRIC[each.metric].better > 0 else "less",
        control=_digits(each.control),
        candidate=_digits(each.candidate),
        effect=_digits(each.effect),
        low=_digits(each.low),
        high=_digits(each.high),
        margin=_digits(each.margin),
        verdict=each.verdict,
        reasons=_reasons(each.reasons),
        counts={"control": each.counts[0], "candidate": each.counts[1]},
    )


def _quantiles(found: FixedLook) -> list[LookQuantile]:
    def bounds(of: QuantileBounds) -> LookBounds:
        return LookBounds(_digits(of.value), _digits(of.low), _digits(of.high))

    return [
        LookQuantile(
            q=each.q,
            control=bounds(each.control),
            candidate=bounds(each.candidate),
            effect=_digits(each.effect),
            low=_digits(each.low),
            high=_digits(each.high),
            verdict=each.verdict,
            reasons=_reasons(each.reasons),
        )
        for each in found.quantiles
    ]


def _reasons(codes: Iterable[str]) -> list[Reason]:
    return [Reason(code, _REASONS[code]) for code in codes]


def _digits(value: float | None) -> float | None:
    """Nanoseconds, where the unit is seconds."""
    return None if value is None else round(value, 9)


def _apart(control: LookArm, candidate: LookArm) -> list[str]:
    """What the two were asked for, where it differs so much that it may be the difference."""
    said = []
    for model in sorted(control.models.keys() | candidate.models.keys()):
        shares = [arm.models.get(model, 0) / arm.requests for arm in (control, candidate)]
        if abs(shares[0] - shares[1]) > _SHARE_APART:
            said.append(
                f"model {model}: {shares[0]:.0%} of {control.backend}'s requests, {shares[1]:.0%} of "
                f"{candidate.backend}'s; compare one model at a time (model=)"
            )
    for what, one, other in (
        ("prompts", control.prompt_tokens_mean, candidate.prompt_tokens_mean),
        ("answers", control.output_tokens_mean, candidate.output_tokens_mean),
    ):
        low, high = sorted((one or 0.0, other or 0.0))
        if high > max(low * _LENGTH_APART, 1.0):
            said.append(
                f"{what} are not alike: {one or 0:.0f} tokens on average at {control.backend}, "
                f"{other or 0:.0f} at {candidate.backend}"
            )
    return said


def _rejected(names: tuple[str, str], merged: list[Slot]) -> list[str]:
    """Where one of the two rejects what the other takes, what is left is another kind of traffic."""
    counts = [(slot.outcomes["rejected"], slot.requests) for slot in merged]
    if not all(whole for _, whole in counts):
        return []
    found = difference(*(wilson(hits, whole, ALPHA) for hits, whole in counts))
    if found.low <= 0 <= found.high:
        return []
    shares = " and ".join(
        f"{hits / whole:.1%} of {name}'s requests" for name, (hits, whole) in zip(names, counts, strict=True)
    )
    return [f"{shares} were rejected (4xx) and are in no metric: what is left may not be alike"]


def _unsaid(groups: Iterable[GroupKey], merged: list[Slot]) -> list[str]:
    said = [
        "times are of requests that were answered: an arm that fails its slow ones looks fast, so read them "
        "beside good and errors"
    ]
    if any(key.backend == OTHER for key in groups):
        said.append("some requests are booked as 'other', past the limit of groups, and are in neither arm")
    if failed := sum(slot.outcomes["proxy_error"] for slot in merged):
        said.append(f"{failed} requests failed by this proxy's own fault and are in no share")
    return said
