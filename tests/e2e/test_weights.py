"""Weights changed at run time, over the admin API: no stream is touched, and the file wins at last."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections import Counter
from contextlib import ExitStack
from typing import Any

from proxy.control.sharing import SYNC_S
from proxy.link import SplitSpec
from proxy.relay.sticky import Split
from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.procs import Legato, eventually, serve
from tests.helpers.rawclient import CHAT, STREAMED_CHAT, RawClient, post
from tests.helpers.redis_server import redis_server
from tests.helpers.upstream import SSE_HEAD, Connection, Script, chat_chunk, scripted

WORD, END = chat_chunk({"content": "word"}), chat_chunk({}, finish="stop")
STREAMS, CHANGES = 500, 100
FILE = {"a": 90, "b": 10}


def waiting(name: bytes) -> Script:
    """A word at once, and the rest when it is told; the server says its name."""

    async def script(conn: Connection) -> None:
        await conn.request()
        await conn.send(SSE_HEAD.replace(b"scripted", name) + chunk(WORD))
        await conn.told()
        await conn.send(chunk(END) + LAST_CHUNK)

    return script


def change(legato: Legato, method: str, **asked: Any) -> dict[str, Any]:
    """Ask for other weights, or for none; what the API answers."""
    request = urllib.request.Request(
        f"{legato.admin_url}/api/splits/ab/weights",
        json.dumps({"author": "ann", "reason": "a try", **asked}).encode(),
        {"Content-Type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        told: dict[str, Any] = json.loads(answer.read())
        return told


def shown(legato: Legato) -> dict[str, Any]:
    (split,) = legato.json("/api/splits")["splits"]
    return dict(split)


def by_session(number: int) -> bytes:
    return post(CHAT, STREAMED_CHAT, ("X-Session-Id", f"s{number}"))


def asked(legato: Legato, count: int) -> Counter[bytes | None]:
    """Who takes so many new requests; their clients leave at the first word."""
    told: Counter[bytes | None] = Counter()
    for number in range(count):
        with RawClient(legato.data) as client:
            client.send(by_session(number))
            told[client.begin().head.get(b"server")] += 1
    return told


def test_a_hundred_changes_touch_no_stream() -> None:
    with ExitStack() as stack:
        servers = {name: stack.enter_context(scripted(waiting(name.encode()))) for name in FILE}
        config = {
            "workers": 2,
            "backends": {name: {"url": server.url} for name, server in servers.items()},
            "routes": [{"split": FILE, "name": "ab", "sticky": {"header": "x-session-id"}, "seed": "seed"}],
        }
        legato = stack.enter_context(serve(config=config))
        clients = [stack.enter_context(RawClient(legato.data, timeout_s=30)) for _ in range(STREAMS)]
        for number, client in enumerate(clients):
            client.send(by_session(number))
        answers = [client.read_into(client.begin(), at_least=len(WORD)) for client in clients]

        for number in range(CHANGES - 1):
            weights = {"a": number % 7, "b": 1 + number}
            assert change(legato, "PUT", weights=weights)["weights"] == weights
        change(legato, "PUT", weights={"a": 0, "b": 1})
        assert legato.json("/api/config")["table_version"] == 1 + CHANGES
        eventually(lambda: set(asked(legato, 12)) == {b"b"}, 10, "the last weights, in both workers", 0.02)

        for server in servers.values():
            for conn in server.connections:
                conn.tell()
        for client, answer in zip(clients, answers, strict=True):
            client.read_into(answer)
            assert (answer.end, answer.body) == ("complete", WORD + END)
        split = Split(SplitSpec("ab", tuple(FILE.items()), "seed"))
        homes = [split.arm(split.session(b"s%d" % number)).encode() for number in range(STREAMS)]
        assert [answer.head.get(b"server") for answer in answers] == homes, "as they were assigned at first"
        requests = ("legato_requests_total", "completed")
        eventually(
            lambda: legato.metrics().value(requests[0], outcome=requests[1]) == STREAMS, 10, "every record"
        )

        told = change(legato, "DELETE")
        assert (told["weights"], told["override"]) == (FILE, None)
        eventually(lambda: set(asked(legato, 12)) == {b"a", b"b"}, 10, "the file's weights", 0.02)
        _at_a_restart_the_file_wins(legato)


def _at_a_restart_the_file_wins(legato: Legato) -> None:
    change(legato, "PUT", weights={"a": 0, "b": 1}, author="ben", reason="the last try")
    override = shown(legato)["override"]
    assert (override["author"], override["reason"]) == ("ben", "the last try")
    eventually(lambda: set(asked(legato, 12)) == {b"b"}, 10, "its weights", 0.02)
    (control,) = legato.controls()
    os.kill(control, signal.SIGKILL)
    eventually(lambda: legato.controls() not in ([control], []), 10, "another control process", 0.05)
    eventually(lambda: shown(legato)["override"] is None, 10, "its answer", 0.05)
    assert shown(legato)["weights"] == FILE
    eventually(lambda: set(asked(legato, 12)) == {b"a", b"b"}, 10, "the file's weights", 0.02)


def test_hosts_that_share_a_redis_go_by_one_word() -> None:
    with ExitStack() as stack:
        upstream = stack.enter_context(scripted(waiting(b"a")))
        redis = stack.enter_context(redis_server())
        config = {
            "backends": {name: {"url": upstream.url} for name in FILE},
            "routes": [{"split": FILE, "name": "ab"}],
            "redis": {"url": redis.url},
        }
        here, there = (stack.enter_context(serve(config=config)) for _ in range(2))
        told = change(here, "PUT", weights={"a": 7, "b": 3})
        eventually(lambda: shown(there)["weights"] == told["weights"], 3 * SYNC_S, "the other host", 0.05)
        assert shown(there)["override"] == told["override"], "who, why and when"
