"""Requests and copies find each other in any order, within bounds; what cannot be compared is counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.control.experiments import pairs as module
from proxy.control.experiments.pairs import BLOCK_NS, LAST, WAIT_NS, Pairs, result_of
from proxy.control.settle import Settled, settle
from proxy.exporters.vocabulary import MIRRORED
from proxy.link import Facts
from tests.control.facts import MS, T0, at, facts, streamed

GOOD = [at(40), at(60), at(80)]


class Clock:
    """A monotonic clock that is set."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def request(id: str, *events: Any, shadow: str | None = "next", **fields: Any) -> Facts:
    return streamed(*(events or GOOD), id=id, copied=shadow, **{"backend": "stable", **fields})


def copy(id: str, *events: Any, **fields: Any) -> Facts:
    return streamed(*(events or GOOD), id=f"copy-{id}", mirror_of=id, **{"backend": "next", **fields})


def told(pairs: Pairs, *batch: Facts) -> None:
    """As ``core.facts`` hands them on."""
    settled = [settle(each, "here") for each in batch]
    pairs.copies([each for each in settled if each.facts.mirror_of is not None])
    pairs([each for each in settled if each.facts.mirror_of is None])


# ---------------------------------------------------------------- finding each other


@given(st.permutations([request("a"), copy("a"), request("b"), copy("b"), request("c", shadow=None)]))
def test_in_any_order(batch: Sequence[Facts]) -> None:
    pairs = Pairs(Clock())
    for each in batch:
        told(pairs, each)
    ((key, book),) = pairs.books.items()
    assert (key, book.sums.pairs, pairs.waiting) == (("stable", "next"), 2, 0)
    assert {(seen.id, seen.copy_id) for seen in book.last} == {("a", "copy-a"), ("b", "copy-b")}


def test_backends_and_shadows_are_told_apart() -> None:
    pairs = Pairs(Clock())
    told(pairs, request("a"), copy("a"), request("b", backend="canary"), copy("b"))
    told(pairs, request("c", shadow="other"), copy("c", backend="other"))
    assert {key: book.sums.pairs for key, book in pairs.books.items()} == {
        ("stable", "next"): 1,
        ("canary", "next"): 1,
        ("stable", "other"): 1,
    }
    assert [backend for backend, _ in pairs.of_shadow("next")] == ["canary", "stable"]


def test_who_waits_too_long_is_given_up() -> None:
    clock = Clock()
    pairs = Pairs(clock)
    told(pairs, request("a"), copy("b"))
    clock.now_ns = WAIT_NS - 1
    told(pairs, request("c"))
    pairs.sweep()
    assert pairs.waiting == 3
    clock.now_ns = WAIT_NS
    pairs.sweep()
    assert pairs.waiting == 1
    assert pairs.shadows["next"].unpaired == {"requests": 1, "copies": 1}
    told(pairs, copy("c"), copy("a"))
    assert pairs.books["stable", "next"].sums.pairs == 1
    assert pairs.waiting == 1, "it came too late, and waits in vain"


def test_so_many_wait_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_MOST", 5)
    pairs = Pairs(Clock())
    told(pairs, *(request(str(number)) for number in range(9)))
    assert (pairs.waiting, pairs.shadows["next"].unpaired["requests"]) == (5, 4)
    told(pairs, copy("8"))
    assert pairs.books["stable", "next"].sums.pairs == 1, "the youngest stayed"


def test_names_and_ids_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEYS_MOST", 3)
    pairs = Pairs(Clock())
    for number in range(LAST + 10):
        told(pairs, request(f"a{number}"), copy(f"a{number}"))
        name = f"b{number}"
        told(pairs, request(name, backend=name, shadow=name), copy(name, backend=name))
    assert (len(pairs.books), len(pairs.shadows)) == (3, 3)
    pairs = Pairs(Clock())
    told(pairs, *(each for number in range(50) for each in (request(str(number)), copy(str(number)))))
    assert [seen.id for seen in pairs.books["stable", "next"].last] == [str(n) for n in range(30, 50)]


def test_what_is_told_twice_is_no_pair() -> None:
    pairs = Pairs(Clock())
    told(pairs, request("a"), request("a"))
    assert (pairs.books, pairs.waiting) == ({}, 1)


# ---------------------------------------------------------------- what is compared


def compared(*batch: Facts) -> Any:
    pairs = Pairs(Clock())
    told(pairs, *batch)
    return pairs.books["stable", "next"]


LATE = {"lags": ((T0 + 100 * MS, T0 + 600 * MS),)}
UNMEASURED: dict[str, Any] = {"of": {"unmeasured": "encoding", "choices": ()}}


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (({}, UNMEASURED), "unmeasured"),
        ((UNMEASURED, {}), "unmeasured"),
        (({}, {"end": "self", "error": "shed"}), "given_up"),
        (({"end": "self"}, {}), "given_up"),
        (({"blocked": ((T0 + MS, T0 + 2 * MS),)}, {}), "blocked"),
        (({}, {"blocked": ((T0 + MS, T0 + 2 * MS),)}), "blocked"),
    ],
)
def test_pairs_in_which_we_had_a_part_are_left_out(
    one: tuple[dict[str, Any], dict[str, Any]], reason: str
) -> None:
    book = compared(request("a", **one[0]), copy("a", **one[1]))
    assert (book.sums.pairs, book.excluded, len(book.last)) == (0, {reason: 1}, 0)


def test_our_own_lateness_leaves_a_pair_out() -> None:
    book = compared(request("a"), copy("a", at(40), at(500), **LATE))
    assert book.excluded == {"suspect": 1}


def test_a_client_that_left_tells_of_the_beginning_only() -> None:
    left = request("a", at(40), end="client_left", of={"finished": False, "finish_reason": None})
    book = compared(left, copy("a"))
    assert (book.sums.pairs, book.cut) == (1, 1)
    found = book.compare()
    assert (found["ttft"].pairs, found["fluidity"].pairs, found["normalized_latency"].pairs) == (1, 0, 0)


def test_a_shadow_that_never_answers_is_an_error_of_its_own() -> None:
    hangs = facts(
        300_000,
        id="c",
        mirror_of="a",
        backend="next",
        end="timeout_first_byte",
        status=None,
        stream_asked=True,
    )
    book = compared(request("a"), hangs)
    found = book.compare()
    assert (book.sums.pairs, found["errors"].pairs, found["ttft"].pairs) == (1, 1, 0)


def test_pairs_of_ten_seconds_are_one_block() -> None:
    clock = Clock()
    pairs = Pairs(clock)
    for number in range(60):
        clock.now_ns = number * BLOCK_NS // 2
        slow = [at(40 + 300 * (number // 2 % 2)), at(400)]
        told(pairs, request(str(number)), copy(str(number), *slow))
    (book,) = pairs.books.values()
    assert book.compare()["ttft"].design_effect == pytest.approx(2, rel=0.1), "two by two alike"


# ---------------------------------------------------------------- what became of copies


RESULTS: list[tuple[dict[str, Any], str]] = [
    ({}, "completed"),
    ({"status": 500}, "failed"),
    ({"status": 404}, "failed"),
    ({"status": 504}, "failed"),
    ({"end": "truncated"}, "failed"),
    ({"end": "no_response"}, "failed"),
    ({"end": "bad_response"}, "failed"),
    ({"end": "connect_failed"}, "failed"),
    ({"end": "timeout_connect"}, "timeout"),
    ({"end": "timeout_first_byte"}, "timeout"),
    ({"end": "timeout_idle"}, "timeout"),
    ({"end": "self", "error": "copy_timeout"}, "timeout"),
    ({"end": "self", "error": "shed"}, "dropped"),
    ({"end": "self", "error": "copy_too_large"}, "dropped"),
]


@pytest.mark.parametrize(("fields", "result"), RESULTS)
def test_what_became_of_a_copy(fields: dict[str, Any], result: str) -> None:
    assert result_of(settled(copy("a", **fields))) == result
    assert result in MIRRORED


def settled(one: Facts) -> Settled:
    return settle(one, "here")


def test_every_copy_that_was_drawn_is_counted_once() -> None:
    pairs = Pairs(Clock())
    told(pairs, copy("a"), copy("b", end="self", error="shed"), copy("c", status=500))
    assert pairs.results({"next": 4, "gone": 1}) == {
        ("next", "completed"): 1,
        ("next", "dropped"): 5,
        ("next", "failed"): 1,
        ("gone", "dropped"): 1,
    }


@pytest.mark.parametrize(
    ("status", "reason"),
    [((200, 404), "rejected_by_shadow"), ((400, 400), "rejected"), ((400, 200), "rejected")],
)
def test_what_was_rejected_is_in_no_metric_and_is_counted(status: tuple[int, int], reason: str) -> None:
    plain = [streamed(*GOOD) if each == 200 else facts(status=each, stream_asked=True) for each in status]
    one = msgspec.structs.replace(plain[0], id="a", copied="next", backend="stable")
    two = msgspec.structs.replace(plain[1], id="copy-a", mirror_of="a", backend="next")
    book = compared(one, two)
    assert (book.sums.pairs, book.excluded) == (0, {reason: 1})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"streamed": False, "stream": None}, "unmeasured"),  # one body of JSON where a stream was asked for
        (LATE, "suspect"),
        ({"status": 404, "streamed": False, "stream": None}, "rejected_by_shadow"),
    ],
)
@pytest.mark.parametrize(("left_out", "doubted"), [(2, False), (4, True)])
def test_too_many_pairs_that_are_left_out_leave_no_verdict(
    fields: dict[str, Any], reason: str, left_out: int, doubted: bool
) -> None:
    """The shadow is 300 ms slower in each of 300 pairs, of 50 stretches of time."""
    clock = Clock()
    pairs = Pairs(clock)
    for number in range(300):
        clock.now_ns = number * BLOCK_NS // 6
        told(pairs, request(str(number), at(40 + number % 7), at(90)), copy(str(number), at(340), at(400)))
    for number in range(left_out):
        odd = [at(40), at(500)] if reason == "suspect" else GOOD
        told(pairs, request(f"x{number}"), copy(f"x{number}", *odd, **fields))
    (book,) = pairs.books.values()
    found = book.compare()
    assert book.excluded == {reason: left_out}
    assert found["ttft"].effect == pytest.approx(0.3, abs=0.01)
    verdict, reasons = found["ttft"].verdict, found["ttft"].reasons
    assert (verdict, reasons) == (("undecided", (reason,)) if doubted else ("worse", ()))
    assert {one.reasons[:1] == (reason,) for one in found.values()} == {doubted}
