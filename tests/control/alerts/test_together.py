"""Several hosts and one store: everybody's traffic is judged, one host tells, nothing is lost with it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from proxy.control.alerts.exchange import sent_fields
from proxy.control.alerts.judge import Verdict
from proxy.control.alerts.life import Life, Said
from proxy.control.alerts.teller import Teller
from proxy.control.experiments.health import Down
from proxy.link import BackendNow
from scoring.alarm_rule import Evaluation, Hold
from tests.control.alerts.hosts import GROUP, Host, World


def thin(host: Host) -> None:
    """Two requests a minute; from the fifteenth minute on they fail."""
    second = round(host.world.now_s)
    if second % 30 == 10 * int(host.name[-1]):
        bad = second > 900
        host.ends(failed=int(bad), good=int(not bad))


@pytest.mark.parametrize("hosts", [1, 3])
def test_what_is_too_thin_on_each_host_fires_on_all_together(hosts: int) -> None:
    world = World(hosts, shared=True)
    world.run(1_020, thin)
    told = world.of("errors", "firing")
    assert len(told) == (1 if hosts == 3 else 0), "once, by one of them; two a minute are no reason"
    if told:
        (notice,) = told[0].notices
        assert notice.labels == GROUP
        assert notice.figures["hits"] >= 5
        assert len({worst.id.split("-")[0] for worst in notice.worst}) == 3, "requests of all hosts"


def test_a_hang_on_one_host_is_told_by_another_with_those_that_hang() -> None:
    world = World(2, shared=True)

    def each(host: Host) -> None:
        here, hangs = host.name == "host0", world.now_s > 120
        host.ends(missed=int(not here and world.now_s == 125))
        host.flies(8 * here, 8 * (here and hangs), 0.0 if hangs else 80.0)

    world.run(170, each)
    (told,) = world.of("stalled", "firing")
    assert told.host == "host1", "it holds the lease"
    (notice,) = told.notices
    assert [worst.id for worst in notice.worst] == [f"host0-hangs-{number}" for number in range(5)]
    assert {worst.outcome for worst in notice.worst} == {"in_flight"}
    # What a host said of those that hung there is not what hangs when it is gone.
    world.hosts[0].alive = False
    world.run(40, each)
    assert not list(world.hosts[1].alerts.together.worst(notice.key))


def busy(host: Host) -> None:
    """A healthy second until the third minute, then all fail."""
    bad = host.world.now_s > 180
    host.ends(good=0 if bad else 2, failed=2 if bad else 0)


@pytest.mark.parametrize("slow_s", [0, 3, 12])
def test_a_holder_killed_in_mid_incident(slow_s: float) -> None:
    world = World(3, shared=True, settings={"repeat": "5m"}, slow_s=slow_s)
    world.run(200, busy)
    # Until the holder has handed it over: at the worst moment nobody else knows whether it was told.
    while not any(host.out.waiting or world.told for host in world.hosts):
        world.run(1, busy)
    holder = next(host for host in world.hosts if host.out.waiting or host.alerts.together.holds)
    holder.alive = False
    killed_s = world.now_s
    world.run(60, busy)
    firing = world.of("errors", "firing")
    assert 1 <= len(firing) <= 2, "nothing lost, nothing told more than twice"
    assert len({each.notices[0].incident for each in firing}) == 1
    assert firing[-1].at_s <= killed_s + 30 + slow_s
    world.run(400, lambda host: host.ends(good=2))
    over = world.of("errors", "resolved")
    assert len(over) == 1
    assert over[0].host != holder.name
    assert over[0].notices[0].incident == firing[0].notices[0].incident


def test_who_takes_over_tells_only_those_who_did_not_take_it() -> None:
    world = World(2, shared=True)
    for host in world.hosts:
        host.out.names, host.out.refuse = ("ops", "slack"), ("slack",)
    world.run(260, busy)
    (first,) = world.of("errors", "firing")
    assert first.name == "ops"
    holder, other = sorted(world.hosts, key=lambda host: host.name != first.host)
    holder.alive, other.out.refuse = False, ()
    world.run(40, busy)
    assert [(each.host, each.name) for each in world.of("errors", "firing")] == [
        (holder.name, "ops"),
        (other.name, "slack"),
    ]


def test_a_host_that_reaches_the_store_and_not_the_people_lets_another_tell() -> None:
    world = World(3, shared=True, settings={"repeat": "20m"})
    world.run(150, busy)
    holder = next(host for host in world.hosts if host.alerts.together.holds)
    holder.out.refuse = ("ops",)
    world.run(210, busy)
    (told,) = world.of("errors", "firing")
    assert told.host != holder.name
    assert told.at_s < 180 + 40 + 60 + 30, "fires, is refused for a minute, the lease runs out"
    assert [len(host.out.held) for host in world.hosts if host.out.held] == [1], "one of them reminds"
    holder.out.refuse = ()
    world.run(700, busy)
    assert len(world.of("errors", "firing")) == 1, "what waited there is known to be told"
    world.run(300, lambda host: host.ends(good=2))
    assert len(world.of("errors", "resolved")) == 1


def test_what_waits_is_told_elsewhere_only_where_all_of_it_was() -> None:
    teller, life, now = Teller(None, lambda: 0), Life(), Hold(0, 0)
    fires = Evaluation(True, False, 1.0, 0.5, {}, "")
    life.step(
        [Verdict("errors", (("backend", "b"), ("model", name)), "page", now, fires) for name in "ab"], 0
    )
    (message,) = life.due(0, 0, Said())
    one, both = (dict.fromkeys(list(sent_fields(message, "ops"))[:count], b"1") for count in (1, 2))
    for sent, name, told in ((one, "ops", False), (both, "ops", True), (both, "slack", False)):
        teller.note(life, sent)
        assert teller.told(name, message) == told


def test_where_nobody_reaches_them_the_lease_stays_and_nothing_is_lost() -> None:
    world = World(2, shared=True)
    for host in world.hosts:
        host.out.refuse = ("ops",)
    holders = []
    for _ in range(90):
        world.run(10, busy)
        holders += [host.name for host in world.hosts if host.alerts.together.holds]
    assert sum(one != other for one, other in pairwise(holders)) <= 1
    assert len(set(holders)) == 2, "both have tried"
    assert len(holders) >= 80, "and but for that moment one of them has it"
    for host in world.hosts:
        host.out.refuse = ()
    world.run(20, busy)
    told = world.of("errors", "firing")
    assert 1 <= len(told) <= 2
    assert len({each.notices[0].incident for each in told}) == 1


def test_what_begins_anew_is_not_taken_for_what_a_dead_host_called_it() -> None:
    world = World(2, shared=True)
    world.run(260, busy)
    (first,) = world.of("errors", "firing")
    next(host for host in world.hosts if host.name == first.host).alive = False
    world.run(200, lambda host: host.ends(good=2))
    assert len(world.of("errors", "resolved")) == 1
    world.run(60, lambda host: host.ends(failed=2))
    incidents = [each.notices[0].incident for each in world.of("errors", "firing")]
    assert len(incidents) == len(set(incidents)) == 2, "it is told again, as another one"


def test_the_one_who_takes_over_goes_on_repeating() -> None:
    world = World(2, shared=True, settings={"repeat": "5m"})
    world.run(260, busy)
    (first,) = world.of("errors", "firing")
    next(host for host in world.hosts if host.name == first.host).alive = False
    world.run(540, busy)
    numbers = [each.notices[0].number for each in world.of("errors", "firing")]
    assert numbers == [0, 1], "the second one five minutes after the first, by the other host"
    assert world.of("errors", "firing")[1].host != first.host


def test_all_hosts_show_the_same_alert_and_one_is_reminded_of_it() -> None:
    world = World(3, shared=True)
    world.run(260, busy)
    incidents = {alert.incident for host in world.hosts for alert in host.alerts.life.firing()}
    assert len(incidents) == 1
    assert [len(host.out.held) for host in world.hosts].count(1) == 1
    assert len(world.told) == 1


def test_a_host_that_comes_into_an_incident_calls_it_as_the_others_do() -> None:
    world = World(2, shared=True)
    world.run(260, busy)
    world.hosts.append(world.host("host2"))
    world.run(60, busy)
    assert len(world.told) == 1
    incidents = {alert.incident for host in world.hosts for alert in host.alerts.life.firing()}
    assert len(incidents) == 1
    for host in world.hosts[:2]:
        host.alive = False
    world.run(30, busy)
    world.run(300, lambda host: host.ends(good=4))
    assert [each.host for each in world.of("errors", "resolved")] == ["host2"]


def test_a_new_host_knows_what_is_usual_from_the_past_hour() -> None:
    """A tenth of the requests always miss: nobody who comes now takes the next bad minute for a spike."""

    def usual(host: Host) -> None:
        second = round(host.world.now_s)
        bad = second % 3 == 0
        host.ends(missed=2 if bad else 0, good=0 if bad else 2)

    world = World(1, shared=True)
    world.run(1_500, usual)
    assert not world.of("spike", "firing")
    world.hosts[0].alive = False
    world.hosts.append(world.host("host1"))
    world.run(90, usual)
    said = world.hosts[1].alerts.last['spike{backend="default",model="llama",slo="default"}'].said
    assert said.evidence["usual_share"] == pytest.approx(1 / 3, abs=0.03)
    assert said.evidence["usual_requests"] > 2_000


@pytest.mark.parametrize("away_s", [8, 60])
def test_while_the_store_is_away_each_host_judges_and_tells_by_itself(away_s: int) -> None:
    world = World(2, shared=True)
    world.run(175, busy)
    world.place.away = True
    world.run(away_s, busy)
    if away_s == 60:
        assert sorted(each.host for each in world.of("errors", "firing")) == ["host0", "host1"]
        assert all(host.alerts.together.alone for host in world.hosts)
    world.place.away = False
    world.run(60, busy)
    assert not any(host.alerts.together.alone for host in world.hosts)
    told = len(world.of("errors", "firing"))
    assert told == (2 if away_s == 60 else 1), "rather twice than never, and not again after it"
    world.run(400, lambda host: host.ends(good=2))
    ended = [each.notices[0].incident for each in world.of("errors", "resolved")]
    begun = {each.notices[0].incident for each in world.of("errors", "firing")}
    assert set(ended) == begun, "what was told to have begun is told to be over"
    assert len(ended) <= told


def test_who_told_alone_and_by_its_own_name_tells_the_end_of_it() -> None:
    world = World(2, shared=True)
    world.run(150, lambda host: host.ends(good=2))
    world.place.away = True
    # The second one's requests begin to fail later: it calls its alert otherwise.
    world.run(120, lambda host: host.ends(failed=2) if host.name == "host0" or world.now_s > 195 else None)
    begun = {each.notices[0].incident for each in world.of("errors", "firing")}
    assert len(begun) == 2
    world.place.away = False
    world.run(60, lambda host: host.ends(failed=2))
    world.run(400, lambda host: host.ends(good=2))
    ended = [each.notices[0].incident for each in world.of("errors", "resolved")]
    assert sorted(ended) == sorted(begun)
    assert len(world.of("errors", "firing")) == 2


def test_the_slots_of_an_outage_of_the_store_are_told_after_it() -> None:
    world = World(2, shared=True)
    world.run(100, lambda host: host.ends(good=1))
    world.place.away = True
    world.run(100, lambda host: host.ends(good=1))
    world.place.away = False
    world.run(20)
    for host in world.hosts:
        book = host.alerts.together._merged
        assert book.head is not None
        slots = [
            sum(tally.judged for tally in book.tallies(at).values())
            for at in range(book.head - 22, book.head)
        ]
        assert sum(slots) == pytest.approx(400, abs=2)
        assert max(slots) <= 20


def test_a_new_host_knows_the_budget_of_the_hours_before() -> None:
    world = World(1, shared=True)
    world.run(5_400, lambda host: host.ends(failed=1) if round(host.world.now_s) % 20 == 0 else None)
    world.hosts[0].alive = False
    world.hosts.append(world.host("host1"))
    world.run(11)
    book = world.hosts[1].alerts.together._merged
    assert book.head is not None
    counted, bad = book.long("default", book.head + 1, 2_160)
    assert counted == bad == pytest.approx(270, abs=3), "of which the last hour alone has 180"
    assert (book.head - book.begun) * 10 == pytest.approx(5_400, abs=120)


@pytest.mark.parametrize("sees", [0, 1])
def test_what_one_host_alone_sees_is_told_for_all(sees: int) -> None:
    """One of them cannot reach a backend; who tells may be another."""
    world = World(2, shared=True, backends=["default"])

    def each(host: Host) -> None:
        up = host.name != f"host{sees}"
        host.flies(0, 0, backends=[BackendNow("default", up, 0, 0, 0, 1)])

    world.run(60, each)
    (told,) = world.of("backend_down", "firing")
    assert told.notices[0].labels == {"backend": "default"}
    assert all(host.alerts.life.fires('backend_down{backend="default"}') for host in world.hosts)
    world.hosts[sees].alive = False  # and nobody says so any more
    world.run(90, each)
    assert len(world.of("backend_down", "resolved")) == 1


def test_what_another_version_wrote_is_passed_over() -> None:
    world = World(1, shared=True)
    world.run(12, lambda host: host.ends(good=1))
    for name, fields in world.place.hashes.items():
        if name.startswith("alerts:"):
            fields["stranger"] = b"\xc1 nonsense"
    world.run(30, lambda host: host.ends(good=1))
    assert not world.hosts[0].alerts.together.alone


def test_who_began_while_the_store_was_away_tells_the_end_of_what_it_told() -> None:
    """All hosts start before the store does, and into an incident."""
    world = World(2, shared=True)
    world.place.away = True
    world.run(60, lambda host: host.ends(good=2))
    # The second one's requests begin to fail later: it calls its alert otherwise.
    world.run(60, lambda host: host.ends(failed=2) if host.name == "host0" or world.now_s > 85 else None)
    begun = sorted(each.notices[0].incident for each in world.of("errors", "firing"))
    assert len(set(begun)) == 2
    world.place.away = False
    world.run(60, lambda host: host.ends(failed=2))
    world.run(400, lambda host: host.ends(good=2))
    assert sorted(each.notices[0].incident for each in world.of("errors", "resolved")) == begun
    assert len(world.of("errors", "firing")) == 2


def test_a_host_that_tries_no_more_holds_nothing_back_for_ever() -> None:
    """It saw a connection fail and has had no requests since; the other one reaches the backend."""
    world = World(2, shared=True, backends=["default"])
    failed_ns = world.clock.now_ns + 100 * 10**9
    idle = world.hosts[1].alerts._signals
    idle._down = lambda: [Down("default", failed_ns, failed_ns)] if world.now_s > 100 else []

    def each(host: Host) -> None:
        if host.name == "host0":
            host.ends(good=0 if world.now_s > 900 else 2, failed=2 if world.now_s > 900 else 0)

    world.run(900, each)
    assert [each.message.state for each in world.told] == ["firing", "resolved"]
    assert "no worker on host1 could connect to it" in world.told[0].notices[0].summary
    assert world.told[1].at_s == pytest.approx(100 + 300 + 45, abs=20)
    world.run(60, each)
    assert len(world.of("errors", "firing")) == 1
