"""Settled requests by the time of their end: the book from which any window of the last day is read.

Beside the cumulative ledger, under the same labels.  A request is booked into the slot of its end on the wall
clock; ``scoring.window`` keeps the slots, and what ended since many marks, so that any window takes a few
merges for each group.  Still that is some 20 ms for all: what has closed is read group by group, in steps
between which the caller may do other work; the answer adds what is open, all at one moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from proxy.control.scored import excluded_of, owed_choices
from proxy.control.settle import GroupKey, Settled
from proxy.exporters.catalog import GROUP_LIMIT, OTHER
from scoring.slot import GRID_NS, Booking, Slot
from scoring.trace import gaps, miss_curve
from scoring.window import TEN_NS, View, Windows

#: The longest window.
DAY_NS: Final = 86_400_000_000_000
#: About so many miss-rate curves are computed per group and slot of 10 s; where the rate jumps, some more.
CURVES_A_SLOT: Final = 20
_GOLDEN: Final = 0x9E3779B97F4A7C15  # 2**64 by the golden ratio
_WORD: Final = (1 << 64) - 1
#: What was read for an answer is kept so long, for the next that asks for the same.
_KEPT_NS: Final = 3_000_000_000
#: Of so many windows at most: 2.2 MB each where 64 groups are busy, in the memory that is kept free for it.
_KEPT_MOST: Final = 3

Floats = npt.NDArray[np.float64]


class Windowed(NamedTuple):
    """All groups over [start_ns, end_ns), wall clock; the slots are the caller's."""

    total: Slot
    groups: dict[GroupKey, Slot]
    start_ns: int
    end_ns: int


class Booked(NamedTuple):
    """One request as it was booked; ``at_ns``: its end, wall clock."""

    key: GroupKey
    at_ns: int
    booking: Booking


class _Read(NamedTuple):
    """What closed of a window, and what had closed when it was read (``Windows.version``)."""

    start_ns: int
    made_ns: int
    slots: dict[GroupKey | None, tuple[int | None, Slot]]  # ``None``: of all


class _Sample:
    """Of which requests the miss-rate curve is computed, and for how many each stands.

    A slot's requests are cut into strides; one of each, at a place that changes from one to the next, stands
    for all of it.  Strides double from 1 up to that which would have given the slot before ``CURVES_A_SLOT``,
    so that a quiet slot after a busy one has samples too; past that many they double after every ten.  So
    weights add up to the requests, whatever the rate was and becomes: a slot's last stride, which may end
    before its place or after it, is counted too often as often as not at all.
    """

    __slots__ = ("begun", "drawn", "place", "seen", "step", "stride", "taken", "ten")

    def __init__(self, ten: int) -> None:
        self.ten, self.seen, self.taken, self.step = ten, 0, 0, 1
        self.begun, self.stride, self.place, self.drawn = 0, 1, 1, 0

    def take(self, ten: int) -> int:
        """How many requests the next one stands for; 0: it is not in the sample."""
        if ten != self.ten:
            self.step = -(-self.seen // CURVES_A_SLOT) or 1
            self.ten, self.seen, self.taken = ten, 0, 0
            self._stride(0, 1)
        self.seen += 1
        if self.seen - self.begun > self.stride:
            self._stride(self.begun + self.stride, self._longer())
        if self.seen - self.begun != self.place:
            return 0
        self.taken += 1
        return self.stride

    def _longer(self) -> int:
        if self.stride < self.step:
            return min(2 * self.stride, self.step)
        more = self.taken >= CURVES_A_SLOT and not self.taken % 10
        return 2 * self.stride if more else self.stride

    def _stride(self, begun: int, stride: int) -> None:
        # Places by the golden ratio: as even as they can be, and the same sample of the same requests.
        self.begun, self.stride = begun, stride
        self.drawn = self.drawn + _GOLDEN & _WORD
        self.place = (self.drawn * stride >> 64) + 1


class WindowBook:
    """See the module.  Times are unix nanoseconds."""

    def __init__(self, now_ns: int) -> None:
        # The ledger's cap has been at the keys: the windows' own never acts.
        self.windows = Windows(GROUP_LIMIT, other=GroupKey(OTHER, OTHER, OTHER))
        self.windows.advance(now_ns)
        self._samples: dict[GroupKey, _Sample] = {}
        self._read: dict[int, _Read] = {}  # by the length of the window

    def advance(self, now_ns: int) -> None:
        """Time went on; about once a second."""
        self.windows.advance(now_ns)
        for window_ns in [each for each, kept in self._read.items() if not _fresh(kept, now_ns)]:
            del self._read[window_ns]

    def add(self, key: GroupKey, settled: Settled) -> Booked:
        """Book a request under the key under which the ledger has it; returns what was booked, and when."""
        at_ns = settled.facts.received_unix_ns + settled.facts.end_ns - settled.facts.received_ns
        curve, weight = None, 0
        if settled.score is not None and settled.score.fluidity is not None:
            sample = self._samples.get(key)
            if sample is None:
                sample = self._samples[key] = _Sample(at_ns // TEN_NS)
            weight = sample.take(at_ns // TEN_NS)
            curve = _curve(settled) if weight else None
        booking = booking_of(settled, curve, weight)
        self.windows.add(key, at_ns, booking)
        return Booked(key, at_ns, booking)

    @property
    def keys(self) -> tuple[GroupKey, ...]:
        """The groups that have anything in the last day."""
        return tuple(key for key in self.windows.keys if isinstance(key, GroupKey))

    def prepare(self, window_ns: int, now_ns: int) -> Iterator[None]:
        """Read what closed of a window, one group a step, none where it is there; ``read`` does the rest."""
        self.windows.turn(now_ns)
        start_ns, _ = self.windows.since(now_ns - window_ns)
        kept = self._read.get(window_ns)
        if kept is None or kept.start_ns != start_ns or not _fresh(kept, now_ns):
            kept = self._read[window_ns] = _Read(start_ns, now_ns, {})
            while len(self._read) > _KEPT_MOST:
                del self._read[next(iter(self._read))]
        for key in (None, *self.keys):
            version = self.windows.version(key)
            if key not in kept.slots or kept.slots[key][0] != version:
                kept.slots[key] = version, self.windows.closed_since(key, start_ns)
                yield

    def read(self, window_ns: int, now_ns: int) -> Windowed:
        """Everything that ended in the last ``window_ns``, from the start of a slot on."""
        for _ in self.prepare(window_ns, now_ns):
            pass
        kept = self._read[window_ns]
        slots: dict[GroupKey | None, Slot] = {}
        for key in (None, *self.keys):
            slot = slots[key] = Slot()
            slot.merge(kept.slots[key][1])
            self.windows.open_since(key, kept.start_ns, slot)
        groups = {key: slot for key, slot in slots.items() if key is not None and slot.requests}
        return Windowed(slots[None], groups, min(kept.start_ns, now_ns), now_ns)

    def series(self, keys: Iterable[GroupKey] | None, from_ns: int, to_ns: int, step_ns: int) -> list[View]:
        """As ``Windows.series``."""
        return self.windows.series(keys, from_ns, to_ns, step_ns)


def _fresh(kept: _Read, now_ns: int) -> bool:
    return 0 <= now_ns - kept.made_ns < _KEPT_NS


def booking_of(settled: Settled, miss_rates: Floats | None = None, miss_weight: int = 1) -> Booking:
    """A settled request as the slots book it: what the ledger's sketches take."""
    plain = Booking(
        outcome=settled.outcome.value,
        result=settled.result.value,
        duration_ns=settled.duration_ns,
        output_tokens=settled.output_tokens or 0,
        prompt_tokens=settled.prompt_tokens,
        normalized_ns=settled.normalized_ns,
        miss_rates=miss_rates,
        miss_weight=miss_weight,
    )
    score = settled.score
    if score is None:
        return plain
    gaps_ns = None
    if score.tbt is not None and settled.counted is not None:
        # Between events, as legato_tbt_seconds: the tokens of one event have no time between them.
        gaps_ns, _ = gaps(settled.counted.choices)
    return plain._replace(
        tokens=score.tokens,
        met=score.met,
        missed=score.missed,
        suspect=score.suspect,
        client_blocked=score.client_blocked,
        under_target=score.fluidity is not None and score.fluidity < settled.facts.target,
        ttft_ns=score.ttft_ns,
        tpot_ns=score.tpot_ns,
        longest_gap_ns=None if score.tbt is None else score.tbt.max_ns,
        least_tbt_ns=score.least_tbt_ns,
        gaps_ns=gaps_ns,
    )


def _curve(settled: Settled) -> Floats | None:
    if settled.counted is None:
        return None
    facts = settled.facts
    return miss_curve(
        owed_choices(facts, settled.counted),
        facts.ttft_target_ns,
        GRID_NS,
        end_ns=settled.duration_ns,
        censored=settled.censored,
        excluded=excluded_of(facts),
    )


def by(keys: Iterable[GroupKey], field: str) -> Mapping[str, list[GroupKey]]:
    """The keys that share a ``backend``, ``model`` or ``slo``, by its name, sorted."""
    found: dict[str, list[GroupKey]] = {}
    for key in sorted(keys):
        found.setdefault(getattr(key, field), []).append(key)
    return dict(sorted(found.items()))
