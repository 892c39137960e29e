"""This host's own slots by Redis's clock, always whole.  Pure; times are unix nanoseconds of Redis's clock.

A request is booked once, into its ten (10 s).  A ten that has closed is folded into its minute, a minute
that has closed into its hour; what comes late goes into the ten and into all that have folded it, so each
level always says the same.  What a minute or an hour is worth now: what was folded into it, with what is
still open below.  A ten is kept for a minute after its end and so long may be written again; later still a
request is booked into the oldest ten that is kept.

``pack`` packs what changed since the last time, one group a step: all slots of a group in the same step, so
that what is written of the three grains at a time says the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from proxy.control.fleet.layout import LAYOUT, Grain, GroupValue, SlotValue, encode
from proxy.control.settle import GroupKey
from scoring import codec
from scoring.slot import Booking, Slot

#: A slot is folded this long after its end, as late as requests usually are.
_GRACE_NS: Final = 2_000_000_000
#: Tens are kept this long after their end, minutes and hours a little longer than their last ten.
_KEPT_NS: Final = 60_000_000_000
#: A request this far ahead of the clock is a mistake, and booked now.
_AHEAD_NS: Final = 60_000_000_000
_UP: Final = {Grain.TEN: Grain.MINUTE, Grain.MINUTE: Grain.HOUR}
_GRAINS: Final = (Grain.TEN, Grain.MINUTE, Grain.HOUR)


class Sums(NamedTuple):
    """Exact sums that tell whether anything was lost or counted twice."""

    requests: int = 0
    met: int = 0
    missed: int = 0
    output_tokens: int = 0

    def plus(self, other: Sums, sign: int = 1) -> Sums:
        """Field by field."""
        return Sums(*(mine + sign * theirs for mine, theirs in zip(self, other, strict=True)))


def sums_of(slot: Slot) -> Sums:
    """Those of a slot."""
    deadlines = slot.deadlines
    return Sums(slot.requests, deadlines["met"], deadlines["missed"], slot.totals["output_tokens"])


class Packed(NamedTuple):
    """One slot as it stands in Redis once it is written."""

    grain: Grain
    number: int
    data: bytes
    sums: Sums
    generation: int = 0  # of the book that it is from: each has a field of its own


class _Cell:
    """One slot of one grain.  A group is ``live``, or packed alone once nothing is expected any more."""

    __slots__ = ("dirty", "folded", "live", "packed")

    def __init__(self, folded: bool) -> None:
        self.live: dict[GroupKey, Slot] = {}
        self.packed: dict[GroupKey, tuple[bytes, Sums]] = {}
        self.dirty: set[GroupKey] = set()
        self.folded = folded  # it is in the slot above

    def slot(self, key: GroupKey) -> Slot:
        """The group's live slot, by whatever it was packed from."""
        found = self.live.get(key)
        if found is None:
            packed = self.packed.get(key) if self.folded else None
            found = self.live[key] = Slot() if packed is None else codec.unpack(packed[0])
        return found


class Book:
    """See the module."""

    def __init__(self, generation: int = 0) -> None:
        self.generation = generation
        self.booked = 0  # requests
        self._cells: dict[Grain, dict[int, _Cell]] = {grain: {} for grain in _GRAINS}
        self._touched: dict[tuple[Grain, int], _Cell] = {}  # packed, and not told yet
        self._now_ns = 0
        self._floor = 0  # the oldest ten that is kept

    def advance(self, now_ns: int) -> None:
        """Time went on: fold what has closed, forget what is packed and old.  Not while packing."""
        if now_ns <= self._now_ns:
            return
        self._now_ns = now_ns
        self._floor = max(Grain.TEN.number(now_ns - _KEPT_NS - Grain.TEN.length_ns), self._floor)
        for grain in _GRAINS:  # tens before minutes before hours
            cells = self._cells[grain]
            for number in sorted(cells):
                if not cells[number].folded and self._closed(grain, number):
                    self._fold(grain, number, cells[number])
        for grain, cells in self._cells.items():
            floor = self._floor * Grain.TEN.length_ns
            for number in [each for each in cells if (each + 1) * grain.length_ns <= floor]:
                if not cells[number].dirty:
                    del cells[number]

    def add(self, key: GroupKey, at_ns: int, booking: Booking, now_ns: int | None = None) -> None:
        """Book a request that ended then; ``ValueError``, and nothing booked, for what is none.

        ``now_ns``: without it the time of the last ``advance``.
        """
        if now_ns is None:
            now_ns = self._now_ns
        if at_ns > now_ns + _AHEAD_NS and now_ns:
            at_ns = now_ns
        at_ns = max(at_ns, self._floor * Grain.TEN.length_ns)
        grain: Grain | None = Grain.TEN
        folded = True
        while grain is not None:
            cell = self._cell(grain, at_ns)
            if folded:  # else what is below has it, and this has what is below
                cell.slot(key).add(booking)
            folded = folded and cell.folded
            cell.dirty.add(key)
            grain = _UP.get(grain)
        self.booked += 1

    def outlived(self, now_ns: int) -> bool:
        """Whether the clock went back so far that this book would put everything into its oldest ten.

        It must not: what it has forgotten it would write anew, without what stood there.  Another book, with
        a field of its own, may.
        """
        return now_ns < self._now_ns - _KEPT_NS

    @property
    def dirty(self) -> int:
        """How many groups have anything to pack."""
        return len(self._changed())

    def pack(self) -> Iterator[list[Packed]]:
        """Pack what changed since the last time, one group a step; the last step says what, the oldest first.

        What is booked between two steps is in none of it, or in all three grains.  Where a caller leaves off,
        the next time tells what was packed by then too.
        """
        for key in self._changed():
            for grain in _GRAINS:
                for number, cell in self._cells[grain].items():
                    if key in cell.dirty:
                        whole = self._whole(grain, number, cell, key)
                        cell.packed[key] = codec.pack(whole), sums_of(whole)
                        cell.dirty.discard(key)
                        self._touched[grain, number] = cell
            yield []
        touched, self._touched = self._touched, {}
        yield [
            _value(grain, number, cell, self.generation)
            for (grain, number), cell in sorted(touched.items(), key=lambda each: _order(each[0]))
        ]

    # ------------------------------------------------------------ cells

    def _closed(self, grain: Grain, number: int) -> bool:
        return (number + 1) * grain.length_ns + _GRACE_NS <= self._now_ns

    def _cell(self, grain: Grain, at_ns: int) -> _Cell:
        cells = self._cells[grain]
        number = grain.number(at_ns)
        found = cells.get(number)
        if found is None:  # one that begins late counts as folded: ``add`` books into those above too
            found = cells[number] = _Cell(self._closed(grain, number))
        return found

    def _fold(self, grain: Grain, number: int, cell: _Cell) -> None:
        """Merge a closed slot into the one above; of what is packed the live slot is not needed any more."""
        if grain in _UP:
            above = self._cell(_UP[grain], number * grain.length_ns)
            for key, slot in cell.live.items():
                above.slot(key).merge(slot)
        cell.folded = True
        cell.live = {key: slot for key, slot in cell.live.items() if key in cell.dirty}

    def _whole(self, grain: Grain, number: int, cell: _Cell, key: GroupKey) -> Slot:
        """What a group's slot is worth; not to be changed."""
        if cell.folded:
            slot = cell.slot(key)
            del cell.live[key]  # it is packed now, which is smaller, and what is later still is rare
            return slot
        parts = [*([cell.live[key]] if key in cell.live else []), *self._open_below(grain, number, key)]
        if len(parts) == 1:
            return parts[0]
        whole = Slot()
        for part in parts:
            whole.merge(part)
        return whole

    def _open_below(self, grain: Grain, number: int, key: GroupKey) -> Iterable[Slot]:
        """Live slots of shorter ones within this one that are not folded yet."""
        start_ns, end_ns = number * grain.length_ns, (number + 1) * grain.length_ns
        for shorter in _GRAINS[: _GRAINS.index(grain)]:
            for each, cell in self._cells[shorter].items():
                if start_ns <= each * shorter.length_ns < end_ns and not cell.folded and key in cell.live:
                    yield cell.live[key]

    def _changed(self) -> list[GroupKey]:
        return sorted(
            {key for cells in self._cells.values() for cell in cells.values() for key in cell.dirty}
        )


def _value(grain: Grain, number: int, cell: _Cell, generation: int) -> Packed:
    groups = [GroupValue(*key, packed) for key, (packed, _) in sorted(cell.packed.items())]
    sums = Sums()
    for _, each in cell.packed.values():
        sums = sums.plus(each)
    return Packed(grain, number, encode(SlotValue(LAYOUT, groups)), sums, generation)


def _order(place: tuple[Grain, int]) -> tuple[int, int]:
    return _GRAINS.index(place[0]), place[1]
