"""Which backend of a split a request gets, and the session that it belongs to.  Pure, but for the draw.

A session's key becomes 64 bits (BLAKE2b, keyed by the split's seed), and only they are kept of it.  Each
backend's name and those bits become a number u in (0, 1), evenly spread, and the backend with the least
``-ln(u) / weight`` has the session: weighted rendezvous hashing.  ``-ln(u) / weight`` is exponential with
rate ``weight``, so the least of them is a backend's with the probability of its share (Schindelhauer and
Schomaker, "Weighted distributed hash tables", SPAA 2005).  A weight that rises lowers its own backend's
number and no other: only sessions that it wins move, all of them to it.

All of it is a function of seed, names, weights and key.  ``math.log`` is the one step that platforms may
round differently, in the last bit: that decides less than one key in 10**14.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from hashlib import blake2b
from math import inf, log
from typing import Final

from msgspec.structs import replace

from proxy.link import BUCKETS, Assigned, Assignment, SplitSpec, Table
from proxy.relay.call import Call
from proxy.relay.headers import Fields, find
from proxy.relay.record_tags import Tags
from proxy.relay.visitor import remembering, visitor

#: Bytes of a session's key; a longer one is none.
KEY_MAX: Final = 4096
#: Rows of counts that are kept of what no table has any more; past it the oldest are let go once they were
#: told as they are.
_PAST: Final = 32

_EVEN: Final = 2.0**-53
Peer = tuple[str, int] | None


class Split:
    """One compiled ``SplitSpec``.  ``trusts(address)``: a proxy whose ``X-Forwarded-For`` is believed;
    ``draw()``: evenly spread in [0, 1)."""

    __slots__ = ("_arms", "_draw", "_drawn", "_force", "_hash", "_key", "_names", "_sticky", "_total", "spec")

    def __init__(
        self,
        spec: SplitSpec,
        trusts: Callable[[str], bool] = lambda _: False,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.spec = spec
        self._key = _reader(spec.sticky, trusts)
        self._sticky = spec.sticky is not None
        self._force = None if spec.force is None else spec.force.encode()
        self._draw = draw
        seed = blake2b(spec.seed.encode(), digest_size=32, person=b"legato.seed").digest()
        self._hash = blake2b(digest_size=8, key=seed, person=b"legato.session")
        self._names = {name.encode(): name for name, _ in spec.arms}
        self._arms = [
            (name, weight, blake2b(name.encode() + b"\0", digest_size=8, key=seed, person=b"legato.arm"))
            for name, weight in sorted(spec.arms)
            if weight > 0
        ]
        self._total = sum(weight for _, weight, _ in self._arms)
        self._drawn = {
            by: {name: Assignment(spec.name, name, by, epoch=spec.epoch) for name, _ in spec.arms}
            for by in ("draw", "no_key", "forced")
        }

    @property
    def keyed(self) -> bool:
        """Its sessions are told by a key of the body."""
        return self.spec.sticky is not None and self.spec.sticky[0] == "field"

    def assign(self, call: Call, fields: Fields, peer: Peer = None) -> Assignment:
        """The backend for a request, and how it was found."""
        if self._force is not None and (value := find(fields, self._force)) is not None:
            name = self._names.get(value.strip())
            if name is not None:
                return self._drawn["forced"][name]
        if not self._sticky:
            return self._drawn["draw"][self._drawn_arm(())]
        key = self._key(call, fields, peer)
        epoch = self.spec.epoch
        if not key or len(key) > KEY_MAX:
            drawn = self._drawn["no_key"][self._drawn_arm(())]
            return drawn if not epoch else replace(drawn, bucket=int(self._draw() * BUCKETS))
        session = self.session(key)
        # The arm is by a hash of the session's bits: they themselves say nothing of it.
        return Assignment(
            self.spec.name, self.arm(session), "session", session, None, epoch, session % BUCKETS
        )

    def session(self, key: bytes) -> int:
        """64 bits that stand for a session's key."""
        hashed = self._hash.copy()
        hashed.update(key)
        return int.from_bytes(hashed.digest(), "big")

    def arm(self, session: int, without: tuple[str, ...] = ()) -> str:
        """The backend of a session, of those that are not in ``without``; ``""``: none is left."""
        told = session.to_bytes(8, "big")
        best, least = "", inf
        for name, weight, mix in self._arms:
            if name in without:
                continue
            mixed = mix.copy()
            mixed.update(told)
            even = ((int.from_bytes(mixed.digest(), "big") >> 11) + 0.5) * _EVEN
            number = -log(even) / weight
            if number < least:
                best, least = name, number
        return best

    def instead(self, assignment: Assignment, tried: tuple[str, ...]) -> str | None:
        """Where a request goes that none of ``tried`` could be connected to; ``None``: that is its end.

        Nobody else than who was asked for answers a forced request.
        """
        if not self.spec.failover or assignment.by == "forced":
            return None
        if assignment.session is not None:
            return self.arm(assignment.session, tried) or None
        return self._drawn_arm(tried) or None

    def _drawn_arm(self, without: tuple[str, ...]) -> str:
        total = self._total
        if without:
            total = sum(weight for name, weight, _ in self._arms if name not in without)
        left = self._draw() * total
        last = ""
        for name, weight, _ in self._arms:
            if name in without:
                continue
            last = name
            left -= weight
            if left < 0:
                break
        return last


_Reader = Callable[[Call, Fields, Peer], bytes | None]


def _reader(sticky: tuple[str, str] | None, trusts: Callable[[str], bool]) -> _Reader:
    """What reads the session's key of a request."""
    if sticky is None:
        return lambda call, fields, peer: None
    kind, name = sticky
    wanted = name.encode()
    if kind == "header":
        return lambda call, fields, peer: (find(fields, wanted) or b"").strip()
    if kind == "cookie":
        return lambda call, fields, peer: _cookie(fields, wanted)
    if kind == "field":
        return lambda call, fields, peer: (call.keys or {}).get(name)
    return lambda call, fields, peer: visitor(fields, peer, trusts)


def _cookie(fields: Fields, wanted: bytes) -> bytes | None:
    """The first cookie of that name (RFC 6265: names differ by case)."""
    for name, value in fields:
        if len(name) == 6 and name.lower() == b"cookie" and wanted in value:
            for pair in value.split(b";"):
                key, _, held = pair.partition(b"=")
                if key.strip() == wanted:
                    return held.strip()
    return None


def splits_of(table: Table, draw: Callable[[], float] = random.random) -> list[Split | None]:
    """Each route's split, compiled."""
    trusts = remembering(Tags(table).trusts)
    return [None if route.split is None else Split(route.split, trusts, draw) for route in table.routes]


class Assignments:
    """What was assigned since the worker's start; it outlives tables.  Exact: counted as it is decided."""

    def __init__(self) -> None:
        self._counted: dict[tuple[str, str, str], Assigned] = {}
        self._told: dict[tuple[str, str, str], int] = {}  # how many requests of each the last beat told
        self._gone: dict[tuple[str, str, str], Assigned] = {}  # let go since: it counts on if it comes back

    def renew(self, table: Table) -> None:
        """A table is taken: what it may assign is counted, from 0 where it is new."""
        present: set[tuple[str, str, str]] = set()
        for route in table.routes:
            split = route.split
            if split is not None:
                in_buckets = bool(split.epoch) and split.sticky is not None
                for name, _ in split.arms:
                    key = (split.name, name, split.epoch)
                    present.add(key)
                    row = self._counted.pop(key, None) or self._begin(key)
                    if in_buckets and not row.buckets:
                        row.buckets = [0] * BUCKETS
                    self._counted[key] = row  # last, so that the oldest stand first
        past = [key for key in self._counted if key not in present]
        told = [key for key in past if _all(self._counted[key]) == self._told.get(key, 0)]
        for key in told[: max(len(past) - _PAST, 0)]:
            self._gone[key] = self._counted.pop(key)

    def add(self, assignment: Assignment) -> None:
        """One more."""
        key = (assignment.split, assignment.backend, assignment.epoch)
        row = self._counted.get(key)
        if row is None:  # of a table that was left behind long ago
            row = self._counted[key] = self._begin(key)
        by = assignment.by
        if by == "session":
            row.session += 1
        elif by == "draw":
            row.draw += 1
        elif by == "forced":
            row.forced += 1
            return
        else:
            row.no_key += 1
        if row.buckets:
            row.buckets[assignment.bucket] += 1

    def _begin(self, key: tuple[str, str, str]) -> Assigned:
        gone = self._gone.pop(key, None)
        return Assigned(*key) if gone is None else gone

    def told(self) -> list[Assigned]:
        """For a beat, which is sent: what is not in it any more begins at 0 should it come back."""
        self._gone.clear()
        self._told = {key: _all(row) for key, row in self._counted.items()}
        return list(self._counted.values())


def _all(row: Assigned) -> int:
    return row.session + row.draw + row.no_key + row.forced
