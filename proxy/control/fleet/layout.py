"""Every key in Redis and what stands in it.  Pure; versioned (README.md): another layout has other keys.

    PREFIX:1:slot:10s:N    hash, field = incarnation, value = ``SlotValue``: what one host settled in the N-th
    PREFIX:1:slot:1m:N     10 s, minute, hour since 1970 by Redis's clock; written whole, so that writing it
    PREFIX:1:slot:1h:N     again changes nothing
    PREFIX:1:now:I         string, ``NowValue``: the streams in flight of incarnation I; gone within seconds
    PREFIX:1:host:I        string, ``HostValue``: who I is and what of it is in the slots
    PREFIX:1:hosts         sorted set of incarnations by the unix seconds of their last write
    PREFIX:1:seen:W        string: the number of the last request of worker incarnation W that is in the slots
    PREFIX:1:shared:NAME   hash of small values that hosts tell each other
    PREFIX:1:lease:NAME    string: the incarnation that does for all hosts what only one is to do
                           (the names of both: control/shared_names.py)
    PREFIX:1:recent        capped streams of entries with one field, a ``RecordValue``: the latest requests,
    PREFIX:1:worst         and the worst

An incarnation is drawn at random at each start of a control process: no two ever write the same field.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from proxy.control.settle import GroupKey
from proxy.link import BackendNow, GroupNow
from scoring import codec
from scoring.slot import Slot

LAYOUT: Final = 1
_SECOND_NS: Final = 1_000_000_000


class Grain(Enum):
    """How long a slot lasts, and how long after its end it is kept; nanoseconds and seconds."""

    TEN = ("10s", 10 * _SECOND_NS, 3_900)
    MINUTE = ("1m", 60 * _SECOND_NS, 90_000)
    HOUR = ("1h", 3_600 * _SECOND_NS, 90_000)

    def __init__(self, word: str, length_ns: int, kept_s: int) -> None:
        self.word = word
        self.length_ns = length_ns
        self.kept_s = kept_s

    def number(self, at_ns: int) -> int:
        """The slot of a moment."""
        return at_ns // self.length_ns

    def expires_s(self, number: int) -> int:
        """Unix seconds at which a slot may go: counted from its end, so writing it late changes nothing."""
        return (number + 1) * self.length_ns // _SECOND_NS + self.kept_s


#: ``now`` lives this long after it was written.
NOW_S: Final = 10
#: ``host`` and ``seen``, after they were written.
HOST_S: Final = 90_000
#: Most entries of each stream of records.
RECENT_MOST: Final = 2_000
WORST_MOST: Final = 500
#: The one field of their entries.
RECORD_FIELD: Final = b"r"


class GroupValue(Struct, frozen=True, array_like=True):
    """One (backend, model, slo) of a slot; ``packed``: ``scoring.codec``."""

    backend: str
    model: str
    slo: str
    packed: bytes


class SlotValue(Struct, frozen=True, array_like=True):
    """What one incarnation settled in one slot."""

    layout: int
    groups: list[GroupValue]


class NowValue(Struct, frozen=True, array_like=True):
    """What one incarnation has in flight."""

    layout: int
    host: str
    at_unix_ns: int  # by Redis's clock
    groups: list[GroupNow]
    backends: list[BackendNow]


class HostValue(Struct, frozen=True, array_like=True):
    """One incarnation.  ``sums``: of all it ever wrote, acknowledged by Redis before this was written."""

    layout: int
    host: str
    version: str
    started_unix_ns: int
    offset_ns: int  # Redis's clock less the host's
    sums: dict[str, int]  # requests, met, missed, output_tokens
    lost: dict[str, int] = {}  # requests that are in no slot, by what became of them (exporters.vocabulary)


class RecordValue(Struct, frozen=True, array_like=True):
    """A record, as the JSON of ``control.record.Record``."""

    layout: int
    record: bytes


class Keys:
    """The keys under one prefix."""

    def __init__(self, prefix: str) -> None:
        self._head = f"{prefix}:{LAYOUT}:"
        self.hosts = self._head + "hosts"
        self.recent = self._head + "recent"
        self.worst = self._head + "worst"

    def slot(self, grain: Grain, number: int) -> str:
        """A hash, one field per incarnation."""
        return f"{self._head}slot:{grain.word}:{number}"

    def now(self, incarnation: str) -> str:
        """What is in flight there."""
        return f"{self._head}now:{incarnation}"

    def host(self, incarnation: str) -> str:
        """Who that is."""
        return f"{self._head}host:{incarnation}"

    def shared(self, name: str) -> str:
        """A hash of small values; whose they are knows what they mean."""
        return f"{self._head}shared:{name}"

    def lease(self, name: str) -> str:
        """Who does for all what only one is to do."""
        return f"{self._head}lease:{name}"

    def seen(self, worker_incarnation: str) -> str:
        """How far a worker's requests are in the slots."""
        return f"{self._head}seen:{worker_incarnation}"


Value = SlotValue | NowValue | HostValue | RecordValue
_encoder: Final = msgspec.msgpack.Encoder()


def encode(value: Value) -> bytes:
    """A value as it stands in Redis."""
    return _encoder.encode(value)


class Nonsense(ValueError):
    """What stands in Redis is not of this layout."""


def decode_slot(data: bytes) -> dict[GroupKey, Slot]:
    """The groups of a ``SlotValue``; ``Nonsense`` for anything else."""
    value = _decode(data, _slots)
    try:
        return {
            GroupKey(each.backend, each.model, each.slo): codec.unpack(each.packed) for each in value.groups
        }
    except ValueError as error:
        raise Nonsense(f"a slot's bytes: {error}") from error


def decode_now(data: bytes) -> NowValue:
    """A ``NowValue``; ``Nonsense`` for anything else."""
    return _decode(data, _nows)


def decode_host(data: bytes) -> HostValue:
    """A ``HostValue``; ``Nonsense`` for anything else."""
    return _decode(data, _hosts)


def decode_record(data: bytes) -> bytes:
    """The JSON of a record; ``Nonsense`` for anything else."""
    return _decode(data, _records).record


_slots: Final = msgspec.msgpack.Decoder(SlotValue)
_nows: Final = msgspec.msgpack.Decoder(NowValue)
_hosts: Final = msgspec.msgpack.Decoder(HostValue)
_records: Final = msgspec.msgpack.Decoder(RecordValue)


_V = TypeVar("_V", SlotValue, NowValue, HostValue, RecordValue)


def _decode(data: bytes, decoder: msgspec.msgpack.Decoder[_V]) -> _V:
    try:
        value = decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise Nonsense(str(error)) from error
    if value.layout != LAYOUT:
        raise Nonsense(f"layout {value.layout}: only {LAYOUT} is known")
    return value
