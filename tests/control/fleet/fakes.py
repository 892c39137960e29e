"""A Redis in memory for what reads the fleet, and hosts that write into it as the layout says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from proxy.control.fleet.answers import Away
from proxy.control.fleet.layout import (
    LAYOUT,
    Grain,
    GroupValue,
    Keys,
    NowValue,
    RecordValue,
    SlotValue,
    encode,
)
from proxy.control.fleet.reader import Reader
from proxy.control.fleet.store import StoreError
from proxy.control.record import Record
from proxy.control.settle import GroupKey
from proxy.control.windows import Booked
from proxy.link import BackendNow, GroupNow
from scoring import codec
from scoring.slot import Slot
from tests.control.facts import S

T = TypeVar("T")
KEYS = Keys("legato")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


class Memory:
    """``reader.Source``; ``fails`` is the reason of the next failures, ``asked`` counts the calls."""

    def __init__(self) -> None:
        self.hashed: dict[str, dict[str, bytes]] = {}
        self.stored: dict[str, bytes] = {}
        self.wrote: dict[str, int] = {}
        self.streams: dict[str, list[bytes]] = {KEYS.recent: [], KEYS.worst: []}
        self.fails: str | None = None
        self.asked = 0
        self.most = 0  # keys at once

    def _ask(self, count: int) -> None:
        self.asked += 1
        self.most = max(self.most, count)
        if self.fails is not None:
            raise StoreError(self.fails)

    async def hashes(self, keys: Sequence[str]) -> list[dict[str, bytes]]:
        self._ask(len(keys))
        return [self.hashed.get(key, {}) for key in keys]

    async def values(self, keys: Sequence[str]) -> list[bytes | None]:
        self._ask(len(keys))
        return [self.stored.get(key) for key in keys]

    async def hosts(self, since_s: int) -> list[str]:
        self._ask(1)
        return [host for host, at_s in self.wrote.items() if at_s >= since_s]

    async def records(self, key: str, count: int) -> list[bytes]:
        self._ask(1)
        return self.streams[key][:count]

    # ------------------------------------------------------------ hosts

    def write(self, host: str, booked: Iterable[Booked]) -> None:
        """Everything that a host ever booked, into slots of every length, as it would be in Redis."""
        slots: dict[str, dict[GroupKey, Slot]] = {}
        for each in booked:
            self.wrote[host] = max(self.wrote.get(host, 0), each.at_ns // S)
            for grain in Grain:
                groups = slots.setdefault(KEYS.slot(grain, grain.number(each.at_ns)), {})
                groups.setdefault(each.key, Slot()).add(each.booking)
        for key, groups in slots.items():
            values = [GroupValue(*name, codec.pack(slot)) for name, slot in groups.items()]
            self.hashed.setdefault(key, {})[host] = encode(SlotValue(LAYOUT, values))

    def picture(self, host: str, at_ns: int, groups: list[GroupNow], backends: list[BackendNow]) -> None:
        """What a host has in flight."""
        self.wrote[host] = at_ns // S
        self.stored[KEYS.now(host)] = encode(NowValue(LAYOUT, host, at_ns, groups, backends))

    def record(self, record: Record) -> None:
        """A record into the stream of the latest."""
        self.streams[KEYS.recent].insert(0, encode(RecordValue(LAYOUT, msgspec.json.encode(record))))


class Ticks:
    """A clock that a test sets; ``step_ns`` goes by at each look."""

    def __init__(self, now_ns: int = 0, step_ns: int = 0) -> None:
        self.now_ns = now_ns
        self.step_ns = step_ns

    def __call__(self) -> int:
        self.now_ns += self.step_ns
        return self.now_ns


def reader(
    memory: Memory,
    unix: Ticks,
    monotonic: Ticks | None = None,
    offset_ns: int = 0,
    trouble: Callable[[], Away | None] = lambda: None,
) -> Reader:
    return Reader(
        memory,
        KEYS,
        offset_ns=lambda: offset_ns,
        unix_ns=unix,
        monotonic_ns=monotonic or Ticks(),
        trouble=trouble,
    )
