"""What waits for one notifier: in which order it is tried, when again, and when it is given up.

Pure: the time is an argument.  Messages about different alerts overtake each other, so that one that is
refused again and again holds up no other; messages about the same alert never do: "resolved" is told after
"firing".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from proxy.control.alerts.notice import Message

_S: Final = 1_000_000_000
#: So many messages wait at most; one more, and the oldest is given up.
ROOM: Final = 256
#: The wait after the first failure; doubled after each further one, up to the last.
FIRST_WAIT_NS: Final = 1 * _S
MOST_WAIT_NS: Final = 60 * _S
#: A receiver may ask for this much patience.
MOST_ASKED_NS: Final = 300 * _S
#: From the moment that a message came until it is given up, if what it tells is over by then.
PATIENCE_NS: Final = 1_800 * _S


@dataclass(slots=True, eq=False)
class Waiting:
    """One message; times are monotonic nanoseconds."""

    message: Message
    keys: frozenset[str]
    came_ns: int
    due_ns: int
    failures: int = 0


class Backlog:
    """The messages that wait, the oldest first.  ``jitter()`` gives a number from 0 to 1."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._waiting: list[Waiting] = []
        self._trying: Waiting | None = None
        self.not_before_ns = 0  # the receiver asked to be left alone until then

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, message: Message, now_ns: int) -> Message | None:
        """Append one.  What had to go for it, if anything: the oldest that is not being tried just now."""
        keys = frozenset(notice.key for notice in message.notices)
        self._waiting.append(Waiting(message, keys, now_ns, now_ns))
        if len(self._waiting) <= ROOM:
            return None
        oldest = next(each for each in self._waiting if each is not self._trying)
        self._waiting.remove(oldest)
        return oldest.message

    @property
    def refused_since_ns(self) -> int | None:
        """When the oldest message came that was tried in vain and waits."""
        return min((each.came_ns for each in self._waiting if each.failures), default=None)

    def first(self) -> Waiting | None:
        """The one whose turn is next, by when it is due; never one with an older one about the same alert."""
        held: set[str] = set()
        found: Waiting | None = None
        for each in self._waiting:
            free = held.isdisjoint(each.keys)
            held |= each.keys
            if free and (found is None or each.due_ns < found.due_ns):
                found = each
        return found

    def due_ns(self, waiting: Waiting) -> int:
        """When it may be tried."""
        return max(waiting.due_ns, self.not_before_ns)

    def trying(self, waiting: Waiting) -> None:
        """It is on its way: it stays until ``done`` or ``failed``."""
        self._trying = waiting

    def done(self, waiting: Waiting) -> None:
        """It is told, or given up.  Whoever took one may take the others too: they are due at once."""
        self._trying = None
        self._waiting.remove(waiting)

    def reachable(self, now_ns: int) -> None:
        """The receiver took something: what waits need not wait longer."""
        for each in self._waiting:
            each.due_ns = min(each.due_ns, now_ns)

    def failed(self, waiting: Waiting, asked_ns: int | None, now_ns: int, *, lasts: bool = False) -> bool:
        """An attempt failed; whether another follows.

        ``asked_ns``: the patience that was asked for; ``lasts``: what it tells goes on: it is not given
        up however long it waits.
        """
        self._trying = None
        waiting.failures += 1
        base_ns = min(FIRST_WAIT_NS << min(waiting.failures - 1, 16), MOST_WAIT_NS)
        wait_ns = int(base_ns * (0.5 + 0.5 * self._jitter()))
        if asked_ns is not None:
            self.not_before_ns = now_ns + min(asked_ns, MOST_ASKED_NS)
        waiting.due_ns = now_ns + wait_ns
        if lasts or self.due_ns(waiting) - waiting.came_ns <= PATIENCE_NS:
            return True
        self._waiting.remove(waiting)
        return False

    def take_all(self) -> list[Waiting]:
        """Everything that waits, in order; nothing waits any more."""
        taken, self._waiting, self._trying = self._waiting, [], None
        return taken
