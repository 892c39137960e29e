"""All notifiers together: none holds up another, what waits survives a reload, the end is bounded."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from proxy.control.notify.lane import pause
from proxy.control.notify.sender import Sender
from proxy.settings.notify import Alertmanager, Notifier, Slack, Webhook
from tests.control.notify.notices import BORN, S, message
from tests.helpers.procs import free_port, patience_s
from tests.helpers.receiver import CLOSE, GARBAGE, HANG, Behaviour, receiver, status


def webhook(name: str, url: str, timeout_s: float = 5) -> Notifier:
    told = Webhook.model_validate({"url": url, "timeout": int(timeout_s * S)})
    return Notifier(name=name, webhook=told)


def sender(*notifiers: Notifier, **more: Any) -> Sender:
    clock = {"monotonic_ns": time.monotonic_ns}
    return Sender(notifiers, instance="gpu-7", version="1.2", unix_ns=lambda: BORN, **{**clock, **more})


async def soon(look: Callable[[], object], within_s: float = 5.0) -> None:
    """Wait on the loop until it is so."""
    end = time.monotonic() + patience_s(within_s)
    while not look():
        assert time.monotonic() < end, "it was not so in time"
        await asyncio.sleep(0.005)


async def _hasty(event: asyncio.Event, seconds: float | None) -> None:
    await pause(event, None if seconds is None else seconds / 100)


#: Time between attempts goes a hundred times as fast.
HASTY: dict[str, Any] = {"pause": _hasty, "monotonic_ns": lambda: 100 * time.monotonic_ns()}


async def started(one: Sender) -> asyncio.Task[None]:
    task = asyncio.ensure_future(one.run())
    await asyncio.sleep(0)
    return task


async def stopped(one: Sender, task: asyncio.Task[None], deadline_s: float = 0.4) -> None:
    task.cancel()
    await one.close(deadline_s)


BAD: list[tuple[str, Behaviour]] = [
    ("hangs", HANG),
    ("answers 500", status(500)),
    ("sends garbage", GARBAGE),
    ("closes", CLOSE),
]


@pytest.mark.alone
@pytest.mark.parametrize("behaviour", [case[1] for case in BAD], ids=[case[0] for case in BAD])
def test_one_that_is_bad_leaves_the_others_alone(behaviour: Behaviour) -> None:
    async def go() -> None:
        one = sender(webhook("bad", bad.url, 30), webhook("good", good.url), Notifier(log=True))
        task = await started(one)
        for number in range(20):
            before = time.thread_time()  # a busy machine is not the sender's
            one.send(message(number, str(number)))
            assert time.thread_time() - before < 0.01, "nobody waits in send"
        await soon(lambda: one.counts()["webhook", "sent"] == one.counts()["log", "sent"] == 20)
        states = {each.name: each for each in one.states()}
        assert states["good"].last_sent_unix_ns == BORN
        assert (states["good"].waiting, states["log"].waiting) == (0, 0)
        assert states["bad"].waiting == 20
        assert one.counts()["log", "sent"] == 20
        await stopped(one, task)
        assert one.counts()["webhook", "given_up"] == 20, "lost, and counted"

    with receiver() as bad, receiver() as good:
        bad.answers(behaviour)
        began = time.monotonic()
        asyncio.run(go())
        assert time.monotonic() - began < 3
        latest = max(got.at_s for got in good.received)
        assert latest - good.received[0].at_s < 1.5, "the good one had all at once"


def test_how_long_people_could_not_be_told_is_known_by_the_oldest_that_is_refused() -> None:
    async def go() -> None:
        one = sender(webhook("bad", bad.url), webhook("good", good.url))
        assert one.refused_ns == 0
        began_ns = time.monotonic_ns()
        task = await started(one)
        one.send(message(1))
        await soon(lambda: one.refused_ns)
        await soon(lambda: one.refused_ns >= S // 2)
        assert one.refused_ns <= time.monotonic_ns() - began_ns
        await stopped(one, task)
        assert one.refused_ns == 0, "nothing waits"

    with receiver() as bad, receiver() as good:
        bad.answers(status(500))
        asyncio.run(go())


def test_what_fails_arrives_later_and_once() -> None:
    async def go() -> None:
        heard: list[tuple[str, str]] = []
        one = sender(
            webhook("ops", ops.url, 0.2),
            **HASTY,
            on_sent=lambda name, message: heard.append((name, message.id)),
        )
        task = await started(one)
        one.send(message(1))
        await soon(lambda: heard)
        await stopped(one, task)
        assert heard == [("ops", "m1")]
        assert one.counts() == {("webhook", "sent"): 1, ("webhook", "failed"): 5, ("webhook", "given_up"): 0}
        (state,) = one.states()
        assert (state.where, state.last_error) == (ops.where, "answered 429")

    with receiver() as ops:
        ops.answers(status(500), CLOSE, GARBAGE, HANG, status(429, Retry_After="1"), status(200))
        asyncio.run(go())
        assert len(ops.received) == 6
        assert {got.headers["x-legato-id"] for got in ops.received} == {"m1"}


def test_only_those_who_are_named_are_told() -> None:
    async def go() -> None:
        one = sender(webhook("a", a.url), webhook("b", b.url))
        assert one.names == ("a", "b")
        one.send(message(1), only=["b", "nobody"])
        await one.close(3)

    with receiver() as a, receiver() as b:
        asyncio.run(go())
        assert (len(a.received), len(b.received)) == (0, 1)


# ---------------------------------------------------------------- reload


def test_a_reload_keeps_what_waits_for_those_who_stay() -> None:
    async def go() -> None:
        nowhere = f"http://127.0.0.1:{free_port()}/"
        one = sender(webhook("ops", nowhere), webhook("gone", nowhere), webhook("same", nowhere))
        task = await started(one)
        one.send(message(1))
        await soon(lambda: one.counts()["webhook", "failed"] == 3)
        one.configure((webhook("ops", ops.url), webhook("same", nowhere), webhook("new", new.url)))
        assert one.names == ("ops", "same", "new")
        await soon(lambda: one.counts()["webhook", "sent"] == 1)
        assert one.counts()["webhook", "given_up"] == 1, "the one that is gone"
        assert {each.name: each.waiting for each in one.states()} == {"ops": 0, "same": 1, "new": 0}
        one.send(message(2, "b"))
        await soon(lambda: len(new.received) == 1 and len(ops.received) == 2)
        await stopped(one, task)

    with receiver() as ops, receiver() as new:
        asyncio.run(go())
        assert [json.loads(got.body)["id"] for got in ops.received] == ["m1", "m2"]
        assert [json.loads(got.body)["id"] for got in new.received] == ["m2"]


def test_another_kind_of_the_same_name_is_another_one() -> None:
    async def go() -> None:
        one = sender(webhook("ops", f"http://127.0.0.1:{free_port()}/"))
        one.send(message(1))
        one.configure((Notifier(name="ops", log=True),))
        assert one.counts()["webhook", "given_up"] == 1
        assert [each.kind for each in one.states()] == ["log"]

    asyncio.run(go())


# ---------------------------------------------------------------- the end


def test_the_end_has_a_deadline_and_what_can_be_told_is_told() -> None:
    async def go() -> None:
        one = sender(webhook("hangs", hangs.url, 30), webhook("ops", ops.url))
        task = await started(one)
        for number in range(5):
            one.send(message(number, str(number)))
        await soon(lambda: hangs.received)
        task.cancel()
        one.send(message(9, "late"))
        began = time.monotonic()
        await one.close(0.3)
        assert time.monotonic() - began < 1
        assert one.counts()["webhook", "given_up"] == 6
        assert sum(each.waiting for each in one.states()) == 0
        one.send(message(10, "after the end"))
        await asyncio.sleep(0.05)

    with receiver() as hangs, receiver() as ops:
        hangs.answers(HANG)
        asyncio.run(go())
        assert [json.loads(got.body)["id"] for got in ops.received] == ["m0", "m1", "m2", "m3", "m4", "m9"]


def test_a_message_on_its_way_at_the_end_is_not_told_twice() -> None:
    def slow(client: socket.socket, released: threading.Event) -> None:
        released.wait(0.15)
        status(200)(client, released)

    async def go() -> None:
        one = sender(webhook("ops", ops.url))
        task = await started(one)
        one.send(message(1))
        await soon(lambda: ops.received)
        await stopped(one, task, 1.0)
        assert one.counts()["webhook", "sent"] == 1

    with receiver() as ops:
        ops.answers(slow)
        asyncio.run(go())
        assert len(ops.received) == 1


def test_without_notifiers_nothing_happens() -> None:
    async def go() -> None:
        one = sender()
        task = await started(one)
        one.send(message(1))
        one.hold(message(1).notices)
        assert (one.counts(), one.states(), one.names) == ({}, [], ())
        await stopped(one, task)

    asyncio.run(go())


# ---------------------------------------------------------------- the sample


def test_a_test_goes_past_the_queue_and_says_what_came_of_it() -> None:
    async def go() -> None:
        one = sender(webhook("ops", ops.url), Notifier(alertmanager=Alertmanager.model_validate({"url": am})))
        assert [outcome.said for outcome in await one.test("ops")] == ["answered 200", "answered 200"]
        assert [outcome.said for outcome in await one.test("alertmanager")] == ["answered 200"]
        with pytest.raises(KeyError):
            await one.test("nobody")

    with receiver() as ops:
        am = f"http://{ops.where}"
        asyncio.run(go())
        states = [json.loads(got.body)["state"] for got in ops.received[:2]]
        assert states == ["firing", "resolved"]
        (alert,) = json.loads(ops.received[2].body)
        assert (alert["labels"]["alertname"], alert["labels"]["severity"]) == ("LegatoTest", "ticket")


# ---------------------------------------------------------------- what is not shown, what is not loaded


def test_no_secret_is_in_any_log_error_or_text(caplog: pytest.LogCaptureFixture) -> None:
    """Everything is logged that any library logs."""
    caplog.set_level(logging.DEBUG)

    async def go() -> list[object]:
        slack = Slack.model_validate({"url": ops.url, "timeout": S // 5})
        told = {"url": ops.url, "secret": "hunter2", "timeout": S // 5}
        am = {"url": ops.url, "token": "t0k3n", "timeout": S // 5}
        one = sender(
            Notifier(slack=slack),
            Notifier(webhook=Webhook.model_validate(told)),
            Notifier(alertmanager=Alertmanager.model_validate(am)),
            **HASTY,
        )
        task = await started(one)
        for number in range(8):
            one.send(message(number, str(number)))
        await soon(lambda: len(ops.received) >= 24, 8)
        await stopped(one, task)
        lanes = list(one._lanes.values())
        return [one, lanes, *[(lane.notifier, vars(lane)) for lane in lanes], one._settings, one.states()]

    with receiver() as ops:
        bad = [status(500, b"hunter2 t0k3n"), CLOSE, GARBAGE, status(302, Location="/login"), HANG]
        ops.answers(*bad, *bad, status(400), status(200))
        shown = repr(asyncio.run(go()))
    for secret in ("k3y", "services", "hunter2", "t0k3n"):
        assert secret not in caplog.text
        assert secret not in shown
    assert ops.where in caplog.text


def test_who_tells_nobody_over_http_does_not_load_what_speaks_it() -> None:
    code = """
import sys, time
from proxy.control.notify.sender import Sender
from proxy.settings.notify import Notifier
Sender((Notifier(log=True),), instance='h', version='1', unix_ns=time.time_ns, monotonic_ns=time.monotonic_ns)
sys.exit('httpx' in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
