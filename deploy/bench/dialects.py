"""What measuring one event costs, by dialect: the tap alone, fed with the pieces that servers send.

No socket, no proxy: the CPU time of ``tap.feed`` over streams of one token per event, in a warm process, all
dialects in turn within each round.  Compared with chat's, since absolute times are this machine's.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.table import Table

from proxy.relay.tap import Tap, open_tap

_TOKENS: Final = 500  # of a stream: cumulative dialects repeat the text of all of them
_SECOND_NS: Final = 1_000_000_000
_WORDS: Final = (" the", " of", " fluid", ",", " deadline", " token", " in", " a")
_SSE: Final = b"text/event-stream"


class Spoken(NamedTuple):
    """A dialect as it is spoken: where, and its pieces before the tokens and for each."""

    name: str
    path: str
    content_type: bytes
    opening: Sequence[bytes]
    piece: Callable[[int], bytes]


def _sse(value: Any, name: str | None = None) -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _word(i: int) -> str:
    return _WORDS[i % len(_WORDS)]


def _chat(i: int) -> bytes:
    choice = {"index": 0, "delta": {"content": _word(i)}, "logprobs": None, "finish_reason": None}
    return _sse(
        {"id": "chatcmpl-6f1c2a", "object": "chat.completion.chunk", "created": 1_764_000_000,
         "model": "llama-70b", "choices": [choice]}
    )  # fmt: skip


def _completion(i: int) -> bytes:
    choice = {"index": 0, "text": _word(i), "logprobs": None, "finish_reason": None}
    return _sse(
        {"id": "cmpl-6f1c2a", "object": "text_completion", "created": 1_764_000_000, "model": "llama-70b",
         "choices": [choice]}
    )  # fmt: skip


def _response(i: int) -> bytes:
    kind = "response.output_text.delta"
    return _sse(
        {"type": kind, "sequence_number": i + 4, "item_id": "msg_6f1c2a", "output_index": 0,
         "content_index": 0, "delta": _word(i), "logprobs": []},
        kind,
    )  # fmt: skip


def _message(i: int) -> bytes:
    delta = {"type": "text_delta", "text": _word(i)}
    return _sse({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta")


def _sglang(i: int) -> bytes:
    meta = {"id": "6f1c2a", "finish_reason": None, "prompt_tokens": 31, "completion_tokens": i + 1,
            "cached_tokens": 0}  # fmt: skip
    text, ids = "".join(map(_word, range(i + 1))), [1000 + n for n in range(i + 1)]
    return _sse({"text": text, "output_ids": ids, "meta_info": meta})


def _llamacpp(i: int) -> bytes:
    return _sse(
        {"index": 0, "content": _word(i), "tokens": [], "stop": False, "id_slot": -1,
         "tokens_predicted": i + 1, "tokens_evaluated": 31}
    )  # fmt: skip


def _ollama_chat(i: int) -> bytes:
    message = {"role": "assistant", "content": _word(i)}
    return _line({"model": "llama3", "created_at": "2026-11-22T09:00:00.123456Z", "message": message,
                  "done": False})  # fmt: skip


def _ollama(i: int) -> bytes:
    return _line({"model": "llama3", "created_at": "2026-11-22T09:00:00.123456Z", "response": _word(i),
                  "done": False})  # fmt: skip


def _tgi(i: int) -> bytes:
    token = {"id": 1000 + i, "text": _word(i), "logprob": -0.25, "special": False}
    return _sse({"index": i + 1, "token": token, "generated_text": None, "details": None})


def _triton(i: int) -> bytes:
    return _sse({"model_name": "ensemble", "model_version": "1", "sequence_end": False, "sequence_id": 0,
                 "text_output": _word(i)})  # fmt: skip


def _gemini(i: int) -> bytes:
    content = {"parts": [{"text": _word(i)}], "role": "model"}
    usage = {"promptTokenCount": 31, "candidatesTokenCount": i + 1, "totalTokenCount": 32 + i}
    return _sse({"candidates": [{"content": content, "index": 0}], "usageMetadata": usage,
                 "modelVersion": "gemini-2.5-flash", "responseId": "6f1c2a"})  # fmt: skip


def _other(i: int) -> bytes:
    return _sse({"piece": _word(i), "n": i})


_CREATED: Final = {"type": "response.created", "response": {"id": "resp_6f1c2a", "status": "in_progress"}}
_STARTED: Final = {"type": "message_start", "message": {"id": "msg_6f1c2a", "usage": {"input_tokens": 31}}}

SPOKEN: Final = (
    Spoken("openai.chat", "/v1/chat/completions", _SSE, (), _chat),
    Spoken("openai.completions", "/v1/completions", _SSE, (), _completion),
    Spoken("openai.responses", "/v1/responses", _SSE, (_sse(_CREATED, "response.created"),), _response),
    Spoken("anthropic.messages", "/v1/messages", _SSE, (_sse(_STARTED, "message_start"),), _message),
    Spoken("sglang.generate", "/generate", _SSE, (), _sglang),
    Spoken("llamacpp.completion", "/completion", _SSE, (), _llamacpp),
    Spoken("ollama.generate", "/api/generate", b"application/x-ndjson", (), _ollama),
    Spoken("ollama.chat", "/api/chat", b"application/x-ndjson", (), _ollama_chat),
    Spoken("tgi.generate", "/generate_stream", _SSE, (), _tgi),
    Spoken("triton.generate", "/v2/models/ensemble/generate_stream", _SSE, (), _triton),
    Spoken("gemini.generate", "/v1beta/models/gemini:streamGenerateContent", _SSE, (), _gemini),
    Spoken("generic", "/anything", _SSE, (), _other),
)


def opened(spoken: Spoken) -> Tap:
    """A tap for a stream of that dialect, none of whose tokens will be late."""
    return open_tap(
        path=spoken.path,
        content_type=spoken.content_type,
        content_encoding=b"",
        ttft_ns=_SECOND_NS,
        tbt_ns=_SECOND_NS,
        t0_ns=0,
        arrivals_cap=20_000,
        choices=1,
    )


def cost_ns(spoken: Spoken) -> float:
    """CPU time per event of one stream."""
    pieces = [*spoken.opening, *map(spoken.piece, range(_TOKENS))]
    tap = opened(spoken)
    feed = tap.feed
    begun = time.process_time_ns()
    for at_ns, data in enumerate(pieces):
        feed(data, at_ns)
    spent = time.process_time_ns() - begun
    if tap.tokens != _TOKENS or tap.faults:
        raise RuntimeError(f"{spoken.name}: {tap.tokens} of {_TOKENS} tokens counted, {tap.faults} faults")
    return spent / _TOKENS


def measure(rounds: int = 25) -> dict[str, tuple[float, float]]:
    """Per dialect: ns per event (the median), and the median of the ratios to chat within a round."""
    costs: dict[str, list[float]] = {spoken.name: [] for spoken in SPOKEN}
    gc.disable()
    try:
        for _ in range(rounds + 2):
            for spoken in SPOKEN:
                costs[spoken.name].append(cost_ns(spoken))
    finally:
        gc.enable()
    chat = costs[SPOKEN[0].name][2:]  # the first two rounds warm up
    out = {}
    for name, all_of_them in costs.items():
        kept = all_of_them[2:]
        ratios = [cost / base for cost, base in zip(kept, chat, strict=True)]
        out[name] = (statistics.median(kept), statistics.median(ratios))
    return out


def show(console: Console, measured: dict[str, tuple[float, float]]) -> None:
    """Print the table."""
    table = Table(title="Measuring one event, by dialect (the tap alone)", title_justify="left")
    table.add_column("dialect")
    table.add_column("us per event", justify="right")
    table.add_column("x chat", justify="right", style="bold")
    for name, (ns, ratio) in measured.items():
        table.add_row(name, f"{ns / 1000:.2f}", f"{ratio:.2f}")
    console.print(table)


if __name__ == "__main__":
    show(Console(), measure())
