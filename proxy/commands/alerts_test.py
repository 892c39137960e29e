"""``legato alerts test``: tells a notifier of the configuration a sample, and says what came of it.

This module imports only what its flags need; what sends is imported when the command runs.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Final, Literal, cast

import typer

from proxy.commands.admin import refuse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.config import Config
    from proxy.control.notify.base import Notifier, Outcome
    from proxy.settings.notify import Notifier as Settings

_NOT_TAKEN, _WRONG = 1, 2

_EXAMPLES: Final = """[bold]Examples[/bold]

One of them: [cyan]legato alerts test slack --config legato.yaml[/cyan]

All of them, as a page: [cyan]legato alerts test --all --severity page[/cyan]

Sent from here, with this configuration: no Legato needs to run. A page goes where pages go.

Exit status: 0 taken; 1 not taken, the reason is said; 2 wrong usage or configuration."""


def try_notifier(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NOTIFIER", help="Its name in the configuration.", show_default=False),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option("--config", "-c", metavar="FILE", help="A YAML file; without one, LEGATO_CONFIG."),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every notifier, one after the other.")] = False,
    severity: Annotated[str, typer.Option(metavar="ticket|page", help="How bad the sample is.")] = "ticket",
) -> None:
    """Send a notifier a sample alert: that it fires, then that it is over.

    Once, without retries. The sample says that it is a test, and has the label [bold]test=true[/bold].
    Alertmanager is told only that it fires: it resolves the sample by itself.
    """
    if severity not in ("ticket", "page"):
        raise refuse(f"--severity {severity!r}: write ticket or page", _WRONG)
    from proxy.config import default_file

    path = config or default_file()
    known = _load(path).alerts.notify
    if not known and path is None:
        raise refuse("no configuration was given: --config FILE or LEGATO_CONFIG", _WRONG)
    if not known:
        raise refuse(f"nobody is told: alerts.notify in {path} is empty", _WRONG)
    names = ", ".join(each.called for each in known)
    if (name is None) != all_:
        raise refuse(f"name one notifier, or give --all; there are {names}", _WRONG)
    chosen = [each for each in known if all_ or each.called == name]
    if not chosen:
        raise refuse(f"there is no notifier {name!r}; there are {names}", _WRONG)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    told = [_tell(each, cast('Literal["page", "ticket"]', severity)) for each in chosen]
    if not all(told):
        raise typer.Exit(_NOT_TAKEN)


def register(alerts: typer.Typer) -> None:
    """Add the command to ``legato alerts``."""
    alerts.command("test", epilog=_EXAMPLES)(try_notifier)


def _load(path: str | None) -> Config:
    """The configuration; a backend may be missing, since ``serve`` may be given it by a flag."""
    from proxy.config import Boot, ConfigErrors, load

    boot = Boot(file=path, flags={})
    try:
        try:
            return load(boot)
        except ConfigErrors as errors:
            if {problem.key for problem in errors.problems} != {"backends"}:
                raise
            return load(Boot(file=boot["file"], flags={"upstream": "http://localhost"}))
    except ConfigErrors as errors:
        raise refuse(errors, _WRONG) from None


def _tell(settings: Settings, severity: Literal["page", "ticket"]) -> bool:
    """Send the sample; whether all of it was taken."""
    from proxy import clock
    from proxy.control.notify.base import Origin
    from proxy.control.notify.build import build
    from proxy.control.notify.sample import rehearse

    origin = Origin(socket.gethostname(), metadata.version("legato"))
    notifier = build(settings, origin, clock.unix_ns)
    outcomes = asyncio.run(rehearse(notifier, origin, clock.unix_ns(), severity))
    typer.echo(f"{notifier.name} ({notifier.kind}, {notifier.where})")
    for line in _lines(notifier, outcomes):
        typer.echo(f"  {line}")
    return all(outcome.taken for outcome in outcomes)


def _lines(notifier: Notifier, outcomes: Sequence[Outcome]) -> list[str]:
    out = []
    for state, outcome in zip(("firing", "resolved"), outcomes, strict=False):
        verdict = "taken" if outcome.taken else "not taken"
        more = "; an alert would be tried again" if outcome.again else ""
        out.append(f"{state:<8} {verdict}: {outcome.said}{more}")
    if notifier.forgets and outcomes[-1].taken:
        out.append("resolved not told: it resolves by itself (resolve_timeout), and decides who is told")
    return out
