"""What a worker does with HTTP by its settings: limits, timeouts, bodies of any size, headers of ours."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.procs import Legato, eventually, rss_bytes, serve
from tests.helpers.rawclient import PLAIN_CHAT, RawClient, Response, chunked, get, post, request
from tests.helpers.upstream import (
    SSE_HEAD,
    Connection,
    Upstream,
    chat_chunk,
    chat_stream,
    json_response,
    respond,
    response,
    scripted,
)

MIB = 1024 * 1024
EVENT = chat_chunk({"content": "a"})
HOST = ("Host", "legato.test")


@pytest.fixture(scope="module")
def behind() -> Iterator[Upstream]:
    with scripted(respond(json_response({}))) as server:
        yield server


@pytest.fixture
def upstream(behind: Upstream) -> Upstream:
    behind.use(respond(json_response({})))
    return behind


@pytest.fixture(scope="module")
def legato(behind: Upstream) -> Iterator[Legato]:
    """One with every setting that can be shown without another server."""
    config = {
        "backends": {"default": {"url": behind.url}, "narrow": {"url": behind.url, "max_connections": 2}},
        "routes": [{"match": {"path": "/narrow/*"}, "backend": "narrow"}, {"backend": "default"}],
        "exclude": ["/health", "/v1/models*"],
        "record_headers": {"request_id": "x-request-id", "tenant": "X-Tenant-Id"},
        "body": {"limit": "2MiB", "budget": "5MiB"},
    }
    with serve(config=config) as process:
        yield process


def ask(legato: Legato, sent: bytes) -> Response:
    with RawClient(legato.data, timeout_s=30) as client:
        client.send(sent)
        return client.response()


def code_of(answer: Response) -> tuple[int, str]:
    error = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.head.get(b"content-type") == b"application/json"
    return answer.status, error["code"]


async def begins(conn: Connection) -> None:
    """A stream that begins, and goes on when it is told."""
    while True:
        await conn.request()
        await conn.send(SSE_HEAD + chunk(EVENT))
        await conn.told()
        await conn.send(chunk(chat_chunk({}, finish="stop")) + LAST_CHUNK)


# ---------------------------------------------------------------- the pool


def test_a_full_pool_answers_503_at_once_and_has_room_again(legato: Legato, upstream: Upstream) -> None:
    upstream.use(begins)
    with RawClient(legato.data) as one, RawClient(legato.data) as two:
        for client in (one, two):
            client.send(post("/narrow/chat/completions"))
            client.read_into(client.begin(), at_least=len(EVENT))
        third = ask(legato, post("/narrow/chat/completions", PLAIN_CHAT, ("X-Request-Id", "third")))
        assert code_of(third) == (503, "pool_full")
        assert third.head.get(b"retry-after") == b"1"
        assert legato.record(request_id="third")["outcome"] == "overloaded"
        assert len(upstream.requests) == 2
        upstream.script = respond(json_response({"room": True}))
        one.close()
        upstream.connections[0].wait_gone()
        assert ask(legato, post("/narrow/chat/completions")).body == b'{"room": true}'
        assert ask(legato, post("/v1/chat/completions")).status == 200, "the other backend has its own pool"


# ---------------------------------------------------------------- timeouts


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port that takes no connection: its queue is full."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_every_timeout_has_its_own_answer(upstream: Upstream) -> None:
    async def silent(conn: Connection) -> None:
        await conn.request()
        await conn.client_gone()

    async def falls_silent(conn: Connection) -> None:
        await conn.request()
        await conn.send(SSE_HEAD + chunk(EVENT))
        await conn.client_gone()

    async def lively(conn: Connection) -> None:
        await conn.request()
        await conn.send(SSE_HEAD)
        start_ns = conn.now_ns()
        for number in range(8):  # longer than either timeout in all
            await conn.until(start_ns + number * 100_000_000)
            await conn.send(chunk(EVENT))
        await conn.send(chunk(chat_chunk({}, finish="stop")) + LAST_CHUNK)
        await conn.client_gone()

    with deaf_port() as port:
        config = {
            "backends": {"default": {"url": upstream.url}, "deaf": {"url": f"http://127.0.0.1:{port}"}},
            "routes": [{"match": {"path": "/deaf"}, "backend": "deaf"}, {"backend": "default"}],
            "timeouts": {"connect": "300ms", "first_byte": "400ms", "idle": "400ms"},
        }
        with serve(config=config) as legato:
            named = [("X-Request-Id", name) for name in ("connect", "first", "idle", "lively")]
            assert code_of(ask(legato, get("/deaf", named[0]))) == (504, "connect_timeout")
            upstream.use(silent)
            assert code_of(ask(legato, post("/v1/chat/completions", PLAIN_CHAT, named[1]))) == (
                504,
                "first_byte_timeout",
            )
            upstream.connection().wait_gone()
            upstream.use(falls_silent)
            cut = ask(legato, post("/v1/chat/completions", PLAIN_CHAT, named[2]))
            assert (cut.status, cut.end, cut.body) == (200, "truncated", EVENT)
            upstream.connection().wait_gone()
            upstream.use(lively)
            assert ask(legato, post("/v1/chat/completions", PLAIN_CHAT, named[3])).end == "complete"
            for (_, name), outcome in zip(named, ["timeout", "timeout", "timeout", "completed"], strict=True):
                assert legato.record(request_id=name)["outcome"] == outcome, name
            metrics = legato.metrics()
            assert metrics.value("legato_requests_total", outcome="timeout") == 3


# ---------------------------------------------------------------- what is recorded


def test_excluded_paths_pass_and_leave_no_record(legato: Legato, upstream: Upstream) -> None:
    before = eventually(lambda: len(legato.records()) + 1, 5)
    booked = legato.metrics().value("legato_requests_total")
    upstream.use(respond(chat_stream(["a", "b"])))
    for path in ("/health", "/v1/models", "/v1/models/tiny"):
        assert ask(legato, get(path + "?a=b")).end == "complete"
    assert ask(legato, post("/v1/chat/completions", PLAIN_CHAT, ("X-Request-Id", "seen"))).status == 200
    legato.record(request_id="seen")
    assert len(legato.records()) + 1 == before + 1
    assert legato.metrics().value("legato_requests_total") == booked + 1
    assert len(upstream.requests) == 4


def test_headers_named_in_the_settings_are_recorded_and_never_labels(
    legato: Legato, upstream: Upstream
) -> None:
    odd = "acme \u00e9\u200b " + "x" * 500
    sent = post(
        "/v1/chat/completions",
        PLAIN_CHAT,
        ("x-request-ID", "tagged"),
        ("X-TENANT-ID", odd),
        ("X-Tenant-Id", "second"),
    )
    assert ask(legato, sent).status == 200
    tags = legato.record(request_id="tagged")["tags"]
    assert set(tags) == {"tenant"}
    assert tags["tenant"].startswith("acme \u00e9")
    assert tags["tenant"].isprintable()
    assert len(tags["tenant"]) <= 200
    assert "acme" not in legato.metrics().text
    assert odd.encode() in upstream.requests[0].raw


# ---------------------------------------------------------------- headers of ours


def test_forwarded_headers_and_the_request_id_by_setting(upstream: Upstream) -> None:
    config = {
        "backends": {"default": {"url": upstream.url}},
        "forwarded_headers": True,
        "request_id": {"header": "X-Request-Id"},
    }
    theirs = [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "a.test")]

    def seen(number: int) -> dict[str, list[str]]:
        head = upstream.requests[number].head
        names = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id")
        return {name: [value.decode() for value in head.all(name.encode())] for name in names}

    with serve(config=config) as legato:
        answer = ask(legato, get("/v1/a"))
        own = seen(0)
        record = legato.record(path="/v1/a")
        assert own["x-forwarded-for"] == ["127.0.0.1"]
        assert (own["x-forwarded-proto"], own["x-forwarded-host"]) == (["http"], ["legato.test"])
        assert own["x-request-id"] == [record["id"]]
        assert answer.head.all(b"x-request-id") == [record["id"].encode()]

        answer = ask(legato, get("/v1/b", *theirs, ("X-Request-Id", "mine")))
        own = seen(1)
        assert own["x-forwarded-for"] == ["127.0.0.1"], "nobody's word is taken"
        assert (own["x-forwarded-proto"], own["x-forwarded-host"]) == (["http"], ["legato.test"])
        assert own["x-request-id"] == ["mine"]
        assert answer.head.all(b"x-request-id") == [b"mine"]

    with serve(config={**config, "trusted_proxies": ["127.0.0.0/8"]}) as legato:
        ask(legato, get("/v1/c", *theirs))
        own = seen(2)
        assert own["x-forwarded-for"] == ["6.6.6.6, 127.0.0.1"]
        assert (own["x-forwarded-proto"], own["x-forwarded-host"]) == (["https"], ["a.test"])


def test_unasked_nothing_is_added(legato: Legato, upstream: Upstream) -> None:
    sent = get("/v1/plain", ("X-Forwarded-For", "1.2.3.4"), ("aCCept", "*/*"))
    answer = ask(legato, sent)
    assert upstream.requests[0].raw == sent
    assert answer.head.raw + answer.body == json_response({})


# ---------------------------------------------------------------- HTTP/1.0


def test_a_client_of_http_1_0_gets_bodies_without_chunks(legato: Legato, upstream: Upstream) -> None:
    upstream.use(respond(chat_stream(["a", "b"])))
    with RawClient(legato.data) as client:
        client.send(post(version="HTTP/1.0"))
        answer = client.response()
        assert answer.head.get(b"transfer-encoding") is None
        assert (answer.status, answer.end) == (200, "complete")
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert client.ended == "fin"
    upstream.use(respond(json_response({"a": 1})))
    with RawClient(legato.data) as client:
        client.send(request("GET", "/v1/old", version="HTTP/1.0"))  # not even a Host
        assert client.response().body == b'{"a": 1}'
        assert client.rest() == b""
    assert upstream.requests[-1].head.words[2] == b"HTTP/1.1"
    assert upstream.requests[-1].head.get(b"host")


def test_a_stream_of_http_1_0_that_is_cut_is_reset(legato: Legato, upstream: Upstream) -> None:
    async def cut(conn: Connection) -> None:
        await conn.request()
        await conn.send(SSE_HEAD + chunk(EVENT))

    upstream.use(cut)
    answer = ask(legato, post(version="HTTP/1.0"))
    assert (answer.body, answer.end) == (EVENT, "reset"), "a close would look like a clean end"


# ---------------------------------------------------------------- large bodies


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_ten_megabytes_up_and_down(legato: Legato, upstream: Upstream) -> None:
    down = os.urandom(10_000_000)
    up = os.urandom(10_000_000)

    async def both(conn: Connection) -> None:
        while True:
            asked = await conn.request()
            await conn.send(response(sha(asked.body).encode() if asked.body else down))

    upstream.use(both)
    assert sha(ask(legato, get("/v1/files/1")).body) == sha(down)
    assert ask(legato, post("/v1/files", up)).body == sha(up).encode()
    sizes = [1, 100, 65_536, 7, 1_000_000]
    sent = request("POST", "/v1/files", [HOST, ("Transfer-Encoding", "chunked")], chunked(up, sizes))
    assert ask(legato, sent).body == sha(up).encode()
    assert [request.body == up for request in upstream.requests] == [False, True, True]


@pytest.mark.parametrize("framed", ["length", "chunks"])
def test_a_body_beyond_the_limit_is_streamed(legato: Legato, upstream: Upstream, framed: str) -> None:
    body = os.urandom(6 * MIB)
    if framed == "length":
        sent = post("/v1/streamed", body)
    else:
        head = [HOST, ("Transfer-Encoding", "chunked"), ("X-Request-Id", "streamed-chunks")]
        sent = request("POST", "/v1/streamed", head, chunked(body, [100_000] * 60))
    heads: list[bytes] = []

    async def reads(conn: Connection) -> None:
        head = await conn.head()
        heads.append(head.raw)
        whole = await conn.body_of(head)
        await conn.send(response(sha(whole.body).encode()))
        await conn.client_gone()

    upstream.use(reads)
    with RawClient(legato.data, timeout_s=30) as client:
        client.send(sent[: 3 * MIB])
        eventually(lambda: heads, 10, "the head at the upstream, before the body is there")
        client.send(sent[3 * MIB :])
        assert client.response().body == sha(body).encode()


def test_an_upload_to_a_slow_server_is_held_back(legato: Legato, upstream: Upstream) -> None:
    body = bytes(30 * MIB)

    async def slow(conn: Connection) -> None:
        head = await conn.head()
        conn.stop_reading()
        await conn.told()
        conn.transport.resume_reading()
        whole = await conn.body_of(head)
        await conn.send(response(b"%d" % len(whole.body)))
        await conn.client_gone()

    upstream.use(slow)
    (worker,) = legato.workers()
    before = rss_bytes(worker)
    sent = post("/v1/slow", body)
    taken = 0

    def send(client: RawClient) -> None:
        nonlocal taken
        for at in range(0, len(sent), 65_536):
            client.send(sent[at : at + 65_536])
            taken = at

    with ThreadPoolExecutor() as pool, RawClient(legato.data, timeout_s=30) as client:
        sending = pool.submit(send, client)
        conn = upstream.connection()
        seen = [-1]

        def stands_still() -> bool:
            seen.append(taken)
            return len(seen) > 60 and seen[-50] == taken

        eventually(stands_still, 20, "the client to be held back", 0.01)
        assert 0 < taken < len(sent) - MIB
        assert rss_bytes(worker) - before < 8 * MIB
        conn.tell()
        assert client.response().body == b"%d" % len(body)
        sending.result(10)
    assert rss_bytes(worker) - before < 8 * MIB


def test_bodies_beyond_the_budget_are_streamed_instead_of_refused(legato: Legato, upstream: Upstream) -> None:
    body = os.urandom(2 * MIB - 1000)  # below the limit; three of them are beyond the budget
    heads: list[bytes] = []

    async def reads(conn: Connection) -> None:
        while True:
            head = await conn.head()
            heads.append(head.raw)
            whole = await conn.body_of(head)
            await conn.send(response(sha(whole.body).encode()))

    upstream.use(reads)
    sent = post("/v1/budget", body)
    most = len(sent) - 10
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(legato.data, timeout_s=30)) for _ in range(3)]
        for client in clients:
            client.send(sent[:most])
        eventually(lambda: heads, 10, "one of them at the upstream")
        for client in clients:
            client.send(sent[most:])
        for client in clients:
            assert client.response().body == sha(body).encode()
        # What they held was given back: the next one is held whole again.
        heads.clear()
        for _ in range(4):
            clients[0].send(sent[:most])
            assert ask(legato, get("/v1/other")).status == 200
            assert not [head for head in heads if b"budget" in head]
            clients[0].send(sent[most:])
            assert clients[0].response().body == sha(body).encode()
            heads.clear()
