"""Copies in one process: when one begins, what bounds it, and that a request does nothing for it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.link import Facts, Timeouts
from proxy.relay import mirror as module
from proxy.relay import shadow as shadow_module
from proxy.relay import shelf
from proxy.relay.mirror import Breaker
from proxy.relay.upstream import Connection
from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.rawclient import STREAMED_CHAT
from tests.helpers.upstream import SSE_HEAD, chat_events, chat_stream
from tests.relay.carried import (
    MS,
    Carrier,
    FakeClient,
    Handler,
    answering,
    carrier,
    listening,
    read_request,
    until,
)

STREAM = chat_stream(["a", "b", "c"])
S = 1_000 * MS


async def hanging(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    await asyncio.sleep(60)


ANSWERING = answering(STREAM)
Script = Callable[[Carrier], Coroutine[Any, Any, None]]


def run(
    folder: Path,
    script: Script,
    shadow: Handler | str = ANSWERING,
    live: bytes = STREAM,
    **mirror: Any,
) -> Carrier:
    """A worker between two servers, for the length of a script."""

    async def scene() -> Carrier:
        async with listening(answering(live)) as backend, listening(hanging) as unused:
            if isinstance(shadow, str):
                at = carrier(folder, backend, shadow, **mirror)
                await script(at)
            else:
                async with listening(shadow) as other:
                    at = carrier(folder, backend, other or unused, **mirror)
                    await script(at)
            at.worker.mirrors.cut("worker_stopped")
            assert at.worker.body_room == at.worker.table.body_budget, "every byte was given back"
            assert not at.worker.mirrors.copies
            return at

    return asyncio.run(scene())


async def once(at: Carrier) -> None:
    await at.ask()
    await until(lambda: at.copies)


# ---------------------------------------------------------------- what is told


def test_a_copy_is_measured_as_its_request_and_told_apart(tmp_path: Path) -> None:
    at = run(tmp_path, once)
    (request,), (copy,) = at.requests, at.copies
    assert (request.copied, copy.mirror_of) == ("shadow", request.id)
    assert copy.id != request.id
    assert (copy.backend, request.backend) == ("shadow", "live")
    assert (copy.end, copy.status, copy.streamed) == ("complete", 200, True)
    same = ("ttft_target_ns", "tbt_target_ns", "target", "slo", "model", "path", "prompt_tokens_estimated")
    assert [getattr(copy, name) for name in same] == [getattr(request, name) for name in same]
    assert copy.stream is not None
    assert request.stream is not None
    assert (copy.stream.tokens, copy.stream.dialect) == (request.stream.tokens, request.stream.dialect)
    assert copy.sent_ns is not None
    assert request.sent_ns is not None
    assert copy.sent_ns >= copy.received_ns >= request.sent_ns, "the request was written first"
    assert copy.stream.finished
    assert (copy.tags, copy.request_id, copy.trace_id, copy.assignment) == ({}, None, None, None)


def test_what_is_not_recorded_or_measured_is_not_drawn(tmp_path: Path) -> None:
    async def script(at: Carrier) -> None:
        await at.ask(recorded=False)
        at.worker.apply(replace(at.worker.table, version=2, measure=False))
        await at.ask()

    at = run(tmp_path, script)
    assert (at.copies, dict(at.worker.mirrors.dropped)) == ([], {})
    assert [facts.copied for facts in at.requests] == [None]


@pytest.mark.parametrize(("draws", "copied"), [([0.24, 0.25, 0.9, 0.0], 2), ([0.99] * 4, 0)])
def test_the_share_is_drawn(tmp_path: Path, draws: list[float], copied: int) -> None:
    async def script(at: Carrier) -> None:
        left = list(draws)
        at.worker.mirrors._draw = lambda: left.pop(0)
        for _ in draws:
            await at.ask()
        await until(lambda: len(at.copies) == copied)

    at = run(tmp_path, script, ratio=0.25)
    assert sum(facts.copied == "shadow" for facts in at.requests) == copied
    assert not at.worker.mirrors.dropped


# ---------------------------------------------------------------- when none begins


def client_of(at: Carrier, **fields: Any) -> FakeClient:
    made = FakeClient(at.worker)
    made.__dict__.update(fields)
    return made


def shed(at: Carrier) -> None:
    at.worker.shedding = True


def drain(at: Carrier) -> None:
    at.worker.draining = True


def busy(at: Carrier) -> None:
    at.worker.mirrors.look(11 * MS, shedding=False)


def behind(at: Carrier) -> None:
    at.worker.link._kept_bytes = 9 * 2**20


def short_of_room(at: Carrier) -> None:
    at.worker.body_room -= at.worker.table.body_budget * 6 // 10


def without_the_shadow(at: Carrier) -> None:
    at.worker.pools.pop("shadow").close()


def full(at: Carrier) -> None:
    at.worker.pools["shadow"].active = 10_000


def late(at: Carrier) -> None:
    at.worker.lag._due_ns = 1


REASONS = [shed, drain, busy, behind, short_of_room, without_the_shadow, full, late]


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.__name__)
def test_copies_are_what_is_let_go_first(tmp_path: Path, reason: Callable[[Carrier], None]) -> None:
    async def script(at: Carrier) -> None:
        room = at.worker.body_room
        reason(at)
        taken = room - at.worker.body_room
        exchange = await at.ask()
        assert exchange.client.ended == "complete"  # type: ignore[attr-defined]
        at.worker.body_room += taken

    at = run(tmp_path, script)
    assert (dict(at.worker.mirrors.dropped), at.copies) == ({"shadow": 1}, [])
    assert at.requests[0].copied is None


@pytest.mark.parametrize("fields", [{"streaming": True, "complete": False}, {"body_size": 1 << 21}])
def test_a_body_that_is_streamed_or_large_is_not_copied(tmp_path: Path, fields: dict[str, Any]) -> None:
    async def script(at: Carrier) -> None:
        exchange = at.exchange(client_of(at, **fields))
        at.worker.mirrors.consider(exchange, 0)
        exchange.client.drop_body()

    at = run(tmp_path, script)
    assert dict(at.worker.mirrors.dropped) == {"shadow": 1}


def test_so_many_at_once_and_no_more_and_their_bodies_count(tmp_path: Path) -> None:
    async def script(at: Carrier) -> None:
        for _ in range(7):
            await at.ask()
        mirrors = at.worker.mirrors
        assert (len(mirrors.copies), mirrors.dropped["shadow"]) == (3, 4)
        await until(lambda: all(copy.sent_ns for copy in mirrors.copies))
        mirrors.look(30 * MS, shedding=True)
        assert not mirrors.copies, "where measuring is shed no copy goes on"
        assert [facts.error for facts in at.copies] == ["shed"] * 3
        mirrors.look(0, shedding=False)
        await at.ask()
        assert len(mirrors.copies) == 1

    at = run(tmp_path, script, hanging, most=3)
    assert [facts.end for facts in at.copies] == ["self"] * 4


def test_a_body_counts_until_it_is_sent(tmp_path: Path) -> None:
    async def script(at: Carrier) -> None:
        budget = at.worker.table.body_budget
        exchange = at.exchange(FakeClient(at.worker))
        at.worker.mirrors.consider(exchange, 0)
        assert at.worker.body_room == budget - 2 * len(STREAMED_CHAT)
        exchange.client.drop_body()
        assert at.worker.body_room == budget - len(STREAMED_CHAT)
        await until(lambda: at.worker.body_room == budget)
        assert at.worker.mirrors.copies, "it waits for its answer, and holds no body"

    run(tmp_path, script, hanging)


# ---------------------------------------------------------------- how a copy ends


def ended(folder: Path, shadow: Handler | str, timeouts: Timeouts | None = None, **mirror: Any) -> Facts:
    async def script(at: Carrier) -> None:
        if timeouts is not None:
            at.worker.apply(replace(at.worker.table, version=2, timeouts=timeouts))
        client = FakeClient(at.worker)
        await at.ask(client)
        assert client.ended == "complete"
        await until(lambda: at.copies)

    return run(folder, script, shadow, **mirror).copies[0]


def sending(*parts: bytes, then_s: float = 60.0) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.005)
        await asyncio.sleep(then_s)

    return handler


EVENTS = [chunk(event) for event in chat_events(["a"])]
ENDS: list[tuple[Handler, dict[str, Any], Timeouts | None, tuple[str, str | None]]] = [
    (hanging, {"timeout_ns": 50 * MS}, None, ("timeout_first_byte", "copy_timeout")),
    (hanging, {}, Timeouts(first_byte_ns=50 * MS), ("timeout_first_byte", "first_byte_timeout")),
    (sending(SSE_HEAD, *EVENTS[:2]), {}, Timeouts(idle_ns=50 * MS), ("timeout_idle", "idle_timeout")),
    (sending(SSE_HEAD, *EVENTS[:2]), {"timeout_ns": 900 * MS}, None, ("timeout_idle", "copy_timeout")),
    (sending(SSE_HEAD, *EVENTS, then_s=60), {"timeout_ns": 300 * MS}, None, ("self", "copy_timeout")),
    (sending(b"nonsense\r\n\r\n"), {}, None, ("bad_response", "bad_response")),
    (
        sending(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz"),
        {},
        None,
        ("truncated", "upstream_cut"),
    ),
    (sending(SSE_HEAD, *EVENTS[:2], then_s=0), {}, None, ("truncated", "upstream_cut")),
    (sending(then_s=0), {}, None, ("no_response", "no_response")),
]


@pytest.mark.parametrize(("shadow", "mirror", "timeouts", "end"), ENDS)
def test_how_it_ends(
    tmp_path: Path,
    shadow: Handler,
    mirror: dict[str, Any],
    timeouts: Timeouts | None,
    end: tuple[str, str | None],
) -> None:
    facts = ended(tmp_path, shadow, timeouts, **mirror)
    assert (facts.end, facts.error) == end


def test_a_client_that_leaves_does_not_end_it(tmp_path: Path) -> None:
    async def script(at: Carrier) -> None:
        client = FakeClient(at.worker)
        exchange = at.exchange(client)
        task = asyncio.ensure_future(exchange.run())
        await until(lambda: at.worker.mirrors.copies)
        client.leave()
        await task
        assert exchange.end == "client_left"
        await until(lambda: at.copies)
        assert at.copies[0].end == "complete"

    run(tmp_path, script, sending(SSE_HEAD, *EVENTS, LAST_CHUNK), live=b"")


def test_an_answer_that_pours_is_read_slowly_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow_module, "_ANSWER_MOST", 3 * 2**20)
    monkeypatch.setattr(shadow_module, "_RATE", 2 * 2**20)

    async def pours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(SSE_HEAD)
        while True:
            writer.write(chunk(b"x" * 50_000))
            await writer.drain()

    facts = ended(tmp_path, pours)
    assert (facts.end, facts.error) == ("self", "copy_too_large")
    assert facts.blocked, "what was not read for a while is told"
    assert facts.head_ns is not None
    assert facts.end_ns - facts.head_ns > S / 2, "1 MiB at once, the rest at 2 MiB a second"


def test_a_connection_goes_on_after_a_copy_that_was_slowed_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow_module, "_BURST", 10)
    monkeypatch.setattr(shelf, "REST_NS", 0)
    accepted: list[str] = []

    async def script(at: Carrier) -> None:
        for _ in range(3):
            await at.ask()
            await until(lambda: not at.worker.mirrors.copies)

    body = b"x" * 4000
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4000\r\n\r\n" + body
    at = run(tmp_path, script, answering(answer, accepted))
    assert [facts.end for facts in at.copies] == ["complete"] * 3
    assert all(facts.blocked for facts in at.copies)
    assert len(accepted) == 1


# ---------------------------------------------------------------- the breaker


def test_a_shadow_that_cannot_be_reached_is_tried_again_now_and_then(tmp_path: Path) -> None:
    async def script(at: Carrier) -> None:
        for _ in range(5):
            await at.ask()
            await until(lambda: not at.worker.mirrors.copies)

    at = run(tmp_path, script, "http://127.0.0.1:9")
    assert [(facts.end, facts.error) for facts in at.copies] == [("connect_failed", "connection_refused")]
    assert dict(at.worker.mirrors.dropped) == {"shadow": 4}


def test_pauses_double_up_to_half_a_minute_and_one_copy_tries() -> None:
    breaker, now, pauses = Breaker(), 0, []
    for _ in range(8):
        assert breaker.lets(now)
        breaker.failed(now)
        breaker.failed(now)  # one that was on its way at the same time
        begin = now
        while not breaker.lets(now):
            now += S // 2
        pauses.append((now - begin) / S)
        assert not breaker.lets(now), "one at a time"
        breaker.over()
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert breaker.lets(now)
    breaker.worked()
    assert breaker.lets(now)
    assert breaker.lets(now)
    assert module._PAUSE_MOST_NS == 30 * S


@given(st.lists(st.sampled_from(["lets", "worked", "failed", "over", "wait"]), max_size=60))
def test_no_order_of_ends_locks_a_shadow_out(steps: list[str]) -> None:
    breaker, now, trying = Breaker(), 0, 0
    for step in steps:
        now += S
        if step == "lets":
            trying += breaker.lets(now)
        elif step == "wait":
            now += 10 * S
        elif trying:
            trying -= 1
            getattr(breaker, step)(*([now] if step == "failed" else []))
    if not trying:
        assert breaker.lets(now + 31 * S)


# ---------------------------------------------------------------- what a request does for it: nothing


def calls_of_chunks(folder: Path, **mirror: Any) -> list[str]:
    """Every Python function that ran while a request's own chunks arrived."""
    seen: list[str] = []
    received = Connection.data_received

    def watched(self: Connection, data: bytes) -> None:
        if self.sink is None or not isinstance(self.sink, shadow_module.Copy):
            sys.setprofile(note)
        try:
            received(self, data)
        finally:
            sys.setprofile(None)

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            seen.append(frame.f_code.co_qualname)

    async def script(at: Carrier) -> None:
        await at.ask()
        if mirror:
            await until(lambda: at.copies)

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for part in [SSE_HEAD, *(chunk(event) for event in chat_events("abcdefgh")), LAST_CHUNK]:
            writer.write(part)
            await asyncio.sleep(0.005)

    async def scene() -> None:
        async with listening(slowly) as backend, listening(hanging) as shadow:
            at = carrier(folder, backend, shadow, **({"ratio": 0.0} | mirror))
            await script(at)
            at.worker.mirrors.cut("worker_stopped")

    Connection.data_received = watched  # type: ignore[method-assign]
    try:
        asyncio.run(scene())
    finally:
        Connection.data_received = received  # type: ignore[method-assign]
    return seen


def test_not_one_more_call_runs_for_a_chunk_of_a_request_that_is_copied(tmp_path: Path) -> None:
    without = calls_of_chunks(tmp_path)
    assert any("on_chunk" in name for name in without)
    assert calls_of_chunks(tmp_path, ratio=1.0, timeout_ns=200 * MS) == without
