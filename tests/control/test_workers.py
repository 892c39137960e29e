"""What was settled, what is lost, and what is in flight: the accounting over links, workers and processes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from proxy.control.labels import GroupCap
from proxy.control.workers import GRACE_NS, Workers
from proxy.link import DELAY_BOUNDS_NS, PROTOCOL, BackendNow, Beat, GroupNow, Hello
from tests.control.facts import facts

BUCKETS = len(DELAY_BOUNDS_NS) + 1


def hello(worker: int = 0, incarnation: str = "one", acked: int = 0, next_seq: int = 1) -> Hello:
    return Hello(PROTOCOL, worker, 4711, incarnation, next_seq, acked, 0)


def beat(*groups: GroupNow, **fields: Any) -> Beat:
    given_: dict[str, Any] = {
        "at_unix_ns": 0,
        "groups": list(groups),
        "backends": [],
        "clients": 0,
        "forward": [0] * BUCKETS,
        "forward_sum_ns": 0,
        "lag": [0] * BUCKETS,
        "lag_sum_ns": 0,
        "blocked": [0] * BUCKETS,
        "blocked_sum_ns": 0,
        "dropped": {},
        "table_version": 1,
        "measuring": True,
        "draining": False,
        "rss_bytes": 0,
    }
    return Beat(**(given_ | fields))


def now(
    model: str = "llama",
    in_flight: int = 1,
    overdue: int = 0,
    missed: int = 0,
    worst: int = 0,
    rate: float = 0.0,
) -> GroupNow:
    return GroupNow("default", model, "default", in_flight, overdue, missed, worst, rate)


def lost(workers: Workers) -> dict[str, int]:
    return {what: times for what, times in workers.dropped().items() if times}


@given(st.lists(st.lists(st.integers(1, 60), max_size=12), max_size=8))
def test_settled_and_lost_are_all_numbers_up_to_the_last_seen(batches: list[list[int]]) -> None:
    workers = Workers()
    worker = workers.hello(hello())
    settled: list[int] = []
    for batch in batches:
        settled += [each.seq for each in workers.fresh(worker, [facts(seq=seq) for seq in sorted(batch)])]
    assert len(settled) == len(set(settled))
    assert len(settled) + workers.dropped()["facts"] == worker.seen == max(settled, default=0)


def test_what_is_sent_again_is_settled_once() -> None:
    workers = Workers()
    worker = workers.hello(hello())
    assert len(workers.fresh(worker, [facts(seq=n) for n in (1, 2, 3)])) == 3
    workers.left(worker, 0)
    again = workers.hello(hello(acked=1, next_seq=5))
    assert [each.seq for each in workers.fresh(again, [facts(seq=n) for n in (2, 3, 4)])] == [4]
    assert lost(workers) == {}


def test_a_new_control_process_says_what_the_old_one_took_along() -> None:
    workers = Workers()
    worker = workers.hello(hello(acked=100, next_seq=131))
    fresh = workers.fresh(worker, [facts(seq=n) for n in range(111, 131)])
    assert len(fresh) == 20
    assert lost(workers) == {"settled_by_lost_control": 100, "facts": 10}
    assert 100 + 10 + 20 == 130


def test_a_worker_that_died_takes_its_streams_along() -> None:
    workers = Workers()
    worker = workers.hello(hello())
    workers.beat(worker, beat(now(in_flight=3), now("qwen", in_flight=2)))
    workers.left(worker, now_ns=0)
    workers.sweep(GRACE_NS - 1)
    assert lost(workers) == {}  # its link may come back
    workers.sweep(GRACE_NS)
    assert lost(workers) == {"worker_lost": 5}
    assert workers.groups_now(GroupCap()) == ()


def test_what_ended_after_the_last_beat_is_not_lost_too() -> None:
    workers = Workers()
    worker = workers.hello(hello())
    workers.beat(worker, beat(now(in_flight=9), at_unix_ns=500))
    workers.beat(worker, beat(now(in_flight=3), at_unix_ns=1_000))
    ended = [
        facts(seq=1, received_unix_ns=400),
        facts(seq=2, received_unix_ns=1_500),
    ]  # the second began later
    workers.fresh(worker, ended)
    workers.fresh(worker, ended)  # sent again
    workers.left(worker, now_ns=0)
    workers.sweep(GRACE_NS)
    assert lost(workers) == {"worker_lost": 2}


def test_more_that_ended_than_was_in_flight_loses_nobody() -> None:
    workers = Workers()
    worker = workers.hello(hello())
    workers.beat(worker, beat(now(in_flight=1), at_unix_ns=1_000))
    workers.fresh(worker, [facts(seq=n, received_unix_ns=n) for n in (1, 2, 3)])
    workers.hello(hello(incarnation="two"))
    assert lost(workers) == {}


def test_a_beat_begins_a_new_picture_of_what_ended_since() -> None:
    workers = Workers()
    worker = workers.hello(hello())
    workers.beat(worker, beat(now(in_flight=2), at_unix_ns=1_000))
    workers.fresh(worker, [facts(seq=1, received_unix_ns=900)])
    workers.beat(worker, beat(now(in_flight=1), at_unix_ns=2_000))
    workers.hello(hello(incarnation="two"))
    assert lost(workers) == {"worker_lost": 1}


def counted(forward: int, arrivals: int) -> Beat:
    counts = [0] * BUCKETS
    counts[3] = forward
    return beat(forward=counts, forward_sum_ns=forward * 1000, dropped={"arrivals": arrivals})


def test_of_an_older_worker_only_what_comes_after_its_first_beat_counts() -> None:
    workers = Workers()  # of a control process that took a dead one's place
    worker = workers.hello(hello(acked=7, next_seq=8))
    workers.beat(worker, counted(forward=1_000, arrivals=4))
    assert workers.delays()["forward"].count == 0
    assert workers.dropped()["arrivals"] == 0
    workers.beat(worker, counted(forward=1_200, arrivals=5))
    for _ in range(2):  # the same once it is gone
        forward = workers.delays()["forward"]
        assert (forward.count, forward.counts[3]) == (200, 200)
        assert abs(forward.sum - 200e-6) < 1e-12
        assert workers.dropped()["arrivals"] == 1
        workers.hello(hello(incarnation="two"))


def test_a_worker_that_was_given_up_and_comes_back_is_not_counted_twice() -> None:
    workers = Workers()
    worker = workers.hello(hello())
    workers.beat(worker, counted(forward=1_000, arrivals=4))
    workers.left(worker, now_ns=0)
    workers.sweep(GRACE_NS)
    back = workers.hello(hello(next_seq=2))
    workers.beat(back, counted(forward=1_100, arrivals=4))
    workers.beat(back, counted(forward=1_150, arrivals=6))
    assert workers.delays()["forward"].count == 1_050
    assert workers.dropped()["arrivals"] == 6


def test_what_a_worker_that_was_given_up_says_again_is_settled_once() -> None:
    workers = Workers()
    worker = workers.hello(hello())
    workers.fresh(worker, [facts(seq=number) for number in (1, 2, 3)])
    workers.left(worker, 0)
    workers.sweep(GRACE_NS)
    back = workers.hello(hello(acked=2, next_seq=5))
    assert [each.seq for each in workers.fresh(back, [facts(seq=3), facts(seq=4)])] == [4]
    assert lost(workers) == {}


def test_few_of_those_that_were_given_up_are_remembered() -> None:
    workers = Workers()
    for number in range(1_000):
        workers.left(workers.hello(hello(incarnation=f"i{number}")), 0)
        workers.sweep(GRACE_NS)
    assert len(workers._given_up) <= 64


def test_a_link_that_comes_back_loses_nothing() -> None:
    workers = Workers()
    worker = workers.hello(hello())
    workers.beat(worker, beat(now(in_flight=3)))
    workers.left(worker, now_ns=0)
    assert workers.hello(hello(next_seq=1)) is worker
    workers.sweep(10 * GRACE_NS)
    assert lost(workers) == {}
    assert workers.connected == 1


def test_another_incarnation_means_that_the_first_one_died() -> None:
    workers = Workers()
    workers.beat(workers.hello(hello()), beat(now(in_flight=3)))
    fresh = workers.hello(hello(incarnation="two"))
    assert lost(workers) == {"worker_lost": 3}
    assert [each.seq for each in workers.fresh(fresh, [facts(seq=1)])] == [1]  # it numbers from 1 again
    assert lost(workers) == {"worker_lost": 3}


def test_a_worker_that_drained_lost_nothing() -> None:
    workers = Workers()
    worker = workers.hello(hello())
    workers.beat(worker, beat(now(in_flight=2), draining=True))
    workers.left(worker, now_ns=0)
    workers.sweep(GRACE_NS)
    assert lost(workers) == {}


def test_what_a_worker_dropped_at_its_very_end_leaves_no_gap_and_counts() -> None:
    workers = Workers()
    worker = workers.hello(hello())
    workers.fresh(worker, [facts(seq=1), facts(seq=4)])
    workers.beat(worker, beat(dropped={"facts": 5, "arrivals": 7}, draining=True))
    assert lost(workers) == {"facts": 2, "arrivals": 7}
    workers.left(worker, now_ns=0)
    workers.sweep(GRACE_NS)
    assert lost(workers) == {"facts": 5, "arrivals": 7}


def test_counters_of_workers_that_are_gone_stay() -> None:
    workers = Workers()
    for incarnation in ("one", "two", "three"):
        worker = workers.hello(hello(incarnation=incarnation))
        forward = [0] * BUCKETS
        forward[2] = 10
        workers.beat(worker, beat(forward=forward, forward_sum_ns=640_000, dropped={"arrivals": 1}))
    hist = workers.delays()["forward"]
    assert (hist.count, hist.counts[2]) == (30, 30)
    assert hist.bounds[0] == DELAY_BOUNDS_NS[0] / 1e9
    assert abs(hist.sum - 3 * 640e-6) < 1e-12
    assert workers.dropped()["arrivals"] == 3


def test_the_picture_of_now_is_merged_over_workers_and_replaced_by_each_beat() -> None:
    workers = Workers()
    first, second = workers.hello(hello(0)), workers.hello(hello(1))
    workers.beat(first, beat(now(in_flight=9)))
    workers.beat(first, beat(now(in_flight=2, overdue=1, missed=4, worst=70, rate=40.5)))
    workers.beat(second, beat(now(in_flight=3, overdue=1, missed=1, worst=90, rate=2.0), now("qwen")))
    llama, qwen = workers.groups_now(GroupCap())
    assert (llama.in_flight, llama.overdue, llama.missed, llama.worst_overdue_ns) == (5, 2, 5, 90)
    assert llama.tokens_per_s == 42.5
    assert (qwen.model, qwen.in_flight) == ("qwen", 1)


def test_names_in_flight_take_no_place_for_good() -> None:
    workers, cap = Workers(), GroupCap(8)
    workers.beat(workers.hello(hello()), beat(*(now(f"m{i}") for i in range(50))))
    merged = workers.groups_now(cap)
    assert len(merged) <= 8
    assert sum(each.in_flight for each in merged) == 50
    assert len(cap) == 0


def test_a_backend_is_up_if_any_worker_reaches_it() -> None:
    workers = Workers()
    workers.beat(workers.hello(hello(0)), beat(backends=[BackendNow("vllm", False, 1, 2, 3, 4)]))
    workers.beat(workers.hello(hello(1)), beat(backends=[BackendNow("vllm", True, 10, 20, 30, 3)]))
    (stats,) = workers.backends()
    assert (stats.up, stats.active, stats.idle, stats.connecting, stats.addresses) == (True, 11, 22, 33, 4)
