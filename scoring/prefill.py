"""The prefill curve of one backend and model, learned from its traffic: the TTFT where nothing had to wait.

``PrefillLearner`` keeps a bounded sample of (prompt tokens, TTFT) over a sliding window; ``curve`` lays an
envelope under it (``prefill_fit.py``).  A ``Curve`` is frozen, can be written to YAML and back, and judges
nothing by itself; ``drift`` says how much slower a live one is than a frozen one.
Times are integer nanoseconds; nothing here reads a clock.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from math import isfinite
from typing import Any, Final

import numpy as np

from scoring.prefill_fit import MIN_PER_BIN, Fit, Ints, fit, half_octave

MAX_PROMPT_TOKENS: Final = 1 << 26  # 67 million: beyond every context there is
MAX_TTFT_NS: Final = 86_400 * 10**9  # a day
_STEPS_PER_OCTAVE: Final = 4  # of a quadratic's points: straight lines between are within 1% of it
_FIT_PER_BIN: Final = 256  # requests of one bin that a fit looks at
_AGREES: Final = 0.01  # the points of a file against its quadratic
_COEFFICIENTS: Final = ("c0_ns", "c1_ns_per_token", "c2_ns_per_token2")

Points = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """TTFT in ns by prompt tokens (by prompt minus cached tokens where ``net_of_cache``); never falls.

    ``points`` (prompt tokens, ttft_ns), ascending, from end to end of ``observed``; ``quadratic`` (c0 ns,
    c1 ns per token, c2 ns per token squared, all >= 0) where one fits, and is then what ``at`` uses.
    ``samples``: requests in the window; ``traffic``: (prompt tokens, requests) per half octave.
    ``bimodal``: a second, much faster mode was seen (most likely cache hits that are not reported) and the
    curve is that of the slow one; ``fast_share``: its share among the requests whose prefill is large
    enough to tell, ``None`` where waiting hides it everywhere.
    """

    points: Points
    quadratic: tuple[float, float, float] | None = None
    observed: tuple[int, int] = (1, 1)
    samples: int = 0
    bimodal: bool = False
    fast_share: float | None = None
    net_of_cache: bool = False
    traffic: Points = ()

    def at(self, prompt_tokens: int) -> int:
        """The TTFT in ns.  Outside ``observed``: flat below; above, straight on with the last slope, which
        is the quadratic's at the end, or the mean one of the last octave where there are only points."""
        low, high = self.observed
        if prompt_tokens <= high:
            return round(self._inside(max(prompt_tokens, low)))
        top, octave = self._inside(high), high - max(low, high // 2)
        if self.quadratic:
            slope = self.quadratic[1] + 2 * self.quadratic[2] * high
        else:
            slope = (top - self._inside(high - octave)) / octave if octave else 0.0
        return round(top + slope * (prompt_tokens - high))

    def extrapolated(self, prompt_tokens: int) -> bool:
        """Whether ``at`` of that length rests on no request that was seen."""
        return not self.observed[0] <= prompt_tokens <= self.observed[1]

    def _inside(self, prompt_tokens: int) -> float:
        if self.quadratic:
            c0, c1, c2 = self.quadratic
            return c0 + c1 * prompt_tokens + c2 * prompt_tokens * prompt_tokens
        above = bisect_right(self.points, prompt_tokens, key=lambda point: point[0])
        if above == len(self.points):
            return self.points[-1][1]
        (x0, y0), (x1, y1) = self.points[above - 1], self.points[above]
        return y0 + (y1 - y0) * (prompt_tokens - x0) / (x1 - x0)

    def to_plain(self) -> dict[str, Any]:
        """The curve as a dict of numbers and lists, for YAML; read back by ``from_plain``."""
        quadratic = dict(zip(_COEFFICIENTS, self.quadratic, strict=True)) if self.quadratic else None
        return {
            "version": 1,
            "observed": list(self.observed),
            "samples": self.samples,
            "bimodal": self.bimodal,
            "fast_share": self.fast_share,
            "net_of_cache": self.net_of_cache,
            "quadratic": quadratic,
            "points": [list(point) for point in self.points],
            "traffic": [list(point) for point in self.traffic],
        }

    @classmethod
    def from_plain(cls, plain: object) -> Curve:
        """The inverse of ``to_plain``; ``ValueError`` that names the place where it is no such curve."""
        read = _Reader(plain)
        points = read.pairs("points", "ttft_ns")
        if not points:
            raise ValueError("points: give at least one [prompt_tokens, ttft_ns]")
        for index, (before, after) in enumerate(pairwise(points), 1):
            if after[1] < before[1]:
                raise ValueError(f"points[{index}]: {after[1]} ns after {before[1]}: a curve never falls")
        ends = points[0][0], points[-1][0]
        observed = read.get("observed", list(ends))
        if not isinstance(observed, list | tuple) or tuple(observed) != ends:
            raise ValueError(f"observed: {observed!r} is not where the points begin and end, {list(ends)}")
        share = read.get("fast_share", None)
        if share is not None and not 0 <= read.number("fast_share", share) <= 1:
            raise ValueError(f"fast_share: {share!r} is no share from 0 to 1")
        curve = cls(
            points,
            read.quadratic(),
            ends,
            read.count("samples", read.get("samples", 0)),
            read.flag("bimodal"),
            share,
            read.flag("net_of_cache"),
            read.pairs("traffic", "requests"),
        )
        for index, (prompt, ttft) in enumerate(points):
            if curve.quadratic and abs(curve._inside(prompt) - ttft) > 1 + _AGREES * ttft:
                raise ValueError(
                    f"points[{index}]: {ttft} ns, but the quadratic gives {curve.at(prompt)}: "
                    "take `quadratic` out to use the points"
                )
        return curve


class _Reader:
    """Typed access to a plain curve; every complaint begins with the place."""

    def __init__(self, plain: object) -> None:
        if not isinstance(plain, Mapping):
            raise ValueError(f"a prefill curve is a mapping, not {type(plain).__name__}")
        self.get = plain.get
        if plain.get("version") != 1 or isinstance(plain["version"], bool):
            raise ValueError(f"version: {plain.get('version')!r} is not known, only 1 is")
        known = ["version", *(field.name for field in fields(Curve))]
        for key in plain:
            if key not in known:
                raise ValueError(f"{key}: not known in a prefill curve; known are {', '.join(known)}")

    @staticmethod
    def count(place: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
            raise ValueError(f"{place}: {value!r} is no whole number from 0 up")
        return value

    @staticmethod
    def number(place: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise ValueError(f"{place}: {value!r} is no number")
        return value

    def flag(self, place: str) -> bool:
        value = self.get(place, False)
        if not isinstance(value, bool):
            raise ValueError(f"{place}: {value!r} is neither true nor false")
        return value

    def pairs(self, place: str, second: str) -> Points:
        value, found = self.get(place, []), list[tuple[int, int]]()
        if not isinstance(value, list | tuple):
            raise ValueError(f"{place}: {value!r} is no list")
        for index, pair in enumerate(value):
            here = f"{place}[{index}]"
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise ValueError(f"{here}: {pair!r} is no pair [prompt_tokens, {second}]")
            prompt, other = self.count(f"{here}[0]", pair[0]), self.count(f"{here}[1]", pair[1])
            if found and prompt <= found[-1][0]:
                raise ValueError(f"{here}: {prompt} tokens after {found[-1][0]}: ascending, each once")
            found.append((prompt, other))
        return tuple(found)

    def quadratic(self) -> tuple[float, float, float] | None:
        value = self.get("quadratic", None)
        if value is None:
            return None
        if not isinstance(value, Mapping) or set(value) != set(_COEFFICIENTS):
            raise ValueError(f"quadratic: {value!r} has not just {', '.join(_COEFFICIENTS)}")
        c0, c1, c2 = (float(self.number(f"quadratic.{name}", value[name])) for name in _COEFFICIENTS)
        for name, coefficient in zip(_COEFFICIENTS, (c0, c1, c2), strict=True):
            if not 0 <= coefficient <= MAX_TTFT_NS:
                raise ValueError(f"quadratic.{name}: {coefficient!r} must lie from 0 to {MAX_TTFT_NS}")
        return c0, c1, c2


def drift(live: Curve, frozen: Curve, weights: Sequence[tuple[int, float]] | None = None) -> float | None:
    """How many times slower ``live`` is than ``frozen`` (1.0: as fast): the weighted median of the ratios.

    ``weights``: (prompt tokens, weight >= 0), the live curve's traffic unless given; lengths that either
    curve has not observed are left out, and ``None`` means that none was left.
    """
    ratios = sorted(
        (live.at(prompt) / frozen.at(prompt), weight)
        for prompt, weight in (live.traffic if weights is None else weights)
        if weight > 0
        and not (live.extrapolated(prompt) or frozen.extrapolated(prompt))
        and frozen.at(prompt) > 0
    )
    half, seen = sum(weight for _, weight in ratios) / 2, 0.0
    for ratio, weight in ratios:
        seen += weight
        if seen >= half:
            return ratio
    return None


class _Cell:
    """One bin in one slot: how many requests there were, and an even sample of them."""

    __slots__ = ("count", "prompts", "ttfts")

    def __init__(self) -> None:
        self.count = 0
        self.prompts, self.ttfts = array("q"), array("q")

    def add(self, prompt: int, ttft_ns: int, cap: int) -> None:
        self.count += 1
        if len(self.prompts) < cap:
            self.prompts.append(prompt)
            self.ttfts.append(ttft_ns)
            return
        # Algorithm R with a hash of the count for a die: the same requests leave the same sample.
        place = (self.count * 0x9E3779B97F4A7C15 & (1 << 64) - 1) * 0xBF58476D1CE4E5B9 >> 32 & 0xFFFFFFFF
        place %= self.count
        if place < cap:
            self.prompts[place], self.ttfts[place] = prompt, ttft_ns


class PrefillLearner:
    """Learns one curve.  ``window_ns`` in ``slots`` parts that are dropped one by one: what is seen is
    between ``window_ns - window_ns / slots`` and ``window_ns`` old.  Each part keeps at most ``per_cell``
    requests of each half octave of prompt length: ``slots * per_cell * 53`` pairs of 16 bytes at the very
    most (0.65 MB as it is set), a tenth of that on ordinary traffic.  ``min_samples``: fewer give no curve.
    """

    def __init__(
        self,
        *,
        window_ns: int = 3_600 * 10**9,
        slots: int = 6,
        per_cell: int = 128,
        min_samples: int = 200,
    ) -> None:
        if slots < 1 or window_ns < slots or per_cell < 1 or min_samples < 1:
            raise ValueError("a learner needs at least 1 slot of 1 ns, 1 request per cell, 1 sample")
        self._slot_ns, self._slots = window_ns // slots, slots
        self._per_cell, self._min_samples = per_cell, min_samples
        self._parts: dict[int, tuple[dict[int, _Cell], list[int]]] = {}  # by slot: cells, [reported hits]
        self._newest: int | None = None

    def add(self, at_ns: int, prompt_tokens: int, cached_tokens: int | None, ttft_ns: int) -> bool:
        """Learn from one request; O(1).  ``cached_tokens``: ``None`` where the server does not say.

        False, and nothing learned, for numbers that cannot be (no prompt, more cached than prompt, TTFT
        under 1 ns or over a day) and for what is older than the window.
        """
        cached = cached_tokens or 0
        if not (0 < prompt_tokens <= MAX_PROMPT_TOKENS and 0 <= cached <= prompt_tokens):
            return False
        slot = at_ns // self._slot_ns
        newest = slot if self._newest is None else max(self._newest, slot)
        if not 0 < ttft_ns <= MAX_TTFT_NS or slot <= newest - self._slots:
            return False
        if newest != self._newest:
            self._newest = newest
            for old in [old for old in self._parts if old <= newest - self._slots]:
                del self._parts[old]
        cells, hits = self._parts.setdefault(slot, ({}, [0]))
        computed = max(1, prompt_tokens - cached)  # the last token is computed whatever is cached
        cells.setdefault(half_octave(computed), _Cell()).add(computed, ttft_ns, self._per_cell)
        hits[0] += cached_tokens is not None
        return True

    def why_not(self, now_ns: int) -> str | None:
        """Why there is no curve yet, for people; ``None`` where there is one."""
        counts = [sum(cell.count for cell in cells) for cells in self._window(now_ns)[0].values()]
        if sum(counts) < self._min_samples:
            return f"{sum(counts)} requests in the window, {self._min_samples} are needed"
        if max(counts) < MIN_PER_BIN:
            return f"no half octave of prompt lengths has {MIN_PER_BIN} requests"
        return None

    def curve(self, now_ns: int) -> Curve | None:
        """The envelope over the window that ends at ``now_ns``; ``None``: see ``why_not``.

        70 ms for 2,000 requests, 120 ms for a full window: call it now and then.
        """
        if self.why_not(now_ns) is not None:
            return None
        found, net_of_cache = self._window(now_ns)
        counts = {index: sum(cell.count for cell in found[index]) for index in sorted(found)}
        full = [index for index, count in counts.items() if count >= MIN_PER_BIN]
        inner = [index for index in counts if full[0] <= index <= full[-1]]  # beyond: too few to speak for it
        prompts, ttfts = np.concatenate([_thinned(found[index]) for index in inner], axis=1)
        bins = np.array([half_octave(prompt) for prompt in prompts.tolist()], dtype=np.int64)
        low, high = int(prompts.min()), int(prompts.max())
        fitted = fit(prompts, bins, ttfts)
        centres = [min(max(round(2 ** (index / 2 + 0.25)), low), high) for index in inner]
        return Curve(
            points=_points(fitted, low, high),
            quadratic=fitted.quadratic,
            observed=(low, high),
            samples=sum(counts.values()),
            bimodal=fitted.bimodal,
            fast_share=fitted.fast_share,
            net_of_cache=net_of_cache,
            traffic=tuple(zip(centres, (counts[index] for index in inner), strict=True)),
        )

    def _window(self, now_ns: int) -> tuple[dict[int, list[_Cell]], bool]:
        """The cells of each bin, oldest first, and whether any request told of cached tokens."""
        last = now_ns // self._slot_ns
        slots = [slot for slot in sorted(self._parts) if last - self._slots < slot <= last]
        found: dict[int, list[_Cell]] = {}
        for slot in slots:
            for index, cell in self._parts[slot][0].items():
                found.setdefault(index, []).append(cell)
        return found, any(self._parts[slot][1][0] for slot in slots)


def _thinned(cells: list[_Cell]) -> Ints:
    """(2, n): prompts and TTFTs of one bin, evenly thinned to what a fit looks at."""
    kept = np.array(
        [np.concatenate([cell.prompts for cell in cells]), np.concatenate([c.ttfts for c in cells])]
    )
    if kept.shape[1] > _FIT_PER_BIN:
        kept = kept[:, np.linspace(0, kept.shape[1] - 1, _FIT_PER_BIN).astype(np.int64)]
    return kept


def _points(fitted: Fit, low: int, high: int) -> Points:
    """The curve as a table: every quarter octave of a quadratic, or the knots of the pieces."""
    if fitted.quadratic is None:
        at = sorted({low, high, *(round(knot) for knot in fitted.knots.tolist())})
        levels = np.interp(at, fitted.knots, fitted.levels).tolist()
        return tuple((x, round(level)) for x, level in zip(at, levels, strict=True))
    c0, c1, c2 = fitted.quadratic
    grid = (round(2 ** (step / _STEPS_PER_OCTAVE)) for step in range(26 * _STEPS_PER_OCTAVE))
    at = sorted({low, high, *(x for x in grid if low < x < high)})
    return tuple((x, round(c0 + c1 * x + c2 * x * x)) for x in at)
