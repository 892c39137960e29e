"""Weights changed on one host reach the others; no file loses to a word that is nobody's any more."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from proxy.control.shared import Unshared
from proxy.control.shared_names import WEIGHTS, WEIGHTS_KEPT_S
from tests.control.experiments.tables import T0, Clock, Host, S, table
from tests.helpers.shared import MemoryShared, Place

AB = {"a": 90, "b": 10}
FILE = table({"ab": AB, "cd": {"c": 1, "d": 1}})
HALF = {"a": 50, "b": 50}
OTHER = table({"ab": {"a": 80, "b": 20}, "cd": {"c": 1, "d": 1}})


class Hosts:
    """Several hosts and what they share.  ``round()``: five seconds pass and each of them shares once."""

    def __init__(self, *offsets_s: float) -> None:
        self.now = Clock()
        self.place = Place(self.now)
        self.clocks = [Clock(T0 + round(offset_s * S)) for offset_s in offsets_s]
        self.hosts = [Host(FILE, clock) for clock in self.clocks]
        self._views = [MemoryShared(self.place, f"host{index}") for index in range(len(offsets_s))]
        self.off: set[int] = set()
        self.rounds()

    def pass_s(self, seconds: float) -> None:
        for clock in (self.now, *self.clocks):
            clock.pass_s(seconds)

    def rounds(self, count: int = 2) -> None:
        for _ in range(count):
            for index, host in enumerate(self.hosts):
                self.pass_s(0.01)
                if index not in self.off:
                    asyncio.run(host.weights.sync(self._views[index]))
            self.pass_s(5)

    def restart(self, index: int) -> None:
        self.hosts[index] = Host(FILE, self.clocks[index])
        self._views[index] = MemoryShared(self.place, f"host{index}-again")

    def put(self, index: int, arms: dict[str, int], author: str = "ann") -> None:
        self.hosts[index].weights.override("ab", arms, author=author, reason="a try")

    def clear(self, index: int) -> None:
        self.hosts[index].weights.clear("ab", author="ben", reason="enough")

    def arms(self) -> list[dict[str, int]]:
        return [host.arms() for host in self.hosts]


SKEWS = [(0.0, 0.0), (0.0, 0.0, 0.0), (3600.0, -3600.0, 0.0), (-86_400.0, 0.0, 40.0)]


@pytest.mark.parametrize("skews", SKEWS)
def test_every_host_goes_by_the_newest_word_whatever_its_clock_says(skews: tuple[float, ...]) -> None:
    fleet = Hosts(*skews)
    count = len(skews)
    for turn in range(2 * count):
        weights = {"a": 1 + turn, "b": 7}
        fleet.put(turn % count, weights, f"author {turn}")
        fleet.rounds()
        assert fleet.arms() == [weights] * count
        views = [host.weights.splits()[0].override for host in fleet.hosts]
        assert views == [views[0]] * count, "who, when and why, the same everywhere"
        assert views[0] is not None
        assert views[0].author == f"author {turn}"
        assert abs(views[0].at_unix_ns - fleet.now()) < 60 * S, "by the time that all agree on"
    fleet.clear(count - 1)
    fleet.rounds()
    assert fleet.arms() == [AB] * count
    fleet.rounds(200)
    assert fleet.arms() == [AB] * count, "what was cleared does not come back"


def test_two_who_speak_at_once_end_alike() -> None:
    fleet = Hosts(0.0, 0.0, 0.0)
    at = fleet.now()
    for index in range(3):
        fleet.hosts[index].weights.override(
            "ab", {"a": 1 + index, "b": 9}, author="ann", reason="race", seq_unix_ns=at
        )
    fleet.rounds(3)
    assert fleet.arms() == [fleet.arms()[0]] * 3


def test_what_all_hosts_say_by_themselves_is_one_word() -> None:
    fleet = Hosts(0.0, 30.0)
    at = fleet.now()
    fleet.pass_s(1)
    for host in fleet.hosts:
        host.weights.override("ab", HALF, author="experiment x", reason="worse", seq_unix_ns=at)
        fleet.rounds(1)
    overrides = [host.weights.splits()[0].override for host in fleet.hosts]
    assert [override and override.at_unix_ns for override in overrides] == [at, at]
    fleet.put(0, AB)
    fleet.rounds()
    assert fleet.arms() == [AB, AB]


def test_a_host_that_restarts_hears_what_the_others_go_by() -> None:
    fleet = Hosts(0.0, 3600.0)
    fleet.put(0, HALF)
    fleet.rounds()
    fleet.restart(0)
    assert fleet.arms() == [AB, HALF], "the file, until it has heard"
    fleet.rounds()
    assert fleet.arms() == [HALF, HALF]
    fleet.restart(1)
    fleet.rounds()
    assert fleet.arms() == [HALF, HALF]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_where_all_hosts_restarted_the_file_has_won(count: int) -> None:
    fleet = Hosts(*[0.0] * count)
    fleet.put(0, HALF)
    fleet.rounds()
    assert fleet.arms() == [HALF] * count
    for index in range(count):
        fleet.restart(index)
    fleet.rounds(10)
    assert fleet.arms() == [AB] * count, "the store still had it: nobody went by it"
    fleet.put(count - 1, {"a": 1, "b": 3}, "ben")
    fleet.rounds()
    assert fleet.arms() == [{"a": 1, "b": 3}] * count


def test_what_is_said_before_the_store_was_asked_is_newer_than_what_was_left_there() -> None:
    fleet = Hosts(-3600.0)
    fleet.put(0, {"a": 1, "b": 3}, "old")
    fleet.rounds()
    fleet.restart(0)
    fleet.put(0, HALF, "new")
    fleet.rounds()
    assert fleet.hosts[0].said() == "new"
    assert b"new" in fleet.place.at(WEIGHTS)["ab"]


def test_a_word_from_the_future_does_not_stay_for_ever() -> None:
    fleet = Hosts(0.0, 0.0)
    far = fleet.now() + 86_400 * S
    fleet.hosts[0].weights.override("ab", HALF, author="ann", reason="far", seq_unix_ns=far)
    fleet.rounds()
    fleet.put(1, {"a": 1, "b": 3})
    fleet.rounds()
    assert fleet.arms() == [{"a": 1, "b": 3}] * 2


def test_an_override_is_cleared_by_a_host_that_has_not_heard_of_it_yet() -> None:
    fleet = Hosts(0.0, 0.0)
    fleet.put(0, HALF)
    fleet.rounds()
    fleet.restart(1)
    fleet.clear(1)
    fleet.rounds()
    assert fleet.arms() == [AB, AB]


def test_what_was_cleared_since_is_cleared_for_who_comes_late() -> None:
    fleet = Hosts(0.0, 0.0, 0.0)
    fleet.put(1, HALF)
    fleet.rounds()
    fleet.restart(2)
    fleet.off = {2}
    fleet.put(2, {"a": 1, "b": 3})
    fleet.pass_s(1)
    fleet.clear(0)
    fleet.rounds()
    fleet.off = set()
    fleet.rounds(5)
    assert fleet.arms() == [AB] * 3


def test_each_word_of_another_host_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Hosts(0.0, 0.0)
    with caplog.at_level("INFO", logger="legato.weights"):
        fleet.put(0, HALF)
        fleet.rounds(5)
        fleet.clear(0)
        fleet.rounds(5)
    assert caplog.messages == [
        "split ab: weights a 50, b 50 by ann: a try",
        "split ab: weights a 50, b 50 by ann on another host: a try",
        "split ab: the file's weights again, by ben: enough",
        "split ab: the file's weights again by ben on another host: enough",
    ]


def test_the_store_forgets_what_nobody_holds() -> None:
    fleet = Hosts(0.0)
    fleet.put(0, HALF)
    fleet.rounds()
    assert WEIGHTS in fleet.place.hashes
    fleet.off = {0}
    fleet.pass_s(WEIGHTS_KEPT_S + 1)
    fleet.restart(0)
    fleet.off = set()
    fleet.rounds()
    assert fleet.place.hashes.get(WEIGHTS, {}) == {}
    assert fleet.arms() == [AB]


def test_a_store_that_is_away_changes_nothing_and_catches_up() -> None:
    fleet = Hosts(0.0, 120.0)
    fleet.put(0, HALF)
    fleet.rounds()
    fleet.place.away = True
    fleet.put(1, {"a": 20, "b": 80})
    with pytest.raises(Unshared):
        fleet.rounds(1)
    assert fleet.arms() == [HALF, {"a": 20, "b": 80}], "each by what it knows"
    fleet.pass_s(2 * WEIGHTS_KEPT_S)  # long enough for all to be forgotten there
    fleet.place.away = False
    fleet.rounds()
    assert fleet.arms() == [{"a": 20, "b": 80}] * 2


def test_a_host_that_was_cut_off_does_not_bring_back_what_was_cleared() -> None:
    fleet = Hosts(0.0, 0.0)
    fleet.put(0, HALF)
    fleet.rounds()
    fleet.off = {1}
    fleet.clear(0)
    fleet.rounds()
    fleet.pass_s(2 * WEIGHTS_KEPT_S)
    fleet.rounds()
    assert fleet.arms() == [AB, HALF]
    fleet.off = set()
    fleet.rounds(3)
    assert fleet.arms() == [AB, AB]


def test_a_host_with_another_file_keeps_its_own_and_says_so() -> None:
    fleet = Hosts(0.0, 0.0, 0.0)
    fleet.put(0, HALF)
    fleet.rounds()
    fleet.hosts[2].weights.set_file(OTHER)
    fleet.rounds()
    assert fleet.arms() == [HALF, HALF, {"a": 80, "b": 20}]
    view = fleet.hosts[2].weights.splits()[0]
    assert view.override is None
    assert view.elsewhere is not None
    assert view.elsewhere.arms == HALF
    assert fleet.hosts[0].weights.splits()[0].elsewhere is None

    fleet.hosts[2].weights.set_file(FILE)
    fleet.rounds()
    assert fleet.arms() == [HALF] * 3, "the same file again: the others still go by it"
    assert fleet.hosts[2].weights.splits()[0].elsewhere is None


def test_of_two_files_overrides_the_newer_one_is_carried() -> None:
    fleet = Hosts(0.0, 0.0)
    fleet.hosts[1].weights.set_file(OTHER)
    fleet.put(0, HALF, "older")
    fleet.rounds()
    fleet.put(1, {"a": 1, "b": 3}, "newer")
    fleet.rounds()
    for _ in range(4):
        fleet.off = {1} - fleet.off
        fleet.rounds(1)
        assert b"newer" in fleet.place.at(WEIGHTS)["ab"]
    assert fleet.arms() == [HALF, {"a": 1, "b": 3}], "each by its own file's"


def elsewhere(fleet: Hosts, index: int) -> str | None:
    found = fleet.hosts[index].weights.splits()[0].elsewhere
    return None if found is None else found.author


def test_what_others_go_by_is_shown_as_long_as_they_do() -> None:
    fleet = Hosts(0.0, 0.0)
    fleet.hosts[1].weights.set_file(OTHER)
    fleet.put(0, HALF)
    fleet.rounds()
    assert elsewhere(fleet, 1) == "ann"
    fleet.clear(0)
    fleet.rounds()
    assert elsewhere(fleet, 1) is None
    fleet.put(0, HALF)
    fleet.hosts[1].weights.override("cd", {"c": 1, "d": 2}, author="ann", reason="keeps the hash")
    fleet.rounds()
    assert elsewhere(fleet, 1) == "ann"
    fleet.restart(0)
    fleet.rounds(round(WEIGHTS_KEPT_S / 5) + 2)
    assert "ab" in fleet.place.at(WEIGHTS), "it is there, and nobody's"
    assert elsewhere(fleet, 1) is None


def test_a_huge_word_is_nobodys() -> None:
    fleet = Hosts(0.0)
    fleet.hosts[0].weights.set_file(OTHER)
    fleet.place.at(WEIGHTS)["ab"] = word({f"backend-{number}": 1 for number in range(10_000)})
    fleet.place.keep(WEIGHTS, WEIGHTS_KEPT_S)
    fleet.rounds()
    assert elsewhere(fleet, 0) is None
    fleet.place.at(WEIGHTS)["ab"] = word()
    fleet.rounds()
    assert elsewhere(fleet, 0) == "eve"


def test_a_file_that_wins_on_all_hosts_one_after_the_other_stays() -> None:
    fleet = Hosts(0.0, 0.0)
    fleet.put(0, HALF)
    fleet.rounds()
    newer = table({"ab": {"a": 80, "b": 20}})
    for host in fleet.hosts:
        host.weights.set_file(newer)
        fleet.rounds(1)
    fleet.rounds()
    assert fleet.arms() == [{"a": 80, "b": 20}] * 2
    for host in fleet.hosts:
        host.weights.set_file(FILE)
    fleet.rounds()
    assert fleet.arms() == [AB, AB], "what the newer file dropped is gone with the old one too"


def word(arms: object = None, author: str = "eve", at_ns: int = T0 + S) -> bytes:
    said = {"arms": arms or HALF, "author": author, "reason": "x", "at_unix_ns": at_ns}
    return msgspec.msgpack.encode({**said, "file_arms": [sorted(AB.items())], "kept_unix_ns": T0 + 1})


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        (word(), True),
        (b"", False),
        (b"\xc1", False),
        (msgspec.msgpack.encode({"arms": HALF}), False),
        (word({"a": 1}), False),
        (word({"a": 0, "b": 0}), False),
        (word({"a": 1, "b": 1, "c": 1}), False),
        (word({"a": 1, "b": -1}), False),
        (word({"a": 1, "b": 1.5}), False),
        (word(author="a\nb"), False),
        (word(author="a" * 70_000), False),
        (word(at_ns=-1), False),
        (word(at_ns=1 << 62), False),
    ],
)
def test_nonsense_in_the_store_is_nobodys_word(value: bytes, taken: bool) -> None:
    fleet = Hosts(0.0)
    fleet.place.at(WEIGHTS)["ab"] = value
    fleet.place.keep(WEIGHTS, WEIGHTS_KEPT_S)
    fleet.rounds()
    assert fleet.hosts[0].said() == ("eve" if taken else None)
    assert fleet.arms() == [HALF if taken else AB]
    fleet.put(0, {"a": 1, "b": 2})
    fleet.rounds()
    assert fleet.hosts[0].said() == "ann"


def test_what_is_written_tells_no_more_than_it_must() -> None:
    fleet = Hosts(0.0)
    fleet.put(0, HALF)
    fleet.rounds()
    held = {name: msgspec.msgpack.decode(value) for name, value in fleet.place.at(WEIGHTS).items()}
    assert set(held) == {"ab"}
    assert set(held["ab"]) == {"arms", "author", "reason", "at_unix_ns", "file_arms", "kept_unix_ns"}
