"""``Shared`` in memory, for several hosts in one test; time is given, failures are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from proxy.control.shared import Unshared


@dataclass
class Place:
    """What all hosts see.  ``away``: every call fails."""

    now_ns: Callable[[], int]
    hashes: dict[str, dict[str, bytes]] = field(default_factory=dict)
    until_ns: dict[str, int] = field(default_factory=dict)
    leases: dict[str, tuple[str, int]] = field(default_factory=dict)
    away: bool = False

    def at(self, name: str) -> dict[str, bytes]:
        if self.away:
            raise Unshared("timeout")
        if self.until_ns.get(name, 0) <= self.now_ns():
            self.hashes.pop(name, None)
        return self.hashes.setdefault(name, {})

    def keep(self, name: str, ttl_s: float) -> None:
        self.until_ns[name] = self.now_ns() + round(ttl_s * 1e9)


class MemoryShared:
    """One host's view of a ``Place``."""

    def __init__(self, place: Place, me: str) -> None:
        self._place = place
        self._me = me

    @property
    def me(self) -> str:
        return self._me

    def now_unix_ns(self) -> int:
        return self._place.now_ns()

    async def put(self, name: str, values: dict[str, bytes], ttl_s: float) -> None:
        self._place.at(name).update(values)
        self._place.keep(name, ttl_s)

    async def put_new(self, name: str, field: str, value: bytes, ttl_s: float) -> bytes:
        held = self._place.at(name).setdefault(field, value)
        self._place.keep(name, ttl_s)
        return held

    async def fetch(self, name: str) -> dict[str, bytes]:
        return dict(self._place.at(name))

    async def fetch_many(self, names: list[str]) -> list[dict[str, bytes]]:
        return [dict(self._place.at(name)) for name in names]

    async def drop(self, name: str, *fields: str) -> None:
        for each in fields:
            self._place.at(name).pop(each, None)

    async def lease(self, name: str, ttl_s: float) -> str:
        self._place.at(name)
        holder, until_ns = self._place.leases.get(name, ("", 0))
        if holder != self._me and until_ns > self._place.now_ns():
            return holder
        self._place.leases[name] = (self._me, self._place.now_ns() + round(ttl_s * 1e9))
        return self._me
