"""Whatever a shadow sends, in whatever pieces: a copy ends once and gives back what it took."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.clock import monotonic_ns
from proxy.relay.pool import Pool
from proxy.relay.shadow import Copy
from proxy.relay.upstream import Connection
from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.upstream import SSE_HEAD, chat_events, json_response
from tests.relay.carried import Carrier, FakeClient, carrier

EVENTS = [chunk(event) for event in chat_events(["a", "b"])]
pieces = st.one_of(
    st.sampled_from(
        [
            SSE_HEAD,
            *EVENTS,
            LAST_CHUNK,
            json_response({"usage": {"completion_tokens": 3}}),
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-type: text/event-stream\r\n\r\n",
            b"x: " + b"y" * 300_000,
            chunk(b"z" * 70_000),
            b"\r\n",
        ]
    ),
    st.binary(min_size=1, max_size=60),
)
steps = st.lists(st.one_of(pieces, st.sampled_from(["eof", "lost", "timer", "cut", "turn"])), max_size=14)


class FakeTransport:
    """A transport that takes everything; ``aborted``: it was closed by us."""

    def __init__(self) -> None:
        self.aborted = self.paused = False

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else None

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None: ...
    def writelines(self, parts: list[bytes]) -> None: ...

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


def begun(at: Carrier) -> tuple[Copy, Connection, FakeTransport]:
    """A copy whose request was sent on a connection of its own."""
    pool = at.worker.pools["shadow"]
    assert isinstance(pool, Pool)
    (address,) = pool._addresses
    connection, transport = Connection(address), FakeTransport()
    connection.connection_made(cast(Any, transport))
    address.busy(connection)
    pool.take = lambda: connection  # type: ignore[method-assign]
    exchange = at.exchange(FakeClient(at.worker))
    at.worker.mirrors.consider(exchange, monotonic_ns())
    exchange.client.drop_body()
    (copy,) = at.worker.mirrors.copies
    copy.begin(exchange)
    return copy, connection, transport


def step_of(copy: Copy, connection: Connection, transport: FakeTransport, step: bytes | str) -> None:
    if isinstance(step, bytes):
        if not (transport.aborted or transport.paused):
            connection.data_received(step)
        return
    acts: dict[str, Callable[[], object]] = {
        "eof": connection.eof_received,
        "lost": lambda: connection.connection_lost(None),
        "timer": copy._watch if copy.end is None else lambda: None,
        "cut": lambda: copy.give_up("self", "shed"),
        "turn": copy._read_on,
    }
    if connection._parser is not None or step not in ("eof", "lost"):
        acts[step]()
    transport.aborted = transport.aborted or step == "lost"


@settings(max_examples=300, deadline=None)
@given(steps)
def test_a_copy_ends_once_and_raises_nothing(taken: list[bytes | str]) -> None:
    async def script() -> None:
        at = carrier(Path("/nonexistent"), "http://127.0.0.1:9", "http://127.0.0.1:9")
        copy, connection, transport = begun(at)
        for step in taken:
            step_of(copy, connection, transport, step)
            assert len(at.copies) == (copy.end is not None)
        at.worker.mirrors.cut("worker_stopped")
        assert copy.end is not None
        assert len(at.copies) == 1
        assert not at.worker.mirrors.copies
        assert not at.worker.mirrors._flying["shadow"]
        assert at.worker.body_room == at.worker.table.body_budget
        assert not transport.paused or transport.aborted, "who takes it next reads it"
        assert copy._timer is None
        assert at.worker.dropped["tap_faults"] == 0

    asyncio.run(script())
