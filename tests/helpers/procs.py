"""A real ``legato serve`` for tests: start it on free ports, watch its processes, read its metrics, stop it.

with serve(upstream.url) as legato:
    ... legato.data is the (host, port) that clients use ...
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any, TypeVar

import yaml
from prometheus_client.parser import text_string_to_metric_families

Address = tuple[str, int]
T = TypeVar("T")

START_S = 20.0
STOP_S = 15.0
PROGRAM_STOP_S = 10.0
PROGRAM = ("-m", "proxy.cli", "serve")


def patience_s(seconds: float) -> float:
    """How long to wait for what takes ``seconds`` at most on a machine that has time.

    Beside other tests (``make test`` runs several at once) four times as long: whether they leave it time
    says nothing about the code.  What must be so within a time is tested ``alone``.
    """
    return 4 * seconds if "PYTEST_XDIST_WORKER" in os.environ else seconds


def eventually(look: Callable[[], T], within_s: float = 5.0, what: str = "", every_s: float = 0.005) -> T:
    """Call ``look`` until it returns something true and return that; ``AssertionError`` after ``within_s``.

    An exception of ``look`` counts as "not yet"; the last one is the cause of the failure.
    """
    within_s = patience_s(within_s)
    end = time.monotonic() + within_s
    while True:
        cause: Exception | None = None
        value: T | None = None
        try:
            value = look()
        except Exception as error:  # whatever is not there yet
            cause = error
        if cause is None and value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what or look} was not so within {within_s} s: last {value!r}") from cause
        time.sleep(every_s)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that writes to ``log``, until the end of the block: terminated, killed if that takes long."""
    with open(log, "wb") as written:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=written, stderr=written)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(patience_s(PROGRAM_STOP_S))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# ---------------------------------------------------------------- what /proc knows


def children(pid: int) -> list[int]:
    """Direct children of a process, as the kernel lists them."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(word) for word in task.read_text().split()]
        except OSError:  # a thread that ended meanwhile
            continue
    return found


def command_line(pid: int) -> list[str]:
    """Arguments of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files(pid: int) -> int:
    """Number of open file descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# ---------------------------------------------------------------- one legato


class Metrics:
    """One scrape.  ``value("legato_requests_total", outcome="completed")`` sums what matches."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples: list[tuple[str, dict[str, str], float]] = [
            (sample.name, dict(sample.labels), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def value(self, name: str, **labels: str) -> float:
        """Sum of the samples of this name whose labels include ``labels``; 0.0 where there is none."""
        wanted = labels.items()
        return sum(value for key, have, value in self.samples if key == name and wanted <= have.items())

    def as_dict(self) -> dict[str, float]:
        """Every sample by ``name{label="value",...}`` with labels sorted."""
        return {
            name + "{" + ",".join(f'{key}="{labels[key]}"' for key in sorted(labels)) + "}": value
            for name, labels, value in self.samples
        }


@dataclass
class Legato:
    """A running ``legato serve``; ``data`` and ``admin`` are its addresses."""

    process: subprocess.Popen[bytes]
    data: Address
    admin: Address
    folder: Path
    config_file: Path | None

    @property
    def pid(self) -> int:
        """The process that was started: it becomes the supervisor."""
        return self.process.pid

    @property
    def url(self) -> str:
        """Base URL of the data listener."""
        return f"http://{self.data[0]}:{self.data[1]}"

    @property
    def admin_url(self) -> str:
        """Base URL of the admin listener."""
        return f"http://{self.admin[0]}:{self.admin[1]}"

    @property
    def stderr(self) -> str:
        """What it has written to standard error so far."""
        return (self.folder / "stderr").read_text(errors="replace")

    @property
    def stdout(self) -> str:
        """What it has written to standard output so far: the access log, unless a test said otherwise."""
        return (self.folder / "stdout").read_text(errors="replace")

    def _of(self, module: str) -> list[int]:
        return [pid for pid in children(self.pid) if module in command_line(pid)]

    def workers(self) -> list[int]:
        """Process ids of the data workers."""
        return self._of("proxy.relay.worker")

    def controls(self) -> list[int]:
        """Process ids of the control process: one, but while it is being replaced."""
        return self._of("proxy.control.controller")

    def get(self, path: str, within_s: float = 10.0) -> tuple[int, bytes]:
        """Status and body of a GET on the admin listener."""
        try:
            with urllib.request.urlopen(self.admin_url + path, timeout=within_s) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def json(self, path: str) -> Any:
        """A JSON answer of the admin API; asserts 200."""
        status, body = self.get(path)
        assert status == 200, (path, status, body[:500])
        return json.loads(body)

    def metrics(self) -> Metrics:
        """Scrape ``/metrics`` now."""
        status, body = self.get("/metrics")
        assert status == 200, (status, body[:500])
        return Metrics(body.decode())

    def records(self) -> list[dict[str, Any]]:
        """The access log's lines so far."""
        lines = self.stdout.splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    def record(self, within_s: float = 5.0, **fields: object) -> dict[str, Any]:
        """The first record whose keys have these values; waits for it."""

        def look() -> dict[str, Any] | None:
            wanted = fields.items()
            return next((rec for rec in self.records() if all(rec.get(k) == v for k, v in wanted)), None)

        found = eventually(look, within_s, f"a record with {fields}", every_s=0.02)
        assert found is not None
        return found

    def send_signal(self, number: Signals) -> None:
        """Send a signal to the supervisor."""
        self.process.send_signal(number)

    def stop(self, number: Signals = Signals.SIGINT, within_s: float = STOP_S) -> int:
        """Ask it to end, wait, and return its exit status; kills its whole family after ``within_s``."""
        family = [self.pid, *children(self.pid)]
        if self.process.poll() is None:
            self.send_signal(number)
        try:
            return self.process.wait(patience_s(within_s))
        except subprocess.TimeoutExpired:
            for pid in family:
                if alive(pid):
                    os.kill(pid, Signals.SIGKILL)
            self.process.wait(5)
            raise AssertionError(f"legato did not end within {within_s} s:\n{self.stderr[-3000:]}") from None


def start(
    upstream: str | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    flags: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    folder: Path,
    ready: bool = True,
    program: Sequence[str] = PROGRAM,
) -> Legato:
    """Start ``legato serve`` on free ports and wait until it is ready (``ready=False``: do not wait).

    ``upstream``: base URL for ``--upstream``.  ``config``: content of a YAML file (``listen`` and ``admin``
    are given as flags and win).  ``program``: what python runs; it takes what ``legato serve`` takes.
    Asserts that it did not end while starting.
    """
    data, admin = ("127.0.0.1", free_port()), ("127.0.0.1", free_port())
    command = [sys.executable, *program]
    config_file = None
    if config is not None:
        config_file = folder / "legato.yaml"
        config_file.write_text(yaml.safe_dump(dict(config), sort_keys=False))
        command += ["--config", str(config_file)]
    command += ["--listen", f"{data[0]}:{data[1]}", "--admin", f"{admin[0]}:{admin[1]}"]
    if upstream is not None:
        command += ["--upstream", upstream]
    if "access_log" not in (config or {}) and "--access-log" not in flags:
        command += ["--access-log", "-"]
    with open(folder / "stdout", "wb") as out, open(folder / "stderr", "wb") as err:
        process = subprocess.Popen(
            [*command, *flags],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    legato = Legato(process, data, admin, folder, config_file)
    if ready:
        try:
            wait_ready(legato)
        except BaseException:
            process.kill()
            process.wait()
            raise
    return legato


def wait_ready(legato: Legato, within_s: float = START_S) -> None:
    """Poll ``/readyz`` until it says 200; fails at once when the process has ended."""

    def look() -> bool:
        return legato.process.poll() is not None or legato.get("/readyz", 1.0)[0] == 200

    try:
        eventually(look, within_s, f"readiness of {legato.admin_url}", every_s=0.05)
    except AssertionError as error:
        raise AssertionError(f"{error}; stderr:\n{legato.stderr[-3000:]}") from error
    status = legato.process.poll()
    assert status is None, f"legato ended with {status} while starting:\n{legato.stderr[-3000:]}"


@contextmanager
def serve(
    upstream: str | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    flags: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    clean_exit: bool = True,
    program: Sequence[str] = PROGRAM,
) -> Iterator[Legato]:
    """``start``; at the end stop it and assert exit status 0, no child left, no traceback in stderr."""
    with tempfile.TemporaryDirectory(prefix="legato-test-") as name:
        legato = start(upstream, config=config, flags=flags, env=env, folder=Path(name), program=program)
        family: list[int] = []
        try:
            yield legato
            family = children(legato.pid)
        except BaseException:
            sys.stderr.write(legato.stderr[-4000:])
            raise
        finally:
            status = legato.stop()
        if clean_exit:
            assert status == 0, f"exit status {status}:\n{legato.stderr[-3000:]}"
            assert "Traceback" not in legato.stderr, legato.stderr[-6000:]
            eventually(lambda: not any(alive(pid) for pid in family), 5, "the end of every child")
