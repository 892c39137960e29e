"""Facts as a worker would send them, built in milliseconds: ``streamed(at(100), at(120), end_ms=130)``."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import count
from typing import Any

from proxy.link import META_TOKENS_BITS, Facts, Match, SloSpec, Stream, Table

MS = 1_000_000
S = 1_000 * MS
#: The worker's monotonic clock at t = 0 of every request, and the wall clock at its head's arrival.
T0 = 5_000 * S
UNIX = 1_795_144_447_412 * MS  # 2026-11-20T03:14:07.412Z

Event = tuple[int, int, int]  # at_ms, tokens, content bytes

_numbers = count(1)


def at(at_ms: int, tokens: int = 1, size: int = 4) -> Event:
    """An event with output."""
    return at_ms, tokens, size


def packed(events: Sequence[Event]) -> bytes:
    """One choice as the link carries it."""
    out = array("q")
    for at_ms, tokens, size in events:
        out.extend((at_ms * MS, tokens | size << META_TOKENS_BITS))
    return out.tobytes()


def stream(*events: Event, choices: Sequence[Sequence[Event]] = (), **fields: Any) -> Stream:
    """A chat stream; ``choices`` instead of ``events`` for several."""
    lanes = [list(lane) for lane in choices] or [list(events)]
    every = [event for lane in lanes for event in lane]
    given: dict[str, Any] = {
        "dialect": "openai.chat",
        "choices": tuple(packed(lane) for lane in lanes),
        "events": len(every),
        "tokens": sum(tokens for _, tokens, _ in every),
        "finish_reason": "stop",
        "finished": True,
        "first_event_ns": T0 + min((at_ms for at_ms, _, _ in every), default=0) * MS if every else None,
    }
    return Stream(**(given | fields))


def facts(end_ms: int = 100, **fields: Any) -> Facts:
    """A request that was not streamed and was answered 200 after ``end_ms``."""
    seq = fields.pop("seq", None) or next(_numbers)
    given: dict[str, Any] = {
        "seq": seq,
        "id": f"r{seq}",
        "received_unix_ns": UNIX,
        "received_ns": T0 - MS,
        "sent_ns": T0,
        "end_ns": T0 + end_ms * MS,
        "end": "complete",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "streamed": False,
        "stream_asked": False,
        "model": "llama",
        "backend": "default",
        "slo": "default",
        "ttft_target_ns": 100 * MS,
        "tbt_target_ns": 50 * MS,
        "prompt_tokens_estimated": 12,
    }
    if fields.get("slo") == "batch":
        given |= {"target": BATCH.target, "e2e_ns": BATCH.e2e_ns}
    return Facts(**(given | fields))


def streamed(*events: Event, end_ms: int = 1_000, of: dict[str, Any] | None = None, **fields: Any) -> Facts:
    """A streamed request with these events; ``of``: fields of its ``Stream``."""
    held = stream(*events, **(of or {}))
    return facts(end_ms, **({"streamed": True, "stream_asked": True, "stream": held} | fields))


DEFAULT = SloSpec("default", Match(), ((0, 100 * MS),), 50 * MS)
BATCH = SloSpec("batch", Match(), ((0, 100 * MS),), 50 * MS, target=0.0, e2e_ns=2 * S)


def table(*slos: SloSpec, version: int = 1) -> Table:
    """A table without routes; ``default`` is its last SLO."""
    return Table(version=version, backends=(), routes=(), slos=(*slos, DEFAULT))
