"""Composition root of a data process: ``python -m proxy.relay.worker --id K --listen-fd N --link PATH``.

The worker serves what its listening sockets bring.  It knows nothing of files, stores or exporters: its
table comes over the link, and its facts leave by it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

import uvloop
from uvicorn.config import Config
from uvicorn.server import ServerState

from proxy.clock import monotonic_ns, unix_ns
from proxy.link import BackendSpec, Beat, GroupNow, PromptModels, Stream, Table, Timeouts
from proxy.parent import die_with_parent
from proxy.relay.delays import Octaves
from proxy.relay.downstream import protocol_class
from proxy.relay.facts import facts_of, facts_of_refused
from proxy.relay.flight import Flight
from proxy.relay.ids import Ids
from proxy.relay.lag import LoopLag
from proxy.relay.linkclient import LinkClient
from proxy.relay.listener import Listeners, check_seams
from proxy.relay.mirror import Mirrors
from proxy.relay.pool import Pool
from proxy.relay.record_tags import Tags
from proxy.relay.relay import DataApp, Relay
from proxy.relay.route import PromptLengths, RouteTable
from proxy.relay.sticky import Assignments
from proxy.relay.tracing import Traces
from proxy.tally import claim
from proxy.tasks import report, report_from_loop, spawn
from proxy.turns import ask_for_short_turns

if TYPE_CHECKING:
    from proxy.relay.client import Client
    from proxy.relay.exchange import Exchange
    from proxy.relay.pull import PullPool

log = logging.getLogger("legato.worker")

#: A mean loop lag above this sheds measuring for new streams; below a fifth of it, measuring comes back.
_SHED_NS: Final = 25_000_000
_LINK_FLUSH_S: Final = 2.0
#: The sockets are read between two timers: a loop that stood still must not call its own lateness overdue.
_READ_FIRST_S: Final = 0.002
_PAGE: Final = resource.getpagesize()


class Worker:
    """One data process: its table, its pools, its exchanges, its budgets (``downstream.Limits``)."""

    def __init__(self, number: int, link_path: str, tally_fd: int | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.number = number
        self.link = LinkClient(number, os.getpid(), link_path, self.apply, self.learn)
        self.begun = claim(tally_fd, number, self.link.incarnation, os.getpid())
        self.ids = Ids()
        self.lag = LoopLag(self.loop)
        self.forward = Octaves()
        self.blocked = Octaves()
        self.flight = Flight(self.loop)
        self.dropped: Counter[str] = Counter()
        self.exchanges: set[Exchange] = set()
        self.pools: dict[str, Pool | PullPool] = {}
        self.table: Table
        self.routes: RouteTable
        self.lengths = PromptLengths()
        self.assigned = Assignments()
        self.mirrors = Mirrors(self)
        self.tags: Tags
        self.traces: Traces
        self.ready = asyncio.Event()  # a table is there
        self.state = ServerState()
        self.listeners = Listeners(self)
        self.draining = False
        self.measuring = True
        self.shedding = False
        self._sweeping = False
        # Limits: what the client connections read.
        self.head_limit = self.body_limit = self.stream_buffer = 0
        self.body_room = self.stream_room = 0
        self.client_head_s = self.client_keepalive_s = 0.0

    # ------------------------------------------------------------------ the table

    def apply(self, table: Table) -> None:
        """Take a new table: requests from now on see it, those in flight keep what they were promised."""
        old = getattr(self, "table", None)
        pools: dict[str, Pool | PullPool] = {}
        try:
            for spec in table.backends:
                known = self.pools.get(spec.name)
                same = known is not None and known.spec == spec and known.timeouts == table.timeouts
                pools[spec.name] = known if same and known is not None else _pool(spec, table.timeouts)
            routes = RouteTable(table, self.lengths, before=getattr(self, "routes", None))
            self.listeners.certificates(table)
        except (OSError, ValueError) as error:
            log.error("worker %d keeps its table: the new one cannot be used: %s", self.number, error)
            return
        for name, pool in self.pools.items():
            if pools.get(name) is not pool:
                pool.close()
        self.pools, self.table, self.routes = pools, table, routes
        self.assigned.renew(table)
        self.tags, self.traces = Tags(table), Traces(table.tracing)
        self.body_room += table.body_budget - (old.body_budget if old else 0)
        self.stream_room += table.stream_budget - (old.stream_budget if old else 0)
        self.head_limit, self.body_limit = table.head_limit, table.body_limit
        self.stream_buffer = table.stream_buffer
        self.client_head_s = table.timeouts.client_head_ns / 1e9
        self.client_keepalive_s = table.timeouts.client_keepalive_ns / 1e9
        self.measuring = table.measure
        self.ready.set()

    def learn(self, learned: PromptModels) -> None:
        """What was learned of prompt lengths: requests from now on are promised by it, under any table."""
        self.lengths.learn(learned)

    # ------------------------------------------------------------------ what exchanges ask

    def trusts(self, peer: tuple[str, int] | None) -> bool:
        """Whether a peer's own ``X-Forwarded-*`` is believed."""
        return self.tags.trusts(peer)

    def unmeasured(self) -> Stream:
        """The stand-in for a stream that had no tap."""
        return Stream("", unmeasured="shed" if self.shedding else "switched_off")

    def count(self, what: str) -> None:
        """Count something that was let go or went wrong (closed list: the catalog's ``what``)."""
        self.dropped[what] += 1

    def ended(self, exchange: Exchange) -> None:
        """An exchange is over: its facts go to the control process."""
        self.forward.fold(exchange.delay_counts, exchange.delay_sum_ns)
        self.flight.ended(exchange)
        if exchange.recorded:
            try:
                self.link.facts(lambda seq: facts_of(exchange, seq))
            except Exception as error:  # its number is given out: control counts it as lost
                report("telling the facts", error)
        if exchange.tap is not None and exchange.tap.faults:
            self.dropped["tap_faults"] += exchange.tap.faults

    def refuse(self, client: Client, code: str) -> None:
        """Answer a request that never becomes an exchange: our own 4xx (or 501)."""
        if client.gone and not client.started:
            return
        self.begun.count()  # before the answer: who has it may know that we are gone a moment later
        status, now_ns = client.refuse(code), monotonic_ns()
        slo, id = self.table.slos[-1], self.ids.new(client.received_unix_ns)
        self.link.facts(lambda seq: facts_of_refused(client, seq, id, slo, now_ns, status, code, self.traces))

    # ------------------------------------------------------------------ once a second

    def upkeep(self) -> None:
        """Idle connections, shedding, and the beat."""
        self.loop.call_later(1.0, self.upkeep)
        now_ns = monotonic_ns()
        for pool in self.pools.values():
            pool.sweep(now_ns)
        mean_ns = self.lag.mean_and_reset_ns()
        if self.shedding != (mean_ns > (_SHED_NS // 5 if self.shedding else _SHED_NS)):
            self.shedding = not self.shedding
            log.warning(
                "worker %d: %s (mean loop lag %.1f ms)",
                self.number,
                "sheds measuring of new streams" if self.shedding else "measures again",
                mean_ns / 1e6,
            )
        self.mirrors.look(mean_ns, shedding=self.shedding)
        if not self._sweeping:
            self._sweeping = True
            self.loop.call_later(_READ_FIRST_S, self._sweep, True)

    def _sweep(self, may_wait: bool) -> None:
        """Look at what is in flight, once what waited while the loop was late has been read."""
        if may_wait and self.lag.late_ns(monotonic_ns()):
            self.loop.call_later(_READ_FIRST_S, self._sweep, False)
        else:
            self.flight.sweep(list(self.exchanges), self._beat)

    def _beat(self, groups: list[GroupNow]) -> None:
        self._sweeping = False
        if not self.link.hears:
            return
        lag = self.lag.histogram
        self.link.beat(
            Beat(
                at_unix_ns=unix_ns(),
                groups=groups,
                backends=[pool.now() for pool in self.pools.values()],
                clients=len(self.state.connections),
                forward=self.forward.counts,
                forward_sum_ns=self.forward.sum_ns,
                lag=lag.counts,
                lag_sum_ns=lag.sum_ns,
                blocked=self.blocked.counts,
                blocked_sum_ns=self.blocked.sum_ns,
                dropped=dict(self.dropped),
                table_version=self.table.version,
                measuring=self.measuring and not self.shedding,
                draining=self.draining,
                rss_bytes=_rss_bytes(),
                assigned=self.assigned.told(),
                mirror_dropped=dict(self.mirrors.dropped),
            )
        )

    # ------------------------------------------------------------------ the end

    async def drain(self, delay_s: float) -> None:
        """Not ready; accept for ``delay_s`` more; then let what runs finish, at most ``drain`` long."""
        if self.draining:
            return
        self.draining = True
        await asyncio.sleep(delay_s)
        self.listeners.close()
        self.shut_idle()
        deadline_ns = monotonic_ns() + self.table.timeouts.drain_ns
        while (self.exchanges or self.state.connections) and monotonic_ns() < deadline_ns:
            if not self.exchanges:
                self.shut_idle()
            await asyncio.sleep(0.02)

    def shut_idle(self) -> None:
        """Close connections that carry nothing; the others end after their answer."""
        for connection in list(self.state.connections):
            connection.shutdown()

    def cut_all(self) -> None:
        """End every exchange now, and every copy."""
        self.mirrors.cut("worker_stopped")
        for exchange in list(self.exchanges):
            exchange.error = "worker_stopped"
            exchange.abandon("self")

    async def close(self) -> None:
        """After a drain or a quit: report what is left, close what is open."""
        self.cut_all()
        await asyncio.sleep(0)
        for pool in self.pools.values():
            pool.close()
        for connection in list(self.state.connections):
            connection.transport.close()
        await asyncio.sleep(0)
        await self.link.close(_LINK_FLUSH_S)


def _pool(spec: BackendSpec, timeouts: Timeouts) -> Pool | PullPool:
    if spec.transport == "native":
        return Pool(spec, timeouts)
    from proxy.relay.pull import PullPool  # httpx only where it is asked for: it is memory

    return PullPool(spec, timeouts)


def _rss_bytes() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * _PAGE


async def serve(number: int, listen_fds: list[int], link_path: str, tally_fd: int | None) -> None:
    """Run a worker until it is told to stop."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(report_from_loop)
    worker = Worker(number, link_path, tally_fd)
    stop = asyncio.Event()
    keeping = spawn(worker.link.keep(), "link")

    def drain(delay: bool) -> None:
        delay_s = worker.table.timeouts.drain_delay_ns / 1e9 if delay and worker.ready.is_set() else 0.0
        if worker.ready.is_set():
            spawn(worker.drain(delay_s), "drain").add_done_callback(lambda _: stop.set())
        else:
            stop.set()

    loop.add_signal_handler(signal.SIGTERM, drain, True)
    loop.add_signal_handler(signal.SIGINT, drain, False)
    loop.add_signal_handler(signal.SIGQUIT, stop.set)
    waiting = {spawn(worker.ready.wait(), "table"), spawn(stop.wait(), "stop")}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if worker.ready.is_set():
        protocol = protocol_class(worker)
        config = Config(
            DataApp(Relay(worker)),
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
        )
        config.load()
        await worker.listeners.open(config, protocol, [socket.socket(fileno=fd) for fd in listen_fds])
        worker.lag.start()
        worker.upkeep()
        # What exists now stays: collections need not look at it again, and rarely at anything.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 50, 100)
        await stop.wait()
        await worker.close()
    keeping.cancel()
    for task in waiting:
        task.cancel()


def main() -> None:
    """The process's entry."""
    parser = argparse.ArgumentParser(prog="legato-worker")
    parser.add_argument("--id", type=int, required=True)
    parser.add_argument("--listen-fd", type=int, action="append", required=True)
    parser.add_argument("--link", required=True)
    parser.add_argument("--tally-fd", type=int)
    args = parser.parse_args()
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format=f"legato worker {args.id}: %(levelname)s: %(message)s",
    )
    die_with_parent(signal.SIGTERM)
    ask_for_short_turns()
    try:
        check_seams()
    except RuntimeError as error:
        sys.exit(f"legato worker {args.id}: {error}")
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve(args.id, args.listen_fd, args.link, args.tally_fd))


if __name__ == "__main__":
    main()
