"""Deadlines met and missed over lanes, for a whole grid of ``Dd`` at once.

With ``a`` the arrival of an event and ``n`` the tokens before it, ``u = a - n*Dd``, and the late events
are the records of a running maximum that starts at ``Dp``: one ``np.maximum.accumulate`` per lane.
Arrivals of a lane must not decrease.  Counts are exact: where int64 could overflow, Python's integers
take over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scoring.lanes import BLOCKED, SUSPECT, Int8s, Lane

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[Any]  # int64, or object where int64 could overflow

_EXACT = 1 << 62  # sums below this cannot overflow int64
_CELLS = 1 << 16  # cells of a grid worked on at once: they stay in the cache


class Counts(NamedTuple):
    """Per ``Dd`` of a grid: tokens that were late and counts of deadlines."""

    met: Ints
    missed: Ints
    suspect: Ints
    client_blocked: Ints
    late_excluded: Ints  # tokens, not deadlines


def lateness(lane: Lane, ttft_ns: int, grid: Ints) -> Ints:
    """How late each event of the lane was (columns) for each ``Dd`` of the grid (rows); <= 0: in time."""
    u = lane.at - lane.before * grid[:, None]
    peak = np.empty_like(u)
    peak[:, 0] = ttft_ns
    peak[:, 1:] = u[:, :-1]
    np.maximum.accumulate(peak, axis=1, out=peak)
    u -= peak
    return u


def reasons(lane: Lane, late_by: Ints) -> Int8s:
    """Per cell the code of the reason by which the event, if late, is taken out."""
    codes = np.zeros(late_by.shape, dtype=np.int8)
    if lane.lag is not None:
        codes[(lane.lag >= late_by).astype(bool)] = SUSPECT
    if lane.known is not None:
        np.copyto(codes, lane.known, where=lane.known > 0)
    return codes


def count(lanes: Sequence[Lane], ttft_ns: int, tbt_grid_ns: Sequence[int]) -> Counts:
    """Count the lanes together, for every ``Dd`` of the grid."""
    dtype = dtype_for(lanes, ttft_ns, max(tbt_grid_ns, default=1))
    grid: Ints = np.array(tbt_grid_ns, dtype=dtype)
    out = Counts(*(np.zeros(len(grid), dtype=dtype) for _ in range(5)))
    for lane in lanes:
        if not len(lane.at):
            continue
        rows = max(1, _CELLS // len(lane.at))
        for row in range(0, len(grid), rows):
            part = slice(row, row + rows)
            _count_lane(lane, ttft_ns, grid[part], Counts(*(each[part] for each in out)))
    return out


def _count_lane(lane: Lane, ttft_ns: int, grid: Ints, out: Counts) -> None:
    """Add one lane to ``out``, whose arrays are as long as the grid."""
    late_by = lateness(lane, ttft_ns, grid)
    late: Bools = (late_by > 0).astype(bool)
    missed = late_by // grid[:, None]
    missed += 1
    missed *= late
    late_tokens = late[:, :-1] if lane.cut else late
    out.met[:] += lane.tokens - late_tokens.sum(axis=1)
    if lane.known is None and lane.lag is None:
        out.missed[:] += missed.sum(axis=1)
        return
    codes = reasons(lane, late_by)
    out.missed[:] += (missed * (codes == 0)).sum(axis=1)
    out.client_blocked[:] += (missed * (codes == BLOCKED)).sum(axis=1)
    out.suspect[:] += (missed * (codes == SUSPECT)).sum(axis=1)
    out.late_excluded[:] += (late_tokens & (codes[:, : late_tokens.shape[1]] > 0)).sum(axis=1)


def dtype_for(lanes: Sequence[Lane], ttft_ns: int, tbt_ns: int) -> type:
    """int64 where every number on the way stays below 2**62, Python's integers otherwise.

    A lane misses at most one deadline per event and one per nanosecond: each late event raises the peak
    by its lateness, and the peak never passes the last arrival.
    """
    latest = max((int(lane.at.max()) for lane in lanes if len(lane.at)), default=0) + ttft_ns
    events = sum(len(lane.at) for lane in lanes)
    tokens = sum(lane.tokens for lane in lanes)
    return np.int64 if latest * (len(lanes) + 1) + events + tokens * tbt_ns < _EXACT else object
