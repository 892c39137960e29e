"""Settled requests by the time of their end: the book from which any window of the last day is read.

Beside the cumulative ledger, under the same labels.  A request is booked into the slot of its end on the wall
clock; ``scoring.window`` keeps the slots.  Reading all groups over a long window takes longer than an answer
may: what has closed is merged once, group by group, in steps between which the caller may do other work, and
kept; an answer adds only what came since.
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
#: About so many miss-rate curves are computed per group and slot of 10 s, and at most twice as many.
CURVES_A_SLOT: Final = 20
#: What closed is merged anew once it is this old; until then an answer reads what came since beside it.
_FRESH_NS: Final = TEN_NS
#: Older than this nothing merged is used.
_STALE_NS: Final = 3 * TEN_NS
#: As ``scoring.window`` closes its slots, this long after their end.
_GRACE_NS: Final = 2_000_000_000
_KEPT_MOST: Final = 4

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


class _Sample:
    """Of which requests the miss-rate curve is computed: every n-th, n from the slot before."""

    __slots__ = ("seen", "step", "taken", "ten")

    def __init__(self, ten: int) -> None:
        self.ten, self.seen, self.taken, self.step = ten, 0, 0, 1

    def take(self, ten: int) -> bool:
        if ten != self.ten:
            self.step = -(-self.seen // CURVES_A_SLOT) or 1
            self.ten, self.seen, self.taken = ten, 0, 0
        self.seen += 1
        if (self.seen - 1) % self.step or self.taken >= 2 * CURVES_A_SLOT:
            return False
        self.taken += 1
        return True


class WindowBook:
    """See the module.  Times are unix nanoseconds."""

    def __init__(self, now_ns: int) -> None:
        # The ledger's cap has been at the keys: the windows' own never acts.
        self.windows = Windows(GROUP_LIMIT, other=GroupKey(OTHER, OTHER, OTHER))
        self.windows.advance(now_ns)
        self._samples: dict[GroupKey, _Sample] = {}
        self._closed: dict[int, Windowed] = {}  # by the length of the window, the latest asked last

    def advance(self, now_ns: int) -> None:
        """Time went on; about once a second."""
        self.windows.advance(now_ns)

    def add(self, key: GroupKey, settled: Settled) -> Booked:
        """Book a request under the key under which the ledger has it; returns what was booked, and when."""
        at_ns = settled.facts.received_unix_ns + settled.facts.end_ns - settled.facts.received_ns
        curve = None
        if settled.score is not None and settled.score.fluidity is not None:
            sample = self._samples.get(key)
            if sample is None:
                sample = self._samples[key] = _Sample(at_ns // TEN_NS)
            curve = _curve(settled) if sample.take(at_ns // TEN_NS) else None
        booking = booking_of(settled, curve)
        self.windows.add(key, at_ns, booking)
        return Booked(key, at_ns, booking)

    @property
    def keys(self) -> tuple[GroupKey, ...]:
        """The groups that have anything in the last day."""
        return tuple(key for key in self.windows.keys if isinstance(key, GroupKey))

    def prepare(self, window_ns: int, now_ns: int) -> Iterator[None]:
        """Merge what ``read`` needs, one group a step; no step at all where it is there."""
        if not self.has(window_ns, now_ns):
            yield from self.renew(window_ns, now_ns)

    def has(self, window_ns: int, now_ns: int) -> bool:
        """Whether ``read`` answers without merging."""
        kept = self._closed.get(window_ns)
        return kept is not None and 0 <= now_ns - kept.end_ns < _STALE_NS

    def due(self, window_ns: int, now_ns: int) -> bool:
        """Whether it is time to ``renew`` a window, so that the next answer need not wait for it."""
        kept = self._closed.get(window_ns)
        return kept is None or not 0 <= now_ns - _GRACE_NS - kept.end_ns < _FRESH_NS

    def renew(self, window_ns: int, now_ns: int) -> Iterator[None]:
        """Merge what has closed of a window, one group a step."""
        self.advance(now_ns)
        # Both at the edge of a slot: what is read beside it later begins exactly where this ends.
        from_ns = (now_ns - window_ns) // TEN_NS * TEN_NS
        end_ns = max((now_ns - _GRACE_NS) // TEN_NS * TEN_NS, from_ns)
        bounds = from_ns, end_ns
        total = self.windows.view(None, *bounds)
        groups: dict[GroupKey, Slot] = {}
        for key in self.keys:
            yield
            view = self.windows.view((key,), *bounds)
            if view.slot.requests:
                groups[key] = view.slot
        # Where nothing has been kept yet the view is empty, and says nothing of where it begins.
        start_ns = total.start_ns if total.start_ns < total.end_ns else end_ns
        self._closed.pop(window_ns, None)
        self._closed[window_ns] = Windowed(total.slot, groups, start_ns, end_ns)
        while len(self._closed) > _KEPT_MOST:
            del self._closed[next(iter(self._closed))]

    def read(self, window_ns: int, now_ns: int) -> Windowed:
        """Everything that ended in the last ``window_ns``; up to half a minute more at the old end."""
        self.advance(now_ns)
        for _ in self.prepare(window_ns, now_ns):
            pass
        closed = self._closed[window_ns]
        latest = self.windows.view(None, closed.end_ns, now_ns + 1)
        latest.slot.merge(closed.total)
        groups = {}
        for key in dict.fromkeys((*closed.groups, *self.keys)):
            slot = self.windows.view((key,), closed.end_ns, now_ns + 1).slot
            if key in closed.groups:
                slot.merge(closed.groups[key])
            if slot.requests:
                groups[key] = slot
        return Windowed(latest.slot, groups, min(closed.start_ns, now_ns), now_ns)

    def series(self, keys: Iterable[GroupKey] | None, from_ns: int, to_ns: int, step_ns: int) -> list[View]:
        """As ``Windows.series``."""
        return self.windows.series(keys, from_ns, to_ns, step_ns)


def booking_of(settled: Settled, miss_rates: Floats | None = None) -> Booking:
    """A settled request as the slots book it: what the ledger's sketches take."""
    plain = Booking(
        outcome=settled.outcome.value,
        result=settled.result.value,
        duration_ns=settled.duration_ns,
        output_tokens=settled.output_tokens or 0,
        prompt_tokens=settled.prompt_tokens,
        normalized_ns=settled.normalized_ns,
        miss_rates=miss_rates,
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
