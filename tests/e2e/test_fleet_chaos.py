"""Three hosts on one Redis, killed at random: the merged view is what was acknowledged, losses are told."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from proxy.control.fleet.layout import Grain, Keys, decode_host, decode_slot
from tests.helpers.crowd import Crowd, Seen, Streamer, Wish, streamer
from tests.helpers.procs import Legato, alive, eventually, serve
from tests.helpers.redis_server import RedisServer, redis_server
from tests.helpers.redis_shim import Shim

pytestmark = [pytest.mark.alone, pytest.mark.timeout(300)]  # 20,000 requests on a busy machine

HOSTS = 3
REQUESTS = 20_000
LASTS_S = 30.0
EVERY_S = 3.0
PREFIX = "chaos"
#: After a worker's death its host has written what it lost by then: counted within 2 s, then a round.
TOLD_S = EVERY_S + 3
SUMS = ("requests", "met", "missed", "output_tokens")


@pytest.fixture(scope="module")
def upstream() -> Iterator[Streamer]:
    with streamer() as server:
        yield server


def config(upstream: Streamer, url: str, every_s: float = EVERY_S) -> dict[str, Any]:
    return {
        "workers": 2,
        "backends": {"default": {"url": upstream.url}},
        "redis": {"url": url, "prefix": PREFIX, "every": f"{every_s:.0f}s"},
    }


# ---------------------------------------------------------------- Redis, read without the product


def in_redis(server: RedisServer, grain: Grain) -> dict[str, dict[str, int]]:
    """Per incarnation: the sums of all its slots of a grain."""
    client: Any = redis.Redis.from_url(server.url)
    out: dict[str, dict[str, int]] = {}
    for key in client.scan_iter(f"{PREFIX}:1:slot:{grain.word}:*"):
        for name, value in client.hgetall(key).items():
            sums = out.setdefault(name.decode(), dict.fromkeys(SUMS, 0))
            for slot in decode_slot(value).values():
                sums["requests"] += slot.requests
                sums["met"] += slot.deadlines["met"]
                sums["missed"] += slot.deadlines["missed"]
                sums["output_tokens"] += slot.totals["output_tokens"]
    client.close()
    return out


def lost_by_hosts(server: RedisServer) -> dict[str, int]:
    """What every incarnation that ever wrote has told to be lost, by what it was."""
    client: Any = redis.Redis.from_url(server.url)
    out: dict[str, int] = {}
    for name in client.zrange(Keys(PREFIX).hosts, 0, -1):
        value = client.get(Keys(PREFIX).host(name.decode()))
        for what, count in decode_host(value).lost.items() if value else ():
            out[what] = out.get(what, 0) + count
    client.close()
    return out


def summed(per_incarnation: dict[str, dict[str, int]], name: str) -> int:
    return sum(sums[name] for sums in per_incarnation.values())


# ---------------------------------------------------------------- watching and killing


@dataclass
class Watch:
    """What each incarnation last said that Redis had acknowledged, and when."""

    hosts: list[Legato]
    acknowledged: dict[str, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            for host in self.hosts:
                self.look(host)

    def look(self, host: Legato) -> None:
        try:
            said = host.json("/api/fleet")
        except Exception:  # it was killed a moment ago
            return
        self.acknowledged[said["incarnation"]] = said["acknowledged"]


@dataclass(frozen=True)
class Kill:
    host: int
    what: str
    at: float


def ready(host: Legato) -> bool:
    try:
        return host.get("/readyz", 1)[0] == 200
    except OSError:  # its control process is being replaced
        return False


def kill_at_random(hosts: list[Legato], until: float, seed: int) -> list[Kill]:
    """kill -9 of a worker or a control process, somewhere, every few seconds."""
    draw, kills = random.Random(seed), []
    while time.monotonic() < until:
        index = draw.randrange(len(hosts))
        host = hosts[index]
        what = draw.choice(("worker", "control"))
        pids = host.workers() if what == "worker" else host.controls()
        if pids and ready(host):
            pid = draw.choice(pids)
            os.kill(pid, signal.SIGKILL)
            kills.append(Kill(index, what, time.monotonic()))
            eventually(lambda pid=pid: not alive(pid), 5, "a death")  # type: ignore[misc]
        time.sleep(draw.uniform(0.7, 2.4))
    return kills


def at_rest(host: Legato) -> bool:
    """Everything that its control process settled is acknowledged."""
    said, settled = host.json("/api/fleet"), host.json("/api/summary")["total"]["requests"]
    return not said["waiting_slots"] and bool(said["acknowledged"]["requests"] == settled)


def exposed(kill: Kill, seen: list[Seen]) -> int:
    """How many of a host's requests a kill may have taken along."""
    since = kill.at - (EVERY_S + 2 if kill.what == "control" else 0.5)
    return sum(since <= one.ended_at <= kill.at + 0.5 for one in seen)


def excused(kills: list[Kill], seen: list[list[Seen]]) -> int:
    """Requests of which nobody may know: a worker was killed, and soon after it the control process that
    alone knew what had come of them, before it could write that."""
    count = 0
    for worker in (kill for kill in kills if kill.what == "worker"):
        after = [kill.at - worker.at for kill in kills if (kill.host, kill.what) == (worker.host, "control")]
        if any(0 <= passed <= TOLD_S for passed in after):
            since, until = worker.at - EVERY_S - 2, worker.at + TOLD_S
            count += sum(since <= one.ended_at <= until for one in seen[worker.host])
    return count


def check_told(server: RedisServer, merged: int, seen: list[list[Seen]], kills: list[Kill]) -> None:
    """What was begun is in the slots, or some host tells that it is lost.

    Whose answer's head came had begun; of who was cut before it no client can know whether the worker had
    taken the request up.  ``worker_lost`` is exact.  ``settled_before_write`` is what may be in no slot: more
    than is missing where a control process died between its slots and its note of them.
    """
    begun = sum(one.begun for crowd in seen for one in crowd)
    unknown = sum(one.end == "cut" and not one.begun for crowd in seen for one in crowd)
    untold = excused(kills, seen)
    eventually(
        lambda: begun <= merged + sum(lost_by_hosts(server).values()) + untold, 15, "all losses told", 0.5
    )
    told = lost_by_hosts(server)
    print(f"{begun} begun, {unknown} perhaps, {merged} in the slots, told {told}, excused {untold}")
    assert told["worker_lost"] > 0
    assert merged + told["worker_lost"] <= begun + unknown, "nothing is in the slots and lost"
    assert set(told) <= {"worker_lost", "settled_before_write"}, "no buffer was full"


def test_three_hosts_killed_at_random(upstream: Streamer) -> None:
    with redis_server() as server, ExitStack() as stack:
        hosts = [
            stack.enter_context(serve(config=config(upstream, server.url), clean_exit=False))
            for _ in range(HOSTS)
        ]
        each = REQUESTS // HOSTS + 1
        crowds = [
            Crowd(host.data, [Wish(n, 4, 5.0, begin_s=LASTS_S * n / each) for n in range(each)])
            for host in hosts
        ]
        watch = Watch(hosts)
        eventually(lambda: len(watch.acknowledged) == HOSTS, 20, "a first write of each")
        kills = kill_at_random(hosts, time.monotonic() + LASTS_S - 9, seed=5)
        seen = [crowd.result(120) for crowd in crowds]
        assert {kill.what for kill in kills} == {"worker", "control"}
        assert len(kills) >= 6

        eventually(lambda: all(map(at_rest, hosts)), 30, "everything written", 0.2)
        watch.stop()
        for host in hosts:
            watch.look(host)

        tens, minutes, hours = (in_redis(server, grain) for grain in Grain)
        live = {host.json("/api/fleet")["incarnation"] for host in hosts}
        for who, acknowledged in watch.acknowledged.items():
            if who in live:
                assert tens.get(who) == acknowledged, "exactly what it says was acknowledged"
            else:  # killed: at least what it was last heard to say
                written = tens.get(who, dict.fromkeys(SUMS, 0))
                assert all(written[name] >= acknowledged[name] for name in SUMS)
        assert tens == minutes == hours, "whichever slots a reader takes"
        merged = summed(tens, "requests")
        for host in hosts:
            said = host.json("/api/summary?window=10m")
            assert (said["scope"], said["total"]["requests"]) == ("fleet", merged)
            assert said["total"]["deadlines"]["met"] == summed(tens, "met")
            assert said["total"]["output_tokens"] == summed(tens, "output_tokens")

        # Nobody is counted twice: not by the next control process, nor by a worker that says it again.
        assert merged <= sum(one.end != "refused" for crowd in seen for one in crowd)

        # What is missing was in flight at a kill, or had settled since the last write: and it is told.
        answered = [one for crowd in seen for one in crowd if one.right]
        assert len(answered) > REQUESTS * 0.9
        lost = len(answered) - merged
        assert lost <= sum(exposed(kill, seen[kill.host]) for kill in kills)
        check_told(server, merged, seen, kills)


def test_a_write_whose_answer_was_lost_counts_once(upstream: Streamer) -> None:
    with (
        redis_server() as server,
        Shim(server.address) as shim,
        serve(config=config(upstream, shim.url, 1)) as host,
    ):
        crowd = Crowd(host.data, [Wish(n, 4, 5.0, begin_s=n / 240) for n in range(1200)])
        for _ in range(2):
            cuts = shim.cuts
            shim.cut(b"HSET")
            eventually(lambda cuts=cuts: shim.cuts > cuts, 15, "a lost answer")  # type: ignore[misc]
        assert all(one.right for one in crowd.result())
        eventually(
            lambda: host.json("/api/fleet")["acknowledged"]["requests"] == 1200, 20, "all written", 0.1
        )
        for grain in Grain:
            assert summed(in_redis(server, grain), "requests") == 1200
        assert host.json("/api/summary?window=10m")["total"]["requests"] == 1200
