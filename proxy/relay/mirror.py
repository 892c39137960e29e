"""Copies of requests for a shadow backend: measured, thrown away, and never in a request's way.

When a request was written upstream (its t = 0), ``Mirrors.consider`` decides, in O(1), whether a copy goes to
the route's shadow; if so the copy (shadow.py) begins in a turn of the loop of its own.

Copies are what is let go first: whenever the worker is busy, late, draining, short of memory or behind with
telling control, none begins, and those in flight are cut when it sheds measuring.  Each that was drawn and
not begun is counted; each that was begun ends as facts.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from proxy.relay.facts import facts_of_copy
from proxy.relay.pool import Pool
from proxy.relay.shadow import Copy
from proxy.tasks import report

if TYPE_CHECKING:
    from proxy.link import MirrorSpec
    from proxy.relay.exchange import Exchange
    from proxy.relay.worker import Worker

#: The loop's mean lag over the last second, and its lag at the moment, above which no copy begins.  (The
#: mean that sheds measuring of users' requests is 25 ms.)
_BUSY_NS: Final = 10_000_000
_LATE_NS: Final = 25_000_000
#: After a connect that failed no copies for so long; doubled with each, up to the most.
_PAUSE_NS: Final = 1_000_000_000
_PAUSE_MOST_NS: Final = 30_000_000_000


class Breaker:
    """Whether a shadow may be tried: after a connect that failed, one copy tries, and later each time."""

    __slots__ = ("_pause_ns", "_trying", "_until_ns")

    def __init__(self) -> None:
        self._pause_ns = 0  # 0: it can be connected to, as far as we know
        self._until_ns = 0
        self._trying = False

    def lets(self, now_ns: int) -> bool:
        """Whether a copy may begin now; of one that does, ``worked``, ``failed`` or ``over`` must follow."""
        if not self._pause_ns:
            return True
        if self._trying or now_ns < self._until_ns:
            return False
        self._trying = True
        return True

    def worked(self) -> None:
        """A connection is there."""
        self._pause_ns, self._trying = 0, False

    def failed(self, now_ns: int) -> None:
        """A connect failed; those that were on their way at the same time count once."""
        self._trying = False
        if now_ns >= self._until_ns:
            self._pause_ns = min(max(2 * self._pause_ns, _PAUSE_NS), _PAUSE_MOST_NS)
            self._until_ns = now_ns + self._pause_ns

    def over(self) -> None:
        """The trial was given up and tells nothing."""
        self._trying = False


class Mirrors:
    """The copies of one worker.  ``draw()``: evenly spread in [0, 1)."""

    def __init__(self, worker: Worker, draw: Callable[[], float] = random.random) -> None:
        self.dropped: Counter[str] = Counter()  # shadow -> drawn and not begun, since the worker's start
        self.copies: set[Copy] = set()
        self._worker = worker
        self._draw = draw
        self._flying: Counter[str] = Counter()
        self._breakers: dict[str, Breaker] = {}
        self._busy = False

    # ------------------------------------------------------------------ the request's side

    def consider(self, exchange: Exchange, at_ns: int) -> None:
        """``exchange`` was just written upstream, its body is still held: copy it, or not.  Never raises."""
        spec = exchange.arm.mirror
        worker = self._worker
        if spec is None or not worker.measuring or (spec.ratio < 1.0 and self._draw() >= spec.ratio):
            return
        try:
            pool = worker.pools.get(spec.backend)
            if not isinstance(pool, Pool) or not self._may(spec, exchange, pool, at_ns):
                self.dropped[spec.backend] += 1
                return
            copy = Copy(self, worker, spec, pool, exchange)
            self.copies.add(copy)
            worker.begun.count()
            self._flying[spec.backend] += 1
            exchange.copied = spec.backend
            worker.loop.call_soon(copy.begin, exchange)
        except Exception as error:  # whatever is wrong with a copy must not reach the request
            report("a copy", error)

    def _may(self, spec: MirrorSpec, exchange: Exchange, pool: Pool, at_ns: int) -> bool:
        worker, client = self._worker, exchange.client
        if self._busy or worker.shedding or worker.draining or worker.lag.late_ns(at_ns) > _LATE_NS:
            return False
        if client.streaming or not client.complete or client.body_size > spec.body_limit:
            return False
        if worker.link.behind or 2 * worker.body_room < worker.table.body_budget:
            return False
        if self._flying[spec.backend] >= spec.most or pool.full or pool.closed:
            return False
        return self.breaker(spec.backend).lets(at_ns)  # last: a trial that it lets through must begin

    def breaker(self, backend: str) -> Breaker:
        """The one of this shadow."""
        found = self._breakers.get(backend)
        if found is None:
            found = self._breakers[backend] = Breaker()
        return found

    # ------------------------------------------------------------------ the worker's side

    def look(self, mean_lag_ns: int, *, shedding: bool) -> None:
        """Once a second: whether copies may begin in the next one; where measuring is shed, none goes on."""
        self._busy = mean_lag_ns > _BUSY_NS
        if shedding:
            self.cut("shed")

    def cut(self, error: str) -> None:
        """Give up all copies in flight; ``error`` says why."""
        for copy in list(self.copies):
            copy.give_up("self", error)

    def ended(self, copy: Copy) -> None:
        """A copy is over: its facts go to the control process."""
        self.copies.discard(copy)
        self._flying[copy.spec.backend] -= 1
        worker = self._worker
        try:
            worker.link.facts(lambda seq: facts_of_copy(copy, worker, seq))
        except Exception as error:  # its number is given out: control counts it as lost
            report("telling the facts of a copy", error)
        if copy.tap is not None and copy.tap.faults:
            worker.dropped["tap_faults"] += copy.tap.faults
