"""Which backends are asked in a backend's place, and in what order; nothing here connects."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.errors import UpstreamError
from proxy.link import BackendSpec, Match, RouteSpec, SloSpec, SplitSpec, Table
from proxy.relay.call import Call
from proxy.relay.failover import elsewhere
from proxy.relay.route import RouteTable

SPLIT = SplitSpec(
    "s", (("a", 9), ("b", 9), ("c", 9), ("off", 0)), "seed", ("header", "x-session-id"), failover=True
)
TABLE = Table(
    1,
    tuple(BackendSpec(name, f"http://{name}") for name, _ in SPLIT.arms),
    (RouteSpec(Match(), "a", split=SPLIT),),
    (SloSpec("default", Match(), ((0, 1),), 1),),
)


class Pool:
    """A backend whose connections come out as told: ``idle``, ``opened``, ``full`` or ``refused``."""

    def __init__(self, name: str, state: str, asked: list[str]) -> None:
        self.name, self.state, self.asked = name, state, asked
        self.full = state == "full"

    def take(self) -> str | None:
        self.asked.append(self.name)
        return f"idle {self.name}" if self.state == "idle" else None

    async def dial(self) -> str:
        if self.state == "refused":
            raise UpstreamError("connect_failed", "unreachable")
        return f"opened {self.name}"


@pytest.mark.parametrize(
    ("second", "third", "took", "attempts", "asked"),
    [
        ("idle", "idle", "idle 2", 2, 1),
        ("opened", "idle", "opened 2", 2, 1),
        ("refused", "opened", "opened 3", 3, 2),
        ("full", "idle", "idle 3", 2, 2),
        ("gone", "opened", "opened 3", 2, 1),
        ("refused", "refused", None, 3, 2),
        ("full", "gone", None, 1, 1),
        ("gone", "gone", None, 1, 0),
    ],
)
def test_one_after_the_other(second: str, third: str, took: str | None, attempts: int, asked: int) -> None:
    arm = RouteTable(TABLE).choose(Call("POST", "/"), [(b"x-session-id", b"s1")])
    assert arm is not None
    after = arm.instead((arm.backend,), "why")
    assert after is not None
    order = [arm.backend, after.backend, *{"a", "b", "c"} - {arm.backend, after.backend}]
    were: list[str] = []
    states = {order[1]: second, order[2]: third, "off": "idle"}
    pools = {name: Pool(name, state, were) for name, state in states.items() if state != "gone"}
    exchange: Any = SimpleNamespace(arm=arm, attempts=1, worker=SimpleNamespace(pools=pools))
    opened: Any = asyncio.run(elsewhere(exchange, "connection_refused", lambda pool: pool.dial()))  # type: ignore[union-attr]

    assert exchange.attempts == attempts
    assert were == [name for name in order[1:] if name in pools][:asked]
    if took is None:
        assert opened is None
        assert exchange.arm is arm, "the failure stays with who it was assigned to"
    else:
        how, _, place = took.partition(" ")
        name = order[int(place) - 1]
        assert opened == (f"{how} {name}", pools[name])
        assert exchange.arm.backend == name
        assert exchange.arm.assignment.backend == order[0]
        assert exchange.arm.assignment.failed == "connection_refused"
