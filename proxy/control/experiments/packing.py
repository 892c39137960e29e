"""An experiment's counts as bytes, for other hosts.  What cannot be read is refused with ``ValueError``."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct

from proxy.control.experiments.arms import arms_of
from proxy.control.experiments.book import CANDIDATE, CONTROL, EPOCHS_MAX, NUMBERS, Book, Pair, Side
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
    overdue: int = 0
    hanging: int = 0


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
    numbers = np.frombuffer(raw, dtype="<i8").astype(np.int64, copy=False)
    return ArmSums.from_parts(head, numbers, [int(digits) for digits in tail])


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
        side.overdue,
        side.hanging,
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
    for name in NUMBERS:
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
    """Reads what one control process wrote, again and again, as what is new since; keeps it packed."""

    def __init__(self, digest: str, buckets: int) -> None:
        self._digest = digest
        self._buckets = buckets
        self._data: bytes | None = None
        self._epochs: dict[str, tuple[bytes, bytes]] = {}
        self.sides: tuple[Side, Side] | None = None  # None: nothing that may be merged was read
        self.left_out = 0
        self.unbooked = 0
        self.bad = False  # what it wrote last could not be read
        self.stranger = False  # it counts for other terms, or by other groups of sessions

    def read(self, data: bytes) -> dict[str, Pair] | None:
        """By epoch what is to be added to all that was read before; ``None``: it is as it was.

        ``ValueError`` where it is no such thing: what was read before stays.
        """
        if data == self._data:
            return None
        self._data, self.bad = data, True
        if len(data) > BYTES_MAX:
            raise ValueError(f"{len(data)} bytes are more than an experiment's counts")
        try:
            packed = _read_book.decode(data)
        except msgspec.DecodeError as error:
            raise ValueError(f"not the counts of an experiment: {error}") from error
        if packed.version != VERSION or len(packed.epochs) > EPOCHS_MAX:
            raise ValueError("the counts of an experiment as another version writes them")
        for epoch in packed.epochs:
            arms_of(epoch)  # ``ValueError``
        stranger = packed.digest != self._digest or packed.buckets != self._buckets
        epochs = {} if stranger else packed.epochs
        news = self._news(epochs)
        control, candidate = packed.sides
        sides = None if stranger else (unpack_side(control), unpack_side(candidate))
        # Nothing is taken before all of it was understood.
        self._epochs, self.sides, self.stranger, self.bad = epochs, sides, stranger, False
        self.left_out, self.unbooked = packed.left_out, packed.unbooked
        return news

    def gone(self) -> dict[str, Pair]:
        """What is to be added to take all of it away."""
        news = self._news({})
        self._epochs, self.sides = {}, None
        return news

    def _news(self, epochs: dict[str, tuple[bytes, bytes]]) -> dict[str, Pair]:
        news: dict[str, Pair] = {}
        for epoch in {**self._epochs, **epochs}:
            before, after = self._epochs.get(epoch), epochs.get(epoch)
            if before != after:
                control, candidate = (self._difference(before, after, arm) for arm in (CONTROL, CANDIDATE))
                news[epoch] = (control, candidate)
        return news

    def _difference(
        self, before: tuple[bytes, bytes] | None, after: tuple[bytes, bytes] | None, arm: int
    ) -> ArmSums:
        out = ArmSums(self._buckets) if before is None else negative(unpack_sums(before[arm]))
        if after is not None:
            out.merge(unpack_sums(after[arm]))  # ``ValueError`` for other buckets
        return out


def negative(sums: ArmSums) -> ArmSums:
    """What merged with them gives nothing."""
    out = ArmSums(sums.buckets)
    out.assigned, out.requests, out.y, out.x = -sums.assigned, -sums.requests, -sums.y, -sums.x
    out.recorded = -sums.recorded
    out.squares = [[-number for number in three] for three in sums.squares]
    return out


class Others:
    """What other control processes counted of one experiment, merged: of each only what it wrote is kept."""

    def __init__(self, digest: str, buckets: int) -> None:
        self._digest = digest
        self.buckets = buckets
        self.book = Book(buckets)
        self._readers: dict[str, Reader] = {}

    def read(self, fields: Mapping[str, bytes]) -> list[str]:
        """What each of them wrote last, whole: what could not be read, in words."""
        return [wrong for wrong in self.reading(fields) if wrong is not None]

    def reading(self, fields: Mapping[str, bytes]) -> Iterator[str | None]:
        """The same host by host, so that others get a turn in between: the book always holds whole hosts.

        ``None`` where a host said nothing that cannot be read.
        """
        for who in list(self._readers.keys() - fields.keys()):
            self.book.add_sums(self._readers.pop(who).gone())
            self._describe()
            yield None
        for who, data in fields.items():
            reader = self._readers.setdefault(who, Reader(self._digest, self.buckets))
            try:
                news = reader.read(data)
            except ValueError as error:
                yield str(error)
                continue
            if news is not None:
                self.book.add_sums(news)
                self._describe()
                yield None

    def _describe(self) -> None:
        told = [reader for reader in self._readers.values() if reader.sides is not None]
        self.book.describe([reader.sides for reader in told if reader.sides is not None])
        self.book.unbooked = sum(reader.unbooked for reader in told)
        self.book.left_out = self.book.beyond + sum(reader.left_out for reader in told)

    @property
    def hosts(self) -> int:
        """Of how many something is merged."""
        return sum(reader.sides is not None for reader in self._readers.values())

    @property
    def strangers(self) -> int:
        """How many count by other terms."""
        return sum(reader.stranger for reader in self._readers.values())

    @property
    def unread(self) -> int:
        """Of how many the last word could not be read."""
        return sum(reader.bad for reader in self._readers.values())
