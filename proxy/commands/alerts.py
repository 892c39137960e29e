"""``legato alerts``: what fires, what would have, and whether those who are told can be reached."""

from __future__ import annotations

import typer

from proxy.commands import alerts_backtest, alerts_list, alerts_test

_app = typer.Typer(
    help="Alerts: what fires, what would have, and whether those who are told can be reached.",
    no_args_is_help=True,
)


@_app.callback()
def _alerts() -> None:
    """Its commands have names, also while there is only one."""


def register(app: typer.Typer) -> None:
    """Add the commands to ``legato``."""
    alerts_list.register(_app)
    alerts_backtest.register(_app)
    alerts_test.register(_app)
    app.add_typer(_app, name="alerts")
