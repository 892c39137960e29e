"""The rule of the fluidity-index as it is written down, token by token: slow, obvious, and independent.

Nothing of the code under test is used here, and none of its shortcuts: tokens are expanded one by one,
time that is covered by an interval is a set of single nanoseconds, and the least TBT deadline is found by
trying 1, 2, 3, ...  Times must therefore be small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil

Event = tuple[int, int]  # at_ns, tokens
Span = tuple[int, int, str]  # from_ns, to_ns, reason

#: So long after a span of our own lateness an arrival may still be late by it (a test may shorten it).
WAKING = 10_000_000


@dataclass
class Sequence_:
    """One choice: its events, and whether its finish reason was seen."""

    events: list[Event]
    finished: bool = False


@dataclass
class Tally:
    """Counts of deadlines, and what else the loop comes by."""

    tokens: int = 0
    met: int = 0
    missed: int = 0
    suspect: int = 0
    client_blocked: int = 0
    late_tokens: int = 0
    late_tokens_excluded: int = 0
    late_ns: int = 0
    stalls: list[tuple[int, int, int, int, str | None]] = field(default_factory=list)

    @property
    def fluidity(self) -> float | None:
        total = self.met + self.missed
        return self.met / total if total else None


def tally(
    sequences: Sequence[Sequence_], dp: int, dd: int, end: int | None, spans: Sequence[Span] = ()
) -> Tally:
    """Score a request; ``end`` is the moment it was cut, ``None`` where it was not."""
    out = Tally()
    for choice, sequence in enumerate(sequences):
        _tally_one(out, choice, sequence, dp, dd, end, spans)
    out.stalls.sort(key=lambda stall: (stall[0], stall[3]))
    return out


def _tally_one(
    out: Tally, choice: int, sequence: Sequence_, dp: int, dd: int, end: int | None, spans: Sequence[Span]
) -> None:
    arrivals = [at for at, tokens in sequence.events for _ in range(tokens)]
    cut = end is not None and not sequence.finished
    slack = 0
    previous = 0
    for i, at in enumerate([*arrivals, end] if cut and end is not None else arrivals):
        real = i < len(arrivals)
        gap = at - previous  # T[i]
        deadline = dp if i == 0 else dd  # D
        out.tokens += real
        if gap <= deadline + slack:
            slack += deadline - gap
            out.met += real
        else:
            late = gap - slack - deadline
            k = late // dd + 1
            reason = _reason(previous, at, late, spans)
            if reason is None:
                out.missed += k
                out.late_ns += late
            elif reason == "suspect":
                out.suspect += k
            else:
                out.client_blocked += k
            out.late_tokens += real
            out.late_tokens_excluded += real and reason is not None
            out.stalls.append((previous, late, k, choice, reason))
            slack = 0
        previous = at


def _reason(start: int, at: int, late: int, spans: Sequence[Span]) -> str | None:
    if not spans:
        return None
    gap = set(range(start, at))
    blocked = {ns for low, high, why in spans if why == "client_blocked" for ns in range(low, high)}
    ours = [(low, high) for low, high, why in spans if why == "suspect" and low < high]
    close = [(low, high) for low, high in ours if high >= at - WAKING]
    nearly = [(low, high) for low, high in ours if any(high >= near - WAKING for near, _ in close)]
    lagging = {ns for low, high in close + nearly for ns in range(low, high)}
    if gap & blocked:
        return "client_blocked"
    if gap & lagging and len(gap & lagging) >= late:
        return "suspect"
    return None


def least_tbt(
    sequences: Sequence[Sequence_], dp: int, target: float, end: int | None, spans: Sequence[Span] = ()
) -> int | None:
    """Try every deadline up to one that is longer than the trace."""
    if not any(tokens for sequence in sequences for _, tokens in sequence.events):
        return None
    longest = max([end or 0, *(at for sequence in sequences for at, _ in sequence.events)]) + 2
    for dd in range(1, longest):
        fluidity = tally(sequences, dp, dd, end, spans).fluidity
        if fluidity is not None and fluidity >= target:
            return dd
    return None


def token_gaps(sequences: Sequence[Sequence_]) -> list[int]:
    """Every time between two tokens of a choice, in ascending order."""
    gaps: list[int] = []
    for sequence in sequences:
        arrivals = [at for at, tokens in sequence.events for _ in range(tokens)]
        gaps += [after - before for before, after in pairwise(arrivals)]
    return sorted(gaps)


def nearest_rank(values: list[int], percent: int) -> int:
    """The smallest value that at least ``percent`` of 100 values do not exceed."""
    return values[max(1, ceil(percent * len(values) / 100)) - 1]
