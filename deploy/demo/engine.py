"""The simulated engine: continuous batching, one step after the other, no clock of its own.

A step is planned by a policy (scheduler.py), lasts as long as the cost model says (cost.py), and at its
end every decoding sequence has one token more; a prompt whose last piece was in it has its first token.
Whoever drives the engine owns the time: ``simulate`` (virtual.py) jumps from step to step, the server
sleeps until each step's end.  The same seed and the same submissions at the same times give the same
tokens at the same times.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

from deploy.demo.cost import CostModel
from deploy.demo.scheduler import Limits, Plan, Policy, Sequence


@dataclass(frozen=True, slots=True)
class Step:
    """One iteration of the engine, under way."""

    plan: Plan
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Emission:
    """One token of one sequence, there at the end of its step; ``index`` counts from 0."""

    sequence: Sequence
    index: int
    finished: bool


class Engine:
    """Sequences in, tokens out.  Not thread-safe; at most one step is under way."""

    def __init__(
        self, policy: Policy, cost: CostModel, limits: Limits, *, seed: int = 0, jitter: float = 0.02
    ) -> None:
        """``jitter``: standard deviation of a step's duration, as a ratio (kernels and clocks vary)."""
        if limits.token_budget <= limits.sequences:
            raise ValueError(
                f"token_budget {limits.token_budget} must exceed the {limits.sequences} sequences that may"
                " decode at once, or prompts could wait for ever: raise the budget or lower sequences"
            )
        self._policy = policy
        self._cost = cost
        self._limits = limits
        self._jitter = jitter
        self._random = random.Random(seed)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._step: Step | None = None

    @property
    def waiting(self) -> int:
        """Sequences that were not admitted yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences that were admitted and have not ended."""
        return len(self._running)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; it takes part from the next step on.

        Raises ``ValueError`` for one that could never be admitted.
        """
        if sequence.prompt_tokens < 1 or sequence.max_tokens < 1:
            raise ValueError("a sequence needs at least one prompt token and one token to generate")
        if sequence.reserved > self._limits.kv_tokens:
            raise ValueError(
                f"{sequence.reserved} tokens (prompt and output) exceed the KV cache of"
                f" {self._limits.kv_tokens}: ask for less"
            )
        self._waiting.append(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Drop a sequence: it leaves at once, its token of the step under way is thrown away."""
        sequence.cancelled = True
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        if sequence in self._running:
            self._running.remove(sequence)

    def start(self, now_ns: int) -> Step | None:
        """Plan the next step, to be ended by ``finish``; ``None`` if there is nothing to do."""
        if self._step is not None:
            raise RuntimeError("the step under way must be finished before another starts")
        plan = self._policy(self._waiting, self._running, self._limits)
        if not plan.tokens:
            return None
        for _ in range(plan.admitted):
            self._running.append(self._waiting.popleft())
        duration_ns = self._cost.step_ns(
            [sequence.context for sequence in plan.decode],
            [(sequence.prefilled, count) for sequence, count in plan.prefill],
        )
        noise = min(max(self._random.gauss(0, self._jitter), -3 * self._jitter), 3 * self._jitter)
        self._step = Step(plan, now_ns, now_ns + round(duration_ns * (1 + noise)))
        return self._step

    def finish(self) -> list[Emission]:
        """End the step under way: the tokens that it produced, in the order of the batch."""
        if self._step is None:
            raise RuntimeError("no step is under way")
        plan = self._step.plan
        self._step = None
        out: list[Emission] = []
        for sequence in plan.decode:
            self._emit(sequence, out)
        for sequence, count in plan.prefill:
            sequence.prefilled += count
            if not sequence.prefill_left:
                self._emit(sequence, out)
        self._running = [sequence for sequence in self._running if not sequence.finished]
        return out

    @staticmethod
    def _emit(sequence: Sequence, out: list[Emission]) -> None:
        if sequence.cancelled:
            return
        sequence.generated += 1
        out.append(Emission(sequence, sequence.generated - 1, sequence.finished))
