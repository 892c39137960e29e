"""What the rules would have said of recorded traffic: trace lines through the same slots, rules and life.

``add`` takes the lines in any order (a trace has them by their ends), ``run`` goes through the slots by the
traces' own clock.  Streams in flight are told by their beginnings, arrivals and ends, so that ``stalled``
judges what it would have seen.  Memory: some 300 bytes for each group and 10 s with traffic, a month of one
group some 80 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta, Struct, structs

from proxy.control.alerts.judge import Judge, Verdict
from proxy.control.alerts.life import Alert, Life, Said
from proxy.control.alerts.notice import Worst
from proxy.control.alerts.rings import (
    AWAITED,
    BAD,
    FAILED,
    MISSED,
    OVERDUE,
    SLOT_NS,
    SLOT_S,
    TOKENS,
    Book,
    Tally,
    tally_of,
)
from proxy.control.alerts.rules import Rules
from proxy.control.alerts.worst import ALL_KINDS, WORST, Kind, kinds_of, rank, worst_of
from proxy.control.labels import GroupCap
from proxy.control.settle import NONE, GroupKey
from proxy.link import Match, SloSpec
from proxy.settings.alerts import Alerts as Settings
from scoring.fluidity import FluidityScorer
from scoring.outcome import Outcome, slo_result
from scoring.score import StreamScore, without_deadlines

#: What a trace cannot show, for whoever reads the result.
NOT_SEEN: Final = (
    "requests that were not streamed, or not measured, are in no trace: errors and burn_rate see less",
    "drift, backend_down, experiment and proxy are not judged: a trace says nothing of them",
    "what was rotated away is missing: its minutes look calm",
    "deadlines are those of each line: what a configuration says of ttft and tbt by now is not applied",
)
_WITHOUT_CONFIG: Final = (
    "without --config nobody knows of an e2e, nor of SLOs that page nobody (learned: live)"
)
_SHOWN: Final = 5  # names
#: After so many slots without traffic everything is over (15 minutes, and what it takes to resolve).
_QUIET: Final = 130
_HOLDS: Final = 10_000  # alerts that are kept

_Ns = Annotated[int, Meta(ge=0, le=2**62)]
#: A day: each slot of a stream is looked at, and no request lasts longer.
_Length = Annotated[int, Meta(ge=0, le=86_400 * 10**9)]
_Event = tuple[_Length, Annotated[int, Meta(ge=0, le=2**24)]]


class Placed(Struct, frozen=True):
    """What a trace line says beside its score: when, of whom, and each arrival."""

    t0_unix_ns: Annotated[int, Meta(ge=0, le=2**62)]
    end_ns: _Length | None = None
    id: str | None = None
    backend: str | None = None
    model: str | None = None
    slo: str = "default"
    outcome: Outcome = Outcome.COMPLETED
    target: float = 0.9
    ttft_deadline_ns: _Ns = 0
    tbt_deadline_ns: Annotated[int, Meta(ge=1, le=2**62)] = 1
    events: list[_Event] = []
    choices: list[list[_Event]] = []
    finished: list[bool] = []
    duration_only: bool = False

    @property
    def lanes(self) -> Sequence[list[_Event]]:
        """The arrivals of each choice."""
        return self.choices or [self.events]

    @property
    def length_ns(self) -> int:
        """From t = 0 to its end."""
        if self.end_ns is not None:
            return self.end_ns
        return max((lane[-1][0] for lane in self.lanes if lane), default=0)


placed: Final = msgspec.json.Decoder(Placed).decode


@dataclass
class Backtest:
    """See the module.  ``known``: SLOs by name, as configured; ``None``: what lines say is all there is."""

    known: Mapping[str, SloSpec] | None = None
    cap: GroupCap = field(default_factory=GroupCap)
    requests: int = 0
    _slots: dict[int, dict[GroupKey, list[int]]] = field(default_factory=dict)
    _worst: dict[tuple[int, GroupKey, Kind], list[Worst]] = field(default_factory=dict)

    def add(self, line: Placed, score: StreamScore) -> None:
        """One request, with its score by the deadlines of its line."""
        self.requests += 1
        key = self.cap.admit(GroupKey(line.backend or NONE, line.model or NONE, line.slo))
        end_ns = line.t0_unix_ns + line.length_ns
        self._settle(key, line, score, end_ns // SLOT_NS)
        first = line.t0_unix_ns // SLOT_NS
        for slot in range(first, end_ns // SLOT_NS):
            self._look(key, line, slot)
        at_ns = np.array([at for lane in line.lanes for at, _ in lane], dtype=np.int64)
        tokens = np.array([count for lane in line.lanes for _, count in lane], dtype=np.int64)
        if len(at_ns):
            slots, where = np.unique((at_ns + line.t0_unix_ns) // SLOT_NS, return_inverse=True)
            sums = np.bincount(where, weights=tokens)
            for slot, count in zip(slots.tolist(), sums.tolist(), strict=True):
                self._row(slot, key)[TOKENS] += round(count * 1_000 / SLOT_S)

    def _settle(self, key: GroupKey, line: Placed, score: StreamScore, slot: int) -> None:
        slo = (self.known or {}).get(line.slo)
        target = line.target if slo is None else slo.target
        e2e_ns = None if slo is None else slo.e2e_ns
        if line.duration_only:  # nothing else was promised; where nobody says how long, it took no longer
            target, e2e_ns = 0.0, line.length_ns if e2e_ns is None else e2e_ns
        left = line.outcome is Outcome.CLIENT_CANCELLED and target > 0  # else nothing is overdue: ``settle``
        if slo is not None and slo.duration_only:
            score = without_deadlines(score)
        result, _ = slo_result(
            outcome=line.outcome,
            streamed=True,
            fluidity=score.fluidity,
            target=target,
            duration_ns=line.length_ns,
            e2e_ns=e2e_ns,
            overdue_at_end=left and any(self._overdue(line, None)),
            measured=True,
        )
        tally = tally_of(line.outcome, result, score.fluidity, score.missed)
        row = self._row(slot, key)
        for at, count in enumerate(tally):
            row[at] += count
        for kind in kinds_of(tally[MISSED], tally[FAILED], tally[BAD]):
            one = worst_of(line.id or "", None, None, line.outcome.value, score.missed, score.fluidity)
            held = self._worst.setdefault((slot // 6, key, kind), [])
            held.append(one)
            held.sort(key=rank, reverse=True)
            del held[WORST:]

    def _look(self, key: GroupKey, line: Placed, slot: int) -> None:
        """The stream as it was in flight at the end of a slot."""
        row = self._row(slot, key)
        at_ns = (slot + 1) * SLOT_NS - line.t0_unix_ns
        slo = (self.known or {}).get(line.slo)
        if line.duration_only or (slo is not None and slo.duration_only):
            # As in ``relay/flight.py``: of its tokens nothing is promised, and maybe of its end nobody says.
            states = [] if slo is None or slo.e2e_ns is None else [at_ns > slo.e2e_ns]
        else:
            states = list(self._overdue(line, at_ns))
        row[AWAITED] += bool(states)
        row[OVERDUE] += any(states)

    @staticmethod
    def _overdue(line: Placed, at_ns: int | None) -> Iterator[bool]:
        """Of each choice whose next token is awaited then (``None``: at the end): whether it is overdue."""
        now_ns = line.length_ns if at_ns is None else at_ns
        for index, lane in enumerate(line.lanes):
            scorer = FluidityScorer(line.ttft_deadline_ns, line.tbt_deadline_ns)
            seen = 0
            for arrived_ns, tokens in lane:
                if arrived_ns > now_ns:
                    break
                scorer.arrive(arrived_ns, tokens)
                seen += 1
            whole = line.outcome is Outcome.COMPLETED or (index < len(line.finished) and line.finished[index])
            if seen < len(lane) or not whole:
                yield now_ns > scorer.due_ns

    def _row(self, slot: int, key: GroupKey) -> list[int]:
        return self._slots.setdefault(slot, {}).setdefault(key, [0] * len(Tally._fields))

    # ------------------------------------------------------------ judging

    @property
    def span_ns(self) -> tuple[int, int]:
        """From the first slot to the end of the last; zeros without any request."""
        if not self._slots:
            return 0, 0
        return min(self._slots) * SLOT_NS, (max(self._slots) + 1) * SLOT_NS

    @property
    def slos(self) -> set[str]:
        """The SLOs that the lines name."""
        return {key.slo for groups in self._slots.values() for key in groups}

    @property
    def not_seen(self) -> list[str]:
        """What the result says nothing of, in sentences."""
        if self.known is None:
            return [*NOT_SEEN, _WITHOUT_CONFIG]
        strange = sorted(self.slos - self.known.keys())
        if not strange:
            return list(NOT_SEEN)
        names = ", ".join(strange[:_SHOWN]) + (" and others" if len(strange) > _SHOWN else "")
        return [
            *NOT_SEEN,
            f"the configuration has no SLO {names}: judged without an e2e, by its lines' target",
        ]

    def run(
        self,
        settings: Settings,
        objective: float | None = None,
        advance: Callable[[int], None] = lambda slots: None,
    ) -> list[Alert]:
        """Every alert that would have fired, in order; what would have been told has a ``number``.

        ``objective``: of all SLOs, whatever was configured.  ``advance`` is told of slots that were judged.
        """
        book, judge = Book(), Judge()
        life = Life()
        life.history = type(life.history)(maxlen=_HOLDS)
        specs = [(self.known or {}).get(name) or _unknown(name) for name in sorted(self.slos)]
        if objective is not None:
            specs = [structs.replace(spec, objective=objective) for spec in specs]
        rules = Rules.of(settings, specs)
        for slot in self._times():
            book.advance(slot)
            tallies = {key: Tally(*row) for key, row in self._slots.get(slot, {}).items()}
            if tallies:
                book.replace(slot, tallies)
            now = slot
            life.step(
                judge.judge(book, rules, slot, life.fires),
                (slot + 1) * SLOT_NS,
                lambda verdict, now=now: self._worst_of(verdict, now),  # type: ignore[misc]
            )
            for message in life.due((slot + 1) * SLOT_NS, 0, Said()):
                life.told(message, (slot + 1) * SLOT_NS)
            advance(1)
        return list(life.history)

    def _times(self) -> Iterator[int]:
        """The slots to be judged: those with traffic, and the quiet ones after each."""
        known = sorted(self._slots)
        for at, slot in enumerate(known):
            yield slot
            following = known[at + 1] if at + 1 < len(known) else slot + _QUIET
            yield from range(slot + 1, min(following, slot + _QUIET))

    def _worst_of(self, verdict: Verdict, slot: int) -> tuple[Worst, ...]:
        wanted = {name: value for name, value in verdict.labels if name in GroupKey._fields}
        kinds = (verdict.kind,) if verdict.group is not None else ALL_KINDS
        keys = [verdict.group] if verdict.group is not None else self._groups(wanted)
        found = {
            one.id: one
            for minute in (slot // 6 - 1, slot // 6)
            for key in keys
            for kind in kinds
            for one in self._worst.get((minute, key, kind), [])
        }
        return tuple(sorted(found.values(), key=rank, reverse=True)[:WORST])

    def _groups(self, wanted: dict[str, str]) -> list[GroupKey]:
        keys = {key for _, key, _ in self._worst}
        return [key for key in keys if all(getattr(key, name) == value for name, value in wanted.items())]


def _unknown(name: str) -> SloSpec:
    """An SLO that lines name and no configuration: the usual objective, and it pages."""
    return SloSpec(name, Match(), ((0, 1),), 1)
