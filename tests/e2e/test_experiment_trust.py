"""An experiment on a served Legato: quiet while equal arms go through everything, loud where one cheats."""

from __future__ import annotations

import json
import os
import signal
import textwrap
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.procs import Legato, eventually, free_port, serve
from tests.helpers.rawclient import CHAT, STREAMED_CHAT, RawClient, post
from tests.helpers.redis_server import redis_server
from tests.helpers.upstream import Upstream, chat_stream, json_response, respond, scripted

ARMS = ("control", "candidate")


def config_of(stable: str, canary: str, **more: Any) -> dict[str, Any]:
    route = {"name": "chat", "split": {"stable": 50, "canary": 50}, **more.pop("route", {})}
    return {
        "backends": {"stable": {"url": stable}, "canary": {"url": canary}},
        "routes": [route],
        "slos": [{"name": "chat", "ttft": "5s", "tbt": "5s"}],
        "experiment": {"name": "try", "control": "stable", "candidate": "canary", "requests": 300},
        "access_log": "off",
        **more,
    }


@contextmanager
def traffic(legato: Legato) -> Iterator[Callable[[], int]]:
    """Clients that ask until the end, under sessions of their own; how many answers there were."""
    over, answered = threading.Event(), [0] * 4

    def ask(number: int) -> None:
        while not over.is_set():
            try:
                with RawClient(legato.data) as client:
                    for _ in range(20):
                        if over.wait(0.004):
                            return
                        session = f"{number}.{answered[number] % 170}"
                        client.send(post(CHAT, STREAMED_CHAT, ("X-Session-Id", session)))
                        assert client.response().status in (200, 404)
                        answered[number] += 1
            except (OSError, ValueError, AssertionError):  # of a worker that was killed
                over.wait(0.05)

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(len(answered))]
    for thread in threads:
        thread.start()
    try:
        yield lambda: sum(answered)
    finally:
        over.set()
        for thread in threads:
            thread.join(10)


def view(legato: Legato) -> dict[str, Any]:
    told = legato.json("/api/experiments/try")
    assert isinstance(told, dict)
    return told


def of_arms(told: dict[str, Any], what: str) -> list[int]:
    return [told[arm][what] for arm in ARMS]


def alarms(told: dict[str, Any]) -> list[str]:
    return [test["name"] for test in told["integrity"] if test["alarm"]]


def metric(told: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in told["metrics"] if each["metric"] == name)


def weigh(legato: Legato, stable: int, canary: int) -> None:
    asked = {"weights": {"stable": stable, "canary": canary}, "author": "ann", "reason": "ramp"}
    request = urllib.request.Request(
        f"{legato.admin_url}/api/splits/chat/weights",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


def equal(stack: ExitStack) -> tuple[Upstream, Upstream]:
    one, two = (stack.enter_context(scripted(respond(chat_stream(["a", "b"])))) for _ in "ab")
    return one, two


@pytest.mark.alone
@pytest.mark.parametrize("route", [{}, {"sticky": {"header": "x-session-id"}}], ids=["each", "sticky"])
def test_equal_arms_through_new_weights_and_killed_processes(route: dict[str, Any]) -> None:
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        stable, canary = equal(stack)
        more = {"route": route, "workers": 2, "redis": {"url": redis.url, "prefix": "try"}}
        legato = stack.enter_context(serve(config=config_of(stable.url, canary.url, **more)))
        seen: list[dict[str, Any]] = []

        def look() -> dict[str, Any]:
            seen.append(view(legato))
            return seen[-1]

        def kill(pid: int) -> None:
            os.kill(pid, signal.SIGKILL)

        (control,) = legato.controls()
        steps: list[tuple[float, Callable[[], object]]] = [  # the candidate's share until then
            (0.5, lambda: weigh(legato, 90, 10)),
            (0.1, lambda: kill(control)),
            (0.5, lambda: weigh(legato, 100, 0)),  # the file has won; one arm gets nothing for a while
            (0.0, lambda: kill(legato.workers()[0])),
            (0.0, lambda: weigh(legato, 60, 40)),
            (0.4, lambda: weigh(legato, 90, 10)),  # and what was before comes back
            (0.1, look),
        ]

        def counted(share: float) -> int:
            now = [each for each in look()["epochs"] if each["in_force"] and each["share"] == share]
            return sum(each[arm]["recorded"] for each in now for arm in ARMS)

        with traffic(legato) as answered:
            for share, step in steps:
                until = answered() + 250
                eventually(lambda: counted(share) > 50 and answered() >= until, 20, "it goes on", 0.2)  # noqa: B023
                step()
        eventually(lambda: of_arms(look(), "in_flight") == [0, 0] or None, 20, "all are settled", 0.3)
        last = look()
        assert [told for told in seen if alarms(told)] == []
        # Times may differ: the arm with more of the traffic is busier, and both answer within a millisecond.
        counts = ("good", "errors", "fluidity", "deadline_misses")
        said = {metric(told, name)["verdict"] for told in seen for name in counts}
        assert said <= {"undecided", "equivalent"}
        assert {told["guardrail"]["state"] for told in seen} == {"ok"}
        assert last["since"] == seen[0]["since"]
        assert last["hosts"] == 2, "what was counted before the kill is in it"
        assert last["notes"] == []
        shares = {each["share"] for each in last["epochs"]}
        assert shares == {0.5, 0.1, 0.0, 0.4}
        # A worker's last requests, and those of a control process since it told last, are in neither count.
        assert sum(of_arms(last, "recorded")) > 700
        assert sum(of_arms(last, "recorded")) <= answered() + 8


DROPS = """
    import sys

    if "proxy.control.controller" in sys.orig_argv:
        from proxy.control.workers import Workers

        fresh, seen = Workers.fresh, [0]

        def some(self, worker, batch):
            kept = []
            for facts in fresh(self, worker, batch):
                seen[0] += facts.backend == "canary"
                if facts.backend != "canary" or seen[0] % 33:
                    kept.append(facts)
            return kept

        Workers.fresh = some
"""


def test_an_arm_that_loses_three_in_a_hundred_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(DROPS))
    with ExitStack() as stack:
        stable, canary = equal(stack)
        env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])}
        legato = stack.enter_context(serve(config=config_of(stable.url, canary.url), env=env))
        with traffic(legato) as answered:
            eventually(lambda: answered() >= 2500, 30, "enough requests", 0.1)
        told = eventually(lambda: (found := view(legato)) and alarms(found) and found, 10, "an alarm", 0.2)
        assert isinstance(told, dict)
        assert alarms(told) == ["recorded:candidate"]
        assert told["verdict"] == "undecided"
        assert "requests that canary was assigned were never recorded" in told["headline"]
        control, candidate = told["control"], told["candidate"]
        assert control["assigned"] - control["recorded"] - control["in_flight"] <= 0
        assert 0.02 < 1 - candidate["recorded"] / candidate["assigned"] < 0.04


def test_an_arm_that_nobody_can_connect_to_has_failed_whoever_answers() -> None:
    with ExitStack() as stack:
        stable, _ = equal(stack)
        config = config_of(stable.url, f"http://127.0.0.1:{free_port()}", route={"failover": True})
        legato = stack.enter_context(serve(config=config))
        with traffic(legato) as answered:
            eventually(lambda: answered() >= 300, 30, "enough requests", 0.1)
        told = eventually(
            lambda: (found := view(legato))["guardrail"]["state"] == "worse" and found, 10, "a word", 0.2
        )
        assert isinstance(told, dict)
        assert answered() >= 300, "every client was answered"
        assert alarms(told) == []
        eventually(lambda: sum(of_arms(view(legato), "recorded")) == answered(), 10, "all of them", 0.2)
        told = view(legato)
        assert told["candidate"]["failed_over"] == told["candidate"]["recorded"] > 100
        assert told["control"]["failed_over"] == 0
        for name, control, candidate in (("good", 1.0, 0.0), ("errors", 0.0, 1.0)):
            found = metric(told, name)
            assert (found["control"], found["candidate"], found["verdict"]) == (control, candidate, "worse")
        ttft = metric(told, "ttft")
        assert (ttft["candidate"], [reason["code"] for reason in ttft["reasons"]]) == (None, ["no_data"])


def test_an_arm_that_rejects_every_request_is_said_to_do_so() -> None:
    """By the wrong name of a model, say: neither an error nor bad, for that is the client's."""
    with ExitStack() as stack:
        stable = stack.enter_context(scripted(respond(chat_stream(["a", "b"]))))
        canary = stack.enter_context(scripted(respond(json_response({}, b"404 Not Found"))))
        legato = stack.enter_context(serve(config=config_of(stable.url, canary.url)))
        with traffic(legato) as answered:
            eventually(lambda: answered() >= 200, 30, "enough requests", 0.1)
        told = eventually(lambda: (found := view(legato)) and alarms(found) and found, 10, "an alarm", 0.2)
        assert isinstance(told, dict)
        assert alarms(told) == ["rejected"]
        assert "one arm rejects (4xx) what the other takes" in told["headline"]
        assert metric(told, "errors")["verdict"] == "undecided"
