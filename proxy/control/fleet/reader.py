"""What all hosts did, read from Redis: windows, cells of a series, what is in flight, records.

The slots of every incarnation are asked for in bounded batches and merged in steps that give way to the
event loop; one question is worked on at a time.  An answer is kept for some seconds, longer where it took
longer, so that pages that renew themselves cost a bounded share of the time.  What stands in Redis and is
not of this layout is passed over and counted.  Where Redis cannot be asked, ``StoreError``: the caller
answers for its own host, and nothing is asked for a moment.

Every moment here is one of Redis's clock, unix nanoseconds; ``offset_ns`` more than the host's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar, cast

import msgspec

from proxy.control.fleet import cover
from proxy.control.fleet.answers import Answers, Away, fine
from proxy.control.fleet.layout import (
    HOST_S,
    LAYOUT,
    RECENT_MOST,
    WORST_MOST,
    GroupValue,
    HostValue,
    Keys,
    Nonsense,
    NowValue,
    SlotValue,
    decode_host,
    decode_now,
    decode_record,
)
from proxy.control.record import Record
from proxy.control.settle import GroupKey
from proxy.control.snapshot import BackendStats
from proxy.control.windows import Windowed
from proxy.control.workers import add_now, merge_backends
from proxy.exporters.catalog import OTHER
from proxy.link import Beat, GroupNow
from scoring import codec
from scoring.slot import Slot

#: Groups of all hosts that are told apart; those beyond are one.
GROUPS_MOST: Final = 256
_S: Final = 1_000_000_000
#: Hashes asked for at once: the first time, at most, and no more than of about so many bytes.
_BATCH_FIRST: Final = 4
_BATCH: Final = 16
_BATCH_BYTES: Final = 4 << 20
#: Strings asked for at once.
_VALUES: Final = 64
#: Who ended a round in the last seconds is asked for what it has in flight: twice the longest
#: ``redis.every`` and some; of those that are gone it has expired.
_WROTE_S: Final = 150
#: Work between two turns of the loop.
_STEP_NS: Final = 3_000_000
_REST: Final = GroupKey(OTHER, OTHER, OTHER)
_T = TypeVar("_T")
_slots: Final = msgspec.msgpack.Decoder(SlotValue)
_records: Final = msgspec.json.Decoder(Record)


class Source(Protocol):
    """Redis, as far as it is read; every method raises ``StoreError`` and nothing else."""

    async def hashes(self, keys: Sequence[str], /) -> list[dict[str, bytes]]: ...
    async def values(self, keys: Sequence[str], /) -> list[bytes | None]: ...
    async def hosts(self, since_s: int, /) -> list[str]: ...
    async def records(self, key: str, count: int, /) -> list[bytes]: ...


class FleetWindow(NamedTuple):
    """All hosts over a window; kept for other callers: not to be changed.

    ``instances``: incarnations that wrote since its start; a host that was restarted is two.
    """

    windowed: Windowed
    instances: int


class FleetNow(NamedTuple):
    """What all hosts have in flight, as of some seconds ago."""

    groups: tuple[GroupNow, ...]
    backends: tuple[BackendStats, ...]
    instances: int


class _Turns:
    """Gives way to the loop once a step has taken its time."""

    def __init__(self, monotonic_ns: Callable[[], int]) -> None:
        self._monotonic_ns = monotonic_ns
        self._begun_ns = monotonic_ns()

    async def give(self) -> None:
        if self._monotonic_ns() - self._begun_ns >= _STEP_NS:
            await asyncio.sleep(0)
            self._begun_ns = self._monotonic_ns()

    def anew(self) -> None:
        """Something was awaited."""
        self._begun_ns = self._monotonic_ns()


class Reader:
    """See the module.  ``trouble``: why this host cannot write; readers need not find out by waiting."""

    def __init__(
        self,
        source: Source,
        keys: Keys,
        *,
        offset_ns: Callable[[], int],
        unix_ns: Callable[[], int],
        monotonic_ns: Callable[[], int],
        trouble: Callable[[], Away | None] = fine,
    ) -> None:
        self._source = source
        self._keys = keys
        self._offset_ns = offset_ns
        self._unix_ns = unix_ns
        self._monotonic_ns = monotonic_ns
        self._answers = Answers(unix_ns, monotonic_ns, trouble)
        self.nonsense = 0  # values that were passed over

    @property
    def away(self) -> Away | None:
        """Why questions are not answered; ``None``: they are."""
        return self._answers.away

    @property
    def behind(self) -> Away | None:
        """Why what this host ended of late is not among the answers, where that is so."""
        return self._answers.trouble()

    @property
    def offset_ns(self) -> int:
        """Redis's clock less the host's."""
        return self._offset_ns()

    def now_ns(self) -> int:
        """Redis's clock."""
        return self._unix_ns() + self._offset_ns()

    # ------------------------------------------------------------ questions

    async def read(self, window_ns: int, now_ns: int) -> FleetWindow:
        """All that ended in the last ``window_ns``; up to a twentieth of it, or 10 s, more at the old end."""
        return await self._answers.kept(("window", window_ns), lambda: self._read(window_ns, now_ns))

    async def series(
        self,
        question: Hashable,
        bounds: Sequence[tuple[int, int]],
        take: Callable[[int, dict[GroupKey, Slot]], None],
        made: Callable[[], _T],
    ) -> _T:
        """Read cell by cell, from the first on, and hand each to ``take(index, groups)``, whose they are.

        ``bounds`` are those of slots; the answer is what ``made`` returns after the last, kept for
        whoever asks the same ``question``.
        """

        async def make() -> _T:
            now_ns = self.now_ns()
            places = [(at, place) for at, cell in enumerate(bounds) for place in cover.stretch(*cell, now_ns)]
            groups: dict[GroupKey, Slot] = {}
            cell = 0
            async for at, group in self._read_slots(places):
                if at != cell:
                    take(cell, groups)
                    cell, groups = at, {}
                self._merge(groups, group)
            take(cell, groups)
            return made()

        return await self._answers.kept(("series", question), make)

    async def now(self) -> FleetNow:
        """What is in flight on the hosts that wrote within the last seconds."""
        return await self._answers.kept("now", self._now, _S)

    async def find(self, name: str) -> Record | None:
        """The record of any host whose id, request_id, response_id or trace_id this is."""
        quoted = msgspec.json.encode(name)
        turns = _Turns(self._monotonic_ns)
        for data in await self._answers.kept("streams", self._streams, _S):
            await turns.give()
            record = self._record(data, quoted)
            if record is not None and name in _names(record):
                return record
        return None

    async def records(self) -> list[Record]:
        """The latest and the worst of all hosts, each once."""
        return await self._answers.kept("records", self._all_records)

    async def hosts(self) -> list[tuple[str, HostValue]]:
        """Every incarnation that wrote within the last day, and what it last told of itself."""
        return await self._answers.kept("hosts", self._hosts)

    # ------------------------------------------------------------ windows

    async def _read(self, window_ns: int, now_ns: int) -> FleetWindow:
        start_ns, places = cover.window(window_ns, now_ns)
        groups: dict[GroupKey, Slot] = {}
        async for _, group in self._read_slots([(0, place) for place in places]):
            self._merge(groups, group)
        total, turns = Slot(), _Turns(self._monotonic_ns)
        for slot in groups.values():
            total.merge(slot)
            await turns.give()
        hosts = await self._source.hosts(start_ns // _S)
        return FleetWindow(Windowed(total, groups, start_ns, now_ns), len(hosts))

    async def _read_slots(
        self, places: Sequence[tuple[int, cover.Place]]
    ) -> AsyncIterator[tuple[int, GroupValue]]:
        """What stands in each place, with the number that it was given; work is done between two of them."""
        turns = _Turns(self._monotonic_ns)
        done, size = 0, _BATCH_FIRST
        while done < len(places):
            batch = places[done : done + size]
            hashes = await self._source.hashes([self._keys.slot(*place) for _, place in batch])
            turns.anew()
            held = sum(len(value) for fields in hashes for value in fields.values())
            done, size = done + len(batch), min(max(_BATCH_BYTES * len(batch) // (held or 1), 1), _BATCH)
            for (number, _), fields in zip(batch, hashes, strict=True):
                for group in (group for value in fields.values() for group in self._groups(value)):
                    yield number, group
                    await turns.give()

    def _groups(self, data: bytes) -> list[GroupValue]:
        try:
            value = _slots.decode(data)
        except msgspec.MsgspecError:
            self.nonsense += 1
            return []
        if value.layout != LAYOUT:
            self.nonsense += 1
            return []
        return value.groups

    def _merge(self, groups: dict[GroupKey, Slot], group: GroupValue) -> None:
        try:
            # Unpacked whole first: what breaks off in the middle must not leave half of it in the sums.
            slot = codec.unpack(group.packed)
        except ValueError:
            self.nonsense += 1
            return
        key = _admit(groups, GroupKey(group.backend, group.model, group.slo))
        held = groups.get(key)
        if held is None:
            groups[key] = slot
        else:
            held.merge(slot)

    # ------------------------------------------------------------ now and records

    async def _now(self) -> FleetNow:
        hosts = await self._source.hosts(self.now_ns() // _S - _WROTE_S)
        found: list[NowValue] = []
        for batch in _batches([self._keys.now(host) for host in hosts], _VALUES):
            for data in await self._source.values(batch):
                if data is not None:
                    try:
                        found.append(decode_now(data))
                    except Nonsense:
                        self.nonsense += 1
        groups: dict[GroupKey, GroupNow] = {}
        for each in (group for value in found for group in value.groups):
            add_now(groups, _admit(groups, GroupKey(each.backend, each.model, each.slo)), each)
        # Only the pools are read of a beat.
        backends = merge_backends(cast(Iterable[Beat], found))
        return FleetNow(tuple(groups[key] for key in sorted(groups)), backends, len(found))

    async def _hosts(self) -> list[tuple[str, HostValue]]:
        names = await self._source.hosts(self.now_ns() // _S - HOST_S)
        found: list[tuple[str, HostValue]] = []
        for batch in _batches(names, _VALUES):
            values = await self._source.values([self._keys.host(name) for name in batch])
            for name, data in zip(batch, values, strict=True):
                if data is not None:
                    try:
                        found.append((name, decode_host(data)))
                    except Nonsense:
                        self.nonsense += 1
        return found

    async def _all_records(self) -> list[Record]:
        found: dict[str, Record] = {}
        streams = await self._streams()
        turns = _Turns(self._monotonic_ns)
        for data in streams:
            record = self._record(data)
            if record is not None:
                found.setdefault(record.id, record)
            await turns.give()
        return list(found.values())

    async def _streams(self) -> list[bytes]:
        recent = await self._source.records(self._keys.recent, RECENT_MOST)
        return [*recent, *await self._source.records(self._keys.worst, WORST_MOST)]

    def _record(self, data: bytes, holds: bytes = b"") -> Record | None:
        try:
            text = decode_record(data)
            return _records.decode(text) if holds in text else None
        except (Nonsense, msgspec.MsgspecError):
            self.nonsense += 1
            return None


def _names(record: Record) -> tuple[str | None, ...]:
    return record.id, record.request_id, record.response_id, record.trace_id


def _admit(groups: dict[GroupKey, Any], key: GroupKey) -> GroupKey:
    return key if key in groups or len(groups) < GROUPS_MOST - 1 else _REST


def _batches(every: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for at in range(0, len(every), size):
        yield every[at : at + size]
