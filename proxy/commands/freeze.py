"""``legato freeze``: the prefill curves that a running Legato has learned, written into a file.

This module imports only what its flags need; what computes is imported when the command runs.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
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
    plain,
    refuse,
)
from proxy.commands.outfile import unwritable

if TYPE_CHECKING:
    from proxy.curves import FrozenCurve

_OUT: Final = "curves.yaml"
#: All curves may have to be fitted first, each takes a moment.
_WAIT_S: Final = 30.0
_NOT_WRITTEN, _WRONG = 1, 2
_COLUMNS: Final = ("backend", "model", "prompt tokens", "TTFT", "requests", "TBT p50", "p99", "shape")

_EXAMPLES: Final = """[bold]Examples[/bold]

What this host has learned in the last hour: [cyan]legato freeze --out curves.yaml[/cyan]

From another host, one backend only: [cyan]legato freeze --admin http://gpu-7:9464 --token-file token \
--backend vllm[/cyan]

Then in the configuration: [cyan]slos: \\[{name: chat, ttft: {learned: curves.yaml, slack: 300ms, fallback: \
2s}}][/cyan], [cyan]legato check[/cyan], and a SIGHUP to [bold]legato serve[/bold] (none where it has \
[bold]watch: on[/bold]).

Freeze while the server is well and has traffic as usual: the file says what is normal. From then on \
[bold]legato_prefill_drift_ratio[/bold] tells how far the server is from it.

Exit status: 0 written; 1 nothing to write yet, or the admin listener did not tell; 2 wrong usage, or the \
file is in the way or cannot be written."""


def freeze(
    admin: AdminUrl = ADMIN,
    token_file: TokenFile = None,
    out: Annotated[str, typer.Option(metavar="FILE", help="Where to write the curves (YAML).")] = _OUT,
    backend: Annotated[str | None, typer.Option(metavar="NAME", help="Only this backend's.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this model's ('' for requests that name none).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Write the learned prefill curves into a file, for deadlines that fit each prompt.

    A running Legato learns, per backend and model, how long the first token takes where nothing has to wait,
    by the length of the prompt. No request is judged by that until it is frozen: a deadline that followed a
    slowing server would hide the slowing. The file holds what this command wrote and nothing else: a backend
    that is left out has no curve in it, and its requests get the [bold]fallback[/bold].

    Only answers that tell their prompt's tokens teach: of OpenAI's streams, those whose clients ask for them
    by [cyan]stream_options: {include_usage: true}[/cyan].
    """
    if os.path.lexists(out) and not force:
        raise refuse(f"{out} is there already: give another --out, or --force to replace it", _WRONG)
    if (why := unwritable(out, replaced=True)) is not None:
        raise refuse(why, _WRONG)
    told = _ask(admin_of(admin, token_file))
    curves, reasons = _choose(told, backend, model)
    if not curves:
        raise refuse("\n".join(["no curve to write:", *(f"  {each}" for each in reasons)]), _NOT_WRITTEN)
    _write(out, curves)
    _show(out, curves, reasons)


def register(app: typer.Typer) -> None:
    """Add the command to ``legato``."""
    app.command(epilog=_EXAMPLES)(freeze)


# ---------------------------------------------------------------- asking


def _ask(listener: Admin) -> list[dict[str, Any]]:
    """What ``/api/curves`` tells; ends the command with the reason where it does not."""
    try:
        told = listener.get("/api/curves", timeout_s=_WAIT_S)
        return [dict(each) for each in told["prefill"]]
    except Unanswered as problem:
        raise refuse(problem, _NOT_WRITTEN) from None
    except (ValueError, TypeError, KeyError):
        raise refuse(another_version(listener.base), _NOT_WRITTEN) from None


# ---------------------------------------------------------------- choosing and writing


def _choose(
    told: list[dict[str, Any]], backend: str | None, model: str | None
) -> tuple[list[FrozenCurve], list[str]]:
    """The curves that were asked for, and a sentence for each that there is not."""
    from proxy.curves import FrozenCurve
    from scoring.prefill import Curve

    curves: list[FrozenCurve] = []
    reasons: list[str] = []
    try:
        names = [(str(each["backend"]), str(each["model"])) for each in told]
        for (of, name), each in zip(names, told, strict=True):
            if (backend is not None and backend != of) or (model is not None and model != name):
                continue
            live = each["live"]
            if live is None or live["curve"] is None:
                why = "no stream yet that could tell" if live is None else live["reason"]
                reasons.append(f"{_named(of, name)}: {why}")
                continue
            curve = Curve.from_plain(live["curve"])
            curves.append(FrozenCurve(of, name, curve, live["tbt_p50_s"], live["tbt_p99_s"]))
    except (ValueError, TypeError, KeyError) as error:
        told_wrong = f"what the admin listener told is not of this version of Legato ({error})"
        raise refuse(told_wrong, _NOT_WRITTEN) from None
    if not curves and not reasons:
        known = ", ".join(_named(*name) for name in names)
        reasons.append(
            f"nothing was learned of what you asked for, only of {known}"
            if known
            else "no stream has completed yet that could tell: let requests go through Legato first"
        )
    return curves, reasons


def _named(backend: str, model: str) -> str:
    return f"{backend}, {model or 'no model named'}"


def _write(out: str, curves: list[FrozenCurve]) -> None:
    from proxy.curves import FrozenCurves, write_curves

    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    try:
        write_curves(out, FrozenCurves(now, tuple(curves)))
    except OSError as error:
        raise refuse(f"{out} cannot be written: {error.strerror or error}", _WRONG) from None


# ---------------------------------------------------------------- saying


def _show(out: str, curves: list[FrozenCurve], reasons: list[str]) -> None:
    from rich.text import Text

    from proxy.commands.screen import console as plain_console
    from proxy.commands.screen import fitted

    rows = []
    for each in curves:
        low, high = each.curve.observed
        cells = (
            plain(each.backend),
            plain(each.model) or "(none named)",
            f"{low} to {high}",
            f"{_time(each.curve.at(low) / 1e9)} to {_time(each.curve.at(high) / 1e9)}",
            str(each.curve.samples),
            _time(each.tbt_p50_s),
            _time(each.tbt_p99_s),
            "quadratic" if each.curve.quadratic else "pieces",
        )
        rows.append([*map(Text, cells)])
    console = plain_console(160)
    console.print(fitted(_COLUMNS, rows, 2, console.width))
    for reason in reasons:
        typer.echo(f"left out: {plain(reason)}")
    for each in curves:
        for word in _warnings(each):
            typer.echo(f"care: {plain(word)}", err=True)
    typer.echo(f"wrote {out}; in the configuration, with it beside:")
    typer.echo("  slos:")
    typer.echo(f"  - {{name: NAME, ttft: {{learned: {os.path.basename(out)}, slack: 300ms, fallback: 2s}}}}")
    typer.echo("then `legato check FILE`, and SIGHUP to `legato serve` to put it in force")


def _warnings(frozen: FrozenCurve) -> list[str]:
    name, curve = _named(frozen.backend, frozen.model), frozen.curve
    out = []
    if curve.bimodal:
        share = (
            "" if curve.fast_share is None else f" ({curve.fast_share:.0%} of those that can be told apart)"
        )
        out.append(
            f"{name}: bimodal: a part of the requests{share} was much faster, most likely cache hits that "
            "the server does not report; the curve is that of the slow ones"
        )
    if curve.net_of_cache:
        out.append(
            f"{name}: the curve is of prompt tokens that were not cached; "
            "deadlines take every prompt for one without hits"
        )
    return out


def _time(value_s: float | None) -> str:
    if value_s is None:
        return "-"
    return f"{value_s:.3g} s" if value_s >= 1 else f"{value_s * 1e3:.3g} ms"
