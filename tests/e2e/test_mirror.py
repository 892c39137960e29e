"""A mirror through the whole of Legato: the shadow gets the same bytes, and nobody notices it."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from signal import Signals
from typing import Any

import pytest

from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.procs import Legato, eventually, rss_bytes, serve
from tests.helpers.rawclient import CHAT, RawClient, chunked, get, post, request
from tests.helpers.upstream import (
    SSE_HEAD,
    Connection,
    Script,
    Upstream,
    chat_events,
    chat_stream,
    json_response,
    respond,
    response,
    scripted,
)

STREAM = chat_stream(["one", "two", "three"])
ANSWER = respond(STREAM)
MIB = 2**20


@dataclass
class Scene:
    """Legato in front of a backend, with a mirror to a shadow."""

    legato: Legato
    backend: Upstream
    shadow: Upstream

    def ask(self, *requests: bytes) -> list[bytes]:
        """Each on one connection; the bodies that came back, all of them whole."""
        bodies = []
        with RawClient(self.legato.data) as client:
            for raw in requests:
                client.send(raw)
                answer = client.response()
                assert (answer.status, answer.end) == (200, "complete")
                bodies.append(answer.body)
        return bodies

    def mirrored(self) -> dict[str, Any]:
        """The shadow in ``/api/mirrors``."""
        (shadow,) = self.legato.json("/api/mirrors")["shadows"]
        return dict(shadow)

    def results(self, total: int, within_s: float = 5) -> dict[str, int]:
        """What became of the copies, once so many are accounted for."""

        def look() -> bool:
            return bool(sum(self.mirrored()["results"].values()) >= total)

        eventually(look, within_s, f"{total} copies", every_s=0.05)
        results: dict[str, int] = self.mirrored()["results"]
        assert sum(results.values()) == total
        return results

    def copied(self, raw: bytes, copies: int) -> tuple[list[bytes], dict[str, int]]:
        """Ask until so many copies were begun: on a busy machine some are let go.  Bodies, and results."""
        bodies: list[bytes] = []
        results: dict[str, int] = {}
        while sum(results.values()) - results.get("dropped", 0) < copies:
            bodies += self.ask(raw)
            results = self.results(len(bodies))
            assert len(bodies) < 20 * copies, results
        return bodies, results

    def pairs(self) -> dict[str, Any]:
        """Those of the one backend, once nothing waits for its other half."""
        eventually(lambda: self.legato.json("/api/mirrors")["waiting"] == 0, 5, "the pairs", every_s=0.05)
        (one,) = self.mirrored()["by_backend"]
        return dict(one)


def config(backend: Upstream, shadow: Upstream, mirror: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "backends": {
            "stable": {"url": backend.url},
            "next": {"url": shadow.url + "/base", "host": "upstream"},
        },
        "routes": [{"backend": "stable", "mirror": {"backend": "next", **mirror}}],
        "exclude": ["/health"],
        **more,
    }


@contextmanager
def scene(answer: Script, mirror: dict[str, Any] | None = None, **more: Any) -> Iterator[Scene]:
    with ExitStack() as stack:
        backend, shadow = (stack.enter_context(scripted(script)) for script in (ANSWER, answer))
        given = config(backend, shadow, mirror or {}, **more)
        yield Scene(stack.enter_context(serve(config=given)), backend, shadow)


BODY = json.dumps(
    {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "x" * 200}]}
).encode()
SECRETS = (("Authorization", "Bearer sk-1"), ("Cookie", "a=b"), ("X-Trace", "t"), ("X-Trace", "u"))


def lines(raw: bytes) -> tuple[list[bytes], bytes]:
    """A request's lines but for its target and host, and its body as it was framed."""
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *rest = head.split(b"\r\n")
    kept = [line for line in rest if not line.lower().startswith(b"host:")]
    return [first.replace(b" /base", b" "), *kept], body


HEADERS = [("Host", "legato.test"), ("Content-Type", "application/json"), *SECRETS]
IN_CHUNKS = request(
    "POST", CHAT + "?q=1", [*HEADERS, ("Transfer-Encoding", "chunked")], chunked(BODY, [7, 100])
)


@pytest.mark.parametrize("asked", [post(CHAT + "?q=1", BODY, *SECRETS), IN_CHUNKS], ids=["length", "chunks"])
def test_the_shadow_gets_the_same_bytes_and_the_client_the_backends(asked: bytes) -> None:
    with scene(respond(chat_stream(["other", "words"]))) as at:
        bodies, results = at.copied(asked, 1)
        assert set(bodies) == {b"".join(chat_events(["one", "two", "three"]))}
        assert results["completed"] == 1
        sent, (copied,) = at.backend.requests[-1], at.shadow.requests
        assert lines(copied.raw) == lines(sent.raw)
        assert copied.target == b"/base" + sent.target
        assert copied.head.get(b"host") == b"127.0.0.1:%d" % at.shadow.port, "its own, as its backend says"

        one = at.pairs()
        assert (one["backend"], one["pairs"], one["excluded"]) == ("stable", 1, {})
        (ids,) = one["last"]
        assert at.legato.get(f"/api/requests/{ids['id']}")[0] == 200
        assert at.legato.get(f"/api/requests/{ids['copy_id']}")[0] == 404


def test_copies_are_in_nothing_that_is_said_of_users() -> None:
    with scene(respond(response(b"{}", b"application/json", b"500 Oops"))) as at:
        bodies, results = at.copied(post(CHAT, BODY), 5)
        at.ask(get("/health"))
        asked = len(bodies)
        assert results == {"completed": 0, "failed": 5, "timeout": 0, "dropped": asked - 5}
        metrics = at.legato.metrics()
        assert metrics.value("legato_requests_total") == asked
        assert metrics.value("legato_requests_total", backend="next") == 0
        assert metrics.value("legato_mirrored_requests_total", backend="next", result="failed") == 5
        eventually(lambda: len(at.legato.records()) >= asked, 5, "the access log")
        assert [record["backend"] for record in at.legato.records()] == ["stable"] * asked
        page = at.legato.json("/api/requests?limit=100")
        assert [each["backend"] for each in page["requests"]] == ["stable"] * asked
        summary = at.legato.json("/api/summary?window=1m")
        assert {group["backend"] for group in summary["groups"]} == {"stable"}
        one = at.pairs()
        assert one["metrics"]["errors"]["shadow"] == 1.0
        assert one["metrics"]["errors"]["backend"] == 0.0


async def hang(conn: Connection) -> None:
    await conn.request()
    await conn.client_gone()


async def garbage(conn: Connection) -> None:
    await conn.request()
    await conn.send(b"\x00\xff" * 5000)


async def cut(conn: Connection) -> None:
    await conn.request()
    await conn.send(SSE_HEAD + chunk(chat_events(["a"])[0]))
    conn.reset()


async def pours(conn: Connection) -> None:
    """As much as is taken, up to 10 GB."""
    await conn.request()
    await conn.send(SSE_HEAD)
    await conn.pour(chunk(b"data: " + b"x" * 65536 + b"\n\n"), 160_000)


async def closes(conn: Connection) -> None:
    await conn.head()


async def zipped(conn: Connection) -> None:
    """Compressed, as a server may answer; measured all the same."""
    while True:
        await conn.request()
        head = SSE_HEAD.replace(b"transfer-encoding", b"content-encoding: gzip\r\ntransfer-encoding")
        await conn.send(head + chunk(gzip.compress(b"".join(chat_events(["a", "b"])))) + LAST_CHUNK)


SHADOWS: dict[str, tuple[Script, str]] = {
    "hangs": (hang, "timeout"),
    "garbage": (garbage, "failed"),
    "is cut": (cut, "failed"),
    "pours": (pours, "timeout"),
    "closes": (closes, "failed"),
    "zipped": (zipped, "completed"),
}


def test_no_shadow_is_noticed_whatever_it_does() -> None:
    with scene(hang, {"timeout": "1s"}) as at:
        (worker,) = at.legato.workers()
        at.ask(post(CHAT, BODY))
        before, seen = rss_bytes(worker), at.results(1, 8)
        for kind, (script, result) in SHADOWS.items():
            at.shadow.use(script)
            for _ in range(10):  # on a busy machine all of them may be let go
                assert set(at.ask(*[post(CHAT, BODY)] * 3)) == {
                    b"".join(chat_events(["one", "two", "three"]))
                }
                results = at.results(sum(seen.values()) + 3, 8)
                new = {name: count - seen[name] for name, count in results.items()}
                assert new[result] + new["dropped"] == 3, (kind, new)
                seen = results
                if new[result] or kind == "pours":  # that one may keep the worker busy by itself
                    break
            assert new[result] or kind == "pours", kind
            eventually(lambda: at.shadow.open_connections() <= 3, 5, "the end of what was given up")
        assert rss_bytes(worker) - before < 40 * MIB


def test_a_client_that_leaves_does_not_end_the_copy() -> None:
    async def slow(conn: Connection) -> None:
        await conn.request()
        await conn.send(SSE_HEAD + chunk(chat_events([])[0]))
        await conn.told()
        await conn.send(b"".join(chunk(event) for event in chat_events(["a"])[1:]) + LAST_CHUNK)

    with scene(slow) as at:
        at.backend.use(slow)
        asked: list[bytes] = []
        while not at.shadow.requests:  # on a busy machine a copy may be let go
            asked.append(BODY)
            assert len(asked) < 20
            with RawClient(at.legato.data) as client:
                client.send(post(CHAT, BODY))
                client.begin()
                eventually(lambda: at.shadow.requests or at.mirrored()["results"]["dropped"] == len(asked), 5)
        at.backend.connection(len(asked) - 1).wait_gone()
        copy = at.shadow.connection()
        assert copy.gone_at_ns is None
        copy.tell()
        assert at.results(len(asked))["completed"] == 1
        one = at.pairs()
        assert (one["pairs"], one["cut"]) == (1, 1)


MANY, AT_ONCE = 2000, 40


def test_a_shadow_that_never_answers_costs_neither_memory_nor_time() -> None:
    """2,000 requests at 100%: what is in flight is bounded, and what was not sent is counted, one by one."""
    most = 50
    big = json.dumps({"model": "tiny", "stream": True, "prompt": "x" * 100_000}).encode()

    async def crowd(address: tuple[str, int]) -> list[bytes]:
        async def one() -> list[bytes]:
            reader, writer = await asyncio.open_connection(*address)
            got = []
            for _ in range(MANY // AT_ONCE):
                writer.write(post(CHAT, big))
                head = await reader.readuntil(b"\r\n\r\n")
                got.append(head + await reader.readuntil(LAST_CHUNK))
            writer.close()
            return got

        return [each for them in await asyncio.gather(*(one() for _ in range(AT_ONCE))) for each in them]

    with scene(hang, {"most": most, "timeout": "1m"}) as at:
        at.ask(post(CHAT, BODY))  # what a first request makes is no growth
        (worker,) = at.legato.workers()
        before = rss_bytes(worker)
        answers = asyncio.run(crowd(at.legato.data))
        assert len(answers) == MANY
        assert {answer.partition(b"\r\n\r\n")[2] for answer in answers} == {STREAM.partition(b"\r\n\r\n")[2]}
        assert rss_bytes(worker) - before < 60 * MIB

        eventually(lambda: len(at.shadow.requests) == at.shadow.open_connections(), 5, "all that was sent")
        sent = len(at.shadow.requests)
        assert 1 <= sent <= most
        assert at.results(MANY + 1 - sent)["dropped"] == MANY + 1 - sent, "drawn, less what was sent"
        metrics = at.legato.metrics()
        assert metrics.value("legato_requests_total", outcome="completed") == MANY + 1
        assert metrics.value("legato_requests_in_flight") == 0, "nobody waits for a copy"


def test_the_share_and_what_copies_carry_follow_a_reload() -> None:
    with scene(ANSWER, {"share": "0%", "credentials": "drop"}) as at:
        at.ask(*[post(CHAT, BODY, *SECRETS)] * 3)
        file = at.legato.config_file
        assert file is not None
        file.write_text(file.read_text().replace("share: 0%", "share: 100%"))
        at.legato.send_signal(Signals.SIGHUP)
        eventually(lambda: at.mirrored()["shares"] == [1.0], 5, "the reload")
        _, results = at.copied(post(CHAT, BODY, *SECRETS), 1)
        assert results["completed"] == 1
        names = [name.lower() for name, _ in at.shadow.requests[0].head.headers]
        assert b"x-trace" in names
        assert not {b"authorization", b"cookie"} & set(names)
        assert b"authorization" in [name.lower() for name, _ in at.backend.requests[-1].head.headers]


def test_a_small_answer_is_paired_too() -> None:
    ok = respond(json_response({"usage": {"completion_tokens": 4}}))
    with scene(ok) as at:
        at.backend.use(ok)
        _, results = at.copied(post("/v1/embeddings", b'{"model": "m", "input": "x"}'), 3)
        assert results["completed"] == 3
        one = at.pairs()
        assert one["metrics"]["normalized_latency"]["pairs"] == 3
        assert one["metrics"]["ttft"]["pairs"] == 0
