"""The end of an instance: not ready first, then deaf, then silent; streams finish, whoever hurries cuts."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from signal import Signals
from typing import Any

import pytest

from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.procs import Legato, eventually, patience_s, serve
from tests.helpers.rawclient import RawClient, Response, get, post
from tests.helpers.upstream import (
    SSE_HEAD,
    Connection,
    Upstream,
    chat_chunk,
    json_response,
    scripted,
)

FIRST, SECOND, LAST = (chat_chunk({"content": word}) for word in ("one", "two", "three"))
END = chat_chunk({}, finish="stop")


async def told_to_go_on(conn: Connection) -> None:
    """A chat stream that stands still until it is told; anything else is answered at once."""
    while True:
        asked = await conn.request()
        if asked.method == b"GET":
            await conn.send(json_response({}))
            continue
        await conn.send(SSE_HEAD + chunk(FIRST))
        await conn.told()
        await conn.send(chunk(SECOND))
        await conn.told()
        await conn.send(chunk(LAST) + chunk(END) + LAST_CHUNK)


@contextmanager
def draining(**timeouts: str) -> Iterator[tuple[Legato, Upstream]]:
    """A Legato with these timeouts, behind it a server with ``told_to_go_on``."""
    with scripted(told_to_go_on) as upstream:
        config: dict[str, Any] = {"backends": {"default": {"url": upstream.url}}, "timeouts": timeouts}
        with serve(config=config) as legato:
            yield legato, upstream


def begin(client: RawClient) -> Response:
    """Ask for the stream and read its first event."""
    client.send(post())
    answer = client.begin()
    return client.read_into(answer, at_least=len(FIRST))


def ask(legato: Legato) -> Response:
    with RawClient(legato.data) as client:
        client.send(get())
        return client.response()


def refused(legato: Legato) -> bool:
    """Whether nobody listens on the data port (rather than: nobody accepts)."""
    with socket.socket() as sock:
        sock.settimeout(2)
        return sock.connect_ex(legato.data) == errno.ECONNREFUSED


def expect_not_ready_but_alive(legato: Legato) -> None:
    eventually(lambda: legato.get("/readyz")[0] == 503, 5, "not ready")
    assert legato.get("/healthz")[0] == 200
    assert legato.metrics().value("legato_draining") == 1


def exit_status(legato: Legato, within_s: float = 10) -> int:
    return legato.process.wait(patience_s(within_s))


# ---------------------------------------------------------------- SIGTERM


def test_streams_finish_and_the_process_ends_well() -> None:
    with draining() as (legato, upstream), RawClient(legato.data) as client:
        answer = begin(client)
        assert answer.head.get(b"connection") is None
        legato.send_signal(Signals.SIGTERM)
        expect_not_ready_but_alive(legato)
        eventually(lambda: refused(legato), 5, "new connections to be refused")
        conn = upstream.connection()
        conn.tell()
        client.read_into(answer, at_least=len(FIRST + SECOND))
        assert legato.process.poll() is None
        assert legato.get("/healthz")[0] == 200, "admin outlives data"
        assert legato.metrics().value("legato_requests_total") == 0
        conn.tell()
        client.read_into(answer)
        assert (answer.end, answer.body) == ("complete", FIRST + SECOND + LAST + END)
        assert exit_status(legato) == 0
        assert [record["outcome"] for record in legato.records()] == ["completed"]
        assert conn.gone_at_ns is not None


def test_during_the_delay_it_still_accepts_and_afterwards_it_refuses() -> None:
    with draining(drain_delay="2s") as (legato, upstream), RawClient(legato.data) as client:
        begin(client)
        legato.send_signal(Signals.SIGTERM)
        expect_not_ready_but_alive(legato)
        for _ in range(3):
            late = ask(legato)  # on a new connection
            assert (late.status, late.end) == (200, "complete")
        assert late.head.get(b"connection") == b"close"
        eventually(lambda: refused(legato), 6, "new connections to be refused")
        upstream.connection().tell(2)
        assert exit_status(legato) == 0


def test_an_idle_connection_ends_and_a_busy_one_after_its_answer() -> None:
    with draining() as (legato, upstream), RawClient(legato.data) as idle, RawClient(legato.data) as busy:
        idle.send(get())
        assert idle.response().head.get(b"connection") is None
        answer = begin(busy)
        legato.send_signal(Signals.SIGTERM)
        assert idle.rest() == b""
        assert idle.ended == "fin"
        eventually(lambda: len(upstream.connections) == 2, 5, "both connections at the upstream")
        streams = next(conn for conn in upstream.connections if conn.requests[-1].method == b"POST")
        streams.tell(2)
        assert busy.read_into(answer).end == "complete"
        assert busy.rest() == b""
        assert exit_status(legato) == 0


def test_the_deadline_cuts_what_has_not_finished() -> None:
    with draining(drain="1s") as (legato, upstream), RawClient(legato.data) as client:
        answer = begin(client)
        legato.send_signal(Signals.SIGTERM)
        client.read_into(answer)
        assert (answer.end, answer.body) == ("truncated", FIRST), "no clean end for a stream that has none"
        assert exit_status(legato) == 0
        (record,) = legato.records()
        assert (record["outcome"], record["error"]) == ("proxy_error", "worker_stopped")
        upstream.connection().wait_gone()


def test_a_request_that_waits_for_its_first_byte_at_the_deadline_is_told_so() -> None:
    async def silent(conn: Connection) -> None:
        await conn.request()
        await conn.client_gone()

    with draining(drain="500ms") as (legato, upstream), RawClient(legato.data) as client:
        upstream.use(silent)
        client.send(post())
        upstream.wait_request()
        legato.send_signal(Signals.SIGTERM)
        answer = client.response()
        assert answer.status == 500
        assert exit_status(legato) == 0


# ---------------------------------------------------------------- in a hurry


def test_sigint_knows_no_delay() -> None:
    with draining(drain_delay="60s") as (legato, upstream), RawClient(legato.data) as client:
        answer = begin(client)
        legato.send_signal(Signals.SIGINT)
        expect_not_ready_but_alive(legato)
        eventually(lambda: refused(legato), 5, "new connections to be refused")
        upstream.connection().tell(2)
        assert client.read_into(answer).end == "complete"
        assert exit_status(legato) == 0


@pytest.mark.parametrize("second", [Signals.SIGTERM, Signals.SIGINT, Signals.SIGQUIT])
def test_a_second_signal_ends_at_once(second: Signals) -> None:
    with draining(drain_delay="60s") as (legato, _), RawClient(legato.data) as client:
        answer = begin(client)
        legato.send_signal(Signals.SIGTERM)
        expect_not_ready_but_alive(legato)
        legato.send_signal(second)
        assert client.read_into(answer).end == "truncated"
        assert exit_status(legato, 5) == 0
        (record,) = legato.records()
        assert (record["outcome"], record["error"]) == ("proxy_error", "worker_stopped")
