"""Plays a workload against every arm at once, through one URL: the same requests at the same moments.

What comes back is only counted here; whether it came in time is for Legato to say.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from deploy.demo import client
from deploy.demo.openai_shapes import BYTES_PER_TOKEN, WORDS
from deploy.demo.workload import Lane, Request


@dataclass(slots=True)
class Progress:
    """How far one arm's load has come."""

    total: int | None = None  # where it is known beforehand
    sent: int = 0
    done: int = 0
    tokens: int = 0  # as the server's usage says, over complete answers
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def in_flight(self) -> int:
        """Sent and not ended."""
        return self.sent - self.done


def prompt_text(request: Request, seed: int) -> str:
    """Words of exactly the request's size, different for every request (no prefix is shared)."""
    rng = random.Random(f"{seed}:{request.number}")
    size = request.prompt_tokens * BYTES_PER_TOKEN
    words: list[str] = []
    length = 0
    while length < size:
        words.append(rng.choice(WORDS))
        length += len(words[-1]) + 1
    return " ".join(words)[:size].ljust(size, ".")


def chat_body(request: Request, model: str, seed: int) -> dict[str, object]:
    """The body of one chat request."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt_text(request, seed)}],
        "max_tokens": request.output_tokens,
        "ignore_eos": True,  # vLLM's and llama.cpp's: outputs are as long as they were drawn
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def send(url: str, request: Request, model: str, seed: int, state: Progress) -> None:
    """Send one request and count what came of it."""
    state.sent += 1
    reply = await client.post(f"{url}/v1/chat/completions", chat_body(request, model, seed))
    state.done += 1
    if reply.ok:
        state.tokens += reply.tokens or 0
    else:
        state.failures[f"status {reply.status}, {reply.end}"] += 1


async def converse(
    url: str, model: str, lanes: Sequence[Lane], seconds: float, *, seed: int, state: Progress
) -> None:
    """Send each lane's requests one after the other, each when the one before has ended, for ``seconds``.

    A slow server gets fewer requests instead of a queue.  Cancelling closes every connection.
    """
    loop = asyncio.get_running_loop()
    stop = loop.time() + seconds

    async def along(lane: Lane) -> None:
        for request in lane.requests:
            if loop.time() + lane.pause_s >= stop:
                return
            await asyncio.sleep(lane.pause_s)
            await send(url, request, model, seed, state)

    async with asyncio.TaskGroup() as group:
        for lane in lanes:
            group.create_task(along(lane))


async def play(
    url: str, arms: dict[str, str], requests: Sequence[Request], *, seed: int, progress: dict[str, Progress]
) -> None:
    """Send ``requests`` to every arm.

    ``arms``: model name -> arm; the proxy's routes choose by model.  ``progress`` (by arm) is filled as the
    load goes on.  Ends when every answer has ended; cancelling closes every connection.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def one(request: Request, model: str, state: Progress) -> None:
        await asyncio.sleep(max(0.0, start + request.at_ns / 1e9 - loop.time()))
        await send(url, request, model, seed, state)

    async with asyncio.TaskGroup() as group:
        for model, arm in arms.items():
            state = progress[arm]
            for request in requests:
                group.create_task(one(request, model, state))
