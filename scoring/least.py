"""The least TBT deadline: the smallest ``Dd`` with which a request reaches its target fluidity.

Fluidity never falls as ``Dd`` grows (the README has the proof), so the answer is found by bisection, exact
to the nanosecond.  Two things make it quick.  Events that are not late for one ``Dd`` are not late for any
larger one, and only late events move the peak: whatever was found to fall short prunes the lanes for good.
And it starts near the answer, at the pace that has the last token just in time: a few steps of numpy
around it leave few events, and for those plain integers are quicker.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scoring.counting import Ints, dtype_for, lateness, reasons
from scoring.lanes import Lane

_FEW = 120  # events; below it Python's loop beats numpy's calls
_STEP = 8  # numpy's steps go up or down by an eighth

#: An event that may be late: its arrival, the tokens before it, those of it that can be late (0: the cut),
#: and the lateness up to which it is taken out.
_Row = tuple[int, int, int, int]


def least(lanes: Sequence[Lane], ttft_ns: int, target: float) -> int | None:
    """The smallest ``Dd`` >= 1; ``None`` where none reaches the target."""
    tokens = sum(lane.tokens for lane in lanes)
    if not tokens:
        return None
    lanes = [lane for lane in lanes if len(lane.at)]
    latest = max(int(lane.at[-1]) for lane in lanes)
    # With a deadline longer than the whole trace only a first token can be late, by one deadline.
    fails, reaches = 0, latest + 1
    firsts = [_rows(lane, 1) for lane in lanes]
    if not _reached(firsts, tokens, ttft_ns, reaches, target):
        return None
    guess = max(latest - ttft_ns, latest // 4) // tokens
    while reaches - fails > 1 and sum(len(lane.at) for lane in lanes) > _FEW:
        if not fails < guess < reaches:
            guess = (fails + reaches) // 2
        late, late_tokens, missed = _pruned(lanes, ttft_ns, guess)
        if _enough(tokens - late_tokens, missed, target):
            reaches, guess = guess, guess - guess // _STEP - 1
        else:
            fails, lanes, guess = guess, late, guess + guess // _STEP + 1
    return _bisect([_rows(lane) for lane in lanes], fails, reaches, tokens, ttft_ns, target)


def _bisect(
    tables: Sequence[list[_Row]], fails: int, reaches: int, tokens: int, ttft_ns: int, target: float
) -> int:
    # The answer is most often near the last numpy step: go up from what falls short, then halve.
    step = max(fails // _STEP, 1)
    while reaches - fails > 1:
        middle = min(fails + step, (fails + reaches) // 2)
        if _reached(tables, tokens, ttft_ns, middle, target):
            reaches = middle
        else:
            fails = middle
            step *= 2
    return reaches


def _enough(met: int, missed: int, target: float) -> bool:
    return met + missed > 0 and met / (met + missed) >= target


def _pruned(lanes: Sequence[Lane], ttft_ns: int, tbt_ns: int) -> tuple[list[Lane], int, int]:
    """The lanes with only the events that are late for this ``Dd`` (no other is for a larger one), how many
    tokens are, and the deadlines missed."""
    grid: Ints = np.array([tbt_ns], dtype=dtype_for(lanes, ttft_ns, tbt_ns))
    kept, tokens, missed = [], 0, 0
    for lane in lanes:
        late_by = lateness(lane, ttft_ns, grid)[0]
        places = np.flatnonzero(late_by > 0)
        if not len(places):
            continue
        late_by = late_by[places]
        cut = lane.cut and int(places[-1]) == len(lane.at) - 1
        part = lane._replace(
            at=lane.at[places],
            before=lane.before[places],
            start=lane.start[places],
            cut=cut,
            known=None if lane.known is None else lane.known[places],
            lag=None if lane.lag is None else lane.lag[places],
        )
        kept.append(part)
        tokens += len(places) - cut
        if lane.known is not None or lane.lag is not None:
            late_by = late_by[reasons(part, late_by[None])[0] == 0]
        missed += int((late_by // tbt_ns).sum()) + len(late_by)
    return kept, tokens, missed


def _rows(lane: Lane, most: int | None = None) -> list[_Row]:
    """The first ``most`` events of a lane."""
    ats, befores = lane.at[:most].tolist(), lane.before[:most].tolist()
    free = [0] * len(ats) if lane.lag is None else lane.lag[:most].tolist()
    if lane.known is not None:
        whole = int(lane.at[-1])
        free = [whole if known else ns for known, ns in zip(lane.known[:most].tolist(), free, strict=True)]
    real = [1] * len(ats)
    if lane.cut and len(ats) == len(lane.at):
        real[-1] = 0
    return list(zip(ats, befores, real, free, strict=True))


def _reached(tables: Sequence[list[_Row]], tokens: int, ttft_ns: int, tbt_ns: int, target: float) -> bool:
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
