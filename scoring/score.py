"""The score of one request, frozen.  Times are integer nanoseconds since t = 0; means are floats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

#: Whose fault a stall was, if not the server's: our own event loop's, or a client's that read too slowly.
Reason = Literal["suspect", "client_blocked"]


@dataclass(frozen=True, slots=True)
class Stall:
    """A late token, or the token that was overdue when a censored request was cut.

    ``at_ns``: start of the gap (the arrival before it in the same choice, or 0); the token came ``late_ns``
    after its deadline, and ``missed`` deadlines passed.  With a ``reason`` it was taken out of the score.
    """

    at_ns: int
    late_ns: int
    missed: int
    choice: int
    reason: Reason | None


@dataclass(frozen=True, slots=True)
class Gaps:
    """Time between tokens (TBT): nearest-rank quantiles (``quantiles.py``) over all gaps of a request."""

    p50_ns: int
    p90_ns: int
    p99_ns: int
    max_ns: int


@dataclass(frozen=True, slots=True)
class Raw:
    """The score before suspect and client_blocked stalls were taken out."""

    fluidity: float | None
    met: int
    missed: int


@dataclass(frozen=True, slots=True)
class StreamScore:
    """One request against its deadlines.

    ``met + missed + suspect + client_blocked`` is every deadline that fell due; ``fluidity`` is
    ``met / (met + missed)`` and ``on_time_ratio`` the share of tokens that were on time, tokens with a
    stall that was taken out in neither; both ``None`` where there is nothing to divide by.  ``late_ns`` is
    the sum over the stalls that count.  ``least_tbt_ns``: see ``trace.least_tbt``.  ``raw`` stands only
    where stalls were taken out.
    """

    tokens: int
    met: int
    missed: int
    suspect: int
    client_blocked: int
    fluidity: float | None
    on_time_ratio: float | None
    ttft_ns: int | None
    tbt: Gaps | None
    tpot_ns: float | None
    normalized_ns: float | None
    duration_ns: int
    late_ns: int
    stalls: tuple[Stall, ...]
    worst: Stall | None
    least_tbt_ns: int | None
    censored: bool
    raw: Raw | None

    @property
    def stall_count(self) -> int:
        """Stalls that count, those taken out left aside."""
        return sum(1 for stall in self.stalls if stall.reason is None)


def without_deadlines(scored: StreamScore) -> StreamScore:
    """The score of a stream to which no token deadline was promised: its times, nothing met or missed."""
    return replace(
        scored,
        met=0,
        missed=0,
        suspect=0,
        client_blocked=0,
        fluidity=None,
        on_time_ratio=None,
        late_ns=0,
        stalls=(),
        worst=None,
        least_tbt_ns=None,
        raw=None,
    )
