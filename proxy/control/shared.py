"""Small values that the hosts of a fleet tell each other: what experiments and alerts need of a store.

``control/fleet/shared.py`` keeps them in Redis.  Who has nobody to share with has no ``Shared`` at all.
"""

from __future__ import annotations

from typing import Protocol


class Unshared(Exception):
    """The store did not do what it was asked; ``reason`` is one word, never data."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Shared(Protocol):
    """Hashes of small values by name, and leases.  Every call may raise ``Unshared``, within seconds.

    ``me``: this control process, drawn anew at each start; a field that only it writes bears its name.
    """

    @property
    def me(self) -> str: ...

    def now_unix_ns(self) -> int:
        """The time that all hosts agree on."""
        ...

    async def put(self, name: str, values: dict[str, bytes], ttl_s: float) -> None:
        """Write fields of one hash; the hash is gone ``ttl_s`` after the last write."""
        ...

    async def put_new(self, name: str, field: str, value: bytes, ttl_s: float) -> bytes:
        """Write a field if it is not there; what stands there afterwards."""
        ...

    async def fetch(self, name: str) -> dict[str, bytes]:
        """All fields; empty where there is no such hash."""
        ...

    async def fetch_many(self, names: list[str]) -> list[dict[str, bytes]]:
        """The same of several, in one turn."""
        ...

    async def drop(self, name: str, *fields: str) -> None:
        """Take fields away."""
        ...

    async def lease(self, name: str, ttl_s: float) -> str:
        """Take the lease, or renew it, where nobody else holds it: who holds it now (``me`` or another).

        The holder may be out of date by a moment: two may hold it for the time of one call.
        """
        ...
