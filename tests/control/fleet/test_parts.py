"""The small parts of the writer: Redis's clock, whose requests are in the slots, which records are shared."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.control.fleet.layout import RECENT_MOST, decode_record
from proxy.control.fleet.losses import Losses
from proxy.control.fleet.offset import Offset
from proxy.control.fleet.records import RECENT_A_SECOND, WORST_A_SECOND, RecordQueue
from proxy.control.settle import Settled, settle
from tests.control.facts import at, facts, streamed

MS = 1_000_000
S = 1_000 * MS

# ---------------------------------------------------------------- Redis's clock


@given(st.integers(-10, 10), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), min_size=1))
def test_the_offset_is_within_half_a_round_trip_and_rests_there(
    true_s: int, trips_ms: list[tuple[int, int]]
) -> None:
    offset, now, moves = Offset(), 1_000 * S, 0
    for there_ms, back_ms in trips_ms:
        before = offset.ns
        offset.measured(now + there_ms * MS + true_s * S, now, now + (there_ms + back_ms) * MS)
        assert abs(offset.ns - true_s * S) <= 400 * MS
        moves += before != offset.ns
        now += 5 * S
    for _ in range(3):
        before = offset.ns
        offset.measured(now + 200 * MS + true_s * S, now, now + 400 * MS)
        if abs(before - true_s * S) <= 200 * MS:
            assert offset.ns == before, "it may be right: it does not move"


def test_a_small_step_is_followed_slowly_and_a_large_one_at_once() -> None:
    offset = Offset()
    offset.measured(10 * S, 10 * S, 10 * S)
    seen = []
    for _ in range(5):
        offset.measured(12 * S, 10 * S, 10 * S)
        seen.append(offset.ns)
    assert seen == [500 * MS, 1_000 * MS, 1_500 * MS, 2_000 * MS, 2_000 * MS]
    offset.measured(3_610 * S, 10 * S, 10 * S)
    assert offset.ns == 3_600 * S


def test_the_first_answer_is_taken_whatever_it_says() -> None:
    offset = Offset()
    offset.measured(17 * S, 10 * S, 12 * S)
    assert offset.ns == 6 * S


# ---------------------------------------------------------------- whose requests are in the slots


def test_seen_is_what_was_booked_before_the_packing_began() -> None:
    losses = Losses()
    losses.hello("w", 0)
    losses.seen("w", 5)
    losses.packing()
    losses.seen("w", 9)
    assert losses.due(0) == {}
    losses.packed()
    assert losses.due(0) == {"w": 5}
    losses.written({"w": 5})
    assert losses.due(1) == {}
    assert losses.due(3_601 * S) == {"w": 5}, "told again before Redis forgets it"


def test_of_a_worker_that_is_looked_up_nothing_is_written_before_the_answer() -> None:
    losses = Losses()
    losses.hello("w", 30)
    losses.seen("w", 31)
    losses.packing()
    losses.packed()
    assert losses.due(0) == {}
    assert losses.asked == ["w"]
    losses.answered(["w"], [20])
    assert losses.settled_before_write == 10
    assert losses.due(0) == {"w": 31}


@pytest.mark.parametrize(("acked", "seen", "lost"), [(7, None, 7), (7, 7, 0), (7, 9, 0), (7, 0, 7)])
def test_what_redis_does_not_know_counts_as_lost(acked: int, seen: int | None, lost: int) -> None:
    losses = Losses()
    losses.hello("w", acked)
    losses.answered(["w"], [seen])
    assert losses.settled_before_write == lost


def test_a_worker_that_comes_while_redis_is_asked_is_asked_for_next() -> None:
    losses = Losses()
    losses.hello("one", 7)
    asked = losses.asked
    losses.hello("two", 20)
    losses.answered(asked, [5])
    assert (losses.settled_before_write, losses.asked) == (2, ["two"])


def test_answers_are_those_of_who_was_asked_for_though_one_is_forgotten_meanwhile() -> None:
    losses = Losses()
    losses.hello("gone", 1_000)
    losses.hello("stays", 7)
    asked = losses.asked
    for number in range(254):  # as many as are remembered, but for one
        losses.seen(f"w{number}", 1)
    losses.seen("stays", 8)
    losses.seen("one more", 1)
    losses.answered(asked, [1_000, 5])
    assert losses.settled_before_write == 2


def test_what_was_counted_as_lost_is_not_counted_by_the_next_one_too() -> None:
    losses = Losses()
    losses.hello("w", 30)
    losses.answered(["w"], [20])
    losses.packing()
    losses.packed()
    assert losses.due(0) == {"w": 30}


def test_a_link_that_comes_back_is_not_looked_up_and_workers_are_bounded() -> None:
    losses = Losses()
    losses.hello("w", 0)
    losses.seen("w", 4)
    losses.hello("w", 4)
    assert losses.asked == []
    for number in range(5_000):
        losses.hello(f"w{number}", 1)
    assert len(losses.asked) <= 256


# ---------------------------------------------------------------- which records are shared


def settled(number: int, gap_ms: int = 50) -> Settled:
    return settle(
        streamed(at(50), at(50 + gap_ms), end_ms=9_000, id=f"r{number}", seq=number), instance="here"
    )


def ids(data: list[bytes]) -> list[str]:
    return [msgspec.json.decode(decode_record(each))["id"] for each in data]


def all_ready(queue: RecordQueue) -> None:
    for _ in queue.ready():
        pass


def test_some_of_the_latest_and_the_worst_of_each_second() -> None:
    queue = RecordQueue()
    batch = [settled(number, 50 + number) for number in range(600)]
    queue.take(batch[:300], 7 * S)
    queue.take(batch[300:], 7 * S + 900 * MS)
    all_ready(queue)
    sent = queue.waiting()
    assert ids(sent.recent) == [f"r{number}" for number in range(RECENT_A_SECOND)]
    assert len(sent.worst) == WORST_A_SECOND
    assert set(ids(sent.worst)) <= {f"r{number}" for number in range(400, 600)}
    queue.taken(sent)
    assert queue.waiting() == ([], [])
    queue.take([settled(601)], 8 * S)
    all_ready(queue)
    assert ids(queue.waiting().recent) == ["r601"]


def test_what_redis_does_not_take_is_bounded_and_the_latest_stay() -> None:
    queue = RecordQueue()
    one = settled(1)
    for second in range(RECENT_MOST // RECENT_A_SECOND + 5):
        queue.take([one] * RECENT_A_SECOND, second * S)
        all_ready(queue)
    held = 0
    while (sent := queue.waiting()).recent:
        held += len(sent.recent)
        queue.taken(sent)
    assert held == RECENT_MOST


def test_what_missed_nothing_is_among_the_latest_only_and_what_is_huge_in_none() -> None:
    queue = RecordQueue()
    tags = {f"t{n}": "x" * 200 for n in range(100)}
    queue.take([settle(facts(id="plain"), "here"), settle(facts(id="huge", tags=tags), "here")], S)
    all_ready(queue)
    assert ids(queue.waiting().recent) == ["plain"]
    assert queue.waiting().worst == []
