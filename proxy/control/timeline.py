"""A settled stream, event by event: the timeline of the admin API and the line of the trace file.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from proxy.control.record import Timeline, TimelineEvent, TimelineStall, TraceLine, seconds
from proxy.control.scored import excluded_of, owed_choices
from proxy.control.settle import Settled
from scoring.deadlines import Deadlines
from scoring.fluidity import FluidityScorer
from scoring.trace import Choice, marks_of


def timeline(settled: Settled) -> Timeline | None:
    """Every kept arrival against its deadline, in order of time; ``None`` where no stream was measured."""
    score, counted, facts = settled.score, settled.counted, settled.facts
    if score is None or counted is None:
        return None
    events = [
        event
        for index, choice in enumerate(counted.choices)
        for event in _events(index, choice, facts.ttft_target_ns, facts.tbt_target_ns)
    ]
    events.sort(key=lambda event: event.at_s)
    if settled.duration_only:
        none = {"deadline_s": None, "slack_s": None, "missed": 0}
        events = [msgspec.structs.replace(event, **none) for event in events]
    return Timeline(
        ttft_target_s=settled.record.ttft_target_s,
        tbt_target_s=settled.record.tbt_target_s,
        end_s=seconds(settled.duration_ns),
        censored=settled.censored,
        events=events,
        stalls=[
            TimelineStall(
                at_s=seconds(stall.at_ns),
                late_s=seconds(stall.late_ns),
                missed=stall.missed,
                choice=stall.choice,
                reason=stall.reason,
            )
            for stall in score.stalls
        ],
        thinned=settled.thinned,
    )


def _events(index: int, choice: Choice, ttft_ns: int, tbt_ns: int) -> Iterator[TimelineEvent]:
    scorer = FluidityScorer(ttft_ns, tbt_ns)
    for at_ns, tokens in zip(choice.at_ns.tolist(), choice.tokens.tolist(), strict=True):
        due_ns = scorer.next_deadline_ns()
        missed = scorer.arrive(at_ns, tokens)
        yield TimelineEvent(
            at_s=seconds(at_ns),
            tokens=tokens,
            choice=index,
            deadline_s=seconds(due_ns),
            slack_s=seconds(due_ns - at_ns),
            missed=missed,
        )


def trace_line(settled: Settled) -> TraceLine | None:
    """What ``legato score`` needs to score this stream again; ``None`` where none was measured."""
    score, counted, facts = settled.score, settled.counted, settled.facts
    if score is None or counted is None:
        return None
    choices = owed_choices(facts, counted)
    lanes = [list(zip(c.at_ns.tolist(), c.tokens.tolist(), strict=True)) for c in choices]
    several = len(lanes) > 1
    received_to_t0_ns = settled.t0_ns - facts.received_ns
    return TraceLine(
        id=facts.id,
        t0_unix_ns=facts.received_unix_ns + received_to_t0_ns,
        backend=facts.backend,
        model=settled.model,
        slo=facts.slo,
        prompt_tokens=settled.prompt_tokens,
        ttft_deadline_ns=facts.ttft_target_ns,
        tbt_deadline_ns=facts.tbt_target_ns,
        target=settled.facts.target,
        tokens_source=counted.source,
        events=msgspec.UNSET if several else lanes[0] if lanes else [],
        choices=lanes if several else msgspec.UNSET,
        end_ns=settled.duration_ns,
        outcome=settled.outcome.value,
        marks=_marks(settled, choices),
        thinned=settled.thinned,
        censored=settled.censored,
        finished=[choice.finished for choice in choices] if settled.censored else msgspec.UNSET,
        duration_only=settled.duration_only or msgspec.UNSET,
    )


def _marks(settled: Settled, choices: Sequence[Choice]) -> list[tuple[int | str | None, ...]]:
    facts = settled.facts
    if not facts.blocked and not facts.lags:
        return []
    marks = marks_of(
        choices,
        Deadlines(facts.ttft_target_ns, facts.tbt_target_ns),
        end_ns=settled.duration_ns,
        censored=settled.censored,
        excluded=excluded_of(facts),
    )
    return [tuple(mark.to_plain()) for mark in marks]
