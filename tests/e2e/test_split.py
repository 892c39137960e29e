"""One URL, two servers behind it: shares, sessions that stay, weights that change, a server that is away."""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import yaml

from proxy.link import SplitSpec
from proxy.relay.sticky import Split
from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.procs import Legato, eventually, free_port, serve
from tests.helpers.rawclient import CHAT, STREAMED_CHAT, RawClient, chunked, post, request
from tests.helpers.upstream import SSE_HEAD, Connection, Script, Upstream, chat_chunk, scripted

WORD, END = chat_chunk({"content": "word"}), chat_chunk({}, finish="stop")
SESSIONS = [f"session-{number}" for number in range(120)]


def named(name: bytes) -> Script:
    """A server that streams a word at once and the rest when it is told, and says its name."""

    async def script(conn: Connection) -> None:
        while True:
            asked = await conn.request()
            await conn.send(SSE_HEAD.replace(b"scripted", name) + chunk(WORD))
            if asked.head.get(b"x-wait"):
                await conn.told()
            await conn.send(chunk(END) + LAST_CHUNK)

    return script


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Upstream]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(scripted(named(name.encode()))) for name in ("stable", "canary")}


def settings(servers: dict[str, Upstream], weights: dict[str, int], **route: Any) -> dict[str, Any]:
    dead = {"dead": {"url": f"http://127.0.0.1:{free_port()}"}} if "dead" in weights else {}
    return {
        "backends": {name: {"url": server.url} for name, server in servers.items()} | dead,
        "routes": [{"split": weights, **route}],
        "trusted_proxies": ["127.0.0.1"],
    }


def homes(sessions: list[str], weights: dict[str, int]) -> dict[str, str]:
    """Where sessions are at home, by the definition."""
    names = "+".join(sorted(weights))
    split = Split(SplitSpec(names, tuple(weights.items()), names))
    return {session: split.arm(split.session(session.encode())) for session in sessions}


def served_by(legato: Legato, *headers: tuple[str, str], body: bytes = STREAMED_CHAT) -> str:
    """The name that the server says, asked on a connection of its own: of any worker."""
    with RawClient(legato.data) as client:
        client.send(post(CHAT, body, *headers))
        return (client.response().head.get(b"server") or b"").decode()


def served(legato: Legato, sessions: list[str]) -> dict[str, str]:
    return {session: served_by(legato, ("X-Session-Id", session)) for session in sessions}


def reload(legato: Legato, config: dict[str, Any]) -> None:
    assert legato.config_file is not None
    new = legato.config_file.with_suffix(".new")
    new.write_text(yaml.safe_dump(config))
    os.replace(new, legato.config_file)
    legato.send_signal(signal.SIGHUP)


def test_sessions_stay_on_every_worker_and_a_new_weight_moves_only_those_that_must(
    servers: dict[str, Upstream],
) -> None:
    before, after = {"stable": 90, "canary": 10}, {"stable": 60, "canary": 40}
    sticky = {"sticky": {"header": "x-session-id"}, "force": {"header": "X-Legato-Backend"}}
    config = {**settings(servers, before, **sticky), "workers": 2}
    with serve(config=config) as legato, RawClient(legato.data) as streaming:
        assert served(legato, SESSIONS) == homes(SESSIONS, before)
        moved = next(one for one in SESSIONS if homes([one], before) != homes([one], after))
        streaming.send(
            post(CHAT, STREAMED_CHAT, ("X-Session-Id", moved), ("X-Wait", "1"), ("X-Request-Id", "in-flight"))
        )
        answer = streaming.read_into(streaming.begin(), at_least=len(WORD))

        reload(legato, {**settings(servers, after, **sticky), "workers": 2})
        eventually(lambda: served(legato, [moved] * 6) == {moved: "canary"}, 10, "the new weights", 0.05)
        eventually(lambda: served(legato, SESSIONS) == homes(SESSIONS, after), 10, "both workers' new table")
        changed = {
            (was, now)
            for was, now in zip(
                homes(SESSIONS, before).values(), served(legato, SESSIONS).values(), strict=True
            )
            if was != now
        }
        assert changed == {("stable", "canary")}

        (waiting,) = [conn for conn in servers["stable"].connections if conn.requests[-1].head.get(b"x-wait")]
        waiting.tell()
        streaming.read_into(answer)
        assert (answer.end, answer.body, answer.head.get(b"server")) == ("complete", WORD + END, b"stable")
        assert legato.record(request_id="in-flight")["backend"] == "stable"

        at_home = next(one for one in SESSIONS if homes([one], after)[one] == "stable")
        for value, backend in (("canary", "canary"), ("stable", "stable"), ("nobody", "stable")):
            headers = ("X-Session-Id", at_home), ("x-legato-backend", value), ("X-Request-Id", f"to-{value}")
            assert served_by(legato, *headers) == backend
            assert legato.record(request_id=f"to-{value}")["backend"] == backend


def test_without_sessions_each_request_is_drawn(servers: dict[str, Upstream]) -> None:
    with serve(config=settings(servers, {"stable": 3, "canary": 1})) as legato:
        with RawClient(legato.data) as client:
            told: Counter[bytes | None] = Counter()
            for _ in range(400):
                client.send(post(CHAT, STREAMED_CHAT))
                told[client.response().head.get(b"server")] += 1
        assert told[b"canary"] == pytest.approx(100, abs=5 * 8.7), "five standard deviations"
        assert set(told) == {b"stable", b"canary"}
        counted = legato.metrics().value("legato_requests_total", backend="canary", outcome="completed")
        assert counted <= told[b"canary"]


@pytest.mark.parametrize(
    "sticky", [{"cookie": "sid"}, {"field": "user"}, {"client": "address"}], ids=lambda way: next(iter(way))
)
def test_sessions_by_other_ways(servers: dict[str, Upstream], sticky: dict[str, str]) -> None:
    weights = {"stable": 50, "canary": 50}
    keys = [f"10.0.0.{number}" for number in range(1, 30)]
    with serve(config=settings(servers, weights, sticky=sticky)) as legato:
        for key, home in homes(keys, weights).items():
            headers = [("Cookie", f"a=b; sid={key}"), ("X-Forwarded-For", f"1.2.3.4, {key}")]
            body = STREAMED_CHAT[:-1] + b', "user": "%s"}' % key.encode()
            told = served_by(legato, *headers, body=body)
            assert told == home


def lost(legato: Legato, name: str, *headers: tuple[str, str]) -> tuple[int, dict[str, Any]]:
    with RawClient(legato.data) as client:
        client.send(post(CHAT, STREAMED_CHAT, ("X-Request-Id", name), *headers))
        status = client.response().status
    return status, legato.record(request_id=name)


def test_a_server_that_is_away_is_stood_in_for_where_the_route_says_so(servers: dict[str, Upstream]) -> None:
    weights = {"dead": 50, "stable": 50}
    of_dead = next(one for one in SESSIONS if homes([one], weights)[one] == "dead")
    session = ("X-Session-Id", of_dead)
    route: dict[str, Any] = {"sticky": {"header": "x-session-id"}, "force": {"header": "x-to"}}
    config = {**settings(servers, weights, **route), "body": {"limit": "64KiB"}}
    config["backends"]["stable"]["url"] += "/its/own"
    with serve(config=config) as legato:
        status, record = lost(legato, "refused", session)
        assert (status, record["backend"], record["error"]) == (502, "dead", "connection_refused")
        assert record["proxy"]["attempts"] == 1

        reload(legato, {**config, "routes": [{**config["routes"][0], "failover": True}]})
        eventually(lambda: served_by(legato, session) == "stable", 10, "failover", 0.05)
        status, record = lost(legato, "stood-in", session)
        assert (status, record["backend"], record["outcome"]) == (200, "stable", "completed")
        assert (record["error"], record["proxy"]["attempts"]) == (None, 2)
        assert record["upstream_addr"] == f"127.0.0.1:{servers['stable'].port}"
        targets = {asked.target for conn in servers["stable"].connections for asked in conn.requests}
        assert b"/its/own/v1/chat/completions" in targets, "as that server is asked"

        body = STREAMED_CHAT + b" " * 300_000  # still on its way when the first server is found away
        with RawClient(legato.data) as client:
            head = request("POST", CHAT, [("Host", "a"), session, ("Transfer-Encoding", "chunked")])
            client.send(head + chunked(body, [100_000, 100_000]))
            assert client.response().head.get(b"server") == b"stable"
        assert body in [asked.body for conn in servers["stable"].connections for asked in conn.requests]

        status, record = lost(legato, "forced", ("X-To", "dead"))
        assert (status, record["backend"]) == (502, "dead"), (
            "who asks for one backend gets it, or its failure"
        )


@contextmanager
def stuck() -> Iterator[int]:
    """A port that answers no connect at all: its queue is full, and nobody takes from it."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        while True:
            client = stack.enter_context(socket.socket())
            client.settimeout(0.2)
            try:
                client.connect(server.getsockname())
            except TimeoutError:
                break
        yield server.getsockname()[1]


def test_a_connect_that_takes_too_long_fails_over_and_a_client_may_leave_meanwhile(
    servers: dict[str, Upstream],
) -> None:
    first, second = {"stuck": 1, "well": 1}, {"away": 1, "stuck": 1}
    with stuck() as port:
        route = {"sticky": {"header": "x-session-id"}, "failover": True}
        config: dict[str, Any] = {
            "backends": {
                "away": {"url": f"http://127.0.0.1:{free_port()}"},
                "stuck": {"url": f"http://127.0.0.1:{port}"},
                "well": {"url": servers["stable"].url},
            },
            "routes": [{"match": {"model": "tiny"}, "split": first, **route}, {"split": second, **route}],
            "timeouts": {"connect": "2500ms"},
        }
        of_stuck = next(one for one in SESSIONS if homes([one], first)[one] == "stuck")
        of_away = next(one for one in SESSIONS if homes([one], second)[one] == "away")
        with serve(config=config) as legato:
            status, record = lost(legato, "late", ("X-Session-Id", of_stuck))
            assert (status, record["backend"], record["outcome"]) == (200, "well", "completed")
            # What the first took; the loop's timers count whole milliseconds.
            assert record["proxy"]["connect_s"] > 2.499

            with RawClient(legato.data) as client:
                client.send(post(CHAT, b"{}", ("X-Session-Id", of_away), ("X-Request-Id", "left")))
                eventually(lambda: connecting(legato, "stuck"), 5, "the second connect", 0.01)
            record = legato.record(request_id="left")
            assert (record["outcome"], record["backend"]) == ("client_cancelled", "away")
            assert record["status"] is None


def connecting(legato: Legato, backend: str) -> bool:
    name = "legato_backend_connections"
    return legato.metrics().value(name, backend=backend, state="connecting") > 0


def test_where_none_is_there_the_failure_is_of_the_one_it_was_assigned_to() -> None:
    weights = {"one": 1, "two": 1}
    config = {
        "backends": {name: {"url": f"http://127.0.0.1:{free_port()}"} for name in weights},
        "routes": [{"split": weights, "sticky": {"header": "x-session-id"}, "failover": True}],
    }
    with serve(config=config) as legato:
        for session in SESSIONS[:4]:
            status, record = lost(legato, session, ("X-Session-Id", session))
            assert (status, record["error"]) == (502, "connection_refused")
            assert record["backend"] == homes([session], weights)[session]
            assert record["proxy"]["attempts"] == 2
