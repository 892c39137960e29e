"""Simulated traffic of one group, for the alert rules: what they would see each 10 s.  Vectorised by request.

Healthy traffic is hard on purpose: Poisson arrivals whose rate follows the day, wanders and bursts; misses
that come together (a rate that wanders for minutes, that rises with the load, and hiccups of the server that
hit what is in flight); blips of failing requests; requests that hang by themselves.  An incident is planted
by what it does to the requests: their speed, their misses, their ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

SLOT_S: Final = 10
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Gaps between tokens by size: bins of 5%, from 1 ms.
BINS: Final = 160
EDGES_MS: Final = 1.05 ** np.arange(BINS + 1)
#: Of a healthy, idle server: the median gap, and how it scatters.
TBT_MS: Final = 20.0
_SCATTER: Final = 0.35
_TOKENS_PER_S: Final = 40.0


class Incident(NamedTuple):
    """``speed``: tokens come so much faster (0: none come); ``late``: the chance that a request in it misses
    a deadline; ``overdue``: that its stream is overdue when looked at; ``failing``: the share of requests
    that fail at once; ``cut``: those in flight at the start are cut; ``leave_s``: how long clients wait."""

    speed: float = 1.0
    late: float = 0.0
    overdue: float = 0.0
    failing: float = 0.0
    cut: bool = False
    leave_s: float = np.inf
    length_s: float = 300


INCIDENTS: Final = {
    "long prompts starve decoding": Incident(speed=0.2, late=0.9, overdue=0.65),
    "hang": Incident(speed=0.0, late=1.0, overdue=0.98, leave_s=60),
    "decode twice as slow": Incident(speed=0.5, length_s=1_200),
    "10% errors": Incident(failing=0.1),
    "total outage": Incident(failing=1.0, cut=True),
}
#: What is not promised to be found within a minute; the report says how it goes.
MILDER: Final = {
    "a third of the streams late": Incident(speed=0.8, late=0.3, overdue=0.2),
    "5% errors": Incident(failing=0.05),
    "decode 1.7 times as slow": Incident(speed=0.59, length_s=1_200),
}


@dataclass(frozen=True)
class Traffic:
    """By slots of 10 s, all of shape (slots,): settled requests, those of them with a missed deadline, those
    that can fail (``tried``) and did (``failed``), good and bad ones; at the end of each slot the streams in
    flight, overdue ones, tokens per second since.  ``gaps``: (slots, BINS), gaps by size."""

    settled: Ints
    missed: Ints
    tried: Ints
    failed: Ints
    bad: Ints
    streams: Ints
    overdue: Ints
    tokens_per_s: Floats
    gaps: Ints

    @property
    def slots(self) -> int:
        return len(self.settled)


def simulate(
    seed: int,
    hours: float,
    per_s: float = 5.0,
    incident: Incident | None = None,
    at_s: float = 0.0,
    calm: bool = False,
) -> Traffic:
    """``per_s``: arrivals per second in the quietest hour of the day; the busiest has twice as many.

    ``calm``: a tenth of the usual misses, and hiccups that hit nearly every stream: what is unusual shows.
    """
    rng = np.random.default_rng(seed)
    slots = round(hours * 360)
    load = _load(rng, slots)
    start = np.repeat(np.arange(slots), rng.poisson(load * per_s * SLOT_S)) * float(SLOT_S)
    begin: Floats = np.sort(start + rng.uniform(0, SLOT_S, len(start)))
    length: Floats = np.minimum(rng.lognormal(np.log(8), 0.8, len(begin)), 120)
    length[rng.random(len(begin)) < 2e-4] = 300  # hung by itself, or very long
    usual = _usual(rng, load)
    late = rng.random(len(begin)) < (usual * (0.1 if calm else 1))[(begin // SLOT_S).astype(np.int64)]
    failed = rng.random(len(begin)) < _failing(rng, slots)[(begin // SLOT_S).astype(np.int64)]
    length[failed] = 0.05
    end: Floats = begin + length
    hiccups = _hiccups(rng, hours, calm)
    for start_s, _, hit in hiccups:
        within = (begin < start_s) & (end > start_s)
        late |= within & (rng.random(len(begin)) < hit)
    left = np.zeros(len(begin), dtype=bool)
    if incident is not None:
        end, late, failed, left = _strike(rng, incident, at_s, begin, end, late, failed)
    return _counted(rng, slots, load, begin, end, late & ~failed, failed, left, hiccups, incident, at_s)


def _load(rng: np.random.Generator, slots: int) -> Floats:
    """1 to 2 with the hour of the day, times what wanders and bursts."""
    at_s = np.arange(slots) * SLOT_S
    day = 1.5 - 0.5 * np.cos(2 * np.pi * (at_s / 86_400 + rng.random()))
    wander = np.exp(0.15 * _wander(rng, slots, 60) + 0.1 * rng.standard_normal(slots))
    burst = np.ones(slots)
    for _ in range(rng.poisson(slots / 180)):  # two an hour
        first, long = rng.integers(slots), 1 + rng.geometric(0.2)
        burst[first : first + long] *= rng.uniform(1.5, 4)
    out: Floats = np.maximum(day * wander * burst, 1.0)
    return out


def _wander(rng: np.random.Generator, slots: int, memory: float) -> Floats:
    """Of unit variance, with a memory of so many slots."""
    kept = np.exp(-1 / memory)
    steps = rng.standard_normal(slots) * np.sqrt(1 - kept * kept)
    # An AR(1) as a convolution, cut where nothing is left of it.
    kernel = kept ** np.arange(int(8 * memory))
    out: Floats = np.convolve(steps, kernel)[:slots]
    return out


def _usual(rng: np.random.Generator, load: Floats) -> Floats:
    """The chance to miss a deadline: 1% on a quiet server, some 10% at three times its load."""
    return np.minimum(0.01 * load**2 * np.exp(0.5 * _wander(rng, len(load), 30)), 0.15)


def _failing(rng: np.random.Generator, slots: int) -> Floats:
    share = np.minimum(0.002 * np.exp(0.7 * _wander(rng, slots, 60)), 0.02)
    for _ in range(rng.poisson(slots / 2_160)):  # an instance is restarted: four times a day
        first = rng.integers(slots)
        share[first : first + rng.integers(1, 3)] = rng.uniform(0.1, 0.3)
    return share


def _hiccups(rng: np.random.Generator, hours: float, calm: bool) -> list[tuple[float, float, float]]:
    """(start, length in s, share of the streams in flight that miss a deadline), one an hour."""
    return [
        (rng.uniform(0, hours * 3_600), rng.uniform(0.2, 3), rng.beta(9, 1) if calm else rng.beta(2, 3))
        for _ in range(rng.poisson(hours))
    ]


def _strike(
    rng: np.random.Generator,
    incident: Incident,
    at_s: float,
    begin: Floats,
    end: Floats,
    late: npt.NDArray[np.bool_],
    failed: npt.NDArray[np.bool_],
) -> tuple[Floats, Any, Any, Any]:
    until_s = at_s + incident.length_s
    inside = (begin >= at_s) & (begin < until_s)
    failed = failed | (inside & (rng.random(len(begin)) < incident.failing))
    end = np.where(inside & failed, begin + 0.05, end)
    touched = (begin < until_s) & (end > at_s) & ~failed
    if incident.cut:
        cut = touched & (begin < at_s)
        return np.where(cut, at_s, end), late, failed | cut, np.zeros(len(begin), dtype=bool)
    from_s = np.maximum(begin, at_s)
    rest, room = end - from_s, incident.speed * (until_s - from_s)
    within = from_s + rest / incident.speed if incident.speed else np.full(len(end), np.inf)
    slowed = np.where(touched, np.where(rest <= room, within, until_s + rest - room), end)
    # Only who waits longer than some gaps misses one.
    late = late | (touched & (slowed - from_s > 1) & (rng.random(len(begin)) < incident.late))
    patience = (
        from_s + rng.exponential(incident.leave_s, len(begin)) if np.isfinite(incident.leave_s) else np.inf
    )
    left = touched & (patience < np.minimum(slowed, until_s))
    return np.where(left, patience, slowed), late, failed, left


def _counted(
    rng: np.random.Generator,
    slots: int,
    load: Floats,
    begin: Floats,
    end: Floats,
    missed: npt.NDArray[np.bool_],
    failed: npt.NDArray[np.bool_],
    left: npt.NDArray[np.bool_],
    hiccups: list[tuple[float, float, float]],
    incident: Incident | None,
    at_s: float,
) -> Traffic:
    ends = (end // SLOT_S).astype(np.int64)

    def by_slot(which: npt.NDArray[np.bool_]) -> Ints:
        return np.bincount(ends[which], minlength=slots)[:slots].astype(np.int64)

    looks = (np.arange(slots) + 1.0) * SLOT_S
    streams = np.searchsorted(begin, looks) - np.searchsorted(np.sort(end), looks)
    chance = np.minimum(0.02 * load, 0.2) * np.exp(0.3 * rng.standard_normal(slots))
    speed = np.ones(slots)
    for start_s, long_s, hit in hiccups:
        chance[(looks >= start_s) & (looks < start_s + long_s)] = hit
    if incident is not None:
        during = (looks > at_s + 0.1) & (looks < at_s + incident.length_s)
        chance[during] = np.maximum(chance[during], incident.overdue)
        speed[during] = incident.speed
    # A missed deadline spoils a third of the requests.
    spoiled = missed & (rng.random(len(begin)) < 0.33)
    if incident is not None and incident.late:
        spoiled |= missed & (end > at_s) & (begin < at_s + incident.length_s)
    tokens = streams * _TOKENS_PER_S * speed
    return Traffic(
        settled=by_slot(~failed),
        missed=by_slot(missed),
        tried=by_slot(~left),
        failed=by_slot(failed),
        bad=by_slot(failed | spoiled),
        streams=streams.astype(np.int64),
        overdue=rng.binomial(streams, np.minimum(chance, 1.0)).astype(np.int64),
        tokens_per_s=tokens,
        gaps=_gaps(rng, load, tokens, speed),
    )


def _gaps(rng: np.random.Generator, load: Floats, tokens: Floats, speed: Floats) -> Ints:
    """The gaps of each slot by size: a lognormal around what the load and the speed make of the median, and
    2% of three times that (long prompts come in between)."""
    median = TBT_MS * load**0.2 * np.exp(0.05 * _wander(rng, len(load), 30)) / np.maximum(speed, 1e-9)
    middle = np.log(EDGES_MS[:-1]) + 0.5 * np.log(1.05)
    shape = np.zeros((len(load), BINS))
    for part, times in ((0.98, 1.0), (0.02, 3.0)):
        away = (middle[None, :] - np.log(median * times)[:, None]) / _SCATTER
        density = np.exp(-0.5 * away * away)
        shape += part * density / np.maximum(density.sum(axis=1, keepdims=True), 1e-300)
    return rng.poisson(shape * (tokens * SLOT_S * (speed > 0))[:, None]).astype(np.int64)


def quantile_ms(gaps: Ints, q: float) -> float | None:
    """Of gaps by size, shape (BINS,)."""
    total = gaps.sum()
    return float(EDGES_MS[np.searchsorted(gaps.cumsum(), q * total)]) if total else None
