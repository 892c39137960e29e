"""The proxy's own share in a window: pictures of its cumulative counters, to take off those of now.

Delays, drops and blind spots only ever grow; what a window holds is the difference of two pictures.  One each
10 s is kept for an hour and one a minute for a day, some 0.7 kB each.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import replace
from typing import Final, NamedTuple

from proxy.control.snapshot import Hist, Snapshot

_TEN_NS: Final = 10_000_000_000
_MINUTE_NS: Final = 6 * _TEN_NS
_TENS_KEPT: Final = 366
_MINUTES_KEPT: Final = 1_446


class Picture(NamedTuple):
    """All cumulative counters at one moment; ``counts``: the buckets of forward, lag and blocked in a row."""

    at_ns: int
    counts: array[int]
    sums: tuple[float, ...]
    dropped: dict[str, int]
    unmeasured: dict[str, int]
    export_failures: dict[str, int]
    link_errors: int


class Shares:
    """Pictures in order of time.  Before the first, everything is 0."""

    def __init__(self) -> None:
        self._tens: deque[Picture] = deque(maxlen=_TENS_KEPT)
        self._minutes: deque[Picture] = deque(maxlen=_MINUTES_KEPT)

    def due(self, now_ns: int) -> bool:
        """Whether it is time for a picture."""
        # A clock that was set back is no reason to wait until it is where it was.
        return not self._tens or not 0 <= now_ns - self._tens[-1].at_ns < _TEN_NS

    def note(self, snapshot: Snapshot, link_errors: int) -> None:
        """Keep a picture of this moment."""
        hists = _hists(snapshot)
        picture = Picture(
            snapshot.at_unix_ns,
            array("q", [count for hist in hists for count in hist.counts]),
            tuple(hist.sum for hist in hists),
            _some(snapshot.dropped),
            _some(snapshot.unmeasured),
            _some(snapshot.export_failures),
            link_errors,
        )
        self._tens.append(picture)
        if not self._minutes or picture.at_ns - self._minutes[-1].at_ns >= _MINUTE_NS:
            self._minutes.append(picture)

    def since(self, from_ns: int, snapshot: Snapshot, link_errors: int) -> tuple[Snapshot, int, int]:
        """What came after the latest picture that is no later than ``from_ns``: the snapshot with only that,
        the link errors, and when the picture was taken (the start, where there is none)."""
        picture = self._before(from_ns)
        if picture is None:
            return snapshot, link_errors, snapshot.since_unix_ns
        hists, at = [], 0
        for hist, total in zip(_hists(snapshot), picture.sums, strict=True):
            before = picture.counts[at : at + len(hist.counts)]
            at += len(hist.counts)
            counts = tuple(max(now - then, 0) for now, then in zip(hist.counts, before, strict=True))
            hists.append(Hist(hist.bounds, counts, max(hist.sum - total, 0.0)))
        after = replace(
            snapshot,
            forward=hists[0],
            lag=hists[1],
            blocked=hists[2],
            dropped=_less(snapshot.dropped, picture.dropped),
            unmeasured=_less(snapshot.unmeasured, picture.unmeasured),
            export_failures=_less(snapshot.export_failures, picture.export_failures),
        )
        return after, max(link_errors - picture.link_errors, 0), picture.at_ns

    def _before(self, from_ns: int) -> Picture | None:
        for kept in (self._tens, self._minutes):
            for picture in reversed(kept):
                if picture.at_ns <= from_ns:
                    return picture
        return None


def _hists(snapshot: Snapshot) -> tuple[Hist, Hist, Hist]:
    return snapshot.forward, snapshot.lag, snapshot.blocked


def _some(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def _less(now: dict[str, int], then: dict[str, int]) -> dict[str, int]:
    return {name: max(count - then.get(name, 0), 0) for name, count in now.items()}
