"""Two ways to fill the next step: whole prompts first, or decodes first and prompts in chunks.

Both are pure functions: they look at the queue and say what the next step does; ``engine.Engine`` carries
it out.

- ``prefill_first``: what the original vLLM did (Orca before it batched whole prompts too).  As long as a
  prompt waits and fits, the next step computes whole prompts and nothing else: everything that is
  decoding stands still meanwhile, which its reader sees as a stall.
- ``chunked``: Sarathi-Serve (arXiv 2403.02310, algorithm 3).  Every decoding sequence gets its token in
  every step; what is left of the step's token budget goes to prompts, oldest first, in pieces.

Neither preempts: the KV cache of a sequence is reserved whole when it is admitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside the engine.  Its identity is the object's, not its fields'."""

    id: str
    prompt_tokens: int
    max_tokens: int
    prefilled: int = 0
    generated: int = 0
    cancelled: bool = False

    @property
    def prefill_left(self) -> int:
        """Prompt tokens not computed yet."""
        return self.prompt_tokens - self.prefilled

    @property
    def context(self) -> int:
        """Tokens in its KV cache."""
        return self.prefilled + self.generated

    @property
    def reserved(self) -> int:
        """Tokens of KV cache that are set aside for it."""
        return self.prompt_tokens + self.max_tokens

    @property
    def finished(self) -> bool:
        """Every token that was asked for is out."""
        return self.generated >= self.max_tokens


@dataclass(frozen=True, slots=True)
class Limits:
    """What one step and one machine can hold."""

    token_budget: int  # chunked: tokens in a step, decodes and pieces of prompts together
    prompt_budget: int = 8192  # prefill_first: prompt tokens in a step (one longer prompt may go alone)
    sequences: int = 64  # running at once
    kv_tokens: int = 300_000  # in the KV cache, reserved on admission


@dataclass(frozen=True, slots=True)
class Plan:
    """What the next step does.  ``admitted`` sequences leave the head of the queue, in its order."""

    admitted: int
    decode: tuple[Sequence, ...]
    prefill: tuple[tuple[Sequence, int], ...]  # the sequence, and how many of its prompt's tokens

    @property
    def tokens(self) -> int:
        """Tokens that pass through the model in this step."""
        return len(self.decode) + sum(count for _, count in self.prefill)


#: ``(waiting in order of arrival, running in order of admission, limits) -> Plan``; empty: nothing to do.
Policy = Callable[[Iterable[Sequence], Iterable[Sequence], Limits], Plan]


def prefill_first(waiting: Iterable[Sequence], running: Iterable[Sequence], limits: Limits) -> Plan:
    """Whole prompts as long as one fits, otherwise one token for everything that runs."""
    running = tuple(running)
    room = _Room(running, limits)
    prefill: list[tuple[Sequence, int]] = []
    tokens = 0
    for sequence in waiting:
        fits = not prefill or tokens + sequence.prompt_tokens <= limits.prompt_budget
        if not fits or not room.admit(sequence):
            break
        prefill.append((sequence, sequence.prompt_tokens))
        tokens += sequence.prompt_tokens
    if prefill:
        return Plan(len(prefill), (), tuple(prefill))
    return Plan(0, running, ())


def chunked(waiting: Iterable[Sequence], running: Iterable[Sequence], limits: Limits) -> Plan:
    """One token for everything that decodes, then pieces of prompts, oldest first, up to the budget."""
    running = tuple(running)
    decode = tuple(sequence for sequence in running if not sequence.prefill_left)
    left = limits.token_budget - len(decode)
    prefill: list[tuple[Sequence, int]] = []
    for sequence in running:
        if left > 0 and sequence.prefill_left:
            count = min(left, sequence.prefill_left)
            prefill.append((sequence, count))
            left -= count
    room = _Room(running, limits)
    admitted = 0
    for sequence in waiting:
        if left <= 0 or not room.admit(sequence):
            break
        count = min(left, sequence.prompt_tokens)
        prefill.append((sequence, count))
        left -= count
        admitted += 1
    return Plan(admitted, decode, tuple(prefill))


class _Room:
    """Counts places and KV cache down while a plan admits."""

    def __init__(self, running: tuple[Sequence, ...], limits: Limits) -> None:
        self._places = limits.sequences - len(running)
        self._kv_tokens = limits.kv_tokens - sum(sequence.reserved for sequence in running)

    def admit(self, sequence: Sequence) -> bool:
        """Take the sequence's place and cache, if both are there."""
        if self._places < 1 or sequence.reserved > self._kv_tokens:
            return False
        self._places -= 1
        self._kv_tokens -= sequence.reserved
        return True


POLICIES: dict[str, Policy] = {"prefill-first": prefill_first, "chunked": chunked}
