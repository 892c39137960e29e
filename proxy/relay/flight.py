"""The streams in flight, once a second, in slices: a sweep never holds the loop for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from proxy.clock import monotonic_ns
from proxy.link import GroupNow

if TYPE_CHECKING:
    from proxy.relay.exchange import Exchange

#: A slice of the sweep holds the loop at most this long (looked at every few streams).
_SLICE_NS: Final = 500_000
_STEP: Final = 16


def sweep(
    loop: asyncio.AbstractEventLoop, exchanges: list[Exchange], done: Callable[[list[GroupNow]], None]
) -> None:
    """Sum ``exchanges`` by group and hand the result to ``done``, over as many loop turns as it takes."""
    groups: dict[tuple[str, str, str], GroupNow] = {}
    todo = iter(exchanges)

    def turn() -> None:
        if _slice(todo, groups):
            done(list(groups.values()))
        else:
            loop.call_soon(turn)

    turn()


def _slice(todo: Iterator[Exchange], groups: dict[tuple[str, str, str], GroupNow]) -> bool:
    until_ns = monotonic_ns() + _SLICE_NS
    while True:
        now_ns = monotonic_ns()
        if now_ns > until_ns:
            return False
        for _ in range(_STEP):
            exchange = next(todo, None)
            if exchange is None:
                return True
            _add(exchange, groups, now_ns)


def _add(exchange: Exchange, groups: dict[tuple[str, str, str], GroupNow], now_ns: int) -> None:
    if exchange.end is not None or not exchange.recorded:
        return
    arm = exchange.arm
    key = (arm.backend, exchange.call.model or "", arm.slo.name)
    group = groups.get(key)
    if group is None:
        group = groups[key] = GroupNow(*key, 0, 0, 0, 0)
    group.in_flight += 1
    tap = exchange.tap
    if tap is not None:
        overdue_ns, missed = tap.overdue_ns(now_ns), tap.missed_by(now_ns)
    elif exchange.call.stream and exchange.sent_ns is not None and exchange.head_ns is None:
        # No head yet: the first deadline runs all the same, a hanging server shows while it hangs.
        overdue_ns = now_ns - exchange.sent_ns - arm.ttft_ns
        missed = overdue_ns // arm.tbt_ns + 1 if overdue_ns > 0 else 0
    else:
        return
    if overdue_ns > 0:
        group.overdue += 1
        group.worst_overdue_ns = max(group.worst_overdue_ns, overdue_ns)
    group.missed += missed
