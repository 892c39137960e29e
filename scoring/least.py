"""The least TBT deadline: the smallest ``Dd`` with which a request reaches its target fluidity.

Fluidity never falls as ``Dd`` grows (the README has the proof), so the answer is found by bisection, exact
to the nanosecond.  Two things make it quick.  Events that are not late for one ``Dd`` are not late for any
larger one, and only late events move the peak: whatever was found to fall short prunes the lanes for good.
And it starts near the answer: numpy tries a few values around the mean gap, and once few events are left
plain integers are quicker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scoring.counting import Ints, count, dtype_for, lateness
from scoring.lanes import Lane

_FEW = 32  # events; below it Python's loop beats numpy's calls
_WAYS = 7


class _Row(NamedTuple):
    """An event that may be late: taken out where it is so by at most ``free_ns``; ``token`` 0: the cut."""

    at_ns: int
    before: int
    token: int
    free_ns: int


def least(lanes: Sequence[Lane], ttft_ns: int, target: float) -> int | None:
    """The smallest ``Dd`` >= 1; ``None`` where none reaches the target."""
    if not any(lane.tokens for lane in lanes):
        return None
    tokens = sum(lane.tokens for lane in lanes)
    latest = max(int(lane.at.max()) for lane in lanes if len(lane.at))
    # With a deadline longer than the whole trace only a first token can be late, by one deadline.
    fails, reaches = 0, latest + 1
    if not _reached(_rows(_prune(lanes, ttft_ns, reaches)), tokens, ttft_ns, reaches, target):
        return None
    mean = max(1, latest // tokens)
    grid = [mean // 4, mean // 2, mean * 3 // 4, mean, mean * 3 // 2, mean * 2, mean * 4]
    while reaches - fails > 1 and sum(len(lane.at) for lane in lanes) > _FEW:
        grid = sorted({tbt for tbt in grid if fails < tbt < reaches}) or [(fails + reaches) // 2]
        reached = _reached_over(lanes, ttft_ns, grid, target)
        first = reached.index(True) if True in reached else len(grid)
        reaches = grid[first] if first < len(grid) else reaches
        if first:
            fails = grid[first - 1]
            lanes = _prune(lanes, ttft_ns, fails)
        grid = [fails + (reaches - fails) * way // (_WAYS + 1) for way in range(1, _WAYS + 1)]
    rows = _rows(lanes)
    while reaches - fails > 1:
        middle = (fails + reaches) // 2
        if _reached(rows, tokens, ttft_ns, middle, target):
            reaches = middle
        else:
            fails = middle
    return reaches


def _reached_over(lanes: Sequence[Lane], ttft_ns: int, grid: Sequence[int], target: float) -> list[bool]:
    counts = count(lanes, ttft_ns, grid)
    pairs = zip(counts.met.tolist(), counts.missed.tolist(), strict=True)
    return [_enough(met, missed, target) for met, missed in pairs]


def _enough(met: int, missed: int, target: float) -> bool:
    return met + missed > 0 and met / (met + missed) >= target


def _prune(lanes: Sequence[Lane], ttft_ns: int, tbt_ns: int) -> list[Lane]:
    """The lanes with only the events that are late for this ``Dd``: no other is for a larger one."""
    grid: Ints = np.array([tbt_ns], dtype=dtype_for(lanes, ttft_ns, tbt_ns))
    kept = []
    for lane in lanes:
        if len(lane.at):
            late = (lateness(lane, ttft_ns, grid)[0] > 0).astype(bool)
            lane = lane._replace(
                at=lane.at[late],
                before=lane.before[late],
                start=lane.start[late],
                cut=lane.cut and bool(late[-1]),
                known=None if lane.known is None else lane.known[late],
                lag=None if lane.lag is None else lane.lag[late],
            )
        kept.append(lane)
    return kept


def _rows(lanes: Sequence[Lane]) -> list[list[_Row]]:
    tables = []
    for lane in lanes:
        ats, befores = lane.at.tolist(), lane.before.tolist()
        free = [0] * len(ats) if lane.lag is None else lane.lag.tolist()
        if lane.known is not None:
            free = [ats[-1] if known else ns for known, ns in zip(lane.known.tolist(), free, strict=True)]
        real = [1] * len(ats)
        if lane.cut:
            real[-1] = 0
        tables.append(list(map(_Row, ats, befores, real, free)))
    return tables


def _reached(tables: list[list[_Row]], tokens: int, ttft_ns: int, tbt_ns: int, target: float) -> bool:
    met, missed = tokens, 0
    for rows in tables:
        peak = ttft_ns
        for at_ns, before, token, free_ns in rows:
            late_ns = at_ns - before * tbt_ns - peak
            if late_ns > 0:
                peak += late_ns
                met -= token
                if late_ns > free_ns:
                    missed += late_ns // tbt_ns + 1
    return _enough(met, missed, target)
