"""One notifier's task: retries, counting, reminding, the end.  The clock is fake, nobody sleeps."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest

from proxy.control.alerts.notice import Message
from proxy.control.notify.backlog import ROOM
from proxy.control.notify.base import Notifier, Outcome
from proxy.control.notify.lane import Lane, Means
from tests.control.notify.clocks import AGAIN, REFUSED, TAKEN, Clock, Forgetful, Scripted
from tests.control.notify.notices import S, message


class Script:
    """A lane on a fake clock."""

    def __init__(self, make: Callable[[Clock], Notifier]) -> None:
        self.clock = Clock()
        self.sent: list[str] = []
        self.elsewhere: set[str] = set()  # told by another host
        self.notifier = make(self.clock)
        means = Means(
            self.clock.unix_ns,
            self.clock.monotonic_ns,
            self.clock.pause,
            lambda: 1.0,
            self.on_sent,
            lambda name, message: message.id in self.elsewhere,
        )
        self.lane = Lane(self.notifier, means)
        self.tally: Counter[tuple[str, str]] = means.tally

    def on_sent(self, name: str, message: Message) -> None:
        self.sent.append(message.id)

    def run(self, until_s: float = 10_000) -> None:
        """Until nothing moves any more, or time would pass ``until_s``."""

        async def go() -> None:
            self.clock.stop_ns = until_s * S
            task = asyncio.ensure_future(self.lane.run())
            for _ in range(3_000):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(go())

    def results(self) -> dict[str, int]:
        return {result: count for (_, result), count in self.tally.items()}


def scripted(*outcomes: Outcome | Exception) -> Script:
    return Script(lambda clock: Scripted(clock, *outcomes))


def told(script: Script) -> list[tuple[float, str]]:
    assert isinstance(script.notifier, Scripted)
    return script.notifier.told


def test_what_is_taken_is_told_once() -> None:
    script = scripted(TAKEN)
    script.lane.send(message(1))
    script.run()
    assert told(script) == [(0, "m1")]
    assert (script.results(), script.sent) == ({"sent": 1}, ["m1"])
    assert script.lane.last_sent_unix_ns == script.clock.unix_ns()
    assert script.lane.last_error is None


def test_what_fails_is_tried_again_with_growing_waits() -> None:
    script = scripted(AGAIN, AGAIN, AGAIN, TAKEN)
    script.lane.send(message(1))
    script.run()
    assert told(script) == [(0, "m1"), (1, "m1"), (3, "m1"), (7, "m1")]
    assert (script.results(), script.sent) == ({"failed": 3, "sent": 1}, ["m1"])
    assert script.lane.last_error == "answered 500"


def test_what_another_host_told_meanwhile_is_not_told_again() -> None:
    script = scripted(AGAIN, TAKEN)
    script.lane.send(message(1))
    script.elsewhere = {"m1"}
    script.run()
    assert told(script) == [(0, "m1")], "before it was tried here, nobody else tells it"
    assert (script.results(), script.sent) == ({"failed": 1}, [])
    assert len(script.lane.backlog) == 0


def test_what_is_refused_is_given_up_at_once() -> None:
    script = scripted(REFUSED, TAKEN)
    script.lane.send(message(1))
    script.lane.send(message(2))
    script.run()
    assert told(script) == [(0, "m1"), (0, "m2")]
    assert (script.results(), script.sent) == ({"given_up": 1, "sent": 1}, ["m2"])


def test_after_half_an_hour_it_is_given_up_and_counted_once() -> None:
    script = scripted(AGAIN)
    script.lane.send(message(1))
    script.run()
    times = [at_s for at_s, _ in told(script)]
    assert times[-1] <= 1_800 < times[-1] + 60
    assert script.results() == {"failed": len(times) - 1, "given_up": 1}
    assert len(script.lane.backlog) == 0


def test_what_fires_still_is_not_given_up_and_what_is_over_is() -> None:
    script = scripted(*[AGAIN] * 80, TAKEN)
    script.lane.send(message(1, "a", incident="on"))
    script.lane.hold(message(1, "a", incident="on").notices)
    script.lane.send(message(2, "b", incident="off"))
    script.run()
    times = {name: [at_s for at_s, each in told(script) if each == name] for name in ("m1", "m2")}
    assert times["m2"][-1] <= 1_800, "half an hour, and no longer"
    assert times["m1"][-1] > 1_800, "it was down for longer than that, and the alert still fires"
    assert script.sent == ["m1"]
    assert script.results() == {"failed": 79, "given_up": 1, "sent": 1}
    script = scripted(AGAIN)
    script.lane.send(message(1, "a", incident="on"))
    script.lane.hold(message(1, "a", incident="on").notices)
    script.run(until_s=4_000)
    script.lane.hold(())  # over, or another host's to tell
    script.run()
    assert script.results()["given_up"] == 1
    assert len(script.lane.backlog) == 0


def test_patience_that_was_asked_for_is_had() -> None:
    script = scripted(Outcome(taken=False, said="answered 429", again=True, wait_ns=42 * S), TAKEN)
    script.lane.send(message(1))
    script.run()
    assert told(script) == [(0, "m1"), (42, "m1")]


def test_an_error_of_ours_costs_one_message_and_its_text_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    script = scripted(RuntimeError("https://hooks.example.com/k3y"), TAKEN)
    script.lane.send(message(1))
    script.lane.send(message(2))
    script.run()
    assert script.results() == {"given_up": 1, "sent": 1}
    assert script.lane.last_error == "an error of ours, RuntimeError"
    assert "k3y" not in caplog.text


def test_a_callback_that_fails_changes_nothing() -> None:
    script = scripted(TAKEN)

    def bad(name: str, message: Message) -> None:
        raise RuntimeError

    object.__setattr__(script.lane._means, "on_sent", bad)
    script.lane.send(message(1))
    script.lane.send(message(2))
    script.run()
    assert script.results() == {"sent": 2}


def test_too_many_are_given_up_and_counted_and_sending_never_waits() -> None:
    script = scripted(TAKEN)
    for number in range(ROOM + 50):
        script.lane.send(message(number, str(number)))
    assert script.results() == {"given_up": 50}
    assert len(script.lane.backlog) == ROOM
    script.run()
    assert [told for _, told in told(script)] == [f"m{number}" for number in range(50, ROOM + 50)]


def test_trouble_is_logged_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "legato.alerts")
    script = scripted(AGAIN, AGAIN, AGAIN, TAKEN)
    script.lane.send(message(1))
    script.run()
    assert [record.getMessage() for record in caplog.records] == [
        "notifier ops (ops.example.com): answered 500; it is tried again, 1 wait",
        "notifier ops (ops.example.com) takes messages again",
    ]


# ---------------------------------------------------------------- the end


def test_at_the_end_everything_has_one_more_try_in_order() -> None:
    script = scripted(AGAIN)
    for number in range(3):
        script.lane.send(message(number, state="firing" if number < 2 else "resolved"))
    script.run(until_s=0.5)
    before = len(told(script))
    script.lane.close()
    script.run()
    assert [name for _, name in told(script)[before:]] == ["m0", "m1", "m2"]
    assert script.results() == {"failed": before, "given_up": 3}


# ---------------------------------------------------------------- reminding


def reminded(script: Script) -> list[tuple[float, list[str]]]:
    assert isinstance(script.notifier, Forgetful)
    return script.notifier.reminded


def test_who_forgets_is_reminded_of_what_fires_at_least_once_a_minute() -> None:
    script = Script(Forgetful)
    script.lane.send(message(1, "a", "b"))
    script.run(until_s=300)
    times = [0.0, *(at_s for at_s, _ in reminded(script))]
    assert len(times) >= 6
    assert max(later - sooner for sooner, later in pairwise(times)) <= 60
    assert {tuple(keys) for _, keys in reminded(script)} == {("a", "b")}
    assert script.results() == {"sent": 1}


def test_nobody_is_reminded_of_what_is_over() -> None:
    script = Script(Forgetful)
    script.lane.send(message(1, "a", "b"))
    script.run(until_s=100)
    script.lane.send(message(2, "a", state="resolved"))
    script.run(until_s=200)
    assert {tuple(keys) for at_s, keys in reminded(script) if at_s > 100} == {("b",)}
    script.lane.send(message(3, "b", state="resolved"))
    count = len(reminded(script))
    script.run(until_s=1_000)
    assert len(reminded(script)) == count


def test_a_host_that_takes_over_reminds_and_one_that_stops_does_not() -> None:
    script = Script(Forgetful)
    script.lane.send(message(1, "a"))
    script.lane.hold(message(2, "b").notices)
    script.run(until_s=100)
    assert {tuple(keys) for _, keys in reminded(script)} == {("b",)}
    script.lane.hold(())
    count = len(reminded(script))
    script.run(until_s=1_000)
    assert len(reminded(script)) == count


def test_who_does_not_forget_is_not_reminded() -> None:
    script = scripted(TAKEN)
    script.lane.send(message(1))
    script.run(until_s=1_000)
    assert told(script) == [(0, "m1")]
