"""How backends are judged by their requests, who is taken out of its splits, and how it comes back."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from proxy.control.experiments.failures import Recent, judged
from proxy.control.experiments.health import LONGEST_NS, Down, Health, HealthView, State
from proxy.control.settle import settle
from proxy.control.snapshot import BackendStats
from proxy.link import Assignment, Facts
from proxy.settings.experiment import Ejection
from tests.control.experiments.tables import Clock, Host, S, table
from tests.control.facts import facts

AB = {"a": 50, "b": 50}


def assigned(backend: str, failed: str | None = None) -> Assignment:
    return Assignment("ab", backend, "draw", failed=failed)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"status": 200}, [("b", None)]),
        ({"status": 404}, [("b", None)]),
        ({"status": 429}, [("b", None)]),
        ({"status": 503}, [("b", None)]),
        ({"status": 500}, [("b", "status 500")]),
        ({"status": 504}, [("b", "status 504")]),
        ({"end": "truncated", "status": 200, "error": "truncated"}, [("b", "truncated")]),
        ({"end": "connect_failed", "status": 502, "error": "unreachable"}, [("b", "unreachable")]),
        ({"end": "no_response", "status": 502}, [("b", "no_response")]),
        ({"end": "bad_response", "status": 502}, [("b", "bad_response")]),
        ({"end": "timeout_connect", "status": 504, "error": "connect_timeout"}, [("b", "connect_timeout")]),
        ({"end": "timeout_first_byte", "status": 504}, [("b", "timeout_first_byte")]),
        ({"end": "timeout_idle", "status": 200}, [("b", "timeout_idle")]),
        ({"end": "client_left", "status": 200}, [("b", None)]),
        ({"end": "client_left", "status": 500}, [("b", "status 500")]),
        ({"end": "client_left", "status": None}, []),
        ({"end": "pool_full", "status": 503}, []),
        ({"end": "refused", "status": 400}, []),
        ({"end": "self", "status": 500}, []),
        ({"backend": None, "end": "refused", "status": 404}, []),
        ({"assignment": assigned("b"), "status": 200}, [("b", None)]),
        (
            {"assignment": assigned("a", "connection_refused"), "status": 200},
            [("a", "connection_refused"), ("b", None)],
        ),
        (
            {"assignment": assigned("a", "tls_failed"), "end": "no_response"},
            [("a", "tls_failed"), ("b", "no_response")],
        ),
        ({"assignment": assigned("b"), "end": "connect_failed"}, [("b", "connect_failed")]),
    ],
)
def test_what_a_request_says_of_which_backend(
    given: dict[str, Any], says: list[tuple[str, str | None]]
) -> None:
    assert list(judged(facts(**{"backend": "b", **given}))) == says


def test_a_window_forgets_in_tenths() -> None:
    recent = Recent(10 * S)
    for second in range(20):
        recent.add(second * S, second % 2 == 0)
    assert recent.sums(19 * S) == (11, 5), "the last ten seconds, and the tenth that they begin in"
    assert recent.sums(25 * S) == (5, 2)
    assert recent.sums(31 * S) == (0, 0)


class Watch:
    """A host with health; ``second(ok=..., bad=...)``: what its backends answer in one second."""

    def __init__(
        self, splits: dict[str, dict[str, int]] | None = None, *, enabled: bool = True, **settings: Any
    ) -> None:
        self.steady = Clock(7 * S)
        self.host = Host(table(splits or {"ab": AB}))
        given: dict[str, Any] = {"failures": 0.5, "requests": 10, "window": 10 * S, "time": 20 * S}
        self.settings = Ejection(enabled=enabled, **(given | settings))
        self.health = Health(self.settings, self.host.weights, self.steady, self.host.clock)
        self.pools: list[BackendStats] = []

    def second(self, **answers: tuple[int, int]) -> None:
        """By backend: how many requests went well, and how many failed."""
        for name, (good, bad) in answers.items():
            self.tell(*(self.request(name, status) for status in [200] * good + [500] * bad))
        self.pass_s(1)
        self.health.tick(self.pools)

    def request(self, name: str, status: int, ago_s: float = 0.0) -> Facts:
        return facts(backend=name, status=status, received_unix_ns=self.host.clock() - round(ago_s * S))

    def tell(self, *each: Facts) -> None:
        self.health([settle(one, "here") for one in each])

    def pass_s(self, seconds: float) -> None:
        self.steady.pass_s(seconds)
        self.host.clock.pass_s(seconds)

    def seconds(self, count: int, **answers: tuple[int, int]) -> None:
        for _ in range(count):
            self.second(**answers)

    def view(self, name: str = "b") -> HealthView:
        (found,) = (view for view in self.health.views() if view.name == name)
        return found

    def stands(self, name: str = "b") -> tuple[State, float]:
        view = self.view(name)
        return view.state, view.factor

    def arms(self, name: str = "ab") -> dict[str, int]:
        return self.host.arms(name)


FAILING, EJECTED, RETURNING, OK = State.FAILING, State.EJECTED, State.RETURNING, State.OK


def test_a_failing_backend_leaves_and_comes_back_in_steps(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch()
    with caplog.at_level(logging.INFO, logger="legato.health"):
        watch.seconds(3, a=(5, 0), b=(5, 0))
        assert watch.stands() == (OK, 1.0)
        watch.seconds(2, a=(5, 0), b=(0, 5))
        assert watch.stands() == (OK, 1.0), "10 of 25: not yet the half"
        watch.second(a=(5, 0), b=(0, 5))
        assert watch.stands() == (EJECTED, 0.0), "15 of 30"
        assert watch.arms() == {"a": 50_000, "b": 0}
        out_at = watch.host.clock()
        assert watch.view().until_unix_ns == out_at + 20 * S
        assert watch.health.ejected() == {"a": False, "b": True}
        assert watch.host.weights.splits()[0].ejected == {"b": 0.0}

        watch.seconds(19, a=(5, 0))
        assert watch.stands() == (EJECTED, 0.0)
        seen = []
        for _ in range(34):
            watch.second(a=(5, 0), b=(1, 0))
            seen.append((watch.stands(), watch.arms()["b"]))
        steps = list(dict.fromkeys(seen))
        assert steps == [
            ((RETURNING, 0.1), 5_000),
            ((RETURNING, 0.3), 15_000),
            ((RETURNING, 1.0), 50),
            ((OK, 1.0), 50),
        ]
        assert [seen.count(step) for step in steps[:3]] == [10, 10, 10], "each as long as a window"
    assert watch.arms() == AB
    assert caplog.messages == [
        "backend b is ejected for 20s: 15 of 30 requests failed, the last by status 500",
        "backend b is back with 10% of its weight",
        "backend b is back with 30% of its weight",
        "backend b is back with 100% of its weight",
        "backend b is back for good: it did well",
    ]


@pytest.mark.parametrize(
    ("requests", "good", "bad", "out"),
    [(10, 0, 9, False), (10, 0, 10, True), (10, 5, 5, True), (10, 6, 5, False), (1, 0, 1, True)],
)
def test_few_requests_and_few_failures_say_nothing(requests: int, good: int, bad: int, out: bool) -> None:
    watch = Watch(requests=requests)
    watch.second(b=(good, bad))
    assert watch.stands()[0] == (EJECTED if out else OK)


def test_switched_off_it_is_only_shown() -> None:
    watch = Watch(enabled=False)
    watch.seconds(5, a=(5, 0), b=(0, 5))
    assert watch.stands() == (FAILING, 1.0)
    assert [each.version for each in watch.host.published] == [1]
    view = watch.view()
    assert (view.requests, view.failures, view.consecutive, view.last_error) == (25, 25, 25, "status 500")
    assert view.last_error_unix_ns == watch.host.clock() - S
    assert view.since_unix_ns == watch.host.clock() - 3 * S
    watch.seconds(12, a=(5, 0), b=(5, 0))
    assert watch.stands() == (OK, 1.0)
    assert watch.view().consecutive == 0


def test_each_time_in_a_row_it_stays_out_longer_up_to_a_bound() -> None:
    watch = Watch()
    times = []
    for _ in range(8):
        watch.seconds(1, a=(5, 0), b=(0, 10))
        view = watch.view()
        assert view.state is EJECTED
        assert view.until_unix_ns is not None
        times.append((view.until_unix_ns - watch.host.clock()) // S)
        while watch.view().state is EJECTED:
            watch.second(a=(5, 0))
        assert watch.stands() == (RETURNING, 0.1)
    assert times == [20, 40, 80, 160, 320, 600, 600, 600]
    assert LONGEST_NS == 600 * S
    watch.seconds(40, a=(5, 0), b=(1, 0))
    assert watch.stands() == (OK, 1.0)
    watch.second(b=(0, 10))
    assert (watch.view().until_unix_ns or 0) - watch.host.clock() == 20 * S, "it had come back for good"


@pytest.mark.parametrize("step", [0, 1, 2])
def test_it_is_out_again_at_once_where_it_fails_on_its_way_back(step: int) -> None:
    watch = Watch()
    watch.second(a=(5, 0), b=(0, 10))
    watch.seconds(20 + 10 * step, a=(5, 0))
    assert watch.stands() == (RETURNING, [0.1, 0.3, 1.0][step])
    watch.seconds(3, a=(5, 0))
    watch.second(a=(5, 0), b=(0, 2))
    assert watch.stands()[0] is RETURNING, "two failures are few"
    watch.second(a=(5, 0), b=(0, 1))
    assert watch.stands() == (EJECTED, 0.0)
    assert watch.arms() == {"a": 50_000, "b": 0}


def test_a_single_failure_counts_at_the_end_of_a_step() -> None:
    watch = Watch()
    watch.second(a=(5, 0), b=(0, 10))
    watch.seconds(20, a=(5, 0))
    watch.second(a=(5, 0), b=(0, 1))
    watch.seconds(8, a=(5, 0))
    assert watch.stands() == (RETURNING, 0.1)
    watch.second(a=(5, 0))
    assert watch.stands() == (EJECTED, 0.0)


def test_what_was_asked_before_it_came_back_is_not_held_against_it() -> None:
    watch = Watch()
    watch.second(a=(5, 0), b=(0, 10))
    watch.seconds(20, a=(5, 0))
    watch.tell(*(watch.request("b", 500, ago_s=60) for _ in range(20)))
    watch.second(a=(5, 0))
    assert watch.stands() == (RETURNING, 0.1)
    assert watch.view().requests == 0


def test_what_fails_while_it_is_out_is_not_held_against_it() -> None:
    watch = Watch()
    watch.second(a=(5, 0), b=(0, 10))
    watch.seconds(18, a=(5, 0))
    watch.second(a=(5, 0), b=(0, 4))  # somebody forces requests there
    assert (watch.view().failures, watch.stands()) == (4, (EJECTED, 0.0))
    watch.seconds(2, a=(5, 0))
    assert watch.stands() == (RETURNING, 0.1)


def test_another_window_counts_from_now_on() -> None:
    watch = Watch(enabled=False)
    watch.second(b=(0, 10))
    watch.health.configure(Ejection(window=2 * S))
    assert watch.view().requests == 0
    watch.second(b=(0, 10))
    assert watch.view().requests == 10
    watch.seconds(3)
    assert watch.view().requests == 0


# ---------------------------------------------------------------- never the last


@pytest.mark.parametrize(
    ("splits", "kept"),
    [
        ({"ab": {"a": 0, "b": 9}}, "the last one of split ab"),
        ({"ab": {"a": 9, "b": 0}}, "no split sends it anything"),
        ({"cd": {"c": 1, "d": 1}, "b": {"b": 1, "x": 0}}, "the last one of split b"),
        ({"ab": AB, "be": {"b": 1, "e": 0}}, "the last one of split be"),
        ({"ab": AB, "be": {"b": 0, "e": 1}}, None),
    ],
)
def test_the_last_backend_of_any_split_stays(
    splits: dict[str, dict[str, int]], kept: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch(splits)
    watch.seconds(3, b=(0, 10))
    assert watch.stands() == ((EJECTED, 0.0) if kept is None else (FAILING, 1.0))
    assert watch.view().kept == kept
    assert sum(f"kept: {kept}" in line for line in caplog.messages) == (kept is not None), "once"


def test_of_two_that_fail_the_worse_one_leaves_and_the_other_stays() -> None:
    watch = Watch()
    watch.seconds(3, a=(4, 6), b=(2, 8))
    assert watch.stands("b") == (EJECTED, 0.0)
    assert watch.stands("a") == (FAILING, 1.0)
    assert watch.view("a").kept == "the last one of split ab"
    assert watch.arms() == {"a": 50_000, "b": 0}

    watch.seconds(27, a=(0, 10), b=(1, 0))
    assert watch.stands("b") == (RETURNING, 0.1)
    assert watch.stands("a") == (FAILING, 1.0), "who is on its way back is not yet somebody to rely on"
    watch.seconds(20, a=(0, 10), b=(1, 0))
    assert watch.stands("b")[0] is RETURNING
    assert watch.stands("a") == (EJECTED, 0.0), "the other is back with all of its weight"


def test_who_fails_on_its_way_back_and_is_the_last_by_then_stays() -> None:
    watch = Watch({"abc": {"a": 1, "b": 1, "c": 1}})
    watch.second(a=(5, 0), b=(0, 10), c=(5, 0))
    watch.seconds(20, a=(5, 0), c=(5, 0))
    assert watch.stands() == (RETURNING, 0.1)
    watch.host.weights.override("abc", {"a": 0, "b": 1, "c": 0}, author="ann", reason="a try")
    watch.second(b=(0, 10))
    assert watch.stands() == (FAILING, 1.0)
    assert watch.view().kept == "the last one of split abc"
    assert watch.arms("abc") == {"a": 0, "b": 1, "c": 0}


def test_who_is_out_is_back_where_it_is_switched_off_or_in_no_split() -> None:
    watch = Watch()
    watch.second(b=(0, 10))
    assert watch.stands() == (EJECTED, 0.0)
    watch.health.configure(Ejection())
    watch.second()
    assert watch.stands() == (OK, 1.0)
    assert watch.arms() == AB

    watch = Watch()
    watch.second(b=(0, 10))
    watch.host.weights.set_file(table({"ac": {"a": 1, "c": 1}}, 2))
    watch.health.configure(watch.settings)
    watch.second()
    assert [view.name for view in watch.health.views()] == ["a", "alone", "c"]
    watch.host.weights.set_file(table({"ab": AB}, 3))
    watch.second()
    assert watch.stands() == (OK, 1.0), "it is new again"
    assert watch.arms() == AB


def test_a_reload_keeps_out_who_is_out() -> None:
    watch = Watch()
    watch.second(b=(0, 10))
    watch.host.weights.set_file(table({"ab": {"a": 1, "b": 3}}, 2))
    watch.health.configure(watch.settings)
    assert watch.arms() == {"a": 1_000, "b": 0}
    assert watch.stands() == (EJECTED, 0.0)
    watch.host.weights.set_file(table({"ac": {"a": 1, "c": 1}}, 3))
    watch.host.weights.set_file(table({"ab": {"a": 1, "b": 3}}, 4))
    watch.second(a=(5, 0))
    assert watch.stands() == (EJECTED, 0.0)
    assert watch.arms() == {"a": 1_000, "b": 0}, "it is shown as it is"


# ---------------------------------------------------------------- pools


def test_pools_tell_who_cannot_be_reached_and_since_when() -> None:
    watch = Watch()
    watch.second()
    assert watch.view().pool is None
    assert watch.health.down() == []

    def pool(up: bool) -> BackendStats:
        return BackendStats("b", up, 1, 2, 3, 1)

    watch.pools = [pool(True), BackendStats("unknown", False, 0, 0, 0, 0)]
    watch.second()
    watch.pools = [pool(False)]
    watch.second()
    since = watch.host.clock()
    watch.seconds(5)
    assert watch.health.down() == [Down("b", since, since)]
    assert watch.view().pool == pool(False)
    watch.pools = [pool(True)]
    watch.second()
    assert watch.health.down() == []
    assert watch.view().up_since_unix_ns == watch.host.clock()
    assert watch.stands() == (OK, 1.0), "a pool's word alone takes nobody out"


def test_who_answers_by_a_connection_that_was_there_is_not_down() -> None:
    """A pool learns by new connections only: one that failed says nothing of the hour after it."""
    watch = Watch()
    watch.pools = [BackendStats("b", False, 1, 2, 3, 1)]
    watch.second()
    since = watch.host.clock()
    assert [down.backend for down in watch.health.down()] == ["b"]
    watch.tell(watch.request("b", 200, ago_s=30))
    assert watch.health.down(), "it came before"
    watch.pass_s(1)
    watch.tell(watch.request("b", 500))
    assert watch.health.down() == [], "an error is an answer"
    watch.pass_s(1)
    gone = facts(backend="b", status=502, end="connect_failed", received_unix_ns=watch.host.clock())
    watch.tell(gone)
    assert watch.health.down() == [Down("b", since, watch.host.clock())]
    watch.pass_s(5)
    watch.tell(
        facts(backend="a", assignment=assigned("b", "tls_failed"), received_unix_ns=watch.host.clock())
    )
    assert watch.health.down() == [Down("b", since, watch.host.clock())], "another one stood in"


def test_what_a_failed_connection_says_is_forgotten_after_five_minutes() -> None:
    watch = Watch()
    watch.pools = [BackendStats("a", True, 1, 2, 3, 1), BackendStats("b", False, 1, 2, 3, 1)]
    watch.second()
    assert watch.health.not_down() == frozenset()
    watch.pass_s(300)
    assert watch.health.not_down() == frozenset(), "five minutes are not over"
    watch.pass_s(1)
    assert watch.health.not_down() == {"b"}
    gone = facts(backend="b", status=502, end="connect_failed", received_unix_ns=watch.host.clock())
    watch.tell(gone)
    assert watch.health.not_down() == frozenset()
    watch.pass_s(1)
    watch.tell(watch.request("b", 200))
    assert watch.health.not_down() == {"b"}, "it answered by a connection that was there"
