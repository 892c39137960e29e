"""``legato demo``: what Legato shows, in a minute and without a GPU.  Imports little until it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from deploy.demo.scenario import Scenario
    from deploy.demo.sweep import Promise, Sweep

_FAILED, _UNUSABLE, _INTERRUPTED = 1, 2, 130
_SECONDS, _REAL_AB_S = 45.0, 110.0  # how long requests arrive
_PLAIN_EVERY = 15  # simulations of a sweep


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(demo)


def demo(
    real: Annotated[
        bool, typer.Option("--real", help="Real llama.cpp servers with a tiny model made on the spot.")
    ] = False,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=5, max=600, help="How long requests arrive (45; 110 of --real --ab).", show_default=False
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed, the same requests.")] = 0,
    no_live: Annotated[
        bool, typer.Option("--no-live", help="No redrawn table: a line now and then, as in a pipe.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Write the closing report to this SVG file too.", metavar="FILE")
    ] = None,
    ab: Annotated[
        bool,
        typer.Option("--ab", help="One URL for both: Legato splits the requests, and says which is better."),
    ] = False,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep",
            help="No live run: raise the load in virtual time until each scheduler breaks its promise.",
        ),
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Sweep: how many seeds, from --seed on (3).", show_default=False),
    ] = None,
    ttft: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Sweep: judge by this deadline of the first token (1.2s, 1.5s from 1000 prompt tokens, 2.3s "
            "from 4000, linear in between).",
        ),
    ] = None,
    tbt: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Sweep: judge by this deadline from token to token (40ms)."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Sweep: write all of its numbers here too.")
    ] = None,
) -> None:
    """Two engines behind one Legato: see which of them stutters, and what the fluidity-index says.

    The engines are simulated (iteration-level scheduling of a GPU, real HTTP) and differ in their scheduler
    only: whole prompts first, or chunked prefill. Both get the same requests. Takes about a minute.
    --ab puts both behind one URL and lets Legato compare them as an experiment; with --real that takes two
    minutes. --sweep finds how many tokens per second each of them sustains.
    """
    import asyncio

    from rich.console import Console

    _writable({"--picture": picture, "--json": json_file})
    console = Console(emoji=False, markup=False)
    if sweep:
        for given, flag in ((real, "--real"), (ab, "--ab")):
            if given:
                raise typer.BadParameter(f"it runs in virtual time: leave {flag} out", param_hint="--sweep")
        by = _promise(ttft, tbt)
        outcome = _sweep(console, range(seed, seed + (seeds or 3)), by, console.is_terminal and not no_live)
        _keep_sweep(console, outcome, picture, json_file)
        return
    for flag, value in (("--seeds", seeds), ("--ttft", ttft), ("--tbt", tbt), ("--json", json_file)):
        if value is not None:
            raise typer.BadParameter("it belongs to --sweep: add that", param_hint=flag)
    if ab and picture is not None:
        raise typer.BadParameter("there is none of an experiment: leave it out", param_hint="--picture")
    seconds = (_REAL_AB_S if real and ab else _SECONDS) if seconds is None else seconds
    if real:
        scenario = _real(console, seed, seconds if ab else seconds / 2, experiment=ab)
    else:
        scenario = _simulated(seed, seconds, experiment=ab)
    try:
        status = asyncio.run(_main(scenario, console, console.is_terminal and not no_live, picture))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("interrupted: everything that was started has been ended", style="yellow")
        status = _INTERRUPTED
    raise typer.Exit(status)


def _writable(files: dict[str, Path | None]) -> None:
    """What is written at the end is looked at before the beginning."""
    from proxy.commands.outfile import unwritable

    for flag, file in files.items():
        if file is not None and (why := unwritable(file)) is not None:
            raise typer.BadParameter(why, param_hint=flag)


def _simulated(seed: int, seconds: float, *, experiment: bool) -> Scenario:
    from deploy.demo.scenario import simulated

    return simulated(seed, seconds, experiment=experiment)


def _real(console: Console, seed: int, seconds: float, *, experiment: bool) -> Scenario:
    """Each server gets the load for ``seconds``.  Exits 2 where packages are missing."""
    from deploy.demo.real import INSTALL, missing, model_path, real

    if absent := missing():
        console.print(f"legato demo --real needs {', '.join(absent)}: {INSTALL}", markup=False)
        raise typer.Exit(_UNUSABLE)
    from deploy.demo.tinymodel import build

    with console.status("making a tiny model (once)"):
        model = build(model_path(seed), seed)
    return real(model, seed, seconds, experiment=experiment)


async def _main(scenario: Scenario, console: Console, redraw: bool, picture: Path | None) -> int:
    """Run it; a SIGTERM or SIGHUP ends it as Ctrl-C does."""
    import asyncio
    import signal

    from deploy.demo import ab
    from deploy.demo.processes import DemoError
    from deploy.demo.run import run

    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        if scenario.experiment:
            return await ab.run(scenario, console, redraw=redraw)
        return await run(scenario, console, redraw=redraw, picture=picture)
    except DemoError as error:
        console.print(f"failed: {error}", style="bold red", highlight=False, markup=False)
        return _FAILED


# ---------------------------------------------------------------- --sweep


def _promise(ttft: str | None, tbt: str | None) -> Promise:
    """The demo's promise, or with other deadlines; the engines stay as they are."""
    from dataclasses import replace

    from deploy.demo.sweep import Promise
    from scoring.deadlines import DeadlineCurve

    by = Promise()
    if ttft is not None:
        by = replace(by, ttft=DeadlineCurve([(0, _time("--ttft", ttft))]))
    return by if tbt is None else replace(by, tbt_ns=_time("--tbt", tbt))


def _time(flag: str, text: str) -> int:
    from proxy.units import parse_seconds

    try:
        ns = parse_seconds(text)
        if ns < 1:
            raise ValueError(f"{text!r} is too short: give at least 1ns")
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from error
    return ns


def _sweep(console: Console, seeds: range, by: Promise, redraw: bool) -> Sweep:
    """Run it and show the report.  Exits 130 after Ctrl-C, 1 where a process of it was killed."""
    from concurrent.futures.process import BrokenProcessPool

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from deploy.demo import sweep_report
    from deploy.demo.sweep import Course, simulations, sweep, usable_processors

    console.print("legato demo --sweep: prefill-first against chunked prefill", style="bold")
    course = Course()
    columns = (TextColumn("simulations"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with _interruptible(), Progress(*columns, console=console, transient=True, disable=not redraw) as bar:
            total = simulations(len(seeds), course)
            task = bar.add_task("", total=total)
            done = 0

            def advance() -> None:
                nonlocal done
                done += 1
                bar.update(task, completed=done, total=max(done, total))
                if not redraw and done % _PLAIN_EVERY == 0:
                    console.print(f"  {done} simulations of about {total}", highlight=False)

            found = sweep(seeds, by, course, processes=usable_processors(), advance=advance)
    except KeyboardInterrupt:
        console.print("interrupted: everything that was started has been ended", style="yellow")
        raise typer.Exit(_INTERRUPTED) from None
    except BrokenProcessPool as error:
        console.print("failed: a process that simulated was killed (out of memory?)", style="bold red")
        raise typer.Exit(_FAILED) from error
    console.print(sweep_report.closing(found), highlight=False)
    return found


@contextmanager
def _interruptible() -> Iterator[None]:
    """Meanwhile a SIGTERM or SIGHUP ends it as Ctrl-C does."""
    import signal

    numbers = signal.SIGTERM, signal.SIGHUP
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _keep_sweep(console: Console, found: Sweep, picture: Path | None, json_file: Path | None) -> None:
    """Write what was asked for; exits 1 where that cannot be."""
    import json

    from deploy.demo import sweep_report
    from deploy.demo.picture import save

    try:
        if picture is not None:
            save(sweep_report.closing(found), picture)
            console.print(f"the report as a picture: {picture}", highlight=False)
        if json_file is not None:
            json_file.write_text(json.dumps(sweep_report.to_json(found), indent=1) + "\n", encoding="utf-8")
            console.print(f"all numbers: {json_file}", highlight=False)
    except OSError as error:
        console.print(f"failed: {error}", style="bold red", highlight=False, markup=False)
        raise typer.Exit(_FAILED) from error
