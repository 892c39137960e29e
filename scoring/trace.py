"""The score of a whole trace, vectorised: the twin of ``fluidity.FluidityScorer``.

With ``a`` the arrival of an event and ``n`` the tokens before it, ``u = a - n*Dd``, and the late events
are the records of a running maximum that starts at ``Dp``: one ``np.maximum.accumulate`` scores a choice
for a whole grid of ``Dd``.  Only the first token of an event can be late, so arrays are as long as the
events, however many tokens these carry.

Arrivals of a choice must not decrease.  Counts are exact: where int64 could overflow, Python's integers
take over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scoring.deadlines import Deadlines
from scoring.lanes import BLOCKED, REASONS, SUSPECT, Choice, Excluded, Int8s, Int64s, Lane, Mark, lanes_of
from scoring.quantiles import rank
from scoring.score import Gaps, Raw, Stall, StreamScore

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[Any]  # int64, or object where int64 could overflow

__all__ = ["Choice", "Excluded", "Mark", "gaps", "least_tbt", "miss_curve", "score"]

_EXACT = 1 << 62  # sums below this cannot overflow int64
_CELLS = 1 << 16  # cells of a grid worked on at once: they stay in the cache


class _Counts(NamedTuple):
    """Per ``Dd`` of a grid: tokens that were late and counts of deadlines."""

    met: Ints
    missed: Ints
    suspect: Ints
    client_blocked: Ints
    late_excluded: Ints  # tokens, not deadlines


def score(
    choices: Sequence[Choice],
    deadlines: Deadlines,
    *,
    end_ns: int,
    censored: bool,
    target: float = 0.9,
    excluded: Sequence[Excluded] = (),
    marks: Sequence[Mark] = (),
) -> StreamScore:
    """Score one request.  ``end_ns``: when it ended; ``censored``: it was cut then, with tokens still due.

    ``target`` only serves ``least_tbt_ns``.  A choice without events takes part: cut before its first
    token it may have missed deadlines.
    """
    lanes = lanes_of(choices, end_ns if censored else None, excluded, marks)
    counts = _count(lanes, deadlines.ttft_ns, [deadlines.tbt_ns])
    met, missed, suspect, blocked, late_excluded = (int(each[0]) for each in counts)
    stalls = sorted(_stalls(lanes, deadlines), key=lambda stall: (stall.at_ns, stall.choice))
    counted = [stall for stall in stalls if stall.reason is None]
    tokens = sum(lane.tokens for lane in lanes)
    raw_missed = missed + suspect + blocked
    firsts = [int(lane.at[0]) for lane in lanes if lane.tokens]
    return StreamScore(
        tokens=tokens,
        met=met,
        missed=missed,
        suspect=suspect,
        client_blocked=blocked,
        fluidity=_ratio(met, met + missed),
        on_time_ratio=_ratio(met, tokens - late_excluded),
        ttft_ns=min(firsts, default=None),
        tbt=_gap_quantiles(lanes),
        tpot_ns=_tpot(lanes),
        normalized_ns=_ratio(end_ns, tokens),
        duration_ns=end_ns,
        late_ns=sum(stall.late_ns for stall in counted),
        stalls=tuple(stalls),
        worst=max(counted, key=lambda stall: stall.late_ns, default=None),
        least_tbt_ns=_least(lanes, deadlines.ttft_ns, target),
        censored=censored,
        raw=Raw(_ratio(met, met + raw_missed), met, raw_missed) if raw_missed > missed else None,
    )


def miss_curve(
    choices: Sequence[Choice],
    ttft_ns: int,
    tbt_grid_ns: Sequence[int] | Int64s,
    *,
    end_ns: int,
    censored: bool,
    excluded: Sequence[Excluded] = (),
    marks: Sequence[Mark] = (),
) -> npt.NDArray[np.float64]:
    """``missed / (met + missed)`` for each ``Dd`` (>= 1) of the grid; NaN where no deadline counts."""
    lanes = lanes_of(choices, end_ns if censored else None, excluded, marks)
    counts = _count(lanes, ttft_ns, [Deadlines(ttft_ns, int(tbt)).tbt_ns for tbt in tbt_grid_ns])
    total = (counts.met + counts.missed).astype(np.float64)
    rates = np.full(len(total), np.nan)
    np.divide(counts.missed.astype(np.float64), total, out=rates, where=total > 0)
    return rates


def least_tbt(
    choices: Sequence[Choice],
    ttft_ns: int,
    target: float,
    *,
    end_ns: int,
    censored: bool,
    excluded: Sequence[Excluded] = (),
    marks: Sequence[Mark] = (),
) -> int | None:
    """The smallest ``Dd``, in whole nanoseconds from 1 up, with which the request has fluidity >= ``target``.

    ``None`` where no ``Dd`` gets there: no token came, or the first came late and too few follow to make
    up for it.  A request whose tokens all came at once in time (one token, for example) needs none at all:
    1.  Exact, by bisection: fluidity never falls as ``Dd`` grows.
    """
    return _least(lanes_of(choices, end_ns if censored else None, excluded, marks), ttft_ns, target)


def gaps(choices: Sequence[Choice]) -> tuple[Int64s, int]:
    """All times between tokens as (gaps between events, number of gaps of 0 within events)."""
    return _gaps(lanes_of(choices, None, (), ()))


# ---------------------------------------------------------------- counting


def _late_by(lane: Lane, ttft_ns: int, grid: Ints) -> Ints:
    """How late each event of the lane was (columns) for each ``Dd`` of the grid (rows); <= 0: in time."""
    u = lane.at - lane.before * grid[:, None]
    peak = np.empty_like(u)
    peak[:, 0] = ttft_ns
    peak[:, 1:] = u[:, :-1]
    np.maximum.accumulate(peak, axis=1, out=peak)
    u -= peak
    return u


def _reasons(lane: Lane, late_by: Ints) -> Int8s:
    """Per cell the code of the reason by which the event, if late, is taken out."""
    codes = np.zeros(late_by.shape, dtype=np.int8)
    if lane.lag is not None:
        codes[(lane.lag >= late_by).astype(bool)] = SUSPECT
    if lane.known is not None:
        np.copyto(codes, lane.known, where=lane.known > 0)
    return codes


def _count(lanes: Sequence[Lane], ttft_ns: int, tbt_grid_ns: Sequence[int]) -> _Counts:
    """Count the lanes together, for every ``Dd`` of the grid."""
    dtype = _dtype(lanes, ttft_ns, max(tbt_grid_ns, default=1))
    grid: Ints = np.array(tbt_grid_ns, dtype=dtype)
    out = _Counts(*(np.zeros(len(grid), dtype=dtype) for _ in range(5)))
    for lane in lanes:
        if not len(lane.at):
            continue
        rows = max(1, _CELLS // len(lane.at))
        for row in range(0, len(grid), rows):
            part = slice(row, row + rows)
            _count_lane(lane, ttft_ns, grid[part], _Counts(*(each[part] for each in out)))
    return out


def _count_lane(lane: Lane, ttft_ns: int, grid: Ints, out: _Counts) -> None:
    """Add one lane to ``out``, whose arrays are as long as the grid."""
    late_by = _late_by(lane, ttft_ns, grid)
    late: Bools = (late_by > 0).astype(bool)
    missed = late_by // grid[:, None]
    missed += 1
    missed *= late
    late_tokens = late[:, :-1] if lane.cut else late
    out.met[:] += lane.tokens - late_tokens.sum(axis=1)
    if lane.known is None and lane.lag is None:
        out.missed[:] += missed.sum(axis=1)
        return
    codes = _reasons(lane, late_by)
    out.missed[:] += (missed * (codes == 0)).sum(axis=1)
    out.client_blocked[:] += (missed * (codes == BLOCKED)).sum(axis=1)
    out.suspect[:] += (missed * (codes == SUSPECT)).sum(axis=1)
    out.late_excluded[:] += (late_tokens & (codes[:, : late_tokens.shape[1]] > 0)).sum(axis=1)


def _dtype(lanes: Sequence[Lane], ttft_ns: int, tbt_ns: int) -> type:
    """int64 where every number on the way stays below 2**62, Python's integers otherwise.

    A lane misses at most one deadline per event and one per nanosecond: each late event raises the peak
    by its lateness, and the peak never passes the last arrival.
    """
    latest = max((int(lane.at.max()) for lane in lanes if len(lane.at)), default=0) + ttft_ns
    events = sum(len(lane.at) for lane in lanes)
    tokens = sum(lane.tokens for lane in lanes)
    return np.int64 if latest * (len(lanes) + 1) + events + tokens * tbt_ns < _EXACT else object


def _least(lanes: Sequence[Lane], ttft_ns: int, target: float) -> int | None:
    """``least_tbt`` by a bisection that tries many values at a time."""
    if not any(lane.tokens for lane in lanes):
        return None
    events = sum(len(lane.at) for lane in lanes)
    # With a deadline longer than the whole trace only a first token can be late, by one deadline.
    fails, reaches = 0, max(1, *(int(lane.at.max()) + 1 for lane in lanes if len(lane.at)))
    if not _reach(lanes, ttft_ns, [reaches], target)[0]:
        return None
    ways = min(63, max(3, 4096 // events))
    while reaches - fails > 1:
        span = reaches - fails
        grid = sorted({fails + span * way // (ways + 1) for way in range(1, ways + 1)} - {fails})
        reached = _reach(lanes, ttft_ns, grid, target)
        first = int(reached.argmax()) if reached.any() else len(grid)
        if first < len(grid):
            reaches = grid[first]
        if first:
            fails = grid[first - 1]
    return reaches


def _reach(lanes: Sequence[Lane], ttft_ns: int, grid: Sequence[int], target: float) -> Bools:
    counts = _count(lanes, ttft_ns, grid)
    total = counts.met + counts.missed
    reached: Bools = (total > 0) & (counts.met / np.maximum(total, 1) >= target)
    return reached.astype(bool)


# ---------------------------------------------------------------- what else is said of a request


def _stalls(lanes: Sequence[Lane], deadlines: Deadlines) -> Iterator[Stall]:
    for lane in lanes:
        if not len(lane.at):
            continue
        grid: Ints = np.array([deadlines.tbt_ns], dtype=_dtype([lane], deadlines.ttft_ns, deadlines.tbt_ns))
        late_by = _late_by(lane, deadlines.ttft_ns, grid)
        codes = _reasons(lane, late_by)[0]
        for event in np.flatnonzero(late_by[0] > 0):
            late_ns = int(late_by[0, event])
            missed = late_ns // deadlines.tbt_ns + 1
            yield Stall(int(lane.start[event]), late_ns, missed, lane.choice, REASONS[codes[event]])


def _gaps(lanes: Sequence[Lane]) -> tuple[Int64s, int]:
    between = [np.diff(lane.at[:-1] if lane.cut else lane.at) for lane in lanes]
    within = sum(lane.tokens - len(lane.at) + lane.cut for lane in lanes)
    return np.concatenate(between) if between else np.empty(0, dtype=np.int64), within


def _gap_quantiles(lanes: Sequence[Lane]) -> Gaps | None:
    between, within = _gaps(lanes)
    count = len(between) + within
    if not count:
        return None
    between = np.sort(between)

    def at(q: float) -> int:
        index = rank(q, count) - within - 1
        return int(between[index]) if index >= 0 else 0

    return Gaps(at(0.5), at(0.9), at(0.99), at(1.0))


def _tpot(lanes: Sequence[Lane]) -> float | None:
    """The mean gap: over all choices, (last token - first token) / (tokens - 1)."""
    full = [lane for lane in lanes if lane.tokens]
    time_ns = sum(int(lane.at[-2 if lane.cut else -1]) - int(lane.at[0]) for lane in full)
    return _ratio(time_ns, sum(lane.tokens - 1 for lane in full))


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
