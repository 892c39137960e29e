"""An experiment on two hosts and one Redis: two processes are killed, and nothing seems missing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.helpers.procs import Legato, eventually, serve
from tests.helpers.rawclient import CHAT, STREAMED_CHAT, RawClient, post
from tests.helpers.redis_server import redis_server
from tests.helpers.upstream import chat_stream, respond, scripted


@contextmanager
def traffic(hosts: list[Legato]) -> Iterator[list[int]]:
    """Sessions that ask one of the hosts after the other until the end; how many were answered."""
    over, answered = threading.Event(), [0]

    def ask(number: int) -> None:
        at = number
        while not over.wait(0.02):
            at += 1
            try:
                with RawClient(hosts[at % len(hosts)].data) as client:
                    client.send(post(CHAT, STREAMED_CHAT, ("X-Session-Id", f"{number}.{at % 150}")))
                    client.response()
                answered[0] += 1
            except (OSError, ValueError, AssertionError):  # of a worker that was killed
                continue

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        over.set()
        for thread in threads:
            thread.join(10)


def view(host: Legato) -> dict[str, Any]:
    (told,) = host.json("/api/experiments")["experiments"]
    assert isinstance(told, dict)
    return told


def counted(host: Legato, what: str) -> int:
    told = view(host)
    return int(told["control"][what]) + int(told["candidate"][what])


def alarms(host: Legato) -> list[str]:
    return [test["what"] for test in view(host)["integrity"] if test["alarm"]]


def test_killed_in_the_middle_it_goes_on_and_nothing_seems_missing() -> None:
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        stable, canary = (stack.enter_context(scripted(respond(chat_stream(["a", "b"])))) for _ in "ab")
        config = {
            "workers": 2,
            "backends": {"stable": {"url": stable.url}, "canary": {"url": canary.url}},
            "routes": [{"split": {"stable": 60, "canary": 40}, "sticky": {"header": "x-session-id"}}],
            "slos": [{"name": "chat", "ttft": "5s", "tbt": "5s"}],
            "experiment": {"name": "try", "control": "stable", "candidate": "canary", "requests": 300},
            "redis": {"url": redis.url, "prefix": "try"},
        }
        hosts = [stack.enter_context(serve(config=config)) for _ in range(2)]
        with traffic(hosts) as answered:
            eventually(
                lambda: [view(host)["hosts"] for host in hosts] == [2, 2], 20, "both hear of both", 0.2
            )
            since = {view(host)["since"] for host in hosts}
            assert len(since) == 1
            eventually(lambda: counted(hosts[1], "recorded") > 100, 20, "enough", 0.2)
            before = counted(hosts[1], "recorded")
            (control,) = hosts[0].controls()
            os.kill(control, signal.SIGKILL)
            os.kill(hosts[1].workers()[0], signal.SIGKILL)
            eventually(
                lambda: view(hosts[0])["hosts"] == 3, 20, "the successor hears of its predecessor", 0.2
            )
            seen = answered[0]
            eventually(lambda: answered[0] > seen + 300, 20, "it goes on", 0.1)
        told = answered[0]
        eventually(lambda: counted(hosts[0], "recorded") == counted(hosts[1], "recorded"), 20, "one sum", 0.3)
        for host in hosts:
            assert {view(host)["since"]} == since
            assert alarms(host) == []
            assert view(host)["notes"] == []
            assert counted(host, "recorded") > before
            assert counted(host, "recorded") <= told + 8  # those whose worker was killed are not answered
