"""The command ``legato``: serve, check, report, score, freeze, compare, experiment, demo, version.

Nothing heavy is imported before a command needs it: ``legato --help`` answers at once.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from proxy.config import Boot, Config

_BAD_CONFIG = 2
_NO_FILE = "  no file was given: legato check FILE, or LEGATO_CONFIG"

app = typer.Typer(
    name="legato",
    help="A transparent proxy in front of an LLM server that scores every stream while it flows.",
    epilog="Start here: [bold]legato serve --upstream http://127.0.0.1:8000[/bold], then send requests to "
    "http://127.0.0.1:8080. Without a server at hand: [bold]legato demo[/bold].",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

_SERVE_EXAMPLES = """[bold]Examples[/bold]

One server behind it: [cyan]legato serve --upstream http://127.0.0.1:8000[/cyan]

Stricter promises: [cyan]legato serve --upstream http://127.0.0.1:8000 --ttft 300ms --tbt 30ms[/cyan]

Everything else in a file: [cyan]legato serve --config legato.yaml[/cyan]

Flags win over LEGATO_ variables (LEGATO_TIMEOUTS__CONNECT=2s), those over the file.

SIGHUP reloads the file. SIGTERM lets streams finish, Ctrl-C too, without drain_delay; twice ends at once."""


def _version() -> str:
    from importlib.metadata import version

    return version("legato")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"legato {_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """What ``legato`` takes without a command."""


@app.command(epilog=_SERVE_EXAMPLES)
def serve(
    upstream: Annotated[
        str | None,
        typer.Option(help="The server's URL: the one backend, named [bold]default[/bold].", metavar="URL"),
    ] = None,
    ttft: Annotated[
        str | None,
        typer.Option(
            help="Deadline of the first token, with its unit. [dim]default: 500ms[/dim]", metavar="TIME"
        ),
    ] = None,
    tbt: Annotated[
        str | None,
        typer.Option(help="Deadline of each further token. [dim]default: 50ms[/dim]", metavar="TIME"),
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            help="Where clients connect: host:port or unix:/path; may be repeated. "
            "[dim]default: 127.0.0.1:8080[/dim]",
            metavar="ADDRESS",
        ),
    ] = None,
    admin: Annotated[
        str | None,
        typer.Option(
            help="Where /metrics, probes and the API are. [dim]default: 127.0.0.1:9464[/dim]",
            metavar="ADDRESS",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config", "-c", help="A YAML file with all other settings (or LEGATO_CONFIG).", metavar="FILE"
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Data processes. [dim]default: 1[/dim]", metavar="N")
    ] = None,
    access_log: Annotated[
        str | None,
        typer.Option(
            help="One JSON line per request: off, - or a path. [dim]default: -[/dim]", metavar="WHERE"
        ),
    ] = None,
    trace_log: Annotated[
        str | None,
        typer.Option(help="Write arrivals for [bold]legato score[/bold]: off or a path.", metavar="WHERE"),
    ] = None,
    tls_cert: Annotated[
        str | None, typer.Option(help="Serve clients over TLS: certificate chain (PEM).", metavar="FILE")
    ] = None,
    tls_key: Annotated[
        str | None, typer.Option(help="The certificate's private key (PEM).", metavar="FILE")
    ] = None,
) -> None:
    """Forward requests to an LLM server and score every stream.

    Bytes pass through untouched; what users felt is on the admin listener: [cyan]/metrics[/cyan] for
    Prometheus, [cyan]/api/requests?sort=worst[/cyan] for people.
    """
    from proxy.config import default_file

    given = {
        "upstream": upstream,
        "ttft": ttft,
        "tbt": tbt,
        "listen": listen or None,
        "admin": admin,
        "workers": workers,
        "access_log": access_log,
        "trace_log": trace_log,
        "tls.cert_file": tls_cert,
        "tls.key_file": tls_key,
    }
    boot: Boot = {
        "file": config or default_file(),
        "flags": {name: value for name, value in given.items() if value is not None},
    }
    read = _load(boot)
    for sentence in read.notes:
        typer.echo(f"legato: {sentence}", err=True)
    start = {**boot, "bind": _bind(read)}
    sys.stdout.flush()
    sys.stderr.flush()
    # -P: modules come from where this one is installed, never from the working directory.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "proxy.supervisor", "--boot", json.dumps(start)])


@app.command()
def check(
    file: Annotated[
        str | None,
        typer.Argument(help="A YAML file; without one, LEGATO_CONFIG.", metavar="FILE", show_default=False),
    ] = None,
) -> None:
    """Check a configuration, LEGATO_ variables included: a summary, or every problem at once.

    Each problem comes with its place, the value and the mend. Exit status: 0 ok, 2 if anything is wrong.
    """
    from proxy.config import default_file

    path = file or default_file()
    typer.echo(_summary(path, _load({"file": path, "flags": {}}, beside=_NO_FILE)))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"legato {_version()}")


def _load(boot: Boot, beside: str = "") -> Config:
    """The configuration; prints everything that is wrong and exits 2.

    ``beside`` is printed too where there is no server because there is no file.
    """
    from proxy.config import ConfigErrors, load

    try:
        return load(boot)
    except ConfigErrors as errors:
        typer.echo(f"legato: {errors}", err=True)
        if beside and boot["file"] is None and any("no server" in each.mend for each in errors.problems):
            typer.echo(beside, err=True)
        raise typer.Exit(_BAD_CONFIG) from None


def _bind(config: Config) -> dict[str, Any]:
    """What the supervisor needs without reading the configuration itself."""
    second = 1_000_000_000
    shown = [
        f"{name} {backend.url or 'unix:' + str(backend.uds)}" for name, backend in config.backends.items()
    ]
    more = [f"and {len(shown) - 3} more"] if len(shown) > 4 else []
    return {
        "listen": list(config.listen),
        "admin": config.admin.listen,
        "workers": config.workers,
        "drain_delay_s": config.timeouts.drain_delay / second,
        "drain_s": config.timeouts.drain / second,
        "upstreams": ", ".join([*(shown[:3] if more else shown), *more]),
        "tls": config.tls.cert_file is not None,
        "version": _version(),
    }


def _summary(path: str | None, config: Config) -> str:
    from proxy.config import cares, destinations
    from proxy.words import conditions, destination, ejection, experiment, promise

    scheme = "https" if config.tls.cert_file else "http"
    rows: list[tuple[str, str]] = [("listen", f"{where} ({scheme})") for where in config.listen]
    rows.append(("admin", config.admin.listen + (" with a token" if config.admin.token else "")))
    for name, backend in config.backends.items():
        over = f" over unix:{backend.uds}" if backend.uds else ""
        rows.append(("backend", f"{name}: {backend.url or 'http://localhost'}{over}"))
    for route in config.routes:
        rows.append(("route", f"{conditions(route.match)} -> {destination(route)}"))
    if not any(route.match.everything for route in config.routes):
        rest = "everything else -> 404" if config.routes else f"everything -> {next(iter(config.backends))}"
        rows.append(("route", rest))
    rows += [("slo", promise(slo)) for slo in config.slos]
    rows += [("compare", sentence) for sentence in experiment(config)]
    rows += [("eject", sentence) for sentence in ejection(config)]
    rows += destinations(config)
    rows += [("care", sentence) for sentence in cares(config)]
    return "\n".join(
        [f"ok: {path or 'defaults and variables'}", *(f"  {kind:<8} {text}" for kind, text in rows)]
    )


def _register() -> None:
    """Add the commands that live elsewhere; their modules import what is heavy when they run."""
    from deploy.demo import command as demo
    from proxy.commands import alerts, compare, experiment, freeze, report, score

    report.register(app)
    score.register(app)
    freeze.register(app)
    alerts.register(app)
    compare.register(app)
    experiment.register(app)
    demo.register(app)
    _flow(app)


def _flow(group: typer.Typer) -> None:
    """Let the help of every command flow to the terminal's width: only empty lines end a paragraph."""
    for held in group.registered_commands:
        text = held.help or (held.callback.__doc__ if held.callback else None)
        held.help = text and _paragraphs(inspect.cleandoc(text))
        held.epilog = held.epilog and _paragraphs(held.epilog)
    for inner in [each.typer_instance for each in group.registered_groups if each.typer_instance]:
        if isinstance(inner.info.epilog, str):
            inner.info.epilog = _paragraphs(inner.info.epilog)
        _flow(inner)


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def main() -> None:
    """The console script."""
    _register()
    app(prog_name="legato")


if __name__ == "__main__":
    main()
