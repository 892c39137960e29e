"""Two backends over a stretch of time that is over: intervals for one look, from what the slots keep.

Slots hold sums and histograms of whoever was sent to a backend.  So these are the textbook's intervals, which
promise ``alpha`` for one look at a window chosen beforehand, and take requests for independent: to watch an
experiment, ``compare`` is the tool.  Pure; the README of this folder holds the reasons.

Requests that failed by the proxy's own fault are in no share; in means and quantiles they are, for a slot's
histograms do not tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, lgamma, log, log1p, sqrt
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np

from scoring.compare import FIRST_REQUESTS, QuantileBounds, Verdict, verdict_of
from scoring.compare_always import Floats, few
from scoring.compare_sums import METRICS, Metric
from scoring.outcome import Outcome, SloResult
from scoring.quantiles import rank
from scoring.sketch import LogHistogram
from scoring.slot import BILLION, Slot

#: Shares of requests that only a look has: an experiment knows each request's deadlines.
WITH_MISSES: Final = Metric("with_misses", -1, 1.0, 0.005)
QUANTILES: Final = (0.5, 0.9, 0.99)
#: Means of fewer requests than this get no interval: nothing is known of their tails.
LEAST_MEAN: Final = 10
#: Under a microsecond is no time that a network can show.
_LEAST_TIME_NS: Final = 1_000.0
#: All that a look tells, by name.
METRIC: Final = {metric.name: metric for metric in (*METRICS, WITH_MISSES)}


@dataclass(frozen=True, slots=True)
class Look:
    """One metric, in the units of ``compare_sums.METRICS``; ``effect``: candidate minus control.

    ``counts``: how many requests of control and candidate have it (of ``deadline_misses``: deadlines).
    ``reasons``: why it is undecided: ``interval`` (it tells nothing apart), ``too_few``, ``no_data``,
    ``no_variance`` (all requests are alike), ``not_kept`` (slots do not tell how requests vary).
    """

    metric: str
    control: float | None
    candidate: float | None
    effect: float | None
    low: float | None
    high: float | None
    margin: float | None
    verdict: Verdict
    counts: tuple[int, int]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QuantileLook:
    """A quantile of TTFT in seconds: each arm's, with bounds, and the difference with its interval."""

    q: float
    control: QuantileBounds
    candidate: QuantileBounds
    effect: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FixedLook:
    """The candidate against the control, once."""

    metrics: tuple[Look, ...]
    quantiles: tuple[QuantileLook, ...]
    requests: tuple[int, int]


class Bounded(NamedTuple):
    """An estimate and its interval; infinite where it is not bounded."""

    value: float
    low: float
    high: float


class _Mean(NamedTuple):
    requests: int
    mean: float
    variance: float  # of one request


def look(control: Slot, candidate: Slot, alpha: float = 0.05) -> FixedLook:
    """Compare what two backends did.  ``alpha``: the chance, per row, that a true difference lies outside."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha!r}: give a probability between 0 and 1, for example 0.05")
    return FixedLook(
        tuple(_looks((control, candidate), alpha)),
        tuple(_quantile((control, candidate), q, alpha) for q in QUANTILES),
        (control.requests, candidate.requests),
    )


def _looks(slots: tuple[Slot, Slot], alpha: float) -> Iterator[Look]:
    """In the order in which people ask."""
    good, failed, missed = ([of(slot) for slot in slots] for of in (_good, _failed, _with_misses))
    yield _shares(METRIC["good"], good, alpha)
    yield _shares(METRIC["errors"], failed, alpha)
    fluidity = [_mean(slot.hists["miss_rate"], 1 / BILLION, least=1.0) for slot in slots]
    yield _means(METRIC["fluidity"], [each and each._replace(mean=1 - each.mean) for each in fluidity], alpha)
    yield _shares(WITH_MISSES, missed, alpha)
    yield _ratios(METRIC["deadline_misses"], [_deadlines(slot) for slot in slots])
    yield _means(METRIC["ttft"], [_mean(slot.hists["ttft"], 1e-9) for slot in slots], alpha)
    yield _means(METRIC["log_ttft"], [_mean_log(slot.hists["ttft"]) for slot in slots], alpha)
    yield _means(
        METRIC["normalized_latency"], [_mean(slot.hists["normalized"], 1e-9) for slot in slots], alpha
    )


# ---------------------------------------------------------------- what a slot tells


def _good(slot: Slot) -> tuple[int, int]:
    good = slot.results[SloResult.GOOD]
    # Our own failures are always bad.
    return good, good + max(slot.results[SloResult.BAD] - slot.outcomes[Outcome.PROXY_ERROR], 0)


def _failed(slot: Slot) -> tuple[int, int]:
    failed = (Outcome.OVERLOADED, Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT)
    aside = slot.outcomes[Outcome.REJECTED] + slot.outcomes[Outcome.PROXY_ERROR]
    return sum(slot.outcomes[outcome] for outcome in failed), slot.requests - aside


def _with_misses(slot: Slot) -> tuple[int, int]:
    rates = slot.hists["miss_rate"]
    return rates.count - rates.zeros, rates.count


def _deadlines(slot: Slot) -> tuple[int, int]:
    return slot.deadlines["missed"], slot.deadlines["met"] + slot.deadlines["missed"]


def _values(hist: LogHistogram) -> tuple[Floats, Floats]:
    """The value of each bucket that was hit, and how often: both of shape (buckets,)."""
    counts = hist.dense()[1]
    counts = counts[counts > 0]
    places = hist.zeros + counts.cumsum()
    values = [hist.ranked(int(place)) or 0.0 for place in places]
    return np.array([0.0, *values]), np.array([hist.zeros, *counts.tolist()], dtype=np.float64)


def _mean(hist: LogHistogram, unit: float, least: float = 0.0) -> _Mean | None:
    """Exact mean; variance as if the values lay evenly within their buckets.

    ``least``: the squared deviation that is always reckoned with, as ``Metric.least``.
    """
    count = hist.count
    if not count:
        return None
    values, times = _values(hist)
    within = (values * hist.relative_error) ** 2 / 3
    middle = float(values @ times) / count
    squares = float(((values - middle) ** 2 + within) @ times) * unit**2
    return _Mean(count, hist.sum / count * unit, max(squares, least) / max(count - 1, 1))


def _mean_log(hist: LogHistogram) -> _Mean | None:
    """Of ln(seconds): its mean is within the histogram's relative error."""
    count = hist.count
    if not count:
        return None
    values, times = _values(hist)
    logs = np.log(np.maximum(values, _LEAST_TIME_NS) / 1e9)
    mean = float(logs @ times) / count
    squares = float(((logs - mean) ** 2 + hist.relative_error**2 / 3) @ times)
    return _Mean(count, mean, squares / max(count - 1, 1))


# ---------------------------------------------------------------- intervals


def wilson(hits: int, count: int, alpha: float) -> Bounded:
    """Wilson's interval of a share, ``count`` >= 1."""
    z2 = NormalDist().inv_cdf(1 - alpha / 2) ** 2
    share = hits / count
    middle = (hits + z2 / 2) / (count + z2)
    half = sqrt(z2 * (share * (1 - share) * count + z2 / 4)) / (count + z2)
    # At the ends the formula is exact only up to rounding.
    low = 0.0 if hits == 0 else max(middle - half, 0.0)
    return Bounded(share, low, 1.0 if hits == count else min(middle + half, 1.0))


def difference(control: Bounded, candidate: Bounded) -> Bounded:
    """Candidate minus control, from the interval of each (Newcombe 1998, method 10, of shares; Zou and
    Donner 2008 of anything): the distances to the bounds are added as squares."""
    effect = candidate.value - control.value
    below = sqrt((candidate.value - candidate.low) ** 2 + (control.high - control.value) ** 2)
    above = sqrt((candidate.high - candidate.value) ** 2 + (control.value - control.low) ** 2)
    return Bounded(effect, effect - below, effect + above)


def welch(control: _Mean, candidate: _Mean, alpha: float) -> Bounded | None:
    """Of two means; ``None`` where requests did not vary at all."""
    parts = [each.variance / each.requests for each in (control, candidate)]
    variance = sum(parts)
    effect = candidate.mean - control.mean
    if not variance > 0:
        return None
    spread = zip(parts, (control, candidate), strict=True)
    freedom = variance**2 / sum(part**2 / max(each.requests - 1, 1) for part, each in spread)
    z = np.array(NormalDist().inv_cdf(1 - alpha / 2))
    half = float(few(z, np.array(freedom))) * sqrt(variance)
    return Bounded(effect, effect - half, effect + half)


def ranks(count: int, q: float, alpha: float) -> tuple[int, int]:
    """Between which ranks of ``count`` independent values the q-quantile of their source lies.

    By the binomial distribution; 0 or ``count + 1``: it is not bounded on that side.
    """
    middle, spread = count * q, sqrt(count * q * (1 - q))
    first = max(int(middle - 12 * spread - 30), 0)
    last = min(int(middle + 12 * spread + 30), count)
    k = np.arange(first, last + 1, dtype=np.float64)
    start = lgamma(count + 1) - lgamma(first + 1) - lgamma(count - first + 1)
    start += first * log(q) + (count - first) * log1p(-q)
    steps = np.log((count - k[:-1]) / (k[:-1] + 1)) + log(q / (1 - q))
    below = np.exp(start + np.concatenate(([0.0], steps.cumsum()))).cumsum()  # P(at most k lie below)
    low = first + int(np.searchsorted(below, alpha / 2, side="right"))
    high = first + int(np.searchsorted(below, 1 - alpha / 2, side="left")) + 1
    return low, min(high, count + 1)


# ---------------------------------------------------------------- rows


def _shares(metric: Metric, arms: list[tuple[int, int]], alpha: float) -> Look:
    counts = arms[0][1], arms[1][1]
    if not min(counts):
        return _nothing(metric, [hits / count if count else None for hits, count in arms], counts)
    bounded = [wilson(hits, count, alpha) for hits, count in arms]
    return _judged(metric, (bounded[0].value, bounded[1].value), difference(*bounded), counts)


def _means(metric: Metric, arms: list[_Mean | None], alpha: float) -> Look:
    control, candidate = arms
    values = [None if each is None else each.mean for each in arms]
    counts = (0 if control is None else control.requests, 0 if candidate is None else candidate.requests)
    if control is None or candidate is None:
        return _nothing(metric, values, counts)
    found = welch(control, candidate, alpha) if min(counts) >= LEAST_MEAN else None
    if found is None:
        return _nothing(metric, values, counts, "too_few" if min(counts) < LEAST_MEAN else "no_variance")
    if metric.least:  # no two shares differ by more
        found = Bounded(found.value, max(found.low, -1.0), min(found.high, 1.0))
    return _judged(metric, (control.mean, candidate.mean), found, counts)


def _ratios(metric: Metric, arms: list[tuple[int, int]]) -> Look:
    """Without an interval: how a request's deadlines vary with its misses is not kept."""
    values = [part / whole if whole else None for part, whole in arms]
    reason = "no_data" if None in values else "not_kept"
    return _nothing(metric, values, (arms[0][1], arms[1][1]), reason)


def _nothing(
    metric: Metric, values: list[float | None], counts: tuple[int, int], reason: str = "no_data"
) -> Look:
    """A row without an interval."""
    control, candidate = values
    effect = None if control is None or candidate is None else candidate - control
    margin = None if control is None else _margin(metric, control)
    verdict = Verdict.UNDECIDED
    return Look(
        metric.name, control, candidate, effect, None, None, margin, verdict, counts, reasons=(reason,)
    )


def _judged(metric: Metric, values: tuple[float, float], found: Bounded, counts: tuple[int, int]) -> Look:
    margin = _margin(metric, values[0])
    verdict, reasons = _said(metric.better, found, margin, min(counts))
    return Look(metric.name, *values, *found, margin, verdict, counts, reasons)


def _margin(metric: Metric, control: float) -> float:
    return metric.margin * (abs(control) if metric.relative else 1.0)


def _said(better: int, found: Bounded, margin: float, least: int) -> tuple[Verdict, tuple[str, ...]]:
    if least < FIRST_REQUESTS:
        return Verdict.UNDECIDED, ("too_few",)
    verdict = verdict_of(better, found.low, found.high, margin)
    return verdict, ("interval",) if verdict is Verdict.UNDECIDED else ()


def _quantile(slots: tuple[Slot, Slot], q: float, alpha: float) -> QuantileLook:
    control, candidate = (_bounds(slot.hists["ttft"], q, alpha) for slot in slots)
    if control.value is None or candidate.value is None:
        return QuantileLook(q, control, candidate, None, None, None, Verdict.UNDECIDED, ("no_data",))
    found = difference(_bounded(control), _bounded(candidate))
    least = min(slot.hists["ttft"].count for slot in slots)
    verdict, reasons = _said(-1, found, METRIC["ttft"].margin * control.value, least)
    low, high = (end if abs(end) < inf else None for end in (found.low, found.high))
    return QuantileLook(q, control, candidate, found.value, low, high, verdict, reasons)


def _bounds(hist: LogHistogram, q: float, alpha: float) -> QuantileBounds:
    """In seconds; the bounds moved outwards by the histogram's error."""
    if not hist.count:
        return QuantileBounds(q, None, None, None)
    low, high = ranks(hist.count, q, alpha)
    value, below, above = (hist.ranked(place) for place in (rank(q, hist.count), low, high))
    error = hist.relative_error
    return QuantileBounds(
        q,
        None if value is None else value / 1e9,
        None if below is None else below * (1 - error) / 1e9,
        None if above is None else above * (1 + error) / 1e9,
    )


def _bounded(bounds: QuantileBounds) -> Bounded:
    value, low, high = bounds.value, bounds.low, bounds.high
    assert value is not None
    return Bounded(value, -inf if low is None else low, inf if high is None else high)
