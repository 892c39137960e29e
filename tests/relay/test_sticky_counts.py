"""Assignments are counted when they are made, by split, backend and epoch."""

from __future__ import annotations

from collections import Counter
from itertools import count
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from proxy.control.experiments.assigned import AssignedBook, WorkerRows
from proxy.link import BUCKETS, Assigned, Assignment, BackendSpec, Match, RouteSpec, SloSpec, SplitSpec, Table
from proxy.relay.sticky import _PAST, Assignments, Split
from tests.relay.test_sticky import NOBODY, spec

SLO = SloSpec("default", Match(), ((0, 1),), 1)


def table(*splits: SplitSpec) -> Table:
    backends = (BackendSpec("a", "http://a"), BackendSpec("b", "http://b"))
    return Table(1, backends, tuple(RouteSpec(Match(), "a", None, split) for split in splits), (SLO,))


def test_every_way_is_counted_apart_and_tables_do_not_forget() -> None:
    one = SplitSpec("one", (("a", 90), ("b", 10)), "seed")
    counts = Assignments()
    counts.renew(table(one))
    assert counts.told() == [Assigned("one", "a"), Assigned("one", "b")], "they begin at 0"
    for by, times in (("session", 3), ("draw", 2), ("no_key", 1), ("forced", 4)):
        for _ in range(times):
            counts.add(Assignment("one", "a", by))
    counts.renew(table(one))
    assert counts.told()[0] == Assigned("one", "a", "", 3, 2, 1, 4)
    heavier = replace(one, arms=(("a", 80), ("b", 20)), epoch="e:a80,b20")
    counts.renew(table(heavier))
    counts.add(Assignment("one", "b", "draw", epoch=heavier.epoch))
    counts.add(Assignment("one", "b", "draw"))
    first = [Assigned("one", "a", "", 3, 2, 1, 4), Assigned("one", "b", "", draw=1)]
    second = [Assigned("one", "a", heavier.epoch), Assigned("one", "b", heavier.epoch, draw=1)]
    assert counts.told() == [*first, *second], "a request that was assigned before counts where it belongs"
    counts.renew(table())
    counts.renew(table(heavier))
    assert counts.told() == [*first, *second]


def test_sessions_of_an_experiment_are_counted_by_bucket() -> None:
    sticky = replace(spec(a=1, b=1), sticky=("header", "x-session"), name="one", epoch="e:a1,b1")
    draws = count()
    split = Split(sticky, draw=lambda: next(draws) % 7 / 7)
    counts = Assignments()
    counts.renew(table(sticky))
    expected: dict[str, list[int]] = {"a": [0] * BUCKETS, "b": [0] * BUCKETS}
    for number in range(300):
        fields = [(b"x-session", b"s%d" % number)] if number % 3 else []
        assignment = split.assign(NOBODY, fields)
        assert assignment.epoch == sticky.epoch
        assert assignment.bucket == (assignment.session or 0) % BUCKETS or assignment.by == "no_key"
        counts.add(assignment)
        expected[assignment.backend][assignment.bucket] += 1
    assert {row.backend: row.buckets for row in counts.told()} == expected
    assert sum(map(sum, expected.values())) == 300
    counts.add(Assignment("one", "a", "forced", epoch=sticky.epoch))
    assert sum(map(sum, (row.buckets for row in counts.told()))) == 300, "who is forced is in no bucket"


def test_what_is_counted_is_bounded_and_what_is_in_force_is_kept() -> None:
    counts = Assignments()
    for number in range(_PAST + 3):
        counts.renew(table(SplitSpec(f"s{number}", (("a", 1), ("b", 1)), "")))
    told = counts.told()
    assert len(told) == _PAST + 2
    assert [(row.split, row.backend) for row in told[-2:]] == [(f"s{number}", "a"), (f"s{number}", "b")]


def test_tables_that_come_faster_than_beats_take_away_nothing_that_was_not_told() -> None:
    """Several backends of a large split are taken out at once: a table for each of them, within a second."""
    names = [f"b{number}" for number in range(20)]
    counts, known = Assignments(), Counter[tuple[str, str]]()
    assigned: Counter[tuple[str, str]] = Counter()
    for number in range(60):
        epoch = f"e|{number}"
        counts.renew(table(SplitSpec("one", tuple((name, 1) for name in names), "", epoch=epoch)))
        for name in names[: number % 5]:
            counts.add(Assignment("one", name, "draw", epoch=epoch))
            assigned[name, epoch] += 1
        if number % 7 == 6:  # a beat
            known |= Counter({(row.backend, row.epoch): row.draw for row in counts.told()})
    known |= Counter({(row.backend, row.epoch): row.draw for row in counts.told()})
    assert known == assigned
    counts.renew(table())
    assert len(counts.told()) == _PAST


@pytest.mark.parametrize("seed", range(20))
def test_weights_that_come_back_count_on_however_the_beats_fall(seed: int) -> None:
    """A row that was let go may be needed again before control has seen a beat without it."""
    random = Random(seed)
    counts, rows, book = Assignments(), WorkerRows(older=False), AssignedBook()
    assigned: Counter[tuple[str, str]] = Counter()
    for _ in range(600):
        epoch = f"e|{random.randrange(40)}"
        counts.renew(table(SplitSpec("one", (("a", 1), ("b", 1)), "", epoch=epoch)))
        for _ in range(random.choice((0, 0, 1, 2))):
            name = random.choice("ab")
            counts.add(Assignment("one", name, "draw", epoch=epoch))
            assigned[name, epoch] += 1
        if not random.randrange(random.choice((2, 30))):
            book.add(rows.news(replace(row) for row in counts.told()))
    book.add(rows.news(counts.told()))
    totals = {(name, epoch): more.assigned for (_, name, epoch), more in book.totals().items()}
    assert {key: count for key, count in totals.items() if count} == dict(assigned)


class Fixed:
    """A hash that always comes out the same."""

    def __init__(self, digest: int) -> None:
        self._digest = digest

    def copy(self) -> Fixed:
        return self

    def update(self, data: bytes) -> None:
        pass

    def digest(self) -> bytes:
        return self._digest.to_bytes(8, "big")


@pytest.mark.parametrize(
    ("a", "b", "best"),
    [(0, 0, "a"), (2**64 - 1, 2**64 - 1, "a"), (0, 2**64 - 1, "b"), (0, 1, "a"), (0, 2**11, "b")],
)
def test_the_ends_of_the_hash_are_numbers_too(a: int, b: int, best: str) -> None:
    split: Any = Split(spec(a=1, b=1))
    split._arms = [("a", 1, Fixed(a)), ("b", 1, Fixed(b))]
    assert split.arm(1) == best
