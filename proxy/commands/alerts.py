"""``legato alerts``: what fires, and whether those who are told can be reached."""

from __future__ import annotations

import typer

from proxy.commands import alerts_test

_app = typer.Typer(help="Alerts: try those who are told.", no_args_is_help=True)


@_app.callback()
def _alerts() -> None:
    """Its commands have names, also while there is only one."""


def register(app: typer.Typer) -> None:
    """Add the commands to ``legato``."""
    alerts_test.register(_app)
    app.add_typer(_app, name="alerts")
