"""An arm that hangs: its worst requests are in flight, in no metric, and must not be forgiven for it."""

from __future__ import annotations

from random import Random

import pytest

from proxy.control.experiments.hanging import DOUBT_LOOKS, HANGS_NS, SURE_LOOKS, Hanging, Late, late_of
from proxy.link import GroupNow
from tests.control.experiments.lab import Host, Lab, spec, split
from tests.control.experiments.test_experiment import compared, quiet, seen
from tests.control.facts import S


def one_in(many: int, arms: tuple[str, ...]) -> object:
    def hangs(arm: str, random: Random) -> bool:
        return arm in arms and random.random() < 1 / many

    return hangs


def hang(host: Host, many: int, *arms: str) -> None:
    for worker in host.workers:
        worker.hangs = one_in(many, arms)  # type: ignore[assignment]


def rounds(host: Host, seconds: int, requests: int = 60, sessions: range = range(0)) -> None:
    for _ in range(seconds):
        host.serve(requests, sessions=sessions)
        host.rest()
        host.second()


def codes(host: Host) -> set[str]:
    return {reason.code for metric in seen(host).metrics for reason in metric.reasons}


@pytest.mark.parametrize("sticky", [False, True])
def test_a_candidate_that_hangs_in_one_of_ten_is_no_equal(sticky: bool) -> None:
    host = Lab(split(sticky)).host()
    host.experiments.start(spec(margin=0.05, requests=600), "ann")
    hang(host, 10, "candidate")
    rounds(host, 20, sessions=range(4000) if sticky else range(0))
    view = seen(host)
    assert {metric.verdict for metric in view.metrics} == {"undecided"}
    assert "requests that are overdue and have not ended are more than 1% of an arm's" in view.headline
    assert 0.04 < view.candidate.overdue / view.candidate.assigned < 0.1
    assert view.control.overdue == 0
    assert [test.name for test in view.integrity if test.alarm] == [], "they are in flight: none is missing"
    assert view.guardrail.state == "ok", "what is overdue for a moment may still be good"


@pytest.mark.parametrize(("sticky", "abort"), [(False, True), (True, False)])
def test_it_trips_the_guardrail(sticky: bool, abort: bool) -> None:
    host = Lab(split(sticky)).host()
    host.experiments.start(spec(abort=abort), "ann")
    hang(host, 10, "candidate")
    for _ in range(90):
        rounds(host, 1, sessions=range(4000) if sticky else range(0))
        if not quiet(host):
            break
    view = seen(host)
    assert view.guardrail.state == "worse"
    said = view.guardrail.what or ""
    assert "good requests (those that hang are taken for bad), by more than 0.50 points: -" in said
    assert view.state == ("aborted" if abort else "running")
    if abort:
        assert host.weights.splits()[0].arms == {"control": 50, "candidate": 0}


def test_without_the_hang_the_same_arms_are_equivalent() -> None:
    host = Lab().host()
    host.experiments.start(spec(margin=0.1), "ann")
    rounds(host, 15)
    assert (seen(host).verdict, codes(host) & {"overdue:share"}) == ("equivalent", set())


def test_a_candidate_that_answers_nobody_at_all() -> None:
    host = Lab().host()
    host.experiments.start(spec(abort=True), "ann")
    hang(host, 1, "candidate")
    rounds(host, 40)
    view = seen(host)
    assert (view.candidate.recorded, view.guardrail.state, view.state) == (0, "worse", "aborted")


@pytest.mark.parametrize("arms", [("control",), ("control", "candidate")])
def test_a_control_that_hangs_makes_no_candidate_worse(arms: tuple[str, ...]) -> None:
    host = Lab(split(control=30, candidate=70)).host()
    host.experiments.start(spec(abort=True), "ann")
    hang(host, 3, *arms)
    for _ in range(40):
        rounds(host, 1, requests=20)
        assert quiet(host), host.experiments.alarms()
    assert seen(host).verdict == "undecided"
    assert "overdue:share" in codes(host)


def test_what_other_hosts_have_overdue_is_in_it() -> None:
    lab = Lab()
    one, two = lab.host("one"), lab.host("two")
    one.experiments.start(spec(), "ann")
    for host in (one, two):
        host.sync()
    hang(two, 3, "candidate")
    for _ in range(36):
        for host in (one, two):
            host.serve(25)
            host.rest()
        two.second()
        lab.now_ns -= S
        one.second()
    two.sync()
    one.sync()
    one.second()
    assert seen(one).candidate.overdue == two.experiments._known["exp"].book.sides[1].overdue > 40
    assert (seen(one).verdict, seen(one).guardrail.state) == ("undecided", "worse")
    assert "overdue:share" in codes(one)
    two = two.restarted()  # killed: what it told stays, and its successor settles what it told of
    for worker in two.workers:
        for each in worker.running:
            each.hung = False
    two.second()
    two.sync()
    two.rest()
    two.second(2)
    two.sync()
    one.sync()
    one.second()
    assert one.experiments._known["exp"].total().sides[1].overdue > 40
    assert (seen(one).candidate.overdue, codes(one) & {"overdue:share"}) == (0, set())


def test_when_what_hung_ends_it_is_judged_like_everything_else() -> None:
    host = Lab().host()
    host.experiments.start(spec(margin=0.1), "ann")
    hang(host, 10, "candidate")
    rounds(host, 12)
    assert "overdue:share" in codes(host)
    hang(host, 1, "nobody")
    for worker in host.workers:
        for each in worker.running:
            each.hung = False
    host.rest()
    rounds(host, 6)
    assert seen(host).candidate.overdue == 0
    assert "overdue:share" not in codes(host)
    assert compared(host).metrics["good"].verdict == "equivalent"


# ---------------------------------------------------------------- of numbers alone


def group(overdue: int, worst_s: float, backend: str = "a", model: str = "m") -> GroupNow:
    return GroupNow(backend, model, "chat", 50, overdue, overdue, int(worst_s * S))


def test_what_workers_tell_of_a_backend_is_added_up() -> None:
    late = late_of([group(5, 30), group(7, 3, model="n"), group(2, 3, "b"), group(0, 0, "c")])
    assert late == ({"a": 12, "b": 2, "c": 0}, {"a": 30 * S, "b": 3 * S, "c": 0})


# in flight there, the arm's own of these, overdue there -> the arm's overdue and hanging
SHARED = [
    (100, 100, 30, (30, 30)),
    (100, 60, 30, (30, 0)),  # 40 are others', and all 30 may be
    (100, 60, 50, (50, 10)),  # 10 at least are not
    (100, 20, 50, (20, 0)),
    (100, 20, 100, (20, 20)),
    (0, 20, 0, (0, 0)),
]


@pytest.mark.parametrize(("in_flight", "own", "overdue", "found"), SHARED)
def test_other_routes_to_the_same_backend_may_be_the_ones(
    in_flight: int, own: int, overdue: int, found: tuple[int, int]
) -> None:
    arm, late = Hanging(), Late({"a": overdue}, {"a": HANGS_NS})
    told = [arm.look("a", late, in_flight, own) for _ in range(SURE_LOOKS)]
    assert told[0] == (0, 0)
    assert told[-1] == found


# the levels of overdue ones, and by how much the worst -> what there is at the end
LOOKS = [
    ([40] * (DOUBT_LOOKS - 1), 60, (0, 0)),
    ([40] * DOUBT_LOOKS, 60, (40, 0)),
    ([40, 40, 40, 0] * 10, 60, (0, 0)),  # hiccups, each felt by all
    ([40] * SURE_LOOKS, 60, (40, 40)),
    ([40] * SURE_LOOKS, 19, (40, 0)),  # always somebody, nobody for long
    ([40, 3] + [40] * (SURE_LOOKS - 1), 60, (40, 3)),
    ([3] + [40] * SURE_LOOKS, 60, (40, 40)),
]


@pytest.mark.parametrize(("levels", "worst_s", "found"), LOOKS)
def test_a_hiccup_is_no_hang(levels: list[int], worst_s: int, found: tuple[int, int]) -> None:
    arm = Hanging()
    told = [arm.look("a", Late({"a": each}, {"a": worst_s * S}), 100, 100) for each in levels]
    assert told[-1] == found
