"""The first moments of a request are kept apart: who was slow, the network, the queue, prefill or thought."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from time import monotonic_ns
from typing import Any

import pytest

from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.procs import Legato, eventually, serve
from tests.helpers.rawclient import CHAT, STREAMED_CHAT, RawClient, post
from tests.helpers.upstream import (
    DONE,
    SSE_HEAD,
    Connection,
    Request,
    Upstream,
    chat_chunk,
    scripted,
    serve_forever,
)

pytestmark = pytest.mark.alone

#: The moments come so far apart.  t = 0 is stamped when the request was written: on a busy machine the server
#: may have seen it before, by less than this.
STEP_S, EARLY_S = 0.08, 0.04
ROLE = chunk(chat_chunk({"role": "assistant", "content": ""}))
THOUGHT = chunk(chat_chunk({"reasoning_content": "hm"}))
ANSWER = chunk(chat_chunk({"content": "a"}))
TOOL = chunk(
    chat_chunk(
        {
            "tool_calls": [
                {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
            ]
        }
    )
)
ARGUMENT = chunk(chat_chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}))
END = chunk(chat_chunk({}, finish="stop")) + chunk(DONE) + LAST_CHUNK
MOMENTS = ["connected", "first_byte", "head", "first_event", "first_reasoning", "first_answer", "first_tool"]
Answer = Callable[[Connection, Request], Awaitable[None]]

_names = iter(f"f{number}" for number in range(1_000))


def steps(*pieces: bytes) -> Answer:
    """Answer with these bytes, each a step after the one before, the first a step after the request."""

    async def answer(conn: Connection, request: Request) -> None:
        for number, piece in enumerate(pieces, 1):
            await conn.until(request.at_ns + round(number * STEP_S * 1e9))
            await conn.send(piece)

    return answer


async def half_a_head(conn: Connection, request: Request) -> None:
    """Die in the middle of a response's head."""
    await conn.send(SSE_HEAD[:40])
    conn.half_close()


#: What the server does, by the request's ``X-Case``.
CASES: dict[bytes, Answer] = {
    b"each": steps(SSE_HEAD[:20], SSE_HEAD[20:], ROLE, THOUGHT, ANSWER, TOOL, ARGUMENT + END),
    b"early head": steps(SSE_HEAD, ROLE, ANSWER + END),
    b"late head": steps(b"", b"", SSE_HEAD + ROLE + ANSWER + END),
    b"at once": steps(SSE_HEAD + ANSWER + END),
    b"half a head": half_a_head,
}


async def by_case(conn: Connection, request: Request) -> None:
    case = request.head.get(b"x-case")
    assert case is not None
    await CASES[case](conn, request)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with scripted(serve_forever(by_case)) as server:
        yield server


@pytest.fixture(scope="module", params=["native", "httpx"])
def legato(upstream: Upstream, request: pytest.FixtureRequest) -> Iterator[Legato]:
    config = {
        "record_headers": {"request_id": "x-request-id"},
        "backends": {"one": {"url": upstream.url, "transport": request.param}},
        "body": {"limit": "1KiB"},
    }
    with serve(config=config) as process:
        yield process


def ask(legato: Legato, case: str) -> dict[str, Any]:
    """One streamed request's record."""
    name = next(_names)
    with RawClient(legato.data) as client:
        client.send(post(CHAT, STREAMED_CHAT, ("X-Request-Id", name), ("X-Case", case)))
        client.response()
    return legato.record(request_id=name)


def moments(record: dict[str, Any]) -> dict[str, float]:
    """The moments that happened, in the order of ``MOMENTS``."""
    return {name: record[f"{name}_s"] for name in MOMENTS if record[f"{name}_s"] is not None}


def at_step(number: int) -> float:
    """The earliest that this step's bytes can have come, since t = 0."""
    return number * STEP_S - EARLY_S


def test_every_moment_is_its_own(legato: Legato) -> None:
    record = ask(legato, "each")
    assert record["outcome"] == "completed"
    found = moments(record)
    assert list(found) == MOMENTS
    assert found["connected"] <= 0
    assert legato.config_file is not None
    whole_heads = "transport: httpx" in legato.config_file.read_text()  # it shows no others
    steps_of = {"first_byte": 1 + whole_heads, "head": 2, "first_event": 3, "first_reasoning": 4}
    steps_of |= {"first_answer": 5, "first_tool": 7}  # 6: a tool's name, which is no argument
    for name, step in steps_of.items():
        assert found[name] >= at_step(step), (name, found)
    for earlier, later in pairwise(MOMENTS[2:] if whole_heads else MOMENTS):
        assert found[earlier] < found[later], found
    assert record["ttft_s"] == found["first_reasoning"], "the first token of any kind"


def test_a_head_before_prefill_and_one_behind_it(legato: Legato) -> None:
    """vLLM sends its head while a request is queued, llama.cpp with the first token."""
    early, late = ask(legato, "early head"), ask(legato, "late head")
    for record in (early, late):
        assert record["ttft_s"] == record["first_answer_s"] >= at_step(3)
        assert record["first_reasoning_s"] is record["first_tool_s"] is None
    assert at_step(1) <= early["head_s"] < early["first_event_s"] < early["ttft_s"]
    assert early["first_event_s"] >= at_step(2)
    assert at_step(3) <= late["first_byte_s"] <= late["head_s"] <= late["first_event_s"] <= late["ttft_s"]


def test_a_kept_connection_is_there_when_it_is_taken(legato: Legato, upstream: Upstream) -> None:
    before = len(upstream.connections), len(upstream.requests)

    def kept() -> bool:
        """Connections rest before they are used again."""
        record = ask(legato, "at once")
        assert -0.05 < record["connected_s"] <= 0
        return len(upstream.connections) - before[0] < len(upstream.requests) - before[1]

    eventually(kept, 10, "a connection that is used again")


def test_a_slow_upload_is_neither_the_networks_nor_the_servers(legato: Legato, upstream: Upstream) -> None:
    """A body above ``body.limit`` is streamed: its connection is there long before its last byte."""
    name, before = next(_names), _received(upstream)
    body = STREAMED_CHAT.replace(b'"hi"', b'"' + b"word " * 1_000 + b'"')
    sent = post(CHAT, body, ("X-Request-Id", name), ("X-Case", "at once"))
    with RawClient(legato.data) as client:
        client.send(sent[:-100])
        eventually(lambda: _received(upstream) > before + 4_000, what="most of the body")
        began_ns = monotonic_ns()
        eventually(lambda: monotonic_ns() - began_ns > STEP_S * 1e9, what="a slow client's time")
        client.send(sent[-100:])
        client.response()
    record = legato.record(request_id=name)
    assert record["connected_s"] <= -STEP_S
    assert record["first_byte_s"] >= at_step(1)


def _received(upstream: Upstream) -> int:
    return sum(connection.received_bytes for connection in upstream.connections)


def test_what_did_not_happen_has_no_moment(legato: Legato) -> None:
    record = ask(legato, "half a head")
    assert record["outcome"] == "upstream_error"
    assert record["connected_s"] <= 0
    assert (record["head_s"], record["first_event_s"], record["ttft_s"]) == (None, None, None)
