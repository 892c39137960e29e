"""Redis, a collector and scrapes at once; and what the end of the process owes to them when they hang."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.control.fleet.test_names import documented
from tests.helpers.otlp import receiver
from tests.helpers.procs import Legato, eventually, serve
from tests.helpers.rawclient import RawClient, post
from tests.helpers.redis_server import redis_server
from tests.helpers.redis_shim import Shim
from tests.helpers.upstream import Upstream, chat_stream, respond, scripted

REQUESTS = 40


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with scripted(respond(chat_stream(["a", "b", "c"]))) as server:
        yield server


def config(upstream: Upstream, redis_url: str, collector_url: str) -> dict[str, Any]:
    return {
        "backends": {"default": {"url": upstream.url}},
        "redis": {"url": redis_url, "every": "1s"},
        "otel": {"endpoint": collector_url, "every": "1s", "traces": {"ratio": "100%"}},
    }


def ask(legato: Legato, times: int) -> None:
    with RawClient(legato.data) as client:
        for _ in range(times):
            client.send(post())
            assert client.response().status == 200


def test_one_request_is_everywhere(upstream: Upstream) -> None:
    with redis_server() as redis, receiver() as collector:
        with serve(config=config(upstream, redis.url, collector.url)) as legato:
            ask(legato, REQUESTS)
            eventually(
                lambda: legato.json("/api/fleet")["acknowledged"]["requests"] == REQUESTS,
                10,
                "the slots in Redis",
            )
            eventually(lambda: len(collector.spans()) == 2 * REQUESTS, 15, "the spans")
            record = legato.record(path="/v1/chat/completions")
            mine = [span for span in collector.spans() if span.trace_id == record["trace_id"]]
            assert sorted(span.kind for span in mine) == ["CLIENT", "SERVER"]
            fleet = legato.json("/api/fleet")
            assert (fleet["status"], fleet["waiting_slots"], fleet["degraded"]) == ("ok", 0, None)
            assert [host["incarnation"] for host in fleet["hosts"]] == [fleet["incarnation"]]
            merged = legato.json("/api/summary?window=5m")
            assert (merged["scope"], merged["instances"], merged["total"]["requests"]) == (
                "fleet",
                1,
                REQUESTS,
            )
            metrics = legato.metrics()
            assert metrics.value("legato_redis_up") == 1.0
            assert metrics.value("legato_export_failures_total") == 0.0
            assert metrics.value("legato_dropped_total") == 0.0
            with redis.admin() as client:
                for key in map(bytes.decode, client.scan_iter()):
                    assert any(row.fullmatch(key) for row in documented()), key
                    assert client.ttl(key) > 0, key
            ask(legato, 5)  # just before the end
        assert collector.metrics()
        eventually(
            lambda: len(collector.spans()) == 2 * (REQUESTS + 5), 5, "what ended last, exported at the end"
        )
        with serve(config=config(upstream, redis.url, collector.url)) as another:
            total = another.json("/api/summary?window=5m")["total"]["requests"]
            assert total == REQUESTS + 5, "written at the end, read by the next"


def test_a_redis_and_a_collector_that_hang_do_not_hold_up_the_end(upstream: Upstream) -> None:
    with redis_server() as redis, Shim(redis.address) as shim, receiver() as collector:
        legato_config = config(upstream, shim.url, collector.url)
        legato_config["otel"]["timeout"] = "60s"  # no export is given up before the end
        with serve(config=legato_config) as legato:
            ask(legato, 3)
            eventually(lambda: legato.json("/api/fleet")["status"] == "ok", 10, "a first write")
            shim.hold()
            collector.hang()
            ask(legato, 20)
            eventually(lambda: legato.json("/api/fleet")["status"] == "degraded", 10, "a Redis that hangs")
            assert legato.get("/readyz")[0] == 200
            degraded = legato.json("/api/summary?window=5m")
            assert (degraded["scope"], degraded["degraded"]["reason"]) == ("host", "slow")
            assert degraded["total"]["requests"] == 23
            began = time.monotonic()
            assert legato.stop() == 0
            assert time.monotonic() - began < 5.0
            shim.forward()
            unwritten = re.search(
                r"has not acknowledged (\d+) requests that were settled here", legato.stderr
            )
            unsent = re.search(r"spans to \S+: (\d+) had not been taken at the end", legato.stderr)
            assert unwritten is not None
            assert unsent is not None
            assert 20 <= int(unwritten[1]) <= 23  # three may have been written and sent before
            assert 40 <= int(unsent[1]) <= 46


def test_who_configures_none_of_it_carries_none_of_it() -> None:
    script = (
        "import sys, proxy.control.controller\n"
        "heavy = {'redis', 'opentelemetry.sdk', 'opentelemetry.exporter', 'grpc', 'requests'}\n"
        "found = heavy & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
