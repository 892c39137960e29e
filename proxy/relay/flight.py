"""The streams in flight, once a second, in slices: a sweep never holds the loop for long."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from heapq import heappush, heapreplace, nlargest
from typing import TYPE_CHECKING, Final

from proxy.clock import monotonic_ns
from proxy.link import GroupNow, Waiting

if TYPE_CHECKING:
    from proxy.relay.exchange import Exchange

#: A slice of the sweep holds the loop at most this long (looked at every few streams).
_SLICE_NS: Final = 500_000
_STEP: Final = 16
#: Of each group so many of the most overdue streams are named, of so many groups: a hang is told while it
#: hangs, when nothing of it has ended yet.  At most 20 KB a beat and 0.5 ms, while it hangs.
_NAMED: Final = 5
_NAMED_GROUPS: Final = 16
_REQUEST_ID: Final = 128  # characters: a client chooses it

_Key = tuple[str, str, str]  # backend, model, slo
_Late = tuple[int, int, int, "Exchange"]  # overdue_ns, a number that is unique, missed


class Flight:
    """What one sweep leaves to the next: how many tokens of each stream were told, and when.

    The tokens per second of a group are all that its streams brought between two sweeps, those included that
    ended meanwhile (``ended`` is called for each).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._told: dict[Exchange, int] = {}  # of the streams in flight: tokens told so far
        self._rest: Counter[_Key] = Counter()  # tokens of streams that ended since the last sweep
        self._swept_ns = monotonic_ns()

    def ended(self, exchange: Exchange) -> None:
        """What this stream brought since it was last looked at belongs to the next sweep's rate."""
        if exchange.tap is not None:
            rest = exchange.tap.tokens - self._told.pop(exchange, 0)
            if rest > 0 and exchange.recorded:
                self._rest[_key(exchange)] += rest

    def sweep(self, exchanges: list[Exchange], done: Callable[[list[GroupNow]], None]) -> None:
        """Sum ``exchanges`` by group and hand the result to ``done``, over as many loop turns as it takes."""
        tokens, self._rest = self._rest, Counter()
        now_ns = monotonic_ns()
        elapsed_ns, self._swept_ns = now_ns - self._swept_ns, now_ns
        # No closure that schedules itself: such a cycle would hold exchanges until the next collection.
        self._turn(iter(exchanges), _Picture(), tokens, elapsed_ns, done)

    def _turn(
        self,
        todo: Iterator[Exchange],
        picture: _Picture,
        tokens: Counter[_Key],
        elapsed_ns: int,
        done: Callable[[list[GroupNow]], None],
    ) -> None:
        if not self._slice(todo, picture, tokens):
            self._loop.call_soon(self._turn, todo, picture, tokens, elapsed_ns, done)
            return
        for key, brought in tokens.items():
            picture.group(key).tokens_per_s = brought * 1e9 / elapsed_ns if elapsed_ns > 0 else 0.0
        picture.name_worst()
        done(list(picture.groups.values()))

    def _slice(self, todo: Iterator[Exchange], picture: _Picture, tokens: Counter[_Key]) -> bool:
        until_ns = monotonic_ns() + _SLICE_NS
        while True:
            now_ns = monotonic_ns()
            if now_ns > until_ns:
                return False
            for _ in range(_STEP):
                exchange = next(todo, None)
                if exchange is None:
                    return True
                if exchange.end is None and exchange.recorded:
                    picture.add(exchange, now_ns)
                    self._count(exchange, tokens)

    def _count(self, exchange: Exchange, tokens: Counter[_Key]) -> None:
        if exchange.tap is not None and (now := exchange.tap.tokens):
            tokens[_key(exchange)] += max(now - self._told.get(exchange, 0), 0)
            self._told[exchange] = now


def _key(exchange: Exchange) -> _Key:
    return exchange.arm.backend, exchange.call.model or "", exchange.arm.slo.name


class _Picture:
    """One sweep's sums."""

    def __init__(self) -> None:
        self.groups: dict[_Key, GroupNow] = {}
        self._late: dict[_Key, list[_Late]] = {}  # heaps: the least overdue of those kept first
        self._number = 0

    def group(self, key: _Key) -> GroupNow:
        """The group's, begun where there is none."""
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = GroupNow(*key, 0, 0, 0, 0)
        return group

    def add(self, exchange: Exchange, now_ns: int) -> None:
        """Count a stream in flight."""
        key = _key(exchange)
        group = self.group(key)
        group.in_flight += 1
        found = _late(exchange, now_ns)
        if found is None:
            return
        overdue_ns, missed = found
        group.awaited += 1
        group.missed += missed
        if overdue_ns > 0:
            group.overdue += 1
            group.worst_overdue_ns = max(group.worst_overdue_ns, overdue_ns)
            self._keep(key, overdue_ns, missed, exchange)

    def _keep(self, key: _Key, overdue_ns: int, missed: int, exchange: Exchange) -> None:
        heap = self._late.setdefault(key, [])
        if len(heap) < _NAMED or overdue_ns > heap[0][0]:
            self._number += 1  # so that no two exchanges are ever compared
            late = (overdue_ns, self._number, missed, exchange)
            if len(heap) < _NAMED:
                heappush(heap, late)
            else:
                heapreplace(heap, late)

    def name_worst(self) -> None:
        """Name the most overdue, of the groups that have most of them."""
        most = nlargest(_NAMED_GROUPS, self._late, key=lambda key: self.groups[key].overdue)
        for key in most:
            self.groups[key].worst = [
                _named(overdue_ns, missed, exchange)
                for overdue_ns, _, missed, exchange in sorted(self._late[key], reverse=True)
                if exchange.end is None  # it may have, between two slices
            ]


def _named(overdue_ns: int, missed: int, exchange: Exchange) -> Waiting:
    request_id, _ = exchange.worker.tags(exchange.client.fields)
    cut = None if request_id is None else request_id[:_REQUEST_ID]
    return Waiting(exchange.id, overdue_ns, missed, cut, exchange.trace_id)


def _late(exchange: Exchange, now_ns: int) -> tuple[int, int] | None:
    """How long it is overdue (0 or less: it is not), and the deadlines of tokens that it missed; ``None``: no
    deadline is running."""
    arm, tap, slo = exchange.arm, exchange.tap, exchange.arm.slo
    if exchange.paused_ns is not None:
        now_ns = exchange.paused_ns  # what is due since then waits for the client, not for the server
    if tap is not None:
        overdue_ns, missed = tap.overdue_ns(now_ns), tap.missed_by(now_ns)
    elif exchange.call.stream and exchange.sent_ns is not None and exchange.head_ns is None:
        # No head yet: the first deadline runs all the same, a hanging server shows while it hangs.
        overdue_ns = now_ns - exchange.sent_ns - arm.ttft_ns
        missed = overdue_ns // arm.tbt_ns + 1 if overdue_ns > 0 else 0
    else:
        return None
    if slo.duration_only and slo.e2e_ns is not None and exchange.sent_ns is not None:
        # Of its tokens nothing is promised: a stream is overdue when the answer takes longer than it may.
        streams = tap is None or exchange.streamed
        return (now_ns - exchange.sent_ns - slo.e2e_ns if streams else 0), 0
    return overdue_ns, missed
