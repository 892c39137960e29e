"""What a finished request says of the backends that it was for, and how often they failed lately.  Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from proxy.link import Facts

_SLOTS: Final = 10

#: Ends that are the server's failure, whatever it had said before.
_FAILED_ENDS: Final = frozenset(
    {
        "truncated",
        "connect_failed",
        "no_response",
        "bad_response",
        "timeout_connect",
        "timeout_first_byte",
        "timeout_idle",
    }
)
#: Ends that say nothing of the server: it was not asked, or not by its fault.
_SILENT_ENDS: Final = frozenset({"pool_full", "refused", "self"})
_OVERLOADED: Final = 503


class Recent:
    """Requests and failures of the last ``window_ns``, and up to a tenth of it more."""

    def __init__(self, window_ns: int) -> None:
        self._slot_ns = max(window_ns // _SLOTS, 1)
        self._slots: deque[list[int]] = deque()  # [number of the slot, requests, failures]

    def add(self, now_ns: int, failed: bool) -> None:
        """One more."""
        number = now_ns // self._slot_ns
        if not self._slots or self._slots[-1][0] < number:
            self._slots.append([number, 0, 0])
            self._forget(number)
        self._slots[-1][1] += 1
        self._slots[-1][2] += failed

    def sums(self, now_ns: int) -> tuple[int, int]:
        """Requests, and how many of them failed."""
        self._forget(now_ns // self._slot_ns)
        return sum(slot[1] for slot in self._slots), sum(slot[2] for slot in self._slots)

    def _forget(self, number: int) -> None:
        while self._slots and self._slots[0][0] < number - _SLOTS:
            self._slots.popleft()


def judged(facts: Facts) -> Iterator[tuple[str, str | None]]:
    """The backends that a request says something of, and how it failed there (``None``: it did not).

    A backend that could not be connected to failed, also where another one stood in for it.
    """
    assignment = facts.assignment
    if assignment is not None and assignment.failed is not None:
        yield assignment.backend, assignment.failed
    if facts.backend is None or facts.end in _SILENT_ENDS:
        return
    if facts.end in _FAILED_ENDS:
        yield facts.backend, facts.error or facts.end
    elif facts.status is not None:  # without one its client left before any answer: that is no failure
        failed = facts.status >= 500 and facts.status != _OVERLOADED
        yield facts.backend, f"status {facts.status}" if failed else None
