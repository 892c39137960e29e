"""A slow client costs only itself, and never the server's score: within the buffer nothing shows at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.procs import Legato, eventually, serve
from tests.helpers.rawclient import CHAT, RawClient, Response, post
from tests.helpers.upstream import SSE_HEAD, Connection, Request, Upstream, chat_chunk, scripted

pytestmark = pytest.mark.alone

MS = 1_000_000
EVENTS = 200
#: Gaps of 10 ms, every twentieth of 60 ms: that is the p99 of the gaps, far above a machine's noise.
GAPS_MS = [60 if index % 20 == 19 else 10 for index in range(EVENTS)]
BUFFER = 4 * 1024 * 1024
SMALL, LARGE = 20_000, 70_000  # bytes per event: 4.0 MB stay within the buffer, 14 MB do not
CONFIG = {
    "stream": {"buffer": "4MiB"},
    "slos": [
        {"name": "tight", "match": {"model": "tight"}, "ttft": "30ms", "tbt": "12ms"},
        {"name": "chat", "ttft": "500ms", "tbt": "50ms"},
    ],
}


def event(index: int, size: int) -> bytes:
    return chat_chunk({"content": f"{index} " + "x" * size})


def body_of(size: int) -> bytes:
    return b"".join(event(index, size) for index in range(EVENTS)) + chat_chunk({}, finish="stop")


async def paced(conn: Connection) -> None:
    """Events of the size that the request's target names, each at its moment, as fast as they are taken."""
    asked: Request = await conn.request()
    size = int(asked.head.get(b"x-size") or 0)
    await conn.send(SSE_HEAD.replace(b"date:", b"connection: close\r\ndate:"))
    at_ns = conn.now_ns()
    for index, gap_ms in enumerate(GAPS_MS):
        at_ns = max(at_ns + gap_ms * MS, conn.now_ns())
        await conn.until(at_ns)
        await conn.pour(chunk(event(index, size)), 1)
    await conn.send(chunk(chat_chunk({}, finish="stop")) + LAST_CHUNK)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with scripted(paced) as server:
        yield server


@pytest.fixture(scope="module")
def legato(upstream: Upstream) -> Iterator[Legato]:
    with serve(upstream.url, config={**CONFIG, "backends": {"default": {"url": upstream.url}}}) as process:
        yield process


def ask(client: RawClient, name: str, size: int, model: str = "tiny") -> None:
    body = b'{"model":"%b","messages":[{"role":"user","content":"hi"}],"stream":true}' % model.encode()
    client.send(post(CHAT, body, ("X-Request-Id", name), ("X-Size", str(size))))


def read_fast(legato: Legato, name: str, size: int) -> Response:
    with RawClient(legato.data, timeout_s=30) as client:
        ask(client, name, size)
        return client.response()


def in_kernel(client: RawClient, legato: Legato) -> int:
    """Bytes on their way to a client that the kernel holds, on both sides."""
    ours, theirs = legato.data[1], client.sock.getsockname()[1]
    held = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        ports = tuple(int(word.split(":")[1], 16) for word in words[1:3])
        sending, received = (int(part, 16) for part in words[4].split(":"))
        if ports == (ours, theirs):
            held += sending
        elif ports == (theirs, ours):
            held += received
    return held


def conn_of(upstream: Upstream, name: str) -> Connection:
    def look() -> Connection | None:
        wanted = name.encode()
        return next(
            (
                c
                for c in upstream.connections
                if c.requests and c.requests[-1].head.get(b"x-request-id") == wanted
            ),
            None,
        )

    found = eventually(look, 5, f"{name} at the upstream")
    assert found is not None
    return found


def test_within_the_buffer_nothing_shows(legato: Legato, upstream: Upstream) -> None:
    whole = hashlib.sha256(body_of(SMALL)).digest()
    total = len(body_of(SMALL))
    with ThreadPoolExecutor() as pool, RawClient(legato.data, rcvbuf=4096, timeout_s=30) as slow:
        fast = [pool.submit(read_fast, legato, f"fast-{n}", SMALL) for n in range(3)]
        ask(slow, "slow", SMALL)
        conn = conn_of(upstream, "slow")
        # It reads nothing until the server has said everything.
        eventually(lambda: conn.sent_bytes > total, 20, "the end of the stream at the upstream")
        record = legato.record(request_id="slow")
        assert in_kernel(slow, legato) < total - 100_000, "the rest waits in the proxy"
        answer = slow.response()
        assert hashlib.sha256(answer.body).digest() == whole
        assert all(hashlib.sha256(one.result().body).digest() == whole for one in fast)
    p99s = [legato.record(request_id=f"fast-{n}")["tbt_s"]["p99"] for n in range(3)]
    assert min(p99s) * 0.8 <= record["tbt_s"]["p99"] <= max(p99s) * 1.25, (record["tbt_s"], p99s)
    assert record["tbt_s"]["p99"] >= 0.05
    assert record["proxy"]["client_blocked_s"] == 0
    assert (record["outcome"], record["slo_result"], record["raw"]) == ("completed", "good", None)
    assert legato.metrics().value("legato_token_deadlines_total", result="client_blocked") == 0


def test_beyond_the_buffer_the_gaps_are_the_clients(legato: Legato, upstream: Upstream) -> None:
    whole, total = hashlib.sha256(body_of(LARGE)).digest(), len(body_of(LARGE))
    with ThreadPoolExecutor() as pool, RawClient(legato.data, rcvbuf=4096, timeout_s=60) as slow:
        ask(slow, "blocked", LARGE, model="tight")
        neighbours = [pool.submit(read_fast, legato, f"next-{n}", 200) for n in range(3)]
        conn = conn_of(upstream, "blocked")
        seen = [neighbour.result() for neighbour in neighbours]  # 2.5 s: all the while it reads nothing
        assert all(one.body == body_of(200) and one.end == "complete" for one in seen)
        assert conn.sent_bytes < total, "the server is held back"
        answer = slow.response()
        assert hashlib.sha256(answer.body).digest() == whole
        assert answer.end == "complete"

    record = legato.record(request_id="blocked")
    metrics = legato.metrics()
    blocked, suspect = (
        metrics.value("legato_token_deadlines_total", result=result, slo="tight")
        for result in ("client_blocked", "suspect")
    )
    assert record["proxy"]["client_blocked_s"] > 0.3
    assert record["raw"]["missed"] > record["missed"]
    assert record["raw"]["fluidity"] < record["fluidity"]
    assert blocked > 0
    assert blocked + suspect == record["raw"]["missed"] - record["missed"]
    eventually(
        lambda: legato.metrics().value("legato_client_blocked_seconds_count") >= 1, 5, "the pause in a beat"
    )
    for number in range(3):
        neighbour = legato.record(request_id=f"next-{number}")
        assert 0.05 <= neighbour["tbt_s"]["p99"] < 0.1, neighbour["tbt_s"]
        assert neighbour["proxy"]["client_blocked_s"] == 0
        assert (neighbour["slo_result"], neighbour["raw"]) == ("good", None)
