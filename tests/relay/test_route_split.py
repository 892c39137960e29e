"""A route with several backends: what each arm is promised, and what a request's facts tell of it."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from proxy import link
from proxy.link import (
    Assigned,
    Assignment,
    BackendSpec,
    Beat,
    Facts,
    FactsBatch,
    LearnedCurve,
    Match,
    RouteSpec,
    SloSpec,
    SplitSpec,
    Table,
)
from proxy.relay.call import Call
from proxy.relay.route import Arm, RouteTable

MS = 1_000_000
BACKENDS = tuple(BackendSpec(name, f"http://{name}") for name in ("a", "b", "c"))
LEARNED = SloSpec(
    "learned",
    Match(),
    ((0, 900 * MS),),
    MS,
    curves=(LearnedCurve("a", "m", ((0, 100 * MS),)), LearnedCurve("b", "m", ((0, 200 * MS),))),
)
SPLIT = SplitSpec("s", (("a", 90), ("b", 10), ("c", 0)), "seed", ("header", "x-session-id"))


def routes(*rules: RouteSpec, slos: tuple[SloSpec, ...] = (LEARNED,)) -> RouteTable:
    return RouteTable(Table(1, BACKENDS, rules, slos), draw=Random(1).random)


def ask(table: RouteTable, model: str = "m", path: str = "/v1/x", **headers: str) -> Arm:
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    arm = table.choose(Call("POST", path, model), fields, ("127.0.0.1", 1))
    assert arm is not None
    return arm


@pytest.mark.parametrize("by_header", [False, True])
def test_each_backend_is_promised_its_own(by_header: bool) -> None:
    batch = SloSpec("batch", Match(header={"x-batch": "1"}), ((0, 7 * MS),), MS)
    table = routes(RouteSpec(Match(), "a", split=SPLIT), slos=(*((batch,) if by_header else ()), LEARNED))
    arms = [ask(table, x_session_id=f"s{number}") for number in range(300)]
    assert Counter(arm.backend for arm in arms)["b"] in range(15, 50)
    assert {(arm.backend, arm.ttft_ns // MS) for arm in arms} == {("a", 100), ("b", 200)}
    assert [ask(table, x_session_id=f"s{number}") for number in range(300)] == arms, "asked again, the same"
    assert all(arm.assignment and arm.assignment.backend == arm.backend for arm in arms)
    if by_header:
        assert ask(table, x_batch="1").slo.name == "batch"


def test_the_first_route_that_matches_decides_as_ever() -> None:
    forced = SplitSpec("s", SPLIT.arms, "seed", force="x-to")
    table = routes(
        RouteSpec(Match(model="x*"), "c", "generic"),
        RouteSpec(Match(path="/v1/*"), "a", "openai.chat", forced),
    )
    plain = ask(table, model="xx", x_to="b")
    assert (plain.backend, plain.dialect, plain.assignment) == ("c", "generic", None)
    assert plain.instead(("c",), "unreachable") is None
    to_c = ask(table, x_to="c")
    assert (to_c.backend, to_c.dialect, to_c.ttft_ns) == ("c", "openai.chat", 900 * MS)
    assert table.choose(Call("POST", "/v2"), []) is None
    assert not table.keyed


def test_only_a_route_by_a_key_of_the_body_has_it_read() -> None:
    keyed = SplitSpec("s", SPLIT.arms, "seed", ("field", "user"))
    assert routes(RouteSpec(Match(model="x"), "c"), RouteSpec(Match(), "a", split=keyed)).keyed


def test_failover_keeps_what_was_promised_and_who_was_asked_first() -> None:
    table = routes(RouteSpec(Match(), "a", split=SplitSpec("s", SPLIT.arms, "seed", failover=True)))
    arm = next(arm for arm in iter(lambda: ask(table), None) if arm.backend == "a")
    other = arm.instead(("a",), "connection_refused")
    assert other is not None
    assert (other.backend, other.ttft_ns) == ("b", 100 * MS)
    assert other.assignment == Assignment("s", "a", "draw", None, "connection_refused")
    assert other.instead(("a", "b"), "unreachable") is None


def facts(**more: Any) -> Facts:
    return Facts(
        1, "id", 0, 0, 0, "complete", "POST", "/", 200, True, True, None, "b", "default", 1, 1, 0, **more
    )


@pytest.mark.parametrize(
    ("assignment", "assigned", "session", "forced"),
    [
        (None, "b", None, False),
        (Assignment("s", "a", "session", 2**64 - 1, "connection_refused"), "a", 2**64 - 1, False),
        (Assignment("s", "b", "forced"), "b", None, True),
    ],
)
def test_it_travels_to_the_control_process(
    assignment: Assignment | None, assigned: str, session: int | None, forced: bool
) -> None:
    told = link.decode_up(link.frame(FactsBatch([facts(assignment=assignment)]))[4:])
    assert isinstance(told, FactsBatch)
    (one,) = told.facts
    assert (one.assignment, one.assigned, one.session, one.forced) == (assignment, assigned, session, forced)


def test_the_counts_travel_with_a_beat() -> None:
    rows = [Assigned("s", "a", "e", 1, 2, 3, 4, [5, 6])]
    beat = Beat(0, [], [], 0, [], 0, [], 0, [], 0, {}, 1, True, False, 0, rows)
    assert link.decode_up(link.frame(beat)[4:]) == beat
