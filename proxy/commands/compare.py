"""``legato compare``: which of two backends serves users better, from a running Legato.

This module imports only what its flags need; what draws is imported when the command runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from time import sleep
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple
from urllib.parse import quote

import typer

from proxy.commands.admin import (
    ADMIN,
    Admin,
    AdminUrl,
    TokenFile,
    Unanswered,
    admin_of,
    another_version,
    check_window,
    plain,
    refuse,
)

if TYPE_CHECKING:
    from rich.console import Console, Group

    from proxy.commands.compared import Page

_WORSE: Final = 3
_EVERY_S: Final = 2.0
_STYLES: Final = {"better": "green", "worse": "bold red", "equivalent": "cyan", "undecided": "yellow"}

_EXAMPLES: Final = """[bold]Examples[/bold]

The experiment that runs: [cyan]legato compare[/cyan]

One of several, drawn anew every two seconds: [cyan]legato compare new-vllm --watch[/cyan]

Any two backends, as they did in the last hour: [cyan]legato compare --a stable --b canary --window 1h[/cyan]

In a script: [cyan]legato compare new-vllm --fail-on worse[/cyan] after each step of a roll-out, or \
[cyan]legato compare --json | jq -r .headline[/cyan]

Read it from the top: the verdict, then each metric with its difference and interval, then whether it can be \
trusted, then what else differs between the two. Marks: + better, - worse, ! worse by more than the margin, \
= equivalent (within the margin), ? undecided (and about how many more requests it takes).

An experiment may be looked at whenever one likes. Two backends by [bold]--a[/bold] and [bold]--b[/bold] are \
compared by whoever was sent there, for one look; weights are set and experiments started by \
[bold]legato experiment[/bold].

Exit status: 0 whatever the verdict; 1 if the admin listener did not answer or refused; 2 for wrong usage; 3 \
with --fail-on where the candidate is that."""


class FailOn(StrEnum):
    """Of what a script is to hear by the exit status."""

    WORSE = "worse"


class _Question(NamedTuple):
    """What is asked again and again: ``page`` makes of the answer what is shown."""

    path: str
    query: dict[str, str]
    page: Callable[[Any], Page]


def compare(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", show_default=False, help="An experiment; without one, what runs."),
    ] = None,
    a: Annotated[
        str | None, typer.Option("--a", metavar="BACKEND", help="Instead: this backend, the known one ...")
    ] = None,
    b: Annotated[
        str | None, typer.Option("--b", metavar="BACKEND", help="... and this one, over a window.")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="With --a and --b: the time up to now, 10s to 1d. Default: 1h."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --a and --b: only this model's requests.")
    ] = None,
    slo: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --a and --b: only this SLO's requests.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Draw it anew every 2 s; in a pipe, a line for each change.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What the admin API answers.")] = False,
    fail_on: Annotated[
        FailOn | None, typer.Option(help="Exit with 3 where the candidate is worse (or was sent back).")
    ] = None,
    admin: AdminUrl = ADMIN,
    token_file: TokenFile = None,
) -> None:
    """Say which of two backends serves users better, by how much, and how surely."""
    if watch and as_json:
        raise typer.BadParameter("give one of --watch and --json", param_hint="--watch")
    listener = admin_of(admin, token_file)
    look = _look(name, a, b, {"window": window, "model": model, "slo": slo})
    try:
        asked = look or _experiment(listener, name, as_json)
        if asked is None:
            return
        if watch:
            _watch(listener, asked, fail_on)
            return
        told = listener.get(asked.path, asked.query)
        page = _page(listener, asked, told)
        if as_json:
            sys.stdout.write(json.dumps(told) + "\n")
        else:
            _console().print(drawn(page))
        _fail(page, fail_on)
    except Unanswered as problem:
        raise refuse(problem) from None


def register(app: typer.Typer) -> None:
    """Add the command to ``legato``."""
    app.command(epilog=_EXAMPLES)(compare)


# ---------------------------------------------------------------- what is asked


def _look(name: str | None, a: str | None, b: str | None, more: dict[str, str | None]) -> _Question | None:
    """Two backends over a window, where they were named."""
    from proxy.commands.compared import look_page

    given = {flag: text for flag, text in more.items() if text is not None}
    if a is None and b is None:
        for flag in given:
            raise typer.BadParameter("goes with --a and --b, two backends", param_hint=f"--{flag}")
        return None
    if a is None or b is None:
        raise typer.BadParameter(
            "name two backends: --a the known one, --b the other", param_hint="--a" if a is None else "--b"
        )
    if name is not None:
        raise typer.BadParameter("name an experiment, or two backends by --a and --b", param_hint="NAME")
    check_window(given.get("window", "1h"))
    return _Question("/api/compare", {"a": a, "b": b, **given}, look_page)


def _experiment(listener: Admin, name: str | None, as_json: bool) -> _Question | None:
    """The one that was named, or that runs, or that ended last; ``None``: several run and were listed."""
    from proxy.commands.compared import experiment_page

    if name is None:
        told = listener.get("/api/experiments")
        try:
            views = list(told["experiments"])
            running = [view for view in views if view["state"] == "running"]
            if len(running) > 1:
                _list(told, running, as_json)
                return None
            name = str((running or views)[0]["spec"]["name"]) if views else None
        except (LookupError, TypeError):
            raise another_version(listener.base) from None
    if name is None:
        raise Unanswered(
            "there is no experiment\n"
            "  start one: legato experiment start NAME --control A --candidate B\n"
            "  or compare any two backends over a window: legato compare --a A --b B"
        )
    return _Question(f"/api/experiments/{quote(name, safe='')}", {}, experiment_page)


def _list(told: Any, running: list[Any], as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(told) + "\n")
        return
    typer.echo("several experiments run; name one:")
    for view in running:
        typer.echo(plain(f"  {view['spec']['name']}: {view['headline']}"))


def _page(listener: Admin, asked: _Question, told: Any) -> Page:
    try:
        return asked.page(told)
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration):
        raise another_version(listener.base) from None


def _fail(page: Page, fail_on: FailOn | None) -> None:
    if fail_on is not None and page.failed:
        raise typer.Exit(_WORSE)


# ---------------------------------------------------------------- watching


def _watch(listener: Admin, asked: _Question, fail_on: FailOn | None) -> None:
    """Until Ctrl-C; a listener that is away for a while is said and waited for."""
    try:
        page = _page(listener, asked, listener.get(asked.path, asked.query))
        if sys.stdout.isatty():
            _draw(listener, asked, page, fail_on)
        else:
            _lines(listener, asked, page, fail_on)
    except KeyboardInterrupt:
        return


def _next(listener: Admin, asked: _Question, page: Page) -> tuple[Page, str]:
    """After a while: the next page, or the last one and why there is none."""
    sleep(_EVERY_S)
    try:
        return _page(listener, asked, listener.get(asked.path, asked.query)), ""
    except Unanswered as problem:
        return page, str(problem)


def _draw(listener: Admin, asked: _Question, page: Page, fail_on: FailOn | None) -> None:
    from rich.live import Live

    with Live(drawn(page), console=_console(), auto_refresh=False, screen=False) as live:
        while True:
            _fail(page, fail_on)
            page, trouble = _next(listener, asked, page)
            live.update(drawn(page, trouble), refresh=True)


def _lines(listener: Admin, asked: _Question, page: Page, fail_on: FailOn | None) -> None:
    said, trouble = "", ""
    while True:
        line = (
            f"no answer: {trouble.splitlines()[0]}" if trouble else "; ".join([page.headline, *page.alarms])
        )
        if line != said:
            at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            sys.stdout.write(f"{at} {plain(line)}\n")
            sys.stdout.flush()
            said = line
        _fail(page, fail_on)
        page, trouble = _next(listener, asked, page)


# ---------------------------------------------------------------- drawing


def _console() -> Console:
    from proxy.commands.screen import console

    return console(120)


def drawn(page: Page, trouble: str = "") -> Group:
    """A page as what ``rich`` prints; 80 columns are enough."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    parts: list[Any] = [Text(plain(page.title), style="dim")]
    parts.append(Text(plain(page.headline), style=f"bold {_STYLES[page.verdict].removeprefix('bold ')}"))
    parts += [Text(plain(f"! {alarm}"), style="bold red") for alarm in page.alarms]
    parts += [Text(plain(f"! {trouble}"), style="bold red")] if trouble else []
    parts += [Text(), _rows(page), Text(), _explained(page)]
    for title, sentences in page.sections:
        if sentences:
            parts += [Text(), Text(title, style="bold")]
            parts += [Padding(Text(plain(sentence)), (0, 0, 0, 2), expand=False) for sentence in sentences]
    return Group(*parts)


def _rows(page: Page) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("", overflow="fold")
    for arm in (page.control, page.candidate):
        table.add_column(Text(plain(arm)), justify="right", overflow="fold")
    table.add_column(page.interval, no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for place, row in enumerate(page.rows):
        cells = (row.title, row.control, row.candidate, row.difference)
        style = "bold" if place == 0 else ""
        table.add_row(
            *(Text(plain(cell), style=style) for cell in cells), Text(row.said, style=_STYLES[row.verdict])
        )
    return table


def _explained(page: Page) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("beside it")
    for arm in (page.control, page.candidate):
        table.add_column(Text(plain(arm)), justify="right", overflow="fold")
    for row in page.explain:
        table.add_row(*(Text(plain(cell)) for cell in row))
    return table
