"""What an operator would otherwise not know: begun anew, other terms in the file, harm before the plan."""

from __future__ import annotations

import logging
from random import Random

import pytest

from proxy.control.experiments.spec import place
from tests.control.experiments.lab import Answer, Lab, spec, split, table_of
from tests.control.experiments.test_experiment import breaking, compared, seen
from tests.control.experiments.test_experiment_life import configure, of_file


def test_an_experiment_that_a_restart_began_anew_says_what_is_gone() -> None:
    host = Lab().host()
    host.experiments.configure(of_file(), host.table)
    host.serve(300)
    host.second()
    assert seen(host).notes == []
    host = host.restarted()
    host.experiments.configure(of_file(), host.table)
    host.second()
    (note,) = seen(host).notes
    assert note.startswith("300 requests were assigned in it before this control process began: ")
    host.serve(100)
    host.second()
    assert seen(host).notes == [note], "what was assigned since is no part of it"


def test_with_a_redis_nothing_is_gone_and_nothing_is_said() -> None:
    host = Lab().host()
    host.experiments.configure(of_file(), host.table)
    host.sync()
    host.serve(300)
    host.rest()
    host.second()
    host.sync()
    host = host.restarted()
    host.experiments.configure(of_file(), host.table)
    host.second()
    host.sync()
    assert seen(host).notes == []
    assert seen(host).control.assigned + seen(host).candidate.assigned == 300


def test_other_terms_in_the_file_are_said_as_long_as_they_are_there(caplog: pytest.LogCaptureFixture) -> None:
    host = Lab().host()
    host.experiments.configure(of_file(), host.table)
    configure(host, of_file(margin=0.02))
    (note,) = seen(host).notes
    assert note.startswith("the file has other terms for it by now: they do not count")
    configure(host, of_file())
    assert seen(host).notes == []
    host.experiments.stop("exp", "ann", "enough")
    with caplog.at_level(logging.WARNING):
        configure(host, of_file())
    assert "experiment exp has ended, and a name is used once" in caplog.text


def test_who_plans_for_a_hundred_thousand_need_not_let_five_thousand_fail() -> None:
    host = Lab().host()
    host.experiments.start(spec(requests=100_000, abort=True), "ann")
    requests = 0
    while seen(host).state == "running" and requests < 3000:
        host.serve(50, breaking(host))
        host.second()
        requests += 50
    assert seen(host).state == "aborted"
    assert requests <= 400
    errors = compared(host).metrics["errors"]
    assert (errors.verdict.value, "too_few" in errors.reasons) == ("undecided", True), "the plan's own word"
    assert "surely worse than control on good requests" in (seen(host).ended_for or "")


def test_where_one_route_of_a_split_fails_over_requests_may_be_anywhere() -> None:
    assert not place(spec(), table_of(split(), split())).failover
    mixed = table_of(split(), split(failover=True))
    assert place(spec(), mixed).failover
    lab = Lab(split(), split(failover=True))
    host = lab.host(table=mixed)
    host.experiments.configure(of_file(), mixed)
    configure(host, of_file(), split(), split())  # switched off: who failed over is still in flight
    held = host.experiments._known["exp"].split
    assert held is not None
    assert held.failover


def test_what_another_backend_answered_has_an_endless_ttft() -> None:
    host = Lab(split(failover=True)).host()
    host.experiments.start(spec(), "ann")
    host.serve(600, lambda arm, _: Answer(elsewhere="control" if arm == "candidate" else None))
    host.rest()
    host.second()
    arm = seen(host).candidate
    assert arm.failed_over == arm.recorded > 200
    assert host.experiments._known["exp"].total().sides[1].unanswered == arm.recorded


def test_better_on_what_decides_and_worse_on_something_else_is_said_in_one_breath() -> None:
    def slower(arm: str, random: Random) -> Answer:
        candidate = arm == "candidate"
        ttft_ms = round(min((46 if candidate else 40) * random.lognormvariate(0, 0.4), 95))
        return Answer(random.random() < (0.985 if candidate else 0.9), ttft_ms)

    host = Lab().host()
    host.experiments.start(spec(), "ann")
    for _ in range(12):
        host.serve(200, slower)
        host.second()
    view = seen(host)
    assert view.headline.startswith("candidate is better than control on good requests: +")
    assert view.headline.endswith("; but worse on mean TTFT, typical TTFT")
    assert {each.metric for each in view.metrics if each.verdict == "worse"} == {"ttft", "log_ttft"}
