"""``legato demo``: what Legato shows, in a minute and without a GPU.  Imports little until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from deploy.demo.scenario import Scenario

_FAILED, _UNUSABLE, _INTERRUPTED = 1, 2, 130


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(demo)


def demo(
    real: Annotated[
        bool, typer.Option("--real", help="Real llama.cpp servers with a tiny model made on the spot.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=5, max=600, help="How long requests arrive.")] = 45,
    seed: Annotated[int, typer.Option(help="The same seed, the same requests.")] = 0,
    no_live: Annotated[
        bool, typer.Option("--no-live", help="No redrawn table: a line now and then, as in a pipe.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Write the closing report to this SVG file too.", metavar="FILE")
    ] = None,
) -> None:
    """Two engines behind one Legato: see which of them stutters, and what the fluidity-index says.

    The engines are simulated (iteration-level scheduling of a GPU, real HTTP) and differ in their scheduler
    only: whole prompts first, or chunked prefill. Both get the same requests. Takes about a minute.
    """
    import asyncio

    from rich.console import Console

    console = Console()
    scenario = _real(console, seed, seconds / 2) if real else _simulated(seed, seconds)
    try:
        status = asyncio.run(_main(scenario, console, console.is_terminal and not no_live, picture))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("interrupted: everything that was started has been ended", style="yellow")
        status = _INTERRUPTED
    raise typer.Exit(status)


def _simulated(seed: int, seconds: float) -> Scenario:
    from deploy.demo.scenario import simulated

    return simulated(seed, seconds)


def _real(console: Console, seed: int, seconds: float) -> Scenario:
    """Each server gets the load for ``seconds``.  Exits 2 where packages are missing."""
    from deploy.demo.real import INSTALL, missing, model_path, real

    if absent := missing():
        console.print(f"legato demo --real needs {', '.join(absent)}: {INSTALL}", markup=False)
        raise typer.Exit(_UNUSABLE)
    from deploy.demo.tinymodel import build

    with console.status("making a tiny model (once)"):
        model = build(model_path(seed), seed)
    return real(model, seed, seconds)


async def _main(scenario: Scenario, console: Console, redraw: bool, picture: Path | None) -> int:
    """Run it; a SIGTERM or SIGHUP ends it as Ctrl-C does."""
    import asyncio
    import signal

    from deploy.demo.processes import DemoError
    from deploy.demo.run import run

    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await run(scenario, console, redraw=redraw, picture=picture)
    except DemoError as error:
        console.print(f"failed: {error}", style="bold red", highlight=False, markup=False)
        return _FAILED
