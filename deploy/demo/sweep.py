"""``legato demo --sweep``: how much load each scheduler carries before its readers notice, in virtual time.

The same seeded requests are played faster and faster (``workload.draw`` with a fixed number of requests: the
same lengths in the same order, Poisson arrivals, only closer together) to the demo's own engines
(``machine.build_engine``, ``virtual.simulate``), and every request is scored by ``scoring``.  A load is kept
where the promised share of requests reaches the target fluidity; looked for is the highest load that is, and
what comes out of the engine there.  That is the capacity at an objective of Metron (arXiv 2407.07000).

The first requests (an engine that fills up) and the last (one that empties) are simulated and not judged.
All schedulers of a seed get equal requests and equal seeds: equal arguments give an equal result, however
many processes work on it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np

from deploy.demo import promise, workload
from deploy.demo.machine import build_engine
from deploy.demo.scheduler import POLICIES
from deploy.demo.virtual import Trace, simulate
from proxy.parent import die_with_parent
from scoring.deadlines import DeadlineCurve
from scoring.fluidity import FluidityScorer
from scoring.quantiles import quantile, rank

#: First the one that is expected to stall, as in ``scenario.py``.
FIRST, SECOND = SCHEDULERS = tuple(POLICIES)


@dataclass(frozen=True, slots=True)
class Promise:
    """What every request is judged by, and how many must pass."""

    ttft: DeadlineCurve = promise.TTFT
    tbt_ns: int = promise.TBT_NS
    target: float = promise.TARGET
    objective: float = promise.OBJECTIVE


@dataclass(frozen=True, slots=True)
class Course:
    """Which loads are tried (requests per second), and with how many requests each.

    With 2,000 judged the objective of 99% allows 20 to fail: enough that one burst of arrivals does not
    decide.  ``loads`` are tried in any case, for the picture; the highest is doubled up to ``ceiling`` where
    even that is kept, and ``floor`` is tried where the lowest is not.
    """

    judged: int = 2000
    before: int = 250  # requests that warm the engine up
    after: int = 150  # requests that keep it busy to the end
    loads: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5)
    floor: float = 0.25
    ceiling: float = 18.0
    resolution: float = 1 / 32

    @property
    def requests(self) -> int:
        """All that are simulated at one load."""
        return self.before + self.judged + self.after


@dataclass(frozen=True, slots=True)
class Point:
    """One scheduler under one load (requests per second)."""

    load: float
    requests: int  # that were judged
    fluid: int  # of these, with the target fluidity or more
    asked_tokens_per_s: float  # output that the judged requests asked for while they arrived
    tokens_per_s: float  # output of the engine meanwhile
    tbt_p99_ns: int  # over all gaps of the judged requests
    ttft_p99_ns: int

    @property
    def share(self) -> float:
        """Share of requests that reached the target."""
        return self.fluid / self.requests

    def kept(self, objective: float) -> bool:
        """At least that share did, counted and not rounded."""
        return self.fluid >= rank(objective, self.requests)


@dataclass(frozen=True, slots=True)
class Bracket:
    """The answer of a search: the highest load that was kept, the lowest above it that was not.

    ``kept`` is ``None`` where no load was, ``broke`` where every one was.
    """

    kept: float | None
    broke: float | None


@dataclass(frozen=True, slots=True)
class Curve:
    """All that was tried with one scheduler and one seed, by ascending load."""

    scheduler: str
    seed: int
    points: tuple[Point, ...]
    bracket: Bracket

    @property
    def best(self) -> Point | None:
        """The highest load that it keeps; ``None`` if there is none."""
        return next((point for point in self.points if point.load == self.bracket.kept), None)


@dataclass(frozen=True, slots=True)
class SeedResult:
    """Both schedulers under the requests of one seed."""

    seed: int
    curves: dict[str, Curve]
    beyond: Point | None  # the first scheduler at the load that the second just keeps


@dataclass(frozen=True, slots=True)
class Sweep:
    """The whole result, ready to be told."""

    promise: Promise
    course: Course
    seeds: tuple[SeedResult, ...]


# ---------------------------------------------------------------- one load


@dataclass(frozen=True, slots=True)
class Job:
    """One simulation; it goes to a worker process."""

    scheduler: str
    seed: int
    load: float
    promise: Promise
    course: Course


def measure(job: Job) -> Point:
    """Simulate the requests of the seed at that load, and judge them."""
    course = job.course
    mix = replace(workload.Mix(), rate=job.load)
    requests = workload.draw(job.seed, course.requests / job.load, mix)
    return judge(simulate(build_engine(job.scheduler, job.seed), requests), job.load, job.promise, course)


def judge(traces: Sequence[Trace], load: float, by: Promise, course: Course) -> Point:
    """Score the traces (in order of arrival) between warm-up and end."""
    judged = traces[course.before : course.before + course.judged]
    from_ns, to_ns = judged[0].request.at_ns, judged[-1].request.at_ns
    gaps = np.sort(np.concatenate([np.diff(trace.at_ns) for trace in judged]))
    return Point(
        load=load,
        requests=len(judged),
        fluid=sum((_fluidity(trace, by) or 0.0) >= by.target for trace in judged),
        asked_tokens_per_s=sum(trace.request.output_tokens for trace in judged) / (to_ns - from_ns) * 1e9,
        tokens_per_s=_tokens_per_s(traces, from_ns, to_ns),
        tbt_p99_ns=int(gaps[rank(0.99, len(gaps)) - 1]),
        ttft_p99_ns=quantile(sorted(trace.at_ns[0] for trace in judged), 0.99),
    )


def _fluidity(trace: Trace, by: Promise) -> float | None:
    scorer = FluidityScorer(by.ttft.at(trace.request.prompt_tokens), by.tbt_ns)
    for at_ns in trace.at_ns:
        scorer.arrive(at_ns)
    return scorer.fluidity


def _tokens_per_s(traces: Iterable[Trace], from_ns: int, to_ns: int) -> float:
    """Tokens of whichever request that came in [from_ns, to_ns), per second."""
    tokens = 0
    for trace in traces:
        at_ns = np.array(trace.at_ns) + trace.request.at_ns
        tokens += int(np.searchsorted(at_ns, to_ns) - np.searchsorted(at_ns, from_ns))
    return tokens / (to_ns - from_ns) * 1e9


# ---------------------------------------------------------------- the highest load that is kept


def search(course: Course) -> Generator[float, bool, Bracket]:
    """Yields the loads to try, is sent whether each was kept, returns the answer.

    No load that was tried at or below the answer failed: where keeping is not monotone (chance, near the
    edge), the first failure counts.
    """
    kept, broke = 0.0, inf
    for load in course.loads:
        fine = yield load
        if broke == inf:
            kept, broke = (load, inf) if fine else (kept, load)
    while broke == inf:
        if kept >= course.ceiling:
            return Bracket(kept, None)
        load = min(2 * kept, course.ceiling)
        kept, broke = (load, inf) if (yield load) else (kept, load)
    if not kept:
        if not (yield course.floor):
            return Bracket(None, course.floor)
        kept = course.floor
    while broke - kept > course.resolution:
        middle = (kept + broke) / 2
        kept, broke = (middle, broke) if (yield middle) else (kept, middle)
    return Bracket(kept, broke)


# ---------------------------------------------------------------- all of them


@dataclass(slots=True)
class _Run:
    """The search of one scheduler and seed, under way."""

    scheduler: str
    seed: int
    course: Course
    search: Generator[float, bool, Bracket] = field(init=False)
    points: list[Point] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.search = search(self.course)

    def curve(self, bracket: Bracket) -> Curve:
        return Curve(
            self.scheduler, self.seed, tuple(sorted(self.points, key=lambda point: point.load)), bracket
        )


#: Called after each simulation: a progress bar moves.
Advance = Callable[[], None]


def sweep(
    seeds: Iterable[int], by: Promise, course: Course, *, processes: int, advance: Advance = lambda: None
) -> Sweep:
    """Search with each scheduler under each seed; ``processes`` = 0 does it all in this one.

    Raises ``BrokenProcessPool`` where a process is killed by somebody else; whatever is raised, the
    processes are ended.
    """
    seeds = tuple(seeds)
    runs = [_Run(scheduler, seed, course) for seed in seeds for scheduler in SCHEDULERS]
    others = set(multiprocessing.active_children())
    executor: Executor = _pool(min(processes, len(runs))) if processes else _Inline()
    try:
        curves = _search_all(executor, runs, by, advance)
        beyond = _beyond(executor, curves, by, course, advance)
    except BaseException:  # Ctrl-C too: nobody waits for simulations that nobody will read
        for child in set(multiprocessing.active_children()) - others:
            child.kill()
        raise
    finally:
        executor.shutdown(cancel_futures=True)
    return Sweep(
        by,
        course,
        tuple(
            SeedResult(seed, {name: curves[name, seed] for name in SCHEDULERS}, beyond.get(seed))
            for seed in seeds
        ),
    )


def simulations(seeds: int, course: Course) -> int:
    """About how many runs a sweep takes (more where loads beyond ``course.loads`` must be tried)."""
    halvings, width = 0, course.loads[-1] - course.loads[-2]
    while width > course.resolution:
        halvings, width = halvings + 1, width / 2
    return seeds * (len(SCHEDULERS) * (len(course.loads) + halvings) + 1)


def usable_processors() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0))


def _search_all(
    executor: Executor, runs: Iterable[_Run], by: Promise, advance: Advance
) -> dict[tuple[str, int], Curve]:
    """Every search has one simulation under way; whichever is done says what it wants next."""
    pending: dict[Future[Point], _Run] = {}
    curves: dict[tuple[str, int], Curve] = {}

    def submit(run: _Run, load: float) -> None:
        pending[executor.submit(measure, Job(run.scheduler, run.seed, load, by, run.course))] = run

    for run in runs:
        submit(run, next(run.search))
    while pending:
        done, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            run = pending.pop(future)
            point = future.result()
            run.points.append(point)
            advance()
            try:
                submit(run, run.search.send(point.kept(by.objective)))
            except StopIteration as end:
                curves[run.scheduler, run.seed] = run.curve(end.value)
    return curves


def _beyond(
    executor: Executor,
    curves: dict[tuple[str, int], Curve],
    by: Promise,
    course: Course,
    advance: Advance,
) -> dict[int, Point]:
    """Each seed's first scheduler at the load that its second one just keeps, where there is one."""
    bests = {seed: curve.best for (name, seed), curve in curves.items() if name == SECOND}
    jobs = {seed: Job(FIRST, seed, best.load, by, course) for seed, best in bests.items() if best}
    futures = {seed: executor.submit(measure, job) for seed, job in jobs.items()}
    points = {}
    for seed, future in futures.items():
        points[seed] = future.result()
        advance()
    return points


class _Inline(Executor):
    """Does each job when it is submitted."""

    def submit(self, function, /, *arguments, **named):  # type: ignore[no-untyped-def]
        future: Future[object] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


def _pool(processes: int) -> ProcessPoolExecutor:
    # Spawned, not forked: the progress bar has a thread.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    """Ctrl-C is for the command, which then stops the pool; nobody is left if the command is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)
