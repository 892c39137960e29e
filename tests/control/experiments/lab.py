"""A host without its process: the control core, weights, experiments, workers that decide as real ones do.

    lab = Lab(split(control=90, candidate=10))
    host = lab.host()
    host.experiments.start(spec(), "ann")
    host.serve(1000, lambda arm, random: Answer(good=random.random() < 0.97))
    host.second()                              # beats, then a tick

Traffic is synthetic; assignments, their counts and sessions come from the data plane's own code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec

from proxy.control.core import Controller
from proxy.control.experiments.experiments import Experiments
from proxy.control.experiments.spec import ExperimentSpec
from proxy.control.experiments.weights import Weights
from proxy.link import (
    Assigned,
    Assignment,
    BackendNow,
    Facts,
    GroupNow,
    Match,
    RouteSpec,
    SplitSpec,
    Stream,
    Table,
    Usage,
)
from proxy.relay.sticky import Assignments, Split
from tests.control.facts import DEFAULT, UNIX, S, at, facts, streamed
from tests.control.test_workers import beat, hello
from tests.helpers.shared import MemoryShared, Place

NAMES = ("candidate", "control", "third")


def split(sticky: bool = False, failover: bool = False, **arms: int) -> SplitSpec:
    weights = tuple(sorted((arms or {"candidate": 50, "control": 50}).items()))
    return SplitSpec("chat", weights, "seed", ("header", "x-s") if sticky else None, "x-to", failover)


def table_of(*splits: SplitSpec, version: int = 1) -> Table:
    routes = tuple(RouteSpec(Match(path=f"/{each.name}*"), each.arms[0][0], split=each) for each in splits)
    return Table(version=version, backends=(), routes=routes, slos=(DEFAULT,))


def spec(name: str = "exp", **fields: Any) -> ExperimentSpec:
    return ExperimentSpec(**({"name": name, "control": "control", "candidate": "candidate"} | fields))


@dataclass(frozen=True)
class Answer:
    """What came of a request.  ``lost``: its facts never arrive; ``elsewhere``: another backend stood in;
    ``whole``: one body of JSON where a stream was asked for."""

    good: bool = True
    ttft_ms: int = 50
    failed: bool = False
    lost: bool = False
    elsewhere: str | None = None
    whole: bool = False


Behave = Callable[[str, Random], Answer]


def well(arm: str, random: Random) -> Answer:
    """Both arms alike: 97% good, TTFT log-normal."""
    return Answer(random.random() < 0.97, round(min(40 * random.lognormvariate(0, 0.4), 95)))


@dataclass
class Running:
    """A request that has not ended; ``hung``: it will not."""

    assignment: Assignment
    behave: Behave
    since_unix_ns: int
    hung: bool = False


@dataclass
class FakeWorker:
    """One data worker of a host."""

    number: int
    incarnation: str
    random: Random
    counted: Assignments = field(default_factory=Assignments)
    running: list[Running] = field(default_factory=list)
    seq: int = 0
    acked: int = 0
    version: int = -1
    splits: list[Split] = field(default_factory=list)
    hangs: Callable[[str, Random], bool] = lambda arm, random: False

    def connect(self, host: Host) -> None:
        self.held = host.controller.hello(
            hello(self.number, self.incarnation, acked=self.acked, next_seq=self.seq + 1)
        )

    def assign(self, host: Host, session: int | None, behave: Behave, which: int = 0) -> Running:
        table = host.controller.table
        if table.version != self.version:
            self.counted.renew(table)
            self.splits = [
                Split(route.split, draw=self.random.random)
                for route in table.routes
                if route.split is not None
            ]
            self.version = table.version
        chosen = self.splits[which]
        if chosen.spec.sticky is None:
            given = Assignment(chosen.spec.name, chosen._drawn_arm(()), "draw", epoch=chosen.spec.epoch)
        else:
            bits = chosen.session(str(session).encode())
            name, epoch = chosen.spec.name, chosen.spec.epoch
            given = Assignment(name, chosen.arm(bits), "session", bits, None, epoch, bits % 512)
        self.counted.add(given)
        hung = self.hangs(given.backend, self.random)
        request = Running(given, behave, host.lab.now_ns, hung)
        self.running.append(request)
        return request

    def end(self, request: Running, now_unix_ns: int) -> Facts | None:
        self.running.remove(request)
        self.seq += 1
        answer = request.behave(request.assignment.backend, self.random)
        made = facts_of(answer, request.assignment, self.seq, now_unix_ns)
        return None if answer.lost else made

    def picture(self, now_unix_ns: int) -> Any:
        names = sorted({*NAMES, *(each.assignment.backend for each in self.running)})
        groups = [self.group(name, now_unix_ns) for name in names]
        told = msgspec.msgpack.decode(msgspec.msgpack.encode(self.counted.told()), type=list[Assigned])
        backends = [BackendNow(name, True, 0, 0, 0, 2) for name in NAMES]
        return beat(*groups, assigned=told, at_unix_ns=now_unix_ns, backends=backends)

    def group(self, backend: str, now_unix_ns: int) -> GroupNow:
        """Hung ones are overdue five seconds after they began."""
        mine = [each for each in self.running if each.assignment.backend == backend]
        late = [late for each in mine if each.hung and (late := now_unix_ns - each.since_unix_ns - 5 * S) > 0]
        return GroupNow(backend, "m", "default", len(mine), len(late), len(late), max(late, default=0))


def facts_of(answer: Answer, assignment: Assignment, seq: int, now_unix_ns: int) -> Facts:
    backend = assignment.backend
    if answer.elsewhere is not None:
        assignment = msgspec.structs.replace(assignment, failed="connection_refused")
        backend = answer.elsewhere
    given: dict[str, Any] = {
        "seq": seq, "backend": backend, "assignment": assignment, "received_unix_ns": now_unix_ns,
    }  # fmt: skip
    if answer.failed:
        return facts(end="no_response", status=502, stream_asked=True, **given)
    ttft = answer.ttft_ms
    if answer.whole:
        counted = Stream("openai.chat", usage=Usage(prompt=12, output=3))
        return facts(ttft, stream_asked=True, stream=counted, **given)
    last = ttft + (40 if answer.good else 400)
    return streamed(at(ttft), at(ttft + 20), at(last), end_ms=last + 1, **given)


@dataclass
class Host:
    """One control process and its workers."""

    lab: Lab
    name: str
    table: Table
    workers: list[FakeWorker]
    shared: MemoryShared

    def __post_init__(self) -> None:
        clock = self.lab.clock
        self.controller = Controller(
            self.table, instance=self.name, version="0", unix_ns=clock, monotonic_ns=clock
        )
        self.weights = Weights(self.controller.set_table, clock)
        self.weights.set_file(self.table)
        self.experiments = Experiments(self.weights, self.controller.workers, clock)
        self.controller.add_sink(self.experiments)
        self.settled: list[Facts] = []
        for worker in self.workers:
            worker.connect(self)

    def serve(
        self, requests: int, behave: Behave = well, sessions: Sequence[int] = (), batch: int = 50
    ) -> None:
        """Requests, one after the other on any worker, a hundred in flight; told in batches."""
        random = self.lab.random
        open_ = [(worker, each) for worker in self.workers for each in worker.running if not each.hung]
        ended: dict[str, tuple[FakeWorker, list[Facts]]] = {}
        for number in range(requests):
            worker = random.choice(self.workers)
            session = random.choice(sessions) if sessions else number
            request = worker.assign(self, session, behave)
            if not request.hung:
                open_.append((worker, request))
            if len(open_) > 100:
                owner, request = open_.pop(random.randrange(len(open_)))
                self._end(owner, request, ended)
            if number % batch == batch - 1:
                self._tell(ended)
        self._tell(ended)

    def rest(self) -> None:
        """Whatever is in flight ends."""
        ended: dict[str, tuple[FakeWorker, list[Facts]]] = {}
        for worker in self.workers:
            for request in [each for each in worker.running if not each.hung]:
                self._end(worker, request, ended)
        self._tell(ended)

    def _end(
        self, worker: FakeWorker, request: Running, ended: dict[str, tuple[FakeWorker, list[Facts]]]
    ) -> None:
        made = worker.end(request, self.lab.now_ns)
        if made is not None:
            ended.setdefault(worker.incarnation, (worker, []))[1].append(made)

    def _tell(self, ended: dict[str, tuple[FakeWorker, list[Facts]]]) -> None:
        for worker, batch in ended.values():
            self.controller.facts(worker.held, batch)
            self.settled += batch
            worker.acked = worker.seq
        ended.clear()

    def second(self, seconds: int = 1) -> None:
        """Time passes: beats, and a tick."""
        for _ in range(seconds):
            self.lab.now_ns += S
            for worker in self.workers:
                self.controller.beat(worker.held, worker.picture(self.lab.now_ns))
            self.controller.sweep()
            self.experiments.tick()

    def kill_worker(self, index: int = 0) -> None:
        """A worker dies with what it has in flight, another one takes its place."""
        old = self.workers[index]
        self.lab.number += 1
        new = FakeWorker(old.number, f"{self.name}.{self.lab.number}", Random(self.lab.number))
        self.workers[index] = new
        new.connect(self)

    def restarted(self) -> Host:
        """Another control process, to which the workers connect."""
        self.lab.number += 1
        name = f"{self.name}.{self.lab.number}"
        return Host(self.lab, self.name, self.table, self.workers, MemoryShared(self.lab.place, name))

    def sync(self) -> None:
        """Tell and hear."""
        asyncio.run(self.experiments.sync(self.shared))


class Lab:
    """A clock, a seed, and what hosts share."""

    def __init__(self, *splits: SplitSpec, seed: int = 1) -> None:
        self.now_ns = UNIX
        self.random = Random(seed)
        self.splits = splits or (split(),)
        self.place = Place(self.clock)
        self.number = 0

    def clock(self) -> int:
        return self.now_ns

    def host(self, name: str = "one", table: Table | None = None) -> Host:
        made = table_of(*self.splits) if table is None else table
        workers = [FakeWorker(n, f"{name}.w{n}", Random(self.random.random())) for n in range(2)]
        return Host(self, name, made, workers, MemoryShared(self.place, name))
