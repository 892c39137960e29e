"""Who watches the traffic and may act on it: weights, health, experiments, mirrored pairs, alerts.

Composed here, once, for the control process.  Each of them is told of settled requests (``add_sink``), asked
once a second (``tick``), and shares with other hosts where there is a Redis (``sync``).  None of them may
raise into the control process, or make it wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fastapi import APIRouter
from msgspec import Struct

from proxy import clock
from proxy.config import Config
from proxy.control.alerts.stage import Alerts
from proxy.control.api_alerts import STRUCTS as ALERT_STRUCTS
from proxy.control.api_alerts import alerts_router
from proxy.control.api_backends import STRUCTS as BACKEND_STRUCTS
from proxy.control.api_backends import backends_router
from proxy.control.api_compare import STRUCTS as COMPARE_STRUCTS
from proxy.control.api_compare import compare_router
from proxy.control.api_experiments import STRUCTS as EXPERIMENT_STRUCTS
from proxy.control.api_experiments import experiments_router
from proxy.control.api_mirrors import STRUCTS as MIRROR_STRUCTS
from proxy.control.api_mirrors import mirrors_router
from proxy.control.core import Controller
from proxy.control.experiments.experiments import Experiments
from proxy.control.experiments.health import Health
from proxy.control.experiments.pairs import Pairs
from proxy.control.experiments.weights import Weights
from proxy.control.exports import Exports
from proxy.control.guard import Changes, Guard
from proxy.control.notify.sender import Sender
from proxy.control.sharing import Sharing, Sync
from proxy.control.snapshot import Watched
from proxy.link import Table

if TYPE_CHECKING:
    from proxy.control.fleet.fleet import Fleet

_log = logging.getLogger("legato.control")

#: What the routes below answer, for the OpenAPI document.
STRUCTS: Final[tuple[type[Struct], ...]] = (
    *ALERT_STRUCTS,
    *BACKEND_STRUCTS,
    *COMPARE_STRUCTS,
    *EXPERIMENT_STRUCTS,
    *MIRROR_STRUCTS,
)
_T = TypeVar("_T")
#: Failures of a part that are logged; none of them ends the process.
_LOGGED_MOST: Final = 10


class Stages:
    """See the module.  ``publish(table)``: that table is in force from now on, here and in every worker."""

    def __init__(
        self,
        config: Config,
        controller: Controller,
        exports: Exports,
        publish: Callable[[Table], None],
    ) -> None:
        self.config = config
        self._controller = controller
        self._exports = exports
        self.weights = Weights(publish, clock.unix_ns)
        self.weights.set_file(controller.table)
        self.health = Health(config.ejection, self.weights, clock.monotonic_ns, clock.unix_ns)
        controller.add_sink(self.health)
        self.experiments = Experiments(self.weights, controller.workers, clock.unix_ns)
        self.experiments.configure(config.experiment, controller.table)
        controller.add_sink(self.experiments)
        self.pairs = Pairs(clock.monotonic_ns)
        controller.add_sink(self.pairs)
        controller.add_mirror(self.pairs.copies)
        self.alerts = Alerts(
            config.alerts, controller, down=self.health.down, experiments=self.experiments.alarms
        )
        controller.add_sink(self.alerts)
        self.sender = Sender(
            config.alerts.notify,
            instance=controller.instance,
            version=controller.version,
            unix_ns=clock.unix_ns,
            monotonic_ns=clock.monotonic_ns,
            on_sent=self.alerts.teller.taken,
            told=self.alerts.teller.told,
        )
        self.alerts.teller.outbox = self.sender
        self._failed = 0
        self.sharing = self._join(exports.fleet)
        controller.show(self.watched)

    def tick(self) -> None:
        """About once a second."""
        self._try("health", lambda: self.health.tick(self._controller.workers.backends()), None)
        self._try("experiments", self.experiments.tick, None)
        self._try("pairs", self.pairs.sweep, None)
        self._try("alerts", self.alerts.tick, None)

    def reload(self, config: Config, table: Table) -> None:
        """The configuration was read anew: ``table`` is what it says."""
        self.config = config
        self.weights.set_file(table)
        self._try("health", lambda: self.health.configure(config.ejection), None)
        self._try("experiments", lambda: self.experiments.configure(config.experiment, table), None)
        self._try("alerts", lambda: self.alerts.configure(config.alerts), None)
        self._try("telling", lambda: self.sender.configure(config.alerts.notify), None)

    def renew(self) -> None:
        """Send every worker the table once more: files that it names were written anew."""
        self.weights.renew()

    def jobs(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """What is to run as long as the process does, by name."""
        jobs: list[tuple[str, Coroutine[Any, Any, None]]] = [("telling", self.sender.run())]
        return jobs if self.sharing is None else [*jobs, ("sharing", self.sharing.run())]

    async def close(self, deadline_s: float) -> None:
        """Hand out what is left; nobody is waited for longer than ``deadline_s``."""
        try:
            await self.sender.close(deadline_s / 2)
        except Exception:  # the other hosts, and the exports after us, are told all the same
            _log.exception("telling failed at the end")
        if self.sharing is not None:  # what was told just now, too
            await self.sharing.close(deadline_s / 2)

    def watched(self) -> Watched:
        """For every snapshot."""
        return Watched(
            experiments=self._try("experiments", self.experiments.stats, ()),
            ejected=self._try("health", self.health.ejected, {}),
            not_down=self._try("health", self.health.not_down, frozenset()),
            alerts=self._try("alerts", self.alerts.counts, {}),
            notified=self._try("telling", self.sender.counts, {}),
            mirrored=self._try(
                "pairs", lambda: self.pairs.results(self._controller.workers.not_copied()), {}
            ),
        )

    def routers(self, reads: Guard, changes: Changes) -> list[APIRouter]:
        """The routes of those who are composed here, each guarded."""
        return [
            alerts_router(self.alerts, reads),
            backends_router(self._controller, self.health, reads),
            compare_router(self._controller, reads),
            experiments_router(self.experiments, self.weights, reads, changes),
            mirrors_router(self._controller, self.pairs, reads),
        ]

    def _try(self, name: str, act: Callable[[], _T], otherwise: _T) -> _T:
        """Do it; whatever goes wrong in who only looks on must not end the control process."""
        try:
            return act()
        except Exception:
            self._failed += 1
            if self._failed <= _LOGGED_MOST:
                _log.exception("%s failed", name)
            return otherwise

    def _join(self, fleet: Fleet | None) -> Sharing | None:
        """With the other hosts, where there is a Redis: each part by its ``sync``."""
        if fleet is None:
            return None
        parts: list[tuple[str, Sync]] = [
            ("weights", self.weights.sync),
            ("experiments", self.experiments.sync),
            ("alerts", self.alerts.sync),
        ]
        sharing = Sharing(fleet.shared, parts)
        self._controller.watch_exporter(sharing.failures, dict)
        return sharing
