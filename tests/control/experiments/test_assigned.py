"""What was assigned, added up over workers, restarts and rows that are let go, against a slow oracle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.control.experiments.assigned import KEYS_MAX
from proxy.control.workers import GRACE_NS, Workers
from proxy.link import BUCKETS, Assigned, GroupNow
from tests.control.facts import UNIX, facts
from tests.control.test_workers import beat, hello

Key = tuple[str, str, str]
EPOCHS = ("", "e|a=1,b=1", "e|a=2,b=1")


@dataclass
class Truth:
    """One incarnation of a worker: what it counts, and what of it is to be seen here."""

    worker: int
    incarnation: str
    older: bool
    rows: dict[Key, Assigned] = field(default_factory=dict)
    told: bool = False

    def assign(self, key: Key, by: str, bucket: int) -> None:
        row = self.rows.setdefault(key, Assigned(*key, buckets=[0] * BUCKETS if key[2] else []))
        setattr(row, by, getattr(row, by) + 1)
        if row.buckets and by in ("session", "no_key"):
            row.buckets[bucket] += 1


@dataclass
class Oracle:
    """Each single assignment that a beat told of, but for those in an older worker's first one."""

    seen: list[tuple[Key, str, int]] = field(default_factory=list)
    waiting: dict[str, list[tuple[Key, str, int]]] = field(default_factory=dict)

    def assigned(self, truth: Truth, what: tuple[Key, str, int]) -> None:
        self.waiting.setdefault(truth.incarnation, []).append(what)

    def beat(self, truth: Truth) -> None:
        new = self.waiting.pop(truth.incarnation, [])
        if truth.told or not truth.older:
            self.seen += new
        truth.told = True


moves = st.lists(
    st.tuples(
        st.sampled_from(["assign", "assign", "assign", "beat", "beat", "restart", "vanish", "away", "again"]),
        st.integers(0, 1),
        st.sampled_from([("s", backend, epoch) for backend in "ab" for epoch in EPOCHS]),
        st.sampled_from(["session", "draw", "no_key", "forced"]),
        st.integers(0, BUCKETS - 1),
        st.booleans(),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=150)
@given(moves)
def test_every_assignment_that_was_told_counts_once(steps: list[Any]) -> None:
    workers, oracle = Workers(), Oracle()
    live = [Truth(0, "w0.0", older=False), Truth(1, "w1.0", older=True)]
    held = [
        workers.hello(hello(each.worker, each.incarnation, next_seq=2 if each.older else 1)) for each in live
    ]
    for number, (move, which, key, by, bucket, older) in enumerate(steps):
        truth = live[which]
        if move == "assign":
            truth.assign(key, by, bucket)
            oracle.assigned(truth, (key, by, bucket))
        elif move == "beat":
            workers.beat(held[which], beat(assigned=list(truth.rows.values())))
            oracle.beat(truth)
        elif move == "restart":
            truth = live[which] = Truth(which, f"w{which}.{number + 1}", older)
            held[which] = workers.hello(hello(which, truth.incarnation, next_seq=2 if older else 1))
        elif move == "vanish" and key in truth.rows and truth.told:
            workers.beat(held[which], beat(assigned=list(truth.rows.values())))
            oracle.beat(truth)
            del truth.rows[key]  # and the next beat, which is sent before it comes back, has no such row
            workers.beat(held[which], beat(assigned=list(truth.rows.values())))
        elif move == "away":
            workers.left(held[which], 0)
            workers.sweep(GRACE_NS)
            truth.told, truth.older = False, True  # given up: counting begins with its next first beat
            held[which] = workers.hello(hello(which, truth.incarnation, next_seq=2))
        elif move == "again":
            workers.left(held[which], 0)
            held[which] = workers.hello(hello(which, truth.incarnation, next_seq=5))
    found = workers.assigned()
    for key in {key for key, *_ in oracle.seen} | set(found):
        counts = found[key]
        for by in ("session", "draw", "no_key", "forced"):
            assert getattr(counts, by) == sum(1 for k, b, _ in oracle.seen if (k, b) == (key, by))
        there = [bucket for k, by, bucket in oracle.seen if k == key and by in ("session", "no_key")]
        expected = np.bincount(there, minlength=BUCKETS) if key[2] else np.zeros(BUCKETS)
        assert np.array_equal(np.zeros(BUCKETS) if counts.buckets is None else counts.buckets, expected)


def test_a_row_that_was_let_go_begins_anew() -> None:
    workers = Workers()
    worker = workers.hello(hello())
    key = ("s", "a", "e|a=1")
    for rows in ([Assigned(*key, draw=3)], [], [Assigned(*key, draw=3)], [Assigned(*key, draw=4)]):
        workers.beat(worker, beat(assigned=rows))
    assert workers.assigned()[key].draw == 3 + 4
    workers.beat(worker, beat(assigned=[Assigned(*key, draw=1)]))  # and between two beats
    assert workers.assigned()[key].draw == 3 + 4 + 1


def test_memory_is_bounded_and_the_latest_keys_stay() -> None:
    workers = Workers()
    worker = workers.hello(hello())
    for at in range(0, 3 * KEYS_MAX, 64):
        rows = [Assigned("s", "a", f"e|a={number}", draw=1) for number in range(at, at + 64)]
        workers.beat(worker, beat(assigned=rows))
    found = workers.assigned()
    assert len(found) == KEYS_MAX
    assert ("s", "a", f"e|a={3 * KEYS_MAX - 1}") in found


def test_what_a_killed_worker_had_in_flight_is_known_by_backend() -> None:
    workers = Workers()
    worker = workers.hello(hello())
    groups = [GroupNow("a", "m", "d", 5, 0, 0, 0), GroupNow("b", "m", "d", 2, 0, 0, 0)]
    workers.beat(worker, beat(*groups, at_unix_ns=UNIX))
    assert workers.in_flight() == {"a": 5, "b": 2}
    workers.fresh(worker, [facts(seq=1, backend="a"), facts(seq=2, backend="a", received_unix_ns=UNIX + 1)])
    workers.hello(hello(incarnation="another"))
    assert workers.lost_in_flight() == {"a": 4, "b": 2}
    assert workers.dropped()["worker_lost"] == 6
    assert workers.in_flight() == {}
