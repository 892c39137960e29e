"""What was promised: a deadline for the first token and one for each token after it.

Symbols of the paper: ``Dp`` is ``ttft_ns``, ``Dd`` is ``tbt_ns``.  Integer nanoseconds throughout.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

#: No deadline is later than this, the last moment of a signed 64-bit clock (some 292 years).
LONGEST_NS: Final = 2**63 - 1
#: Femtoseconds in a nanosecond: what a prompt token costs is known finer than in whole nanoseconds.
FS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Deadlines:
    """The two deadlines of one request, fixed when it starts and never revised.

    ``ttft_ns`` >= 0 counts from t = 0; ``tbt_ns`` >= 1 from token to token.  ``ValueError`` otherwise.
    """

    ttft_ns: int
    tbt_ns: int

    def __post_init__(self) -> None:
        if self.ttft_ns < 0:
            raise ValueError(f"ttft_ns {self.ttft_ns}: a deadline cannot lie before t = 0; give 0 or more")
        if self.tbt_ns < 1:
            raise ValueError(f"tbt_ns {self.tbt_ns}: give at least 1 ns from token to token")


class DeadlineCurve:
    """A first-token deadline by prompt length: points (prompt_tokens, ttft_ns), straight lines between.

    Below the first point and above the last the curve is flat, so one point is a constant.  Integer
    arithmetic, rounded down: the same prompt gets the same deadline everywhere.  ``ValueError`` where
    there is no point, one is negative, or prompt lengths do not ascend.
    """

    __slots__ = ("_prompts", "points")

    points: tuple[tuple[int, int], ...]

    def __init__(self, points: Iterable[tuple[int, int]]) -> None:
        self.points = tuple((prompt, ttft) for prompt, ttft in points)
        self._prompts = [prompt for prompt, _ in self.points]
        if not self.points:
            raise ValueError("a deadline curve needs at least one point (prompt_tokens, ttft_ns)")
        for prompt, ttft in self.points:
            if prompt < 0 or ttft < 0:
                raise ValueError(
                    f"point ({prompt}, {ttft}): neither prompt_tokens nor ttft_ns can be negative"
                )
        for before, after in zip(self._prompts, self._prompts[1:], strict=False):
            if after <= before:
                raise ValueError(
                    f"prompt_tokens {after} after {before}: list the points in ascending order, each once"
                )

    def later(self, slack_ns: int) -> DeadlineCurve:
        """The same curve, every deadline later by ``slack_ns`` (and at most ``LONGEST_NS``)."""
        return DeadlineCurve((prompt, min(ttft + slack_ns, LONGEST_NS)) for prompt, ttft in self.points)

    def at(self, prompt_tokens: int) -> int:
        """The first-token deadline, in nanoseconds, for a prompt of that many tokens."""
        above = bisect_right(self._prompts, prompt_tokens)
        if above == 0:
            return self.points[0][1]
        if above == len(self.points):
            return self.points[-1][1]
        (x0, y0), (x1, y1) = self.points[above - 1], self.points[above]
        return y0 + (y1 - y0) * (prompt_tokens - x0) // (x1 - x0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeadlineCurve) and other.points == self.points

    def __hash__(self) -> int:
        return hash(self.points)

    def __repr__(self) -> str:
        return f"DeadlineCurve({self.points!r})"


class QuadraticDeadline:
    """A first-token deadline ``c0 + c1 * P + c2 * P * P`` for a prompt of ``P`` tokens.

    ``base_ns`` (c0) in nanoseconds, ``per_token_fs`` (c1) and ``per_token_squared_fs`` (c2) in femtoseconds,
    all whole numbers >= 0, so that it never falls as prompts grow (``ValueError`` otherwise).  Integer
    arithmetic: the sum is exact, rounded down to whole nanoseconds once, and at most ``LONGEST_NS``.
    """

    __slots__ = ("base_ns", "per_token_fs", "per_token_squared_fs")

    def __init__(self, base_ns: int, per_token_fs: int, per_token_squared_fs: int) -> None:
        if base_ns < 0 or per_token_fs < 0 or per_token_squared_fs < 0:
            raise ValueError(
                f"({base_ns}, {per_token_fs}, {per_token_squared_fs}): no part of a quadratic can be negative"
            )
        self.base_ns = base_ns
        self.per_token_fs = per_token_fs
        self.per_token_squared_fs = per_token_squared_fs

    def at(self, prompt_tokens: int) -> int:
        """The first-token deadline, in nanoseconds, for a prompt of that many tokens."""
        grown_fs = prompt_tokens * (self.per_token_fs + prompt_tokens * self.per_token_squared_fs)
        ttft_ns = self.base_ns + grown_fs // FS
        return ttft_ns if ttft_ns < LONGEST_NS else LONGEST_NS

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QuadraticDeadline) and self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash(self._parts())

    def __repr__(self) -> str:
        return f"QuadraticDeadline{self._parts()!r}"

    def _parts(self) -> tuple[int, int, int]:
        return self.base_ns, self.per_token_fs, self.per_token_squared_fs
