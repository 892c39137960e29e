"""An engine of the demo stops in mid-decode: a webhook is called within a minute, and again after it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from deploy.demo import client, load
from deploy.demo.load import Progress
from deploy.demo.workload import Lane, Request
from tests.helpers.procs import Legato, eventually, free_port, serve

pytestmark = pytest.mark.alone

MODEL, USERS, SLOT_S = "sim-chunked", 8, 10


class Receiver(ThreadingHTTPServer):
    """A webhook's other end: every body, with the time at which it came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[float, dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"

    def of(self, rule: str, state: str) -> list[tuple[float, dict[str, Any]]]:
        return [(at, body) for at, body in self.got if (body["rule"], body["state"]) == (rule, state)]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert isinstance(self.server, Receiver)
        self.server.got.append((time.time(), json.loads(body)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def engine() -> Iterator[tuple[str, int]]:
    """A simulated engine in its own process: its URL and process id."""
    port = free_port()
    command = [sys.executable, "-m", "deploy.demo.server", "--scheduler", "chunked", "--model", MODEL]
    process = subprocess.Popen([*command, "--port", str(port), "--with-parent"])
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: urllib.request.urlopen(f"{url}/health", timeout=1).status == 200, 30)
        yield url, process.pid
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@contextmanager
def users(url: str) -> Iterator[None]:
    """Each asks for long answers, one after the other; one loses patience after five seconds."""

    async def crowd() -> None:
        requests = [Request(number, 0, 200, 150) for number in range(1_000)]
        lanes = [Lane(tuple(requests[at::USERS]), 0.05) for at in range(USERS)]
        patient = load.converse(url, MODEL, lanes, 600, seed=1, state=Progress())
        await asyncio.gather(patient, impatient())

    async def impatient() -> None:
        body = load.chat_body(Request(2_000, 0, 200, 150), MODEL, 1)
        while True:
            try:
                await asyncio.wait_for(client.post(f"{url}/v1/chat/completions", body), 5)
            except TimeoutError:
                continue

    loop = asyncio.new_event_loop()
    task = loop.create_task(crowd())

    def run() -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass
        finally:
            loop.close()

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)


def settings(backend: str, hook: str) -> dict[str, Any]:
    return {
        "backends": {"canary": {"url": backend}},
        "slos": [{"name": "chat", "ttft": "2s", "tbt": "200ms"}],
        "alerts": {
            "notify": [{"name": "ops", "webhook": {"url": hook}}],
            "stalled": {"over": "10s"},  # so that the test is over sooner
            "url": "http://legato.example",
        },
        "access_log": "off",
    }


def firing(legato: Legato) -> list[str]:
    return [alert["rule"] for alert in legato.json("/api/alerts")["firing"]]


def test_an_engine_that_stops_is_told_within_a_minute_and_once_more_when_it_is_over() -> None:
    with (
        receiver() as hook,
        engine() as (url, pid),
        serve(config=settings(url, hook.url)) as legato,
        users(legato.url),
    ):
        running = eventually(lambda: legato.metrics().value("legato_requests_in_flight") >= USERS, 20)
        assert running
        assert not hook.got
        time.sleep((3 - time.time()) % SLOT_S)  # 7 s before the next look
        stopped = time.time()
        os.kill(pid, signal.SIGSTOP)
        (told,) = eventually(lambda: hook.of("stalled", "firing"), 60, "a call of the webhook")
        os.kill(pid, signal.SIGCONT)
        at, message = told
        assert at - stopped < 60
        (notice,) = message["notices"]
        assert notice["labels"] == {"backend": "canary", "model": MODEL, "slo": "chat"}
        assert notice["severity"] == "page"
        assert notice["figures"]["overdue"] >= 5
        assert notice["summary"].startswith(f"{notice['figures']['overdue']:.0f} of ")
        assert stopped - 2 * SLOT_S <= notice["since_unix_ns"] / 1e9 <= at
        assert notice["url"].startswith("http://legato.example/api/alerts#stalled")
        assert notice["runbook"] == "deploy/runbooks/stalled.md"
        worst = notice["worst"][0]
        assert legato.json(f"/api/requests/{worst['id']}")["missed"] == worst["missed"] > 0
        assert "stalled" in firing(legato)
        assert legato.metrics().value("legato_alerts", rule="stalled", state="firing") == 1

        (over,) = eventually(lambda: hook.of("stalled", "resolved"), 100, "the end of it")
        (ended,) = over[1]["notices"]
        assert (ended["incident"], ended["key"]) == (notice["incident"], notice["key"])
        assert "stalled" not in firing(legato)
        assert len(hook.of("stalled", "firing")) == 1, "told once"
        assert legato.metrics().value("legato_notifications_total", notifier="webhook", result="sent") >= 2
