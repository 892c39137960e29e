"""Who watches the traffic and may act on it: weights, health, experiments, mirrored pairs, alerts.

Composed here, once, for the control process.  Each of them is told of settled requests (``add_sink``), asked
once a second (``tick``), and shares with other hosts where there is a Redis (``sync``).  None of them may
raise into the control process, or make it wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter
from msgspec import Struct

from proxy.config import Config
from proxy.control.core import Controller
from proxy.control.exports import Exports
from proxy.control.guard import Changes, Guard
from proxy.control.snapshot import Watched
from proxy.link import Table

if TYPE_CHECKING:
    from proxy.control.shared import Shared

_log = logging.getLogger("legato.control")

#: What the routes below answer, for the OpenAPI document.
STRUCTS: Final[tuple[type[Struct], ...]] = ()
#: How often hosts tell each other.
SYNC_S: Final = 5.0


class Stages:
    """See the module.  ``publish(table)``: that table is in force from now on, here and in every worker."""

    def __init__(
        self,
        config: Config,
        controller: Controller,
        exports: Exports,
        publish: Callable[[Table], None],
        shared: Shared | None = None,
    ) -> None:
        self.config = config
        self._controller = controller
        self._exports = exports
        self._publish = publish
        self._shared = shared
        controller.show(self.watched)

    def tick(self) -> None:
        """About once a second."""

    def reload(self, config: Config, table: Table) -> None:
        """The configuration was read anew: ``table`` is what it says."""
        self.config = config
        self._publish(table)

    def jobs(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """What is to run as long as the process does, by name."""
        return [] if self._shared is None else [("sharing", self._share())]

    async def close(self, deadline_s: float) -> None:
        """Hand out what is left; nobody is waited for longer than ``deadline_s``."""

    def watched(self) -> Watched:
        """For every snapshot."""
        return Watched()

    def routers(self, reads: Guard, changes: Changes) -> list[APIRouter]:
        """The routes of those who are composed here, each guarded."""
        return []

    async def _share(self) -> None:
        """Share with the other hosts until cancelled."""
