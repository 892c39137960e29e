"""What Legato talks to beside its traffic: a real Redis, a collector that takes everything, a scraper.

The collector (``python -m deploy.bench.backing PORT``) answers 200 to whatever is posted and counts it: it
stands for an OpenTelemetry collector where only Legato's side is looked at.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from deploy.bench.processes import free_port, started
from deploy.bench.programs import BenchError
from deploy.bench.targets import Target

#: Legato writes to Redis every 5 s: by then it has.
_FIRST_WRITE_S = 7.0


@dataclass(frozen=True)
class Backing:
    """Ports of a Redis and a collector; ``redis_pid`` to look at."""

    redis_port: int
    collector_port: int
    redis_pid: int

    def write_config(self, path: Path, upstream: str, listen: str, admin: str) -> Path:
        """A configuration with everything on."""
        path.write_text(
            f"listen: {listen}\nadmin: {{listen: {admin}}}\n"
            f"backends: {{default: {{url: {upstream}}}}}\n"
            f"redis: {{url: 'redis://127.0.0.1:{self.redis_port}/0'}}\n"
            f"otel:\n  endpoint: http://127.0.0.1:{self.collector_port}\n  every: 10s\n"
            "  traces: {ratio: 1%, bad_per_second: 20}\n"
        )
        return path

    def collected(self) -> dict[str, int]:
        """What the collector was sent: posts and bytes by path."""
        url = f"http://127.0.0.1:{self.collector_port}/"
        with urllib.request.urlopen(url, timeout=5) as answer:
            counts: dict[str, int] = json.load(answer)
        return counts


@contextmanager
def backing(folder: Path, core: int | None) -> Iterator[Backing]:
    """Both, started on a core and ended at the end; ``BenchError`` where there is no redis-server."""
    redis = shutil.which("redis-server")
    if redis is None:
        raise BenchError("no redis-server: install it (Debian: apt-get install redis-server) and run again")
    redis_port, collector_port = free_port(), free_port()
    quiet = ["--save", "", "--appendonly", "no", "--dir", str(folder), "--bind", "127.0.0.1"]
    with ExitStack() as stack:
        server = stack.enter_context(
            started([redis, "--port", str(redis_port), *quiet], redis_port, core, folder / "redis.log")
        )
        collector = [sys.executable, "-m", "deploy.bench.backing", str(collector_port)]
        stack.enter_context(started(collector, collector_port, core, folder / "collector.log"))
        yield Backing(redis_port, collector_port, server.pid)


@contextmanager
def repeatedly(act: Callable[[], None], every_s: float) -> Iterator[None]:
    """Do something again and again in a thread of ours; what the network makes of it is passed over."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(every_s):
            with suppress(OSError):
                act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def scraping(admin_port: int, every_s: float = 1.0) -> Iterator[None]:
    """Read /metrics again and again."""

    def scrape() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/metrics") as answer:
            answer.read()

    with repeatedly(scrape, every_s):
        yield


@contextmanager
def kept_busy(behind: Backing, target: Target, admin_port: int) -> Iterator[None]:
    """What goes on beside the loads: scrapes each second; Redis standing still where the target wants it."""
    with scraping(admin_port):
        if not target.redis_away:
            yield
            return
        time.sleep(_FIRST_WRITE_S)
        os.kill(behind.redis_pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(behind.redis_pid, signal.SIGCONT)


class _Collector(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    counts: ClassVar[Counter[str]] = Counter()

    def do_POST(self) -> None:
        size = int(self.headers.get("content-length", 0))
        while size > 0:
            got = len(self.rfile.read(min(size, 65536)))
            if not got:
                return
            size -= got
        self.counts[f"{self.path} posts"] += 1
        self.counts[f"{self.path} bytes"] += int(self.headers.get("content-length", 0))
        self._answer(b"", "application/x-protobuf")

    def do_GET(self) -> None:
        self._answer(json.dumps(self.counts).encode(), "application/json")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: it would be the loudest thing here."""

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), _Collector).serve_forever()
