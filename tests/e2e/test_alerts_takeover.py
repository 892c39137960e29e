"""Hosts on one Redis; the one that tells is killed in mid-incident: nothing is lost, nothing told thrice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from tests.helpers.procs import Legato, children, eventually, free_port, serve
from tests.helpers.receiver import HANG, OK, Receiver, receiver
from tests.helpers.redis_server import redis_server

pytestmark = pytest.mark.timeout(240)  # it waits, and needs little of the machine

TAKEN_OVER_S = 30


def settings(backend: str, redis: str, hook: str) -> dict[str, Any]:
    return {
        "backends": {"vllm": {"url": backend}},
        "redis": {"url": redis, "every": "1s"},
        "alerts": {
            "rules": ["backend_down"],
            "notify": [{"webhook": {"url": hook, "timeout": "50s"}}],
        },
        "access_log": "off",
    }


class _Answers(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def server(port: int) -> Iterator[None]:
    """The backend is there."""
    with ThreadingHTTPServer(("127.0.0.1", port), _Answers) as made:
        Thread(target=made.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            made.shutdown()


class Fleet:
    """Three hosts; ``asks`` sends each that lives a request."""

    def __init__(self, hosts: list[Legato]) -> None:
        self.hosts = hosts

    def asks(self) -> None:
        for host in self.hosts:
            host.get("/readyz")
            request = urllib.request.Request(f"{host.url}/v1/chat/completions", b'{"model": "m"}')
            with contextlib.suppress(OSError):
                urllib.request.urlopen(request, timeout=5).read()

    def sends(self) -> list[Legato]:
        """Those that say that they tell."""
        return [host for host in self.hosts if host.json("/api/alerts")["sends"]]

    def kill(self, host: Legato) -> None:
        """All of its processes, at once."""
        self.hosts.remove(host)
        for pid in [host.pid, *children(host.pid)]:
            os.kill(pid, signal.SIGKILL)


def told(hook: Receiver) -> Counter[tuple[str, str, int]]:
    """How often each notice came, by (incident, state, number)."""
    messages = [json.loads(each.body) for each in list(hook.received)]
    return Counter(
        (notice["incident"], notice["state"], notice["number"])
        for message in messages
        for notice in message["notices"]
    )


def test_the_sender_is_killed_twice_and_everything_is_told_once_or_twice() -> None:
    port = free_port()
    with redis_server() as redis, receiver() as hook, contextlib.ExitStack() as stack:
        config = settings(f"http://127.0.0.1:{port}", redis.url, hook.url)
        fleet = Fleet([stack.enter_context(serve(config=config, clean_exit=False)) for _ in range(3)])
        eventually(lambda: len(fleet.sends()) == 1, 20, "one of three tells", every_s=0.2)
        hook.answers(HANG, OK)

        def soon(look: Callable[[], object], within_s: float, what: str) -> None:
            def each() -> object:
                fleet.asks()
                return look()

            eventually(each, within_s, what, every_s=0.3)

        soon(lambda: hook.received, 60, "somebody is told")
        (first,) = fleet.sends()
        fleet.kill(first)  # its message came, and its answer never: nobody can know whether it was told
        soon(lambda: len(hook.received) == 2, TAKEN_OVER_S, "another one tells")
        (firing,) = told(hook)
        incident, state, number = firing
        assert (state, number, told(hook)[firing]) == ("firing", 0, 2)

        soon(lambda: redis.ask("KEYS", "legato:*:alerts:sent"), 15, "that it was taken is written")
        (second,) = fleet.sends()
        fleet.kill(second)
        with server(port):  # the incident is over while nobody tells
            resolved = (incident, "resolved", 0)
            soon(lambda: told(hook)[resolved], 90, "its end is told")
        assert told(hook) == {firing: 2, resolved: 1}, "what was taken is not told again"
