"""``legato report``: what to read in the morning, from the admin API of a running Legato."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

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
    refuse,
)

if TYPE_CHECKING:
    from proxy.commands.morning import Section

_EXAMPLES: Final = """[bold]Examples[/bold]

The last night: [cyan]legato report --window 12h[/cyan]

For a ticket: [cyan]legato report --window 1h --md > report.md[/cyan]

For a script: [cyan]legato report --window 5m --json | jq '.findings'[/cyan]

Another host: [cyan]legato report --admin http://10.0.0.7:9464 --token-file /etc/legato/token[/cyan]

Read it from the top: what needs attention, promises kept, times, the worst requests; then whether the delay
was ours, and what was not seen.

Exit status: 0 if there is a report, whatever it says; 1 if the admin listener did not answer or refused;
2 for wrong usage."""


_NOT_THERE: Final = 404


def report(
    window: Annotated[
        str, typer.Option(metavar="TIME", help="The stretch of time up to now, 10s to 1d: 5m, 1h, 12h.")
    ] = "1h",
    as_markdown: Annotated[bool, typer.Option("--md", help="Markdown instead of tables.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: findings, worst requests, the whole summary.")
    ] = False,
    scope: Annotated[
        str | None,
        typer.Option(
            metavar="SCOPE",
            help="fleet: all hosts that share its Redis; host: that one. Default: fleet where there is one.",
        ),
    ] = None,
    admin: AdminUrl = ADMIN,
    token_file: TokenFile = None,
) -> None:
    """Tell how the last hour (or night) went: promises kept, misses, times, the worst, our own share."""
    if as_markdown and as_json:
        raise typer.BadParameter("give one of --md and --json", param_hint="--md")
    check_window(window)
    if scope is not None and scope not in ("fleet", "host"):
        raise typer.BadParameter(f"{scope!r}: write fleet or host", param_hint="--scope")
    listener = admin_of(admin, token_file)
    try:
        asked = {"window": window} | ({} if scope is None else {"scope": scope})
        summary = listener.get("/api/summary", asked)
        records = listener.get("/api/requests", _worst_of(summary))
        others = _others(listener, summary)
        form = "json" if as_json else "md" if as_markdown else "table"
        _print(listener.base, summary, records, others, form)
    except Unanswered as problem:
        raise refuse(problem) from None


def register(app: typer.Typer) -> None:
    """Add the command to ``legato``."""
    app.command(epilog=_EXAMPLES)(report)


# ---------------------------------------------------------------- asking


def _worst_of(summary: Any) -> dict[str, str]:
    """Ask for the worst requests of those that the summary is about."""
    asked = {"sort": "worst", "limit": "1000"}
    fleet = isinstance(summary, dict) and summary.get("scope") == "fleet"
    return asked | {"scope": "fleet"} if fleet else asked


def _others(listener: Admin, summary: Any) -> list[str]:
    """Findings of routes that need not be there: a report does without, and says what it could not read."""
    from proxy.commands.overnight import drifted, fired

    found: list[str] = []
    for path in ("/api/alerts", "/api/curves"):
        try:
            answer = listener.get(path, {})
            alerts = path == "/api/alerts"
            found += (
                fired(answer, summary["covered_from"]) if alerts else drifted(answer, summary["instance"])
            )
        except Unanswered as problem:
            if problem.status != _NOT_THERE:
                found.append(f"{path} could not be read")
        except (LookupError, TypeError, ValueError, AttributeError):
            found.append(f"{path} could not be read: another version?")
    return found


# ---------------------------------------------------------------- telling


def _print(base: str, summary: Any, records: Any, others: list[str], form: str) -> None:
    from proxy.commands.morning import findings, heading, markdown, sections, worst_of

    try:
        worst = worst_of(records["requests"], summary["covered_from"])
        title, parts, found = heading(summary), sections(summary, worst, others), findings(summary, others)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise another_version(base) from None
    if form == "json":
        sys.stdout.write(
            json.dumps({"schema": 1, "findings": found, "worst": worst, "summary": summary}) + "\n"
        )
    elif form == "md":
        sys.stdout.write(markdown(title, parts))
    else:
        _print_tables(title, parts, bool(found))


def _print_tables(title: str, parts: list[Section], alarming: bool) -> None:
    from rich.text import Text

    from proxy.commands.morning import plain
    from proxy.commands.screen import console, fitted

    out = console(160)
    out.print(Text(plain(title), style="bold"), soft_wrap=True)
    for index, part in enumerate(parts):
        out.print()
        out.print(Text(part.title, style="bold red" if index == 0 and alarming else "bold"))
        for note in part.notes:
            out.print(Text(f"  {plain(note)}"), soft_wrap=True)
        if part.rows:
            rows = [[Text(plain(cell)) for cell in row] for row in part.rows]
            out.print(fitted(part.columns, rows, part.names, out.width))
