"""Too many of the last minute's requests: with a missed deadline (``Spike``), or failed (``Errors``).

Each request counts once, however many deadlines it missed, and fewer than five are no reason: one request
that hung for five minutes is one of many.  What is too many is measured against the group's own last hour
(``Baseline``), with the minutes that were worst (and best) left out, by an exact test, and must be large in
itself: what is certain but small is for the burn rate.

Slots are of 10 s; a minute is six of them, oldest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, lgamma, log, log1p
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scoring.alarm_rule import Evaluation, Hold, share_of

#: Slots of a block of the baseline, and of the minute that is judged.
SLOTS: Final = 6
#: A baseline needs so many minutes with requests; before, ``COLD`` is assumed.
BLOCKS_LEAST: Final = 10
#: Of the minutes at either end of the order by share: left out.
_TRIM: Final = 0.1
_CHUNK: Final = 4_096
_NEGLIGIBLE: Final = 1e-17

Numbers = Sequence[int] | npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Baseline:
    """What is usual in a group, by minutes.

    ``share``: hits over requests in the middle 80% of the minutes; ``high``: the share that nine of ten
    minutes do not exceed; ``spread``: the correlation of two requests of one minute (0: they are
    independent, as coins are; 1: all or none), estimated from the same minutes, hence rather too low;
    ``requests``, ``blocks``: what it rests on.
    """

    share: float
    high: float
    spread: float
    requests: int
    blocks: int

    @property
    def cold(self) -> bool:
        """Whether too little was seen, so that ``COLD`` stands in."""
        return self.blocks < BLOCKS_LEAST

    @classmethod
    def of(cls, requests: Numbers, hits: Numbers, exclude: npt.NDArray[np.bool_] | None = None) -> Baseline:
        """From slots of 10 s, both of shape (slots,), oldest first; ``exclude``: slots of an incident.

        Leave out the two minutes before the one that is judged, so that a slow start does not hide itself.
        """
        due, hit = np.asarray(requests, dtype=np.int64), np.asarray(hits, dtype=np.int64)
        if exclude is not None:
            due, hit = np.where(exclude, 0, due), np.where(exclude, 0, hit)
        blocks = len(due) // SLOTS
        due = due[len(due) - blocks * SLOTS :].reshape(blocks, SLOTS).sum(axis=1)
        hit = hit[len(hit) - blocks * SLOTS :].reshape(blocks, SLOTS).sum(axis=1)
        hit, due = hit[due > 0], due[due > 0]
        if len(due) < BLOCKS_LEAST:
            return Baseline(COLD.share, COLD.high, COLD.spread, int(due.sum()), len(due))
        shares = hit / due
        order = np.argsort(shares, kind="stable")
        cut = int(len(order) * _TRIM)
        kept = order[cut : len(order) - cut]
        many, total = int(hit[kept].sum()), int(due[kept].sum())
        share = (many + 0.5) / (total + 1)
        high = max(float(shares[order[-cut - 1]]), share)
        return Baseline(share, high, _spread(due[kept], hit[kept], share), total, len(due))


#: What is assumed of a group that nobody knows yet: a tenth is usual, more or less.
COLD: Final = Baseline(0.1, 0.1, 0.02, 0, 0)


def _spread(due: npt.NDArray[np.int64], hit: npt.NDArray[np.int64], share: float) -> float:
    """By the method of moments: what the shares scatter beyond what chance explains."""
    chance = share * (1 - share)
    pairs = float((due * (due - 1)).sum()) * chance
    if pairs <= 0:
        return 0.0
    beyond = float(((hit - due * share) ** 2 - due * chance).sum())
    return min(max(beyond / pairs, 0.0), 1.0)


def upper_tail(count: int, hits: int, share: float, spread: float = 0.0) -> float:
    """The chance of at least ``hits`` among ``count`` requests, exactly (to rounding).

    Binomial where ``spread`` is 0; otherwise beta-binomial with mean ``share`` and the correlation
    ``spread`` (``1 / (a + b + 1)`` in its usual parameters).
    """
    if hits <= 0:
        return 1.0
    if hits > count or share <= 0:
        return 0.0
    if share >= 1 or spread >= 1:
        return min(share, 1.0)
    if spread < 1e-12:
        a = b = 0.0
        first = _choose(count, hits) + hits * log(share) + (count - hits) * log1p(-share)
    else:
        both = 1 / spread - 1
        a, b = share * both, (1 - share) * both
        first = _choose(count, hits) + _beta(hits + a, count - hits + b) - _beta(a, b)
    total, last, at = exp(first), first, hits
    while at < count:
        step = np.arange(at, min(at + _CHUNK, count), dtype=np.float64)
        ratio = (count - step) / (step + 1)
        ratio *= (step + a) / (count - step - 1 + b) if a else share / (1 - share)
        logs = last + np.cumsum(np.log(ratio))
        total += float(np.exp(logs).sum())
        last, at = float(logs[-1]), at + len(step)
        if ratio[-1] < 1 and exp(last) < _NEGLIGIBLE * total:
            break  # what falls so far never rises again
    return min(total, 1.0)


def _choose(count: int, hits: int) -> float:
    return lgamma(count + 1) - lgamma(hits + 1) - lgamma(count - hits + 1)


def _beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


@dataclass(frozen=True, slots=True)
class _Excess:
    """What both rules do.  A minute fires if at least ``hits`` requests and a share of ``share`` and of
    ``times`` the usual one are hit, in at least ``slots`` of its slots a share of ``share``, and chance
    gives as many with a probability below ``chance``.  It clears below ``calm`` times the threshold."""

    share: float
    times: float
    chance: float
    slots: int
    hits: int = 5
    calm: float = 0.5
    hold: Hold = field(default=Hold(fire_s=0, clear_s=120))

    def __post_init__(self) -> None:
        share_of("share", self.share)
        share_of("chance", self.chance)
        share_of("calm", self.calm)
        if not 1 <= self.slots <= SLOTS:
            raise ValueError(f"slots {self.slots!r}: give 1 to {SLOTS}, of 10 s each")
        if self.hits < 1:
            raise ValueError(f"hits {self.hits!r}: give at least 1")

    def _what(self) -> str:
        raise NotImplementedError

    def _chance(self, count: int, hits: int, usual: Baseline) -> float:
        raise NotImplementedError

    def evaluate(self, requests: Sequence[int], hits: Sequence[int], usual: Baseline) -> Evaluation:
        """Judge the last minute: its slots' requests and those of them that were hit, oldest first."""
        count, hit = sum(requests), sum(hits)
        threshold = min(max(self.share, self.times * usual.share), 1.0)
        figures: dict[str, float] = {
            "requests": count,
            "hits": hit,
            "usual_share": usual.share,
            "usual_requests": usual.requests,
            "usual_minutes": usual.blocks,
        }
        if not count:
            return Evaluation(False, False, None, threshold, figures, "no requests in the last minute")
        share = hit / count
        wide = sum(1 for due, bad in zip(requests, hits, strict=True) if bad and bad >= self.share * due)
        figures["slots"] = wide
        fires = hit >= self.hits and share >= threshold and wide >= self.slots
        if fires:
            figures["chance"] = self._chance(count, hit, usual)
            fires = figures["chance"] < self.chance
        known = (
            f"usual: not known yet, {usual.share:.2%} is assumed"
            if usual.cold
            else f"usual: {usual.share:.2%}"
        )
        reason = f"{hit} of {count} requests of the last minute {self._what()} ({known})"
        clears = share < self.calm * threshold or hit < self.hits
        return Evaluation(fires, clears and not fires, share, threshold, figures, reason)


@dataclass(frozen=True, slots=True)
class Spike(_Excess):
    """Requests with at least one missed deadline.  ``least_spread``: requests of a minute share their
    misses at least so much, however steady the last hour was."""

    share: float = 0.25
    times: float = 3.0
    chance: float = 1e-8
    slots: int = 4
    least_spread: float = 0.035

    def _what(self) -> str:
        return "missed a deadline"

    def _chance(self, count: int, hits: int, usual: Baseline) -> float:
        # What is unknown of the usual share, by how little was seen, spreads in the same way.
        unknown = 0.0 if usual.cold else 1 / (usual.requests + 1)
        return upper_tail(count, hits, usual.share, max(usual.spread, self.least_spread) + unknown)


@dataclass(frozen=True, slots=True)
class Errors(_Excess):
    """Requests that failed: overloaded, upstream_error, timeout, proxy_error, of all but rejected and
    cancelled ones.  ``least_usual``: so many are always usual."""

    share: float = 0.05
    times: float = 3.0
    chance: float = 1e-6
    slots: int = 3
    least_usual: float = 0.005

    def _what(self) -> str:
        return "failed"

    def _chance(self, count: int, hits: int, usual: Baseline) -> float:
        return upper_tail(count, hits, max(usual.high, self.least_usual))
