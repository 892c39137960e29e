"""Another backend for a request whose own cannot be connected to, where the route says so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from proxy.errors import UpstreamError

if TYPE_CHECKING:
    from proxy.relay.exchange import Exchange
    from proxy.relay.pool import Pool
    from proxy.relay.pull import PullConnection, PullPool
    from proxy.relay.upstream import Connection

    Wire = Connection | PullConnection
    Opened = tuple[Wire, Pool | PullPool]


async def elsewhere(
    exchange: Exchange, failed: str, dial: Callable[[Pool | PullPool], Awaitable[Wire]]
) -> Opened | None:
    """Nothing was written yet: one backend of the split after the other, until one takes the request.

    ``failed``: what came of the first; ``None``: none takes it.  Then the failure is that of the backend it
    was assigned to, as if nobody had asked the others.  A table that came meanwhile may have taken some of
    them away, and what is full is not asked.
    """
    tried: tuple[str, ...] = (exchange.arm.backend,)
    while (arm := exchange.arm.instead(tried, failed)) is not None:
        tried = (*tried, arm.backend)
        pool = exchange.worker.pools.get(arm.backend)
        if pool is None:
            continue
        connection: Wire | None = pool.take()
        if connection is None and pool.full:
            continue
        exchange.attempts += 1
        if connection is None:
            try:
                connection = await dial(pool)
            except UpstreamError:
                continue
        exchange.arm = arm
        return connection, pool
    return None
