"""The picture of an experiment that readers get: verdicts, and beside them what may explain a difference."""

from __future__ import annotations

from typing import Final

from proxy.control.experiments import words
from proxy.control.experiments.arms import SplitView, arms_of
from proxy.control.experiments.book import CANDIDATE, CONTROL, Book
from proxy.control.experiments.experiment import Experiment, share_of
from proxy.control.experiments.views import (
    ArmView,
    EjectionView,
    EpochArm,
    EpochView,
    ExperimentAlarm,
    ExperimentView,
    GuardrailView,
    HourView,
    MetricView,
    QuantileView,
    Reason,
    TestView,
)
from proxy.control.record import iso_time
from scoring.compare import Comparison, Judged, occupied, quantile_bounds
from scoring.compare_sums import METRICS, ArmSums
from scoring.sketch import LogHistogram

_QUANTILES: Final = (0.5, 0.9, 0.99)
_BETTER: Final = {metric.name: metric.better for metric in METRICS}
#: An experiment that was aborted is alarming for so long: somebody should hear of it.
ABORT_HEARD_NS: Final = 3_600_000_000_000


def view_of(experiment: Experiment, split: SplitView | None, now_unix_ns: int) -> ExperimentView:
    """Everything at this moment; the last picture of one whose figures are final."""
    entry, spec = experiment.entry, experiment.spec
    if entry.final is not None:
        return entry.final
    comparison = experiment.compare(now_unix_ns)
    total = experiment.total()
    metrics = [_metric(comparison.metrics[metric.name], experiment) for metric in METRICS]
    deciding = comparison.metrics[spec.metric]
    reasons = [words.reason(code, spec) for code in deciding.reasons]
    sums = [[pair[arm] for pair in total.epochs.values()] for arm in (CONTROL, CANDIDATE)]
    return ExperimentView(
        spec=spec,
        split=None if experiment.split is None else entry.split,
        state=entry.state,
        since=iso_time(entry.since_unix_ns),
        until=None if entry.until_unix_ns is None else iso_time(entry.until_unix_ns),
        by=entry.by,
        ended_by=entry.ended_by,
        ended_for=entry.ended_for,
        verdict=deciding.verdict.value,
        headline=words.headline(deciding, spec, reasons)
        + words.besides(deciding, comparison.metrics.values()),
        metrics=metrics,
        control=_arm(experiment, total, CONTROL, comparison),
        candidate=_arm(experiment, total, CANDIDATE, comparison),
        epochs=_epochs(experiment, total, split),
        integrity=[
            TestView(test.name, test.alarm, test.p_value, words.told(test, spec))
            for test in comparison.integrity
        ],
        guardrail=_guardrail(experiment),
        clustered=comparison.clustered,
        occupied=[occupied(arm) if arm else 0 for arm in sums] if comparison.clustered else [],
        hour=_hour(total),
        ejections=[
            EjectionView(
                each.backend,
                iso_time(each.since_unix_ns),
                None if each.until_unix_ns is None else iso_time(each.until_unix_ns),
            )
            for each in experiment.ejections
        ],
        hosts=experiment.hosts,
        notes=_notes(experiment, total),
    )


def alarms_of(experiment: Experiment, now_unix_ns: int) -> list[ExperimentAlarm]:
    """What somebody should look at: of one that runs, and for a while of one that was aborted."""
    entry = experiment.entry
    heard = entry.state == "aborted" and now_unix_ns - (entry.until_unix_ns or 0) < ABORT_HEARD_NS
    out = []
    if entry.running or heard:
        what, since_unix_ns = experiment.tripped or (None, entry.until_unix_ns or now_unix_ns)
        if what is not None or heard:
            said = what or entry.ended_for or "the candidate is surely worse"
            out.append(ExperimentAlarm(entry.spec.name, "guardrail", said, since_unix_ns))
    if entry.running and experiment.alarming:
        comparison = experiment.compare(now_unix_ns)
        said = "; ".join(words.told(test, entry.spec) for test in comparison.integrity if test.alarm)
        if said:
            since_unix_ns = min(experiment.alarming.values())
            out.append(ExperimentAlarm(entry.spec.name, "integrity", said, since_unix_ns))
    return out


def _metric(judged: Judged, experiment: Experiment) -> MetricView:
    return MetricView(
        metric=judged.metric,
        title=words.TITLES[judged.metric],
        unit=words.unit_of(judged.metric),
        better="more" if _BETTER[judged.metric] > 0 else "less",
        control=judged.control,
        candidate=judged.candidate,
        effect=judged.effect,
        low=judged.low,
        high=judged.high,
        margin=judged.margin,
        verdict=judged.verdict.value,
        beyond_margin=judged.beyond_margin,
        reasons=[Reason(code, words.reason(code, experiment.spec)) for code in judged.reasons],
        more_requests=judged.more_requests,
        design_effect=judged.design_effect,
        independent_requests=judged.independent_requests,
    )


def _arm(experiment: Experiment, total: Book, arm: int, comparison: Comparison) -> ArmView:
    side = total.sides[arm]
    designs = {name: judged.design_effect for name, judged in comparison.metrics.items()}

    def quantiles(hist: LogHistogram, metric: str, infinite: int = 0) -> list[QuantileView]:
        return [
            _quantile(experiment, hist, q, infinite=infinite, design_effect=designs[metric])
            for q in _QUANTILES
        ]

    return ArmView(
        backend=experiment.arms[arm],
        assigned=total.assigned(arm),
        recorded=total.recorded(arm),
        failed_over=side.failed_over,
        in_flight=side.in_flight,
        lost=side.lost,
        overdue=experiment.overdue_of(arm),
        ttft=quantiles(side.ttft, "ttft", side.unanswered),
        normalized_latency=quantiles(side.normalized, "normalized_latency"),
        in_flight_per_address=side.load / side.ticks if side.ticks else None,
        cached_share=side.cached / side.cached_of if side.cached_of else None,
        prompt_tokens_p50=side.prompts.quantile(0.5),
        prompt_tokens_p90=side.prompts.quantile(0.9),
    )


def _quantile(
    experiment: Experiment, hist: LogHistogram, q: float, *, infinite: int, design_effect: float
) -> QuantileView:
    found = quantile_bounds(
        hist, q, experiment.spec.plan, infinite=infinite, design_effect=max(design_effect, 1.0)
    )
    value, low, high = (
        None if ns is None else round(ns * 1e-9, 6) for ns in (found.value, found.low, found.high)
    )
    return QuantileView(q, value, low, high)


def _epochs(experiment: Experiment, total: Book, split: SplitView | None) -> list[EpochView]:
    in_force = None if split is None or not experiment.entry.running else split.epoch
    return [
        EpochView(
            weights=arms_of(epoch)[1],
            share=share_of(epoch, experiment.spec),
            control=_counts(pair[CONTROL]),
            candidate=_counts(pair[CANDIDATE]),
            in_force=epoch == in_force,
        )
        for epoch, pair in total.epochs.items()
    ]


def _counts(sums: ArmSums) -> EpochArm:
    return EpochArm(int(sums.assigned.sum()), sums.recorded)


def _guardrail(experiment: Experiment) -> GuardrailView:
    entry = experiment.entry
    if experiment.tripped is None and entry.state == "aborted":  # by another host, or before a restart
        since = None if entry.until_unix_ns is None else iso_time(entry.until_unix_ns)
        return GuardrailView("worse", entry.ended_for, since)
    if experiment.tripped is None:
        return GuardrailView("ok")
    what, since_unix_ns = experiment.tripped
    return GuardrailView("worse", what, iso_time(since_unix_ns))


def _hour(total: Book) -> HourView | None:
    shares = [side.hours / max(int(side.hours.sum()), 1) for side in total.sides]
    if not all(side.hours.any() for side in total.sides):
        return None
    apart = abs(shares[CONTROL] - shares[CANDIDATE])
    if not apart.any():
        return None
    hour = int(apart.argmax())
    return HourView(hour, round(float(shares[CONTROL][hour]), 4), round(float(shares[CANDIDATE][hour]), 4))


def _notes(experiment: Experiment, total: Book) -> list[str]:
    entry = experiment.entry
    notes = []
    if experiment.conflict:
        notes.append(
            f"another host runs an experiment of the name {entry.spec.name} with other terms, or in another "
            "split: only what this host counted is here; give both the same terms, under a new name"
        )
    if experiment.strangers:
        notes.append(
            f"{experiment.strangers} other control processes count under this name by other terms, or by "
            "other groups of sessions: they are not merged"
        )
    if experiment.unlike_file:
        notes.append(
            "the file has other terms for it by now: they do not count, for terms are fixed when an "
            "experiment begins; stop it and begin another one under a new name"
        )
    if experiment.before and experiment.others is None:
        notes.append(
            f"{experiment.before} requests were assigned in it before this control process began: they are "
            "not in here, it was begun anew (with a Redis it would have gone on)"
        )
    if experiment.unread:
        notes.append(f"the counts of {experiment.unread} other control processes could not be read")
    if experiment.split is None and entry.running:
        notes.append("this host has no split over both backends: none of its requests count")
    if total.left_out:
        notes.append(f"{total.left_out} requests came under more different weights than are kept: left out")
    if total.unbooked:
        notes.append(f"{total.unbooked} requests could not be booked, which is a fault of Legato")
    if any(each.until_unix_ns is None for each in experiment.ejections) and entry.running:
        notes.append("a backend of the split is out, or on its way back, now: see ejections")
    return notes
