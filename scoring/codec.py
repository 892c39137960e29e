"""Versioned compact bytes for histograms, slots and runs of slots.

    histogram, run = version (1 byte), kind (1), n (2), numbers of each (2), m (4), n places (2 each),
                     m bytes of deflate(numbers), deflate(counts); a histogram is a run of one
    numbers        integers below 2**96 as 12 byte planes: the lowest bytes of all, the second of all, ...
                   of a histogram: ``_header``; of a slot: level, 3 of its curve, the sums, 8 headers
    counts         of one after the other: from the first bucket that was hit to the last, as byte planes,
                   as many as the largest count needs

Dense planes, not pairs (gap, count): most buckets between the first and the last are hit, and deflate's
Huffman codes make of a small count what it is worth, 1 to 3 bits; pairs of varints take a fifth more
after deflate and 2.5 times as much without.  The numbers are close to random and would spoil those codes, so
they have codes of their own.  numpy reads planes without a loop.

Equal content has equal bytes.  Unpacking raises ``ValueError`` and nothing else whatever it is given, and
allocates no more than the content that it announces can take.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from scoring.quick import HEADER, HEADERS_AT, SLOT_NUMBERS, WIDEST, Unusual, wanted_of
from scoring.sketch import FIRST, LEVEL_MAX, MOST_BUCKETS, LogHistogram
from scoring.slot import GRID_NS, MissCurve, Slot

VERSION: Final = 1
#: Most slots in a run.
RUN_MAX: Final = 360
_HEAD: Final = struct.Struct("<BcHHI")
_WIDTH: Final = 12  # bytes of a number
_FLAGS: Final = (1, 2, 4)  # sum, minimum, maximum is a float, its number the bits of it

Bytes = npt.NDArray[np.uint8]
Numbers = list[int]


def pack_histogram(hist: LogHistogram) -> bytes:
    """A histogram as bytes; ``ValueError`` for a sum of 2**96 or a bucket's count of 2**48 and more."""
    header, planes = _header(hist)
    return _packed(b"H", [0], [header], planes)


def unpack_histogram(data: bytes) -> LogHistogram:
    """The inverse of ``pack_histogram``; ``ValueError`` where the bytes are none."""
    _, table, deflated = _opened(b"H", data, HEADER)
    rows = _rows(table)
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} histograms: one was expected")
    counts = _Counts(_inflated(deflated, _size(rows[0])))
    hist = LogHistogram()
    _take(hist, rows[0], counts)
    return hist


def pack(slot: Slot) -> bytes:
    """A slot as bytes, a run of one; ``ValueError`` for sums of 2**96 or counts of 2**48 and more."""
    return pack_run({0: slot})


def unpack(data: bytes) -> Slot:
    """The inverse of ``pack``; ``ValueError`` where the bytes are no slot."""
    slots = unpack_run(data)
    if len(slots) != 1:
        raise ValueError(f"{len(slots)} slots: one was expected")
    return slots.popitem()[1]


def pack_run(slots: Mapping[int, Slot]) -> bytes:
    """Slots by their place (0 to 65,535); 60 together take a third less than each alone.

    ``ValueError`` for more than ``RUN_MAX`` and for what ``pack`` refuses.
    """
    if len(slots) > RUN_MAX or not all(0 <= place < 1 << 16 for place in slots):
        raise ValueError(f"{len(slots)} slots: a run holds up to {RUN_MAX}, at places from 0 to 65,535")
    places = sorted(slots)
    rows, parts = [], []
    for place in places:
        numbers, planes = _parts(slots[place])
        rows.append(numbers)
        parts.append(planes)
    return _packed(b"R", places, rows, b"".join(parts))


def unpack_run(data: bytes) -> dict[int, Slot]:
    """The inverse of ``pack_run``; ``ValueError`` where the bytes are no run."""
    slots: dict[int, Slot] = {}
    read_run(data, lambda place: slots.setdefault(place, Slot()))
    return slots


def read_run(data: bytes, into: Callable[[int], Slot | None]) -> None:
    """Merge each slot of a run into the one that ``into`` names for its place; ``None`` passes it over.

    A part of the cost of unpacking them, the smaller the more go into one.  ``ValueError`` where the bytes
    are no run; what came before is merged.
    """
    places, table, deflated = _opened(b"R", data, SLOT_NUMBERS)
    if not table[:, :, 7:].any():  # so that no number is negative as an int64, and no sum of them too large
        with suppress(Unusual):
            numbers = np.ascontiguousarray(table[:, :, :8]).view("<i8").reshape(table.shape[:2])
            size, wanted = wanted_of(numbers, places, into)
            raw = _inflated(deflated, size)
            for each in wanted:
                each.merge(raw)
            return
    rows = _rows(table)
    sizes = [_slot_size(row) for row in rows]
    counts = _Counts(_inflated(deflated, sum(sizes)))
    for place, row, size in zip(places, rows, sizes, strict=True):
        slot = into(place)
        if slot is None:
            counts.at += size
        else:
            _merge(slot, row, counts)


def lowered(data: bytes, level: int) -> bytes:
    """A run whose slots have at least this level."""
    slots = unpack_run(data)
    for slot in slots.values():
        slot.lower(level)
    return pack_run(slots)


# ---------------------------------------------------------------- writing


def _parts(slot: Slot) -> tuple[Numbers, bytes]:
    curve = slot.curve
    numbers = [slot.level, 0, 0, 0]
    planes = []
    if curve is not None:
        width, curve_planes = _planes(curve.counts.reshape(-1))
        numbers = [slot.level, curve.bits + 1, curve.samples, width]
        planes.append(curve_planes)
    for sums in slot.sums():
        numbers.extend(sums.values())
    for hist in slot.hists.values():
        header, hist_planes = _header(hist)
        numbers.extend(header)
        planes.append(hist_planes)
    return numbers, b"".join(planes)


def _header(hist: LogHistogram) -> tuple[Numbers, bytes]:
    """Flags, level, first bucket, buckets, planes, zeros, sum, minimum, maximum; and the planes."""
    first, counts = hist.dense()
    width, planes = _planes(counts)
    flags, values = 0, []
    # From level 1 on minimum and maximum follow from the counts.
    if hist.level or hist.minimum is None or hist.maximum is None:
        known: tuple[float, float] = (0, 0)
    else:
        known = hist.minimum, hist.maximum
    for value, flag in zip((hist.sum, *known), _FLAGS, strict=True):
        if isinstance(value, float):
            flags |= flag
            values.append(int.from_bytes(struct.pack("<d", value), "little"))
        else:
            values.append(value)
    place = first - (FIRST >> hist.level) if len(counts) else 0
    return [flags, hist.level, place, len(counts), width, hist.zeros, *values], planes


def _planes(counts: npt.NDArray[np.int64]) -> tuple[int, bytes]:
    top = int(counts.max()) if len(counts) else 0
    width = -(-top.bit_length() // 8)
    if width > WIDEST:
        raise ValueError(f"a bucket counts {top}: its packed form has {WIDEST} bytes")
    if width <= 1:
        return width, counts.astype(np.uint8).tobytes() if width else b""
    wide = np.ascontiguousarray(counts, dtype="<i8").view(np.uint8).reshape(-1, 8)
    return width, wide[:, :width].T.tobytes()


def _packed(kind: bytes, places: Sequence[int], rows: Sequence[Numbers], counts: bytes) -> bytes:
    try:
        flat = b"".join([number.to_bytes(_WIDTH, "little") for row in rows for number in row])
    except OverflowError as error:
        raise ValueError("a sum is negative or 2**96 and more: it has no packed form") from error
    each = len(rows[0]) if rows else 0
    planes = np.frombuffer(flat, dtype=np.uint8).reshape(len(rows), each, _WIDTH)
    numbers = _deflated(planes.transpose(2, 1, 0).tobytes())
    head = _HEAD.pack(VERSION, kind, len(rows), each, len(numbers))
    return b"".join((head, struct.pack(f"<{len(places)}H", *places), numbers, _deflated(counts)))


def _deflated(raw: bytes) -> bytes:
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15, 9, zlib.Z_FILTERED)
    return deflate.compress(raw) + deflate.flush()


# ---------------------------------------------------------------- reading


class _Counts:
    """The counts of all, and how far they were read."""

    __slots__ = ("at", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 0

    def next(self, length: int, width: int) -> npt.NDArray[np.int64] | Bytes:
        planes = np.frombuffer(self.raw, np.uint8, length * width, self.at)
        self.at += length * width
        if width == 1:
            return planes
        wide: Bytes = np.zeros((length, 8), dtype=np.uint8)
        wide[:, :width] = planes.reshape(width, length).T
        counts: npt.NDArray[np.int64] = wide.view("<i8").reshape(length)
        return counts


def _opened(kind: bytes, data: bytes, each: int) -> tuple[tuple[int, ...], Bytes, memoryview]:
    """The places, the bytes of the numbers, shape (slots, numbers, bytes), and the deflated counts."""
    if len(data) < _HEAD.size or data[0] != VERSION:
        raise ValueError(f"packed version {data[0] if data else None}: only version {VERSION} is known")
    _, found, number, numbers_each, size = _HEAD.unpack_from(data)
    if found != kind:
        raise ValueError(f"packed kind {found!r}: {kind!r} was expected")
    at = _HEAD.size + 2 * number
    if number > RUN_MAX or numbers_each != (each if number else 0) or at + size > len(data):
        raise ValueError("broken bytes: the head does not fit what follows")
    places = struct.unpack_from(f"<{number}H", data, _HEAD.size)
    if any(after <= before for before, after in pairwise(places)):
        raise ValueError("broken bytes: the places do not ascend")
    view = memoryview(data)
    raw = _inflated(view[at : at + size], number * numbers_each * _WIDTH)
    table = np.frombuffer(raw, dtype=np.uint8).reshape(_WIDTH, numbers_each, number).transpose(2, 1, 0)
    return places, table, view[at + size :]


def _rows(table: Bytes) -> list[Numbers]:
    if table[:, :, 8:].any():
        return [[int.from_bytes(one.tobytes(), "little") for one in row] for row in table]
    rows: list[Numbers] = np.ascontiguousarray(table[:, :, :8]).view("<u8").reshape(table.shape[:2]).tolist()
    return rows


def _inflated(data: memoryview, size: int) -> bytes:
    inflate = zlib.decompressobj(-15)
    try:
        raw = inflate.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"broken bytes: {error}") from error
    if len(raw) != size or not inflate.eof or inflate.unused_data:
        raise ValueError("broken bytes: longer or shorter than they say")
    return raw


def _size(header: Numbers) -> int:
    """Bytes of a histogram's counts."""
    length, width = header[3], header[4]
    if length > MOST_BUCKETS or not (length > 0) <= width <= WIDEST * (length > 0):
        raise ValueError("no histogram: too many buckets, or too many bytes for each")
    return length * width


def _slot_size(row: Numbers) -> int:
    size = 0
    if row[1]:
        if row[1] > MissCurve.BITS + 1 or row[3] > WIDEST:
            raise ValueError("no curve: its resolution is out of range")
        size = len(GRID_NS) * MissCurve.columns(row[1] - 1) * row[3]
    for at in range(HEADERS_AT, SLOT_NUMBERS, HEADER):
        size += _size(row[at : at + HEADER])
    return size


def _merge(slot: Slot, row: Numbers, counts: _Counts) -> None:
    level, curve_bits, samples, width = row[:4]
    if curve_bits:
        curve = MissCurve(curve_bits - 1)
        shape = curve.counts.shape
        curve.samples = samples
        curve.counts += counts.next(shape[0] * shape[1], width).reshape(shape)
        if slot.curve is None:
            slot.curve = curve
        else:
            slot.curve.merge(curve)
    at = 4
    for sums in slot.sums():
        for name in sums:
            sums[name] += row[at]
            at += 1
    slot.level = max(slot.level, level)
    for hist in slot.hists.values():
        header = row[at : at + HEADER]
        if header[1] != level:
            raise ValueError("no slot: its histograms are not of one level")
        _take(hist, header, counts)
        at += HEADER


def _take(hist: LogHistogram, header: Numbers, counts: _Counts) -> None:
    flags, level, first, length, width, zeros, total, low, high = header
    if level > LEVEL_MAX or flags > sum(_FLAGS) or zeros >= 1 << 62:
        raise ValueError("no histogram: its level, flags or zeros are out of range")
    if not length and not zeros:
        if flags or first or total or low or high:
            raise ValueError("no histogram: it is empty and has a sum")
        hist.lower(level)
        return
    values: list[float] = [total, low, high]
    for place, flag in enumerate(_FLAGS):
        if flags & flag:
            values[place] = _float(header[6 + place])
    hist.take(
        first + (FIRST >> level),
        counts.next(length, width),
        level=level,
        zeros=zeros,
        total=values[0],
        bounds=(values[1], values[2]),
    )


def _float(bits: int) -> float:
    value: float = struct.unpack("<d", (bits % (1 << 64)).to_bytes(8, "little"))[0]
    if bits >= 1 << 64 or not value >= 0:  # a sum of floats may have become infinite
        raise ValueError("no histogram: a sum, minimum or maximum is no amount")
    return value
