"""What an experiment counts: sums by weights and arm to be judged by, and figures that may explain them.

``CONTROL`` and ``CANDIDATE`` are the places of the two arms in every pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from proxy.control.experiments.assigned import Counts
from proxy.control.settle import Settled
from scoring.compare_sums import BUCKETS, ArmSums, Observed
from scoring.outcome import Outcome, SloResult
from scoring.sketch import LogHistogram

CONTROL: Final = 0
CANDIDATE: Final = 1
#: Different weights that are judged by themselves; what comes under further ones is left out, and said.
EPOCHS_MAX: Final = 64
#: Requests that wait for being booked together, which costs a fraction of booking each.
_TOGETHER: Final = 256
_HOUR_NS: Final = 3_600_000_000_000
#: Streams that were watched to their end and held no token: the server failed, measuring did not.
_MEASURED: Final = (None, "no_tokens")
_FAILED: Final = (Outcome.OVERLOADED, Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT)
#: What of a ``Side`` is a number, and added up.
NUMBERS: Final = (
    "unanswered", "failed_over", "cached", "cached_of", "lost", "in_flight", "load", "ticks", "overdue",
    "hanging",
)  # fmt: skip

Ints = npt.NDArray[np.int64]
Pair = tuple[ArmSums, ArmSums]


class Side:
    """One arm over all weights: what describes it and judges nothing.

    ``unanswered``: streams that failed before a first token, whose TTFT is endless.  ``lost``: assigned, and
    known to be lost by nobody's fault; ``in_flight``: assigned, and plausibly not ended, of which ``overdue``
    and ``hanging`` (see ``hanging.py``); ``load``: sum over ``ticks`` of requests in flight per address.
    """

    __slots__ = (
        "cached", "cached_of", "failed_over", "hanging", "hours", "in_flight", "load", "lost", "normalized",
        "overdue", "prompts", "ticks", "ttft", "unanswered", "waiting",
    )  # fmt: skip

    def __init__(self) -> None:
        self.ttft = LogHistogram()
        self.normalized = LogHistogram()
        self.prompts = LogHistogram()
        self.hours: Ints = np.zeros(24, dtype=np.int64)
        self.unanswered = 0
        self.failed_over = 0
        self.cached = 0
        self.cached_of = 0
        self.lost = 0
        self.in_flight = 0
        self.overdue = 0
        self.hanging = 0
        self.load = 0.0
        self.ticks = 0
        self.waiting: tuple[list[float], list[float], list[float]] = ([], [], [])  # for the histograms

    def add(self, settled: Settled) -> None:
        """One request that the arm itself served, or failed."""
        usage = settled.usage
        if usage.cached is not None and usage.prompt is not None:
            self.cached += min(max(usage.cached, 0), usage.prompt)
            self.cached_of += usage.prompt
        ttft, normalized, prompts = self.waiting
        prompts.append(max(settled.prompt_tokens, 0))
        ttft_ns = None if settled.score is None else settled.score.ttft_ns
        if ttft_ns is not None:
            ttft.append(max(ttft_ns, 0))
        elif settled.as_stream and settled.outcome in _FAILED:
            self.unanswered += 1
        normalized_ns = None if is_unmeasured(settled) else settled.normalized_ns
        if normalized_ns is not None:
            normalized.append(max(normalized_ns, 0))

    def flush(self) -> None:
        """Book what waits."""
        for hist, values in zip((self.ttft, self.normalized, self.prompts), self.waiting, strict=True):
            if values:
                hist.add_many(np.array(values))
                values.clear()

    def merge(self, other: Side) -> None:
        """Add another's."""
        self.ttft.merge(other.ttft)
        self.normalized.merge(other.normalized)
        self.prompts.merge(other.prompts)
        self.hours = self.hours + other.hours
        for name in NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Book:
    """All that one control process counted of an experiment, or what several did, merged.

    ``buckets``: ``BUCKETS`` where sessions stick to an arm, else 1.
    """

    def __init__(self, buckets: int) -> None:
        self.buckets = buckets
        self.epochs: dict[str, Pair] = {}
        self.sides = (Side(), Side())
        self.beyond = 0  # of others, under more different weights than are kept
        self.left_out = 0  # requests under more different weights than are kept
        self.unbooked = 0  # requests that could not be booked: a fault of ours
        self.changed: set[str] = set()  # epochs, since somebody emptied it
        self._waiting: dict[tuple[str, int], list[Observed]] = {}
        self._assigned = [0, 0]
        self._recorded = [0, 0]

    def epoch(self, name: str) -> Pair | None:
        """The sums under these weights, made where there are none; ``None``: there are too many."""
        pair = self.epochs.get(name)
        if pair is None and len(self.epochs) < EPOCHS_MAX:
            pair = self.epochs[name] = (ArmSums(self.buckets), ArmSums(self.buckets))
        return pair

    def add(self, epoch: str, arm: int, settled: Settled) -> None:
        """One settled request, by the arm that it was assigned to."""
        if self.epoch(epoch) is None:
            self.left_out += 1
            return
        side = self.sides[arm]
        hour = settled.facts.received_unix_ns // _HOUR_NS % 24
        side.hours[hour] += 1
        bucket = _bucket(settled, self.buckets)
        if failed_over(settled):
            side.failed_over += 1
            side.unanswered += settled.as_stream  # as if nobody had stood in
            one = Observed(Outcome.UPSTREAM_ERROR, SloResult.BAD, bucket=bucket)
        else:
            side.add(settled)
            one = observed(settled, bucket)
        waiting = self._waiting.setdefault((epoch, arm), [])
        waiting.append(one)
        if len(waiting) >= _TOGETHER:
            self.flush()

    def assign(self, epoch: str, arm: int, more: Counts) -> None:
        """Assignments that became known."""
        pair = self.epoch(epoch)
        if pair is None or not more.assigned:
            return
        sums = pair[arm]
        rest = more.assigned
        if more.buckets is not None and self.buckets == len(more.buckets):
            sums.assigned += more.buckets
            rest -= int(more.buckets.sum())
        sums.assigned[0] += rest
        self._assigned[arm] += more.assigned
        self.changed.add(epoch)

    def flush(self) -> None:
        """Book what waits."""
        for side in self.sides:
            side.flush()
        waiting, self._waiting = self._waiting, {}
        for (epoch, arm), observed_ in waiting.items():
            try:
                self.epochs[epoch][arm].add_many(observed_)
            except (ValueError, ArithmeticError, IndexError):  # nothing is booked then, and it is told
                self.unbooked += len(observed_)
            else:
                self._recorded[arm] += len(observed_)
            self.changed.add(epoch)

    def merge(self, other: Book) -> None:
        """Add another's, whose ``buckets`` are the same."""
        other.flush()
        self.flush()
        before = self.beyond
        self.add_sums(other.epochs)
        self.left_out += self.beyond - before
        for side, more in zip(self.sides, other.sides, strict=True):
            side.merge(more)
        self.left_out += other.left_out
        self.unbooked += other.unbooked

    def add_sums(self, sums: Mapping[str, Pair]) -> None:
        """Add what somebody counted, or take it away: sums by epoch, of any sign."""
        for epoch, pair in sums.items():
            mine = self.epoch(epoch)
            if mine is None:
                self.beyond += sum(each.recorded for each in pair)
                continue
            for one, two in zip(mine, pair, strict=True):
                one.merge(two)
            self._count(pair)
            if not any(each.recorded or each.assigned.any() for each in mine):
                del self.epochs[epoch]  # all of it was taken away

    def describe(self, sides: Sequence[tuple[Side, Side]]) -> None:
        """What describes the arms is what these say together."""
        self.sides = (Side(), Side())
        for pair in sides:
            for side, more in zip(self.sides, pair, strict=True):
                side.merge(more)

    def _count(self, pair: Pair) -> None:
        for arm, sums in enumerate(pair):
            self._assigned[arm] += int(sums.assigned.sum())
            self._recorded[arm] += sums.recorded

    def assigned(self, arm: int) -> int:
        """Requests that the arm was assigned."""
        return self._assigned[arm]

    def recorded(self, arm: int) -> int:
        """Requests of the arm that were settled."""
        self.flush()
        return self._recorded[arm]


def merged(books: Sequence[Book], buckets: int) -> Book:
    """A new book with all that these hold."""
    out = Book(buckets)
    for book in books:
        out.merge(book)
    return out


def failed_over(settled: Settled) -> bool:
    """Whether another backend answered because the one it was assigned to could not be reached."""
    assignment = settled.facts.assignment
    return (
        assignment is not None
        and assignment.failed is not None
        and settled.facts.backend != assignment.backend
    )


def observed(settled: Settled, bucket: int) -> Observed:
    """A request that its own arm served, as the comparison takes it."""
    score = settled.score
    unmeasured = is_unmeasured(settled)
    return Observed(
        outcome=settled.outcome,
        result=settled.result,
        met=0 if score is None else score.met,
        missed=0 if score is None else score.missed,
        ttft_ns=None if score is None else score.ttft_ns,
        normalized_ns=None if unmeasured else settled.normalized_ns,
        suspect=score is not None and score.suspect > 0,
        unmeasured=unmeasured,
        bucket=bucket,
    )


def is_unmeasured(settled: Settled) -> bool:
    """Whether nobody knows when its tokens came.

    So it is where a stream was asked for and the answer came whole, in one piece of JSON: it has no deadlines
    to miss, and without this an arm that never streams would only be in fewer of the metrics.
    """
    if settled.as_stream:
        return settled.unmeasured not in _MEASURED
    return settled.facts.stream_asked and settled.outcome is Outcome.COMPLETED


def _bucket(settled: Settled, buckets: int) -> int:
    assignment = settled.facts.assignment
    if buckets == 1 or assignment is None:
        return 0
    return assignment.bucket % BUCKETS
