"""Merging packed slots: what ``codec.read_run`` does where nothing is out of the ordinary.

Slots of one run that go into one are added bucket by bucket into one array per histogram, which is merged
once: an addition of numpy for each, where merging them one after another takes several calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from scoring.sketch import FIRST, LEVEL_MAX, MOST_BUCKETS
from scoring.slot import GRID_NS, MissCurve, Slot

Ints = npt.NDArray[np.int64]
Row = list[int]
#: First bucket, buckets, planes, and where the planes begin.
Piece = tuple[int, int, int, int]

#: Numbers of a slot before its sums: level; bits + 1, samples and planes of its curve.
LEAD: Final = 4
#: Numbers of a histogram: flags, level, first bucket, buckets, planes, zeros, sum, minimum, maximum.
HEADER: Final = 9
HEADERS_AT: Final = LEAD + sum(len(sums) for sums in Slot().sums())
SLOT_NUMBERS: Final = HEADERS_AT + HEADER * len(Slot().hists)
#: Bytes of a count: the sum of ``MOST_BUCKETS`` of them fits an int64.
WIDEST: Final = 6
_CELLS: Final = (0, *(len(GRID_NS) * MissCurve.columns(bits) for bits in range(MissCurve.BITS + 1)))
#: For fewer slots than this numpy takes longer than plain Python.
_MANY: Final = 8


class Unusual(Exception):
    """To be read slot by slot, by who can say what is wrong, if anything is."""


class Wanted:
    """The packed slots that go into one, checked and sorted by histogram, not yet merged."""

    __slots__ = ("_curves", "_hists", "_level", "_rows", "slot")

    def __init__(self, slot: Slot, rows: list[Row], starts: list[int]) -> None:
        """``starts``: where the counts of each begin; raises ``Unusual``."""
        self.slot = slot
        self._rows = rows
        self._level = level = rows[0][0]
        if level > LEVEL_MAX:
            raise Unusual
        self._curves = [(row[1], row[2], row[3], at) for row, at in zip(rows, starts, strict=True) if row[1]]
        self._hists: list[tuple[int, int, int, int, list[Piece]]] = [
            (0, 0, -1, 0, []) for _ in range(HEADERS_AT, SLOT_NUMBERS, HEADER)
        ]
        most_buckets = MOST_BUCKETS >> level
        for row, start in zip(rows, starts, strict=True):
            at = start + _CELLS[row[1]] * row[3]
            for index, (zeros, total, low, high, pieces) in enumerate(self._hists):
                begin = HEADERS_AT + index * HEADER
                flags, has, place, length, width, none, summed, least, most = row[begin : begin + HEADER]
                if flags or has != level or (width > 0) != (length > 0):
                    raise Unusual  # flags: of floats, which slots have none of
                if length:
                    if place + length > most_buckets or least > most:
                        raise Unusual
                    pieces.append((place, length, width, at))
                    at += length * width
                elif not none:
                    if place or summed or least or most:
                        raise Unusual
                    continue
                lowest = least if least < low or low < 0 else low
                self._hists[index] = (
                    zeros + none, total + summed, lowest, most if most > high else high, pieces,
                )  # fmt: skip
        if any(row[0] != level for row in rows):
            raise Unusual

    def merge(self, counts: bytes) -> None:
        """Merge them; ``ValueError`` where the outermost counts of a histogram are none."""
        slot, level = self.slot, self._level
        # Widened once: each addition takes half the time then.
        flat: Ints = np.frombuffer(counts, dtype=np.uint8).astype(np.int64)
        slot.level = max(slot.level, level)
        columns = zip(*[row[LEAD:HEADERS_AT] for row in self._rows], strict=True)
        for sums in slot.sums():
            for name, column in zip(sums, columns, strict=False):
                sums[name] += sum(column)
        self._merge_curves(flat)
        base = FIRST >> level
        for hist, (zeros, total, low, high, pieces) in zip(slot.hists.values(), self._hists, strict=True):
            if low < 0:
                hist.lower(level)
                continue
            first, gathered = _gathered(pieces, flat)
            hist.take(first + base, gathered, level=level, zeros=zeros, total=total, bounds=(low, high))

    def _merge_curves(self, flat: Ints) -> None:
        for has, samples, width, start in self._curves:
            curve = self.slot.curve
            if curve is None:
                curve = self.slot.curve = MissCurve(has - 1)
            into = curve if curve.bits == has - 1 else MissCurve(has - 1)
            into.samples += samples
            if width:
                into.counts += _counts(flat, start, into.counts.size, width).reshape(into.counts.shape)
            if into is not curve:
                curve.merge(into)


def wanted_of(
    table: Ints, places: Sequence[int], into: Callable[[int], Slot | None]
) -> tuple[int, list[Wanted]]:
    """The bytes of all counts, and what is to be merged.

    ``table``: the numbers, shape (slots, ``SLOT_NUMBERS``), none negative.  Raises ``Unusual``.
    """
    sizes = _sizes(table)
    found: dict[int, tuple[Slot, list[int], list[int]]] = {}
    at = 0
    for row, place in enumerate(places):
        slot = into(place)
        if slot is not None:
            _, rows, starts = found.setdefault(id(slot), (slot, [], []))
            rows.append(row)
            starts.append(at)
        at += sizes[row]
    return at, [Wanted(slot, table[rows].tolist(), starts) for slot, rows, starts in found.values()]


def _sizes(table: Ints) -> list[int]:
    """Bytes of each slot's counts."""
    if len(table) < _MANY:
        return [_size(row) for row in table.tolist()]
    heads = table[:, HEADERS_AT:].reshape(len(table), -1, HEADER)
    bits, planes = table[:, 1], table[:, 3]
    if bits.max() >= len(_CELLS) or planes.max() > WIDEST or heads[:, :, 3].max() > MOST_BUCKETS:
        raise Unusual
    if heads[:, :, 4].max() > WIDEST:
        raise Unusual
    sizes: list[int] = (
        (heads[:, :, 3] * heads[:, :, 4]).sum(axis=1) + np.array(_CELLS)[bits] * planes
    ).tolist()
    return sizes


def _size(row: Row) -> int:
    if row[1] >= len(_CELLS) or row[3] > WIDEST:
        raise Unusual
    size = _CELLS[row[1]] * row[3]
    for length, width in zip(row[HEADERS_AT + 3 :: HEADER], row[HEADERS_AT + 4 :: HEADER], strict=True):
        if length > MOST_BUCKETS or width > WIDEST:
            raise Unusual
        size += length * width
    return size


def _gathered(pieces: list[Piece], flat: Ints) -> tuple[int, Ints]:
    """The counts of one histogram of all those slots together, and their first bucket."""
    if len(pieces) == 1:
        place, length, width, start = pieces[0]
        return place, _counts(flat, start, length, width)
    if not pieces:
        return 0, flat[:0]
    low = min([piece[0] for piece in pieces])
    counts = np.zeros(max([piece[0] + piece[1] for piece in pieces]) - low, dtype=np.int64)
    for place, length, width, start in pieces:
        counts[place - low : place - low + length] += _counts(flat, start, length, width)
    return low, counts


def _counts(flat: Ints, start: int, length: int, width: int) -> Ints:
    """The counts that begin there, as ``width`` planes."""
    if width == 1:
        return flat[start : start + length]
    planes = flat[start : start + length * width].reshape(width, length)
    counts: Ints = planes[0].copy()
    for plane in range(1, width):
        counts += planes[plane] << (8 * plane)
    return counts
