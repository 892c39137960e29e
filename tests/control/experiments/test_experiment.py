"""An experiment through the whole control core: what counts, what is called, and what is not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from proxy.control.experiments.book import CANDIDATE, CONTROL
from proxy.control.experiments.views import ExperimentView
from proxy.link import Assignment
from scoring.compare import Comparison
from scoring.compare_sums import PLACE
from tests.control.experiments.lab import Answer, Behave, Host, Lab, facts_of, spec, split, well
from tests.control.facts import MS, S

ARMS = ("control", "candidate")


def compared(host: Host, name: str = "exp") -> Comparison:
    found = host.experiments.compare(name)
    assert found is not None
    return found


def seen(host: Host, name: str = "exp") -> ExperimentView:
    return next(view for view in host.experiments.views() if view.spec.name == name)


def quiet(host: Host) -> bool:
    return not host.experiments.alarms()


def naive(host: Host, arm: str, epoch: str) -> dict[str, int]:
    """What an arm's sums must be, request by request, without what is under test."""
    out: Counter[str] = Counter()
    for each in host.settled:
        assignment = each.assignment
        if assignment is None or assignment.epoch != epoch or assignment.backend != arm:
            continue
        if assignment.by == "forced":
            continue
        out["recorded"] += 1
        if each.end == "self":
            continue
        out["requests"] += 1
        out["answered"] += 1
        if (assignment.failed is not None and each.backend != arm) or each.end != "complete":
            out["errors"] += 1
            out["judged"] += 1
            continue
        assert each.stream is not None
        raw = np.frombuffer(each.stream.choices[0], dtype="<i8").reshape(-1, 2)[:, 0] // MS
        on_time = raw[2] - raw[1] <= 50  # three tokens, the second always in time
        out["judged"] += 1
        out["good"] += int(on_time)
        out["ttft_us"] += 1000 * int(raw[0])
        out["ttft_us_squared"] += (1000 * int(raw[0])) ** 2
        out["tokens"] += 3
    return dict(out)


def odd(arm: str, random: Random) -> Answer:
    """Everything that may happen."""
    drawn = random.random()
    if drawn < 0.05:
        return Answer(failed=True)
    if drawn < 0.1:
        return Answer(elsewhere="third" if arm == "control" else "control")
    return Answer(random.random() < 0.9, random.randrange(10, 95))


@pytest.mark.parametrize("sticky", [False, True])
def test_every_request_counts_for_the_arm_it_was_assigned_to(sticky: bool) -> None:
    lab = Lab(split(sticky, failover=True, control=60, candidate=30, third=10))
    host = lab.host()
    host.serve(50, odd)  # before: of nobody's
    host.experiments.start(spec(), "ann")
    weights = [(60, 30), (50, 40), (60, 30), (0, 90)]
    for control, candidate in weights:
        arms = {"control": control, "candidate": candidate, "third": 10}
        host.weights.override("chat", arms, author="ann", reason="a ramp")
        host.serve(300, odd, sessions=range(400))
        host.second()
    host.rest()
    host.second()
    book = host.experiments._known["exp"].total()
    epochs = {each.assignment.epoch for each in host.settled if each.assignment is not None} - {""}
    assert len(epochs) == 3
    assert set(book.epochs) == epochs
    for epoch in epochs:
        for place, arm in enumerate(ARMS):
            sums, truth = book.epochs[epoch][place], Counter(naive(host, arm, epoch))
            y, x = sums.y.sum(axis=1), sums.x.sum(axis=1)
            assert (sums.recorded, sums.requests.sum()) == (truth["recorded"], truth["requests"])
            assert (y[PLACE["good"]], x[PLACE["good"]]) == (truth["good"], truth["judged"])
            assert (y[PLACE["errors"]], x[PLACE["errors"]]) == (truth["errors"], truth["answered"])
            assert y[PLACE["ttft"]] == truth["ttft_us"]
            assert sums.squares[PLACE["ttft"]][0] == truth["ttft_us_squared"]
            assert sums.assigned.sum() == truth["recorded"]
            assert sums.buckets == (512 if sticky else 1)
    by_bucket = Counter(
        each.assignment.bucket
        for each in host.settled
        if each.assignment and each.assignment.epoch and each.assignment.backend == "candidate"
    )
    requests = np.sum([pair[CANDIDATE].requests for pair in book.epochs.values()], axis=0)
    if sticky:
        assert {n: int(times) for n, times in enumerate(requests) if times} == dict(by_bucket)
    view = seen(host)
    assert view.candidate.failed_over == sum(
        each.assignment is not None
        and bool(each.assignment.epoch)
        and each.assignment.backend == "candidate"
        and each.assignment.failed is not None
        for each in host.settled
    )
    assert quiet(host)
    assert [epoch.in_force for epoch in view.epochs].count(True) == 1
    assert {(epoch.weights["control"], epoch.weights["candidate"]) for epoch in view.epochs} == set(weights)


def test_forced_requests_third_backends_and_other_splits_do_not_count() -> None:
    lab = Lab(split(control=50, candidate=50, third=50))
    host = lab.host()
    host.experiments.start(spec(), "ann")
    epoch = host.weights.splits()[0].epoch
    given = [
        Assignment("chat", "candidate", "forced", epoch=epoch),
        Assignment("chat", "third", "draw", epoch=epoch),
        Assignment("other", "candidate", "draw", epoch=epoch),
        Assignment("chat", "candidate", "draw", epoch="another|candidate=1,control=1"),
        Assignment("chat", "candidate", "draw"),
        Assignment("chat", "candidate", "draw", epoch=epoch),
    ]
    worker = host.workers[0]
    batch = [facts_of(Answer(), each, n, lab.now_ns) for n, each in enumerate(given, 1)]
    host.controller.facts(worker.held, batch)
    view = seen(host)
    assert (view.control.recorded, view.candidate.recorded) == (0, 1)


def alike(sticky: bool, seed: int) -> set[str]:
    """An A/A experiment, looked at every second: which metrics were ever called; nothing may alarm."""
    lab = Lab(split(sticky, control=80, candidate=20), seed=seed)
    host = lab.host()
    host.experiments.start(spec(requests=500), "ann")
    called: set[str] = set()
    for step in range(20):
        if step in (7, 14):
            arms = {"control": 100 - 2 * step, "candidate": 2 * step}
            host.weights.override("chat", arms, author="ann", reason="a ramp")
        if step == 12:
            host.kill_worker()
        host.serve(60, sessions=range(3000) if sticky else ())
        host.second()
        assert quiet(host), host.experiments.alarms()
        metrics = compared(host).metrics
        called |= {name for name, judged in metrics.items() if judged.verdict in ("better", "worse")}
    assert compared(host).clustered is sticky
    assert sum(compared(host).requests) > 1000
    return called


@pytest.mark.parametrize("sticky", [False, True])
def test_two_arms_that_are_alike_are_hardly_ever_told_apart(sticky: bool) -> None:
    called = [alike(sticky, seed) for seed in range(4)]
    # Of 28 metrics (not independent) 5% may be; scoring/README.md has the rates of 2,000 experiments.
    assert sum(bool(each) for each in called) <= 1, called


def test_failures_that_another_backend_answered_are_the_arms_own() -> None:
    """10% of the candidate's connections fail, the control answers them well: the candidate is worse."""

    def behave(arm: str, random: Random) -> Answer:
        if arm == "candidate" and random.random() < 0.1:
            return Answer(good=True, ttft_ms=1, elsewhere="control")
        return well(arm, random)

    host = Lab(split(failover=True)).host()
    host.experiments.start(spec(), "ann")
    for _ in range(20):
        host.serve(100, behave)
        host.second()
    metrics = compared(host).metrics
    assert (metrics["errors"].verdict, metrics["good"].verdict) == ("worse", "worse")
    assert metrics["errors"].candidate == pytest.approx(0.1, abs=0.04)
    assert metrics["ttft"].verdict != "better"  # the quick answers were not its own
    assert {alarm.kind for alarm in host.experiments.alarms()} == {"guardrail"}


def breaking(after: Host) -> Behave:
    def behave(arm: str, random: Random) -> Answer:
        return Answer(failed=random.random() < 0.3) if arm == "candidate" else well(arm, random)

    return behave


@pytest.mark.parametrize("abort", [False, True])
def test_a_candidate_that_is_surely_worse(abort: bool) -> None:
    host = Lab(split(control=70, candidate=20, third=10)).host()
    host.experiments.start(spec(abort=abort), "ann")
    steps = 0
    while quiet(host):
        host.serve(100, breaking(host))
        host.second()
        steps += 1
        assert steps < 40
    (alarm,) = host.experiments.alarms()
    assert (alarm.kind, alarm.since_unix_ns) == ("guardrail", host.lab.now_ns)
    assert "candidate is surely worse than control on" in alarm.what
    view = seen(host)
    assert view.guardrail.state == "worse"
    assert view.guardrail.what == alarm.what
    if not abort:
        assert view.state == "running"
        assert host.weights.splits()[0].arms == {"control": 70, "candidate": 20, "third": 10}
        for _ in range(10):  # what was said stays, though it is mended
            host.serve(200)
            host.second()
            assert host.experiments.alarms() == [alarm]
        return
    assert (view.state, view.ended_by, view.ended_for) == ("aborted", "experiment exp", alarm.what)
    now = host.weights.splits()[0]
    assert now.arms == {"control": 70, "candidate": 0, "third": 10}
    assert now.override is not None
    assert (now.override.author, now.experiment) == ("experiment exp", None)
    host.serve(200)  # nothing flaps
    host.second(20)
    assert seen(host).state == "aborted"
    assert host.weights.splits()[0].arms["candidate"] == 0
    host.second(3)
    assert not quiet(host)
    host.lab.now_ns += 3600 * S
    assert quiet(host)


def test_an_abort_of_everything_goes_to_the_control() -> None:
    host = Lab(split(control=50, candidate=50)).host()
    host.experiments.start(spec(abort=True), "ann")
    host.serve(1000, breaking(host))
    host.weights.override("chat", {"control": 0, "candidate": 7}, author="ann", reason="all of it")
    host.second()
    assert host.weights.splits()[0].arms == {"control": 7, "candidate": 0}


def test_weights_that_give_one_of_the_two_nothing_compare_nothing() -> None:
    host = Lab().host()
    host.experiments.start(spec(), "ann")
    host.serve(300)
    host.rest()
    host.second()
    before = compared(host)
    for arms in ({"control": 1, "candidate": 0}, {"control": 0, "candidate": 1}):
        host.weights.override("chat", arms, author="ann", reason="all or nothing")
        host.serve(200)
        host.rest()
        host.second()
        assert (compared(host).requests, compared(host).metrics) == (before.requests, before.metrics)
    assert [epoch.share for epoch in seen(host).epochs] == [0.5, 0.0, 1.0]


def test_a_request_that_failed_before_its_first_token_waits_for_ever() -> None:
    host = Lab().host()
    host.experiments.start(spec(), "ann")
    host.serve(600, lambda arm, random: Answer(failed=arm == "candidate" and random.random() < 0.2))
    host.rest()
    host.second()
    view = seen(host)
    assert [each.value_s is None for each in view.candidate.ttft] == [False, True, True]
    assert [each.value_s is None for each in view.control.ttft] == [False, False, False]


def test_what_was_assigned_before_the_end_still_counts_and_then_the_figures_are_final() -> None:
    host = Lab().host()
    host.experiments.start(spec(), "ann")
    host.serve(500)
    host.second()
    waiting = sum(len(worker.running) for worker in host.workers)
    assert waiting == 100
    host.experiments.stop("exp", "ann", "enough")
    before = seen(host)
    assert before.control.recorded + before.candidate.recorded == 400
    host.serve(50)  # of these, none
    host.rest()
    host.second(2)
    after = seen(host)
    assert (after.state, after.ended_by, after.ended_for) == ("stopped", "ann", "enough")
    assert after.control.recorded + after.candidate.recorded == 500
    host.lab.now_ns += 600 * S
    host.second()
    assert host.experiments.compare("exp") is None
    final = seen(host)
    assert (final.metrics, final.control) == (after.metrics, after.control)
    assert not host.experiments._known["exp"].book.epochs


def test_what_may_explain_a_difference_stands_beside_it() -> None:
    lab = Lab()
    host = lab.host()
    host.experiments.start(spec(), "ann")
    host.serve(1200)
    host.lab.now_ns += 3600 * S
    host.serve(1200, lambda arm, random: well(arm, random) if arm == "control" else Answer(ttft_ms=60))
    host.weights.eject("candidate", 0.0)
    host.second(3)
    host.weights.eject("candidate", 1.0)
    host.second(3)
    view = seen(host)
    assert [each.backend for each in view.ejections] == ["candidate"]
    assert view.ejections[0].until is not None
    assert view.control.in_flight_per_address == pytest.approx(view.control.in_flight / 2, abs=15)
    assert view.control.prompt_tokens_p50 == 12
    assert view.hour is not None
    assert view.hour.hour in (3, 4)
    assert view.hour.control != view.hour.candidate
    p50, p90, p99 = view.control.ttft
    assert p50.low_s is not None
    assert p50.value_s is not None
    assert p50.high_s is not None
    assert p50.low_s <= p50.value_s <= p50.high_s
    assert p50.value_s < (p90.value_s or 0) < (p99.value_s or 0)
    truth = sorted(
        int(np.frombuffer(each.stream.choices[0], dtype="<i8")[0])
        for each in host.settled
        if each.stream is not None and each.assigned == "control"
    )
    assert p50.value_s == pytest.approx(truth[(len(truth) - 1) // 2] / 1e9, rel=0.02)
    assert "undecided on good requests" in view.headline or "equivalent" in view.headline
    assert host.experiments.stats()[CONTROL].backend == "control"
    assert host.experiments.stats()[CONTROL].share == 0.5
    assert host.experiments.stats()[CANDIDATE].requests == view.candidate.assigned


def test_an_arm_that_answers_what_asked_for_a_stream_in_one_piece_is_in_no_verdict() -> None:
    """It has no deadlines to miss: without a doubt it would only drop out of what it does badly."""
    host = Lab().host()
    host.experiments.start(spec(), "ann")
    for _ in range(8):
        host.serve(200, lambda arm, random: replace(well(arm, random), whole=arm == "candidate"))
        host.rest()
        host.second()
    view = seen(host)
    assert {metric.verdict for metric in view.metrics} == {"undecided"}
    for metric in view.metrics:
        assert {"unmeasured:share", "unmeasured:differs"} <= {reason.code for reason in metric.reasons}
    time_per_token = next(metric for metric in view.metrics if metric.metric == "normalized_latency")
    assert time_per_token.effect is None, "an answer in one piece has no time per token to be compared"
    assert [each.value_s for each in view.candidate.normalized_latency] == [None] * 3
    assert "could not be measured" in view.headline
    assert view.guardrail.state == "ok"
