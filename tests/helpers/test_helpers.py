"""The helpers against each other, without a proxy: what the end-to-end tests lean on must itself hold."""

from __future__ import annotations

import threading
import time

import pytest

from tests.helpers.http1 import BodyReader, Nonsense, chunk, parse_head
from tests.helpers.procs import Metrics, eventually
from tests.helpers.rawclient import RawClient, chunked, get, post
from tests.helpers.replay import Tape, ending_of, plan, replaying, resplit
from tests.helpers.upstream import (
    SSE_HEAD,
    Connection,
    Upstream,
    chat_stream,
    json_response,
    respond,
    scripted,
)

TAPE = Tape("two", [(1_000_000, chat_stream(["a"])[:100]), (9_000_000, chat_stream(["a"])[100:])], "keep")


def test_a_chunked_body_is_the_same_whole_and_byte_by_byte() -> None:
    wire = chunked(b"hello, world", [1, 5]) + b"NEXT"
    whole = BodyReader(chunked=True)
    assert whole.feed(wire) == b"NEXT"
    single = BodyReader(chunked=True)
    rest = b"".join(single.feed(wire[at : at + 1]) for at in range(len(wire)))
    assert rest == b"NEXT"
    assert whole.body == single.body == b"hello, world"
    assert whole.chunk_sizes == [1, 5, 6, 0]
    assert whole.done
    assert single.done


def test_a_chunk_that_lies_about_its_size_is_nonsense() -> None:
    with pytest.raises(Nonsense):
        BodyReader(chunked=True).feed(b"3\r\nhello\r\n0\r\n\r\n")


def test_a_head_keeps_order_case_and_duplicates() -> None:
    head = parse_head(b"HTTP/1.1 200 OK\r\nX-b: 1\r\nx-B:  2\r\nConnection: x-c\r\nX-C: 3\r\n\r\n")
    assert head.headers[:2] == [(b"X-b", b"1"), (b"x-B", b"2")]
    assert head.end_to_end() == [(b"X-b", b"1"), (b"x-B", b"2")]


def test_requests_are_kept_as_they_came_and_connections_reused() -> None:
    with scripted(respond(json_response({"ok": True}))) as upstream, RawClient(upstream.address) as client:
        first, second = post("/v1/x?"), get("/a%2fb")
        client.send(first + second)
        assert client.response().status == 200
        assert client.response().body == b'{"ok": true}'
        assert [request.raw for request in upstream.requests] == [first, second]
        assert upstream.requests[0].target == b"/v1/x?"
        assert len(upstream.connections) == 1
        client.close()
        assert upstream.connection().wait_gone() > 0
        assert upstream.connection().gone_how == "fin"


def test_truncation_reset_and_a_clean_end_are_told_apart() -> None:
    async def truncates(conn: Connection) -> None:
        await conn.request()
        await conn.send(SSE_HEAD + chunk(b"data: 1\n\n"))

    async def resets(conn: Connection) -> None:
        await conn.request()
        await conn.send(SSE_HEAD + chunk(b"data: 1\n\n"))
        await conn.told()
        conn.reset()

    async def until_eof(conn: Connection) -> None:
        await conn.request()
        await conn.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")

    with scripted(truncates) as upstream:
        with RawClient(upstream.address) as client:
            client.send(post())
            answer = client.response()
        assert (answer.end, answer.body) == ("truncated", b"data: 1\n\n")
        upstream.script = resets
        with RawClient(upstream.address) as client:
            client.send(post())
            answer = client.begin()
            client.read_into(answer, at_least=9)
            upstream.connection(1).tell()
            assert client.read_into(answer).end == "reset"
        upstream.script = until_eof
        with RawClient(upstream.address) as client:
            client.send(get())
            answer = client.response()
        assert (answer.end, answer.body) == ("complete", b"all of it")


def test_a_reset_by_the_client_is_stamped() -> None:
    async def waits(conn: Connection) -> None:
        await conn.request()
        await conn.client_gone()

    with scripted(waits) as upstream:
        client = RawClient(upstream.address)
        client.send(post())
        upstream.wait_request()
        left_ns = client.reset()
        assert 0 <= upstream.connection().wait_gone() - left_ns < 1_000_000_000
        assert upstream.connection().gone_how == "reset"


def test_a_failing_script_fails_the_test() -> None:
    async def broken(conn: Connection) -> None:
        raise RuntimeError("the script is wrong")

    upstream = Upstream(broken)
    RawClient(upstream.address).close()
    eventually(lambda: upstream.connection().failure)
    with pytest.raises(RuntimeError, match="the script is wrong"):
        upstream.close()


def test_eventually_gives_up_with_the_cause() -> None:
    nothing: dict[str, str] = {}
    with pytest.raises(AssertionError, match="the answer") as caught:
        eventually(lambda: nothing["x"], 0.02, "the answer")
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_replay_has_the_same_bytes_however_it_is_cut() -> None:
    with replaying([TAPE]) as server:
        bodies = []
        for split in (None, 1, 2):
            with RawClient(server.address) as client:
                start = time.monotonic()
                client.send(get("/x", plan("two", split=split)))
                bodies.append(client.response().body)
                assert time.monotonic() - start >= 0.009  # the last piece is due after 9 ms
        assert bodies[0] == bodies[1] == bodies[2] != b""


def test_resplits_differ_by_seed_and_keep_every_byte() -> None:
    first, second = resplit(TAPE, 1), resplit(TAPE, 2)
    assert first != second
    assert b"".join(data for _, data in first) == b"".join(data for _, data in second) == TAPE.raw


def test_a_recordings_end_is_understood() -> None:
    assert ending_of("server closed (EOF)") == "close"
    assert ending_of("message complete, connection kept open by server") == "keep"
    assert ending_of("client closed after 40 recvs") == "client_closes"


def test_a_scrape_is_summed_over_what_matches() -> None:
    scrape = Metrics('a_total{x="1",y="1"} 2\na_total{x="1",y="2"} 3\na_total{x="2",y="1"} 5\n')
    assert scrape.value("a_total", x="1") == 5
    assert scrape.value("a_total") == 10
    assert scrape.value("b_total") == 0
    assert scrape.as_dict()['a_total{x="2",y="1"}'] == 5


def test_another_script_takes_new_connections() -> None:
    with scripted(respond(json_response(1))) as upstream:
        client = RawClient(upstream.address)
        client.send(get())
        assert client.response().body == b"1"
        old = upstream.connection()
        closing = threading.Thread(target=lambda: (client.rest(), client.close()))
        closing.start()
        upstream.use(respond(json_response(2)))  # returns when the client has closed its side too
        closing.join()
        assert old.gone_how == "fin"
        assert upstream.requests == []
        with RawClient(upstream.address) as other:
            other.send(get())
            assert other.response().body == b"2"
