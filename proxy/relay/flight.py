"""The streams in flight, once a second, in slices: a sweep never holds the loop for long."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from proxy.clock import monotonic_ns
from proxy.link import GroupNow

if TYPE_CHECKING:
    from proxy.relay.exchange import Exchange

#: A slice of the sweep holds the loop at most this long (looked at every few streams).
_SLICE_NS: Final = 500_000
_STEP: Final = 16

_Key = tuple[str, str, str]  # backend, model, slo


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
        groups: dict[_Key, GroupNow] = {}
        tokens, self._rest = self._rest, Counter()
        todo = iter(exchanges)
        now_ns = monotonic_ns()
        elapsed_ns, self._swept_ns = now_ns - self._swept_ns, now_ns

        def turn() -> None:
            if not self._slice(todo, groups, tokens):
                self._loop.call_soon(turn)
                return
            for key, brought in tokens.items():
                _group(groups, key).tokens_per_s = brought * 1e9 / elapsed_ns if elapsed_ns > 0 else 0.0
            done(list(groups.values()))

        turn()

    def _slice(self, todo: Iterator[Exchange], groups: dict[_Key, GroupNow], tokens: Counter[_Key]) -> bool:
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
                    _add(exchange, groups, now_ns)
                    self._count(exchange, tokens)

    def _count(self, exchange: Exchange, tokens: Counter[_Key]) -> None:
        if exchange.tap is not None and (now := exchange.tap.tokens):
            tokens[_key(exchange)] += max(now - self._told.get(exchange, 0), 0)
            self._told[exchange] = now


def _key(exchange: Exchange) -> _Key:
    return exchange.arm.backend, exchange.call.model or "", exchange.arm.slo.name


def _group(groups: dict[_Key, GroupNow], key: _Key) -> GroupNow:
    group = groups.get(key)
    if group is None:
        group = groups[key] = GroupNow(*key, 0, 0, 0, 0)
    return group


def _add(exchange: Exchange, groups: dict[_Key, GroupNow], now_ns: int) -> None:
    group = _group(groups, _key(exchange))
    group.in_flight += 1
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
        return
    if slo.duration_only and slo.e2e_ns is not None and exchange.sent_ns is not None:
        # Of its tokens nothing is promised: it is overdue when the answer takes longer than it may.
        overdue_ns = now_ns - exchange.sent_ns - slo.e2e_ns
    group.awaited += 1
    if overdue_ns > 0:
        group.overdue += 1
        group.worst_overdue_ns = max(group.worst_overdue_ns, overdue_ns)
    group.missed += missed
