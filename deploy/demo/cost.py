"""How long one step of the simulated engine takes: a roofline over weights, KV cache and arithmetic.

The defaults describe Yi-34B in bfloat16 on two A100-80GB with tensor parallelism, the middle setting of
Sarathi-Serve's evaluation (arXiv 2403.02310) and the model of Metron's first figure (arXiv 2407.07000).
Architecture: the model's published configuration (60 layers, hidden size 7168, 8 KV heads of 128).
Hardware: NVIDIA's A100 datasheet (312 dense bfloat16 TFLOP/s, 2.039 TB/s per GPU).  The two efficiencies
and the fixed overhead are assumptions of ordinary size, named below; the README discusses them.

As in Sarathi-Serve (section 3) a linear operator takes ``max(time to compute, time to fetch)``: few tokens
in a step leave it bound by memory (a decode step costs the same for 1 and for 30 sequences), many leave it
bound by arithmetic (a prompt costs in proportion to its length).  Attention is added to that: it is
quadratic over a whole prompt, and every decoding sequence has its KV cache read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CostModel:
    """One model on one machine; times come out in integer nanoseconds."""

    parameters: float = 34.4e9
    layers: int = 60
    hidden: int = 7168
    bytes_per_weight: int = 2  # bfloat16
    kv_bytes_per_token: int = 2 * 60 * 8 * 128 * 2  # key and value, layers, KV heads, head size, bfloat16
    gpus: int = 2
    memory_bytes_per_gpu: float = 80e9
    flops_per_gpu: float = 312e12
    bandwidth_per_gpu: float = 2.039e12
    flops_efficiency: float = 0.60  # of the peak, for long prompts (assumed)
    bandwidth_efficiency: float = 0.75  # of the peak, while weights stream in (assumed)
    overhead_ns: int = 5_000_000  # per step: scheduling, kernel launches, two all-reduces a layer (assumed)

    @property
    def flops(self) -> float:
        """Arithmetic that the machine does per second, in FLOP/s."""
        return self.gpus * self.flops_per_gpu * self.flops_efficiency

    @property
    def bandwidth(self) -> float:
        """Bytes that the machine reads per second."""
        return self.gpus * self.bandwidth_per_gpu * self.bandwidth_efficiency

    @property
    def weight_bytes(self) -> float:
        """What every step reads, whatever its batch."""
        return self.parameters * self.bytes_per_weight

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens whose keys and values fit beside the weights in nine tenths of the memory."""
        room = 0.9 * self.gpus * self.memory_bytes_per_gpu - self.weight_bytes
        return int(room / self.kv_bytes_per_token)

    def step_ns(self, decode_contexts: Iterable[int], chunks: Iterable[tuple[int, int]]) -> int:
        """Duration of one step.

        ``decode_contexts``: for each decoding sequence the tokens in its KV cache.  ``chunks``: for each
        piece of a prompt ``(tokens prefilled before it, tokens in it)``.
        """
        tokens = 0
        cached = 0
        attended = 0.0  # pairs of (query token of a prompt, token that it attends to)
        for context in decode_contexts:
            tokens += 1
            cached += context
        for start, length in chunks:
            tokens += length
            cached += start
            attended += length * start + length * length / 2
        if not tokens:
            raise ValueError("a step needs at least one token")
        compute_s = 2 * self.parameters * tokens / self.flops
        fetch_s = (self.weight_bytes + cached * self.kv_bytes_per_token) / self.bandwidth
        attention_s = 4 * self.hidden * self.layers * attended / self.flops
        return self.overhead_ns + round((max(compute_s, fetch_s) + attention_s) * 1e9)

    def prefill_ns(self, prompt_tokens: int) -> int:
        """A whole prompt in one step on an idle machine."""
        return self.step_ns((), ((0, prompt_tokens),))

    def token_budget(self, tbt_ns: int, *, context: int = 8192, decodes: int = 24, align: int = 64) -> int:
        """The largest token budget whose fullest step still meets a TBT deadline of ``tbt_ns``.

        Sarathi-Serve finds it by profiling once per deployment (its section 4.3); here the cost model is
        asked.  "Fullest": ``decodes`` sequences of ``context`` / 4 tokens and the last chunk of a prompt of
        ``context`` tokens.  A multiple of ``align`` (tiles of the matrix kernels), at least one of them.
        """
        best = align
        for budget in range(align, context + 1, align):
            chunk = budget - decodes
            if chunk > 0 and self.step_ns([context // 4] * decodes, [(context - chunk, chunk)]) > tbt_ns:
                break
            best = budget
        return best
