"""Copies that were not begun, added up over workers; and copies are no request that was in flight."""

from __future__ import annotations

from msgspec.structs import replace

from proxy.control.workers import GRACE_NS, Workers
from proxy.link import Beat
from tests.control.facts import UNIX, facts
from tests.control.test_workers import beat, hello, now


def told(**dropped: int) -> Beat:
    return replace(beat(), mirror_dropped=dropped)


def test_they_are_cumulative_over_workers_and_outlive_them() -> None:
    workers = Workers()
    first = workers.hello(hello())
    workers.beat(first, told(next=3))
    workers.beat(first, told(next=5, other=1))
    assert workers.not_copied() == {"next": 5, "other": 1}
    workers.left(first, 0)
    workers.sweep(GRACE_NS)
    second = workers.hello(replace(hello(), incarnation="another"))
    workers.beat(second, told(next=2))
    assert workers.not_copied() == {"next": 7, "other": 1}


def test_what_a_worker_dropped_before_this_process_began_is_not_counted() -> None:
    workers = Workers()
    older = workers.hello(replace(hello(), next_seq=9))
    workers.beat(older, told(next=100))
    workers.beat(older, told(next=103))
    assert workers.not_copied() == {"next": 3}


def test_a_copy_that_ended_is_not_taken_for_a_request_that_was_in_flight() -> None:
    workers = Workers()
    worker = workers.hello(hello())
    workers.beat(worker, replace(beat(now(in_flight=1)), at_unix_ns=UNIX + 1))
    workers.fresh(worker, [facts(seq=1, mirror_of="r", received_unix_ns=UNIX)])
    workers.left(worker, 0)
    workers.sweep(GRACE_NS)
    assert workers.dropped()["worker_lost"] == 1
