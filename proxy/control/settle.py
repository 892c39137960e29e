"""The facts of one finished request -> its score, outcome, verdict and record.  Pure: no clock, no I/O.

A request is settled once, when it ends, by its final score.  What is not streamed takes a short way that
touches no array; the record is built only when somebody asks for it, since most are never read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import msgspec

from proxy.control.record import (
    ProxyShare,
    RawScore,
    Record,
    TbtSeconds,
    WorstStall,
    iso_time,
    maybe_seconds,
    seconds,
)
from proxy.control.scored import score_stream, t0_ns_of
from proxy.control.tokens import EMPTY, Counted, count
from proxy.link import Facts, Stream, Usage
from scoring.outcome import Outcome, SloResult, classify, is_censored, slo_result
from scoring.score import StreamScore, without_deadlines

#: What stands in a label where a request has no backend or names no model.
NONE: Final = "none"
#: Most bytes kept of a client's model text in a record.
MODEL_MAX: Final = 256
_NO_USAGE: Final = Usage()
#: Ends at which a client that asked for a stream was still waiting for its first byte.
_NO_ANSWER: Final = frozenset(
    {"client_left", "connect_failed", "no_response", "timeout_connect", "timeout_first_byte"}
)


class GroupKey(NamedTuple):
    """Whose totals a request belongs to (before the cap on labels)."""

    backend: str
    model: str
    slo: str


@dataclass(slots=True)
class Settled:
    """One settled request.  ``score`` and ``counted`` are ``None`` where no stream was measured.

    ``duration_ns`` runs from t = 0 to the end; ``t0_ns`` is the worker's monotonic clock.
    """

    facts: Facts
    instance: str  # the host that settled it
    group: GroupKey
    as_stream: bool
    outcome: Outcome
    result: SloResult
    reasons: tuple[str, ...]
    t0_ns: int
    duration_ns: int
    unmeasured: str | None
    censored: bool
    counted: Counted | None
    score: StreamScore | None
    duration_only: bool = False  # nothing was promised of its tokens: no deadlines, no fluidity
    _record: Record | None = None
    kept_span: str | None = None  # the id of its span that is exported, for exemplars

    @property
    def record(self) -> Record:
        """The record, built at the first call."""
        if self._record is None:
            self._record = build_record(self)
        return self._record

    @property
    def thinned(self) -> bool:
        """Whether not every arrival was kept."""
        return self.facts.stream is not None and self.facts.stream.thinned

    @property
    def model(self) -> str | None:
        """What the client called the model, cut to a bound."""
        return None if self.facts.model is None else self.facts.model[:MODEL_MAX]

    @property
    def names(self) -> tuple[str | None, ...]:
        """Whatever else somebody may know this request by."""
        stream = self.facts.stream
        response_id = None if stream is None else stream.response_id
        return (self.facts.request_id, response_id, self.facts.trace_id)

    def without_arrivals(self) -> Settled:
        """The same with its record, but without arrivals and stalls, which take the room."""
        stream = self.facts.stream
        if stream is None:
            return self
        record = self.record
        bare = msgspec.structs.replace(self.facts, stream=msgspec.structs.replace(stream, choices=()))
        return replace(self, facts=bare, counted=None, score=None, _record=record)

    @property
    def usage(self) -> Usage:
        """Token counts as the server reported them."""
        stream = self.facts.stream
        return _NO_USAGE if stream is None else stream.usage

    @property
    def output_tokens(self) -> int | None:
        """Tokens produced by the best word there is; ``None``: nobody knows."""
        return self.usage.output if self.counted is None else self.counted.output

    @property
    def tokens_source(self) -> str | None:
        """What counted them: ``vocabulary.OUTPUT_SOURCE``, or ``None``."""
        if self.counted is not None:
            return self.counted.source
        return None if self.usage.output is None else "usage"

    @property
    def normalized_ns(self) -> float | None:
        """Duration per output token: by the score, or by the server's count where nothing was streamed."""
        if self.as_stream:
            return None if self.score is None else self.score.normalized_ns
        output = self.usage.output
        return max(self.duration_ns, 0) / output if output else None

    @property
    def tokens_per_event(self) -> float | None:
        """As they are scored; ``None``: no event carried output, or none was measured."""
        stream = self.facts.stream
        if self.counted is None or stream is None or not stream.events:
            return None
        return self.counted.on_events / stream.events

    @property
    def prompt_tokens(self) -> int:
        """As the server counted, else as estimated from the request's size."""
        reported = self.usage.prompt
        return self.facts.prompt_tokens_estimated if reported is None else reported

    @property
    def prompt_source(self) -> str:
        """What counted them: ``vocabulary.PROMPT_SOURCE``."""
        return "estimated" if self.usage.prompt is None else "usage"


def settle(facts: Facts, instance: str, *, duration_only: bool = False) -> Settled:
    """Score and judge one request; ``duration_only``: its SLO promises nothing of tokens.

    Raises nothing for any facts that decode, but for packed arrivals that are no arrivals (``ValueError``):
    the caller counts those as unmeasured through ``settle_unmeasured``.
    """
    as_stream = facts.streamed or (facts.stream_asked and facts.end in _NO_ANSWER)
    if not as_stream:
        return _settle_plain(facts, instance, duration_only)
    return _settle_stream(facts, instance, _unmeasured(facts), duration_only)


def settle_unmeasured(facts: Facts, instance: str, reason: str, *, duration_only: bool = False) -> Settled:
    """As ``settle`` for a stream whose arrivals cannot be used."""
    return _settle_stream(facts, instance, reason, duration_only)


def _group(facts: Facts) -> GroupKey:
    return GroupKey(facts.backend or NONE, facts.model or NONE, facts.slo)


def _settle_plain(facts: Facts, instance: str, duration_only: bool) -> Settled:
    outcome = classify(
        end=facts.end,
        status=facts.status,
        streamed=False,
        generic=False,
        finished=False,
        error_event=False,
        tokens=0,
    )
    t0_ns = t0_ns_of(facts)
    duration_ns = facts.end_ns - t0_ns
    result, reasons = slo_result(
        outcome=outcome,
        streamed=False,
        fluidity=None,
        target=0.0,
        duration_ns=duration_ns,
        e2e_ns=facts.e2e_ns,
        overdue_at_end=False,
        measured=True,
    )
    group = _group(facts)
    return Settled(
        facts, instance, group, False, outcome, result, reasons, t0_ns, duration_ns, None,
        False, None, None, duration_only,
    )  # fmt: skip


def _unmeasured(facts: Facts) -> str | None:
    if facts.stream is not None:
        return facts.stream.unmeasured
    return "switched_off" if facts.streamed else None


def _settle_stream(facts: Facts, instance: str, unmeasured: str | None, duration_only: bool) -> Settled:
    stream = facts.stream
    # A stream that was watched to its end and held no token is no blind spot: the server failed.
    measured = unmeasured in (None, "no_tokens")
    outcome = _stream_outcome(facts, stream, measured)
    censored = is_censored(outcome, stream is not None and stream.finished)
    t0_ns = t0_ns_of(facts)
    duration_ns = facts.end_ns - t0_ns
    counted: Counted | None = None
    scored: StreamScore | None = None
    overdue = False
    if measured and outcome is not Outcome.REJECTED:
        counted = EMPTY if stream is None else count(stream)
        scored = score_stream(facts, counted, duration_ns, censored, facts.target)
        # What the end alone adds was overdue then; where no share of deadlines is promised, nothing is.
        if outcome is Outcome.CLIENT_CANCELLED and facts.target:
            overdue = scored.missed > score_stream(facts, counted, duration_ns, False, facts.target).missed
        if duration_only:
            scored = without_deadlines(scored)
    result, reasons = slo_result(
        outcome=outcome,
        streamed=True,
        fluidity=None if scored is None else scored.fluidity,
        target=facts.target,
        duration_ns=duration_ns,
        e2e_ns=facts.e2e_ns,
        overdue_at_end=overdue,
        measured=measured,
    )
    return Settled(
        facts, instance, _group(facts), True, outcome, result, reasons, t0_ns, duration_ns, unmeasured,
        censored, counted, scored, duration_only,
    )  # fmt: skip


def _stream_outcome(facts: Facts, stream: Stream | None, measured: bool) -> Outcome:
    return classify(
        end=facts.end,
        status=facts.status,
        streamed=True,
        generic=stream is not None and stream.dialect == "generic",
        finished=stream is not None and stream.finished,
        error_event=stream is not None and stream.error is not None,
        tokens=0 if stream is None else stream.tokens,
        measured=measured,
    )


# ---------------------------------------------------------------- the record


def build_record(settled: Settled) -> Record:
    """The record of a settled request, as it is promised: names, order, units."""
    facts, score_, stream = settled.facts, settled.score, settled.facts.stream
    t0_ns = settled.t0_ns

    def since_t0(at_ns: int | None) -> float | None:
        return None if at_ns is None else round((at_ns - t0_ns) * 1e-9, 6)

    counted, per_event = settled.counted, settled.tokens_per_event
    return Record(
        time=iso_time(facts.received_unix_ns),
        id=facts.id,
        request_id=facts.request_id,
        response_id=None if stream is None else stream.response_id,
        trace_id=facts.trace_id,
        instance=settled.instance,
        tags=facts.tags,
        method=facts.method,
        path=facts.path.partition("?")[0],
        status=facts.status,
        stream=settled.as_stream,
        dialect=None if stream is None else stream.dialect,
        model=settled.model,
        backend=facts.backend,
        upstream_addr=facts.upstream_addr,
        experiment=_experiment(facts),
        assigned=None if facts.assigned == facts.backend else facts.assigned,
        slo=facts.slo,
        slo_result=settled.result.value,
        slo_reasons=list(settled.reasons),
        outcome=settled.outcome.value,
        finish_reason=None if stream is None else stream.finish_reason,
        error=facts.error if facts.error is not None or stream is None else stream.error,
        censored=settled.censored,
        suspect=score_ is not None and score_.suspect > 0,
        prompt_tokens=settled.prompt_tokens,
        cached_tokens=settled.usage.cached,
        prompt_tokens_source=settled.prompt_source,
        output_tokens=settled.output_tokens,
        tokens_observed=None if counted is None else counted.observed,
        tokens_reported=settled.usage.output,
        tokens_source=settled.tokens_source,
        events=None if counted is None or stream is None else stream.events,
        tokens_per_event=None if per_event is None else round(per_event, 3),
        thinned=settled.thinned,
        unmeasured=settled.unmeasured,
        ttft_target_s=None if settled.duration_only else seconds(facts.ttft_target_ns),
        tbt_target_s=None if settled.duration_only else seconds(facts.tbt_target_ns),
        ttft_s=None if score_ is None else maybe_seconds(score_.ttft_ns),
        connected_s=since_t0(facts.connected_ns),
        first_byte_s=since_t0(facts.first_byte_ns),
        head_s=since_t0(facts.head_ns),
        first_event_s=None if stream is None else since_t0(stream.first_event_ns),
        first_reasoning_s=None if stream is None else since_t0(stream.first_reasoning_ns),
        first_answer_s=None if stream is None else since_t0(stream.first_answer_ns),
        first_tool_s=None if stream is None else since_t0(stream.first_tool_ns),
        tbt_s=_tbt(score_),
        tpot_s=None if score_ is None else maybe_seconds(score_.tpot_ns),
        normalized_latency_s=maybe_seconds(settled.normalized_ns),
        duration_s=seconds(settled.duration_ns),
        fluidity=None if score_ is None else _ratio(score_.fluidity),
        on_time_ratio=None if score_ is None else _ratio(score_.on_time_ratio),
        met=None if score_ is None else score_.met,
        missed=None if score_ is None else score_.missed,
        late_s=None if score_ is None else seconds(score_.late_ns),
        least_tbt_s=None if score_ is None else maybe_seconds(score_.least_tbt_ns),
        stalls=None if score_ is None else score_.stall_count,
        raw=_raw(score_),
        worst_stall=_worst(score_),
        proxy=_proxy_share(facts),
    )


def _experiment(facts: Facts) -> str | None:
    """An epoch begins with its experiment's name."""
    assignment = facts.assignment
    if assignment is None or facts.forced:
        return None
    return assignment.epoch.partition("|")[0] or None


def _ratio(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _tbt(score_: StreamScore | None) -> TbtSeconds | None:
    if score_ is None or score_.tbt is None:
        return None
    gaps = score_.tbt
    return TbtSeconds(
        p50=seconds(gaps.p50_ns), p90=seconds(gaps.p90_ns), p99=seconds(gaps.p99_ns), max=seconds(gaps.max_ns)
    )


def _raw(score_: StreamScore | None) -> RawScore | None:
    if score_ is None or score_.raw is None:
        return None
    return RawScore(_ratio(score_.raw.fluidity), score_.raw.met, score_.raw.missed)


def _worst(score_: StreamScore | None) -> WorstStall | None:
    if score_ is None or score_.worst is None:
        return None
    worst = score_.worst
    return WorstStall(at_s=seconds(worst.at_ns), late_s=seconds(worst.late_ns), missed=worst.missed)


def _proxy_share(facts: Facts) -> ProxyShare:
    sent_ns = facts.sent_ns
    return ProxyShare(
        received_to_sent_s=None if sent_ns is None else seconds(sent_ns - facts.received_ns),
        pool_wait_s=seconds(facts.pool_wait_ns),
        connect_s=seconds(facts.connect_ns),
        forward_p99_s=seconds(facts.forward_p99_ns),
        client_blocked_s=seconds(sum(to_ns - from_ns for from_ns, to_ns in facts.blocked)),
        loop_lag_max_s=seconds(facts.loop_lag_max_ns),
        attempts=facts.attempts,
    )
