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
from threading import Thread
from typing import Any

import pytest

from deploy.demo import load
from deploy.demo.load import Progress
from deploy.demo.workload import Lane, Request
from tests.helpers.procs import Legato, eventually, free_port, serve
from tests.helpers.receiver import Receiver, receiver

pytestmark = pytest.mark.timeout(240)  # it waits, and needs little of the machine

MODEL, USERS, SLOT_S = "sim-chunked", 8, 10


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
    """Each asks for one answer after the other, and waits for it."""
    requests = [Request(number, 0, 200, 60) for number in range(1_000)]
    lanes = [Lane(tuple(requests[at::USERS]), 0.05) for at in range(USERS)]
    loop = asyncio.new_event_loop()
    task = loop.create_task(load.converse(url, MODEL, lanes, 600, seed=1, state=Progress()))

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
        "slos": [{"name": "chat", "ttft": "500ms", "tbt": "60ms"}],
        "alerts": {
            "notify": [{"name": "ops", "webhook": {"url": hook}}],
            "stalled": {"over": "10s"},  # so that the test is over sooner
            "url": "http://legato.example",
        },
        "access_log": "off",
    }


def of(hook: Receiver, state: str) -> list[dict[str, Any]]:
    """What the webhook was sent of streams that are stalled."""
    bodies = [json.loads(each.body) for each in list(hook.received)]
    return [body for body in bodies if (body["rule"], body["state"]) == ("stalled", state)]


def records(legato: Legato, **which: str) -> list[dict[str, Any]]:
    """Requests that have ended."""
    query = "&".join(f"{name}={value}" for name, value in {"limit": "10000", **which}.items())
    found: list[dict[str, Any]] = legato.json(f"/api/requests?{query}")["requests"]
    return found


def firing(legato: Legato) -> list[str]:
    return [alert["rule"] for alert in legato.json("/api/alerts")["firing"]]


def test_an_engine_that_stops_is_told_within_a_minute_and_once_more_when_it_is_over() -> None:
    with (
        receiver() as hook,
        engine() as (url, pid),
        serve(config=settings(url, hook.url)) as legato,
        users(legato.url),
    ):
        eventually(lambda: records(legato), 30, "somebody has an answer")
        eventually(lambda: legato.metrics().value("legato_requests_in_flight") >= USERS, 20)
        assert not hook.received
        stopped = time.time()
        os.kill(pid, signal.SIGSTOP)
        (call,) = eventually(lambda: of(hook, "firing"), 60, "a call of the webhook")
        assert time.time() - stopped < 60
        (notice,) = call["notices"]
        worst = {each["id"]: each for each in notice["worst"]}
        ended = {record["id"] for record in records(legato)}
        os.kill(pid, signal.SIGCONT)
        assert len(worst) == 5
        assert ended, "others had an answer before"
        assert not worst.keys() & ended, "the requests that hang, of which none has ended"
        assert all(each["outcome"] == "in_flight" and each["missed"] > 0 for each in worst.values())
        assert notice["labels"] == {"backend": "canary", "model": MODEL, "slo": "chat"}
        assert notice["severity"] == "page"
        assert notice["figures"]["overdue"] >= 5
        assert notice["summary"].startswith(f"{notice['figures']['overdue']:.0f} of ")
        assert stopped - 2 * SLOT_S <= notice["since_unix_ns"] / 1e9 <= time.time()
        assert notice["url"].startswith("http://legato.example/api/alerts#stalled")
        assert notice["runbook"] == "deploy/runbooks/stalled.md"
        assert "stalled" in firing(legato)
        assert legato.metrics().value("legato_alerts", rule="stalled", state="firing") == 1

        for id, said in worst.items():
            (record,) = eventually(lambda id=id: records(legato, id=id), 30, "its end")  # type: ignore[misc]
            assert record["missed"] >= said["missed"], "what it had missed by then, and maybe more"
            assert record["worst_stall"]["late_s"] >= 5, "it hung"

        (over,) = eventually(lambda: of(hook, "resolved"), 100, "the end of it")
        (ended,) = over["notices"]
        assert (ended["incident"], ended["key"]) == (notice["incident"], notice["key"])
        assert "stalled" not in firing(legato)
        assert len(of(hook, "firing")) == 1, "told once"
        assert legato.metrics().value("legato_notifications_total", notifier="webhook", result="sent") >= 2
