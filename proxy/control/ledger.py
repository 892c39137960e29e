"""The settled book: what ended, counted once, cumulative since the control process began.

Per group (backend, model, slo): requests by outcome and by verdict, deadlines, tokens, histograms in the
exported buckets, and sketches (relative error at most 1%) from which the summary takes its quantiles.
Every request is in ``legato_request_duration_seconds``; the others take what has the value.  Nothing that
was counted is ever taken back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from proxy.control.buckets import Buckets
from proxy.control.labels import GroupCap
from proxy.control.settle import GroupKey, Settled
from proxy.control.snapshot import GroupStats
from proxy.exporters.catalog import GROUP_LIMIT, bounds_for, deadlines_of
from proxy.exporters.vocabulary import (
    DEADLINE_RESULT,
    OUTPUT_SOURCE,
    PROMPT_SOURCE,
    UNMEASURED,
)
from proxy.link import SloSpec
from scoring.outcome import Outcome, SloResult
from scoring.quantiles import rank
from scoring.score import StreamScore
from scoring.sketch import LogHistogram
from scoring.trace import gaps

TTFT: Final = "legato_ttft_seconds"
TBT: Final = "legato_tbt_seconds"
TPOT: Final = "legato_tpot_seconds"
DURATION: Final = "legato_request_duration_seconds"
NORMALIZED: Final = "legato_normalized_latency_seconds"
LONGEST_GAP: Final = "legato_longest_gap_seconds"
FLUIDITY: Final = "legato_fluidity_ratio"
HISTOGRAMS: Final = (TTFT, TBT, TPOT, DURATION, NORMALIZED, LONGEST_GAP, FLUIDITY)
#: Whose quantiles the summary tells, beside the least TBT deadline.
SKETCHED: Final = (TTFT, TBT, TPOT, DURATION, NORMALIZED, FLUIDITY)
#: The fluid token rate is 1 / this quantile of the least TBT deadline, where the settings say nothing.
RATE_QUANTILE: Final = 0.99

Bounds = dict[str, tuple[float, ...]]


def bounds_of(slos: Sequence[SloSpec]) -> Bounds:
    """The boundaries of every group's histograms: the same for all groups, all SLOs' deadlines among them."""
    return {name: bounds_for(name, deadlines_of(name, slos)) for name in HISTOGRAMS}


class GroupBook:
    """The totals of one group."""

    __slots__ = (
        "deadlines",
        "hists",
        "least_tbt",
        "outcomes",
        "output_tokens",
        "prompt_tokens",
        "results",
        "scored",
        "sketches",
        "under_target",
    )

    def __init__(self, bounds: Bounds) -> None:
        self.outcomes = dict.fromkeys((outcome.value for outcome in Outcome), 0)
        self.results = dict.fromkeys((result.value for result in SloResult), 0)
        self.deadlines = dict.fromkeys(DEADLINE_RESULT, 0)
        self.output_tokens = dict.fromkeys(OUTPUT_SOURCE, 0)
        self.prompt_tokens = dict.fromkeys(PROMPT_SOURCE, 0)
        self.hists = {name: Buckets(bounds[name]) for name in HISTOGRAMS}
        self.sketches = {name: LogHistogram() for name in SKETCHED}
        self.least_tbt = LogHistogram()  # seconds; of the scored streams that have one
        self.scored = 0  # streams with a fluidity
        self.under_target = 0  # of those, below their target

    def add(self, settled: Settled) -> None:
        """Book one request."""
        self.outcomes[settled.outcome.value] += 1
        self.results[settled.result.value] += 1
        self._observe(DURATION, max(settled.duration_ns, 0) / 1e9)
        self.prompt_tokens[settled.prompt_source] += settled.prompt_tokens
        output = settled.output_tokens
        if output:
            source = settled.tokens_source
            self.output_tokens[source if source in self.output_tokens else "events"] += output
        normalized_ns = settled.normalized_ns
        if normalized_ns is not None:
            self._observe(NORMALIZED, normalized_ns / 1e9)
        if settled.score is not None:
            self._add_score(settled, settled.score)

    def _add_score(self, settled: Settled, score: StreamScore) -> None:
        deadlines = self.deadlines
        deadlines["met"] += score.met
        deadlines["missed"] += score.missed
        deadlines["suspect"] += score.suspect
        deadlines["client_blocked"] += score.client_blocked
        if score.ttft_ns is not None:
            self._observe(TTFT, score.ttft_ns / 1e9)
        if score.tpot_ns is not None:
            self._observe(TPOT, score.tpot_ns / 1e9)
        if score.tbt is not None:
            self.hists[LONGEST_GAP].add(score.tbt.max_ns / 1e9)
            gaps_ns, _ = gaps(settled.counted.choices if settled.counted is not None else ())
            self.hists[TBT].add_many_ns(gaps_ns)
            self.sketches[TBT].add_many(gaps_ns / 1e9)
        if score.fluidity is not None:
            self._observe(FLUIDITY, score.fluidity)
            self.scored += 1
            self.under_target += score.fluidity < settled.facts.target
            if score.least_tbt_ns is not None:
                self.least_tbt.add(score.least_tbt_ns / 1e9)

    def _observe(self, name: str, value: float) -> None:
        self.hists[name].add(value)
        self.sketches[name].add(value)

    def rate(self, quantile: float = RATE_QUANTILE) -> tuple[float | None, str | None]:
        """The fluid token rate in tokens per second, or ``None`` and why there is none."""
        if not self.scored:
            return None, "no stream was scored"
        finite = self.least_tbt.count
        place = rank(quantile, self.scored)
        if place > finite:
            without = f"{self.scored - finite} of {self.scored} streams"
            return None, f"TTFT: {without} reach their target with no TBT deadline"
        least_s = self.least_tbt.quantile(place / finite)  # those without one count as infinite
        return (1.0 / least_s if least_s else None), None

    def merge(self, other: GroupBook) -> None:
        """Add another group's totals, but for the exported buckets."""
        for mine, theirs in (
            (self.outcomes, other.outcomes),
            (self.results, other.results),
            (self.deadlines, other.deadlines),
            (self.output_tokens, other.output_tokens),
            (self.prompt_tokens, other.prompt_tokens),
        ):
            for name, counted in theirs.items():
                mine[name] += counted
        for name, sketch in other.sketches.items():
            self.sketches[name].merge(sketch)
        self.least_tbt.merge(other.least_tbt)
        self.scored += other.scored
        self.under_target += other.under_target

    def freeze(self, key: GroupKey, rate_quantile: float = RATE_QUANTILE) -> GroupStats:
        """What readers see of it."""
        return GroupStats(
            backend=key.backend,
            model=key.model,
            slo=key.slo,
            outcomes=dict(self.outcomes),
            results=dict(self.results),
            deadlines=dict(self.deadlines),
            hists={name: buckets.freeze() for name, buckets in self.hists.items()},
            output_tokens=dict(self.output_tokens),
            prompt_tokens=dict(self.prompt_tokens),
            fluid_token_rate=self.rate(rate_quantile)[0],
        )


class Ledger:
    """All groups.  ``add`` is the only way in."""

    def __init__(self, slos: Sequence[SloSpec], limit: int = GROUP_LIMIT) -> None:
        self.cap = GroupCap(limit)
        self.groups: dict[GroupKey, GroupBook] = {}
        self.unmeasured = dict.fromkeys(UNMEASURED, 0)
        self.settled = 0
        self.rate_quantile = RATE_QUANTILE  # of the fluid token rate; may change at any time
        self._bounds = bounds_of(slos)

    def fold(self, batch: Iterable[Settled]) -> None:
        """Book a batch of settled requests."""
        for settled in batch:
            self.add(settled)

    def add(self, settled: Settled) -> GroupKey:
        """Book one; returns the labels under which it was booked."""
        key = self.cap.admit(settled.group, new=settled.outcome is not Outcome.REJECTED)
        book = self.groups.get(key)
        if book is None:
            book = self.groups[key] = GroupBook(self._bounds)
        book.add(settled)
        if settled.unmeasured is not None:
            self._count_unmeasured(settled.unmeasured)
        self.settled += 1
        return key

    def book_of(self, settled: Settled) -> GroupBook | None:
        """Where a request was booked; ``None``: it never was."""
        return self.groups.get(self.cap.admit(settled.group, new=False))

    def set_slos(self, slos: Sequence[SloSpec]) -> None:
        """The deadlines changed: they become boundaries of the histograms from now on."""
        bounds = bounds_of(slos)
        if bounds == self._bounds:
            return
        self._bounds = bounds
        for book in self.groups.values():
            for name, buckets in book.hists.items():
                buckets.rebound(bounds[name])

    def freeze(self) -> tuple[GroupStats, ...]:
        """All groups, sorted."""
        return tuple(self.groups[key].freeze(key, self.rate_quantile) for key in sorted(self.groups))

    def _count_unmeasured(self, reason: str) -> None:
        # A worker of another version may know a reason that is not in the list: it is an error to us.
        known = reason if reason in self.unmeasured else "tap_error"
        self.unmeasured[known] += 1
