"""Clients that send what they should not: a clear error or a faithful pass-through, and nothing smuggled."""

from __future__ import annotations

import json
import os

import pytest

from tests.helpers.http1 import chunk
from tests.helpers.procs import Legato, rss_bytes, serve
from tests.helpers.rawclient import PLAIN_CHAT, RawClient, Response, chunked, get, post, request
from tests.helpers.upstream import SSE_HEAD, Connection, Upstream, chat_chunk, response

HOST = ("Host", "legato.test")
LENGTH_4 = ("Content-Length", "4")
CHUNKED = ("Transfer-Encoding", "chunked")


def ask(legato: Legato, sent: bytes) -> Response:
    with RawClient(legato.data) as client:
        client.send(sent)
        return client.response()


def expect_error(answer: Response, status: int) -> None:
    """An error in OpenAI's shape that says something, without naming anything of the inside."""
    assert answer.status == status, answer.head.raw
    assert answer.end == "complete"
    error = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    assert "127.0.0.1" not in error["message"]


def expect_refused(legato: Legato, upstream: Upstream, sent: bytes, *statuses: int) -> None:
    """An error answer, then the connection's end; the upstream never hears of it."""
    with RawClient(legato.data) as client:
        client.send(sent)
        answer = client.response()
        assert answer.status in statuses
        expect_error(answer, answer.status)
        assert client.rest() == b""
    assert upstream.requests == []


# ---------------------------------------------------------------- heads


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(get("/", ("X-Big", "a" * 80_000)), id="one-field"),
        pytest.param(get("/", *((f"X-{n}", "a" * 100) for n in range(1000))), id="many-fields"),
        pytest.param(get("/" + "a" * 80_000), id="target"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX-Endless: " + b"a" * 200_000, id="never-ending"),
    ],
)
def test_a_head_that_is_too_large_is_431(legato: Legato, upstream: Upstream, sent: bytes) -> None:
    expect_refused(legato, upstream, sent, 431)


def test_a_head_of_60_kilobytes_passes(legato: Legato, upstream: Upstream) -> None:
    sent = get("/", *((f"X-{n}", "a" * 1000) for n in range(58)))
    assert ask(legato, sent).status == 200
    assert len(upstream.wait_request().head.headers) >= 58


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(request("POST", "/", [HOST, LENGTH_4, CHUNKED], b"0\r\n\r\n"), 400, id="CL-and-TE"),
        pytest.param(request("POST", "/", [HOST, CHUNKED, LENGTH_4], b"0\r\n\r\n"), 400, id="TE-and-CL"),
        pytest.param(
            request("POST", "/", [HOST, LENGTH_4, ("Content-Length", "5")], b"abcde"), 400, id="two-lengths"
        ),
        pytest.param(
            request("POST", "/", [HOST, ("Content-Length", "4, 5")], b"abcde"), 400, id="length-list"
        ),
        pytest.param(request("POST", "/", [HOST, ("Content-Length", "-1")]), 400, id="negative-length"),
        pytest.param(
            request("POST", "/", [HOST, ("Content-Length", "+4")], b"abcd"), 400, id="signed-length"
        ),
        pytest.param(request("POST", "/", [HOST, ("Content-Length", "0x4")], b"abcd"), 400, id="hex-length"),
        pytest.param(
            request("POST", "/", [HOST, ("Content-Length", "9" * 30)], b"abcd"), 400, id="overflowing-length"
        ),
        pytest.param(request("POST", "/", [HOST, ("Content-Length", "")]), 400, id="empty-length"),
        pytest.param(
            request("POST", "/", [HOST, ("Transfer-Encoding", "xchunked")], b"0\r\n\r\n"),
            501,
            id="TE-unknown",
        ),
        pytest.param(
            request("POST", "/", [HOST, ("Transfer-Encoding", "chunked, identity")], b"0\r\n\r\n"),
            501,
            id="TE-chunked-not-last",
        ),
        pytest.param(
            request("POST", "/", [HOST, ("Transfer-Encoding", "gzip, chunked")], b"0\r\n\r\n"),
            501,
            id="TE-gzip",
        ),
        pytest.param(request("POST", "/", [HOST, CHUNKED, CHUNKED], b"0\r\n\r\n"), 501, id="TE-twice"),
        pytest.param(
            request("POST", "/", [HOST, CHUNKED], b"0\r\n\r\n", version="HTTP/1.0"), 400, id="TE-in-1.0"
        ),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: one\r\n two\r\n\r\n", 400, id="obs-fold"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n X-A: one\r\n\r\n", 400, id="leading-space"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: one\rX-B: two\r\n\r\n", 400, id="bare-CR-in-value"),
        pytest.param(b"GET / HTTP/1.1\rHost: x\r\n\r\n", 400, id="bare-CR-behind-the-request-line"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: on\x00e\r\n\r\n", 400, id="NUL"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX-A : one\r\n\r\n", 400, id="space-before-the-colon"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX-A\r\n\r\n", 400, id="no-colon"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n: one\r\n\r\n", 400, id="no-name"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no-host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, id="two-hosts"),
        pytest.param(b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n", 400, id="space-behind-the-version"),
        pytest.param(b"GET / HTTP/3.7\r\nHost: x\r\n\r\n", 400, id="odd-version"),
        pytest.param(b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="space-in-target"),
        pytest.param(get("/caf\u00e9"), 400, id="target-not-ascii"),
        pytest.param(b"GET / HTTPS/1.1\r\nHost: x\r\n\r\n", 400, id="not-http"),
        pytest.param(b"hello\r\n\r\n", 400, id="nonsense"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), 400, id="TLS-hello"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="HTTP/2-preface"),
        pytest.param(request("CONNECT", "example.com:443", [HOST]), 501, id="CONNECT"),
        pytest.param(get("/", ("Expect", "miracles")), 417, id="unknown-expectation"),
    ],
)
def test_a_head_that_others_might_read_otherwise_is_refused(
    legato: Legato, upstream: Upstream, sent: bytes, status: int
) -> None:
    expect_refused(legato, upstream, sent, status, 400)


def test_an_upgrade_is_501(legato: Legato, upstream: Upstream) -> None:
    wants = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
    expect_refused(legato, upstream, get("/v1/realtime", *wants), 501)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"zz\r\nabc\r\n0\r\n\r\n", id="size-no-number"),
        pytest.param(b"-1\r\nabc\r\n0\r\n\r\n", id="negative-size"),
        pytest.param(b"FFFFFFFFFFFFFFFFF\r\nabc\r\n", id="overflowing-size"),
        pytest.param(b"3\r\nabcdef\r\n0\r\n\r\n", id="data-longer-than-its-size"),
        pytest.param(b"3\rabc\r\n0\r\n\r\n", id="bare-CR-behind-the-size"),
    ],
)
def test_chunks_that_lie_are_refused(legato: Legato, upstream: Upstream, body: bytes) -> None:
    expect_refused(legato, upstream, request("POST", "/v1/x", [HOST, CHUNKED], body), 400)


def test_a_body_that_ends_before_its_length_reaches_no_upstream(legato: Legato, upstream: Upstream) -> None:
    with RawClient(legato.data) as client:
        client.send(request("POST", "/v1/short", [HOST, ("Content-Length", "100")], b"only this"))
        client.half_close()
        client.rest()
    assert ask(legato, get("/v1/next")).status == 200
    assert [request.target for request in upstream.requests] == [b"/v1/next"]


def test_bytes_behind_a_body_are_the_next_request_or_nothing(legato: Legato, upstream: Upstream) -> None:
    """With a length of 4 the fifth byte begins another request: never part of the first."""
    with RawClient(legato.data) as client:
        client.send(request("POST", "/v1/a", [HOST, LENGTH_4], b"abcdGPOST / HTTP/1.1\r\n\r\n"))
        first = client.response()
        rest = client.rest()
    assert first.status in (200, 400)
    assert rest == b"" or rest.startswith(b"HTTP/1.1 400")
    assert all(request.body == b"abcd" for request in upstream.requests)


# ---------------------------------------------------------------- what passes as it is


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{", id="broken-json"),
        pytest.param(b'{"model": "\xff\xfe\xc3"}', id="broken-utf-8"),
        pytest.param(b"\x00" * 100, id="zeros"),
        pytest.param(b'{"model": 7, "stream": "yes", "n": -1, "messages": {"a": []}}', id="wrong-types"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"n": ' + b"9" * 5000 + b"}", id="huge-number"),
        pytest.param(b'{"model":"a","model":"b"}', id="duplicate-keys"),
        pytest.param(b'"' + b"a" * 3_000_000 + b'"', id="three-megabytes"),
        pytest.param(b"", id="empty"),
    ],
)
def test_a_body_that_is_no_valid_request_is_the_servers_business(
    legato: Legato, upstream: Upstream, body: bytes
) -> None:
    assert ask(legato, post(body=body)).status == 200
    assert upstream.wait_request().body == body


def test_a_chunked_body_arrives_as_it_was(legato: Legato, upstream: Upstream) -> None:
    body = os.urandom(300_000)
    assert ask(legato, request("POST", "/v1/x", [HOST, CHUNKED], chunked(body, [1, 5, 4096]))).status == 200
    assert upstream.wait_request().body == body


def test_pipelined_requests_are_answered_in_order(legato: Legato, upstream: Upstream) -> None:
    async def echo_target(conn: Connection) -> None:
        while True:
            asked = await conn.request()
            await conn.send(response(asked.target))

    upstream.use(echo_target)
    with RawClient(legato.data) as client:
        targets = [f"/v1/{n}" for n in range(10)]
        client.send(b"".join(post(target, PLAIN_CHAT) for target in targets))
        assert [client.response().body.decode() for _ in targets] == targets
    assert [request.target.decode() for request in upstream.requests] == targets


def test_nonsense_behind_a_good_request_does_not_take_its_answer(legato: Legato, upstream: Upstream) -> None:
    async def slow(conn: Connection) -> None:
        await conn.request()
        await conn.send(SSE_HEAD + chunk(b"data: 1\n\n"))
        await conn.told()
        await conn.send(chunk(b"data: 2\n\n") + b"0\r\n\r\n")
        await conn.client_gone()

    upstream.use(slow)
    with RawClient(legato.data) as client:
        client.send(post() + b"GET / nonsense\r\n\r\n")
        answer = client.begin()
        client.read_into(answer, at_least=9)
        upstream.connection().tell()
        client.read_into(answer)
        assert (answer.end, answer.body) == ("complete", b"data: 1\n\ndata: 2\n\n")
        rest = client.rest()
        assert rest == b"" or rest.startswith(b"HTTP/1.1 400")


def test_expect_100_continue_is_answered_before_the_body_comes(legato: Legato, upstream: Upstream) -> None:
    head = post(body=PLAIN_CHAT).removesuffix(PLAIN_CHAT)[:-2] + b"Expect: 100-continue\r\n\r\n"
    with RawClient(legato.data) as client:
        client.send(head)
        assert client.head(skip_informational=False).words[1] == b"100"
        client.send(PLAIN_CHAT)
        assert client.response().status == 200
    assert upstream.wait_request().body == PLAIN_CHAT


# ---------------------------------------------------------------- HTTP/1.0, HEAD


def test_an_http_1_0_client_gets_a_bare_body_and_the_end(legato: Legato, upstream: Upstream) -> None:
    events = [chat_chunk({"content": word}) for word in "abc"]

    async def streams(conn: Connection) -> None:
        while True:
            await conn.request()
            await conn.send(SSE_HEAD + b"".join(map(chunk, events)) + b"0\r\n\r\n")

    upstream.use(streams)
    with RawClient(legato.data) as client:
        client.send(post(version="HTTP/1.0"))
        answer = client.response()
    assert answer.head.get(b"transfer-encoding") is None
    assert (answer.end, answer.body) == ("complete", b"".join(events))
    assert upstream.requests[0].head.words[2] == b"HTTP/1.1"


def test_an_http_1_0_client_is_told_of_a_truncation_by_a_reset(legato: Legato, upstream: Upstream) -> None:
    async def truncates(conn: Connection) -> None:
        await conn.request()
        await conn.send(SSE_HEAD + chunk(b"data: 1\n\n"))

    upstream.use(truncates)
    with RawClient(legato.data) as client:
        client.send(post(version="HTTP/1.0"))
        answer = client.response()
    assert answer.end == "reset"


def test_an_http_1_0_client_needs_no_host(legato: Legato, upstream: Upstream) -> None:
    assert ask(legato, b"GET /v1/models HTTP/1.0\r\n\r\n").status == 200


def test_the_answer_to_head_has_no_body(legato: Legato, upstream: Upstream) -> None:
    async def head_only(conn: Connection) -> None:
        while True:
            asked = await conn.request()
            whole = response(b"twelve bytes")
            await conn.send(whole if asked.method == b"GET" else whole.removesuffix(b"twelve bytes"))

    upstream.use(head_only)
    with RawClient(legato.data) as client:
        for _ in range(3):
            client.send(request("HEAD", "/v1/models", [HOST]))
            answer = client.response(to_head=True)
            assert answer.head.get(b"content-length") == b"12"
            client.send(get())
            assert client.response().body == b"twelve bytes"


# ---------------------------------------------------------------- clients that say nothing


def test_silent_clients_are_sent_away_and_others_do_not_notice(upstream: Upstream) -> None:
    """Three hundred say nothing, some half a head, some half a body; the next one is served at once."""
    impatient = {"backends": {"default": {"url": upstream.url}}, "timeouts": {"client_head": "1s"}}
    with serve(config=impatient) as legato:
        (worker,) = legato.workers()
        before = rss_bytes(worker)
        silent = [RawClient(legato.data) for _ in range(300)]
        half_head, half_body = RawClient(legato.data), RawClient(legato.data)
        half_head.send(b"GET / HTTP/1.1\r\nHo")
        half_body.send(post()[:-10])
        assert ask(legato, get()).status == 200
        expect_error(half_head.response(), 408)
        expect_error(half_body.response(), 408)
        for client in silent:
            assert client.rest() == b""
            client.close()
        assert ask(legato, get()).status == 200
        assert rss_bytes(worker) - before < 20_000_000
        half_head.close()
        half_body.close()
