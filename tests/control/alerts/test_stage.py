"""One host: what is fed, what fires and when it ends, what is told once, held back, repeated, and never."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from proxy.control.alerts.notice import Notice, Worst
from proxy.control.alerts.rings import GROUPS, KEPT, LONG, Book, Tally
from proxy.control.alerts.worst import Worsts
from proxy.control.labels import GroupCap
from proxy.control.settle import GroupKey
from proxy.control.workers import Workers
from proxy.link import BackendNow, FactsBatch, GroupNow, Match, SloSpec, Waiting
from proxy.settings.alerts import Alerts as Settings
from tests.control.alerts.hosts import GROUP, Host, Told, World
from tests.control.facts import MS, T0, S, at, streamed
from tests.control.test_windows import ended
from tests.control.test_workers import beat, hello

SPIKE = 'spike{backend="default",model="llama",slo="default"}'


def healthy(host: Host) -> None:
    host.ends(good=2)


def late(host: Host) -> None:
    host.ends(missed=2)


def failing(host: Host) -> None:
    host.ends(good=1, failed=1)


def only(told: list[Told]) -> Notice:
    (message,) = told
    (notice,) = message.notices
    return notice


# ---------------------------------------------------------------- from start to end


def test_what_a_worker_says_is_counted_once_under_its_capped_labels() -> None:
    world = World()
    host = world.hosts[0]
    host.controller.add_sink(host.alerts)
    clock = world.clock
    late_one = ended(clock, streamed(at(50), at(900), id="late"))
    blocked = ended(clock, streamed(at(50), at(900), blocked=((T0 + 60 * MS, T0 + 890 * MS),)))
    ends = [
        late_one,
        blocked,
        ended(clock, status=503),
        ended(clock, status=404),
        ended(clock, model="m" * 200),
    ]
    host.controller.feed(FactsBatch(ends))
    book = host.alerts.own
    assert book.head is not None
    found = {key.model: tuple(tally)[:6] for key, tally in book.tallies(book.head).items()}
    # Judged, missed, tried, failed, counted, bad: a slow client is no miss, a refusal no failure.
    assert found == {"llama": (2, 1, 3, 1, 3, 2), "other": (0, 0, 1, 0, 0, 0)}
    worst = host.alerts.worsts.of(GroupKey("default", "llama", "default"), book.head, "missed")
    assert [(one.id, one.missed) for one in worst] == [("late", 16)]


def test_a_spike_is_told_once_with_what_where_since_when_how_bad_and_which_requests() -> None:
    world = World()
    world.run(900, healthy)
    world.run(120, late)
    notice = only(world.told)
    assert world.told[0].at_s - 900 <= 60
    assert (notice.rule, notice.severity, notice.state, notice.number) == ("spike", "page", "firing", 0)
    assert (notice.key, notice.labels, notice.host) == (SPIKE, GROUP, "host0")
    assert notice.summary.startswith(
        f"{notice.value:.0%} of {notice.figures['requests']:.0f} requests of llama on"
    )
    assert "missed a deadline in the last minute (usual 0.0%), since 2026-" in notice.summary
    assert len(notice.worst) == 5
    assert all("missed" in worst.id and worst.missed for worst in notice.worst)
    assert notice.url is None
    assert notice.runbook == "deploy/runbooks/spike.md"
    world.run(400, healthy)
    over = only(world.of("spike", "resolved"))
    assert (over.incident, over.key) == (notice.incident, notice.key)
    assert over.resolved_unix_ns is not None
    assert over.fired_unix_ns < over.resolved_unix_ns <= over.at_unix_ns
    assert len(world.told) == 2
    (remembered,) = world.hosts[0].alerts.life.history
    assert remembered.resolved_ns == over.resolved_unix_ns


@pytest.mark.parametrize(
    ("name", "rule", "before_s"),
    [("late", "spike", 0), ("failing", "errors", 0), ("late", "spike", 30), ("failing", "errors", 30)],
)
def test_who_starts_into_an_incident_is_told_at_once(name: str, rule: str, before_s: int) -> None:
    world = World()
    world.run(before_s, healthy)
    world.run(61, {"late": late, "failing": failing}[name])
    assert [told.message.rule for told in world.told] == [rule]


def test_one_request_that_hung_and_four_that_failed_are_no_reason() -> None:
    world = World()
    world.run(900, healthy)
    world.hosts[0].ends(missed=1, failed=4)
    world.run(60)
    assert not world.told


def test_streams_that_wait_are_stalled_and_are_not_while_tokens_come() -> None:
    world = World()
    world.run(60, lambda host: host.flies(20, 1, 800.0))
    assert not world.told
    world.run(30, lambda host: host.flies(20, 18, 0.0))
    notice = only(world.told)
    assert notice.rule == "stalled"
    assert notice.summary.startswith("18 of 20 streams of llama on default (SLO default) are overdue")
    world.run(120, lambda host: host.flies(20, 1, 800.0))
    assert only(world.of("stalled", "resolved")).incident == notice.incident


@pytest.mark.parametrize("late_before", [0, 2])
def test_a_hang_is_told_with_those_that_hang_and_not_with_who_ended_before(late_before: int) -> None:
    world = World()
    world.run(30, lambda host: host.ends(good=2))
    world.hosts[0].ends(missed=late_before)
    world.run(30, lambda host: host.flies(8, 8))
    notice = only(world.of("stalled", "firing"))
    assert notice.worst == tuple(
        Worst(f"host0-hangs-{number}", f"r{number}", "4bf92f35", "in_flight", 9 - number, None)
        for number in range(5)
    )
    world.run(120, lambda host: host.flies(8, 0, 300.0))
    assert only(world.of("stalled", "resolved")).worst == notice.worst, "as it was told"


def test_those_of_several_workers_are_merged_under_their_capped_labels() -> None:
    workers, cap = Workers(), GroupCap(limit=3)
    cap.admit(GroupKey("b", "m", "s"))
    for number, late in enumerate(((30, 10), (20,), ())):
        named = [Waiting(f"w{number}-{late_s}", late_s * S, 1) for late_s in late]
        groups = [GroupNow("b", model, "s", 9, len(late), 0, 0, worst=named) for model in ("m", "n")]
        workers.beat(workers.hello(hello(number)), beat(*groups))
    found = {key.model: [each.id for each in waiting] for key, waiting in workers.waiting(cap).items()}
    assert found == {model: ["w0-30", "w1-20", "w0-10"] for model in ("m", "other")}
    assert len(cap) == 1, "a picture takes no place"


def test_where_workers_name_none_those_that_ended_late_show_a_hang() -> None:
    world = World()
    world.run(20, healthy)
    world.hosts[0].ends(missed=1)
    world.run(30, lambda host: host.flies(8, 8, names=False))
    (worst,) = only(world.told).worst
    assert worst.id.startswith("host0-missed")


def test_a_spike_names_who_ended_also_while_others_hang() -> None:
    world = World()
    world.run(300, healthy)

    def both(host: Host) -> None:
        host.ends(missed=2)
        host.flies(8, 3, 40.0)

    world.run(70, both)
    assert all(worst.outcome == "completed" for worst in only(world.of("spike", "firing")).worst)


@pytest.mark.parametrize(("rate", "fires"), [(0.0, True), (0.1, False)])
def test_two_streams_without_any_token_are_enough_after_half_a_minute(rate: float, fires: bool) -> None:
    world = World()
    world.run(60, lambda host: host.flies(4, 2, 40.0))
    calls = iter(range(1_000))
    # A token now and then is not silence, even if the second of the look had none.
    world.run(50, lambda host: host.flies(4, 2, rate if next(calls) % 10 == 5 else 0.0))
    assert [told.message.rule for told in world.told] == ["stalled"] * fires


# ---------------------------------------------------------------- what is told, and how often


def test_what_fires_for_long_is_repeated() -> None:
    world = World(settings={"repeat": "10m"})
    world.run(300, healthy)
    world.run(1_300, failing)
    numbers = [told.message.notices[0].number for told in world.of("errors", "firing")]
    assert numbers == [0, 1, 2]
    times = [told.at_s for told in world.of("errors", "firing")]
    assert times[1] - times[0] == pytest.approx(600, abs=10)
    assert len({told.message.id for told in world.told}) == len(world.told)


def test_groups_that_fire_at_once_are_one_message() -> None:
    world = World()

    def both(host: Host) -> None:
        host.ends(failed=2)
        host.ends(failed=2, model="other")

    world.run(70, both)
    (told,) = world.of("errors", "firing")
    assert sorted(notice.labels["model"] for notice in told.notices) == ["llama", "other"]


def down(up: bool, failed: int) -> Any:
    def each(host: Host) -> None:
        host.flies(0, 0, backends=[BackendNow("default", up, 0, 0, 0, 1)])
        host.ends(failed=failed, good=0 if failed else 2)

    return each


def test_a_backend_that_is_down_explains_what_its_requests_suffer() -> None:
    world = World(backends=["default", "spare"])
    world.run(300, down(True, 0))
    world.run(120, down(False, 2))
    told = {each.message.rule for each in world.told}
    assert told == {"backend_down"}
    assert only(world.of("backend_down", "firing")).labels == {"backend": "default"}
    assert world.told[0].at_s - 300 <= 30
    alerts = {alert.rule: alert for alert in world.hosts[0].alerts.life.firing()}
    assert alerts["errors"].held_by == 'backend_down{backend="default"}'
    world.run(400, down(True, 0))
    assert {(each.message.rule, each.message.state) for each in world.told} == {
        ("backend_down", "firing"),
        ("backend_down", "resolved"),
    }


def test_what_goes_on_when_the_backend_is_back_is_told_then() -> None:
    world = World(backends=["default"])
    world.run(300, down(True, 0))
    world.run(60, down(False, 2))
    assert {each.message.rule for each in world.told} == {"backend_down"}
    world.run(140, down(True, 2))
    assert only(world.of("errors", "firing")).number == 0


def test_a_spike_that_was_told_is_kept_alive_while_a_hang_explains_it() -> None:
    """Alertmanager forgets what it is not told of again: it would say that the spike is over."""
    world = World()
    world.run(300, healthy)
    world.run(70, late)
    assert only(world.of("spike", "firing")).key == SPIKE

    def hanging(host: Host) -> None:
        late(host)
        host.flies(20, 20, 0.0)

    world.run(60, hanging)
    assert [told.message.rule for told in world.told] == ["spike", "stalled"]
    host = world.hosts[0]
    assert {alert.rule: alert.held_by is not None for alert in host.alerts.life.firing()} == {
        "spike": True,
        "stalled": False,
    }
    assert {notice.rule for notice in host.out.held} == {"spike", "stalled"}


def test_deadlines_that_follow_the_server_page_nobody_but_failures_do() -> None:
    live = SloSpec("live", Match(), ((0, 100 * MS),), 50 * MS, pages=False)
    world = World(slos=[live])
    world.run(90, lambda host: host.ends(missed=2, slo="live"))
    assert not world.told
    world.run(70, lambda host: host.ends(failed=3, slo="live"))
    assert only(world.of("errors", "firing")).labels["slo"] == "live"
    assert not world.of("burn_rate", "firing")


BATCH = SloSpec("batch", Match(), ((0, 500 * MS),), 50 * MS, 0.0, e2e_ns=120 * S, duration_only=True)


@pytest.mark.parametrize(("slo", "rules"), [(BATCH, set()), (replace(BATCH, duration_only=False), {"spike"})])
def test_where_the_duration_alone_is_promised_late_tokens_are_no_spike(slo: SloSpec, rules: set[str]) -> None:
    world = World(slos=[slo])
    world.run(120, lambda host: host.ends(missed=2, slo="batch", target=0.0, e2e_ns=120 * S))
    host = world.hosts[0]
    assert host.alerts.own.head is not None
    tally = host.alerts.own.tally(GroupKey("default", "llama", "batch"), host.alerts.own.head - 1)
    judged = 0 if slo.duration_only else 20
    assert (tally.judged, tally.missed, tally.counted, tally.bad) == (judged, judged, 20, 0), "good"
    assert {told.message.rule for told in world.told} == rules
    shown = {stats.name: stats.unwatched for stats in host.controller.snapshot().slos}
    assert shown == {"batch": {"spike"} - rules, "default": set()}
    assert {verdict.rule for verdict in host.alerts.last.values()} >= {"errors", "stalled", "burn_rate"}


def test_where_the_duration_alone_is_promised_the_other_rules_page() -> None:
    world = World(slos=[BATCH])
    world.run(600, lambda host: host.ends(failed=2, slo="batch", target=0.0, e2e_ns=120 * S))
    world.run(60, lambda host: host.flies(8, 8, slo="batch"))
    assert {told.message.rule for told in world.told} == {"errors", "burn_rate", "stalled"}
    host = world.hosts[0]
    host.alerts.configure(world.settings)
    assert {alert.rule for alert in host.alerts.life.firing()} >= {"errors", "burn_rate", "stalled"}


def test_who_took_too_long_shows_where_a_budget_of_durations_goes() -> None:
    world = World(slos=[BATCH])
    world.run(900, lambda host: host.ends(missed=2, slo="batch", target=0.0, e2e_ns=500 * MS))
    notice = only(world.of("burn_rate", "firing"))
    assert len(notice.worst) == 5
    assert all((worst.outcome, worst.missed) == ("completed", 0) for worst in notice.worst)
    host = world.hosts[0]
    assert host.alerts.judged is not None
    spike = host.alerts.worsts.of(GroupKey("default", "llama", "batch"), host.alerts.judged, "missed")
    assert spike == (), "of no deadline"


def test_a_spike_is_over_when_a_reload_says_that_only_the_duration_is_promised() -> None:
    world = World(slos=[replace(BATCH, duration_only=False)])
    world.run(120, lambda host: host.ends(missed=2, slo="batch"))
    assert only(world.told).rule == "spike"
    host = world.hosts[0]
    host.controller.table = replace(world.table, slos=(BATCH, *world.table.slos[1:]))
    host.alerts.configure(world.settings)
    world.run(20, lambda host: host.ends(missed=2, slo="batch"))
    assert only(world.of("spike", "resolved")).labels["slo"] == "batch"


def test_a_budget_that_burns_is_told_for_the_slo_over_all_backends() -> None:
    world = World()

    def each(host: Host) -> None:
        second = round(host.world.now_s)
        bad = second > 3_600
        host.ends(failed=int(bad), good=1 - bad, backend=("one", "two")[second % 2])

    world.run(3_600, each)
    assert not world.told
    world.run(600, each)
    notice = only(world.of("burn_rate", "firing"))
    assert notice.labels == {"slo": "default", "window": "1h/5m"}
    assert world.of("burn_rate", "firing")[0].at_s - 3_600 == pytest.approx(8.7 * 60, abs=20)
    assert notice.worst


# ---------------------------------------------------------------- clocks


@pytest.mark.parametrize("jump_s", [-86_400, -300, -45, 45, 300, 86_400])
def test_a_clock_that_jumps_fires_nothing_and_judging_goes_on(jump_s: int) -> None:
    world = World()
    world.run(700, healthy)
    world.clock.now_ns += jump_s * S
    world.run(120, healthy)
    assert not world.told
    world.run(70, failing)
    assert [told.message.rule for told in world.told] == ["errors"]


@pytest.mark.parametrize("jump_s", [-7_200, 7_200])
def test_an_alert_that_fires_goes_on_over_a_jump(jump_s: int) -> None:
    world = World(settings={"repeat": "off"})
    world.run(300, healthy)
    world.run(60, failing)
    incident = only(world.told).incident
    world.clock.now_ns += jump_s * S
    world.run(200, failing)
    assert len(world.told) == 1
    world.run(400, healthy)
    assert only(world.of("errors", "resolved")).incident == incident


def test_a_process_that_slept_does_not_take_the_pause_for_time_in_which_it_looked() -> None:
    world = World(backends=["default"])
    world.run(12, down(False, 0))
    for clock in (world.clock, world.monotonic):
        clock.now_ns += 3_600 * S
    world.run(5, down(False, 0))
    assert not world.told, "it was judged once since"
    world.run(20, down(False, 0))
    assert only(world.told).rule == "backend_down"


def test_no_traffic_at_all_ends_what_fires() -> None:
    world = World()
    world.run(300, healthy)
    world.run(60, failing)
    world.run(1_200)
    assert only(world.of("errors", "resolved"))


# ---------------------------------------------------------------- settings


def test_a_reload_keeps_what_fires_and_ends_what_nobody_watches() -> None:
    world = World()
    world.run(300, healthy)
    world.run(60, failing)
    stage = world.hosts[0].alerts
    stage.configure(world.settings)
    world.run(20, failing)
    assert len(world.told) == 1
    stage.configure(Settings.model_validate({"rules": ("spike",)}))
    world.run(20, failing)
    assert only(world.of("errors", "resolved")).summary.startswith("errors of llama on default")
    assert stage.counts() == {("spike", "pending"): 0, ("spike", "firing"): 0}


def test_limits_of_the_settings_are_those_of_the_rules() -> None:
    world = World(settings={"errors": {"share": "60%"}})
    world.run(300, healthy)
    world.run(120, failing)
    assert not world.told, "half of them fail"
    world.run(70, lambda host: host.ends(failed=2))
    assert only(world.told).threshold == pytest.approx(0.6)


def test_a_fault_in_judging_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    host = world.hosts[0]
    host.alerts.life = None  # type: ignore[assignment]
    world.run(120, healthy)
    assert host.alerts.own.begun, "it goes on counting"
    assert 0 < sum("alerts failed" in record.message for record in caplog.records) <= 10


# ---------------------------------------------------------------- bounds


def test_a_book_is_bounded_and_the_idlest_group_gives_way() -> None:
    book = Book()
    book.advance(1_000)
    for number in range(3 * GROUPS):
        key = GroupKey("b", f"m{number}", f"s{number}")
        for _ in range(2 if number == 7 else 1):
            book.add(key, 1_000, (1, 0, 1, 0, 1, 0))
    assert len(book.groups) == GROUPS
    assert len(book.slos) == GROUPS
    assert GroupKey("b", "m7", "s7") in book.groups
    assert max(ring.rows.nbytes for ring in book.groups.values()) <= 14_000
    assert max(row.nbytes for row in book.slos.values()) <= 18_000


@pytest.mark.parametrize("gap", [1, 5, KEPT - 1, KEPT, KEPT + 1, LONG, 10 * LONG])
def test_what_is_older_than_is_kept_is_gone(gap: int) -> None:
    key, book = GroupKey("b", "m", "s"), Book()
    book.advance(10_000)
    book.add(key, 10_000, (1, 1, 1, 0, 1, 1))
    book.advance(10_000 + gap)
    assert book.rows(key, 10_001 + gap, KEPT).sum() == (5 if gap < KEPT else 0)
    assert book.long("s", 10_001 + gap, LONG) == ((1, 1) if gap < LONG else (0, 0))
    assert not book.tally(key, 10_000 + gap).tried


def test_what_comes_late_is_booked_near_its_time() -> None:
    key, book = GroupKey("b", "m", "s"), Book()
    book.advance(99)
    book.advance(110)
    for slot in (10, 107, 108, 110, 500):
        book.add(key, slot, (1, 0, 1, 0, 1, 0))
    assert [book.tally(key, slot).judged for slot in range(106, 111)] == [0, 2, 1, 0, 2]


def test_tallies_add_up_without_overflow() -> None:
    big = Tally(*[2**31 - 1] * 9)
    assert big.plus(big) == big


def test_the_worst_of_two_minutes_are_kept_and_no_more() -> None:
    key, worsts = GroupKey("b", "m", "s"), Worsts()
    for slot in range(60, 72):
        for missed in (3, 90 if slot == 61 else 7, 1):
            worsts.add(key, slot, "missed", Worst(f"r{slot}-{missed}", None, None, "completed", missed, 0.5))
    assert [one.missed for one in worsts.of(key, 71, "missed")] == [90, 7, 7, 7, 7]
    assert worsts.of(key, 71, "failed") == ()
    worsts.add(key, 77, "missed", Worst("late", None, None, "completed", 2, 0.5))
    assert [one.missed for one in worsts.of(key, 77, "missed")] == [7, 7, 7, 7, 7], "not what is older"
    worsts.add(key, 83, "missed", Worst("last", None, None, "completed", 2, 0.5))
    assert {one.id for one in worsts.of(key, 83, "missed")} == {"last", "late"}
