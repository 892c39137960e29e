"""``legato experiment``: start and stop experiments, and put other weights in force, on a running Legato.

This module imports only what its flags need; what draws is imported when a command runs.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Annotated, Any, Final
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
    plain,
    refuse,
)
from proxy.units import parse_ratio

#: As the configuration has them (``settings.experiment.MetricName``).
METRICS: Final = ("good", "fluidity", "deadline_misses", "ttft", "log_ttft", "normalized_latency", "errors")
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)
_AUTHOR, _REASON = 100, 300  # characters

_EXAMPLES: Final = """[bold]Examples[/bold]

Begin, on a route with [cyan]split: {stable: 90, canary: 10}[/cyan]:

[cyan]legato experiment start new-vllm --control stable --candidate canary --margin 0.5%[/cyan]

More for the candidate: [cyan]legato experiment weights canary+stable canary=50 stable=50 --reason ramp[/cyan]

Read it, whenever you like: [cyan]legato compare new-vllm --watch[/cyan]

The end: [cyan]legato experiment stop new-vllm --reason "canary is better"[/cyan], then the weights into the \
file: until then it is an override, which goes with a restart.

Exit status: 0 done; 1 if the admin listener did not answer or refused; 2 for wrong usage."""

group = typer.Typer(
    name="experiment",
    help="Start and stop experiments, and put other weights in force.",
    epilog=_EXAMPLES,
    rich_markup_mode="rich",
    no_args_is_help=True,
)

_Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="The experiment.")]
_Author = Annotated[
    str | None, typer.Option(metavar="WHO", help="Who asks for it; shown. Default: the login name.")
]
_Token = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="The file of the token for changes (admin.write_token_file, or admin.token_file).",
    ),
]
_ReadToken = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="The file of the token for reading (admin.token_file), for changes that of "
        "admin.write_token_file.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="What the admin API answers.")]


@group.command()
def start(
    name: _Name,
    control: Annotated[str, typer.Option(metavar="BACKEND", help="The backend that is known.")],
    candidate: Annotated[str, typer.Option(metavar="BACKEND", help="The one it is compared with.")],
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where both are in several splits: which of them.")
    ] = None,
    metric: Annotated[
        str,
        typer.Option(metavar="METRIC", help=f"What decides: {', '.join(METRICS)}."),
    ] = "good",
    margin: Annotated[
        str | None,
        typer.Option(
            metavar="RATIO",
            help="A difference that nobody minds: 0.5% is half a point of a share, or half a percent of a "
            "time. Default: 0.5 points, of times 5%.",
        ),
    ] = None,
    requests: Annotated[
        int, typer.Option(metavar="N", min=50, help="How many of each arm it is planned for.")
    ] = 1000,
    alpha: Annotated[
        str, typer.Option(metavar="RATIO", help="The chance of ever calling a difference that is none.")
    ] = "5%",
    abort: Annotated[
        bool, typer.Option("--abort", help="Send everything back where the candidate is surely worse.")
    ] = False,
    author: _Author = None,
    admin: AdminUrl = ADMIN,
    token_file: _Token = None,
) -> None:
    """Begin to count: what was assigned to either backend, and how it went. Terms are fixed from here on."""
    for flag, text in (("NAME", name), ("--control", control), ("--candidate", candidate)):
        _named(flag, text)
    _metric(metric)
    _words("--split", split, most=1000)
    terms: dict[str, Any] = {"name": name, "control": control, "candidate": candidate, "metric": metric}
    terms |= {"requests": requests, "alpha": _ratio("--alpha", alpha), "abort": abort}
    terms |= {} if split is None else {"split": split}
    terms |= {} if margin is None else {"margin": _ratio("--margin", margin)}
    body = {**terms, "author": _who(author)}

    def done(listener: Admin) -> None:
        view = listener.send("POST", "/api/experiments", body)
        typer.echo(plain(f"started {view['spec']['name']} in split {view['split']}"))
        typer.echo(plain(f"  read it with: legato compare {view['spec']['name']} --watch"))

    _asking(admin, token_file, done)


@group.command()
def stop(
    name: _Name,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; shown.")],
    author: _Author = None,
    admin: AdminUrl = ADMIN,
    token_file: _Token = None,
) -> None:
    """End an experiment. Its figures stay, and so do the weights."""
    _words("--reason", reason, most=_REASON)
    word = {"author": _who(author), "reason": reason}

    def done(listener: Admin) -> None:
        view = listener.send("POST", f"/api/experiments/{quote(name, safe='')}/stop", word)
        typer.echo(plain(f"stopped {view['spec']['name']}: {view['headline']}"))
        typer.echo("  the weights stay as they are: `legato experiment weights` shows them")

    _asking(admin, token_file, done)


@group.command()
def weights(
    split: Annotated[
        str | None,
        typer.Argument(metavar="SPLIT", show_default=False, help="The split; without one, all are shown."),
    ] = None,
    arms: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="BACKEND=WEIGHT...", show_default=False, help="One for each backend of the split."
        ),
    ] = None,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why; shown.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="The file's weights again.")] = False,
    author: _Author = None,
    admin: AdminUrl = ADMIN,
    token_file: _ReadToken = None,
) -> None:
    """Show weights, or put others in place of the file's: on all hosts, with who and why, until it changes.

    Streams in flight are not touched. The configuration file wins at a restart, and where its weights change.
    """
    given = dict(_arm(text) for text in arms or [])
    if given and clear:
        raise typer.BadParameter("give weights, or --clear", param_hint="--clear")
    if (given or clear) and split is None:
        raise typer.BadParameter("name the split", param_hint="SPLIT")
    if (given or clear) and reason is None:
        raise typer.BadParameter("say why the weights change", param_hint="--reason")
    _words("--reason", reason, most=_REASON)
    if len(given) < len(arms or []):
        raise typer.BadParameter("a backend is named twice", param_hint="BACKEND=WEIGHT")

    def done(listener: Admin) -> None:
        if not given and not clear:
            _show_splits(listener.get("/api/splits")["splits"], split)
            return
        path = f"/api/splits/{quote(split or '', safe='')}/weights"
        word = {"author": _who(author), "reason": reason}
        if clear:
            view = listener.send("DELETE", path, word)
        else:
            view = listener.send("PUT", path, {"weights": given, **word})
        _show_splits([view], None)

    _asking(admin, token_file, done)


@group.command()
def status(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", show_default=False, help="The experiment; or all.")
    ] = None,
    as_json: _Json = False,
    admin: AdminUrl = ADMIN,
    token_file: TokenFile = None,
) -> None:
    """Show experiments and how they stand, and the weights of all splits."""

    def done(listener: Admin) -> None:
        path = "/api/experiments" if name is None else f"/api/experiments/{quote(name, safe='')}"
        told = listener.get(path)
        if as_json:
            sys.stdout.write(json.dumps(told) + "\n")
            return
        views = told["experiments"] if name is None else [told]
        for view in views:
            _show_experiment(view)
        if not views:
            typer.echo("no experiment; start one: legato experiment start NAME --control A --candidate B")
        if name is None:
            _show_splits(listener.get("/api/splits")["splits"], None)

    _asking(admin, token_file, done)


def register(app: typer.Typer) -> None:
    """Add the commands to ``legato``."""
    app.add_typer(group)


# ---------------------------------------------------------------- what was given


def _asking(admin: str, token_file: str | None, done: Callable[[Admin], None]) -> None:
    """Ask, or end the command with the reason why not."""
    listener = admin_of(admin, token_file)
    try:
        done(listener)
    except Unanswered as problem:
        raise refuse(problem) from None
    except (LookupError, TypeError, AttributeError):
        raise refuse(another_version(listener.base)) from None


def _ratio(flag: str, text: str) -> float:
    try:
        return parse_ratio(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from error


def _named(flag: str, text: str) -> None:
    if not _WORD.fullmatch(text):
        raise typer.BadParameter(
            f"{text!r}: a name has letters, digits, _, . and -, at most 63, the first a letter or a digit",
            param_hint=flag,
        )


def _metric(text: str) -> None:
    if text not in METRICS:
        close = get_close_matches(text, METRICS, n=1)
        mend = f"did you mean {close[0]}?" if close else f"there are {', '.join(METRICS)}"
        raise typer.BadParameter(f"{text!r} is no metric: {mend}", param_hint="--metric")


def _words(flag: str, text: str | None, most: int) -> None:
    if text is None:
        return
    if not text.strip():
        raise typer.BadParameter("it is empty: write a few words", param_hint=flag)
    if len(text) > most:
        raise typer.BadParameter(f"{len(text)} characters: at most {most} are kept", param_hint=flag)


def _arm(text: str) -> tuple[str, int]:
    name, _, weight = text.rpartition("=")
    if not name or not (weight.isascii() and weight.isdigit()):
        raise typer.BadParameter(
            f"{text!r}: write a backend and its weight, for example canary=20", param_hint="BACKEND=WEIGHT"
        )
    return name, int(weight)


def _who(author: str | None) -> str:
    """The author, else the login name."""
    if author is not None:
        _words("--author", author, most=_AUTHOR)
        return author
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise typer.BadParameter("this user has no name: say who asks", param_hint="--author") from None


# ---------------------------------------------------------------- showing


def _show_experiment(view: Any) -> None:
    from proxy.commands.told import experiment_lines

    _print(experiment_lines(view))


def _show_splits(views: list[Any], only: str | None) -> None:
    from proxy.commands.told import split_lines

    if only is not None and all(view["name"] != only for view in views):
        known = ", ".join(view["name"] for view in views) or "none"
        raise Unanswered(f"there is no split {only!r}\n  known are: {known}")
    for view in views:
        if only in (None, view["name"]):
            _print(split_lines(view))
    if not views:
        typer.echo("no route has a split over several backends")


def _print(lines: Iterable[str]) -> None:
    for line in list(lines):  # all or nothing
        typer.echo(plain(line))
