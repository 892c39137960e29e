"""The engine in virtual time: a whole run in milliseconds, exact and repeatable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deploy.demo.engine import Engine
from deploy.demo.scheduler import Sequence
from deploy.demo.workload import Request


@dataclass(frozen=True, slots=True)
class Trace:
    """When each token of one request arrived; ``at_ns`` counts from the request's own arrival."""

    request: Request
    at_ns: tuple[int, ...]


def simulate(engine: Engine, requests: Iterable[Request]) -> list[Trace]:
    """Run every request to its end; traces come in the order of the requests."""
    requests = sorted(requests, key=lambda request: request.at_ns)
    arrivals: dict[str, list[int]] = {}
    pending = list(reversed(requests))
    now_ns = 0
    while True:
        while pending and pending[-1].at_ns <= now_ns:
            request = pending.pop()
            arrivals[str(request.number)] = []
            engine.submit(Sequence(str(request.number), request.prompt_tokens, request.output_tokens))
        step = engine.start(now_ns)
        if step is None:
            if not pending:
                break
            now_ns = pending[-1].at_ns
            continue
        now_ns = step.end_ns
        for emission in engine.finish():
            arrivals[emission.sequence.id].append(now_ns)
    return [
        Trace(request, tuple(at - request.at_ns for at in arrivals[str(request.number)]))
        for request in requests
    ]
