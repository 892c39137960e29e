"""``legato alerts list``: what fires, what waits, and what was, from the admin API of a running Legato.

This module imports only what its flags need; what draws is imported when the command runs.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from proxy.commands.admin import (
    ADMIN,
    AdminUrl,
    TokenFile,
    Unanswered,
    admin_of,
    another_version,
    plain,
    refuse,
)

if TYPE_CHECKING:
    from rich.text import Text

#: Of what was, so many without --all.
_SHOWN: Final = 10
_STYLES: Final = {"firing": "bold red", "pending": "yellow", "resolved": "green"}

_EXAMPLES: Final = """[bold]Examples[/bold]

What is wrong now: [cyan]legato alerts list[/cyan]

For a script: [cyan]legato alerts list --json | jq '.firing[].summary'[/cyan]

Exit status: 0 if there is an answer, whatever fires; 1 if the admin listener did not answer or refused; 2 for
wrong usage."""


def show(
    as_json: Annotated[
        bool, typer.Option("--json", help="The answer as it is: firing, pending, history, rules, notifiers.")
    ] = False,
    all_: Annotated[
        bool, typer.Option("--all", help="The last 200 that fired; in JSON also what each rule said last.")
    ] = False,
    admin: AdminUrl = ADMIN,
    token_file: TokenFile = None,
) -> None:
    """Show which alerts fire, which wait, which were, and whether those who are told can be reached."""
    asked = admin_of(admin, token_file)
    try:
        answer = asked.get("/api/alerts", {"all": "true"} if all_ else None)
        if as_json:
            typer.echo(json.dumps(answer, indent=2))
            return
        _print(answer, all_)
    except (LookupError, TypeError):
        raise refuse(another_version(asked.base)) from None
    except Unanswered as problem:
        raise refuse(problem) from None


def register(alerts: typer.Typer) -> None:
    """Add the command to ``legato alerts``."""
    alerts.command("list", epilog=_EXAMPLES)(show)


def _print(answer: Any, all_: bool) -> None:
    from rich.text import Text

    from proxy.commands.screen import console as plain_console
    from proxy.commands.screen import stories

    console = plain_console(160)
    firing, pending, history = answer["firing"], answer["pending"], answer["history"]
    who = "this host tells" if answer["sends"] else "another host tells"
    whose = "the traffic of all hosts" if answer["scope"] == "fleet" else "this host's traffic"
    judged = f"judged up to {_moment(answer['judged'])}" if answer["judged"] else "nothing was judged yet"
    count = f"{len(firing)} firing, {len(pending)} pending"
    console.print(Text(f"{count}; {whose}, {judged}; {who}"), soft_wrap=True)
    was = [each for each in history if each["state"] == "resolved"]
    shown = was if all_ else was[:_SHOWN]
    rows = [*firing, *pending, *shown]
    if rows:
        console.print(stories(("state", "rule", "since", "told"), [*map(_row, rows)], console.width))
    if len(was) > len(shown):
        console.print(f"and {len(was) - len(shown)} before them: --all")
    for notifier in answer["notifiers"]:
        console.print(Text(_notifier(notifier)), soft_wrap=True)
    if not answer["notifiers"]:
        console.print("nobody is told: alerts.notify of the configuration is empty")


def _row(alert: Any) -> tuple[list[Text], str, str]:
    """Its short cells, what it says, and the worst request's id."""
    from rich.text import Text

    held = f"\nheld back: {alert['held_by']} explains it" if alert["held_by"] else ""
    resolved = f"\n-> {_moment(alert['resolved'])}" if alert["resolved"] else ""
    cells = [
        Text(alert["state"], style=_STYLES.get(alert["state"], "")),
        Text(alert["rule"]),
        Text(_moment(alert["since"]) + resolved),
        Text(str(alert["told"])),
    ]
    worst = alert["worst"][0]["id"] if alert["worst"] else ""
    return cells, plain(alert["summary"] + held), plain(worst)


def _notifier(state: Any) -> str:
    waits = f", {state['waiting']} wait" if state["waiting"] else ""
    sent = "never told anything" if state["last_sent"] is None else f"last told {_moment(state['last_sent'])}"
    error = (
        f"; last trouble {_moment(state['last_error_at'])}: {state['last_error']}"
        if state["last_error"]
        else ""
    )
    return plain(f"{state['name']} ({state['kind']}, {state['where']}): {sent}{waits}{error}")


def _moment(text: str) -> str:
    """``2026-11-22T03:14:07.412Z`` to the second."""
    return f"{text[:10]} {text[11:19]}Z"
