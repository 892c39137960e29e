"""A client that leaves takes its request with it: the connection to the upstream closes within 100 ms."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from tests.helpers.http1 import chunk
from tests.helpers.procs import Legato, eventually
from tests.helpers.rawclient import PLAIN_CHAT, RawClient, get, post
from tests.helpers.upstream import SSE_HEAD, Connection, Upstream, chat_chunk, json_response, respond

pytestmark = pytest.mark.alone

TIMES = 7
BOUND_NS = 100_000_000
#: A single one may be late on a busy machine; not by more than this.
WORST_NS = 2_000_000_000
EVENT = chat_chunk({"content": "word"})


async def silent(conn: Connection) -> None:
    await conn.request()
    await conn.client_gone()


async def streams(conn: Connection) -> None:
    await conn.request()
    await conn.send(SSE_HEAD + chunk(EVENT))
    await conn.client_gone()


async def half_a_body(conn: Connection) -> None:
    await conn.request()
    await conn.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{")
    await conn.client_gone()


def expect_no_answer(client: RawClient) -> None:
    """The client leaves while it waits for the first byte."""


def expect_an_event(client: RawClient) -> None:
    client.read_into(client.begin(), at_least=len(EVENT))


def expect_a_byte(client: RawClient) -> None:
    client.read_into(client.begin(), at_least=1)


def times_to_close(
    legato: Legato, upstream: Upstream, sent: bytes, read: Callable[[RawClient], None], leave: str
) -> list[int]:
    """From the client's close to its arrival at the upstream, ns, of several tries."""
    out = []
    for number in range(TIMES):
        client = RawClient(legato.data)
        client.send(sent)
        connection = upstream.connection(number)
        connection.wait_request()
        read(client)
        left_ns = client.reset() if leave == "reset" else client.close()
        out.append(connection.wait_gone() - left_ns)
        assert connection.gone_how != "self"
    return out


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize(
    ("sent", "script", "read"),
    [
        pytest.param(post(), silent, expect_no_answer, id="before-the-first-byte"),
        pytest.param(post(), streams, expect_an_event, id="mid-stream"),
        pytest.param(post(body=PLAIN_CHAT), silent, expect_no_answer, id="not-streaming"),
        pytest.param(post(body=PLAIN_CHAT), half_a_body, expect_a_byte, id="not-streaming-mid-body"),
        pytest.param(post() + get("/v1/models"), streams, expect_an_event, id="pipelined"),
        pytest.param(
            post() + get("/v1/models"), silent, expect_no_answer, id="pipelined-before-the-first-byte"
        ),
        pytest.param(post(version="HTTP/1.0"), streams, expect_an_event, id="http-1.0"),
        pytest.param(post(version="HTTP/1.0"), silent, expect_no_answer, id="http-1.0-before-the-first-byte"),
        pytest.param(get("/v1/models"), silent, expect_no_answer, id="get"),
    ],
)
def test_the_upstream_is_closed_when_the_client_leaves(
    legato: Legato,
    upstream: Upstream,
    sent: bytes,
    script: Callable[[Connection], object],
    read: Callable[[RawClient], None],
    leave: str,
) -> None:
    upstream.use(script)  # type: ignore[arg-type]
    took_ns = times_to_close(legato, upstream, sent, read, leave)
    assert statistics.median(took_ns) < BOUND_NS, took_ns
    assert max(took_ns) < WORST_NS, took_ns


def test_a_request_that_waits_behind_the_running_one_is_never_sent(
    legato: Legato, upstream: Upstream
) -> None:
    upstream.use(streams)
    with RawClient(legato.data) as client:
        client.send(post() + post("/v1/second"))
        expect_an_event(client)
    upstream.connection().wait_gone()
    with RawClient(legato.data) as other:  # whatever would still come has come before this is answered
        upstream.script = respond(json_response({}))
        other.send(get("/v1/third"))
        other.response()
    assert [request.target for request in upstream.requests] == [b"/v1/chat/completions", b"/v1/third"]


def test_an_upload_that_breaks_off_reaches_no_upstream(legato: Legato, upstream: Upstream) -> None:
    with RawClient(legato.data) as client:
        client.send(post()[:-10])
    with RawClient(legato.data) as other:
        other.send(get("/v1/third"))
        other.response()
    assert [request.target for request in upstream.requests] == [b"/v1/third"]


def test_the_record_says_that_the_client_left(legato: Legato, upstream: Upstream) -> None:
    upstream.use(streams)
    with RawClient(legato.data) as client:
        client.send(post("/v1/chat/completions", post()[-74:], ("X-Request-Id", "leaves-1")))
        expect_an_event(client)
    record = legato.record(request_id="leaves-1")
    assert record["outcome"] == "client_cancelled"
    assert record["status"] == 200
    assert record["censored"] is True
    eventually(lambda: legato.metrics().value("legato_requests_in_flight") == 0, 5, "no request in flight")
