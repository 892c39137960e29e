"""Telling other hosts, and hearing from them, every few seconds: one part after the other.

A part's ``sync`` writes what is its own, whole, and reads what others wrote; told twice, it changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from proxy.control.shared import Shared, Unshared

_log = logging.getLogger("legato.control")

#: How often hosts tell each other.
SYNC_S: Final = 5.0
#: So many failures of a part are logged; all are counted.
_LOGGED_MOST: Final = 10

Sync = Callable[[Shared], Awaitable[None]]


class Sharing:
    """``parts``: by name.  A store that is away ends the round, a part that fails does not."""

    def __init__(self, shared: Shared, parts: Sequence[tuple[str, Sync]]) -> None:
        self._shared = shared
        self._parts = tuple(parts)
        self._failed = 0

    async def run(self) -> None:
        """At once, and then every few seconds, until cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(SYNC_S)

    async def once(self) -> None:
        """One round."""
        for name, sync in self._parts:
            try:
                await sync(self._shared)
            except Unshared:  # the others would only wait for the same
                self._failed += 1
                return
            except Exception as error:  # what only looks on must not end for what another host wrote
                self._failed += 1
                if self._failed <= _LOGGED_MOST:
                    _log.error("sharing of %s failed: %s", name, type(error).__name__)

    async def close(self, deadline_s: float) -> None:
        """What is new is told a last time; nobody is waited for longer than ``deadline_s``."""
        try:
            async with asyncio.timeout(deadline_s):
                await self.once()
        except TimeoutError:
            return

    def failures(self) -> dict[str, int]:
        """For the exporters' failures."""
        return {"redis": self._failed}
