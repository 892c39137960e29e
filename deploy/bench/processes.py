"""Starting processes on a core of their own, and what the kernel says they used."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.bench.programs import BenchError

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Cores:
    """Where processes are pinned; ``None``: nowhere, there is only one core."""

    proxy: int | None
    load: int | None

    @classmethod
    def choose(cls) -> Cores:
        """The last core for the proxy, the first for upstream and load."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[-1], usable[0]) if len(usable) > 1 else cls(None, None)


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Processes started inside run on this core, and so do their children."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in listing.read_text().split():
                found += family(int(child))
    return found


def command_line(pid: int) -> str:
    """A process's arguments in one line; empty when it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def cpu_ns(pids: Sequence[int]) -> int:
    """CPU time of all threads of these processes, user and kernel, from the scheduler's own account."""
    total = 0
    for pid in pids:
        for account in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with suppress(OSError):
                total += int(account.read_text().split()[0])
    return total


def rss_bytes(pids: Sequence[int]) -> int:
    """Sum of resident memory: pages that processes share are counted in each."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return total


def wait_port(port: int, process: subprocess.Popen[bytes], log: Path, within_s: float = 60.0) -> None:
    """Return once somebody accepts on the port; ``BenchError`` with its log if the process dies first."""
    end = time.monotonic() + within_s
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
    raise BenchError(f"nothing listens on port {port} (status {process.poll()}):\n{said}")


@contextmanager
def started(
    command: Sequence[str], port: int, core: int | None, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that listens on ``port``; ended at the end, with its family."""
    with open(log, "ab") as out, pinned(core):
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        wait_port(port, process, log)
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes], within_s: float = 8.0) -> None:
    """SIGINT, and SIGKILL for what is left of the family after ``within_s``."""
    members = family(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(within_s)
    for pid in reversed(members):
        if pid == process.pid and process.poll() is not None:
            continue
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
