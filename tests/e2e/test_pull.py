"""``transport: httpx``: the same bytes, records and ends over httpx's own wire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.helpers.http1 import chunk
from tests.helpers.procs import Legato, serve
from tests.helpers.rawclient import RawClient, chunked, get, post, request
from tests.helpers.upstream import (
    SSE_HEAD,
    Connection,
    Script,
    Upstream,
    chat_chunk,
    chat_events,
    chat_stream,
    json_response,
    respond,
    scripted,
)

OK = respond(json_response({"ok": True}))


@contextmanager
def pulling(script: Script) -> Iterator[tuple[Upstream, Legato]]:
    """A scripted upstream, and a Legato that reaches it by httpx."""
    with scripted(script) as upstream:
        backends = {
            "pulled": {"url": upstream.url, "transport": "httpx"},
            "nobody": {"url": "http://127.0.0.1:9", "transport": "httpx"},
        }
        routes = [
            {"match": {"path": "/nobody"}, "backend": "nobody"},
            {"match": {"path": "*"}, "backend": "pulled"},
        ]
        with serve(config={"backends": backends, "routes": routes}) as legato:
            yield upstream, legato


def test_a_stream_comes_out_as_it_went_in_and_is_scored() -> None:
    with pulling(respond(chat_stream(["a", "b", "c"]))) as (upstream, legato):
        with RawClient(legato.data) as client:
            client.send(post("/v1/chat/completions?x=%2F&y"))
            answer = client.response()
        assert answer.body == b"".join(chat_events(["a", "b", "c"]))
        assert upstream.wait_request().target == b"/v1/chat/completions?x=%2F&y"
        record = legato.record(path="/v1/chat/completions", outcome="completed")
        assert (record["tokens_observed"], record["finish_reason"]) == (3, "stop")
        assert record["upstream_addr"] == f"{upstream.address[0]}:{upstream.address[1]}"


def test_a_chunked_upload_arrives_whole_and_nobody_there_is_a_502() -> None:
    body = bytes(range(256)) * 300
    head = request("PUT", "/up", [("Host", "h"), ("Transfer-Encoding", "chunked")])
    with pulling(OK) as (upstream, legato), RawClient(legato.data) as client:
        client.send(head + chunked(body, [1, 70_000]))
        assert client.response().status == 200
        assert upstream.wait_request().body == body
        client.send(get("/nobody"))
        answer = client.response()
        assert answer.status == 502
        assert b'"unreachable"' in answer.body


def test_a_cut_stays_a_cut() -> None:
    async def dies(conn: Connection) -> None:
        await conn.request()
        await conn.send(SSE_HEAD + chunk(chat_chunk({"content": "a"})))
        conn.reset()

    with pulling(dies) as (_, legato), RawClient(legato.data) as client:
        client.send(post("/v1/chat/completions"))
        answer = client.response()
    assert answer.end != "complete"
    assert answer.body == chat_chunk({"content": "a"})


def test_a_client_that_leaves_closes_the_upstream() -> None:
    async def silent(conn: Connection) -> None:
        await conn.request()
        await conn.client_gone()

    with pulling(silent) as (upstream, legato):
        client = RawClient(legato.data)
        client.send(post("/leave"))
        upstream.wait_request()
        left_ns = client.close()
        assert upstream.connection().wait_gone() - left_ns < 2_000_000_000
