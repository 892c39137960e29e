"""One demo run: start the engines and Legato, play the load, watch, report, end everything."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

import yaml
from rich.console import Console
from rich.live import Live
from rich.text import Text

from deploy.demo import client, load, real, report
from deploy.demo.load import Progress
from deploy.demo.picture import PICTURE_WIDTH, save
from deploy.demo.processes import Child, DemoError, Family, free_port
from deploy.demo.scenario import Scenario
from deploy.demo.view import RequestView, View, read_request, read_summary

_EVERY_S = 1.0
_PLAIN_EVERY_S = 10.0
_SETTLE_S = 5.0
_LEGATO_START_S = 20.0

Show = Callable[[View | None, float], None]


async def run(scenario: Scenario, console: Console, *, redraw: bool, picture: Path | None = None) -> int:
    """Run it; returns the exit status.  Raises ``DemoError`` if it cannot go on."""
    console.print(Text(f"legato demo: {scenario.title}", style="bold"))
    console.print(Text(scenario.note, style="yellow"))
    for arm in scenario.arms:
        console.print(f"  {arm.name}: {arm.describe}", highlight=False)
    with tempfile.TemporaryDirectory(prefix="legato-demo-") as name:
        async with Family(Path(name)) as family:
            with console.status("starting two engines and Legato") if redraw else contextlib.nullcontext():
                scenario, data_url, admin_url = await start(scenario, family, Path(name))
            console.print(f"  Legato: {data_url}, its numbers: {admin_url}/metrics", highlight=False)
            progress = {arm.name: Progress(len(scenario.requests) or None) for arm in scenario.arms}
            async with _shown(scenario, console, progress, redraw=redraw) as show:
                await _play(scenario, family, (data_url, admin_url), progress, show)
            view = await _settled(admin_url, progress)
            request = await _worst(admin_url)
    problems = report.accounts(scenario, progress, view)
    console.print(report.closing(scenario, view, request, problems, min(console.width, 110)), highlight=False)
    if picture is not None:
        try:
            save(report.closing(scenario, view, request, problems, PICTURE_WIDTH), picture)
        except OSError as error:
            raise DemoError(f"{picture} cannot be written: {error.strerror or error}") from error
        console.print(f"the report as a picture: {picture}", highlight=False)
    return 1 if problems else 0


async def start(scenario: Scenario, family: Family, folder: Path) -> tuple[Scenario, str, str]:
    """Engines and Legato, ready: the scenario with its promise, the URLs of its data and admin listeners."""
    ports = await _start_engines(scenario, family)
    if not scenario.simulated:
        urls = {arm: f"http://127.0.0.1:{port}" for arm, port in ports.items()}
        scenario = await real.calibrate(scenario, urls)
    return scenario, *await _start_legato(scenario, family, folder, ports)


async def _start_engines(scenario: Scenario, family: Family) -> dict[str, int]:
    """Both engines up and ready: their ports by arm."""
    ports = {arm.name: free_port() for arm in scenario.arms}
    engines: list[tuple[Child, int]] = []
    for arm in scenario.arms:
        port = ports[arm.name]
        command = [part.replace("{port}", str(port)) for part in arm.command]
        engines.append((await family.start(arm.name, command, arm.env), port))
    for engine, port in engines:
        await engine.ready(f"http://127.0.0.1:{port}/health", scenario.start_s)
    return ports


async def _start_legato(
    scenario: Scenario, family: Family, folder: Path, engine_ports: dict[str, int]
) -> tuple[str, str]:
    """Legato in front of them, ready: the URLs of its data and admin listeners."""
    data_port, admin_port = free_port(), free_port()
    config = folder / "legato.yaml"
    config.write_text(yaml.safe_dump(scenario.config(data_port, admin_port, engine_ports), sort_keys=False))
    command = [sys.executable, "-P", "-m", "proxy.cli", "serve", "--config", str(config)]
    legato = await family.start("legato", command)
    admin_url = f"http://127.0.0.1:{admin_port}"
    await legato.ready(f"{admin_url}/readyz", _LEGATO_START_S)
    return f"http://127.0.0.1:{data_port}", admin_url


async def _play(
    scenario: Scenario, family: Family, urls: tuple[str, str], progress: dict[str, Progress], show: Show
) -> None:
    """Play the load and show what Legato says meanwhile, once a second."""
    data_url, admin_url = urls
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def play() -> None:
        seed, seconds = scenario.seed, scenario.seconds
        for arm in scenario.arms if scenario.lanes else ():
            state = progress[arm.name]
            await load.converse(data_url, arm.model, scenario.lanes, seconds, seed=seed, state=state)
        models = {arm.model: arm.name for arm in scenario.arms}
        await load.play(data_url, models, scenario.requests, seed=seed, progress=progress)

    playing = asyncio.ensure_future(play())
    try:
        while not playing.done():
            await asyncio.wait({playing}, timeout=_EVERY_S)
            family.check()
            show(await _summary(admin_url), loop.time() - start)
        await playing
    finally:
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)


@contextlib.asynccontextmanager
async def _shown(
    scenario: Scenario, console: Console, progress: dict[str, Progress], *, redraw: bool
) -> AsyncIterator[Show]:
    """How progress is shown: a table that is redrawn, or a line now and then."""
    if redraw:
        with Live(report.live(scenario, progress, None, 0), console=console, auto_refresh=False) as screen:
            yield lambda view, elapsed_s: screen.update(
                report.live(scenario, progress, view, elapsed_s), refresh=True
            )
        return
    next_s = _PLAIN_EVERY_S

    def show(view: View | None, elapsed_s: float) -> None:
        nonlocal next_s
        if view is not None and elapsed_s >= next_s:
            next_s += _PLAIN_EVERY_S
            console.print(
                report.plain_line(scenario, progress, view, elapsed_s), highlight=False, soft_wrap=True
            )

    yield show


async def api(get: Awaitable[object]) -> object:
    try:
        return await get
    except OSError as error:
        raise DemoError(f"Legato's admin API: {error}") from error


async def _summary(admin_url: str) -> View:
    data = await api(client.get_json(f"{admin_url}/api/summary"))
    assert isinstance(data, dict)
    return read_summary(data)


async def _settled(admin_url: str, progress: dict[str, Progress]) -> View:
    """The summary once every request that was answered is booked (or was not within a few seconds)."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _SETTLE_S
    while True:
        view = await _summary(admin_url)
        booked = all(view.arm(name).requests >= state.done for name, state in progress.items())
        if booked or loop.time() > deadline:
            return view
        await asyncio.sleep(0.1)


async def _worst(admin_url: str) -> RequestView | None:
    """The worst request that missed a deadline, with its timeline."""
    page = await api(client.get_json(f"{admin_url}/api/requests?sort=worst&min_missed=1&limit=10"))
    assert isinstance(page, dict)
    for record in page["requests"]:
        detail = await api(client.get_json(f"{admin_url}/api/requests/{quote(record['id'])}"))
        assert isinstance(detail, dict)
        if (request := read_request(detail)) is not None:
            return request
    return None
