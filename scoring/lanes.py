"""Traces as arrays: the choices of a request, the intervals that were not the server's doing, and lanes.

A *lane* is one choice over its events, with what each gap before an event overlaps.  A censored end is one
more event, of no tokens, at the moment of the cut.  Times are integer nanoseconds since t = 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scoring.score import Reason

Int64s = npt.NDArray[np.int64]
Int8s = npt.NDArray[np.int8]

#: What a code of ``Lane.known`` stands for.
REASONS: tuple[Reason | None, ...] = (None, "client_blocked", "suspect")
BLOCKED, SUSPECT = 1, 2
#: So long after our loop woke up what waited may still be read; a longer wait is lateness of its own.
WAKING_NS = 10_000_000


@dataclass(frozen=True, slots=True)
class Choice:
    """One sequence of tokens: ``at_ns[i]`` is the arrival of event i, ``tokens[i]`` what it carried.

    Both int64, of equal length; events without tokens are ignored.  ``finished``: its finish reason was
    seen, so that no token was due from it when a censored request was cut.
    """

    at_ns: Int64s
    tokens: Int64s
    finished: bool = False

    @classmethod
    def of(cls, events: Iterable[tuple[int, int]], finished: bool = False) -> Choice:
        """From pairs (at_ns, tokens)."""
        pairs = np.array(list(events), dtype=np.int64).reshape(-1, 2)
        return cls(pairs[:, 0], pairs[:, 1], finished)


class Excluded(NamedTuple):
    """An interval [from_ns, to_ns) in which lateness was not the server's.

    ``client_blocked``: reading was paused; every stall whose gap overlaps it is taken out.  ``suspect``: our
    own event loop was late; a stall is taken out where this explains it, that is, where the gap's overlap
    with such intervals is at least as long as the token was late.  Only intervals count that last until the
    token came, or until at most ``WAKING_NS`` before it, or as close to one that does: a loop that was late
    earlier in the gap, and in time again since, did not hold this token up.
    """

    from_ns: int
    to_ns: int
    reason: Reason


class Mark(NamedTuple):
    """A gap that an excluded interval overlaps, by its start: the trace file's way to say it.

    A stall at the end of that gap is taken out; ``missed`` tells by how many deadlines, under those that
    were applied (0: it was none), and changes nothing.  ``choice`` ``None``: every choice that has a gap
    which starts there.  ``covered_ns`` limits a ``suspect`` mark to stalls of at most that lateness;
    ``None`` does not.
    """

    at_ns: int
    reason: Reason
    missed: int = 0
    choice: int | None = None
    covered_ns: int | None = None

    def to_plain(self) -> list[int | str | None]:
        """As a list for JSON, without what it does not say at its end."""
        plain: list[int | str | None] = list(self)
        while plain[-1] is None:
            plain.pop()
        return plain


class Lane(NamedTuple):
    """One choice over its events; the last may be the cut (``cut``), which carries no token."""

    choice: int
    at: Int64s
    before: Int64s  # tokens of the lane before the event
    start: Int64s  # start of the gap that the event ends
    tokens: int
    cut: bool
    known: Int8s | None  # code of the reason by which a late event is taken out in any case
    lag: Int64s | None  # time of the gap that our own lateness covers


def lanes_of(
    choices: Sequence[Choice], cut_ns: int | None, excluded: Sequence[Excluded], marks: Sequence[Mark]
) -> list[Lane]:
    blocked = _Cover([span for span in excluded if span.reason == "client_blocked"])
    suspect = _Cover([span for span in excluded if span.reason == "suspect"])
    lanes = []
    for index, choice in enumerate(choices):
        at, tokens = choice.at_ns, choice.tokens
        if len(tokens) and int(tokens.min()) <= 0:
            at, tokens = at[tokens > 0], tokens[tokens > 0]
        cut = False
        if cut_ns is not None and not choice.finished:
            cut = True
            at, tokens = np.append(at, cut_ns), np.append(tokens, 0)
        after = np.cumsum(tokens, dtype=np.int64)
        start = np.zeros_like(at)
        start[1:] = at[:-1]
        mine = [mark for mark in marks if mark.choice is None or mark.choice == index]
        known = _known(start, at, blocked, mine)
        lag = _lag(start, at, suspect, mine)
        total = int(after[-1]) if len(after) else 0
        lanes.append(Lane(index, at, after - tokens, start, total, cut, known, lag))
    return lanes


def _known(start: Int64s, at: Int64s, blocked: _Cover, marks: Sequence[Mark]) -> Int8s | None:
    sure = [mark for mark in marks if mark.reason == "client_blocked" or mark.covered_ns is None]
    if not blocked and not sure:
        return None
    known = np.zeros(len(at), dtype=np.int8)
    for mark in sure:
        known[start == mark.at_ns] = REASONS.index(mark.reason)
    if blocked:
        known[blocked.overlap(start, at) > 0] = BLOCKED
    return known


def _lag(start: Int64s, at: Int64s, suspect: _Cover, marks: Sequence[Mark]) -> Int64s | None:
    covers = [mark for mark in marks if mark.reason == "suspect" and mark.covered_ns is not None]
    if not suspect and not covers:
        return None
    held = np.maximum(start, suspect.reach(at)) if suspect else at
    lag = suspect.overlap(held, at) if suspect else np.zeros(len(at), dtype=np.int64)
    for mark in covers:
        lag[start == mark.at_ns] = mark.covered_ns or 0
    return lag


class _Cover:
    """The union of intervals; false where it is empty."""

    def __init__(self, spans: Iterable[Excluded]) -> None:
        merged: list[list[int]] = []
        kept = sorted(span for span in spans if span.to_ns > span.from_ns)
        for low, high, _ in kept:
            if merged and low <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], high)
            else:
                merged.append([low, high])
        self._any = bool(merged)
        if not merged:
            return
        pairs = np.array(merged, dtype=np.int64).reshape(-1, 2)
        self.low, self.high = pairs[:, 0], pairs[:, 1]
        self.until = np.concatenate(([0], np.cumsum(self.high - self.low)))
        by_end = np.array(sorted((high, low) for low, high, _ in kept), dtype=np.int64)
        self._ends = by_end[:, 0]
        # The earliest beginning of those that end then or later.
        self._begins = np.minimum.accumulate(by_end[::-1, 1])[::-1]

    def __bool__(self) -> bool:
        return self._any

    def reach(self, at: Int64s) -> Int64s:
        """Since when, at the earliest, what held ``at`` up may have lasted; ``at`` where nothing did."""
        return self._one_back(self._one_back(at))

    def _one_back(self, at: Int64s) -> Int64s:
        first = np.searchsorted(self._ends, at - WAKING_NS)
        begins: Int64s = np.append(self._begins, at.max(initial=0))[first]
        return np.minimum(begins, at)

    def overlap(self, start: Int64s, at: Int64s) -> Int64s:
        """How much of each gap [start, at) is covered."""
        covered: Int64s = self._before(at) - self._before(start)
        return covered

    def _before(self, at: Int64s) -> Int64s:
        """How much is covered of the time before ``at``."""
        begun = np.searchsorted(self.low, at, side="right")
        ahead = np.where(begun > 0, np.maximum(self.high[begun - 1] - at, 0), 0)
        before: Int64s = self.until[begun] - ahead
        return before
