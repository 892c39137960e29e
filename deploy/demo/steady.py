"""The demo's load without an end, against one Legato or several: for a dashboard to have something to show.

    python -m deploy.demo.steady --url http://legato-a:8080 --url http://legato-b:8080 --model sim-chunked

Each model gets the mix of ``workload`` (2.6 requests per second), minute after minute with another seed; the
URLs take turns.  What is not answered piles up to ``--most`` requests, further ones are left out and counted.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

from deploy.demo import load
from deploy.demo.load import Progress
from deploy.demo.workload import Mix, Request, draw

ROUND_S: Final = 60.0
_SAY_S: Final = 30.0
_NUMBERS: Final = 1_000_000


def requests(seed: int, mix: Mix | None = None) -> Iterator[Request]:
    """The load of all minutes, ``at_ns`` counted from the first one's start."""
    for number in itertools.count():
        start_ns = number * round(ROUND_S * 1e9)
        for each in draw(seed + number, ROUND_S, mix):
            own = number * _NUMBERS + each.number  # of which the text is drawn: no two share a prefix
            yield Request(own, start_ns + each.at_ns, each.prompt_tokens, each.output_tokens)


class Steady:
    """One load: ``run`` until cancelled."""

    def __init__(
        self,
        urls: Sequence[str],
        models: Sequence[str],
        *,
        seed: int = 0,
        most: int = 100,
        mix: Mix | None = None,
    ) -> None:
        self.urls = tuple(urls)
        self.models = tuple(models)
        self._mix = mix
        self._seed = seed
        self._most = most
        self._turns = itertools.cycle(urls)
        self.progress = Progress()
        self.left_out = 0

    async def run(self) -> None:
        """Send until cancelled, which closes every connection."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._say())
            for number, model in enumerate(self.models):
                group.create_task(self._send(group, model, self._seed + 1_000_000 * number))

    async def _send(self, group: asyncio.TaskGroup, model: str, seed: int) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        for request in requests(seed, self._mix):
            await asyncio.sleep(max(0.0, start + request.at_ns / 1e9 - loop.time()))
            if self.progress.in_flight >= self._most:
                self.left_out += 1
                continue
            group.create_task(load.send(next(self._turns), request, model, seed, self.progress))

    async def _say(self) -> None:
        while True:
            await asyncio.sleep(_SAY_S)
            print(self.line(), flush=True)

    def line(self) -> str:
        """How it goes, in one line."""
        state = self.progress
        failed = "".join(f", {count} x {what}" for what, count in state.failures.most_common(3))
        left = f", {self.left_out} left out" if self.left_out else ""
        return f"{state.done} answered ({state.tokens} tokens), {state.in_flight} in flight{left}{failed}"


async def _until_signal(steady: Steady) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(steady.run())
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task
    print(steady.line(), flush=True)


def build(argv: Sequence[str] | None = None) -> Steady:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description="The demo's load, without an end.")
    parser.add_argument("--url", action="append", required=True, help="a Legato; may be repeated")
    parser.add_argument("--model", action="append", required=True, help="may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=100, help="requests in flight at once")
    given = parser.parse_args(argv)
    return Steady(given.url, given.model, seed=given.seed, most=given.most)


def main(argv: Sequence[str] | None = None) -> None:
    """Send until a signal ends it."""
    asyncio.run(_until_signal(build(argv)))


if __name__ == "__main__":
    main()
