"""Servers that send what they should not: a 502 that says so, or what came, and no clean end for a lie."""

from __future__ import annotations

import gzip
import hashlib
import json

import pytest

from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.procs import Legato, eventually, free_port, rss_bytes, serve
from tests.helpers.rawclient import PLAIN_CHAT, RawClient, Response, get, post, request
from tests.helpers.upstream import (
    SSE_HEAD,
    Connection,
    Script,
    Upstream,
    chat_chunk,
    chat_stream,
    json_response,
    respond,
    response,
)

MB = 1_000_000
EVENT = b"data: 1\n\n"


def ask(legato: Legato, sent: bytes | None = None) -> Response:
    with RawClient(legato.data, timeout_s=30) as client:
        client.send(sent or post())
        return client.response()


def says_then_closes(raw: bytes) -> Script:
    async def script(conn: Connection) -> None:
        await conn.request()
        await conn.send(raw)

    return script


def says_then_waits(raw: bytes) -> Script:
    async def script(conn: Connection) -> None:
        await conn.request()
        await conn.send(raw)
        await conn.client_gone()

    return script


def expect_502(answer: Response, code: str) -> None:
    assert answer.status == 502, answer.head.raw
    error = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert "127.0.0.1" not in error["message"]


# ---------------------------------------------------------------- no answer, no HTTP


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        pytest.param(b"", "no_response", id="nothing"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", "no_response", id="half-a-head"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", "bad_response", id="ssh"),
        pytest.param(b"HTTP/1.1 abc OK\r\n\r\n", "bad_response", id="status-no-number"),
        pytest.param(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" * 4, "bad_response", id="http2-frames"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n", "bad_response", id="length-no-number"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "bad_response", id="negative-length"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
            "bad_response",
            id="two-lengths",
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nX-A\r\n\r\n", "bad_response", id="no-colon"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX-A: o\x00ne\r\n\r\n", "bad_response", id="NUL"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX-A: a\rSet-Cookie: b\r\n\r\n", "bad_response", id="bare-CR"),
        pytest.param(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            "bad_response",
            id="101-unasked",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "bad_response",
            id="TE-gzip",
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nX-Endless: " + b"a" * 8 * MB, "bad_response", id="endless-head"),
    ],
)
def test_what_is_no_response_is_502(legato: Legato, upstream: Upstream, raw: bytes, code: str) -> None:
    wait = code == "bad_response"  # refused for what it said, not because it left
    upstream.use(says_then_waits(raw) if wait else says_then_closes(raw))
    expect_502(ask(legato), code)
    upstream.connection().wait_gone()


def test_a_reset_before_the_head_is_502(legato: Legato, upstream: Upstream) -> None:
    async def resets(conn: Connection) -> None:
        await conn.request()
        conn.reset()

    upstream.use(resets)
    expect_502(ask(legato), "no_response")


def test_an_unreachable_server_is_502_and_recorded() -> None:
    with serve(f"http://127.0.0.1:{free_port()}") as legato:
        expect_502(
            ask(legato, post("/v1/chat/completions", PLAIN_CHAT, ("X-Request-Id", "r1"))),
            "connection_refused",
        )
        record = legato.record(request_id="r1")
        assert (record["outcome"], record["status"]) == ("upstream_error", 502)


def test_a_server_without_a_name_is_502() -> None:
    with serve("http://no-such-host.invalid:8000") as legato:
        expect_502(ask(legato), "name_not_resolved")


# ---------------------------------------------------------------- smuggling


def test_a_length_beside_chunks_is_not_passed_on(legato: Legato, upstream: Upstream) -> None:
    """RFC 9112, 6.3: either refuse it or forward it with the chunks' framing only."""
    raw = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunk(b"hello")
        + LAST_CHUNK
    )
    upstream.use(says_then_waits(raw))
    answer = ask(legato)
    if answer.status == 502:
        return
    assert answer.head.get(b"content-length") is None
    assert (answer.body, answer.end) == (b"hello", "complete")
    upstream.connection().wait_gone()  # such a connection is not used again


def test_a_folded_field_is_not_passed_on_as_it_is(legato: Legato, upstream: Upstream) -> None:
    raw = b"HTTP/1.1 200 OK\r\nX-A: one\r\n two\r\nContent-Length: 2\r\n\r\nok"
    upstream.use(says_then_waits(raw))
    answer = ask(legato)
    assert answer.status == 502 or answer.head.get(b"x-a") in (b"one two", b"one  two")
    assert b"\r\n two" not in answer.head.raw


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(json_response({"secret": "of another"}), id="a-second-response"),
        pytest.param(b"garbage", id="garbage"),
        pytest.param(b"\r\n", id="an-empty-line"),
    ],
)
def test_what_comes_behind_a_response_reaches_nobody(
    legato: Legato, upstream: Upstream, extra: bytes
) -> None:
    async def says_more(conn: Connection) -> None:
        await conn.request()
        await conn.send(json_response({"answer": 1}) + extra)
        await conn.request()  # only an empty line leaves the connection fit for another
        await conn.send(json_response({"answer": 2}))
        await conn.client_gone()

    upstream.use(says_more)
    with RawClient(legato.data) as client:
        client.send(post(body=PLAIN_CHAT))
        assert client.response().body == b'{"answer": 1}'
        upstream.script = respond(json_response({"answer": 2}))
        client.send(post(body=PLAIN_CHAT))
        assert client.response().body == b'{"answer": 2}'
    if extra.strip():
        upstream.connection().wait_gone()
        assert len(upstream.connections) == 2


def test_a_response_that_nobody_asked_for_closes_the_idle_connection(
    legato: Legato, upstream: Upstream
) -> None:
    async def talks_when_idle(conn: Connection) -> None:
        await conn.request()
        await conn.send(json_response({"answer": 1}))
        await conn.told()
        await conn.send(json_response({"secret": "of another"}))
        await conn.client_gone()

    upstream.use(talks_when_idle)
    assert ask(legato, get()).body == b'{"answer": 1}'
    upstream.connection().tell()
    upstream.connection().wait_gone()
    upstream.script = respond(json_response({"answer": 2}))
    assert ask(legato, get()).body == b'{"answer": 2}'


# ---------------------------------------------------------------- bodies that lie


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", b"short", id="length"),
        pytest.param(SSE_HEAD + chunk(EVENT), EVENT, id="chunks"),
        pytest.param(SSE_HEAD + chunk(EVENT) + b"ff\r\ndata:", EVENT + b"data:", id="inside-a-chunk"),
        pytest.param(SSE_HEAD + chunk(EVENT) + b"0\r\n", EVENT, id="inside-the-last-chunk"),
    ],
)
def test_a_body_that_ends_early_stays_truncated(
    legato: Legato, upstream: Upstream, raw: bytes, body: bytes
) -> None:
    upstream.use(says_then_closes(raw))
    answer = ask(legato, post("/v1/chat/completions", PLAIN_CHAT, ("X-Request-Id", f"cut-{len(raw)}")))
    assert (answer.body, answer.end) == (body, "truncated")
    assert legato.record(request_id=f"cut-{len(raw)}")["outcome"] == "upstream_error"


def test_a_body_longer_than_its_length_is_cut_there(legato: Legato, upstream: Upstream) -> None:
    upstream.use(says_then_waits(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more"))
    with RawClient(legato.data) as client:
        client.send(get())
        assert client.response().body == b"hello"
        upstream.script = respond(json_response(2))
        client.send(get())
        assert client.response().body == b"2"


def test_nonsense_between_chunks_truncates(legato: Legato, upstream: Upstream) -> None:
    upstream.use(says_then_waits(SSE_HEAD + chunk(EVENT) + b"nonsense\r\n"))
    answer = ask(legato)
    assert (answer.body, answer.end) == (EVENT, "truncated")
    upstream.connection().wait_gone()


def test_a_reset_in_the_middle_delivers_what_came(legato: Legato, upstream: Upstream) -> None:
    async def resets(conn: Connection) -> None:
        await conn.request()
        await conn.send(SSE_HEAD + chunk(EVENT))
        await conn.told()
        conn.reset()

    upstream.use(resets)
    with RawClient(legato.data) as client:
        client.send(post())
        answer = client.begin()
        client.read_into(answer, at_least=len(EVENT))
        upstream.connection().tell()
        client.read_into(answer)
    assert answer.body == EVENT
    assert answer.end in ("truncated", "reset")


def test_a_body_until_eof_is_complete_at_fin_and_cut_at_reset(legato: Legato, upstream: Upstream) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    upstream.use(says_then_closes(head + EVENT))
    answer = ask(legato)
    assert (answer.body, answer.end) == (EVENT, "complete")

    async def resets(conn: Connection) -> None:
        await conn.request()
        await conn.send(head + EVENT)
        await conn.told()
        conn.reset()

    upstream.use(resets)
    with RawClient(legato.data) as client:
        client.send(post())
        answer = client.begin()
        client.read_into(answer, at_least=len(EVENT))
        upstream.connection().tell()
        assert client.read_into(answer).end in ("truncated", "reset")


# ---------------------------------------------------------------- interim responses and answers without body


def test_interim_responses_are_skipped(legato: Legato, upstream: Upstream) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX-Interim: 1\r\n\r\n"
    upstream.use(respond(interim + json_response({"answer": 1})))
    for _ in range(2):
        answer = ask(legato)
        assert (answer.status, answer.body) == (200, b'{"answer": 1}')
        assert answer.head.get(b"x-interim") is None


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_answers_without_body_end_at_their_head(legato: Legato, upstream: Upstream, status: bytes) -> None:
    upstream.use(respond(b"HTTP/1.1 %s\r\netag: x\r\n\r\n" % status))
    with RawClient(legato.data) as client:
        for _ in range(3):
            client.send(get())
            answer = client.response()
            assert answer.status == int(status[:3])
            assert answer.head.get(b"etag") == b"x"


def test_a_304_may_state_the_length_that_it_does_not_send(legato: Legato, upstream: Upstream) -> None:
    upstream.use(respond(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 1234\r\n\r\n"))
    with RawClient(legato.data) as client:
        for _ in range(2):
            client.send(get())
            assert client.response().head.get(b"content-length") == b"1234"


def test_a_length_of_zero_ends_at_the_head(legato: Legato, upstream: Upstream) -> None:
    upstream.use(respond(response(b"")))
    with RawClient(legato.data) as client:
        for _ in range(2):
            client.send(request("DELETE", "/v1/files/1", [("Host", "x")]))
            answer = client.response()
            assert (answer.status, answer.body, answer.end) == (200, b"", "complete")


# ---------------------------------------------------------------- events


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(b"data: {broken json\n\n", id="broken-json"),
        pytest.param(b'data: {"choices":[{"delta":{"content":"\xff\xfe\xc3\x28"}}]}\n\n', id="broken-utf-8"),
        pytest.param(b"data: {}\n\ndata: []\n\ndata: null\n\ndata: 7\n\n", id="other-json"),
        pytest.param(b'data: {"choices":{"0":1},"usage":"much"}\n\n', id="wrong-types"),
        pytest.param(b"data: [" + b"[" * 50_000 + b"\n\n", id="deep"),
        pytest.param(b"\n\n\n\r\n\r\r\n:\n\n", id="empty-lines"),
        pytest.param(b"event: error\ndata: oops\n\n", id="error-event"),
        pytest.param(b"no field at all\n\n\x00\x00\n\n", id="no-field"),
        pytest.param(chat_chunk({"content": "a"})[:-2], id="no-end"),
    ],
)
def test_events_that_mean_nothing_pass_as_they_are(legato: Legato, upstream: Upstream, event: bytes) -> None:
    good = [chat_chunk({"content": "a"}), event, chat_chunk({"content": "b"}), chat_chunk({}, finish="stop")]
    upstream.use(respond(SSE_HEAD + b"".join(map(chunk, good)) + LAST_CHUNK))
    answer = ask(legato)
    assert (answer.body, answer.end) == (b"".join(good), "complete")


def test_a_line_of_20_megabytes_passes_and_is_not_held(legato: Legato, upstream: Upstream) -> None:
    line = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"a" * 20 * MB + b'"}}]}\n\n'

    async def sends(conn: Connection) -> None:
        await conn.request()
        await conn.send(SSE_HEAD)
        for at in range(0, len(line), 100_000):
            await conn.pour(chunk(line[at : at + 100_000]), 1)
        await conn.send(chunk(chat_chunk({}, finish="stop")) + LAST_CHUNK)
        await conn.client_gone()

    upstream.use(sends)
    (worker,) = legato.workers()
    before = rss_bytes(worker)
    answer = ask(legato, post("/v1/chat/completions", PLAIN_CHAT, ("X-Request-Id", "long-line")))
    assert (
        hashlib.sha256(answer.body).digest() == hashlib.sha256(line + chat_chunk({}, finish="stop")).digest()
    )
    assert answer.end == "complete"
    assert rss_bytes(worker) - before < 12 * MB
    record = legato.record(request_id="long-line")
    assert record["unmeasured"]
    assert record["slo_result"] == "excluded"


def test_a_decompression_bomb_passes_unopened(legato: Legato, upstream: Upstream) -> None:
    bomb = gzip.compress(bytes(200 * MB), 9)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\n"
    upstream.use(respond(head + b"content-length: %d\r\n\r\n" % len(bomb) + bomb))
    (worker,) = legato.workers()
    before = rss_bytes(worker)
    answer = ask(legato, post("/v1/chat/completions", PLAIN_CHAT, ("X-Request-Id", "bomb")))
    assert answer.body == bomb
    assert rss_bytes(worker) - before < 12 * MB
    assert legato.record(request_id="bomb")["unmeasured"]


def test_a_compressed_stream_passes_untouched_and_is_measured(legato: Legato, upstream: Upstream) -> None:
    plain = b"".join(
        [chat_chunk({"content": "a"}), chat_chunk({"content": "b"}), chat_chunk({}, finish="stop")]
    )
    packed = gzip.compress(plain)
    head = SSE_HEAD.removesuffix(b"\r\n") + b"content-encoding: gzip\r\n\r\n"
    upstream.use(respond(head + chunk(packed[:30]) + chunk(packed[30:]) + LAST_CHUNK))
    answer = ask(legato, post("/v1/chat/completions", PLAIN_CHAT, ("X-Request-Id", "gzip")))
    assert answer.body == packed
    record = legato.record(request_id="gzip")
    assert (record["output_tokens"], record["outcome"], record["unmeasured"]) == (2, "completed", None)


# ---------------------------------------------------------------- clients that do not read


def test_a_client_that_never_reads_holds_a_bounded_amount_and_nobody_else(
    legato: Legato, upstream: Upstream
) -> None:
    piece = chunk(b"data: " + b"x" * 60_000 + b"\n\n")

    async def pours(conn: Connection) -> None:
        asked = await conn.request()
        if asked.target != b"/v1/chat/completions":
            await conn.send(chat_stream(["quick"]))
            await conn.client_gone()
        await conn.send(SSE_HEAD)
        await conn.pour(piece, 2000)  # 120 MB

    upstream.use(pours)
    (worker,) = legato.workers()
    before = rss_bytes(worker)
    with RawClient(legato.data, rcvbuf=4096) as client:
        client.send(post())
        conn = upstream.connection()
        conn.wait_request()
        seen = [0, -1]

        def stands_still() -> bool:
            seen.append(conn.sent_bytes)
            return seen[-1] > 0 and len(seen) > 52 and seen[-1] == seen[-50]

        eventually(stands_still, 20, "the upstream to be held back")
        assert conn.sent_bytes < 30 * MB  # kernel buffers on both sides, and ours
        assert rss_bytes(worker) - before < 10 * MB
        with RawClient(legato.data, timeout_s=2) as other:
            other.send(post("/v1/other"))
            assert other.response().end == "complete"
    conn.wait_gone()


def test_a_slow_reader_gets_every_byte(legato: Legato, upstream: Upstream) -> None:
    events = [b"data: %d %s\n\n" % (n, b"x" * 10_000) for n in range(600)]

    async def pours(conn: Connection) -> None:
        await conn.request()
        await conn.send(SSE_HEAD)
        for event in events:
            await conn.pour(chunk(event), 1)
        await conn.send(LAST_CHUNK)
        await conn.client_gone()

    upstream.use(pours)
    with RawClient(legato.data, rcvbuf=8192) as client:
        client.send(post("/v1/chat/completions", PLAIN_CHAT, ("X-Request-Id", "slow")))
        answer = client.begin()
        client.read_slowly(answer, [4096] * 30, 0.01)
        client.read_into(answer)
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(b"".join(events)).digest()
    assert answer.end == "complete"
