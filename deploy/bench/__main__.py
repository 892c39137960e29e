"""``python -m deploy.bench``: what Legato costs, beside no proxy, itself and other proxies."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from rich.console import Console

from deploy.bench import dialects
from deploy.bench.figures import Results
from deploy.bench.loads import Load, chosen, wants_dialects
from deploy.bench.processes import Cores, pinned
from deploy.bench.programs import BenchError, build
from deploy.bench.report import machine, show, write
from deploy.bench.rounds import Bench, run_folder, run_rounds
from deploy.bench.targets import Target, available, usual
from proxy.commands.outfile import unwritable


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, help="interleaved rounds (5; 2 with --quick)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and only the main loads")
    parser.add_argument("--only", help="loads, comma-separated; see deploy/bench/README.md")
    parser.add_argument("--targets", help="targets, comma-separated; see deploy/bench/README.md")
    parser.add_argument("--out", type=Path, default=Path("bench-results.json"), help="where the JSON goes")
    given = parser.parse_args(arguments)
    if (why := unwritable(given.out)) is not None:
        parser.error(f"--out: {why}")
    return given


def choose_targets(only: str | None) -> list[Target]:
    """Targets by name; ``ValueError`` names the unknown ones."""
    if only is None:
        return usual()
    have = available()
    wanted = [name.strip() for name in only.split(",")]
    unknown = sorted(set(wanted) - {target.name for target in have})
    if unknown:
        names = ", ".join(target.name for target in have)
        raise ValueError(f"unknown target {', '.join(map(repr, unknown))}; here there are: {names}")
    return [target for target in have if target.name in wanted]


def run(given: argparse.Namespace, loads: list[Load], targets: list[Target], console: Console) -> Results:
    """Build, measure, and show progress."""
    rounds = given.rounds or (2 if given.quick else 5)
    rows = []
    with run_folder() as folder:
        bench = Bench(build(folder), Cores.choose(), folder)
        # The bench itself, too: who reads summaries must not do so on the proxy's core.
        with pinned(bench.cores.load), console.status("starting") as status:
            try:
                for row in run_rounds(bench, targets, loads, rounds, lambda text: status.update(text)):
                    rows.append(row)
            except KeyboardInterrupt:
                console.print("interrupted: what was measured so far follows", style="yellow")
    return Results(rows)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0; 1 when a stream was lost or broken anywhere; 2 when it could not run."""
    given = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what was started, too
    console = Console() if sys.stdout.isatty() else Console(width=150)
    try:
        loads, targets = chosen(given.only, given.quick), choose_targets(given.targets)
        results = run(given, loads, targets, console) if loads else Results([])
        costs = dialects.measure() if wants_dialects(given.only) else {}
    except (BenchError, ValueError) as error:
        Console(stderr=True).print(f"bench: {error}", style="red", markup=False, highlight=False)
        return 2
    where = machine(Cores.choose())
    if loads:
        show(console, results, where)
    if costs:
        dialects.show(console, costs)
    write(given.out, results, where, loads, costs)
    console.print(f"written: {given.out}")
    return 1 if results.faults() else 0


if __name__ == "__main__":
    sys.exit(main())
