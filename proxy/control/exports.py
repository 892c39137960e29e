"""What leaves the host besides logs and ``/metrics``: Redis and OpenTelemetry, where they are configured.

Read at start only.  Their libraries are imported only where they are used: who configures neither pays for
neither, in memory or in time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from proxy import clock
from proxy.config import Config
from proxy.control.core import Controller
from proxy.control.exemplars import Exemplars

if TYPE_CHECKING:
    from proxy.control.fleet.fleet import Fleet
    from proxy.exporters.otel.push import MetricsPush
    from proxy.exporters.otel.traces import Traces

_T = TypeVar("_T")
_log = logging.getLogger("legato.control")


class Exports:
    """Everything that is configured, joined to the controller; nothing runs yet."""

    def __init__(self, config: Config, controller: Controller) -> None:
        self._controller = controller
        self.fleet = _made("Redis", self._join_fleet, config)
        self.traces = _made("spans", self._trace, config)
        self.metrics = _made("metrics over OTLP", self._push, config)

    def _join_fleet(self, config: Config) -> Fleet | None:
        if config.redis.url is None:
            return None
        from proxy.control.fleet.fleet import Fleet

        controller = self._controller
        fleet = Fleet(config.redis, controller, unix_ns=clock.unix_ns, monotonic_ns=clock.monotonic_ns)
        controller.join(fleet)
        controller.add_sink(fleet)
        controller.watch_exporter(fleet.failures, fleet.dropped)
        return fleet

    def _trace(self, config: Config) -> Traces | None:
        if config.otel.traces_url is None:
            return None
        from proxy.exporters.otel.traces import Traces

        controller = self._controller
        traces = Traces(
            config.otel,
            instance=controller.instance,
            version=controller.version,
            unix_ns=clock.unix_ns,
            monotonic_ns=clock.monotonic_ns,
            table=lambda: controller.table,
        )
        controller.add_sink(traces)
        if config.otel.exemplars:
            controller.add_sink(Exemplars(controller.ledger))  # behind what decides which traces are kept
        controller.watch_exporter(traces.failures, traces.dropped)
        return traces

    def _push(self, config: Config) -> MetricsPush | None:
        if config.otel.metrics_url is None:
            return None
        from proxy.control.genai import GenAi
        from proxy.exporters.otel.push import MetricsPush

        controller = self._controller
        calls = GenAi(
            controller.ledger.cap, lambda: controller.table.backends, exemplars=config.otel.exemplars
        )
        controller.add_sink(calls)  # behind ``_trace``, as exemplars are
        push = MetricsPush(
            config.otel,
            controller.snapshot,
            instance=controller.instance,
            version=controller.version,
            called=calls.freeze,
        )
        controller.watch_exporter(push.failures, dict)
        return push

    def jobs(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """What is to run as long as the process does, by name."""
        found = [("redis", self.fleet), ("otlp", self.metrics)]
        return [(name, each.run()) for name, each in found if each is not None]

    async def close(self, deadline_s: float) -> None:
        """Hand out what is left, all at once, for at most ``deadline_s``; nobody is waited for longer."""
        ends: list[Coroutine[Any, Any, None]] = []
        if self.fleet is not None:
            ends.append(self.fleet.close(deadline_s))
        if self.metrics is not None:
            ends.append(self.metrics.close(deadline_s))
        if self.traces is not None:
            ends.append(asyncio.to_thread(self.traces.close, deadline_s))
        await asyncio.gather(*ends, return_exceptions=True)


def _made(what: str, make: Callable[[Config], _T | None], config: Config) -> _T | None:
    """``None`` where it cannot be made either: what only looks on must not keep the process from starting."""
    try:
        return make(config)
    except Exception as error:  # of a library, or of its own reading of the environment
        _log.error("%s: switched off until the next start: %s", what, type(error).__name__)
        return None
