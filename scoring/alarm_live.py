"""What is in flight now (``Stalled``), and slower than it was promised to be (``Drift``).

A backend that hangs settles nothing, so its last minute looks empty: what shows it is that the streams in
flight are overdue.  A backend that became slower and still meets its deadlines shows nowhere but against the
speeds that were frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from scoring.alarm_rule import Evaluation, Hold, share_of


class Flight(NamedTuple):
    """A look at the streams in flight of one group.

    ``at_s``: when, any clock; ``streams``: those with a deadline running; ``overdue``: those of them whose
    next token should have come; ``tokens_per_s``: of all of them, since the look before.
    """

    at_s: float
    streams: int
    overdue: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Stalled:
    """Streams wait for tokens that should have come.

    Fires where over the last ``over_s`` at least ``share`` of the streams in flight were overdue, and at
    least ``streams`` still are; or where no stream had a token for ``silent_s`` while all that time at least
    ``silent_streams`` were overdue (two: one alone may be a request that hangs by itself).
    """

    share: float = 0.5
    over_s: float = 20
    streams: int = 5
    silent_s: float = 30
    silent_streams: int = 2
    calm: float = 0.5
    hold: Hold = field(default=Hold(fire_s=0, clear_s=60))

    def __post_init__(self) -> None:
        share_of("share", self.share)
        share_of("calm", self.calm)
        for name in ("over_s", "silent_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)!r}: give seconds above 0")
        for name in ("streams", "silent_streams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)!r}: give at least 1")

    @property
    def needs_s(self) -> float:
        """How far back the looks must reach."""
        return max(self.over_s, self.silent_s)

    def evaluate(self, looks: Sequence[Flight]) -> Evaluation:
        """Judge the looks, oldest first, at least one in 10 s; the last one is now."""
        if not looks or not looks[-1].streams:
            return Evaluation(False, True, 0.0, self.share, {"streams": 0}, "nothing is in flight")
        now = looks[-1]
        lately = [look for look in looks if look.at_s >= now.at_s - self.over_s]
        share = sum(look.overdue for look in lately) / sum(look.streams for look in lately)
        silent_s = self._silent_s(looks)
        figures = {
            "streams": now.streams,
            "overdue": now.overdue,
            "overdue_share": share,
            "silent_s": silent_s,
            "tokens_per_s": now.tokens_per_s,
        }
        long_enough = now.at_s - lately[0].at_s >= 0.9 * self.over_s
        overdue = long_enough and share >= self.share and now.overdue >= self.streams
        silent = silent_s >= self.silent_s
        reason = f"{now.overdue} of {now.streams} streams in flight are overdue"
        if silent:
            reason += f", and none had a token for {silent_s:.0f} s"
        clears = share < self.calm * self.share and silent_s < self.silent_s / 2
        fires = overdue or silent
        return Evaluation(fires, clears and not fires, share, self.share, figures, reason)

    def _silent_s(self, looks: Sequence[Flight]) -> float:
        """For how long there has been no token, and at least ``silent_streams`` overdue at each look."""
        since_s = looks[-1].at_s
        for look in reversed(looks):
            if look.tokens_per_s > 0 or look.overdue < self.silent_streams:
                break
            since_s = look.at_s
        return looks[-1].at_s - since_s


class Speeds(NamedTuple):
    """How many times slower than frozen; ``None``: not known.

    ``prefill``: of the envelope (``scoring.prefill.drift``); ``tbt_p50``, ``tbt_p99``: of the gaps of the
    last five minutes; ``requests``: that those rest on.
    """

    prefill: float | None
    tbt_p50: float | None
    tbt_p99: float | None
    requests: int


@dataclass(frozen=True, slots=True)
class Drift:
    """Live speeds against frozen ones: any ratio above its limit.  ``requests``: fewer say nothing."""

    prefill: float = 1.5
    tbt_p50: float = 1.6
    tbt_p99: float = 2.5
    requests: int = 20
    calm: float = 0.5
    hold: Hold = field(default=Hold(fire_s=180, clear_s=180))

    def __post_init__(self) -> None:
        share_of("calm", self.calm)
        for name in ("prefill", "tbt_p50", "tbt_p99"):
            if not getattr(self, name) > 1:
                raise ValueError(f"{name} {getattr(self, name)!r}: give a ratio above 1, such as 1.5")

    def evaluate(self, speeds: Speeds | None) -> Evaluation:
        """Judge the ratios; ``None``: nothing is frozen, and a curve that follows the server pages nobody.

        ``value`` is the ratio that is furthest towards its limit, ``threshold`` that limit.
        """
        if speeds is None:
            return Evaluation(False, True, None, self.tbt_p50, {}, "no curve is frozen for this group")
        ratios = {
            name: (ratio, getattr(self, name))
            for name in ("prefill", "tbt_p50", "tbt_p99")
            if (ratio := getattr(speeds, name)) is not None
        }
        figures: dict[str, float] = {name: ratio for name, (ratio, _) in ratios.items()}
        figures["requests"] = speeds.requests
        if not ratios or speeds.requests < self.requests:
            return Evaluation(False, False, None, self.tbt_p50, figures, "too few requests to compare")
        name = max(ratios, key=lambda each: (ratios[each][0] - 1) / (ratios[each][1] - 1))
        value, limit = ratios[name]
        clears = all(ratio < 1 + self.calm * (most - 1) for ratio, most in ratios.values())
        reason = f"{name} is {value:.2f} times the frozen one (limit {limit:g})"
        return Evaluation(value > limit, clears, value, limit, figures, reason)
