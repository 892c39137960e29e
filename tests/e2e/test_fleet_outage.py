"""Redis gone in the middle of traffic: no request notices, nothing is lost, and it has soon caught up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.crowd import Crowd, Streamer, Wish, streamer
from tests.helpers.procs import eventually, serve
from tests.helpers.redis_server import RedisServer, redis_server

#: How long Redis is gone, and how soon everything must be in it after its return.
OUTAGE_S = 12.0
CAUGHT_UP_S = 10.0
RATE = 40


@pytest.fixture(scope="module")
def upstream() -> Iterator[Streamer]:
    with streamer() as server:
        yield server


def away(server: RedisServer, how: str) -> None:
    server.pause() if how == "hangs" else server.kill()


def back(server: RedisServer, how: str) -> None:
    server.resume() if how == "hangs" else server.start()


def config(upstream: Streamer, server: RedisServer) -> dict[str, Any]:
    return {"backends": {"default": {"url": upstream.url}}, "redis": {"url": server.url}}


@pytest.mark.parametrize("how", ["hangs", "dies, and comes back empty"])
def test_redis_away_under_load(upstream: Streamer, how: str) -> None:
    total = int(RATE * (OUTAGE_S + 8))
    with redis_server() as server, serve(config=config(upstream, server)) as host:
        crowd = Crowd(host.data, [Wish(n, 20, 20.0, begin_s=n / RATE) for n in range(total)])
        eventually(lambda: host.json("/api/fleet")["acknowledged"]["requests"] > 0, 15, "a first write")
        away(server, how)
        gone_at = time.monotonic()
        eventually(lambda: host.json("/api/fleet")["status"] == "degraded", 12, "that it is noticed", 0.05)
        said = host.json("/api/summary?window=5m")
        assert (said["scope"], host.get("/readyz")[0]) == ("host", 200)
        eventually(lambda: time.monotonic() - gone_at >= OUTAGE_S, OUTAGE_S + 5, "the outage", 0.05)
        back(server, how)
        back_at = time.monotonic()

        def caught_up() -> bool:
            said = host.json("/api/fleet")
            return bool(said["status"] == "ok" and said["waiting_slots"] == 0)

        eventually(caught_up, CAUGHT_UP_S, "all of it in Redis", 0.05)
        assert time.monotonic() - back_at < CAUGHT_UP_S
        assert all(seen.right for seen in crowd.result())
        eventually(lambda: host.json("/api/fleet")["acknowledged"]["requests"] == total, 15, "the rest", 0.1)
        merged = host.json("/api/summary?window=5m")
        assert (merged["scope"], merged["degraded"], merged["total"]["requests"]) == ("fleet", None, total)
        assert host.metrics().value("legato_dropped_total") == 0
