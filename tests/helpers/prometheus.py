"""A real Prometheus for tests: it scrapes every second, and is asked over its own API.

with prometheus(legato=legato.admin) as server:
    server.scraped("legato", times=3)
    server.now("sum(legato_requests_total)")          # -> [Series({}, [(at_s, value)])]
    server.over("rate(legato_requests_total[5s])", start_s, end_s)
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.procs import Address, eventually, free_port, running
from tests.helpers.tools import need

START_S = 20.0


class QueryError(Exception):
    """Prometheus refused a query, or could not answer it; the text is its own."""


@dataclass(frozen=True)
class Series:
    """One series of an answer: its labels, and (unix seconds, value) in order."""

    labels: dict[str, str]
    points: list[tuple[float, float]]

    @property
    def last(self) -> float:
        """The newest value."""
        return self.points[-1][1]

    @property
    def finite(self) -> list[float]:
        """The values that are numbers."""
        return [value for _, value in self.points if math.isfinite(value)]


@dataclass(frozen=True)
class Prometheus:
    """A running server; times are unix seconds."""

    process: subprocess.Popen[bytes]
    url: str
    folder: Path
    every_s: float

    def ask(self, path: str, **fields: Any) -> Any:
        """``data`` of an answer of its API, or ``QueryError``."""
        body = urllib.parse.urlencode(fields).encode() if fields else None
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}", data=body, timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise QueryError(f"{fields}: {error.read().decode()}") from None

    def now(self, query: str, at_s: float | None = None) -> list[Series]:
        """An instant query."""
        data = self.ask("query", query=query, time=time.time() if at_s is None else at_s)
        if data["resultType"] == "scalar":
            return [Series({}, [_point(data["result"])])]
        return [Series(one["metric"], [_point(one["value"])]) for one in data["result"]]

    def one(self, query: str, at_s: float | None = None) -> float:
        """The value of a query that has one series."""
        (series,) = self.now(query, at_s)
        return series.last

    def over(self, query: str, start_s: float, end_s: float, step_s: float = 1.0) -> list[Series]:
        """A range query, as a graph asks it."""
        data = self.ask("query_range", query=query, start=start_s, end=end_s, step=step_s)
        return [Series(one["metric"], [_point(p) for p in one["values"]]) for one in data["result"]]

    def scraped(self, job: str, times: int = 1, within_s: float = 15.0) -> float:
        """Wait for so many more successful scrapes; the moment at which the last one was in."""
        begun_s = time.time()

        def seen() -> bool:
            found = self.now(f'timestamp(up{{job="{job}"}} == 1)')
            return bool(found) and found[0].last > begun_s + (times - 1) * self.every_s

        eventually(seen, within_s, f"{times} scrapes of {job}", every_s=0.05)
        return time.time()

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return (self.folder / "log").read_text(errors="replace")


def _point(pair: list[Any]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])


@contextmanager
def prometheus(
    *, every_s: float = 1.0, rules: Sequence[Path] = (), alertmanager: str | None = None, **jobs: Address
) -> Iterator[Prometheus]:
    """A Prometheus that scrapes each job's one target; skips where there is none installed.

    ``rules``: files of rules; ``alertmanager``: the base URL of one that is told of alerts.
    """
    program = need("prometheus")
    every = f"{every_s:g}s"
    config: dict[str, Any] = {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": [str(file) for file in rules],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [f"{host}:{port}"]}]}
            for job, (host, port) in jobs.items()
        ],
    }
    if alertmanager is not None:
        targets = [alertmanager.removeprefix("http://")]
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": targets}]}]}
    with tempfile.TemporaryDirectory(prefix="legato-prometheus-") as name:
        folder, port = Path(name), free_port()
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [
            program,
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
            # What fires before it has found its Alertmanager is told again soon.
            "--rules.alert.resend-delay=2s",
        ]
        with running(command, folder / "log") as process:
            server = Prometheus(process, f"http://127.0.0.1:{port}", folder, every_s)
            eventually(lambda: _ready(server), START_S, "Prometheus", every_s=0.05)
            yield server


def _ready(server: Prometheus) -> bool:
    assert server.process.poll() is None, server.log
    with urllib.request.urlopen(f"{server.url}/-/ready", timeout=2) as answer:
        return bool(answer.status == 200)
