"""The picture of the streams in flight: by group, in slices, with what is overdue now."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.link import GroupNow, Match, SloSpec
from proxy.relay import flight
from proxy.relay.call import Call
from proxy.relay.route import Arm

MS = 1_000_000
NOW = 10_000 * MS
SLO = SloSpec("chat", Match(), ((0, 500 * MS),), 50 * MS)


class FakeLoop:
    """Runs what was put off, a turn at a time; the clock moves ``step_ns`` each time somebody looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step_ns: int = 0) -> None:
        self.now_ns, self.step_ns, self.turns = NOW, step_ns, 0
        self.waiting: deque[Callable[[], None]] = deque()
        monkeypatch.setattr(flight, "monotonic_ns", self.clock)

    def clock(self) -> int:
        self.now_ns += self.step_ns
        return self.now_ns

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.waiting.append(callback)

    def run(self) -> None:
        while self.waiting:
            self.turns += 1
            self.waiting.popleft()()


def tap(overdue_ms: int = -1, missed: int = 0) -> Any:
    return SimpleNamespace(overdue_ns=lambda now: overdue_ms * MS, missed_by=lambda now: missed)


def exchange(backend: str = "b", model: str | None = "m", **more: Any) -> Any:
    fields = {
        "end": None,
        "recorded": True,
        "arm": Arm(backend, SLO, 500 * MS, 50 * MS, 0),
        "call": Call("POST", "/", model, stream=True),
        "tap": None,
        "sent_ns": None,
        "head_ns": None,
    }
    return SimpleNamespace(**{**fields, **more})


def swept(loop: FakeLoop, *exchanges: Any) -> list[GroupNow]:
    found: list[list[GroupNow]] = []
    flight.sweep(cast(Any, loop), list(exchanges), found.append)
    loop.run()
    (groups,) = found  # told once
    return groups


def test_nothing_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    assert swept(FakeLoop(monkeypatch)) == []


def test_streams_are_summed_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = swept(
        FakeLoop(monkeypatch),
        exchange(tap=tap(overdue_ms=30, missed=1)),
        exchange(tap=tap(overdue_ms=70, missed=4)),
        exchange(tap=tap(missed=2)),
        exchange(model=None, tap=tap()),
        exchange(backend="c"),
    )
    assert groups == [
        GroupNow("b", "m", "chat", 3, 2, 7, 70 * MS),
        GroupNow("b", "", "chat", 1, 0, 0, 0),
        GroupNow("c", "m", "chat", 1, 0, 0, 0),
    ]


@pytest.mark.parametrize(
    ("waited_ms", "overdue", "missed"), [(499, 0, 0), (500, 0, 0), (501, 1, 1), (549, 1, 1), (551, 1, 2)]
)
def test_a_server_that_hangs_before_its_head_is_overdue_while_it_hangs(
    monkeypatch: pytest.MonkeyPatch, waited_ms: int, overdue: int, missed: int
) -> None:
    (group,) = swept(FakeLoop(monkeypatch), exchange(sent_ns=NOW - waited_ms * MS))
    assert (group.overdue, group.missed) == (overdue, missed)
    assert group.worst_overdue_ns == max(0, waited_ms - 500) * MS


def test_what_awaits_no_token_is_not_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Call("POST", "/", "m", stream=False)
    (group,) = swept(
        FakeLoop(monkeypatch),
        exchange(call=plain, sent_ns=0),
        exchange(sent_ns=None),
        exchange(sent_ns=0, head_ns=NOW),  # not measured
    )
    assert (group.in_flight, group.overdue, group.missed) == (3, 0, 0)


def test_what_has_ended_meanwhile_or_is_excluded_is_not_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    assert swept(FakeLoop(monkeypatch), exchange(end="complete"), exchange(recorded=False)) == []


def test_a_long_sweep_is_cut_into_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = FakeLoop(monkeypatch, step_ns=200_000)  # a slice has room for a few looks at the clock
    (group,) = swept(loop, *[exchange(tap=tap()) for _ in range(1000)])
    assert group.in_flight == 1000
    assert loop.turns > 10
