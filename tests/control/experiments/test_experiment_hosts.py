"""Experiments of several hosts: one picture, whoever is killed, restarted, or disagrees."""

from __future__ import annotations

import asyncio

import pytest

from proxy.control.experiments.book import CANDIDATE, CONTROL, Book
from proxy.control.experiments.experiment import SETTLING_NS, Entry, share_of
from proxy.control.experiments.experiments import ENDED_MAX
from proxy.control.shared import Unshared
from proxy.link import Facts, SplitSpec
from scoring.compare import Plan, compare
from scoring.compare_sums import ArmSums
from tests.control.experiments.lab import Lab, spec, split, table_of, well
from tests.control.experiments.test_experiment import breaking, compared, quiet, seen
from tests.control.experiments.test_experiment_life import of_file
from tests.control.facts import S


def plain(facts: list[Facts], assigned: list[tuple[str, str, int]], buckets: int) -> dict[str, list[ArmSums]]:
    """One ``ArmSums`` per epoch and arm, fed with every request, on one host."""
    from proxy.control.experiments.book import observed
    from proxy.control.settle import settle

    out: dict[str, list[ArmSums]] = {}
    for epoch, arm, bucket in assigned:
        pair = out.setdefault(epoch, [ArmSums(buckets), ArmSums(buckets)])
        pair[arm == "candidate"].assign(bucket)
    for each in facts:
        assignment = each.assignment
        assert assignment is not None
        bucket = assignment.bucket if buckets > 1 else 0
        pair = out.setdefault(assignment.epoch, [ArmSums(buckets), ArmSums(buckets)])
        pair[assignment.backend == "candidate"].add_many([observed(settle(each, "x"), bucket)])
    return out


@pytest.mark.parametrize("sticky", [False, True])
def test_two_hosts_one_of_them_killed_in_the_middle_are_one_experiment(sticky: bool) -> None:
    lab = Lab(split(sticky, control=70, candidate=30))
    one, two = lab.host("one"), lab.host("two")
    one.experiments.start(spec(), "ann")
    one.sync()
    two.sync()
    assert seen(two).by == "ann"
    everything: list[Facts] = []
    for weights in ((70, 30), (50, 50)):
        arms = {"control": weights[0], "candidate": weights[1]}
        for host in (one, two):
            host.weights.override("chat", arms, author="ann", reason="a ramp")
            host.serve(300, sessions=range(900) if sticky else ())
            host.rest()
            host.second(2)
            host.sync()
    # Killed just after it told: its successor begins with nothing, and the fleet forgets nothing.
    everything += two.settled
    two = two.restarted()
    two.second()
    two.sync()
    two.weights.override("chat", arms, author="ann", reason="as everywhere")
    for host in (one, two):
        host.serve(300, sessions=range(900) if sticky else ())
        host.rest()
        host.second(2)
        host.sync()
    for host in (one, two):
        host.sync()
        host.second()
    everything += one.settled + two.settled
    counted = [each for each in everything if each.assignment is not None and each.assignment.epoch]
    assigned = [
        (each.assignment.epoch, each.assignment.backend, each.assignment.bucket if sticky else 0)
        for each in counted
        if each.assignment is not None
    ]
    truth = plain(counted, assigned, 512 if sticky else 1)
    for host in (one, two):
        book = host.experiments._known["exp"].total()
        assert set(book.epochs) == set(truth)
        for epoch, pair in truth.items():
            assert list(book.epochs[epoch]) == pair
        expected = compare(
            [truth[epoch][CONTROL] for epoch in book.epochs],
            [truth[epoch][CANDIDATE] for epoch in book.epochs],
            [share_of(epoch, spec()) or 0.0 for epoch in book.epochs],
            Plan(),
        )
        found = compared(host)
        assert found.requests == expected.requests
        for name, judged in expected.metrics.items():
            assert found.metrics[name].effect == pytest.approx(judged.effect, rel=1e-9)
            assert found.metrics[name].low == pytest.approx(judged.low, rel=1e-9)
            assert found.metrics[name].verdict == judged.verdict
        view = seen(host)
        assert view.hosts == 3  # the one that was killed is one of them
        assert view.notes == []
        assert quiet(host)


def test_what_was_not_told_before_a_kill_is_lost_and_nobody_cries_for_it() -> None:
    """All that was in flight when it told ended and was settled, and then it was killed."""
    lab = Lab()
    host = lab.host()
    host.experiments.start(spec(), "ann")
    for _ in range(4):
        for _ in range(4):
            host.serve(100)
            host.second()
        host.sync()
        host.rest()  # a hundred and more are settled here, and never told
        host = host.restarted()
        host.sync()
        host.second()
        host.sync()
        host.second()
        assert quiet(host), host.experiments.alarms()
        view = seen(host)
        assert view.state == "running"
    assert view.hosts == 5
    assert view.control.assigned > view.control.recorded
    # Whoever loses requests all the time is found out nevertheless.
    worker = host.workers[0]
    lost = 0
    while quiet(host):
        for _ in range(100):
            request = worker.assign(host, None, well)
            worker.running.remove(request)
            lost += 1
        host.serve(100)
        host.second()
        assert lost < 2_000
    assert host.experiments.alarms()[0].kind == "integrity"


def test_stopped_or_aborted_on_one_host_is_so_on_all() -> None:
    lab = Lab(split(control=60, candidate=40))
    hosts = [lab.host(name) for name in ("one", "two", "three")]
    hosts[0].experiments.start(spec(abort=True), "ann")
    for host in hosts:
        host.sync()
        assert seen(host).state == "running"
        assert host.weights.splits()[0].experiment == "exp"
    for _ in range(12):
        hosts[1].serve(100, breaking(hosts[1]))
        hosts[1].second()
    hosts[1].sync()
    for host in hosts:
        host.sync()
        assert seen(host).state == "aborted"
        assert host.weights.splits()[0].arms == {"control": 60, "candidate": 0}
        assert host.weights.splits()[0].experiment is None
    assert len({str(host.weights.splits()[0].override) for host in hosts}) == 1
    late = lab.host("four")  # comes when all is over, with a file that has it
    late.experiments.configure(of_file(abort=True), late.table)
    late.sync()
    assert seen(late).state == "aborted"
    assert late.weights.splits()[0].arms["candidate"] == 0
    hosts[2].experiments.start(spec("next"), "ann")
    hosts[2].experiments.stop("next", "bob", "no more")
    hosts[2].sync()
    hosts[0].sync()
    assert (seen(hosts[0], "next").state, seen(hosts[0], "next").ended_by) == ("stopped", "bob")


def test_a_name_that_was_forgotten_everywhere_finds_nothing_of_its_past() -> None:
    lab = Lab()
    one, two = lab.host("one"), lab.host("two")
    for number in range(ENDED_MAX + 2):
        lab.now_ns += S
        one.experiments.start(spec(f"e{number}"), "ann")
        one.sync()
        two.sync()
        if not number:
            for host in (one, two):
                host.serve(100)
                host.rest()
                host.second(2)
        one.experiments.stop(f"e{number}", "ann", "next")
        for host in (one, two):
            host.second()
            host.sync()
    for host in (one, two, one):
        host.second()
        host.sync()
    assert "e0" not in {view.spec.name for view in one.experiments.views()}
    assert len(lab.place.hashes["experiments"]) == ENDED_MAX
    one.experiments.start(spec("e0"), "ann")
    for host in (one, two, one):
        host.sync()
        host.second()
        assert (seen(host, "e0").control.assigned, seen(host, "e0").control.recorded) == (0, 0)


def test_final_figures_outlive_every_process() -> None:
    lab = Lab()
    one = lab.host("one")
    one.experiments.start(spec(), "ann")
    one.serve(500)
    one.rest()
    one.second(2)
    one.sync()
    one.experiments.stop("exp", "ann", "enough")
    one.sync()
    early = lab.host("two")
    early.sync()
    assert seen(early).control.recorded == seen(one).control.recorded > 0
    lab.now_ns += SETTLING_NS
    one.second()
    one.sync()
    early.sync()
    late = lab.host("three")
    late.sync()
    for host in (early, late):
        assert seen(host) == seen(one)
        assert host.experiments.compare("exp") is None


def test_files_that_differ_are_told_and_not_merged() -> None:
    lab = Lab()
    one, two = lab.host("one"), lab.host("two")
    one.experiments.configure(of_file(), one.table)
    two.experiments.configure(of_file(requests=5000), two.table)
    for host in (one, two, one, two):
        host.serve(200)
        host.rest()
        host.second()
        host.sync()
    assert "with other terms" in seen(two).notes[0]
    assert seen(one).notes == []
    for host in (one, two):
        assert seen(host).hosts == 1
        assert seen(host).control.recorded + seen(host).candidate.recorded == 400
        assert seen(host).state == "running"


def test_one_name_written_at_the_same_moment_is_the_firsts() -> None:
    lab = Lab()
    one, two = lab.host("one"), lab.host("two")
    one.experiments.start(spec(), "ann")
    two.experiments.start(spec(requests=7000), "bob")
    one.sync()
    nothing_yet: dict[str, Entry] = {}  # as two had read it just before
    known = two.experiments._known["exp"]
    asyncio.run(two.experiments._hosts.agree(two.shared, known, nothing_yet))
    assert known.conflict
    assert "with other terms" in seen(two).notes[0]


def test_two_that_begin_at_once_in_one_split_the_first_goes_on() -> None:
    lab = Lab()
    one, two = lab.host("one"), lab.host("two")
    one.experiments.start(spec("first"), "ann")
    lab.now_ns += S
    two.experiments.start(spec("second"), "bob")
    for host in (one, two, one, two):
        host.sync()
    for host in (one, two):
        assert {view.spec.name: view.state for view in host.experiments.views()} == {
            "first": "running", "second": "stopped",
        }  # fmt: skip
        assert host.weights.splits()[0].experiment == "first"


def test_a_host_without_the_split_shows_what_others_count() -> None:
    lab = Lab(split(sticky=True))
    one = lab.host("one")
    other = lab.host("two", table_of(SplitSpec("else", (("a", 1), ("b", 1)), "seed")))
    one.experiments.start(spec(), "ann")
    one.serve(300, sessions=range(200))
    one.rest()
    one.second(2)
    one.sync()
    other.sync()
    view = seen(other)
    assert (view.split, view.hosts, view.clustered) == (None, 1, True)
    assert view.control.recorded == seen(one).control.recorded > 0
    assert "this host has no split over both backends" in view.notes[0]


def test_a_store_that_is_away_or_holds_nonsense_harms_nothing() -> None:
    lab = Lab()
    host = lab.host()
    host.experiments.start(spec(), "ann")
    host.serve(300)
    host.second()
    lab.place.away = True
    with pytest.raises(Unshared):
        host.sync()
    lab.place.away = False
    other = lab.host("other").shared
    asyncio.run(other.put("experiments", {"exp2": b"nonsense", "exp3": b"\xc0" * 300_000}, 100))
    asyncio.run(other.put("experiment:exp", {"other": b"nonsense", "another": b""}, 100))
    host.sync()
    host.sync()
    view = seen(host)
    assert [each.spec.name for each in host.experiments.views()] == ["exp"]
    assert view.notes == ["the counts of 2 other control processes could not be read"]
    assert view.control.recorded > 0


def test_what_a_fleet_counted_is_read_in_small_steps_each_of_them_whole() -> None:
    """It may take a second: requests are settled, and looks are taken, in between."""
    lab = Lab(split(control=50, candidate=50))
    hosts = [lab.host(str(number)) for number in range(6)]
    hosts[0].experiments.start(spec(), "ann")
    late = lab.host("late")
    turns: list[tuple[int, int]] = []

    async def beside() -> None:
        while True:
            known = late.experiments._known.get("exp")
            book = Book(1) if known is None or known.others is None else known.others
            turns.append((book.assigned(0) + book.assigned(1), book.recorded(0) + book.recorded(1)))
            await asyncio.sleep(0)

    async def hear() -> None:
        meanwhile = asyncio.create_task(beside())
        await late.experiments.sync(late.shared)
        meanwhile.cancel()

    for heard in (240, 480):
        for host in hosts:
            host.sync()
            host.serve(40)
            host.rest()
            host.second(2)
            host.sync()
        turns.clear()
        asyncio.run(hear())
        assert len(turns) >= len(hosts)
        assert all(assigned == recorded for assigned, recorded in turns)
        assert sum(view.assigned for view in (seen(late).control, seen(late).candidate)) == heard
    assert len({assigned for assigned, _ in turns}) >= len(hosts), "host by host"
    assert seen(late).hosts == len(hosts) + 1


def test_of_two_ends_at_once_the_first_is_everybodys() -> None:
    """Both trip, or are stopped, before either hears of the other; who writes last must not decide."""
    lab = Lab()
    hosts = [lab.host(name) for name in ("one", "two")]
    hosts[0].experiments.start(spec(), "ann")
    for host in hosts:
        host.sync()
    read_before = asyncio.run(hosts[1].experiments._hosts.entries(hosts[1].shared))
    hosts[0].experiments.stop("exp", "ann", "the first")
    lab.now_ns += S
    hosts[1].experiments.stop("exp", "bob", "the second")
    hosts[0].sync()
    known = hosts[1].experiments._known["exp"]
    asyncio.run(hosts[1].experiments._hosts.agree(hosts[1].shared, known, read_before))  # written over it
    for host in (*hosts, *hosts):
        host.sync()
        lab.now_ns += S
    late = lab.host("late")
    late.sync()
    ends = {(seen(host).until, seen(host).ended_by, seen(host).ended_for) for host in (*hosts, late)}
    assert {end[1:] for end in ends} == {("ann", "the first")}
    assert len(ends) == 1


def test_an_abort_is_no_ok_of_the_guardrail_on_whoever_only_heard_of_it() -> None:
    lab = Lab(split(control=60, candidate=40))
    one, two = lab.host("one"), lab.host("two")
    one.experiments.start(spec(abort=True), "ann")
    for host in (one, two):
        host.sync()
    for _ in range(12):
        one.serve(100, breaking(one))
        one.second()
    for host in (one, two):
        host.sync()
    said = seen(one).guardrail
    assert (said.state, seen(one).state) == ("worse", "aborted")
    again = one.restarted()
    again.sync()
    for host in (two, again):
        view = seen(host)
        assert (view.state, view.guardrail.state, view.guardrail.what) == ("aborted", "worse", said.what)
        assert view.guardrail.since == view.until
