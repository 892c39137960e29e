"""What users ask: a bounded, seeded list of requests, the same for every engine that is compared.

Most prompts are chat turns (log-normal); some carry a document (log-normal too, much longer): the mixture
has the heavy tail of conversation traces such as ShareGPT, where long prompts are a minority that does
most of the prefill work.  Lengths are clipped so that a run ends in time.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lengths:
    """A log-normal number of tokens, clipped."""

    median: float
    sigma: float
    low: int
    high: int

    def draw(self, rng: random.Random) -> int:
        """One length."""
        return min(max(round(rng.lognormvariate(math.log(self.median), self.sigma)), self.low), self.high)


@dataclass(frozen=True, slots=True)
class Mix:
    """How often requests come and how long they are.  ``rate``: requests per second and engine."""

    rate: float = 2.6
    chat: Lengths = Lengths(250, 0.7, 32, 1000)
    document: Lengths = Lengths(1500, 0.35, 800, 4000)
    document_share: float = 0.30
    output: Lengths = Lengths(200, 0.4, 48, 400)


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the workload; ``at_ns`` counts from the workload's start."""

    number: int
    at_ns: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Lane:
    """Requests that one user sends, each ``pause_s`` after the answer to the one before."""

    requests: tuple[Request, ...]
    pause_s: float = 0.0


def lane(seed: int, number: int, prompt: Lengths, output: Lengths, *, count: int, pause_s: float) -> Lane:
    """One lane of ``count`` requests; equal arguments give equal requests (``at_ns`` is 0: they wait)."""
    rng = random.Random(f"{seed}:{number}")
    return Lane(
        tuple(
            Request(number * count + index, 0, prompt.draw(rng), output.draw(rng)) for index in range(count)
        ),
        pause_s,
    )


def draw(seed: int, seconds: float, mix: Mix | None = None) -> tuple[Request, ...]:
    """The requests of ``seconds`` seconds, in order; equal arguments give equal requests.

    Their number and the number of documents among them are fixed by the mix, so that every seed offers the
    same load; given its count, the arrivals of a Poisson process are uniform, which is what is drawn here.
    """
    mix = mix or Mix()
    rng = random.Random(seed)
    count = max(1, round(mix.rate * seconds))
    documents = round(mix.document_share * count)
    lengths = [mix.document] * documents + [mix.chat] * (count - documents)
    rng.shuffle(lengths)
    arrivals_s = sorted(rng.uniform(0, seconds) for _ in range(count))
    return tuple(
        Request(number, round(at_s * 1e9), prompt.draw(rng), mix.output.draw(rng))
        for number, (at_s, prompt) in enumerate(zip(arrivals_s, lengths, strict=True))
    )
