"""The score of a whole trace, vectorised: the twin of ``fluidity.FluidityScorer``.

Only the first token of an event can be late, so arrays are as long as the events, however many tokens
these carry.  Arrivals of a choice must not decrease.  How it is counted: ``counting.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from scoring.counting import Ints, count, dtype_for, lateness, reasons
from scoring.deadlines import Deadlines
from scoring.lanes import REASONS, Choice, Excluded, Int64s, Lane, Mark, lanes_of
from scoring.least import least
from scoring.quantiles import rank
from scoring.score import Gaps, Raw, Stall, StreamScore

__all__ = ["Choice", "Excluded", "Mark", "gaps", "least_tbt", "marks_of", "miss_curve", "score"]


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
    counts = count(lanes, deadlines.ttft_ns, [deadlines.tbt_ns])
    met, missed, suspect, blocked, late_excluded = (int(each[0]) for each in counts)
    raw_missed = missed + suspect + blocked
    late = _stalls(lanes, deadlines) if raw_missed else ()
    stalls = sorted(late, key=lambda stall: (stall.at_ns, stall.choice))
    counted = [stall for stall in stalls if stall.reason is None]
    tokens = sum(lane.tokens for lane in lanes)
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
        least_tbt_ns=least(lanes, deadlines.ttft_ns, target),
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
    counts = count(lanes, ttft_ns, [Deadlines(ttft_ns, int(tbt)).tbt_ns for tbt in tbt_grid_ns])
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
    return least(lanes_of(choices, end_ns if censored else None, excluded, marks), ttft_ns, target)


def marks_of(
    choices: Sequence[Choice],
    deadlines: Deadlines,
    *,
    end_ns: int,
    censored: bool,
    excluded: Sequence[Excluded],
) -> list[Mark]:
    """The excluded intervals as marks, one for each gap that they overlap, late or not.

    Given to ``score``, ``miss_curve`` or ``least_tbt`` instead of the intervals they change nothing in the
    result, whatever the deadlines.
    """
    lanes = lanes_of(choices, end_ns if censored else None, excluded, ())
    taken = {(stall.choice, stall.at_ns): stall for stall in _stalls(lanes, deadlines) if stall.reason}
    marks = []
    for lane in lanes:
        blocked = lane.known if lane.known is not None else np.zeros(len(lane.at), dtype=np.int8)
        lag = lane.lag if lane.lag is not None else np.zeros(len(lane.at), dtype=np.int64)
        for event in np.flatnonzero((blocked > 0) | (lag > 0)):
            start = int(lane.start[event])
            stall = taken.get((lane.choice, start))
            marks.append(
                Mark(
                    start,
                    "client_blocked" if blocked[event] else "suspect",
                    stall.missed if stall else 0,
                    lane.choice if len(lanes) > 1 else None,
                    None if blocked[event] else int(lag[event]),
                )
            )
    return marks


def gaps(choices: Sequence[Choice]) -> tuple[Int64s, int]:
    """All times between tokens as (gaps between events, number of gaps of 0 within events)."""
    return _gaps(lanes_of(choices, None, (), ()))


# ---------------------------------------------------------------- what else is said of a request


def _stalls(lanes: Sequence[Lane], deadlines: Deadlines) -> Iterator[Stall]:
    for lane in lanes:
        if not len(lane.at):
            continue
        grid: Ints = np.array(
            [deadlines.tbt_ns], dtype=dtype_for([lane], deadlines.ttft_ns, deadlines.tbt_ns)
        )
        late_by = lateness(lane, deadlines.ttft_ns, grid)
        codes = reasons(lane, late_by)[0]
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
