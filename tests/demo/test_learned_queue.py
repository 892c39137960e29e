"""A queue is no second mode: what is learned of an engine that was overrun is still what its prefill takes.

The demo's engines in virtual time, prompts of 64 to 8,192 tokens, as in ``test_learned_deadlines``: bursts
that queue for minutes, a load near what the engine can do, and clients that each wait for their answer.
"""

from __future__ import annotations

import math
import random

import pytest

from deploy.demo import workload
from deploy.demo.machine import build_engine
from deploy.demo.scheduler import Sequence
from deploy.demo.virtual import simulate
from deploy.demo.workload import Request
from scoring.prefill import PrefillLearner
from tests.demo.test_learned_deadlines import LONGEST, SHORTEST, alone_ns

LENGTHS = (100, 400, 1000, 2048, 4000, 8000)
Seen = tuple[int, int, int]  # first token at (ns), prompt tokens, TTFT (ns)
Phases = tuple[tuple[float, int], ...]  # requests per second, for so many seconds


def prompt(rng: random.Random) -> int:
    return round(math.exp(rng.uniform(math.log(SHORTEST), math.log(LONGEST))))


def open_loop(scheduler: str, seed: int, phases: Phases) -> list[Seen]:
    """Poisson arrivals whose rate changes, whatever the engine can do."""
    rng, output = random.Random(seed), workload.Mix().output
    requests: list[Request] = []
    at_s = until_s = 0.0
    for per_s, lasts_s in phases:
        until_s += lasts_s
        at_s += rng.expovariate(per_s)
        while at_s <= until_s:
            requests.append(Request(len(requests), round(at_s * 1e9), prompt(rng), output.draw(rng)))
            at_s += rng.expovariate(per_s)
        at_s = until_s
    traces = simulate(build_engine(scheduler, seed), requests)
    return sorted((t.request.at_ns + t.at_ns[0], t.request.prompt_tokens, t.at_ns[0]) for t in traces)


def closed_loop(scheduler: str, seed: int, clients: int, count: int, alone: int) -> list[Seen]:
    """Each client asks again once it has its short answer; then ``alone`` more requests, one at a time."""
    rng, engine = random.Random(seed), build_engine(scheduler, seed)
    asked: dict[str, tuple[int, int]] = {}
    left: dict[str, int] = {}  # tokens of those that are under way
    seen: list[Seen] = []
    now_ns = 0

    def ask() -> None:
        name, length, tokens = str(len(asked)), prompt(rng), rng.randint(2, 12)
        asked[name], left[name] = (now_ns, length), tokens
        engine.submit(Sequence(name, length, tokens))

    for _ in range(clients):
        ask()
    waiting = set(left)
    while (step := engine.start(now_ns)) is not None:
        now_ns = step.end_ns
        for emission in engine.finish():
            name = emission.sequence.id
            if name in waiting:
                waiting.remove(name)
                sent_ns, length = asked[name]
                seen.append((now_ns, length, now_ns - sent_ns))
            left[name] -= 1
            if not left[name]:
                del left[name]
                if len(asked) < count or (len(asked) < count + alone and not left):
                    ask()
                    waiting.add(str(len(asked) - 1))
    return seen


def fresh(seen: list[Seen]) -> PrefillLearner:
    learner = PrefillLearner()
    for at_ns, tokens, ttft_ns in seen:
        assert learner.add(at_ns, tokens, None, ttft_ns)
    return learner


def holds(scheduler: str, seen: list[Seen], within: float) -> None:
    curve = fresh(seen).curve(seen[-1][0])
    assert curve is not None
    assert not curve.bimodal, curve.fast_share
    found = {tokens: curve.at(tokens) / alone_ns(scheduler, tokens) for tokens in LENGTHS}
    assert max(found.values()) < 1 + within, found
    assert sorted(found.values())[2] > 1 - within, found  # the shortest prompts show too little of an engine


OVERRUN: dict[str, tuple[str, int, Phases]] = {
    "a burst of five minutes": ("chunked", 2, ((0.8, 1800), (4, 300), (0.8, 1500))),
    "twenty minutes": ("chunked", 1, ((0.8, 1800), (3, 1200), (0.8, 600))),
    "near the edge for long": ("prefill-first", 2, ((0.3, 1300), (2.2, 700))),
    "ten minutes of queueing, and it lasts": ("chunked", 1, ((0.5, 600), (3, 600))),
    "a minute": ("chunked", 1, ((0.8, 1800), (8, 60), (0.8, 1500))),
}


@pytest.mark.parametrize("name", OVERRUN)
def test_a_queue_is_not_taken_for_hits(name: str) -> None:
    scheduler, seed, phases = OVERRUN[name]
    holds(scheduler, open_loop(scheduler, seed, phases), within=0.20)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nor_are_clients_that_wait_for_each_other(seed: int) -> None:
    holds("chunked", closed_loop("chunked", seed, clients=4, count=298, alone=12), within=0.20)
