"""Idle connections to one address: which of them may carry the next request.

Some servers promise to keep a connection and close it right behind the response (llama.cpp after every
stream).  A request that is written to it in that moment is lost.  So a shelf is on trial until one of its
connections has rested, idle, for ``REST_NS``, and again for ``TRIAL_NS`` after one was closed before that:
while on trial only rested connections are used.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from proxy.relay.upstream import Connection

#: A server that hangs up behind its response has done so within this time.
REST_NS: Final = 100_000_000
TRIAL_NS: Final = 60_000_000_000


class Shelf:
    """Newest last; closed ones are skipped when met.  Every call costs O(1) amortised."""

    __slots__ = ("hung_up_ns", "idlers", "on_trial")

    def __init__(self) -> None:
        self.idlers: deque[Connection] = deque()
        self.on_trial = True  # none of them has shown yet that it stays
        self.hung_up_ns = -TRIAL_NS

    def put(self, connection: Connection) -> None:
        """A connection has just become idle."""
        self.idlers.append(connection)

    def take(self, now_ns: int, keep_alive_ns: int) -> Connection | None:
        """The connection that was used last (on trial: the most rested one), if it is still good."""
        idlers = self.idlers
        while idlers:
            if self.on_trial and not idlers[0].closed and now_ns - idlers[0].idle_since_ns < REST_NS:
                return None
            connection = idlers.popleft() if self.on_trial else idlers.pop()
            if connection.closed:
                continue
            if connection.expired(now_ns, keep_alive_ns) or connection.stale():
                connection.abort()
                continue
            if self.on_trial and now_ns - self.hung_up_ns > TRIAL_NS:
                self.on_trial = False
            return connection
        return None

    def lost(self, connection: Connection, now_ns: int) -> None:
        """An idle connection was closed, and not because we retired it."""
        if now_ns - connection.idle_since_ns < REST_NS:
            self.on_trial, self.hung_up_ns = True, now_ns

    def sweep(self, now_ns: int, keep_alive_ns: int) -> None:
        """Close what has been idle too long, oldest first."""
        idlers = self.idlers
        while idlers and (idlers[0].closed or idlers[0].expired(now_ns, keep_alive_ns)):
            idlers.popleft().abort()

    def close(self) -> None:
        """Close them all."""
        while self.idlers:
            self.idlers.pop().abort()
