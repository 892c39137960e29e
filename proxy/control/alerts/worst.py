"""The requests that show it: of each group the worst of the last minutes, by their ids only.

Five that missed most, five that failed, and five that were bad for another reason (they took longer than
their ``e2e``), of this minute and of the one before: 64 groups take 0.9 MB at most.
What hangs has not ended: ``stalled`` names the streams in flight that are most overdue, by the last beats of
workers, and none that ended beside them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, get_args

from proxy.control.alerts.notice import IN_FLIGHT, Worst
from proxy.control.settle import GroupKey
from proxy.link import Waiting

Kind = Literal["missed", "failed", "slow"]
ALL_KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
#: So many of each kind.
WORST: Final = 5
_MINUTE: Final = 6  # slots
_GROUPS: Final = 128
_ID: Final = 128  # characters: a client chooses its request id


class Worsts:
    """See the module."""

    def __init__(self) -> None:
        self._kept: dict[tuple[GroupKey, Kind], dict[int, list[Worst]]] = {}

    def add(self, key: GroupKey, slot: int, kind: Kind, worst: Worst) -> None:
        """Note a request."""
        minutes = self._kept.get((key, kind))
        if minutes is None:
            if len(self._kept) >= len(ALL_KINDS) * _GROUPS:
                del self._kept[next(iter(self._kept))]
            minutes = self._kept[(key, kind)] = {}
        minute = slot // _MINUTE
        held = minutes.setdefault(minute, [])
        if len(held) < WORST:
            held.append(worst)
        else:
            least = min(range(WORST), key=lambda at: rank(held[at]))
            if rank(worst) > rank(held[least]):
                held[least] = worst
        for old in [each for each in minutes if not minute - 2 < each <= minute + 2]:
            del minutes[old]

    def of(self, key: GroupKey, slot: int, kind: Kind) -> tuple[Worst, ...]:
        """The worst that ended in the minute of this slot or in the one before, the worst first."""
        minutes = self._kept.get((key, kind), {})
        recent = [
            worst for minute, held in minutes.items() if minute >= slot // _MINUTE - 1 for worst in held
        ]
        return tuple(sorted(recent, key=rank, reverse=True)[:WORST])

    def clear(self) -> None:
        """The clock jumped: nothing that is kept can be placed."""
        self._kept.clear()


def kinds_of(missed: int, failed: int, bad: int) -> list[Kind]:
    """What a request shows, of its ``Tally``."""
    kinds: list[Kind] = []
    if missed:
        kinds.append("missed")
    if failed:
        kinds.append("failed")
    return kinds if kinds or not bad else ["slow"]


def rank(worst: Worst) -> tuple[int, float]:
    """Worse ones are more."""
    return worst.missed or 0, -(1.0 if worst.fluidity is None else worst.fluidity)


def worst_of(
    id: str,
    request_id: str | None,
    trace_id: str | None,
    outcome: str,
    missed: int | None,
    fluidity: float | None,
) -> Worst:
    """With ids of a bounded length."""
    cut = None if request_id is None else request_id[:_ID]
    return Worst(id, cut, trace_id, outcome, missed, None if fluidity is None else round(fluidity, 6))


def worst_waiting(waiting: Waiting) -> Worst:
    """A stream that is still in flight."""
    return worst_of(waiting.id, waiting.request_id, waiting.trace_id, IN_FLIGHT, max(waiting.missed, 0), None)


def worst_first(found: Iterable[Worst]) -> list[Worst]:
    """The worst of them, each once; where some are in flight, they are what it is about."""
    known = {worst.id: worst for worst in found}
    waiting = [worst for worst in known.values() if worst.outcome == IN_FLIGHT]
    return sorted(waiting or known.values(), key=rank, reverse=True)[:WORST]
