"""An experiment's counts as bytes, for other hosts.  What cannot be read is refused with ``ValueError``."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct

from proxy.control.experiments.book import EPOCHS_MAX, Book, Side
from scoring.codec import pack_histogram, unpack_histogram
from scoring.compare_sums import ALL, BUCKETS, ArmSums

VERSION: Final = 1
#: Bytes of one control process's counts: 64 different weights of sticky traffic take about a quarter of it.
BYTES_MAX: Final = 16 * 1024 * 1024
_HEAD: Final = 4
_TAIL: Final = 3 * len(ALL)
_RAW_MAX: Final = 8 * 2 * BUCKETS * (1 + len(ALL))
_DIGITS_MAX: Final = 60


class PackedSide(Struct, array_like=True, frozen=True):
    """``Side``, histograms packed."""

    ttft: bytes
    normalized: bytes
    prompts: bytes
    hours: list[int]
    unanswered: int
    failed_over: int
    cached: int
    cached_of: int
    lost: int
    in_flight: int
    load: float
    ticks: int


class PackedBook(Struct, array_like=True, frozen=True):
    """One control process's counts.  ``digest``: of the experiment's terms; ``epochs``: by ``pack_sums``."""

    version: int
    digest: str
    buckets: int
    epochs: dict[str, tuple[bytes, bytes]]
    sides: tuple[PackedSide, PackedSide]
    left_out: int
    unbooked: int


_read_book = msgspec.msgpack.Decoder(PackedBook)
_read_sums = msgspec.msgpack.Decoder(tuple[list[int], bytes, list[str]])


def pack_sums(sums: ArmSums) -> bytes:
    """Sums of squares leave 64 bits: they travel as digits."""
    numbers = sums.to_numbers()
    raw = np.array(numbers[_HEAD:-_TAIL], dtype="<i8").tobytes()
    tail = [str(number) for number in numbers[-_TAIL:]]
    return msgspec.msgpack.encode((numbers[:_HEAD], zlib.compress(raw, 1), tail))


def unpack_sums(data: bytes) -> ArmSums:
    """The inverse of ``pack_sums``."""
    try:
        head, deflated, tail = _read_sums.decode(data)
        opened = zlib.decompressobj()
        raw = opened.decompress(deflated, _RAW_MAX + 1)
    except (msgspec.DecodeError, zlib.error) as error:
        raise ValueError(f"not the sums of an arm: {error}") from error
    if len(raw) > _RAW_MAX or len(raw) % 8 or any(len(digits) > _DIGITS_MAX for digits in tail):
        raise ValueError("not the sums of an arm: too much of something")
    numbers = np.frombuffer(raw, dtype="<i8").tolist()
    return ArmSums.from_numbers([*head, *numbers, *(int(digits) for digits in tail)])


def pack_side(side: Side) -> PackedSide:
    """For a ``PackedBook``."""
    return PackedSide(
        pack_histogram(side.ttft),
        pack_histogram(side.normalized),
        pack_histogram(side.prompts),
        side.hours.tolist(),
        side.unanswered,
        side.failed_over,
        side.cached,
        side.cached_of,
        side.lost,
        side.in_flight,
        side.load,
        side.ticks,
    )


def unpack_side(packed: PackedSide) -> Side:
    """The inverse of ``pack_side``."""
    side = Side()
    side.ttft = unpack_histogram(packed.ttft)
    side.normalized = unpack_histogram(packed.normalized)
    side.prompts = unpack_histogram(packed.prompts)
    if len(packed.hours) != 24:
        raise ValueError(f"{len(packed.hours)} hours: a day has 24")
    side.hours = np.array(packed.hours, dtype=np.int64)
    for name in ("unanswered", "failed_over", "cached", "cached_of", "lost", "in_flight", "load", "ticks"):
        setattr(side, name, getattr(packed, name))
    return side


class Writer:
    """Packs one book again and again; weights under which nothing was counted since are not packed anew."""

    def __init__(self, digest: str) -> None:
        self._digest = digest
        self._packed: dict[str, tuple[bytes, bytes]] = {}

    def pack(self, book: Book) -> bytes:
        """The whole book."""
        book.flush()
        for epoch, (control, candidate) in book.epochs.items():
            if epoch in book.changed or epoch not in self._packed:
                self._packed[epoch] = (pack_sums(control), pack_sums(candidate))
        book.changed.clear()
        control_side, candidate_side = book.sides
        sides = (pack_side(control_side), pack_side(candidate_side))
        return msgspec.msgpack.encode(
            PackedBook(
                VERSION,
                self._digest,
                book.buckets,
                self._packed,
                sides,
                book.left_out,
                book.unbooked,
            )
        )


class Reader:
    """Reads what one control process wrote, again and again; what is as it was is not unpacked anew."""

    def __init__(self, digest: str, buckets: int) -> None:
        self._digest = digest
        self.buckets = buckets
        self.bad = False  # what it wrote last could not be read
        self._data: bytes | None = None
        self._known: Mapping[str, tuple[bytes, bytes]] = {}
        self.book: Book | None = None  # None: nothing that may be merged was read
        self.stranger = False  # it counts for other terms

    def read(self, data: bytes) -> bool:
        """Whether it is anything new.  ``ValueError`` where it is none: what was read before stays."""
        if data == self._data:
            return False
        self._data, self.bad = data, True
        if len(data) > BYTES_MAX:
            raise ValueError(f"{len(data)} bytes are more than an experiment's counts")
        try:
            packed = _read_book.decode(data)
        except msgspec.DecodeError as error:
            raise ValueError(f"not the counts of an experiment: {error}") from error
        if packed.version != VERSION or len(packed.epochs) > EPOCHS_MAX:
            raise ValueError("the counts of an experiment as another version writes them")
        self.stranger = packed.digest != self._digest or packed.buckets != self.buckets
        self.book = None if self.stranger else self._opened(packed)
        self._known, self.bad = packed.epochs, False
        return True

    def _opened(self, packed: PackedBook) -> Book:
        before = {} if self.book is None else self.book.epochs
        book = Book(self.buckets)
        for epoch, blobs in packed.epochs.items():
            if blobs == self._known.get(epoch) and epoch in before:
                book.put(epoch, before[epoch])
                continue
            pair = (unpack_sums(blobs[0]), unpack_sums(blobs[1]))
            if any(sums.buckets != self.buckets for sums in pair):
                raise ValueError("sums with other buckets than the experiment's")
            book.put(epoch, pair)
        book.sides = (unpack_side(packed.sides[0]), unpack_side(packed.sides[1]))
        book.left_out, book.unbooked = packed.left_out, packed.unbooked
        return book
