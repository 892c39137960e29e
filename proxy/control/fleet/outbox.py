"""What waits for Redis's word that it has it, and what it may ask for again.  Pure; bounded in bytes.

Of each slot the latest bytes.  What was acknowledged stays for about an hour while there is room: a Redis
that comes back empty gets it again.  Where the room runs out acknowledged slots go first, then those of 10 s
that wait, oldest first, then minutes: their requests stand in longer slots still.  Only with an hour's slot
is anything lost, and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from proxy.control.fleet.book import Packed, Sums
from proxy.control.fleet.layout import Grain

#: What an entry costs beside its bytes.
_OVERHEAD: Final = 500
#: Acknowledged tens and minutes are kept so long after their end; hours for as long as Redis keeps them.
_KEPT_S: Final = 3_700
_SHORT_FIRST: Final = (Grain.TEN, Grain.MINUTE, Grain.HOUR)

Place = tuple[Grain, int, int]  # grain, number, generation


class Outbox:
    """See the module.  ``memory_bytes`` is the bound for all of it."""

    def __init__(self, memory_bytes: int) -> None:
        self._most = memory_bytes
        self._waiting: dict[Place, Packed] = {}
        self._kept: dict[Place, tuple[Packed, int]] = {}  # acknowledged, and when
        self._had: dict[Place, None] = {}  # slots that Redis had some of
        self._hours: dict[Place, Sums] = {}  # what Redis has acknowledged of each hour
        self.acknowledged = Sums()
        self.lost = 0  # requests
        self.waiting_bytes = 0
        self.held_bytes = 0

    # ------------------------------------------------------------ what comes and goes

    def put(self, packed: Packed) -> None:
        """A slot as it stands now; it replaces what waited of it before."""
        place = _place(packed)
        self._drop_waiting(place)
        self._drop_kept(place)
        self._wait(place, packed)
        self._shed()

    def waiting(self) -> list[Packed]:
        """All that waits: tens, minutes, hours, each the oldest first.

        Who writes in this order has written the shorter slots of all that an acknowledged hour holds.
        """
        return [self._waiting[place] for place in sorted(self._waiting, key=_order)]

    @property
    def waiting_slots(self) -> int:
        """How many slots wait."""
        return len(self._waiting)

    def acknowledge(self, packed: Packed, at_ns: int) -> bool:
        """Redis has it; ``at_ns``: monotonic.  Whether it had some of this slot before."""
        place = _place(packed)
        again = place in self._had
        self._had[place] = None
        if packed.grain is Grain.HOUR:
            before = self._hours.get(place, Sums())
            self._hours[place] = packed.sums
            self.acknowledged = self.acknowledged.plus(packed.sums).plus(before, -1)
        if self._waiting.get(place) is packed:
            self._drop_waiting(place)
            self._kept[place] = packed, at_ns
            self.held_bytes += _size(packed)
        return again

    def again(self, since_ns: int | None = None) -> int:
        """What was acknowledged (since then) waits again, as far as it is still there; how many slots."""
        found = [place for place, (_, at_ns) in self._kept.items() if since_ns is None or at_ns >= since_ns]
        for place in found:
            packed = self._kept[place][0]
            self._drop_kept(place)
            self._wait(place, packed)
        if since_ns is None:
            self._had.clear()
        return len(found)

    def forget(self, now_s: int) -> None:
        """Let go of what is old; unix seconds by Redis's clock.  Nobody would read what has expired there."""
        for place in [each for each in self._kept if now_s > _kept_until_s(each)]:
            self._drop_kept(place)
        for place in [each for each in self._waiting if now_s > each[0].expires_s(each[1])]:
            self._give_up(place)
        for place in [each for each in self._had if now_s > each[0].expires_s(each[1])]:
            del self._had[place]
        for place in [each for each in self._hours if now_s > each[0].expires_s(each[1])]:
            del self._hours[place]

    # ------------------------------------------------------------ bounds

    def _shed(self) -> None:
        if self.held_bytes <= self._most:
            return
        for place in self._least_first():
            if self.held_bytes <= self._most:
                return
            if place in self._kept:
                self._drop_kept(place)
            else:
                self._give_up(place)

    def _least_first(self) -> Iterator[Place]:
        """What may go, the least needed first; never the latest hour that waits, which is bounded itself."""
        yield from sorted(self._kept, key=_order)
        waiting = sorted(self._waiting, key=_order)
        if waiting and waiting[-1][0] is Grain.HOUR:
            del waiting[-1]
        yield from waiting

    def _give_up(self, place: Place) -> None:
        packed = self._waiting[place]
        self._drop_waiting(place)
        if packed.grain is Grain.HOUR:
            had = self._hours.get(place, Sums())
            self.lost += packed.sums.requests - had.requests

    def _wait(self, place: Place, packed: Packed) -> None:
        self._waiting[place] = packed
        self.waiting_bytes += _size(packed)
        self.held_bytes += _size(packed)

    def _drop_waiting(self, place: Place) -> None:
        packed = self._waiting.pop(place, None)
        if packed is not None:
            self.waiting_bytes -= _size(packed)
            self.held_bytes -= _size(packed)

    def _drop_kept(self, place: Place) -> None:
        found = self._kept.pop(place, None)
        if found is not None:
            self.held_bytes -= _size(found[0])


def _size(packed: Packed) -> int:
    return len(packed.data) + _OVERHEAD


def _place(packed: Packed) -> Place:
    return packed.grain, packed.number, packed.generation


def _order(place: Place) -> tuple[int, int, int]:
    return _SHORT_FIRST.index(place[0]), *place[1:]


def _kept_until_s(place: Place) -> int:
    grain, number, _ = place
    if grain is Grain.HOUR:
        return grain.expires_s(number)
    return (number + 1) * grain.length_ns // 1_000_000_000 + _KEPT_S
