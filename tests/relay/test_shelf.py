"""Which idle connection is used: the newest of a server that keeps them, only rested ones of any other."""

from __future__ import annotations

from typing import Any

from proxy.relay.shelf import REST_NS, TRIAL_NS, Shelf

KEEP_ALIVE_NS = 4_000_000_000
MS = 1_000_000


class Idle:
    """What a shelf asks of a connection."""

    def __init__(self, since_ns: int, *, stale: bool = False) -> None:
        self.idle_since_ns = since_ns
        self.closed = False
        self._stale = stale

    def expired(self, now_ns: int, keep_alive_ns: int) -> bool:
        return now_ns - self.idle_since_ns >= keep_alive_ns

    def stale(self) -> bool:
        return self._stale

    def abort(self) -> None:
        self.closed = True


def shelf_of(*connections: Any) -> Shelf:
    shelf = Shelf()
    for connection in connections:
        shelf.put(connection)
    return shelf


def trusted(*connections: Any) -> Shelf:
    shelf = shelf_of(*connections)
    shelf.on_trial = False
    return shelf


def test_at_first_only_a_rested_connection_is_used() -> None:
    connection: Any = Idle(0)
    shelf = shelf_of(connection)
    assert shelf.take(REST_NS - 1, KEEP_ALIVE_NS) is None
    assert shelf.take(REST_NS, KEEP_ALIVE_NS) is connection


def test_one_that_rested_earns_trust_and_then_the_newest_is_used() -> None:
    old: Any = Idle(0)
    middle: Any = Idle(REST_NS)
    new: Any = Idle(REST_NS + 1)
    shelf = shelf_of(old, middle, new)
    assert shelf.take(REST_NS + 2, KEEP_ALIVE_NS) is old
    assert shelf.take(REST_NS + 2, KEEP_ALIVE_NS) is new
    assert shelf.take(REST_NS + 2, KEEP_ALIVE_NS) is middle
    assert shelf.take(REST_NS + 2, KEEP_ALIVE_NS) is None


def test_a_server_that_hangs_up_is_on_trial_for_a_while() -> None:
    lost: Any = Idle(0)
    shelf = trusted()
    shelf.lost(lost, REST_NS - 1)
    rested: Any = Idle(REST_NS)
    again: Any = Idle(2 * REST_NS)
    late: Any = Idle(TRIAL_NS)
    for connection in (rested, again, late):
        shelf.put(connection)
    assert shelf.take(2 * REST_NS, KEEP_ALIVE_NS) is rested
    assert shelf.take(2 * REST_NS, KEEP_ALIVE_NS) is None  # one that rested is no proof so soon
    assert shelf.take(3 * REST_NS, KEEP_ALIVE_NS) is again
    assert shelf.on_trial
    assert shelf.take(TRIAL_NS + REST_NS, KEEP_ALIVE_NS) is late
    assert not shelf.on_trial


def test_one_that_was_closed_after_its_rest_proves_nothing() -> None:
    closed: Any = Idle(0)
    shelf = trusted()
    shelf.lost(closed, REST_NS)
    assert not shelf.on_trial


def test_closed_stale_and_expired_ones_are_never_used() -> None:
    closed, stale, expired = Idle(5000 * MS), Idle(5000 * MS, stale=True), Idle(0)
    closed.closed = True
    good: Any = Idle(5001 * MS)
    shelf = trusted(good, expired, stale, closed)
    assert shelf.take(5002 * MS, KEEP_ALIVE_NS) is good
    assert stale.closed
    assert expired.closed


def test_a_sweep_closes_what_was_idle_too_long() -> None:
    old, young = Idle(0), Idle(1000 * MS)
    shelf = shelf_of(old, young)
    shelf.sweep(KEEP_ALIVE_NS, KEEP_ALIVE_NS)
    assert old.closed
    assert not young.closed
    shelf.close()
    assert young.closed
