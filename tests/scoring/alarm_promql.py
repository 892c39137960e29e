"""What the rules of deploy/prometheus make of the same simulated traffic, in numpy, evaluated every 10 s.

The same conditions as the expressions there, with what is counted known exactly: Prometheus extrapolates
rates from scrapes, and evaluates what it recorded up to 10 s before.  ``tests/deploy`` runs the expressions
themselves over one day of this traffic's slots.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tests.scoring.alarm_run import Fired
from tests.scoring.alarm_traffic import SLOT_S, Ints, Traffic

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
RULES: Final = ("spike", "errors", "stalled", "burn_1h", "burn_6h")

_MINUTE: Final = 6
_HOUR: Final = 360
_GAP: Final = 18  # offset 3m
_KNOWN: Final = 60
_COLD: Final = 0.1


class Share(NamedTuple):
    """An alert on a share of the last minute's requests: ``share`` for ``behind`` slots, or ``at_once``, and
    either for ``hold`` slots more; it fires ``keep`` slots longer."""

    share: float
    behind: int
    at_once: float = 0.5
    times: float = 3.0
    hits: int = 5
    hold: int = 2
    keep: int = 12


SPIKE: Final = Share(0.25, 4)
ERRORS: Final = Share(0.05, 7)
STALLED: Final = 0.5, 5, 2, 6  # share, streams, hold, keep
OBJECTIVE: Final = 0.98


def run(traffic: Traffic) -> list[Fired]:
    """All that fired, in order."""
    late = traffic.missed, traffic.settled
    failed = traffic.failed, traffic.tried
    firing = {
        "spike": _share(SPIKE, *late),
        "errors": _share(ERRORS, *failed),
        "stalled": _stalled(traffic),
        "burn_1h": _burn(traffic, 14.4, 360, 30),
        "burn_6h": _burn(traffic, 6, 2_160, 180),
    }
    fired = [each for name, when in firing.items() for each in _episodes(name, when)]
    return sorted(fired, key=lambda each: each.from_s)


def _share(rule: Share, hit: Ints, due: Ints) -> Bools:
    hits, count = _last(hit, _MINUTE), _last(due, _MINUTE)
    known = count > 0
    ratio = np.where(known, hits / np.maximum(count, 1), np.nan)
    high = np.nan_to_num(ratio) >= rule.share
    long = _last(high.astype(np.int64), rule.behind + 1) == rule.behind + 1
    enough = high & ((np.nan_to_num(ratio) >= rule.at_once) | long) & (hits >= rule.hits)
    firing = np.zeros(len(ratio), dtype=bool)
    calm = ratio.copy()  # less the minutes in which it fired
    held, calm_for = 0, rule.keep
    usual = _COLD
    for at in range(len(ratio)):
        if at % _MINUTE == 0:  # the median of an hour moves slowly
            usual = _usual(calm[max(at + 1 - _GAP - _HOUR, 0) : max(at + 1 - _GAP, 0)])
        fires = bool(enough[at]) and ratio[at] >= rule.times * usual
        held = held + 1 if fires else 0
        calm_for = 0 if fires else calm_for + 1
        before = bool(at and firing[at - 1])
        firing[at] = held > rule.hold or (before and calm_for < rule.keep)
        if firing[at]:
            calm[at] = np.nan
    return firing


def _usual(calm: Floats) -> float:
    known = calm[~np.isnan(calm)]
    return float(np.median(known)) if len(known) >= _KNOWN else _COLD


def _stalled(traffic: Traffic) -> Bools:
    share, streams, hold, keep = STALLED
    many = (traffic.overdue >= streams) & (traffic.overdue >= share * traffic.streams)
    every = (traffic.overdue >= 2) & (traffic.overdue == traffic.streams)
    long = every & np.concatenate(([False], every[:-1]))
    return _held(many | long, hold, keep)


def _burn(traffic: Traffic, burn: float, long: int, short: int) -> Bools:
    watched = np.minimum((np.arange(traffic.slots) + 1.0) / long, 1)
    limit = burn * (1 - OBJECTIVE)
    bad, due = _last(traffic.bad, long), _last(traffic.tried, long)
    soon = _last(traffic.bad, short) / np.maximum(_last(traffic.tried, short), 1)
    return _held((bad / np.maximum(due, 1) * watched > limit) & (soon > limit) & (bad >= 5), 0, 6)


def _held(fires: Bools, hold: int, keep: int) -> Bools:
    """``for`` and ``keep_firing_for``, in slots."""
    out = np.zeros(len(fires), dtype=bool)
    held, calm = 0, keep
    for at, now in enumerate(fires):
        held, calm = (held + 1, 0) if now else (0, calm + 1)
        out[at] = held > hold or bool(at and out[at - 1] and calm < keep)
    return out


def _last(counts: Ints, slots: int) -> Ints:
    """Sums of the last so many slots."""
    sums = np.concatenate(([0], counts.cumsum()))
    low = np.maximum(np.arange(len(counts)) + 1 - slots, 0)
    out: Ints = sums[1:] - sums[low]
    return out


def _episodes(name: str, firing: Bools) -> list[Fired]:
    edges = np.diff(np.concatenate(([0], firing.astype(np.int64))))
    ends = [(at + 1.0) * SLOT_S for at in np.flatnonzero(edges < 0)]
    begins = [(at + 1.0) * SLOT_S for at in np.flatnonzero(edges > 0)]
    return [Fired(name, begin, ends[at] if at < len(ends) else None) for at, begin in enumerate(begins)]
