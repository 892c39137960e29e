"""Who misses the first deadline: under a constant whoever asks at length, under a learned curve who queued.

Prompts of 64 to 8,192 tokens go to the demo's engines in virtual time.  A first run is learned from, frozen
into a file and read by a configuration; a second run, with other requests, is judged by what the worker's
own table promises.  The engine knows the truth: when each prompt's prefill began, and what it takes alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from deploy.demo import workload
from deploy.demo.cost import CostModel
from deploy.demo.engine import Emission, Engine, Step
from deploy.demo.machine import build_engine
from deploy.demo.promise import TBT_NS
from deploy.demo.scheduler import POLICIES, Limits, Sequence
from deploy.demo.virtual import simulate
from deploy.demo.workload import Request
from proxy.config import Boot, load
from proxy.curves import FrozenCurve, FrozenCurves, read_curves, write_curves
from proxy.relay.call import Call
from proxy.relay.route import RouteTable
from proxy.tables import build_table
from scoring.fluidity import FluidityScorer
from scoring.prefill import PrefillLearner
from tests.helpers.curves import FROZEN_AT

MS = 1_000_000
SHORTEST, LONGEST = 64, 8192
MEDIAN = round(math.sqrt(SHORTEST * LONGEST))  # of a log-uniform length
SLACK_NS = 300 * MS
#: What the median prompt takes alone, and the same slack as beside the curve: a fair constant.
CONSTANT_NS = CostModel().prefill_ns(MEDIAN) // MS * MS + SLACK_NS
BANDS = ((64, 255), (256, 1023), (1024, 4095), (4096, 8192))
LONG = BANDS[-1]
HARDLY_NS = 50 * MS  # the decode step that was under way
STEP_VARIES = 3 * 0.02  # the engine's jitter, clipped at 3 standard deviations
CURVE_ERROR = 0.10  # of the prefill alone
RUNS = [(scheduler, seed) for scheduler in POLICIES for seed in (1, 2, 3)]

# ---------------------------------------------------------------- two runs, and the truth about them


class WatchedEngine(Engine):
    """Another engine; when the prefill of each of its sequences began, and which had one to themselves."""

    def __init__(self, inner: Engine) -> None:
        self._inner = inner
        self.began_ns: dict[str, int] = {}
        self.shared: set[str] = set()  # a step of its prefill was another prompt's too

    def submit(self, sequence: Sequence) -> None:
        self._inner.submit(sequence)

    def start(self, now_ns: int) -> Step | None:
        step = self._inner.start(now_ns)
        prompts = [sequence.id for sequence, _ in step.plan.prefill] if step else []
        for prompt in prompts:
            self.began_ns.setdefault(prompt, now_ns)
        if len(prompts) > 1:
            self.shared.update(prompts)
        return step

    def finish(self) -> list[Emission]:
        return self._inner.finish()


@dataclass(frozen=True)
class Lived:
    """What one request went through, all but ``at_ns`` from its own arrival."""

    at_ns: int
    prompt_tokens: int
    ttft_ns: int
    waited_ns: int  # before its prefill began
    shared: bool  # its prefill went on together with another one's
    alone_ns: int  # TTFT on an idle engine

    @property
    def queued_ns(self) -> int:
        """Waited before its prefill began, or for others that were in the same steps."""
        return self.ttft_ns - self.alone_ns

    @property
    def hardly_queued(self) -> bool:
        """Its prefill began at once and was the only one."""
        return self.waited_ns < HARDLY_NS and not self.shared

    @property
    def about_ns(self) -> float:
        """How far a learned curve may be off at this prompt."""
        return max(CURVE_ERROR * self.alone_ns, 20 * MS)


def requests(seed: int, count: int, per_s: float = 0.8) -> list[Request]:
    """Poisson arrivals, log-uniform prompts, the demo's answers."""
    rng, output = random.Random(seed), workload.Mix().output
    at_s = sorted(rng.uniform(0, count / per_s) for _ in range(count))
    low, high = math.log(SHORTEST), math.log(LONGEST)
    return [
        Request(number, round(s * 1e9), round(math.exp(rng.uniform(low, high))), output.draw(rng))
        for number, s in enumerate(at_s)
    ]


@cache
def alone_ns(scheduler: str, prompt_tokens: int) -> int:
    """The TTFT on an idle engine whose steps do not vary."""
    cost = CostModel()
    limits = Limits(token_budget=cost.token_budget(TBT_NS * 9 // 10), kv_tokens=cost.kv_capacity_tokens)
    engine = Engine(POLICIES[scheduler], cost, limits, jitter=0.0)
    return simulate(engine, [Request(0, 0, prompt_tokens, 1)])[0].at_ns[0]


def live(scheduler: str, seed: int, count: int) -> list[Lived]:
    engine, lived = WatchedEngine(build_engine(scheduler, seed)), []
    for trace in simulate(engine, requests(seed, count)):
        name, at_ns, prompt = str(trace.request.number), trace.request.at_ns, trace.request.prompt_tokens
        waited_ns = engine.began_ns[name] - at_ns
        alone = alone_ns(scheduler, prompt)
        lived.append(Lived(at_ns, prompt, trace.at_ns[0], waited_ns, name in engine.shared, alone))
    return lived


# ---------------------------------------------------------------- what is promised to them


def freeze(runs: dict[str, list[Lived]], file: Path) -> None:
    """Learn a curve of each scheduler from what a proxy sees of its requests, and write them as a file."""
    frozen = []
    for scheduler, lived in runs.items():
        learner = PrefillLearner(window_ns=2 * 3600 * 10**9)
        for each in lived:
            assert learner.add(each.at_ns + each.ttft_ns, each.prompt_tokens, None, each.ttft_ns)
        curve = learner.curve(max(each.at_ns + each.ttft_ns for each in lived))
        assert curve is not None
        assert not curve.bimodal
        frozen.append(FrozenCurve(scheduler, "sim", curve))
    write_curves(str(file), FrozenCurves(FROZEN_AT, tuple(frozen)))
    assert read_curves(str(file)).curves == tuple(frozen)


def routes(curves: Path, folder: Path) -> RouteTable:
    """The worker's table: ``/constant/...`` and ``/learned/...`` are the two promises, by backend."""
    lines = ["backends:"]
    lines += [f"  {name}: {{url: 'http://{name}:1'}}" for name in POLICIES]
    lines += ["routes:"]
    lines += [f"- {{match: {{path: '*/{name}'}}, backend: {name}}}" for name in POLICIES]
    lines += ["slos:"]
    learned = f"{{learned: {curves}, slack: {SLACK_NS // MS}ms, fallback: 1ms}}"
    for name, ttft in (("constant", f"{CONSTANT_NS // MS}ms"), ("learned", learned)):
        lines += [f"- {{name: {name}, match: {{path: '/{name}/*'}}, ttft: {ttft}, tbt: {TBT_NS // MS}ms}}"]
    file = folder / "legato.yaml"
    file.write_text("\n".join(lines) + "\n")
    return RouteTable(build_table(load(Boot(file=str(file), flags={}), {}), 1))


class Judged:
    """One run under both promises."""

    def __init__(self, table: RouteTable, scheduler: str, lived: list[Lived]) -> None:
        self.lived = lived
        self._table, self._scheduler = table, scheduler

    def misses(self, promise: str, lived: Lived) -> bool:
        call = Call("POST", f"/{promise}/{self._scheduler}", "sim", tokens=lived.prompt_tokens)
        arm = self._table.choose(call, [])
        assert arm is not None
        assert (arm.slo.name, arm.prompt_tokens) == (promise, lived.prompt_tokens)
        return FluidityScorer(arm.ttft_ns, arm.tbt_ns).arrive(lived.ttft_ns) > 0

    def share(self, promise: str, of: Callable[[Lived], bool]) -> float:
        """The share of misses among some of the requests; there must be enough of them to say."""
        some = [each for each in self.lived if of(each)]
        assert len(some) >= 10, "too few to tell anything"
        return sum(self.misses(promise, each) for each in some) / len(some)

    def by_band(self, promise: str) -> list[float]:
        return [self.share(promise, within(band)) for band in BANDS]


def within(band: tuple[int, int]) -> Callable[[Lived], bool]:
    return lambda lived: band[0] <= lived.prompt_tokens <= band[1]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Judged]:
    """By scheduler and seed; each seed's curves are learned from a run of other requests."""
    found = {}
    for seed in sorted({seed for _, seed in RUNS}):
        folder = tmp_path_factory.mktemp("learned")
        freeze({name: live(name, 100 + seed, 800) for name in POLICIES}, folder / "curves.yaml")
        table = routes(folder / "curves.yaml", folder)
        for name in POLICIES:
            found[name, seed] = Judged(table, name, live(name, seed, 500))
    return found


# ---------------------------------------------------------------- what it shows


@pytest.mark.parametrize("run", RUNS)
def test_the_truth_is_the_engines_own(judged: dict[tuple[str, int], Judged], run: tuple[str, int]) -> None:
    """A prompt queues until its prefill begins; that takes what it takes alone, or longer if it is shared."""
    for each in judged[run].lived:
        varies_ns = STEP_VARIES * each.alone_ns + 1
        assert each.waited_ns >= 0
        assert each.queued_ns >= each.waited_ns - varies_ns
        if run[0] == "prefill-first" and not each.shared:
            assert each.queued_ns <= each.waited_ns + varies_ns


@pytest.mark.parametrize("run", RUNS)
def test_under_a_constant_all_long_prompts_miss(
    judged: dict[tuple[str, int], Judged], run: tuple[str, int]
) -> None:
    seen = judged[run]
    assert seen.share("constant", within(LONG)) == 1.0
    assert seen.share("constant", lambda each: within(LONG)(each) and each.hardly_queued) == 1.0
    assert seen.share("constant", lambda each: within(BANDS[0])(each) and each.hardly_queued) == 0.0


@pytest.mark.parametrize("run", RUNS)
def test_under_the_frozen_curve_only_those_miss_that_queued(
    judged: dict[tuple[str, int], Judged], run: tuple[str, int]
) -> None:
    seen = judged[run]
    assert seen.share("learned", lambda each: within(LONG)(each) and each.hardly_queued) == 0.0
    assert seen.share("learned", lambda each: each.hardly_queued) == 0.0
    assert seen.share("learned", lambda each: each.queued_ns <= SLACK_NS - each.about_ns) == 0.0
    assert seen.share("learned", lambda each: each.queued_ns > SLACK_NS + each.about_ns) == 1.0
    wrong = sum(seen.misses("learned", each) != (each.queued_ns > SLACK_NS) for each in seen.lived)
    assert wrong <= len(seen.lived) // 100, "the promise and the truth agree but for those close to the edge"


@pytest.mark.parametrize("run", RUNS)
def test_no_constant_tells_the_two_apart(judged: dict[tuple[str, int], Judged], run: tuple[str, int]) -> None:
    """Not for want of generosity: at the constant by which as many miss, it is others that do."""
    seen = judged[run]
    late = sum(seen.misses("learned", each) for each in seen.lived)
    by_ttft = sorted(seen.lived, key=lambda each: each.ttft_ns)
    blamed, spared = by_ttft[-late:], by_ttft[:-late]
    assert any(each.hardly_queued for each in blamed)
    assert any(each.queued_ns > SLACK_NS + each.about_ns for each in spared)
