"""``python -m deploy.bench.soak``: an hour of streams with Redis, OTLP and scraping on; is anything growing?

Every ten seconds the memory and the descriptors of each process are noted.  Flat is what in the last quarter
has a median at most 5% (or 4 MB, or 8 descriptors) above that of the second quarter: what fills once (books,
pools, allocators) has filled by then.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.bench.backing import Backing, backing, scraping
from deploy.bench.processes import Cores, command_line, cpu_ns, family, free_port, rss_bytes, started
from deploy.bench.programs import BenchError, build
from deploy.bench.rounds import run_folder
from proxy.commands.outfile import unwritable

EVERY_S = 10.0
EVENTS = 250
CLIENTS = 4
#: Of the settled requests these are told by the control process.
_ROLES = {"proxy.relay.worker": "data", "proxy.control.controller": "control", "redis-server": "redis"}
_FAULTS = ("lost", "out_of_order", "bad_status", "broken", "unfinished")


@dataclass
class Sample:
    """One process's role at one moment."""

    at_s: float
    rss_mb: float
    descriptors: int


@dataclass
class Soak:
    """What was seen."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    waves: list[dict[str, Any]] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=dict)
    elapsed_s: float = 0.0

    def total(self, name: str) -> int:
        """A number of the load clients over all waves."""
        return sum(int(wave[name]) for wave in self.waves)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--streams", type=int, default=1000, help="streams in flight, about (1000)")
    parser.add_argument("--interval-ms", type=int, default=200, help="from token to token (200)")
    parser.add_argument("--out", type=Path, default=Path("soak-results.json"), help="where the JSON goes")
    given = parser.parse_args(arguments)
    if (why := unwritable(given.out)) is not None:
        parser.error(f"--out: {why}")
    return given


def role(pid: int) -> str | None:
    """What a process is to us."""
    line = command_line(pid)
    return next((word for part, word in _ROLES.items() if part in line), None)


def look(soak: Soak, pids: Sequence[int], at_s: float) -> None:
    """Note memory and descriptors by role."""
    seen: dict[str, list[int]] = {}
    for pid in pids:
        if (word := role(pid)) is not None:
            seen.setdefault(word, []).append(pid)
    for word, held in seen.items():
        descriptors = 0
        for pid in held:
            with suppress(OSError):
                descriptors += len(os.listdir(f"/proc/{pid}/fd"))
        soak.samples.setdefault(word, []).append(Sample(at_s, rss_bytes(held) / 1e6, descriptors))
        soak.cpu_s[word] = cpu_ns(held) / 1e9


class Clients:
    """Load clients that send wave after wave until told to stop, out of step with each other."""

    def __init__(self, soak: Soak, command: Sequence[str], core: int | None, wave_s: float) -> None:
        self._stop = threading.Event()
        self._soak, self._command, self._core = soak, command, core
        self._threads = [
            threading.Thread(target=self._run, args=(wave_s * turn / CLIENTS,), daemon=True)
            for turn in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No new wave; those under way finish."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, delay_s: float) -> None:
        self._stop.wait(delay_s)
        while not self._stop.is_set():
            process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
            if self._core is not None:
                os.sched_setaffinity(process.pid, {self._core})
            out, _ = process.communicate()
            with suppress(ValueError):
                self._soak.waves.append(json.loads(out))


def run(given: argparse.Namespace, console: Console) -> tuple[Soak, dict[str, Any]]:
    """Start everything, watch it, and what Legato itself says at the end."""
    soak, cores = Soak(), Cores.choose()
    upstream_port, port, admin = free_port(), free_port(), free_port()
    with run_folder() as folder, ExitStack() as stack:
        programs = build(folder)
        behind = stack.enter_context(backing(folder, cores.load))
        stack.enter_context(
            started(
                [str(programs.upstream), str(upstream_port)], upstream_port, cores.load, folder / "up.log"
            )
        )
        file = behind.write_config(
            folder / "legato.yaml",
            f"http://127.0.0.1:{upstream_port}",
            f"127.0.0.1:{port}",
            f"127.0.0.1:{admin}",
        )
        command = [sys.executable, "-m", "proxy.cli", "serve", "--config", str(file), "--access-log", "off"]
        legato = stack.enter_context(started(command, port, cores.proxy, folder / "legato.log"))
        stack.enter_context(scraping(admin, 5.0))
        wave_s = EVENTS * given.interval_ms / 1e3
        load = (
            f"{programs.load} {port} stream --connections {given.streams // CLIENTS} --events {EVENTS} "
            f"--interval-us {given.interval_ms * 1000} --spread-ms {wave_s * 50:.0f} "
            f"--seconds {wave_s * 3:.0f}"
        )
        clients = Clients(soak, load.split(), cores.load, wave_s)
        _watch(soak, given.minutes * 60, legato.pid, behind, console)
        clients.stop()
        time.sleep(12)  # until the last slot was written
        said = _what_it_says(admin) | {"collector": behind.collected()}
    return soak, said


def _watch(soak: Soak, seconds: float, pid: int, behind: Backing, console: Console) -> None:
    began = time.monotonic()
    with console.status("warming up") as status:
        while (at_s := time.monotonic() - began) < seconds:
            look(soak, [*family(pid), behind.redis_pid], at_s)
            now = ", ".join(
                f"{word} {held[-1].rss_mb:.0f} MB {held[-1].descriptors} fds"
                for word, held in soak.samples.items()
            )
            status.update(
                f"{at_s / 60:.1f} of {seconds / 60:.0f} min: {soak.total('streams'):,} streams; {now}"
            )
            time.sleep(EVERY_S)
    soak.elapsed_s = time.monotonic() - began


def _what_it_says(admin: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/api/summary?scope=host", timeout=20) as answer:
        whole = json.load(answer)
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/api/summary?window=6h", timeout=20) as answer:
        merged = json.load(answer)
    return {
        "requests": whole["total"]["requests"],
        "merged": merged["total"]["requests"],
        "scope": merged["scope"],
        "proxy": whole["proxy"],
    }


def verdicts(soak: Soak) -> list[tuple[str, str, float, float, bool]]:
    """Per role and figure: (role, figure, second quarter, last quarter, flat)."""
    out = []
    for word, held in soak.samples.items():
        end_s = held[-1].at_s
        early = [each for each in held if 0.25 <= each.at_s / end_s < 0.5]
        late = [each for each in held if each.at_s / end_s >= 0.75]
        for name, room in (("rss_mb", 4.0), ("descriptors", 8.0)):
            before, after = (
                statistics.median(float(getattr(each, name)) for each in part) for part in (early, late)
            )
            out.append((word, name, before, after, after <= max(before * 1.05, before + room)))
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 when something grew, was lost or broken; 2 when it could not run."""
    given = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    try:
        soak, said = run(given, console)
    except BenchError as error:
        Console(stderr=True).print(f"soak: {error}", style="red", markup=False, highlight=False)
        return 2
    found = verdicts(soak)
    table = Table(title=f"{soak.elapsed_s / 60:.0f} minutes, about {given.streams} streams in flight")
    for name in ("process", "figure", "second quarter", "last quarter", ""):
        table.add_column(name)
    for word, name, before, after, flat in found:
        table.add_row(word, name, f"{before:.1f}", f"{after:.1f}", "flat" if flat else "[red]grew")
    console.print(table)
    streams, events = soak.total("streams"), soak.total("events")
    settled, merged = said["requests"], said["merged"]
    console.print(f"{streams:,} streams, {events:,} events; settled {settled:,}, in Redis {merged:,}")
    for word, used_s in soak.cpu_s.items():
        per = f", {used_s * 1e6 / events:.2f} us per event" if events else ""
        console.print(f"{word}: {used_s / soak.elapsed_s:.1%} of a core{per}")
    console.print(f"own share: {said['proxy']}\ncollector: {said['collector']}", highlight=False)
    faults = {name: soak.total(name) for name in _FAULTS}
    console.print(f"faults: {faults}")
    given.out.write_text(
        json.dumps(
            {
                "samples": {word: [vars(each) for each in held] for word, held in soak.samples.items()},
                "waves": soak.waves,
                "cpu_s": soak.cpu_s,
                "said": said,
            }
        )
    )
    sound = all(flat for *_, flat in found) and not any(faults.values())
    return 0 if sound and settled == merged == streams and said["scope"] == "fleet" else 1


if __name__ == "__main__":
    sys.exit(main())
