"""Requests that are overdue and have not ended: how many of them are an arm's, by what workers tell.

A request in flight is in no metric.  An arm that hangs in one of ten keeps its worst requests out of them for
as long as the timeouts are, and looks as good as the rest.  So what is overdue is counted twice:

overdue     at most so many of the arm's at each of the last ``DOUBT_LOOKS``: with too many no verdict stands
hanging     at least so many of the arm's at each of the last ``SURE_LOOKS``, while one at its backend is
            overdue for as long: the guardrail takes these for bad
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from proxy.link import GroupNow

#: Looks, about one a second.  A hiccup that every stream feels for three seconds is nobody's hang.
DOUBT_LOOKS: Final = 5
SURE_LOOKS: Final = 20
#: For about as long as ``SURE_LOOKS``.  Who waits so long has missed hundreds of the usual deadlines.
HANGS_NS: Final = 20_000_000_000


class Late(NamedTuple):
    """Requests that are overdue now, by backend, and by how much the one that is most."""

    overdue: Mapping[str, int]
    worst_ns: Mapping[str, int]


NOBODY: Final = Late({}, {})


def late_of(groups: Iterable[GroupNow]) -> Late:
    """From the pictures of what is in flight."""
    overdue: dict[str, int] = {}
    worst_ns: dict[str, int] = {}
    for now in groups:
        overdue[now.backend] = overdue.get(now.backend, 0) + now.overdue
        worst_ns[now.backend] = max(worst_ns.get(now.backend, 0), now.worst_overdue_ns)
    return Late(overdue, worst_ns)


class Hanging:
    """One arm's, look by look."""

    def __init__(self) -> None:
        self._most: deque[int] = deque(maxlen=DOUBT_LOOKS)
        self._least: deque[int] = deque(maxlen=SURE_LOOKS)

    def look(self, backend: str, late: Late, in_flight: int, open_: int) -> tuple[int, int]:
        """``overdue`` and ``hanging`` by now, both 0 before there were as many looks.

        ``in_flight``: requests at the backend; ``open_``: the arm's own that have not ended.  Other routes
        may send there, too: what is overdue is the arm's as far as it can be, or as it must be.
        """
        count, others = late.overdue.get(backend, 0), max(in_flight - open_, 0)
        self._most.append(count)
        self._least.append(max(count - others, 0))
        for_long = late.worst_ns.get(backend, 0) >= HANGS_NS and len(self._least) == SURE_LOOKS
        overdue = min(self._most) if len(self._most) == DOUBT_LOOKS else 0
        return min(overdue, open_), min(min(self._least), open_) if for_long else 0
