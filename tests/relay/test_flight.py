"""The picture of the streams in flight: by group, in slices, with what is overdue now."""

from __future__ import annotations

import gc
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from proxy.link import GroupNow, Match, SloSpec, Table, Waiting
from proxy.relay import flight as module
from proxy.relay.call import Call
from proxy.relay.flight import Flight
from proxy.relay.record_tags import Tags
from proxy.relay.route import Arm

MS = 1_000_000
NOW = 10_000 * MS
SLO = SloSpec("chat", Match(), ((0, 500 * MS),), 50 * MS)
WORKER = SimpleNamespace(tags=Tags(Table(1, (), (), (), record_headers={"request_id": "x-request-id"})))
NUMBERS = count()


class FakeLoop:
    """Runs what was put off, a turn at a time; the clock moves ``step_ns`` each time somebody looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step_ns: int = 0) -> None:
        self.now_ns, self.step_ns, self.turns = NOW, step_ns, 0
        self.waiting: deque[Callable[[], None]] = deque()
        monkeypatch.setattr(module, "monotonic_ns", self.clock)

    def clock(self) -> int:
        self.now_ns += self.step_ns
        return self.now_ns

    def call_soon(self, callback: Callable[..., None], *given: object) -> None:
        self.waiting.append(partial(callback, *given))

    def run(self) -> None:
        while self.waiting:
            self.turns += 1
            self.waiting.popleft()()


def tap(overdue_ms: int = -1, missed: int = 0, tokens: int = 0) -> Any:
    return SimpleNamespace(
        overdue_ns=lambda now: overdue_ms * MS, missed_by=lambda now: missed, tokens=tokens
    )


class FakeExchange:
    """One by identity, as the real ones."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


def exchange(backend: str = "b", model: str | None = "m", **more: Any) -> Any:
    fields = {
        "end": None,
        "recorded": True,
        "arm": Arm(backend, SLO, 500 * MS, 50 * MS, 0),
        "call": Call("POST", "/", model, stream=True),
        "tap": None,
        "sent_ns": None,
        "head_ns": None,
        "streamed": False,
        "paused_ns": None,
        "id": f"id-{next(NUMBERS)}",
        "trace_id": None,
        "worker": WORKER,
        "client": SimpleNamespace(fields=[(b"Host", b"a")]),
    }
    return FakeExchange(**{**fields, **more})


def swept(loop: FakeLoop, *exchanges: Any, flight: Flight | None = None) -> list[GroupNow]:
    found: list[list[GroupNow]] = []
    (flight or Flight(cast(Any, loop))).sweep(list(exchanges), found.append)
    loop.run()
    (groups,) = found  # told once
    return groups


def test_nothing_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    assert swept(FakeLoop(monkeypatch)) == []


@pytest.mark.parametrize("step_ns", [0, MS // 4], ids=["in one turn", "in slices"])
def test_a_sweep_holds_no_stream_beyond_its_end(monkeypatch: pytest.MonkeyPatch, step_ns: int) -> None:
    late = [exchange(tap=tap(overdue_ms=30, missed=1)) for _ in range(40)]
    held = [weakref.ref(each) for each in late]
    gc.disable()  # a cycle would wait for it
    try:
        swept(FakeLoop(monkeypatch, step_ns), *late)
        late.clear()
        assert [each for each in held if each() is not None] == []
    finally:
        gc.enable()


def test_streams_are_summed_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    late, later = exchange(tap=tap(overdue_ms=30, missed=1)), exchange(tap=tap(overdue_ms=70, missed=4))
    worst = [Waiting(later.id, 70 * MS, 4), Waiting(late.id, 30 * MS, 1)]
    groups = swept(
        FakeLoop(monkeypatch),
        late,
        later,
        exchange(tap=tap(missed=2)),
        exchange(model=None, tap=tap()),
        exchange(backend="c"),
    )
    assert groups == [
        GroupNow("b", "m", "chat", 3, 2, 7, 70 * MS, awaited=3, worst=worst),
        GroupNow("b", "", "chat", 1, 0, 0, 0, awaited=1),
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


@pytest.mark.parametrize(("running_ms", "late_ms"), [(600, 0), (8_000, 0), (8_001, 1)])
def test_where_only_the_duration_is_promised_that_alone_is_overdue(
    monkeypatch: pytest.MonkeyPatch, running_ms: int, late_ms: int
) -> None:
    slo = SloSpec("batch", Match(), ((0, 500 * MS),), 50 * MS, 0.0, e2e_ns=8_000 * MS, duration_only=True)
    sent: dict[str, Any] = {"arm": Arm("b", slo, 500 * MS, 50 * MS, 0), "sent_ns": NOW - running_ms * MS}
    answers = {**sent, "head_ns": NOW - running_ms * MS}
    for each, late in (
        (exchange(**sent), late_ms),  # no head yet
        (exchange(**answers, streamed=True, tap=tap(overdue_ms=400, missed=8)), late_ms),
        # A JSON answer whose head came early never has a token: two slow ones would look like silence.
        (exchange(**answers, tap=tap()), 0),
    ):
        (group,) = swept(FakeLoop(monkeypatch), each)
        assert (group.awaited, group.overdue, group.worst_overdue_ns) == (1, int(late > 0), late * MS)
        assert group.missed == 0, "no token was owed a deadline, as in the record when it has ended"


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


def test_what_is_due_while_a_slow_client_holds_the_server_up_is_not_overdue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def due(at_ns: int) -> Any:
        late = NOW - at_ns
        return SimpleNamespace(
            overdue_ns=lambda now: now - at_ns, missed_by=lambda now: 3 + (now > at_ns) * late, tokens=5
        )

    paused = NOW - 2_000 * MS
    (group,) = swept(FakeLoop(monkeypatch), exchange(tap=due(paused + 1), paused_ns=paused))
    assert (group.in_flight, group.overdue, group.missed, group.worst_overdue_ns) == (1, 0, 3, 0)
    (group,) = swept(FakeLoop(monkeypatch), exchange(tap=due(paused - 7), paused_ns=paused))
    assert (group.overdue, group.worst_overdue_ns) == (1, 7), "it was overdue before"


def test_tokens_per_second_are_those_that_came_since_the_sweep_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = FakeLoop(monkeypatch)
    flight = Flight(cast(Any, loop))
    first, second, other = (exchange(tap=tap(tokens=n)) for n in (10, 30, 0))
    other.arm = Arm("c", SLO, 500 * MS, 50 * MS, 0)

    def rates(*running: Any, after_ms: int = 1000) -> dict[str, float]:
        loop.now_ns += after_ms * MS
        return {group.backend: group.tokens_per_s for group in swept(loop, *running, flight=flight)}

    assert rates(first, second, other, after_ms=2000) == {"b": 20.0, "c": 0.0}
    first.tap.tokens, other.tap.tokens = 25, 7
    assert rates(first, second, other) == {"b": 15.0, "c": 7.0}
    assert rates(first, second, other) == {"b": 0.0, "c": 0.0}, "a server that hangs"
    # Between two sweeps some end, and others come and go.
    second.tap.tokens, second.end = 34, "complete"
    brief = exchange(tap=tap(tokens=6), end="complete")
    for ended in (second, brief, exchange(end="refused"), exchange(tap=tap(tokens=9), recorded=False)):
        flight.ended(ended)
    assert rates(first, second, after_ms=500) == {"b": 20.0}
    first.end = other.end = "complete"
    flight.ended(first)
    flight.ended(other)
    assert rates(first, other) == {}, "nothing is in flight and nothing came"
    assert not flight._told, "and nothing is kept"


def test_a_group_whose_streams_all_ended_tells_their_tokens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = FakeLoop(monkeypatch)
    flight = Flight(cast(Any, loop))
    flight.ended(exchange(tap=tap(tokens=40), end="complete"))
    loop.now_ns += 1000 * MS
    assert swept(loop, flight=flight) == [GroupNow("b", "m", "chat", 0, 0, 0, 0, 40.0)]
    loop.now_ns += 1000 * MS
    assert swept(loop, flight=flight) == []


# ---------------------------------------------------------------- which of them


def test_the_most_overdue_of_each_group_are_named_while_they_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    overdue_ms = [40, 90, 10, 70, 20, 60, 90, 50, 30, -5]
    running = [exchange(tap=tap(overdue_ms=late, missed=late // 10)) for late in overdue_ms]
    alone = exchange(model="other", sent_ns=NOW - 501 * MS)
    one, other = swept(FakeLoop(monkeypatch), *running, alone, exchange(tap=tap(99, 9), recorded=False))
    assert sorted(waiting.id for waiting in one.worst[:2]) == sorted((running[1].id, running[6].id))
    assert [(w.id, w.overdue_ns // MS, w.missed) for w in one.worst[2:]] == [
        (running[3].id, 70, 7),
        (running[5].id, 60, 6),
        (running[7].id, 50, 5),
    ]
    assert other.worst == [Waiting(alone.id, MS, 1)]


def test_they_are_named_by_the_ids_that_their_clients_and_traces_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = SimpleNamespace(fields=[(b"X-Request-ID", b"mine" * 100), (b"Authorization", b"Bearer secret")])
    (group,) = swept(
        FakeLoop(monkeypatch), exchange(tap=tap(7, 2), client=client, trace_id="4bf92f3577b34da6")
    )
    (named,) = group.worst
    assert (named.request_id, named.trace_id) == ("mine" * 32, "4bf92f3577b34da6")


def test_what_is_named_is_bounded_however_many_groups_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    client = SimpleNamespace(fields=[(b"x-request-id", b"r" * 5_000)])
    hanging = [
        exchange(model=f"m{number % 300}", tap=tap(80, 3), client=client, trace_id="a" * 32)
        for number in range(3_000)
    ]
    few = [exchange(model="crowd", tap=tap(9, 1), client=client) for _ in range(50)]
    groups = swept(FakeLoop(monkeypatch), *hanging, *few)
    assert sum(len(group.worst) for group in groups) <= 80
    assert sum(len(waiting.request_id or "") for group in groups for waiting in group.worst) <= 80 * 128
    (crowd,) = (group for group in groups if group.model == "crowd")
    assert len(crowd.worst) == 5, "the group of which most hang is among them"


def test_who_ends_while_others_are_looked_at_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = FakeLoop(monkeypatch, step_ns=200_000)
    ended, running = exchange(tap=tap(900, 9)), exchange(tap=tap(10, 1))
    found: list[list[GroupNow]] = []
    Flight(cast(Any, loop)).sweep([ended, *(exchange(tap=tap()) for _ in range(500)), running], found.append)
    ended.end = "client_left"
    loop.run()
    ((group,),) = found
    assert [waiting.id for waiting in group.worst] == [running.id]


def test_a_beat_of_a_version_that_names_none_is_read() -> None:
    older = ["b", "m", "chat", 3, 2, 7, 70 * MS, 40.0, 3]
    one = msgspec.convert(older, GroupNow)
    assert (one.awaited, one.worst) == (3, [])
    one.worst.append(Waiting("a", MS, 1))
    assert msgspec.convert(older, GroupNow).worst == [], "a list of its own"
    newer = GroupNow("b", "m", "chat", 3, 2, 7, 70 * MS, 40.0, 3, [Waiting("a", MS, 1)])
    assert msgspec.to_builtins(newer)[:9] == older, "who knows of none reads the rest as before"
