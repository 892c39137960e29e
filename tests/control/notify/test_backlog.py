"""What waits for one notifier: order, patience, and what is given up.  The time is an argument."""

from __future__ import annotations

import pytest

from proxy.control.notify.backlog import MOST_ASKED_NS, PATIENCE_NS, ROOM, Backlog, Waiting
from tests.control.notify.notices import S, message


def backlog(jitter: float = 1.0) -> Backlog:
    return Backlog(lambda: jitter)


def first(waiting: Backlog) -> Waiting:
    found = waiting.first()
    assert found is not None
    return found


def fail(waiting: Backlog, at_s: float, asked_s: float | None = None) -> float | None:
    """The first one fails; when it is due again in seconds, ``None`` if it was given up."""
    each = first(waiting)
    waiting.trying(each)
    kept = waiting.failed(each, None if asked_s is None else int(asked_s * S), int(at_s * S))
    return waiting.due_ns(each) / S if kept else None


def test_waits_double_up_to_a_minute_until_half_an_hour_has_passed() -> None:
    waiting = backlog()
    waiting.add(message(), 0)
    at_s: float | None = 0.0
    waits = []
    while at_s is not None:
        due_s = fail(waiting, at_s)
        waits.append(None if due_s is None else due_s - at_s)
        at_s = due_s
    assert waits[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert waits[-1] is None
    # 63 s of doubling, then each minute up to 1800 s, and the first try
    assert len(waits) == 6 + (PATIENCE_NS // S - 63) // 60 + 1
    assert len(waiting) == 0


def test_since_when_it_is_refused_is_told_of_what_was_tried_in_vain_and_waits() -> None:
    waiting = backlog()
    assert waiting.refused_since_ns is None
    waiting.add(message(), 5 * S)
    assert waiting.refused_since_ns is None, "nobody has tried"
    fail(waiting, 5)
    fail(waiting, 6)
    assert waiting.refused_since_ns == 5 * S
    waiting.done(first(waiting))
    assert waiting.refused_since_ns is None


@pytest.mark.parametrize(("jitter", "waits"), [(0.0, [0.5, 1, 2]), (0.5, [0.75, 1.5, 3]), (1.0, [1, 2, 4])])
def test_chance_shortens_a_wait_by_half_at_most(jitter: float, waits: list[float]) -> None:
    waiting = backlog(jitter)
    waiting.add(message(), 0)
    assert [fail(waiting, 0) for _ in waits] == waits


@pytest.mark.parametrize(("asked_s", "due_s"), [(0, 1), (30, 30), (300, 300), (86_400, MOST_ASKED_NS / S)])
def test_a_receiver_may_ask_for_patience_up_to_five_minutes(asked_s: float, due_s: float) -> None:
    waiting = backlog()
    waiting.add(message(), 0)
    assert fail(waiting, 0, asked_s) == due_s


def test_whoever_asked_for_patience_is_left_alone_with_new_messages_too() -> None:
    waiting = backlog()
    waiting.add(message(1, "a"), 0)
    assert fail(waiting, 0, asked_s=30) == 30
    waiting.add(message(2, "b"), 0)
    assert first(waiting).message.id == "m2"
    assert waiting.due_ns(first(waiting)) == 30 * S


def test_a_message_that_fails_holds_up_no_other_alert() -> None:
    waiting = backlog()
    waiting.add(message(1, "a"), 0)
    fail(waiting, 0)
    waiting.add(message(2, "b"), 0)
    assert first(waiting).message.id == "m2"


def test_what_is_told_of_one_alert_is_told_in_order() -> None:
    waiting = backlog()
    waiting.add(message(1, "a", "b"), 0)
    for _ in range(3):
        fail(waiting, 0)
    waiting.add(message(2, "b", state="resolved"), 0)
    waiting.add(message(3, "c"), 0)
    order = []
    while (each := waiting.first()) is not None:
        order.append(each.message.id)
        waiting.trying(each)
        waiting.done(each)
    assert order == ["m3", "m1", "m2"]


def test_all_are_due_at_once_when_the_receiver_is_back() -> None:
    waiting = backlog()
    for number in range(3):
        waiting.add(message(number, str(number)), 0)
        fail(waiting, 0)
    waiting.reachable(0)
    assert waiting.due_ns(first(waiting)) == 0


def test_too_many_and_the_oldest_goes_but_never_the_one_on_its_way() -> None:
    waiting = backlog()
    dropped = [waiting.add(message(number, str(number)), number) for number in range(ROOM)]
    assert dropped == [None] * ROOM
    on_its_way = first(waiting)
    waiting.trying(on_its_way)
    assert on_its_way.message.id == "m0"
    for number in range(3):
        gone = waiting.add(message(ROOM + number, str(ROOM + number)), ROOM)
        assert gone is not None
        assert gone.id == f"m{1 + number}"
        assert len(waiting) == ROOM
    waiting.done(on_its_way)
    assert len(waiting) == ROOM - 1
