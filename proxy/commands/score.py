"""``legato score FILE...``: the scores of trace files, as tables or as one JSON object.

This module imports only what its flags need; what computes is imported when the command runs.
"""

from __future__ import annotations

import heapq
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from proxy.commands.traces import opened, progress
from proxy.units import parse_ratio, parse_seconds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from proxy.offline import BadLine, Overrides, Scored, Summary

_WORST = 20  # rows of a table
_NAMED = 1000  # bad lines of a file that are named one by one
#: Written without a unit: seconds, as promised, though seldom meant where there is no fraction.
_WHOLE = re.compile("[1-9][0-9]*", re.ASCII)

_COLUMNS = (
    "id",
    "fluidity",
    "on time",
    "met",
    "missed",
    "stalls",
    "ttft",
    "tbt p50",
    "p99",
    "max",
    "least tbt",
    "end",
)

_EXAMPLES = """[bold]Examples[/bold]

What a stricter promise would have meant: [cyan]legato score trace.jsonl --tbt 30ms[/cyan]

For a script: [cyan]legato score --json trace.jsonl | jq .summary[/cyan]

Exit status: 0; 1 if a line could not be scored (each is named); 2 for wrong usage or a missing file."""


def score(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Trace files as --trace-log writes them; - is standard input."),
    ],
    ttft: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Deadline of the first token (100ms; plain seconds: 0.1) for all."),
    ] = None,
    tbt: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Deadline from token to token (50ms; plain seconds: 0.05) for all."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="RATIO", help="Fluidity to reach (0.9 or 90%), for all."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object over all files: requests and summary.")
    ] = False,
) -> None:
    """Score recorded streams again, by their own deadlines or by others."""
    from proxy.offline import Overrides

    overrides = Overrides(
        _duration("--ttft", ttft, least=0), _duration("--tbt", tbt, least=1), _ratio("--target", target)
    )
    for flag, text in (("--ttft", ttft), ("--tbt", tbt)):
        if text is not None and _WHOLE.fullmatch(text.strip()):
            typer.echo(f"legato: {flag} {text} is {text} seconds; if not: {flag} {text}ms", err=True)
    with ExitStack() as stack:
        streams = [(name, stack.enter_context(opened(name))) for name in files]
        bad = _run(streams, overrides, as_json)
    raise typer.Exit(1 if bad else 0)


def register(app: typer.Typer) -> None:
    """Add the command to ``legato``."""
    app.command(epilog=_EXAMPLES)(score)


# ---------------------------------------------------------------- what was asked for


def _duration(flag: str, text: str | None, least: int) -> int | None:
    if text is None:
        return None
    try:
        ns = parse_seconds(text)
        if ns < least:
            raise ValueError(f"{text!r} is too short: give at least 1ns")
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from error
    return ns


def _ratio(flag: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return parse_ratio(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from error


# ---------------------------------------------------------------- the work


def _run(streams: list[tuple[str, BinaryIO]], overrides: Overrides, as_json: bool) -> int:
    """Score all files; returns how many lines were bad."""
    from proxy.offline import Summary

    total = Summary()
    with progress(streams) as (console, advance):
        runs = [(name, _Run(stream, name, overrides, total, console, advance)) for name, stream in streams]
        if as_json:
            _print_json([run for _, run in runs], total)
        else:
            for name, run in runs:
                _print_table(name, run, _judged(overrides))
            if len(runs) > 1:
                _print_total(total)
    return total.bad_lines


class _Run:
    """Iterates over the requests of one file, once; counts them in two summaries and names bad lines."""

    def __init__(
        self,
        stream: BinaryIO,
        name: str,
        overrides: Overrides,
        total: Summary,
        errors: Console,
        advance: Callable[[int], None],
    ) -> None:
        from proxy.offline import Summary, score_stream

        self.summary = Summary()
        self._total = total
        self._name = "standard input" if name == "-" else name
        self._errors = errors
        self._results = score_stream(stream, self._name, overrides, advance)

    def __iter__(self) -> Iterator[Scored]:
        from proxy.offline import BadLine

        for result in self._results:
            if isinstance(result, BadLine):
                self._name_bad(result)
                continue
            self.summary.add(result)
            self._total.add(result)
            yield result
        left = self.summary.bad_lines - _NAMED
        if left > 0:
            self._say(f"{self._name}: {left} more lines could not be scored")

    def _name_bad(self, bad: BadLine) -> None:
        self.summary.bad_lines += 1
        self._total.bad_lines += 1
        if self.summary.bad_lines <= _NAMED:
            self._say(str(bad))

    def _say(self, text: str) -> None:
        self._errors.print(_plain(text), markup=False, highlight=False, soft_wrap=True)


def _plain(text: str) -> str:
    """Text from a file, fit for a terminal: what cannot be printed becomes a question mark."""
    return "".join(char if char.isprintable() else "?" for char in text)


# ---------------------------------------------------------------- as JSON


def _print_json(runs: list[_Run], total: Summary) -> None:
    """One object, written as it comes: a request a line."""
    import msgspec

    from proxy.offline import request_json

    encode = msgspec.json.encode
    out = sys.stdout
    out.write('{"requests":[')
    separator = "\n"
    for run in runs:
        for scored in run:
            out.write(separator + encode(request_json(scored)).decode())
            separator = ",\n"
    out.write('\n],"summary":' + encode(total.to_json()).decode() + "}\n")


# ---------------------------------------------------------------- as tables


def _judged(by: Overrides) -> str:
    """By which deadlines: those that were given, else each line's own."""
    given = [f"ttft {_time(by.ttft_ns)}"] if by.ttft_ns is not None else []
    given += [f"tbt {_time(by.tbt_ns)}"] if by.tbt_ns is not None else []
    given += [f"target {by.target:.4g}"] if by.target is not None else []
    own = [name for name, value in (("ttft", by.ttft_ns), ("tbt", by.tbt_ns)) if value is None]
    given += [f"each line's own {' and '.join(own)}"] if own else []
    return f"judged by {', '.join(given)}"


def _print_table(name: str, run: _Run, judged: str) -> None:
    from rich.text import Text

    from proxy.commands.screen import fitted

    rows = _worst(run)
    shown = "" if len(rows) == run.summary.requests else f", the {len(rows)} worst by fluidity"
    count = run.summary.requests
    title = _plain(f"{name}: {count} request{'' if count == 1 else 's'}{shown}; {judged}")
    out = _out()
    out.print(Text(title, style="bold"), soft_wrap=True)
    if rows:
        out.print(fitted(_COLUMNS, [_row(scored) for scored in rows], 1, out.width))
    _print_total(run.summary, "")


def _row(scored: Scored) -> list[Text]:
    from rich.text import Text

    one = scored.score
    under = one.fluidity is not None and one.fluidity < scored.target
    tbt = (None, None, None) if one.tbt is None else (one.tbt.p50_ns, one.tbt.p99_ns, one.tbt.max_ns)
    cells = [
        _number(one.on_time_ratio),
        str(one.met),
        str(one.missed),
        str(one.stall_count),
        *(_time(ns) for ns in (one.ttft_ns, *tbt, one.least_tbt_ns)),
        "cut" if one.censored else "",
    ]
    fluidity = Text(_number(one.fluidity), style="bold red" if under else "")
    return [Text(_plain(scored.id)), fluidity, *map(Text, cells)]


def _worst(run: _Run) -> list[Scored]:
    """The requests with the least fluidity, undefined ones last; in the file's order among equals."""
    kept: list[tuple[float, int, Scored]] = []
    for order, scored in enumerate(run):
        fluidity = 2.0 if scored.score.fluidity is None else scored.score.fluidity
        item = (-fluidity, -order, scored)
        if len(kept) < _WORST:
            heapq.heappush(kept, item)
        else:
            heapq.heappushpop(kept, item)
    return [scored for _, _, scored in sorted(kept, reverse=True)]


def _print_total(summary: Summary, title: str = "all files") -> None:
    from rich.text import Text

    said: dict[str, Any] = summary.to_json()
    rate = said["fluid_token_rate"]
    lines = [
        f"{title}: {summary.requests} requests" if title else "",
        f"  fluidity p1 {_number(said['fluidity']['p1'])}, p50 {_number(said['fluidity']['p50'])}"
        f" ({said['quantiles']})",
        f"  deadline miss rate {_share(said['deadline_miss_rate'])}, "
        f"requests under target {_share(said['share_under_target'])}",
        f"  fluid token rate {f'{rate:.4g} tokens/s' if rate is not None else 'none'}"
        + (f" ({said['fluid_token_rate_reason']})" if rate is None else ""),
        f"  bad lines {summary.bad_lines}" if summary.bad_lines else "",
    ]
    _out().print(Text("\n".join(line for line in lines if line)), soft_wrap=True)
    _out().print()


def _out() -> Console:
    """Standard output; wide enough for the table where no terminal sets the width."""
    from proxy.commands.screen import console

    return console(160)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _time(ns: int | None) -> str:
    """A duration in a few digits."""
    if ns is None:
        return "-"
    for unit, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}" if ns < 1000 * size else f"{ns / size:.0f} {unit}"
    return f"{ns} ns"
