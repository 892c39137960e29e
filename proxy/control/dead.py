"""Which workers are dead, and how many records each of them took along.

A worker counts each record that it begins in memory that outlives it (``proxy.tally``), and numbers it when
it ends.  Up to the last number seen here every one is accounted for: settled, or known to be lost.  So what
will never come of a dead one is ``begun - seen``, once all that it had sent is read: the requests (and copies
for a shadow) that it carried, and those that had ended and still waited in it to be told.

A control process may find the entry of a worker that it never heard of.  What a former one had settled of it
went with that one's sums, the rest with the worker.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from proxy.control.workers import Worker
    from proxy.tally import Entry, Tally

_log = logging.getLogger("legato.link")

#: What a dead worker had written to a connection that nobody accepted yet may wait in the link's socket: all
#: must be read that arrives until so long after its last link ended, or after it was found dead, if it was
#: never heard of.
LINK_NS: Final = 1_000_000_000
UNHEARD_NS: Final = 2_000_000_000


class Loss(NamedTuple):
    """One dead worker.  ``elsewhere``: records that only a former control process settled; ``gone``: those
    that nobody did; ``heard``: it said hello here."""

    entry: Entry
    elsewhere: int
    gone: int
    heard: bool


class Dead:
    """See the module.  Without a ``tally`` nothing is known of anybody."""

    def __init__(self, tally: Tally | None) -> None:
        self._tally = tally
        self._heard: dict[str, Worker] = {}
        self._since_ns: dict[str, int] = {}  # when one was first found dead that was never heard of

    def hello(self, worker: Worker) -> None:
        """It said hello: whatever it does from now on, it has an entry or it has none."""
        if self._tally is not None:
            worker.tallied_at = self._tally.find(worker.worker, worker.incarnation)
            if worker.tallied_at is not None:
                self._heard[worker.incarnation] = worker

    def settled(self, worker: Worker) -> None:
        """All of its records up to ``seen`` are booked."""
        if self._tally is not None and worker.tallied_at is not None:
            self._tally.settled(worker.tallied_at, worker.incarnation, worker.seen)

    def look(self, now_ns: int, read_ns: int, *, last: bool = False) -> list[Loss]:
        """Those that died since the last look and whose every word was read: each is told once.

        ``read_ns``: when all that had arrived was booked.  ``last``: nobody looks again, so nobody waits.
        """
        if self._tally is None:
            return []
        entries = self._tally.entries()
        dead = [entry for entry in entries if entry.dead]
        losses = [self._loss(entry) for entry in dead if last or self._read(entry, now_ns, read_ns)]
        for loss in losses:
            self._tally.counted(loss.entry.at)
            if loss.gone:
                _log.warning(
                    "worker %d (pid %d) is gone; records of requests that went with it: %d",
                    loss.entry.worker,
                    loss.entry.pid,
                    loss.gone,
                )
        still = {entry.incarnation for entry in entries} - {loss.entry.incarnation for loss in losses}
        self._heard = {name: worker for name, worker in self._heard.items() if name in still}
        self._since_ns = {name: ns for name, ns in self._since_ns.items() if name in still}
        return losses

    def _read(self, entry: Entry, now_ns: int, read_ns: int) -> bool:
        """Nothing that it had sent is still on its way."""
        worker = self._heard.get(entry.incarnation)
        if worker is None:
            return read_ns - self._since_ns.setdefault(entry.incarnation, now_ns) >= UNHEARD_NS
        if worker.connected or worker.gone_at_ns is None:
            return False  # its link's end is behind what it had sent
        return read_ns - worker.gone_at_ns >= LINK_NS

    def _loss(self, entry: Entry) -> Loss:
        worker = self._heard.get(entry.incarnation)
        seen = 0 if worker is None else worker.seen
        settled = max(seen, entry.settled)
        return Loss(entry, settled - seen, max(entry.begun - settled, 0), worker is not None)
