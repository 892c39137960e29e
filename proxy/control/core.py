"""The control plane without its process: whatever workers say goes in, snapshots and records come out.

Nothing here waits, listens or starts anything, so the whole plane composes in one process (tests, a
notebook) as well as behind the link.  Clocks are given.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from proxy.control.alerts.rules import unwatched
from proxy.control.ledger import Ledger
from proxy.control.prefills import Prefills
from proxy.control.prompts import Prompts
from proxy.control.settle import Settled, settle, settle_unmeasured
from proxy.control.shares import Shares
from proxy.control.snapshot import RedisStats, SloStats, Snapshot, Watched
from proxy.control.store import Store
from proxy.control.windows import Booked, WindowBook
from proxy.control.workers import Worker, Workers
from proxy.link import PROTOCOL, Ack, Beat, Facts, FactsBatch, Hello, PromptModels, SloSpec, Table, Up

if TYPE_CHECKING:
    from proxy.control.fleet.fleet import FleetState
    from proxy.control.fleet.reader import Reader
    from proxy.tally import Tally

_log = logging.getLogger("legato.control")


class Sink(Protocol):
    """Who is handed every batch of settled requests; must not wait.  One that raises is logged, no more."""

    def __call__(self, batch: Sequence[Settled], /) -> None: ...


class Fleet(Protocol):
    """Who shares what is booked here with other hosts; must not wait, must not raise."""

    @property
    def reader(self) -> Reader: ...
    def booked(self, booked: Booked, /) -> None: ...
    def seen(self, worker: str, number: int, /) -> None: ...
    def hello(self, hello: Hello, /) -> None: ...
    def state(self) -> FleetState: ...


class Controller:
    """See the module.  ``feed`` takes a worker's message as the link would, ``snapshot`` is what readers see.

    ``sinks`` are called with each settled batch (access log, trace log, spans), the fleet with each booking.
    """

    def __init__(
        self,
        table: Table,
        *,
        instance: str,
        version: str,
        unix_ns: Callable[[], int],
        monotonic_ns: Callable[[], int],
        store: Store | None = None,
        sinks: Sequence[Sink] = (),
        tally: Tally | None = None,
    ) -> None:
        self.instance = instance
        self.version = version
        self.table = table
        self._durations = _durations(table)
        self.ledger = Ledger(table.slos)
        self.store = Store() if store is None else store
        self.workers = Workers(tally)
        self.prompts = Prompts()
        self.reload_ok = True
        self.draining = False
        self.since_unix_ns = unix_ns()
        self.windows = WindowBook(self.since_unix_ns)
        self.shares = Shares()
        self.prefills = Prefills(self.windows, unix_ns=unix_ns, monotonic_ns=monotonic_ns)
        self.link_errors = 0
        self._unix_ns = unix_ns
        self._monotonic_ns = monotonic_ns
        self._sinks = list(sinks)
        self._fleet: Fleet | None = None
        self._mirrored: list[Sink] = []
        self._watched: Callable[[], Watched] = Watched
        self._export_failures: list[Callable[[], dict[str, int]]] = []
        self._dropped: list[Callable[[], dict[str, int]]] = []
        self._failures = self._sink_failures = 0
        self._render_failures = 0
        self._here: Worker | None = None  # the worker of ``feed``

    # ------------------------------------------------------------ the table

    def set_table(self, table: Table) -> None:
        """A new table is in force; requests in flight keep what they were promised (it is in their facts)."""
        self.table = table
        self._durations = _durations(table)
        self.ledger.set_slos(table.slos)

    @property
    def slos(self) -> tuple[SloSpec, ...]:
        """The promises in force."""
        return self.table.slos

    # ------------------------------------------------------------ what workers say (linkserver.Desk)

    def hello(self, hello: Hello) -> Worker:
        """A worker connected."""
        if self._fleet is not None:
            self._fleet.hello(hello)
        return self.workers.hello(hello)

    def facts(self, worker: Worker, batch: list[Facts]) -> None:
        """Requests ended: settle, book, keep and hand on those that are new."""
        settled = [self._settle(facts) for facts in self.workers.fresh(worker, batch)]
        if not settled:
            return
        copies = [each for each in settled if each.facts.mirror_of is not None]
        if copies:  # nobody waited for these: they are no part of what users felt
            self._hand(self._mirrored, copies)
            settled = [each for each in settled if each.facts.mirror_of is None]
        self._book(settled)
        self.workers.settled(worker)
        if self._fleet is not None:
            self._fleet.seen(worker.incarnation, worker.seen)
        self.store.add_many(settled)
        for each in settled:
            self.prompts.settled(each.facts)
            self.prefills.settled(each)
        if settled:
            self._hand(self._sinks, settled)

    def _hand(self, sinks: Sequence[Sink], batch: Sequence[Settled]) -> None:
        for sink in sinks:
            try:
                sink(batch)
            except Exception:  # who only looks on must cost neither the books nor the others anything
                self._sink_failures += 1
                if self._sink_failures <= 10:
                    name = getattr(sink, "__qualname__", type(sink).__name__)
                    _log.exception("%s could not take a batch of settled requests", name)

    def _book(self, batch: Sequence[Settled]) -> None:
        self.windows.advance(self._unix_ns())
        fleet = self._fleet
        for settled in batch:
            booked = self.windows.add(self.ledger.add(settled), settled)
            if fleet is not None:
                fleet.booked(booked)

    @property
    def learned(self) -> PromptModels | None:
        """What is known of prompt lengths, for a worker that comes; ``None``: nothing yet."""
        return self.prompts.all()

    def news(self) -> PromptModels | None:
        """What was learned of prompt lengths since the last time, for all workers."""
        return self.prompts.moved()

    def beat(self, worker: Worker, beat: Beat) -> None:
        """The picture of the streams in flight."""
        self.workers.beat(worker, beat)

    def left(self, worker: Worker) -> None:
        """A worker's link ended."""
        self.workers.left(worker, self._monotonic_ns())

    def nonsense(self) -> None:
        """A peer on the link did not keep to the protocol."""
        self.link_errors += 1

    def sweep(self) -> None:
        """About once a second: give up workers that stay away, let the windows move on."""
        self.workers.sweep(self._monotonic_ns())
        now_ns = self._unix_ns()
        self.windows.advance(now_ns)
        if self.shares.due(now_ns):
            self.shares.note(self.snapshot(), self.link_errors)

    def look_for_dead(self, read_ns: int, *, last: bool = False) -> None:
        """Count what dead workers took along, those too of which only a former control process heard.

        ``read_ns``: when all that had arrived was booked.  ``last``: at the end, when nothing more is read.
        """
        for entry in self.workers.look_for_dead(self._monotonic_ns(), read_ns, last=last):
            if self._fleet is not None:  # which asks how much of what was settled is in Redis
                hello = Hello(PROTOCOL, entry.worker, entry.pid, entry.incarnation, 1, entry.settled, 0)
                self._fleet.hello(hello)

    def feed(self, message: Up) -> Table | Ack | None:
        """As one worker on a link of its own: ``Hello`` is answered by the table, facts by an ``Ack``."""
        if isinstance(message, Hello):
            self._here = self.hello(message)
            return self.table
        if self._here is None:
            self._here = self.hello(Hello(1, 0, 0, "in-process", 1, 0, 0))
        if isinstance(message, FactsBatch):
            self.facts(self._here, message.facts)
            return Ack(self._here.seen)
        self.beat(self._here, message)
        return None

    def _settle(self, facts: Facts) -> Settled:
        duration_only = self._duration_only(facts)
        try:
            return settle(facts, self.instance, duration_only=duration_only)
        except (ValueError, ArithmeticError, TypeError) as error:
            # Arrivals that are no arrivals: the request still counts, its score does not.
            self._failures += 1
            if self._failures <= 10:
                _log.error("request %s could not be scored (%s): counted as unmeasured", facts.id, error)
        try:
            return settle_unmeasured(facts, self.instance, "tap_error", duration_only=duration_only)
        except ValueError:  # an end that only another version knows
            facts = msgspec.structs.replace(facts, end="self", stream=None)
            return settle_unmeasured(facts, self.instance, "tap_error", duration_only=duration_only)

    def _duration_only(self, facts: Facts) -> bool:
        # By name: a reload may have changed the rule since the request began, but what its facts say stays.
        return facts.slo in self._durations and not facts.target and facts.e2e_ns is not None

    # ------------------------------------------------------------ what readers see

    def join(self, fleet: Fleet) -> None:
        """Share what is booked from now on."""
        self._fleet = fleet

    @property
    def fleet(self) -> Fleet | None:
        """With whom it is shared; ``None``: with nobody."""
        return self._fleet

    @property
    def reader(self) -> Reader | None:
        """The merged view of all hosts; ``None`` where nothing is shared."""
        return None if self._fleet is None else self._fleet.reader

    def add_sink(self, sink: Sink) -> None:
        """Hand every settled batch from now on to one more."""
        self._sinks.append(sink)

    def add_mirror(self, sink: Sink) -> None:
        """Hand the settled copies of requests, which go to nobody else, to this one."""
        self._mirrored.append(sink)

    def show(self, watched: Callable[[], Watched]) -> None:
        """What experiments, alerts and mirrors say of themselves, for every snapshot."""
        self._watched = watched

    def watch_exporter(
        self, failures: Callable[[], dict[str, int]], dropped: Callable[[], dict[str, int]]
    ) -> None:
        """Include an exporter's own counters in the snapshot."""
        self._export_failures.append(failures)
        self._dropped.append(dropped)

    @property
    def ready(self) -> bool:
        """A worker has the table and nothing is draining."""
        return self.workers.connected > 0 and not self.draining

    def render(
        self, render: Callable[[Snapshot, str | None], tuple[bytes, str]], accept: str | None
    ) -> tuple[bytes, str]:
        """The exposition by an exporter; a failure is counted before it is raised."""
        try:
            return render(self.snapshot(), accept)
        except Exception:
            self._render_failures += 1
            raise

    def now_unix_ns(self) -> int:
        """The wall clock."""
        return self._unix_ns()

    def now_monotonic_ns(self) -> int:
        """The clock that never jumps."""
        return self._monotonic_ns()

    def snapshot(self) -> Snapshot:
        """Everything at this moment, immutable."""
        delays = self.workers.delays()
        return Snapshot(
            at_unix_ns=self._unix_ns(),
            since_unix_ns=self.since_unix_ns,
            instance=self.instance,
            version=self.version,
            groups=self.ledger.freeze(),
            now=self.workers.groups_now(self.ledger.cap),
            backends=self.workers.backends(),
            slos=tuple(_slo_stats(slo) for slo in self.table.slos),
            forward=delays["forward"],
            lag=delays["lag"],
            blocked=delays["blocked"],
            dropped=_add(self.workers.dropped(), *(read() for read in self._dropped)),
            unmeasured=dict(self.ledger.unmeasured),
            export_failures=_add(
                {"prometheus": self._render_failures}, *(read() for read in self._export_failures)
            ),
            reload_ok=self.reload_ok,
            workers=self.workers.connected,
            draining=self.draining,
            drifts=self.prefills.drifts,
            redis=None if self._fleet is None else _redis_stats(self._fleet.state()),
            watched=self._watched(),
        )


def _redis_stats(state: FleetState) -> RedisStats:
    offset_s = state.offset_ns / 1e9 if state.offset_known else None
    return RedisStats(state.status == "ok", offset_s, state.waiting_bytes)


def _durations(table: Table) -> frozenset[str]:
    """The SLOs that promise the duration only."""
    return frozenset(slo.name for slo in table.slos if slo.duration_only)


def _slo_stats(slo: SloSpec) -> SloStats:
    targets_ns = [ttft_ns for _, ttft_ns in slo.ttft_points]
    if slo.curves and not slo.live:  # the points are then for whom nothing was learned
        targets_ns = [ns + slo.slack_ns for curve in slo.curves for _, ns in curve.points]
    return SloStats(
        name=slo.name,
        ttft_target_s=None if slo.duration_only else min(targets_ns) / 1e9,
        tbt_target_s=None if slo.duration_only else slo.tbt_ns / 1e9,
        objective=slo.objective,
        unwatched=unwatched(slo),
    )


def _add(*counts: dict[str, int]) -> dict[str, int]:
    out: dict[str, int] = {}
    for each in counts:
        for name, counted in each.items():
            out[name] = out.get(name, 0) + counted
    return out
