"""What the rules look at: counts of each group by slots of 10 s, and of each SLO for as long as budgets need.

A slot is wall-clock time / 10 s.  A ``Book`` holds either what this host settled or what all hosts of a fleet
did; the rules cannot tell.  Bounded: 14 KB a group (``GROUPS`` of them at most; one more takes the place of
one that had nothing for an hour, or stands under ``other``) and 18 KB an SLO, so that 64 groups of 8 SLOs
take 1.1 MB, and twice that in a fleet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from proxy.control.settle import GroupKey, Settled
from proxy.exporters.catalog import OTHER
from scoring.alarm_live import Flight
from scoring.outcome import Outcome, SloResult

SLOT_NS: Final = 10_000_000_000
SLOT_S: Final = 10
#: Slots of a group: the last hour, the minutes before it that the baseline leaves out, and some.
KEPT: Final = 384
#: Slots of an SLO, for burn rates: six hours and five minutes.
LONG: Final = 2_190
#: How far back such a window may reach, in seconds.
LONGEST_S: Final = 6 * 3_600
GROUPS: Final = 128
#: Where groups are booked that fit nowhere: hosts may name more together than each of them may.
_OVERFLOW: Final = GroupKey(OTHER, OTHER, OTHER)
#: What ended longer ago than so many slots is booked into the oldest of them: it was late on its way.
LATE: Final = 3

_MILLI: Final = 1_000
_MOST: Final = 2**31 - 1

Ints = npt.NDArray[np.int32]


class Tally(NamedTuple):
    """One group in one slot.  Settled: requests with deadlines that count (``judged``), those of them that
    missed one; all that could fail, and did; good and bad ones, and the bad.  In flight at the slot's end:
    streams with a deadline running, those overdue, and thousandths of tokens per second over the slot."""

    judged: int = 0
    missed: int = 0
    tried: int = 0
    failed: int = 0
    counted: int = 0
    bad: int = 0
    awaited: int = 0
    overdue: int = 0
    tokens: int = 0

    def plus(self, other: Tally) -> Tally:
        """Both together."""
        return Tally(*(min(mine + more, _MOST) for mine, more in zip(self, other, strict=True)))


COLUMNS: Final = len(Tally._fields)
JUDGED, MISSED, TRIED, FAILED, COUNTED, BAD, AWAITED, OVERDUE, TOKENS = range(COLUMNS)
_FAILURES: Final = frozenset(
    {Outcome.OVERLOADED, Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT, Outcome.PROXY_ERROR}
)
_NOT_TRIED: Final = frozenset({Outcome.REJECTED, Outcome.CLIENT_CANCELLED})


def tally_of(
    outcome: Outcome, result: SloResult, fluidity: float | None, missed: int
) -> tuple[int, int, int, int, int, int]:
    """One settled request, as the first six of a ``Tally``.  ``missed``: deadlines that count."""
    judged = fluidity is not None
    return (
        int(judged),
        int(judged and missed > 0),
        int(outcome not in _NOT_TRIED),
        int(outcome in _FAILURES),
        int(result is not SloResult.EXCLUDED),
        int(result is SloResult.BAD),
    )


def settled_tally(settled: Settled) -> tuple[int, int, int, int, int, int]:
    """The same of what was settled here."""
    score = settled.score
    fluidity, missed = (None, 0) if score is None else (score.fluidity, score.missed)
    return tally_of(settled.outcome, settled.result, fluidity, missed)


class Ring:
    """One group's slots."""

    __slots__ = ("begun", "rows")

    def __init__(self, begun: int) -> None:
        self.begun = begun  # its first slot
        self.rows: Ints = np.zeros((KEPT, COLUMNS), dtype=np.int32)


class Book:
    """Slots up to ``head``, which is still open."""

    def __init__(self) -> None:
        self.head: int | None = None
        self.begun = 0  # the first slot that was watched
        self.groups: dict[GroupKey, Ring] = {}
        self.slos: dict[str, Ints] = {}
        self._cleared: int | None = None  # the slot in which room was last made

    # ------------------------------------------------------------ writing

    def advance(self, slot: int) -> None:
        """Time went on; a slot that is not after ``head`` changes nothing."""
        if self.head is None:
            self.head = self.begun = slot
            return
        new = slot - self.head
        if new <= 0:
            return
        tens, long = _places(self.head + 1, new, KEPT), _places(self.head + 1, new, LONG)
        for ring in self.groups.values():
            ring.rows[tens] = 0
        for row in self.slos.values():
            row[long] = 0
        self.head = slot

    def add(self, key: GroupKey, slot: int, ended: Iterable[int]) -> None:
        """Book a settled request (``tally_of``)."""
        slot = self._within(slot)
        six = np.fromiter(ended, dtype=np.int32, count=6)
        self._ring(key, slot).rows[slot % KEPT, :6] += six
        self._slo(key.slo)[slot % LONG] += six[COUNTED : BAD + 1]

    def look(self, key: GroupKey, slot: int, awaited: int, overdue: int, tokens_per_s: float) -> None:
        """What was in flight at the end of a slot."""
        slot = self._within(slot)
        # Any token at all is not none.
        tokens = max(min(round(tokens_per_s * _MILLI), _MOST), int(tokens_per_s > 0))
        self._ring(key, slot).rows[slot % KEPT, AWAITED:] = (awaited, overdue, tokens)

    def replace(self, slot: int, tallies: Mapping[GroupKey, Tally]) -> None:
        """What all hosts together say of a slot, instead of what they said before."""
        if self.head is None or not self.head - KEPT < slot <= self.head:
            return
        for ring in self.groups.values():
            ring.rows[slot % KEPT] = 0
        for row in self.slos.values():
            row[slot % LONG] = 0
        for key, tally in tallies.items():
            ring = self._ring(key, slot)
            ring.begun = min(ring.begun, slot)
            ring.rows[slot % KEPT] += np.array(tally, dtype=np.int32)
            self._slo(key.slo)[slot % LONG] += np.array((tally.counted, tally.bad), dtype=np.int32)

    def spread(self, slot: int, slo: str, counted: int, bad: int) -> None:
        """What is known of an older minute only, into its last slot."""
        if self.head is not None and self.head - LONG < slot <= self.head:
            self._slo(slo)[slot % LONG] = (counted, bad)

    def begin(self, slot: int) -> None:
        """It was watched from this slot on: what others kept was read."""
        self.begun = min(self.begun, slot)

    # ------------------------------------------------------------ reading

    def rows(self, key: GroupKey, to: int, count: int) -> Ints:
        """The ``count`` slots before slot ``to``, oldest first, shape (count, COLUMNS)."""
        ring = self.groups.get(key)
        if ring is None:
            return np.zeros((count, COLUMNS), dtype=np.int32)
        return ring.rows[np.arange(to - count, to) % KEPT]

    def tally(self, key: GroupKey, slot: int) -> Tally:
        """One slot of a group."""
        return Tally(*self.rows(key, slot + 1, 1)[0].tolist())

    def tallies(self, slot: int) -> dict[GroupKey, Tally]:
        """One slot of all groups that have anything in it."""
        if self.head is None or not self.head - KEPT < slot <= self.head:
            return {}
        rows = {key: ring.rows[slot % KEPT] for key, ring in self.groups.items()}
        return {key: Tally(*row.tolist()) for key, row in rows.items() if row.any()}

    def flights(self, key: GroupKey, to: int, count: int) -> list[Flight]:
        """The looks at the ends of the slots before slot ``to``, oldest first."""
        first = max(to - count, self.begun)
        found = self.rows(key, to, max(to - first, 0))[:, AWAITED:].tolist()
        return [
            Flight((first + at) * float(SLOT_S), awaited, overdue, tokens / _MILLI)
            for at, (awaited, overdue, tokens) in enumerate(found)
        ]

    def long(self, slo: str, to: int, count: int) -> tuple[int, int]:
        """Good and bad requests of an SLO in the slots before slot ``to``, and the bad ones."""
        row = self.slos.get(slo)
        if row is None:
            return 0, 0
        counted, bad = row[np.arange(to - count, to) % LONG].sum(axis=0, dtype=np.int64).tolist()
        return counted, bad

    # ------------------------------------------------------------ room

    def _within(self, slot: int) -> int:
        if self.head is None:
            self.advance(slot)
        head = slot if self.head is None else self.head
        return min(max(slot, head - LATE, self.begun), head)

    def _ring(self, key: GroupKey, slot: int) -> Ring:
        ring = self.groups.get(key)
        if ring is None:
            if len(self.groups) >= GROUPS - 1 and not self._made_room():
                key = _OVERFLOW
            ring = self.groups.get(key)
        if ring is None:
            ring = self.groups[key] = Ring(slot)
        return ring

    def _made_room(self) -> bool:
        """Forget groups that have nothing in any slot; once a slot, since it takes a millisecond."""
        if self._cleared == self.head:
            return False
        self._cleared = self.head
        for key in [key for key, ring in self.groups.items() if not ring.rows.any()]:
            del self.groups[key]
        return len(self.groups) < GROUPS - 1

    def _slo(self, slo: str) -> Ints:
        row = self.slos.get(slo)
        if row is None:
            if len(self.slos) >= GROUPS:
                del self.slos[next(iter(self.slos))]
            row = self.slos[slo] = np.zeros((LONG, 2), dtype=np.int32)
        return row


def _places(first: int, count: int, size: int) -> npt.NDArray[np.int64]:
    return np.arange(first, first + min(count, size)) % size
