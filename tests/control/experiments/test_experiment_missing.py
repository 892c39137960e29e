"""What an experiment misses, and whose fault it is: an arm's, or nobody's."""

from __future__ import annotations

from random import Random

from tests.control.experiments.lab import Answer, Lab, spec, split, well
from tests.control.experiments.test_experiment import quiet, seen
from tests.control.facts import S


def test_an_arm_that_loses_its_requests_is_found_out() -> None:
    """3% of the candidate's never arrive, and those that do look fine."""

    def losing(arm: str, random: Random) -> Answer:
        answer = well(arm, random)
        lost = arm == "candidate" and random.random() < 0.03
        return Answer(answer.good, answer.ttft_ms, lost=lost)

    host = Lab().host()
    host.experiments.start(spec(), "ann")
    for _ in range(50):
        host.serve(100, losing)
        host.second()
    (alarm,) = host.experiments.alarms()
    assert (alarm.name, alarm.kind) == ("exp", "integrity")
    assert "requests that candidate was assigned were never recorded" in alarm.what
    view = seen(host)
    assert [test.name for test in view.integrity if test.alarm] == ["recorded:candidate"]
    assert {metric.verdict for metric in view.metrics} == {"undecided"}
    assert "integrity:recorded:candidate" in {reason.code for reason in view.metrics[0].reasons}
    host.experiments.stop("exp", "ann", "look at it")
    assert quiet(host)


def test_assignments_against_the_weights_are_found_out() -> None:
    """Every tenth request of the control's goes to the candidate: somebody forces, and is not told so."""
    host = Lab().host()
    host.experiments.start(spec(), "ann")
    for _ in range(10):
        for worker in host.workers:
            worker.random = Random(0)
            for each in worker.splits:
                each._draw = lambda: host.lab.random.random() * 0.9
        host.serve(300)
        host.second()
    assert [alarm.kind for alarm in host.experiments.alarms()] == ["integrity"]
    assert "not assigned as the weights say" in host.experiments.alarms()[0].what


def test_weights_that_come_back_are_the_same_epoch_and_a_killed_worker_is_nobodys_fault() -> None:
    host = Lab().host()
    host.experiments.start(spec(), "ann")
    for step in range(12):
        arms = {"control": 50 + step % 3, "candidate": 50}
        host.weights.override("chat", arms, author="ann", reason="to and fro")
        host.serve(100)
        host.second()
        host.kill_worker(step % 2)
        host.second()
        assert quiet(host), host.experiments.alarms()
    view = seen(host)
    assert len(view.epochs) == 3
    lost = view.control.lost + view.candidate.lost
    dropped = host.controller.workers.dropped()["worker_lost"]
    assert 0 < lost <= dropped
    assert view.control.assigned - view.control.recorded - view.control.in_flight - view.control.lost == 0


def test_a_picture_that_is_older_than_the_counts_makes_nothing_missing() -> None:
    """A burst: some requests began after the worker looked over its streams, and are counted already."""
    host = Lab().host()
    host.experiments.start(spec(), "ann")
    worker = host.workers[0]
    for _ in range(200):
        worker.assign(host, None, well)
    picture = worker.picture(host.lab.now_ns)
    for group in picture.groups:
        group.in_flight = group.in_flight * 9 // 10
    host.controller.beat(worker.held, picture)
    host.experiments.tick()
    assert quiet(host), host.experiments.alarms()


def test_where_another_stands_in_a_request_may_be_in_flight_there() -> None:
    host = Lab(split(failover=True)).host()
    host.experiments.start(spec(), "ann")
    worker = host.workers[0]
    for _ in range(200):
        worker.assign(host, None, well)
    for _ in range(5):  # all of them run at the control for long
        picture = worker.picture(host.lab.now_ns)
        for group in picture.groups:
            group.in_flight = 200 if group.backend == "control" else 0
        host.controller.beat(worker.held, picture)
        host.experiments.tick()
        host.lab.now_ns += S
    assert quiet(host), host.experiments.alarms()
    assert seen(host).candidate.in_flight == seen(host).candidate.assigned > 50


def test_what_else_a_killed_workers_backend_did_excuses_nothing() -> None:
    host = Lab().host()
    host.experiments.start(spec(), "ann")
    worker = host.workers[0]
    for _ in range(40):
        worker.assign(host, None, well)
    picture = worker.picture(host.lab.now_ns)
    for group in picture.groups:
        group.in_flight += 500  # other routes to the same backends
    host.controller.beat(worker.held, picture)
    host.experiments.tick()
    host.kill_worker()
    host.second()
    view = seen(host)
    assert (view.control.lost, view.candidate.lost) == (view.control.assigned, view.candidate.assigned)
    assert view.control.lost + view.candidate.lost == 40


def test_a_control_process_that_begins_in_the_middle_finds_nothing_missing() -> None:
    lab = Lab()
    host = lab.host()
    host.experiments.start(spec(), "ann")
    for _ in range(3):
        for _ in range(4):
            host.serve(150)
            host.second()
            assert quiet(host)
        host = host.restarted()
        host.experiments.start(spec(), "ann")
        host.second()
        assert quiet(host), host.experiments.alarms()
    host.rest()
    host.second()
    assert quiet(host)
