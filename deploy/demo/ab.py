"""One run of ``legato demo --ab``: two engines behind one URL, and which of them Legato calls better.

The same engines as without ``--ab``, under a quarter more load; but here nobody says which engine a request
is for: Legato draws it, counts what it drew, and compares while the load runs.  That there is no verdict is
no failure, and said.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from deploy.demo import client, load
from deploy.demo.load import Progress
from deploy.demo.processes import DemoError, Family
from deploy.demo.report import sent_of
from deploy.demo.run import api, start
from deploy.demo.scenario import EXPERIMENT, Scenario
from proxy.commands.compare import drawn
from proxy.commands.compared import experiment_page

_EVERY_S = 1.0
_PLAIN_EVERY_S = 10.0
_SETTLE_S = 5.0
_UNDECIDED = "undecided: who gets which request is drawn anew each time; run it again, or longer (--seconds)"

Json = dict[str, Any]


async def run(scenario: Scenario, console: Console, *, redraw: bool) -> int:
    """Run it; returns the exit status.  Raises ``DemoError`` if it cannot go on."""
    console.print(Text(f"legato demo --ab: {scenario.title}", style="bold"))
    console.print(Text(scenario.note, style="yellow"))
    for arm, role in zip(scenario.arms, ("control", "candidate"), strict=True):
        console.print(f"  {role} {arm.name}: {arm.describe}", highlight=False)
    with tempfile.TemporaryDirectory(prefix="legato-demo-") as name:
        async with Family(Path(name)) as family:
            with console.status("starting two engines and Legato") if redraw else contextlib.nullcontext():
                scenario, data_url, admin_url = await start(scenario, family, Path(name))
            console.print(f"  one URL: {data_url}, half of it each; read it with", highlight=False)
            console.print(f"  legato compare --admin {admin_url}", style="bold cyan", highlight=False)
            progress = Progress(len(scenario.requests) or None)
            with _shown(console, redraw=redraw) as show:
                await _play(scenario, family, (data_url, admin_url), progress, show)
            found = await _settled(admin_url, progress)
    problems = accounts(found, progress)
    console.print(drawn(experiment_page(found)), highlight=False)
    if found["verdict"] == "undecided" and not problems:
        console.print(Text(_UNDECIDED, style="yellow"))
    for problem in problems:
        console.print(Text(f"failed: {problem}", style="bold red"))
    return 1 if problems else 0


Show = Callable[[Json, Progress, float], None]


async def _play(
    scenario: Scenario, family: Family, urls: tuple[str, str], progress: Progress, show: Show
) -> None:
    """Play the load at the one URL and show what Legato says meanwhile, once a second."""
    data_url, admin_url = urls
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    model = scenario.arms[0].model

    async def play() -> None:
        if scenario.lanes:
            await load.converse(
                data_url, model, scenario.lanes, scenario.seconds, seed=scenario.seed, state=progress
            )
        else:
            await load.play(
                data_url, {model: model}, scenario.requests, seed=scenario.seed, progress={model: progress}
            )

    playing = asyncio.ensure_future(play())
    try:
        while not playing.done():
            await asyncio.wait({playing}, timeout=_EVERY_S)
            family.check()
            show(await _experiment(admin_url), progress, loop.time() - start_s)
        await playing
    finally:
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)


@contextlib.contextmanager
def _shown(console: Console, *, redraw: bool) -> Iterator[Show]:
    """How progress is shown: the comparison, redrawn, or a line now and then."""
    next_s = _PLAIN_EVERY_S

    def sent(progress: Progress, elapsed_s: float) -> str:
        return f"{elapsed_s:4.0f} s  {sent_of(progress)} requests sent, {progress.done} answered"

    def plain(found: Json, progress: Progress, elapsed_s: float) -> None:
        nonlocal next_s
        if elapsed_s >= next_s:
            next_s += _PLAIN_EVERY_S
            console.print(
                Text(f"{sent(progress, elapsed_s)}; {found['headline']}"), highlight=False, soft_wrap=True
            )

    if not redraw:
        yield plain
        return
    with Live(console=console, auto_refresh=False) as screen:
        yield lambda found, progress, elapsed_s: screen.update(
            Group(Text(sent(progress, elapsed_s)), drawn(experiment_page(found))), refresh=True
        )


async def _experiment(admin_url: str) -> Json:
    found = await api(client.get_json(f"{admin_url}/api/experiments/{EXPERIMENT}"))
    if not isinstance(found, dict):
        raise DemoError("Legato's admin API does not know the experiment")
    return found


async def _settled(admin_url: str, progress: Progress) -> Json:
    """The comparison once every request that was answered is booked (or was not within a few seconds)."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + _SETTLE_S
    while True:
        found = await _experiment(admin_url)
        arms = found["control"], found["candidate"]
        counted = all(sum(arm[what] for arm in arms) >= progress.done for what in ("assigned", "recorded"))
        if counted or loop.time() > deadline_s:
            return found
        await asyncio.sleep(0.1)


def accounts(found: Json, progress: Progress) -> list[str]:
    """What does not add up between the load and Legato; empty if everything does."""
    wrong = [
        f"{count} of {progress.sent} requests failed: {failure}"
        for failure, count in progress.failures.most_common()
    ]
    for what in ("assigned", "recorded"):
        counted = sum(found[arm][what] for arm in ("control", "candidate"))
        if not wrong and counted != progress.sent:
            wrong.append(f"{progress.sent} requests were sent, Legato counted {counted} as {what}")
    return wrong
