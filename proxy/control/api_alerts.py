"""``/api/alerts``: what fires, what waits, what was; the rules, and who is told."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Query, Response
from msgspec import Meta, Struct

from proxy.control.alerts.judge import Verdict
from proxy.control.alerts.life import Alert
from proxy.control.alerts.notice import Worst
from proxy.control.alerts.rules import WHAT
from proxy.control.alerts.stage import Alerts
from proxy.control.alerts.words import link, runbook, summary
from proxy.control.guard import Guard
from proxy.control.notify.sender import NotifierState
from proxy.control.record import iso_time
from proxy.control.schema import answers, reply


class AlertView(Struct, frozen=True, kw_only=True):
    """One alert."""

    key: Annotated[str, Meta(description="Rule and labels: the same on every host and at every time.")]
    state: Literal["pending", "firing", "resolved"]
    rule: str
    severity: str
    labels: dict[str, str]
    summary: str
    value: Annotated[float | None, Meta(description="What the rule compares, when it last held.")]
    threshold: Annotated[float, Meta(description="With what it compares.")]
    peak: Annotated[float | None, Meta(description="The largest value while it held.")]
    figures: dict[str, float]
    since: Annotated[str, Meta(description="Since when the condition holds, or held.")]
    fired: Annotated[str | None, Meta(description="When it began to fire.")]
    resolved: str | None
    incident: Annotated[str | None, Meta(description="The same in all that is told of one firing.")]
    told: Annotated[int, Meta(description="Messages that said that it fires.")]
    held_by: Annotated[str | None, Meta(description="Not told while that alert fires, which explains it.")]
    worst: Annotated[
        list[Worst],
        Meta(
            description="Requests that show it, the worst first, by their ids. One that is `in_flight` is "
            "found at /api/requests once it has ended."
        ),
    ]
    url: str | None
    runbook: str


class RuleView(Struct, frozen=True, kw_only=True):
    """One rule."""

    rule: str
    watched: Annotated[bool, Meta(description="Named by alerts.rules.")]
    what: str
    runbook: str


class EvaluationView(Struct, frozen=True, kw_only=True):
    """What a rule said last of one group."""

    rule: str
    labels: dict[str, str]
    fires: bool
    clears: bool
    value: float | None
    threshold: float
    figures: dict[str, float]
    reason: str


class NotifierView(Struct, frozen=True, kw_only=True):
    """One who is told."""

    name: str
    kind: str
    where: Annotated[str, Meta(description="Its host; never a path or a secret.")]
    waiting: Annotated[int, Meta(description="Messages that wait for it.")]
    last_sent: str | None
    last_error: str | None
    last_error_at: str | None


class AlertsView(Struct, frozen=True, kw_only=True):
    """Everything about alerts."""

    at: str
    judged: Annotated[str | None, Meta(description="The end of the last 10 s that the rules judged.")]
    scope: Annotated[str, Meta(description="host | fleet: whose traffic is judged.")]
    sends: Annotated[bool, Meta(description="Whether this host tells people; in a fleet one does.")]
    firing: list[AlertView]
    pending: list[AlertView]
    history: Annotated[list[AlertView], Meta(description="The last 200 that fired, the newest first.")]
    rules: list[RuleView]
    notifiers: list[NotifierView]
    evaluations: Annotated[
        list[EvaluationView] | None, Meta(description="With all=true: what each rule said last.")
    ]


STRUCTS: Final[tuple[type[Struct], ...]] = (
    AlertsView,
    AlertView,
    RuleView,
    EvaluationView,
    NotifierView,
    Worst,
)


def alerts_router(alerts: Alerts, reads: Guard) -> APIRouter:
    """The route."""
    router = APIRouter(prefix="/api", tags=["alerts"], dependencies=[Depends(reads)])

    @router.get(
        "/alerts", summary="What fires, what waits, and what was", **answers(AlertsView, 401, 403, 422)
    )
    async def show(all: Annotated[bool, Query()] = False) -> Response:
        return reply(view(alerts, evaluations=all))

    return router


def view(alerts: Alerts, *, evaluations: bool = False) -> AlertsView:
    """As the API shows it."""
    life, together, outbox = alerts.life, alerts.together, alerts.teller.outbox
    judged_ns = alerts.judged_ns
    return AlertsView(
        at=iso_time(alerts.now_ns()),
        judged=None if judged_ns is None else iso_time(judged_ns),
        scope="host" if together.alone else "fleet",
        sends=together.alone or together.holds,
        firing=[_alert(alerts, each) for each in life.firing()],
        pending=[_alert(alerts, each) for each in life.pending()],
        history=[_alert(alerts, each) for each in reversed(life.history)],
        rules=[
            RuleView(rule=rule, watched=rule in alerts.rules.on, what=what, runbook=runbook(rule))
            for rule, what in WHAT.items()
        ],
        notifiers=[] if outbox is None else [_notifier(each) for each in outbox.states()],
        evaluations=[_evaluation(each) for each in alerts.last.values()] if evaluations else None,
    )


def _alert(alerts: Alerts, alert: Alert) -> AlertView:
    said = alert.shown or alert.said
    since_ns = alert.began_ns or alert.phase.since_ns
    state: Literal["pending", "firing", "resolved"] = "resolved"
    if alert.resolved_ns is None:
        state = "firing" if alert.phase.state == "firing" else "pending"
    return AlertView(
        key=alert.key,
        state=state,
        rule=alert.rule,
        severity=alert.severity,
        labels=alert.named,
        summary=summary(alert.rule, alert.named, said, since_ns),
        value=said.value,
        threshold=said.threshold,
        peak=alert.peak,
        figures=dict(said.evidence),
        since=iso_time(since_ns),
        fired=None if alert.fired_ns is None else iso_time(alert.fired_ns),
        resolved=None if alert.resolved_ns is None else iso_time(alert.resolved_ns),
        incident=alert.incident or None,
        told=alert.number,
        held_by=alert.held_by,
        worst=list(alert.worst),
        url=link(alerts.settings.url, alert.key),
        runbook=runbook(alert.rule),
    )


def _evaluation(verdict: Verdict) -> EvaluationView:
    said = verdict.said
    return EvaluationView(
        rule=verdict.rule,
        labels=dict(verdict.labels),
        fires=said.fires,
        clears=said.clears,
        value=said.value,
        threshold=said.threshold,
        figures=dict(said.evidence),
        reason=said.reason,
    )


def _notifier(state: NotifierState) -> NotifierView:
    sent_ns, error_ns = state.last_sent_unix_ns, state.last_error_unix_ns
    return NotifierView(
        name=state.name,
        kind=state.kind,
        where=state.where,
        waiting=state.waiting,
        last_sent=None if sent_ns is None else iso_time(sent_ns),
        last_error=state.last_error,
        last_error_at=None if error_ns is None else iso_time(error_ns),
    )
