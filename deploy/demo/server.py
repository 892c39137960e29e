"""The simulated engine behind an OpenAI-compatible server, over real HTTP and in real time.

    python -m deploy.demo.server --scheduler chunked --model sim-chunked --port 8000

It says in ``/v1/models`` and in the ``server`` header of every response that it is a simulator.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
from collections.abc import AsyncIterator
from collections.abc import Sequence as AnySequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.responses import StreamingResponse

from deploy.demo import openai_shapes as shapes
from deploy.demo.engine import Emission, Engine
from deploy.demo.machine import build_engine
from deploy.demo.scheduler import POLICIES, Sequence
from proxy.clock import monotonic_ns, unix_ns
from proxy.parent import die_with_parent

MAX_MODEL_LEN: Final = 16_384
#: A driver that fell behind its own schedule by more than this starts afresh instead of hurrying.
RESYNC_NS: Final = 250_000_000


class RealTime:
    """Drives an engine by the clock: sleeps until each step's end, hands its tokens to who waits for them.

    Steps follow each other on the engine's own schedule (a step starts where the last one ended), so the
    lateness of timers, about a millisecond, does not add up.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: dict[Sequence, asyncio.Queue[Emission]] = {}
        self._work = asyncio.Event()

    @property
    def engine(self) -> Engine:
        """What is driven."""
        return self._engine

    async def run(self) -> None:
        """Drive until cancelled."""
        free_ns = monotonic_ns()
        while True:
            now_ns = monotonic_ns()
            step = self._engine.start(free_ns if now_ns - free_ns < RESYNC_NS else now_ns)
            if step is None:
                self._work.clear()
                await self._work.wait()
                free_ns = monotonic_ns()
                continue
            await asyncio.sleep(max(0, step.end_ns - monotonic_ns()) / 1e9)
            free_ns = step.end_ns
            for emission in self._engine.finish():
                if (queue := self._waiting.get(emission.sequence)) is not None:
                    queue.put_nowait(emission)

    async def generate(self, sequence: Sequence) -> AsyncIterator[Emission]:
        """The tokens of one sequence as they come; leaving early cancels it in the engine."""
        self._engine.submit(sequence)
        queue = self._waiting[sequence] = asyncio.Queue()
        self._work.set()
        try:
            while True:
                emission = await queue.get()
                yield emission
                if emission.finished:
                    return
        finally:
            del self._waiting[sequence]
            if not sequence.finished:
                self._engine.cancel(sequence)


def build_app(scheduler: str, model: str, engine: Engine) -> FastAPI:
    """The HTTP side."""
    driver = RealTime(engine)
    numbers = itertools.count(1)
    started_s = unix_ns() // 1_000_000_000

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.ensure_future(driver.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    app = FastAPI(title="Legato's demo simulator", lifespan=lifespan)

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.get("/v1/models")
    async def models() -> Response:
        return _json(shapes.models(model, scheduler, MAX_MODEL_LEN, started_s))

    @app.get("/load")
    async def load() -> dict[str, int]:
        return {"waiting": engine.waiting, "running": engine.running}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(request, chat=True)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, chat=False)

    async def answer(request: Request, *, chat: bool) -> Response:
        try:
            ask = shapes.parse(await request.body(), chat=chat, model=model, max_model_len=MAX_MODEL_LEN)
        except shapes.BadRequest as error:
            return _json(error.body(), error.status)
        identity = f"{next(numbers):016x}"
        sequence = Sequence(identity, ask.prompt_tokens, ask.max_tokens)
        reply = shapes.Answer(ask, identity, unix_ns() // 1_000_000_000)
        if ask.stream:
            return StreamingResponse(_events(driver, sequence, ask, reply), media_type="text/event-stream")
        return await _whole(request, driver, sequence, reply)

    return app


async def _events(
    driver: RealTime, sequence: Sequence, ask: shapes.Ask, reply: shapes.Answer
) -> AsyncIterator[bytes]:
    tokens = 0
    async for emission in driver.generate(sequence):
        if not emission.index and ask.chat:
            yield reply.role()
        tokens = emission.index + 1
        yield reply.token(emission.index, last=emission.finished)
    if ask.include_usage:
        yield reply.usage(tokens)
    yield shapes.DONE


async def _whole(request: Request, driver: RealTime, sequence: Sequence, reply: shapes.Answer) -> Response:
    async def count() -> int:
        return sum([1 async for _ in driver.generate(sequence)])

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, left = asyncio.ensure_future(count()), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        return _json(reply.body(work.result())) if work.done() else Response(status_code=499)
    finally:
        for task in (work, left):
            task.cancel()
        await asyncio.gather(work, left, return_exceptions=True)


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status_code=status, media_type="application/json")


def main(argv: AnySequence[str] | None = None) -> None:
    """Run the server until a signal ends it."""
    parser = argparse.ArgumentParser(description="A simulated LLM engine behind an OpenAI-compatible server.")
    parser.add_argument("--scheduler", choices=sorted(POLICIES), required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--with-parent", action="store_true", help="end when the parent process ends")
    arguments = parser.parse_args(argv)
    if arguments.with_parent:
        die_with_parent(signal.SIGTERM)
    app = build_app(arguments.scheduler, arguments.model, build_engine(arguments.scheduler, arguments.seed))
    config = uvicorn.Config(
        app,
        host=arguments.host,
        port=arguments.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        headers=[("server", shapes.OWNER)],
        timeout_graceful_shutdown=1,
        ws="none",
    )
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
