"""What workers assigned, added up as their beats come: exact over restarts, reconnections and rows that go.

A beat counts from its worker's start, so what it says more than that worker's beat before is new.  Of a
worker that is older than this control process the first beat is only where counting begins.  A row that is
no more in a beat was let go there, and begins at 0 should it come back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from proxy.link import BUCKETS, Assigned

Ints = npt.NDArray[np.int64]
#: Split, backend, epoch.
Key = tuple[str, str, str]

#: So many keys are remembered, those that changed last: 4 MB where all are in buckets.
KEYS_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests of one key by how they were assigned (``Assignment.by``).

    ``buckets``: of ``session + no_key``, int64 of shape (``BUCKETS``,); ``None`` where there are none.  Never
    written to.
    """

    session: int = 0
    draw: int = 0
    no_key: int = 0
    forced: int = 0
    buckets: Ints | None = None

    @property
    def assigned(self) -> int:
        """Requests that the split decided."""
        return self.session + self.draw + self.no_key

    def plus(self, more: Counts, sign: int = 1) -> Counts:
        """The sum; with ``sign`` -1 the difference."""
        buckets = self.buckets
        if more.buckets is not None:
            buckets = sign * more.buckets if buckets is None else buckets + sign * more.buckets
        return Counts(
            self.session + sign * more.session,
            self.draw + sign * more.draw,
            self.no_key + sign * more.no_key,
            self.forced + sign * more.forced,
            buckets,
        )


ZERO: Final = Counts()


class WorkerRows:
    """What one incarnation of a worker said last; ``older``: it was there before this control process."""

    __slots__ = ("_older", "_rows")

    def __init__(self, older: bool) -> None:
        self._older = older
        self._rows: dict[Key, tuple[Assigned, Counts]] = {}

    def news(self, rows: Iterable[Assigned]) -> dict[Key, Counts]:
        """What a beat tells that the one before did not."""
        out: dict[Key, Counts] = {}
        held: dict[Key, tuple[Assigned, Counts]] = {}
        for row in rows:
            key = (row.split, row.backend, row.epoch)
            before, known = self._rows.get(key, (None, ZERO))
            if before is not None and _same(row, before):
                held[key] = (before, known)
                continue
            now = _counts(row)
            held[key] = (_bare(row), now)
            if now.assigned + now.forced < known.assigned + known.forced:
                known = ZERO  # it was let go and came back between two beats
            out[key] = now.plus(known, -1)
        self._rows = held
        if self._older:
            self._older = False
            return {}
        return out


class AssignedBook:
    """All that was assigned since this control process began, by ``Key``."""

    def __init__(self) -> None:
        self._totals: dict[Key, Counts] = {}

    def add(self, news: Mapping[Key, Counts]) -> None:
        """More of it."""
        for key, more in news.items():
            total = self._totals.pop(key, ZERO).plus(more)
            self._totals[key] = total  # the latest last
        while len(self._totals) > KEYS_MAX:
            del self._totals[next(iter(self._totals))]

    def totals(self) -> dict[Key, Counts]:
        """A picture of all."""
        return dict(self._totals)


def _same(row: Assigned, before: Assigned) -> bool:
    """Whether nothing was assigned since: its buckets then need no look."""
    return (row.session, row.draw, row.no_key, row.forced) == (
        before.session,
        before.draw,
        before.no_key,
        before.forced,
    )


def _bare(row: Assigned) -> Assigned:
    return Assigned(row.split, row.backend, row.epoch, row.session, row.draw, row.no_key, row.forced)


def _counts(row: Assigned) -> Counts:
    buckets: Ints | None = None
    if len(row.buckets) == BUCKETS:
        buckets = np.array(row.buckets, dtype=np.int64)
    return Counts(row.session, row.draw, row.no_key, row.forced, buckets)
