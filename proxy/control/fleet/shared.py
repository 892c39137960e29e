"""``control.shared.Shared`` in Redis: commands on one key each, the same alone and on a Cluster."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from proxy.control.fleet.redis_store import Command, RedisStore


class RedisShared:
    """Small values and leases.  Every call raises ``StoreError`` (an ``Unshared``) and nothing else."""

    def __init__(self, store: RedisStore, me: str, now_unix_ns: Callable[[], int]) -> None:
        self._store = store
        self._me = me
        self._now_unix_ns = now_unix_ns

    @property
    def me(self) -> str:
        """This incarnation."""
        return self._me

    def now_unix_ns(self) -> int:
        """By Redis's clock, as it was measured last."""
        return self._now_unix_ns()

    async def put(self, name: str, values: dict[str, bytes], ttl_s: float) -> None:
        """Write fields; the hash is gone ``ttl_s`` after the last write."""
        if not values:
            return
        key = self._store.keys.shared(name)
        fields: list[str | bytes | int] = [part for pair in values.items() for part in pair]
        await self._store.strict([("HSET", key, *fields), ("EXPIRE", key, ceil(ttl_s))])

    async def put_new(self, name: str, field: str, value: bytes, ttl_s: float) -> bytes:
        """Write a field if it is not there; what stands there afterwards."""
        key = self._store.keys.shared(name)
        await self._store.strict([("HSETNX", key, field, value), ("EXPIRE", key, ceil(ttl_s))])
        return (await self.fetch(name)).get(field, value)

    async def fetch(self, name: str) -> dict[str, bytes]:
        """All fields; empty where there is no such hash."""
        return (await self.fetch_many([name]))[0]

    async def fetch_many(self, names: list[str]) -> list[dict[str, bytes]]:
        """The same of several, in one turn."""
        return await self._store.hashes([self._store.keys.shared(name) for name in names])

    async def drop(self, name: str, *fields: str) -> None:
        """Take fields away."""
        if fields:
            await self._store.strict([("HDEL", self._store.keys.shared(name), *fields)])

    async def lease(self, name: str, ttl_s: float) -> str:
        """Take or renew it where nobody else holds it: who holds it now.

        Between the look and the renewal it may have run out and be another's: so it is looked at again.
        """
        key = self._store.keys.lease(name)
        seconds = max(ceil(ttl_s), 1)
        take: Command = ("SET", key, self._me, "NX", "EX", seconds)
        (holder,) = (await self._store.many([take, ("GET", key)]))[1:]
        if holder != self._me.encode():
            return holder.decode(errors="replace") if isinstance(holder, bytes) else ""
        (holder,) = (await self._store.many([("EXPIRE", key, seconds), ("GET", key)]))[1:]
        return holder.decode(errors="replace") if isinstance(holder, bytes) else ""
