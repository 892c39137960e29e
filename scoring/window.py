"""Windows over the settled book: what each group did in any stretch of the last hour and the last day.

Slots of 10 s for an hour, of 1 min for a day; what is longer is derived from them when they close.  Each
slot is merged into the total of all groups when it closes, so that the window of everything costs what
the window of one group does.  Sums are exact always; where memory runs short the histograms of old slots
become coarser, and each view says by how much.

Pure: time is an argument, in nanoseconds of any clock that does not jump; ``advance`` tells it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Final, NamedTuple

from scoring.marks import OLD_APART
from scoring.shelf import HOUR, MINUTE, RUN, Floors, Ring, Sink
from scoring.sketch import LEVEL_MAX
from scoring.slot import Booking, Slot

TEN_NS: Final = 10_000_000_000
MEBIBYTE: Final = 1 << 20
#: A slot is closed this long after its end; what is later opens it again, at some cost.
_GRACE_NS: Final = 2_000_000_000
#: A request this far ahead of the clock is a mistake, and booked in the newest slot.
_AHEAD_NS: Final = 60_000_000_000
_TENS_KEPT: Final = 360
_HOURS_KEPT: Final = 24
#: What one call of ``advance`` may do of what is due, in units of about 0.2 ms.
_EFFORT: Final = 64
#: And of letting the marks follow, in units of about 0.25 ms.
_FOLLOW: Final = 16
#: Marks may take this part of the budget; beyond it old ones are further apart.
_MARKS_PART: Final = 8
_APART_MOST: Final = 24 * HOUR
#: A group with more slots open than this has old ones among them.
_OPEN_MOST: Final = 8
#: Kept free for the answers being made and for what grows between two looks.  From twice this on one run
#: is lowered at each look, so that it need not be many at once.
_SPARE: Final = 3 * MEBIBYTE // 2
#: What gives way to what: the oldest runs of that shelf (0 tens, 1 minutes, 2 hours) come down to that
#: level.  Minutes older than the last hour first: the hours beside them keep their resolution.
_STAGES: Final = (
    (1, 1),
    (1, 2),
    (1, 3),
    (0, 1),
    (1, 4),
    (0, 2),
    (2, 1),
    (1, 5),
    (0, 3),
    (2, 2),
    *((shelf, level) for level in range(3, LEVEL_MAX + 1) for shelf in (1, 0, 2)),
)

Key = Hashable


class View(NamedTuple):
    """All that ended in [start_ns, end_ns), merged.  The slot is the caller's."""

    slot: Slot
    start_ns: int
    end_ns: int

    @property
    def relative_error(self) -> float:
        """The quantiles of the histograms are at most this far from the true ones."""
        return self.slot.relative_error


class Windows:
    """Slots of up to ``cap_groups`` groups, of ``other`` for all further ones, and of all together.

    Within ``budget_bytes``.  What does not fit however coarse is kept for a shorter time: first the slots
    of 10 s, then those of 1 min, never the sums of an hour.
    """

    def __init__(
        self, cap_groups: int = 64, budget_bytes: int = 64 * MEBIBYTE, *, other: Key = "other"
    ) -> None:
        if cap_groups < 1:
            raise ValueError(f"cap_groups {cap_groups}: give at least 1")
        self._cap = cap_groups
        self._budget = budget_bytes
        self._other = other
        self._now: int | None = None
        self._closed = 0  # every ten before it is closed
        self._begun = 0  # the first ten that anything was booked into
        self._floors = Floors(0, 0, 0)
        self._rings: dict[Key, Ring] = {}
        self._total = Ring(0)
        self._due: dict[Key | None, Ring] = {}  # closed slots to pack; None: the total
        self._following: Iterator[int] | None = None  # the marks that are about to follow
        self._apart = OLD_APART

    @property
    def keys(self) -> tuple[Key, ...]:
        """The groups that have anything, in the order in which they came."""
        return tuple(self._rings)

    @property
    def held_bytes(self) -> int:
        """Memory that all slots take, open ones with what they are going to."""
        return sum(ring.held for ring in self._all())

    def advance(self, now_ns: int) -> None:
        """Time went on: slots close, a bounded part of what is due is done.  To be called about once a
        second, and before a batch of requests; a clock that goes back is ignored."""
        self._turn(now_ns)
        self._work(_EFFORT)
        self._follow(_FOLLOW)

    def turn(self, now_ns: int) -> None:
        """Time went on, and somebody waits: nothing is done but to take note of it."""
        self._turn(now_ns)

    def add(self, key: Key, at_ns: int, booking: Booking) -> None:
        """Book a request that ended at ``at_ns``; ``ValueError``, and nothing booked, for what is none."""
        ten = self._place(at_ns)
        ring = self._ring(key)
        ring.slot(ten).add(booking)
        self._after(ring)

    def fold(self, key: Key, at_ns: int, slot: Slot) -> None:
        """Book a whole slot of requests into that of ``at_ns``."""
        ten = self._place(at_ns)
        ring = self._ring(key)
        ring.slot(ten).merge(slot)
        self._after(ring)

    def view(self, keys: Iterable[Key] | None, from_ns: int, to_ns: int) -> View:
        """All that those groups (``None``: all) ended from ``from_ns`` up to before ``to_ns``.

        The bounds are moved outwards to those of the slots that are kept, and inwards to what there is.
        """
        low, high = self._bounds(from_ns, to_ns)
        slot = Slot()
        if low < high:
            self._read(keys, low, high, 0, lambda _: slot)
        return View(slot, low * TEN_NS, high * TEN_NS)

    def since(self, from_ns: int) -> tuple[int, int]:
        """The bounds of all that ended from ``from_ns`` up to now, as those of a view; in nanoseconds."""
        low, high = self._bounds(from_ns, 1 << 62)
        return low * TEN_NS, high * TEN_NS

    def version(self, key: Key | None) -> int | None:
        """Another one once more of that group (``None``: of all) has closed; ``None``: there is nothing."""
        ring = self._total if key is None else self._rings.get(key)
        return None if ring is None else ring.marks.version

    def closed_since(self, key: Key | None, start_ns: int) -> Slot:
        """All that closed of a group (``None``: of all) and ended from ``start_ns``, a bound of ``since``.

        A few merges, however long ago that is: what ended since the next mark is kept merged.
        """
        slot = Slot()
        ring = self._total if key is None else self._rings.get(key)
        if ring is not None:
            ring.closed_since(start_ns // TEN_NS, lambda mark: not mark % self._grain(mark), slot)
        return slot

    def open_since(self, key: Key | None, start_ns: int, into: Slot) -> None:
        """Merge what is beside it: what has not closed yet."""
        low, high = start_ns // TEN_NS, 1 << 62
        if key is None:
            for ring in self._all():
                ring.read_open(low, high, lambda _: into)
        elif (ring := self._rings.get(key)) is not None:  # type: ignore[assignment]
            ring.read_open(low, high, lambda _: into)

    def series(self, keys: Iterable[Key] | None, from_ns: int, to_ns: int, step_ns: int) -> list[View]:
        """The same cut at the multiples of a step, a multiple of 10 s (``ValueError`` otherwise).

        Where only longer slots are kept, the step is rounded up to a multiple of theirs for all.
        """
        step, odd = divmod(step_ns, TEN_NS)
        if step < 1 or odd:
            raise ValueError(f"step_ns {step_ns}: give a multiple of 10 s")
        low, high = self._bounds(from_ns, to_ns)
        if low >= high:
            return []
        grain = self._grain(low)
        step = -(-step // grain) * grain
        cells = {cell: Slot() for cell in range(low // step, (high - 1) // step + 1)}
        self._read(keys, low, high, step, lambda ten: cells[ten // step])
        return [
            View(slot, max(cell * step, low) * TEN_NS, min((cell + 1) * step, high) * TEN_NS)
            for cell, slot in cells.items()
        ]

    # ------------------------------------------------------------ time

    def _place(self, at_ns: int) -> int:
        """The ten into which to book what ended then."""
        if self._now is None or self._now < at_ns <= self._now + _AHEAD_NS:
            self._turn(at_ns)
        ten = (at_ns if self._now is None else min(at_ns, self._now)) // TEN_NS
        if ten < self._floors.hours:
            ten = self._closed  # the oldest that is open
        self._begun = min(self._begun, ten)
        return ten

    def _turn(self, now_ns: int) -> None:
        if self._now is not None and now_ns <= self._now:
            return
        closed = (now_ns - _GRACE_NS) // TEN_NS
        if self._now is None:
            self._closed = self._begun = closed
            self._total = Ring(closed)
            self._floors = _floors(closed)
        elif closed > self._closed:
            self._closed = closed
            self._floors = Floors(*map(max, self._floors, _floors(closed)))
            # Who has waited comes first; the total last, since it gets what the others close.
            self._due = {**self._due, **self._rings, None: self._total}
        self._now = now_ns

    def _bounds(self, from_ns: int, to_ns: int) -> tuple[int, int]:
        if self._now is None:
            return 0, 0
        low = max(from_ns // TEN_NS, self._begun, self._floors.hours)
        high = min(-(-to_ns // TEN_NS), self._now // TEN_NS + 1)
        if low >= high:
            return low, low
        low -= low % self._grain(low)
        return low, -(-high // self._grain(high - 1)) * self._grain(high - 1)

    def _grain(self, ten: int) -> int:
        """How many tens the shortest slot that is kept there lasts."""
        if ten >= self._floors.tens:
            return 1
        return MINUTE if ten >= self._floors.minutes else HOUR

    # ------------------------------------------------------------ groups

    def _ring(self, key: Key) -> Ring:
        ring = self._rings.get(key)
        if ring is None:
            if len(self._rings) - (self._other in self._rings) >= self._cap:
                key = self._other
            ring = self._rings.setdefault(key, Ring(self._closed, self._total))
        return ring

    def _read(self, keys: Iterable[Key] | None, low: int, high: int, step: int, into: Sink) -> None:
        wanted = None if keys is None else set(keys)
        if wanted is not None and not wanted >= self._rings.keys():
            for key in wanted & self._rings.keys():
                self._rings[key].read(low, high, step, into)
            return
        self._total.read(low, high, step, into)
        for ring in self._rings.values():
            ring.read_open(low, high, into)

    def _all(self) -> Iterator[Ring]:
        yield self._total
        yield from self._rings.values()

    # ------------------------------------------------------------ work and memory

    def _after(self, ring: Ring) -> None:
        for each in (ring, self._total):
            if len(each.open) > _OPEN_MOST:
                each.tend(self._closed, self._floors)
                self._shed()
        if self._due:
            self._work(1)  # so that it is done even if nobody calls ``advance``

    def _work(self, effort: int) -> None:
        looked = 0
        while self._due and effort > 0:
            key = next(iter(self._due))
            ring = self._due.pop(key)
            effort -= ring.tend(self._closed, self._floors)
            looked += 1
            if key is not None and ring.empty:
                del self._rings[key]
        if looked and len(self._due) % 8 == 0:
            self._shed()

    def _follow(self, effort: int) -> None:
        while effort > 0:
            if self._following is None:
                late = [ring for ring in self._all() if ring.marks.due(self._closed)]
                if not late:
                    return
                if min(ring.marks.near_to for ring in late) < self._closed - 2 * MINUTE:
                    effort *= 16  # what is not merged yet takes memory
                self._following = self._follow_all(late)
            took = next(self._following, None)
            if took is None:
                self._following = None
                self._space()
                return
            effort -= took

    def _follow_all(self, rings: Iterable[Ring]) -> Iterator[int]:
        for ring in rings:
            yield from ring.follow(self._closed, self._floors.hours, self._apart)

    def _space(self) -> None:
        """Choose how far old marks are apart: by what they take."""
        held = sum(ring.marks.held for ring in self._all())
        if held > self._budget // _MARKS_PART:
            self._apart = min(2 * self._apart, _APART_MOST)
        elif held < self._budget // _MARKS_PART // 4:
            self._apart = max(self._apart // 2, OLD_APART)
        self._shed()

    def _shed(self) -> None:
        over = self.held_bytes + _SPARE - self._budget
        if -_SPARE < over <= 0:
            self._lower_one()
        while over > 0:
            freed = self._lower_one()
            if not freed:
                if not self._shorten():
                    return
                over = self.held_bytes + _SPARE - self._budget
            over -= freed

    def _lower_one(self) -> int:
        """Lower the oldest run of the first stage that has one; the bytes that it freed, 0: there is none."""
        for stage, (shelf, level) in enumerate(_STAGES):
            newest = (self._closed // HOUR - 1) * (HOUR // MINUTE // RUN) if stage < 3 else self._closed
            found = [
                (run, index, ring)
                for index, ring in enumerate(self._all())
                for run, has in ring.shelves[shelf].levels.items()
                if has < level and run < newest
            ]
            if found:
                run, _, ring = min(found, key=lambda each: each[:2])
                before = ring.shelves[shelf].held
                ring.shelves[shelf].lower(run, level)
                return max(before - ring.shelves[shelf].held, 1)
        return 0

    def _shorten(self) -> bool:
        """Keep the finest slots for a shorter time; whether there was anything to give."""
        floors, latest = self._floors, self._closed // HOUR * HOUR
        tens, minutes = floors.tens + MINUTE, floors.minutes + HOUR
        if tens <= self._closed // MINUTE * MINUTE:
            self._floors = floors._replace(tens=tens)
        elif minutes <= latest:
            self._floors = floors._replace(minutes=minutes)
        else:
            return False
        for ring in self._all():
            ring.tend(self._closed, self._floors)
        return True


def _floors(closed: int) -> Floors:
    hours = (closed // HOUR - _HOURS_KEPT) * HOUR
    return Floors((closed - _TENS_KEPT) // MINUTE * MINUTE, hours, hours)
