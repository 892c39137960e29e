"""Record ids: sortable by time, unique, of one alphabet."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.relay.ids import Ids

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
DAY_NS = 86_400_000_000_000


def milliseconds(made: str) -> int:
    value = 0
    for letter in made[:10]:
        value = value * 32 + ALPHABET.index(letter)
    return value


@given(st.integers(0, 2**47 * 1_000_000))
def test_an_id_says_its_millisecond(unix_ns: int) -> None:
    made = Ids().new(unix_ns)
    assert len(made) == 26
    assert set(made) <= set(ALPHABET)
    assert milliseconds(made) == unix_ns // 1_000_000


def test_ids_of_one_moment_are_all_different_and_sorted() -> None:
    ids = Ids()
    made = [ids.new(1_764_000_000 * 10**9) for _ in range(1000)]
    assert made == sorted(set(made))


def test_later_is_greater() -> None:
    ids = Ids()
    made = [ids.new(day * DAY_NS) for day in range(1000)]
    assert made == sorted(made)


def test_two_processes_do_not_meet() -> None:
    assert not {Ids().new(0) for _ in range(100)} & {Ids().new(0) for _ in range(100)}


def test_the_count_wraps_without_touching_the_time() -> None:
    ids = Ids()
    ids._next = 2**80 - 1
    assert ids.new(7 * 10**6) == "0000000007" + "0" * 16
