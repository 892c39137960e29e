"""``legato alerts backtest TRACES...``: what would have fired, when, and for how long.

This module imports only what its flags need; what computes is imported when the command runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final, cast

import typer

from proxy.commands.admin import plain
from proxy.commands.morning import lasting
from proxy.commands.traces import opened, progress
from proxy.units import parse_ratio

if TYPE_CHECKING:
    from rich.console import Console

    from proxy.config import Config
    from proxy.control.alerts.backtest import Backtest
    from proxy.control.alerts.life import Alert

_WRONG: Final = 2
_NAMED: Final = 1000  # bad lines that are named one by one

_EXAMPLES: Final = """[bold]Examples[/bold]

What last night would have paged: [cyan]legato alerts backtest trace.jsonl.1 trace.jsonl[/cyan]

With the limits of a configuration, and what its SLOs promise: [cyan]legato alerts backtest --config \
legato.yaml trace.jsonl[/cyan]

Unpacked on the way: [cyan]zcat traces/*.gz | legato alerts backtest -[/cyan]

Exit status: 0; 1 if a line could not be read (each is named); 2 for wrong usage or a missing file."""


def backtest(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Trace files as --trace-log writes them; - is standard input."),
    ],
    objective: Annotated[
        str | None,
        typer.Option(metavar="RATIO", help="The share of good requests that SLOs promise. Default: 99%."),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="A YAML file: its alerts, and what its SLOs promise beside deadlines of tokens.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: alerts and totals.")] = False,
) -> None:
    """Go through recorded streams with the alert rules: what would have fired, when, and for how long."""
    share = _ratio(objective)
    read = None if config is None else _load(config)
    with ExitStack() as stack:
        streams = [(name, stack.enter_context(opened(name, "alerts backtest"))) for name in files]
        with progress(streams, "reading") as (console, advance):
            test, bad = _read(streams, read, console, advance)
    found = _run(test, read, share)
    said = _said(test, found, bad)
    if as_json:
        typer.echo(json.dumps(said, indent=2))
    else:
        _print(said)
    raise typer.Exit(1 if bad else 0)


def register(alerts: typer.Typer) -> None:
    """Add the command to ``legato alerts``."""
    alerts.command("backtest", epilog=_EXAMPLES)(backtest)


# ---------------------------------------------------------------- what was asked for


def _ratio(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        share = parse_ratio(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--objective") from error
    if not 0 < share < 1:
        raise typer.BadParameter(
            f"{text!r}: an objective lies between 0% and 100%: write 99.9%", param_hint="--objective"
        )
    return share


def _load(path: str) -> Config:
    from proxy.config import Boot, ConfigErrors, load

    try:
        return load(Boot(file=path, flags={}))
    except ConfigErrors as errors:
        typer.echo(f"legato: {errors}", err=True)
        raise typer.Exit(_WRONG) from None


# ---------------------------------------------------------------- the work


class _Last:
    """A stream that remembers the line which was read last: ``score_stream`` tells what it scored of it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.line = b""

    def readline(self, size: int) -> bytes:
        """As the stream does."""
        self.line = self._stream.readline(size)
        return self.line


def _read(
    streams: list[tuple[str, BinaryIO]],
    config: Config | None,
    errors: Console,
    advance: Callable[[int], None],
) -> tuple[Backtest, int]:
    """All lines of all files; how many could not be read, each of which is named."""
    import msgspec

    from proxy.control.alerts.backtest import Backtest, placed
    from proxy.offline import BadLine, score_stream
    from proxy.tables import build_table

    known = None if config is None else {slo.name: slo for slo in build_table(config, 1).slos}
    test, bad = Backtest(known), 0
    for name, stream in streams:
        shown = "standard input" if name == "-" else name
        last = _Last(stream)
        for result in score_stream(cast("BinaryIO", last), shown, advance=advance):
            why = str(result)
            if not isinstance(result, BadLine):
                try:
                    test.add(placed(last.line), result.score)
                    continue
                except msgspec.ValidationError as error:
                    why = f"{shown}: request {result.id}: {error}: --trace-log writes it"
            bad += 1
            if bad <= _NAMED:
                errors.print(plain(why), markup=False, highlight=False, soft_wrap=True)
    if bad > _NAMED:
        errors.print(f"{bad - _NAMED} more lines could not be read", markup=False, highlight=False)
    return test, bad


def _run(test: Backtest, config: Config | None, objective: float | None) -> list[Alert]:
    from proxy.settings.alerts import Alerts

    return test.run(Alerts() if config is None else config.alerts, objective)


def _said(test: Backtest, found: list[Alert], bad: int) -> dict[str, Any]:
    """What is printed, as JSON has it."""
    from proxy.control.alerts.words import summary
    from proxy.control.record import iso_time

    first_ns, last_ns = test.span_ns
    alerts = []
    for alert in found:
        said, fired_ns = alert.shown or alert.said, alert.fired_ns or 0
        lasted_s = None if alert.resolved_ns is None else (alert.resolved_ns - fired_ns) / 1e9
        alerts.append(
            {
                "key": alert.key,
                "rule": alert.rule,
                "severity": alert.severity,
                "told": alert.number > 0,
                "labels": alert.named,
                "since": iso_time(alert.began_ns),
                "fired": iso_time(fired_ns),
                "resolved": None if alert.resolved_ns is None else iso_time(alert.resolved_ns),
                "lasted_s": lasted_s,
                "peak": alert.peak,
                "threshold": said.threshold,
                "figures": dict(said.evidence),
                "summary": summary(alert.rule, alert.named, said, alert.began_ns),
                "worst": [one.id for one in alert.worst],
            }
        )
    told = [alert for alert in found if alert.number]
    pages = sum(alert.severity == "page" for alert in told)
    days = (last_ns - first_ns) / 86_400e9
    return {
        "requests": test.requests,
        "bad_lines": bad,
        "from": iso_time(first_ns) if test.requests else None,
        "to": iso_time(last_ns) if test.requests else None,
        "alerts": alerts,
        "totals": {
            "alerts": len(found),
            "pages": pages,
            "held_back": len(found) - len(told),
            "days": round(days, 4),
            "by_rule": {
                rule: sum(alert.rule == rule for alert in found) for rule in sorted({a.rule for a in found})
            },
        },
        "not_seen": test.not_seen,
    }


def _print(said: dict[str, Any]) -> None:
    from rich.text import Text

    from proxy.commands.screen import console as plain_console
    from proxy.commands.screen import stories

    console = plain_console(160)
    span = f" from {_moment(said['from'])} to {_moment(said['to'])}" if said["requests"] else ""
    console.print(Text(f"{said['requests']} requests{span}"), soft_wrap=True)
    rows = [
        (
            [*map(Text, _cells(alert))],
            plain(alert["summary"]),
            plain(alert["worst"][0] if alert["worst"] else ""),
        )
        for alert in said["alerts"]
    ]
    if rows:
        console.print(stories(("fired", "lasted", "severity", "rule"), rows, console.width))
    totals = said["totals"]
    rules = ", ".join(f"{count} {rule}" for rule, count in totals["by_rule"].items())
    would = f"{totals['alerts']} would have fired, {totals['pages']} of them as a page"
    if held := totals["held_back"]:
        would += f", {held} held back by what explains it"
    seen = f" in {lasting(_seconds(said))}" if said["requests"] else ""
    console.print(Text(f"{would}{seen}{': ' + rules if rules else ''}"), soft_wrap=True)
    if said["bad_lines"]:
        console.print(f"bad lines: {said['bad_lines']}")
    for sentence in said["not_seen"]:
        console.print(Text(f"not seen: {sentence}", style="dim"), soft_wrap=True)


def _moment(text: str) -> str:
    return f"{text[:10]} {text[11:19]}Z"


def _cells(alert: dict[str, Any]) -> tuple[str, ...]:
    lasted = "past the trace's end" if alert["lasted_s"] is None else lasting(alert["lasted_s"])
    severity = alert["severity"] if alert["told"] else "held back"
    return _moment(alert["fired"]), lasted, severity, alert["rule"]


def _seconds(said: dict[str, Any]) -> float:
    """How long the trace is."""
    first, last = (datetime.fromisoformat(said[end]) for end in ("from", "to"))
    return (last - first).total_seconds()
