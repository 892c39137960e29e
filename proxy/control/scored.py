"""A stream's arrivals against its deadlines: who is to blame for what, and what thinning lost.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from proxy.control.tokens import EMPTY, Counted
from proxy.link import ChoiceScore, Facts
from scoring.deadlines import Deadlines
from scoring.score import Stall, StreamScore
from scoring.trace import Choice, Excluded, score

_CHOICES_MAX: Final = 128


def t0_ns_of(facts: Facts) -> int:
    """t = 0 on the worker's clock: the request's last byte sent, or its arrival where nothing was sent."""
    return facts.received_ns if facts.sent_ns is None else facts.sent_ns


def excluded_of(facts: Facts) -> tuple[Excluded, ...]:
    """The intervals, relative to t = 0, in which the server is not to blame."""
    t0_ns = t0_ns_of(facts)
    blocked = [Excluded(a_ns - t0_ns, b_ns - t0_ns, "client_blocked") for a_ns, b_ns in facts.blocked]
    late = [Excluded(a_ns - t0_ns, b_ns - t0_ns, "suspect") for a_ns, b_ns in facts.lags]
    return (*blocked, *late)


def owed_choices(facts: Facts, counted: Counted) -> Sequence[Choice]:
    """The choices to score: those seen, and an empty one for each that was asked for and never began."""
    missing = min(facts.choices_asked, _CHOICES_MAX) - len(counted.choices)
    return counted.choices + EMPTY.choices * missing if missing > 0 else counted.choices


def score_stream(facts: Facts, counted: Counted, end_ns: int, censored: bool, target: float) -> StreamScore:
    """The score of one stream; ``end_ns`` relative to t = 0, ``censored``: cut then, with a token due."""
    choices = owed_choices(facts, counted)
    scored = score(
        choices,
        Deadlines(facts.ttft_target_ns, facts.tbt_target_ns),
        end_ns=end_ns,
        censored=censored,
        target=target,
        excluded=excluded_of(facts),
    )
    stream = facts.stream
    if stream is None or not stream.thinned or scored.suspect or scored.client_blocked or not stream.scores:
        return scored
    # Merged arrivals may hide a late token behind its neighbour: what was kept online is exact.  (With
    # pauses for a slow client it cannot be used: it does not know which misses they explain.)
    never_began = len(choices) - len(counted.choices)
    owed = [*stream.scores, *[_nothing(facts)] * never_began]
    return _exact(scored, owed, end_ns if censored else None, facts.tbt_target_ns)


def _nothing(facts: Facts) -> ChoiceScore:
    return ChoiceScore(tokens=0, late=0, missed=0, late_ns=0, due_ns=facts.ttft_target_ns)


def _exact(
    scored: StreamScore, choices: Sequence[ChoiceScore], cut_ns: int | None, tbt_ns: int
) -> StreamScore:
    """``scored`` with the numbers that were kept online; stalls and quantiles stay those of what was kept."""
    tokens = sum(choice.tokens for choice in choices)
    met = tokens - sum(choice.late for choice in choices)
    missed = sum(choice.missed for choice in choices)
    late_ns = sum(choice.late_ns for choice in choices)
    worst: Stall | None = None
    for index, choice in enumerate(choices):
        stall = Stall(choice.worst_at_ns, choice.worst_late_ns, choice.worst_missed, index, None)
        if stall.late_ns > (0 if worst is None else worst.late_ns):
            worst = stall
        over_ns = 0 if cut_ns is None or choice.finished else cut_ns - choice.due_ns
        if over_ns > 0:
            missed += over_ns // tbt_ns + 1
            late_ns += over_ns
    if scored.worst is not None and (worst is None or scored.worst.late_ns > worst.late_ns):
        worst = scored.worst  # the cut itself
    longest_ns = max((choice.longest_gap_ns for choice in choices), default=0)
    tbt = scored.tbt
    if tbt is not None and longest_ns:
        tbt = replace(tbt, max_ns=longest_ns)
    total = met + missed
    return replace(
        scored,
        tokens=tokens,
        met=met,
        missed=missed,
        fluidity=met / total if total else None,
        on_time_ratio=met / tokens if tokens else None,
        late_ns=late_ns,
        worst=worst,
        tbt=tbt,
    )
