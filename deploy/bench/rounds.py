"""Interleaved rounds: in each, every target is started, measured under every load, and stopped again."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.bench.backing import backing, kept_busy, scraping
from deploy.bench.loads import Load
from deploy.bench.processes import Cores, command_line, cpu_ns, family, free_port, pinned, rss_bytes, started
from deploy.bench.programs import BenchError, Programs, make_certificate
from deploy.bench.shadow import check_copies, hanging, write_config
from deploy.bench.summaries import summaries
from deploy.bench.targets import Command, Target, legato_tls

Row = dict[str, Any]
WARM_UP = (
    "stream --connections 8 --events 50 --interval-us 2000 --spread-ms 50",
    "requests --connections 4 --seconds 0.5",
)
SAMPLE_S = 0.2


@dataclass(frozen=True)
class Bench:
    """What a run has: its programs, cores and folder."""

    programs: Programs
    cores: Cores
    folder: Path


@dataclass(frozen=True)
class Running:
    """A target that runs in front of an upstream; ``pid`` is None for the direct way."""

    target: Target
    port: int
    admin_port: int
    upstream_port: int
    pid: int | None

    def pids(self) -> list[int]:
        """Every process of the target."""
        return family(self.pid) if self.pid is not None else []

    def data_pids(self) -> list[int]:
        """The processes that carry the data: Legato's workers, everything of the others."""
        everything = self.pids()
        workers = [pid for pid in everything if "proxy.relay.worker" in command_line(pid)]
        return workers or everything


def run_rounds(
    bench: Bench, targets: Sequence[Target], loads: Sequence[Load], rounds: int, say: Callable[[str], None]
) -> Iterator[Row]:
    """Every measurement, as it is made; the order of the targets turns from round to round."""
    for number in range(rounds):
        turn = number % len(targets)
        for target in [*targets[turn:], *targets[:turn]]:
            for tls in (False, True):
                due = [load for load in loads if (load.tls == "on") == tls and _fits(load, target)]
                for load, row in _measure_all(bench, target, due, tls):
                    say(f"round {number + 1}/{rounds}: {target.name}, {load.name}")
                    yield {"round": number, "target": target.name, "load": load.name} | row


def _measure_all(
    bench: Bench, target: Target, loads: Sequence[Load], tls: bool
) -> Iterator[tuple[Load, Row]]:
    """Each load on one instance, and on a fresh one where the last load left streams unfinished behind it."""
    due = list(loads)
    while due:
        with running(bench, target, tls) as instance:
            if not tls:
                warm_up(bench, instance)
            left_over = False
            while due and not left_over:
                load = due.pop(0)
                row = measure(bench, instance, load)
                left_over = bool(row["unfinished"])
                yield load, row


def _fits(load: Load, target: Target) -> bool:
    return (not (load.scraped or load.summaries) or target.admin) and (load.tls is None or target.tls)


@contextmanager
def running(bench: Bench, target: Target, tls: bool) -> Iterator[Running]:
    """A fresh upstream and a fresh target in front of it."""
    upstream_port, port, admin_port = free_port(), free_port(), free_port()
    upstream = [str(bench.programs.upstream), str(upstream_port)]
    with (
        started(upstream, upstream_port, bench.cores.load, bench.folder / "upstream.log"),
        backing(bench.folder, bench.cores.load) if target.backed else nullcontext() as behind,
        hanging() if target.shadow else nullcontext() as shadow,
    ):
        file, url = bench.folder / f"{port}.yaml", f"http://127.0.0.1:{upstream_port}"
        listen, admin = f"127.0.0.1:{port}", f"127.0.0.1:{admin_port}"
        if behind is not None:
            behind.write_config(file, url, listen, admin)
        if shadow is not None:
            write_config(file, url, shadow, listen, admin)
        command = _command(bench, target, tls)
        if command is None:
            yield Running(target, upstream_port, admin_port, upstream_port, None)
            return
        arguments = command(port, admin_port, url, bench.folder)
        log = bench.folder / f"{target.name.replace(' ', '-')}.log"
        with started(arguments, port, bench.cores.proxy, log) as process:
            _settle(target, port, admin_port)
            meanwhile = kept_busy(behind, target, admin_port) if behind is not None else nullcontext()
            with meanwhile:
                yield Running(target, port, admin_port, upstream_port, process.pid)
            if target.shadow:
                check_copies(admin_port)


def _command(bench: Bench, target: Target, tls: bool) -> Command | None:
    if not tls:
        return target.command
    made = make_certificate(bench.folder)
    if made is None:
        raise BenchError(
            "the TLS load needs the openssl command to make a certificate: install it, or leave it out"
        )
    return legato_tls(*made)


def _settle(target: Target, port: int, admin_port: int, within_s: float = 20.0) -> None:
    """Wait until the target is ready for traffic, not only listening."""
    end = time.monotonic() + within_s
    url = f"http://127.0.0.1:{admin_port}/readyz"
    while target.admin and time.monotonic() < end:
        with suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    if target.admin:
        raise BenchError(f"{target.name} on port {port} was not ready within {within_s:.0f} s")


def warm_up(bench: Bench, instance: Running) -> None:
    """A little of everything, thrown away."""
    for arguments in WARM_UP:
        mode, *rest = arguments.split()
        _client(bench, [str(bench.programs.load), str(instance.port), mode, *rest], lambda: None)


def measure(bench: Bench, instance: Running, load: Load) -> Row:
    """One load on one target: the client's figures, and what the target's processes used meanwhile."""
    peak = {"all": 0, "data": 0}

    def sample() -> None:
        peak["all"] = max(peak["all"], rss_bytes(instance.pids()))
        peak["data"] = max(peak["data"], rss_bytes(instance.data_pids()))

    with _meanwhile(instance, load):
        busy_before, at = _core_busy_s(bench.cores.proxy), time.monotonic()
        used_before, data_before = cpu_ns(instance.pids()), cpu_ns(instance.data_pids())
        row = _client(bench, _client_command(bench, instance, load), sample)
        used_s = (cpu_ns(instance.pids()) - used_before) / 1e9
        data_s = (cpu_ns(instance.data_pids()) - data_before) / 1e9
        elapsed_s = time.monotonic() - at
        busy_s = _core_busy_s(bench.cores.proxy) - busy_before
    units = row["requests"] if load.mode == "requests" else row["events"]
    proxied = instance.pid is not None
    return row | {
        "cpu_us_per_unit": round(used_s * 1e6 / units, 3) if proxied and units else None,
        "cpu_data_us_per_unit": round(data_s * 1e6 / units, 3) if proxied and units else None,
        "cpu_share": round(used_s / elapsed_s, 3) if proxied else None,
        "foreign_share": round(max(0.0, busy_s - used_s) / elapsed_s, 3)
        if bench.cores.proxy is not None
        else None,
        "rss_mb": round(peak["all"] / 1e6, 1) if proxied else None,
        "rss_data_mb": round(peak["data"] / 1e6, 1) if proxied else None,
    }


def _meanwhile(instance: Running, load: Load) -> AbstractContextManager[None]:
    """What is read from the admin listener while the load runs."""
    if load.summaries:
        return summaries(instance.port, instance.admin_port)
    return scraping(instance.admin_port) if load.scraped else nullcontext()


def _client_command(bench: Bench, instance: Running, load: Load) -> list[str]:
    upstream = str(instance.upstream_port)
    if load.tls is not None:
        module = [sys.executable, "-m", "deploy.bench.tlsload", str(instance.port), "500", upstream]
        return [*module, "--tls"] if load.tls == "on" else module
    arguments = load.arguments.format(events=instance.target.saturated_events, upstream=upstream).split()
    if bench.cores.load is None:  # on one core a client that never sleeps would starve the proxy
        arguments = [argument for argument in arguments if argument != "--busy"]
    return [str(bench.programs.load), str(instance.port), load.mode, *arguments]


def _client(bench: Bench, command: Sequence[str], sample: Callable[[], None]) -> Row:
    with pinned(bench.cores.load):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while True:
        try:
            out, err = process.communicate(timeout=SAMPLE_S)
            break
        except subprocess.TimeoutExpired:
            sample()
    sample()
    if process.returncode or not out.strip():
        raise BenchError(f"the load client failed with {process.returncode}: {err.strip()}")
    row: Row = json.loads(out)
    return row


def _core_busy_s(core: int | None) -> float:
    """Time this core was not idle, all processes together, since boot."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if core is not None and name == f"cpu{core}":
            user, nice, system, _, _, irq, softirq, steal = (int(word) for word in ticks[:8])
            return (user + nice + system + irq + softirq + steal) / 100
    return 0.0


@contextmanager
def run_folder() -> Iterator[Path]:
    """A folder for programs, configurations and logs; gone at the end."""
    with tempfile.TemporaryDirectory(prefix="legato-bench-") as name:
        yield Path(name)
