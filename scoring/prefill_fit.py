"""A curve laid under a cloud of first-token times: the estimator behind ``prefill.py``.

What is seen of a request is ``ttft = prefill(prompt) + waiting``, waiting >= 0, some of it zero or nearly
so: the density of TTFT, given the prompt, *rises steeply at* ``prefill`` and falls off above it.  The curve
wanted is therefore neither a mean nor a minimum but an edge, and the edge is what is searched for::

    maximise   sum over requests of  reward((ttft - curve(prompt)) / spread(prompt))
    reward(x) = -penalty        below the curve
                window - x      on it and up to ``window`` spreads above (never under 0)

``spread`` is the scale of the waiting at that prompt length (median excess / ln 2, the mean if it is
exponential), measured over two octaves or so.  Two penalties, two questions:

* ``_MIXED`` (0): a request below costs only its place in the window.  Where half of the requests are above
  the edge this finds the *slow* mode and ignores the fast one; it is used to ask whether there are two.
* ``_PLAIN`` (8): with an exponential waiting a penalty without end is the maximum likelihood (a linear
  programme: as high as possible with no request below).  Its error falls as 1/n, that of a quantile per bin
  as 1/sqrt(n).  8 instead of infinity is what a few clock errors and stray cache hits need: a request may
  stay below when the curve gains more than 8 expected requests of room by it.

All of it is exact line searches (``_line``: the reward along a direction is piecewise linear) over a fixed
list of directions, so the result is a pure function of the data.  Two families of curves share them: monotone
straight pieces between half-octave knots (sums of ramps with coefficients >= 0, hence never falling) and
``c0 + c1*P + c2*P**2`` with coefficients >= 0, started at the least-squares fit to the pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MIN_PER_BIN: Final = 8  # a knot needs that many requests above it
SPREAD_FLOOR: Final = 0.05  # of the curve: a window of half the exactness asked for, or kinks trap the search
FAST: Final = 0.7  # below this share of the slow mode a request counts as fast
SEPARABLE: Final = 3.0  # spreads: only where the prefill is that large can a hit be told from less waiting
FAST_SHARE: Final = 0.05  # of the separable requests, and at least 10: two modes
_FLAT: Final = (
    0.6  # log of the curve by log of the prompt, end to end: from here up it is a prefill that grows
)
_FLATTER: Final = 0.65  # below that it is waiting, if it grows less than so many times what lies beneath it
_LAYERS: Final = 8  # of waiting that are lifted off, one after the other
_MISFIT: Final = 8.0  # reward that the quadratic loses in bins where it is off by more than ...
_MISFIT_MIXED: Final = 20.0  # (where requests below cost nothing, pieces gain more than that by chance alone)
_OFF: Final = 0.08  # ... this share: then the pieces are the curve
_DOWN: Final = 0.3  # no step lowers the curve by more anywhere: from above, the slow mode first
_UP: Final = 0.5
_SNAP: Final = 1e-9  # spreads: rounding, not "below"
_START_QUANTILE: Final = 0.75


@dataclass(frozen=True, slots=True)
class Reward:
    """What a request pays to the curve, by its height above it in spreads."""

    penalty: float
    window: float = 1.3

    def total(self, heights: Floats) -> float:
        """The sum over requests."""
        inside = np.maximum(self.window - heights, 0.0)
        return float(np.where(heights < -_SNAP, -self.penalty, inside).sum())


_MIXED: Final = Reward(0.0)
_PLAIN: Final = Reward(8.0)


@dataclass(frozen=True, slots=True)
class Fit:
    """``knots`` (prompt tokens, ascending) and ``levels`` (ns, never falling): the straight pieces.

    ``quadratic``: (c0 ns, c1 ns per token, c2 ns per token squared), all >= 0, where it fits.
    ``fast_share``: of the requests among which two modes could be told apart; ``None`` if there are none.
    """

    knots: Floats
    levels: Floats
    quadratic: tuple[float, float, float] | None
    bimodal: bool
    fast_share: float | None


def half_octave(prompt_tokens: int) -> int:
    """The bin of a prompt >= 1: ``floor(2 * log2(prompt))``, in integers, hence the same everywhere."""
    octave = prompt_tokens.bit_length() - 1
    return 2 * octave + (prompt_tokens * prompt_tokens >= 1 << (2 * octave + 1))


def fit(prompts: Ints, bins: Ints, ttfts: Ints, layers: int = _LAYERS) -> Fit:
    """The curve under (prompt tokens >= 1, its half-octave bin, TTFT > 0 in ns); at least one request.

    A queue may hold so many requests that the slow "mode" is theirs.  It tells by its shape: hits are a part
    of what their prompts cost, so the slow mode grows with the prompt as the fast one does; a queue keeps
    short prompts waiting as long as long ones.  Then the curve is that of the requests beneath.
    """
    found = _laid(_Cloud(prompts.astype(np.float64), bins, ttfts.astype(np.float64)))
    beneath = ttfts < FAST * np.interp(prompts, found.knots, found.levels)
    count, rise = int(beneath.sum()), _rise(found, found.knots[0], found.knots[-1])
    few = count < max(2 * MIN_PER_BIN, FAST_SHARE * len(prompts))
    if few or not layers or rise >= _FLAT * np.log(found.knots[-1] / found.knots[0]):
        return found
    under = fit(prompts[beneath], bins[beneath], ttfts[beneath], layers - 1)
    ends = under.knots[0], under.knots[-1]
    return under if _rise(found, *ends) < _FLATTER * _rise(under, *ends) else found


def _rise(found: Fit, low: float, high: float) -> float:
    """How much a curve grows from one prompt length to another: the log of the ratio."""
    from_ns, to_ns = np.interp((low, high), found.knots, found.levels).tolist()
    return float(np.log(max(to_ns, 1.0) / max(from_ns, 1.0)))


def _laid(cloud: _Cloud) -> Fit:
    """The curve of one cloud: on the slow mode where there are two."""
    y = cloud.y
    ramps, steps = cloud.ramps()
    directions = _ramp_directions(len(steps))
    for floor, sweeps in ((0.3, 2), (0.1, 2), (SPREAD_FLOOR, 4)):  # a narrow window sees only what it is upon
        spread = cloud.spread(steps @ ramps, floor)
        steps = _climb(ramps, y, spread, steps, directions, _MIXED, sweeps=sweeps)
    level = steps @ ramps
    spread = cloud.spread(level)
    separable = level >= SEPARABLE * spread
    bimodal, share = _two_modes(y[separable], level[separable])
    found = _finished(cloud, (ramps, steps), spread, bimodal, share)
    if bimodal:  # the pieces may have been too high in the very bins that told: all together know better
        level = np.interp(cloud.x, found.knots, found.levels)
        bimodal, share = _two_modes(y[separable], level[separable])
        if not bimodal:
            found = _finished(cloud, (ramps, steps), spread, bimodal, share)
    return found


def _finished(
    cloud: _Cloud, pieces: tuple[Floats, Floats], spread: Floats, bimodal: bool, share: float | None
) -> Fit:
    """The quadratic, or the pieces (``ramps`` and ``steps``, as they are so far) where it does not fit."""
    (ramps, steps), x, y = pieces, cloud.x, cloud.y
    directions = _ramp_directions(len(steps))
    reward = _MIXED if bimodal else _PLAIN
    if not bimodal:
        steps = _climb(ramps, y, spread, steps, directions, reward, sweeps=8)
    quadratic = _quadratic(cloud, spread, np.cumsum(steps), reward)
    c0, c1, c2 = quadratic.tolist()
    smooth = quadratic @ _powers(x)
    misfit = _MISFIT_MIXED if bimodal else _MISFIT
    if cloud.lost(smooth, steps @ ramps, spread, reward) <= misfit:
        return Fit(cloud.knots, quadratic @ _powers(cloud.knots), (c0, c1, c2), bimodal, share)
    # The pieces again, from the quadratic and only where it pays: in bins that are all waiting the
    # first pieces may stay too high, since each of them sees little; the quadratic sees all.
    again = np.diff(quadratic @ _powers(cloud.knots), prepend=0.0).clip(0.0)
    again = _climb(ramps, y, spread, again, directions, reward, sweeps=8, least=3.0)
    margin = _MISFIT_MIXED if bimodal else -5.0
    if cloud.reward(again @ ramps, spread, reward) + margin > cloud.reward(steps @ ramps, spread, reward):
        steps = again
    fits = cloud.lost(smooth, steps @ ramps, spread, reward) <= misfit
    return Fit(cloud.knots, np.cumsum(steps), (c0, c1, c2) if fits else None, bimodal, share)


class _Cloud:
    """The requests, and what is asked of them bin by bin."""

    def __init__(self, x: Floats, bins: Ints, y: Floats) -> None:
        self.x, self.y, self.bins = x, y, bins
        found, counts = np.unique(bins, return_counts=True)
        self.found = found
        inner = [2.0 ** (b / 2) for b, n in zip(found[1:], counts[1:], strict=True) if n >= MIN_PER_BIN]
        self.knots: Floats = np.unique(np.array([x.min(), *inner, x.max()]))

    def ramps(self) -> tuple[Floats, Floats]:
        """The family of the pieces, and one high above the edge to start from."""
        rows = [np.ones_like(self.x)]
        rows += [
            ((self.x - a) / (b - a)).clip(0, 1) for a, b in zip(self.knots, self.knots[1:], strict=False)
        ]
        centres = [float(np.exp(np.log(self.x[self.bins == b]).mean())) for b in self.found]
        high = [float(np.quantile(self.y[self.bins == b], _START_QUANTILE)) for b in self.found]
        levels = np.interp(self.knots, centres, np.maximum.accumulate(high))
        return np.array(rows), np.diff(levels, prepend=0.0)

    def spread(self, level: Floats, floor: float = SPREAD_FLOOR) -> Floats:
        """The scale of the waiting at each request: median excess over ``level`` / ln 2, two bins around."""
        excess = self.y - level
        above = excess >= 0
        out = np.empty_like(excess)
        for b in self.found:
            near = above & (np.abs(self.bins - b) <= 2)
            out[self.bins == b] = np.median(excess[near]) / np.log(2) if near.sum() >= 4 else 0.0
        return np.maximum(out, floor * level)

    def reward(self, level: Floats, spread: Floats, reward: Reward) -> float:
        return reward.total((self.y - level) / spread)

    def lost(self, quadratic: Floats, pieces: Floats, spread: Floats, reward: Reward) -> float:
        """What the quadratic loses against the pieces in the bins where the two really differ."""
        total = 0.0
        for b in self.found:
            own = self.bins == b
            if np.median(np.abs(quadratic[own] / pieces[own] - 1)) > _OFF:
                heights = self.y[own] - pieces[own], self.y[own] - quadratic[own]
                total += reward.total(heights[0] / spread[own]) - reward.total(heights[1] / spread[own])
        return total


def _two_modes(y: Floats, level: Floats) -> tuple[bool, float | None]:
    """Whether many requests took far less than the slow mode, of those where waiting cannot explain it."""
    if not len(y):
        return False, None
    fast = int((y < FAST * level).sum())
    return fast >= max(10, FAST_SHARE * len(y)), fast / len(y)


def _powers(x: Floats) -> Floats:
    return np.stack([np.ones_like(x), x, x * x])


def _quadratic(cloud: _Cloud, spread: Floats, levels: Floats, reward: Reward) -> Floats:
    """The best nonnegative quadratic: least squares to the pieces, then along the lines that keep it on
    two prompt lengths (a grid first, then the requests that the curve lies on, as a simplex would)."""
    powers = _powers(cloud.x)
    best = _least_squares(_powers(cloud.knots).T, levels)
    ends = [float(cloud.knots[0]), float(cloud.knots[-1])]
    pivots = np.geomspace(ends[0], ends[1], 6).tolist() if ends[0] < ends[1] else ends[:1]
    for _ in range(4):
        before = best
        best = _climb(powers, cloud.y, spread, best, _lever_directions(pivots), reward, sweeps=6)
        if np.array_equal(before, best):
            break
        touched = np.abs(cloud.y - best @ powers) < 1e-6 * spread
        pivots = sorted({*ends, *np.unique(cloud.x[touched])[:5].tolist()})
    return best


def _least_squares(powers: Floats, levels: Floats) -> Floats:
    """Nonnegative coefficients with the least relative error: the best of the seven supports."""
    weighted, ones = powers / levels[:, None], np.ones_like(levels)
    best, least = np.array([levels.min(), 0.0, 0.0]), np.inf
    for support in ([0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]):
        found = np.linalg.lstsq(weighted[:, support], ones, rcond=None)[0]
        error = float(((weighted[:, support] @ found - ones) ** 2).sum())
        if (found >= 0).all() and found.any() and error < least - 1e-12:
            best, least = np.zeros(3), error
            best[support] = found
    return best


def _ramp_directions(count: int) -> list[Floats]:
    """Lift all from one knot on; lift one knot alone."""
    unit = np.eye(count)
    return [*unit, *(unit[i] - unit[i + 1] for i in range(count - 1))]


def _lever_directions(pivots: Sequence[float]) -> list[Floats]:
    """Each coefficient alone; two traded at a prompt length; all three, still at two lengths."""
    rows = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    for index, p in enumerate(pivots):
        rows += [[1.0, -1 / p, 0.0], [0.0, 1 / p, -1 / p**2], [1.0, 0.0, -1 / p**2]]
        rows += [[1.0, -(p + q) / (p * q), 1 / (p * q)] for q in pivots[:index]]
    return [np.array(row) for row in rows]


def _climb(
    family: Floats,
    y: Floats,
    spread: Floats,
    start: Floats,
    directions: Sequence[Floats],
    reward: Reward,
    *,
    sweeps: int,
    least: float = 0.0,
) -> Floats:
    """Coefficients >= 0 from which no direction pays more than ``least``: line searches, round and round."""
    lines = []
    for direction in directions:
        along = direction @ family
        rows = np.flatnonzero(
            np.abs(along) > 1e-12 * np.abs(along).max()
        )  # 0 at its pivots, but for rounding
        if len(rows):
            lines.append((direction, along[rows], rows))
    best, level, idle = start, start @ family, 0
    for _ in range(sweeps):
        for direction, along, rows in lines:
            low, high = _reach(best, direction, along / level[rows])
            step, gain = 0.0, 0.0
            if low < high:
                step, gain = _line((y - level)[rows], spread[rows], along, reward, low, high)
            if gain > least:
                best = np.maximum(best + step * direction, 0.0)
                level = best @ family
            idle = 0 if gain > max(least, 0.1) else idle + 1
            if idle >= len(lines):
                return best
    return best


def _reach(at: Floats, direction: Floats, relative: Floats) -> tuple[float, float]:
    """How far a direction may be followed: coefficients stay >= 0, the curve within -30% and +50%."""
    rise, fall = max(float(relative.max()), 0.0), max(-float(relative.min()), 0.0)
    high = min(_UP / rise if rise else np.inf, _DOWN / fall if fall else np.inf)
    low = -min(_DOWN / rise if rise else np.inf, _UP / fall if fall else np.inf)
    for coefficient, slope in zip(at.tolist(), direction.tolist(), strict=True):
        if slope > 0:
            low = max(low, -coefficient / slope)
        elif slope < 0:
            high = min(high, -coefficient / slope)
    return low, high


def _line(
    excess: Floats, spread: Floats, along: Floats, reward: Reward, low: float, high: float
) -> tuple[float, float]:
    """The step t in [low, high] with the largest total reward of ``excess - t * along``, and its gain over 0.

    Along t a request moves from far above the curve through the window to below (or back, where the
    direction lowers the curve).  Sorted by where they do, all totals come from running sums.
    """
    at_low = (excess - low * along) / spread
    below, far = at_low < -_SNAP, at_low >= reward.window
    up = along > 0
    touch = excess / along
    enter = touch - reward.window * spread / along
    touches = (below != up) & (touch <= high)  # rising to it from below, or sinking under it
    enters = (far == up) & (enter <= high)
    pace = along / spread
    drop = np.where(up, -1.0, 1.0)[touches] * (reward.window + reward.penalty)
    steps = np.concatenate((touch[touches], enter[enters]))
    slopes = np.concatenate((-np.abs(pace[touches]), np.abs(pace[enters])))
    jumps = np.concatenate((drop, np.zeros(len(steps) - len(drop))))
    order = np.lexsort((-jumps, steps))  # where several meet, those that rise to the curve come first
    steps, slopes, jumps = steps[order], slopes[order], jumps[order]
    first = reward.total(at_low)
    slope = float(pace[~below & ~far].sum())
    totals = first + slope * (steps - low) + np.cumsum(slopes) * steps - np.cumsum(slopes * steps)
    totals += np.cumsum(jumps) - np.minimum(jumps, 0.0)  # what sinks at a step is still on the curve there
    now = reward.total(excess / spread)
    candidates = [(first - now, low)]
    if low <= 0 <= high:
        candidates.append((0.0, 0.0))
    # Counted again at the step itself: running sums of large numbers choose well but do not add up exactly.
    for step in [high, *([float(steps[totals.argmax()].clip(low, high))] if len(steps) else [])]:
        candidates.append((reward.total((excess - step * along) / spread) - now, step))
    gain, step = max(candidates)
    return step, gain
