"""A new configuration while streams run: new requests see it, those in flight keep what they had."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.procs import Legato, eventually, serve
from tests.helpers.rawclient import CHAT, STREAMED_CHAT, RawClient, Response, get, post
from tests.helpers.upstream import (
    SSE_HEAD,
    Connection,
    Script,
    Upstream,
    chat_chunk,
    scripted,
)

WORD, END = chat_chunk({"content": "word"}), chat_chunk({}, finish="stop")


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


@pytest.fixture
def servers() -> Iterator[tuple[Upstream, Upstream]]:
    with ExitStack() as stack:
        yield stack.enter_context(scripted(named(b"old"))), stack.enter_context(scripted(named(b"new")))


def settings(upstream: Upstream, tbt: str = "50ms", **more: Any) -> dict[str, Any]:
    return {
        "backends": {"one": {"url": upstream.url}},
        "slos": [{"name": "chat", "ttft": "500ms", "tbt": tbt}],
        **more,
    }


def write(legato: Legato, text: str) -> None:
    """Replace the file as an editor does: whole, by a rename."""
    assert legato.config_file is not None
    new = legato.config_file.with_suffix(".new")
    new.write_text(text)
    os.replace(new, legato.config_file)


def rewrite(legato: Legato, config: dict[str, Any]) -> None:
    write(legato, yaml.safe_dump(config))


def ask(legato: Legato, name: str = "") -> Response:
    with RawClient(legato.data) as client:
        client.send(post(CHAT, STREAMED_CHAT, *([("X-Request-Id", name)] if name else [])))
        return client.response()


def served_by(legato: Legato) -> bytes | None:
    return ask(legato).head.get(b"server")


def test_new_requests_see_the_new_table_and_those_in_flight_do_not(
    servers: tuple[Upstream, Upstream],
) -> None:
    old, new = servers
    with serve(config=settings(old)) as legato, RawClient(legato.data) as client:
        processes = legato.workers() + legato.controls()
        client.send(post(CHAT, STREAMED_CHAT, ("X-Request-Id", "in-flight"), ("X-Wait", "1")))
        answer = client.read_into(client.begin(), at_least=len(WORD))

        rewrite(legato, settings(new, tbt="20ms"))
        legato.send_signal(signal.SIGHUP)
        eventually(lambda: served_by(legato) == b"new", 10, "the new table", 0.05)
        assert legato.metrics().value("legato_tbt_target_seconds", slo="chat") == 0.02
        assert legato.metrics().value("legato_config_reload_success") == 1
        assert legato.json("/api/config")["config"]["slos"][0]["tbt"] == "20ms"

        old.connection().tell()
        client.read_into(answer)
        assert (answer.end, answer.body) == ("complete", WORD + END)
        record = legato.record(request_id="in-flight")
        assert (record["tbt_target_s"], record["outcome"]) == (0.05, "completed")
        assert record["upstream_addr"] == f"127.0.0.1:{old.port}"
        # the same connection's next request is a new one
        client.send(post(CHAT, STREAMED_CHAT, ("X-Request-Id", "after")))
        assert client.response().head.get(b"server") == b"new"
        record = legato.record(request_id="after")
        assert (record["tbt_target_s"], record["upstream_addr"]) == (0.02, f"127.0.0.1:{new.port}")
        assert legato.workers() + legato.controls() == processes
        # connections to a server that is no backend any more are given up
        assert all(conn.wait_gone() for conn in old.connections)


BAD = {  # the file's text -> what the complaint names
    "backends: {one: {url: [}": "legato.yaml",
    "backends: {one: {url: http://127.0.0.1:1, colour: red}}": "colour",
    "backends: {one: {url: http://127.0.0.1:1}}\ntimeouts: {idle: soon}": "soon",
    "listen: 127.0.0.1:1": "backends",
    "": "backends",
}


def test_a_bad_file_changes_nothing_and_says_why(servers: tuple[Upstream, Upstream]) -> None:
    old, new = servers
    with serve(config=settings(old)) as legato:
        before = legato.json("/api/config")["config"]
        assert served_by(legato) == b"old"
        for number, (text, said) in enumerate(BAD.items(), 1):
            write(legato, text)
            legato.send_signal(signal.SIGHUP)
            eventually(
                lambda number=number: legato.stderr.count("was not reloaded") == number,  # type: ignore[misc]
                10,
                f"the complaint about {text!r}",
            )
            shown = legato.json("/api/config")
            assert (shown["config"], shown["reload_ok"]) == (before, False)
            assert said in shown["reload_error"]
            assert said in legato.stderr.rpartition("was not reloaded")[2]
            assert legato.metrics().value("legato_config_reload_success") == 0
            assert legato.get("/readyz")[0] == 200
            assert served_by(legato) == b"old"

        rewrite(legato, settings(new))
        legato.send_signal(signal.SIGHUP)
        eventually(lambda: legato.metrics().value("legato_config_reload_success") == 1, 10, "the mended file")
        assert legato.json("/api/config")["reload_error"] is None
        eventually(lambda: served_by(legato) == b"new", 10, "the new table", 0.05)


def test_a_watched_file_is_reloaded_when_it_changes(servers: tuple[Upstream, Upstream]) -> None:
    old, new = servers
    with serve(config=settings(old, watch=True)) as legato:
        assert served_by(legato) == b"old"
        rewrite(legato, settings(new, watch=True))
        eventually(lambda: served_by(legato) == b"new", 10, "the new table", 0.1)
        write(legato, "backends: 7")
        eventually(
            lambda: legato.metrics().value("legato_config_reload_success") == 0, 10, "the failure", 0.1
        )
        assert served_by(legato) == b"new"


def test_a_file_that_is_not_watched_is_left_alone_until_the_signal(
    servers: tuple[Upstream, Upstream],
) -> None:
    old, new = servers
    with serve(config=settings(old)) as legato:
        rewrite(legato, settings(new))
        ticks = legato.metrics().value("legato_event_loop_lag_seconds_count")
        eventually(
            lambda: legato.metrics().value("legato_event_loop_lag_seconds_count") > ticks + 100,
            10,
            "some seconds of beats",
            0.1,
        )
        assert served_by(legato) == b"old"
        legato.send_signal(signal.SIGHUP)
        eventually(lambda: served_by(legato) == b"new", 10, "the new table", 0.05)


def test_measuring_is_switched_off_and_on_at_run_time(servers: tuple[Upstream, Upstream]) -> None:
    old, _ = servers
    names = (f"ask-{number}" for number in count())
    with serve(config=settings(old)) as legato:

        def unmeasured() -> object:
            name = next(names)
            assert ask(legato, name).body == WORD + END
            return legato.record(request_id=name)["unmeasured"]

        def switch(on: bool) -> None:
            rewrite(legato, settings(old, measure=on))
            legato.send_signal(signal.SIGHUP)

        assert unmeasured() is None
        switch(False)
        eventually(lambda: unmeasured() == "switched_off", 5, "no measuring")
        switch(True)
        eventually(lambda: unmeasured() is None, 5, "measuring again")
        assert legato.metrics().value("legato_unmeasured_total", reason="switched_off") >= 1


def test_what_takes_a_restart_is_said(servers: tuple[Upstream, Upstream], tmp_path: Path) -> None:
    old, _ = servers
    with serve(config=settings(old)) as legato:
        rewrite(legato, settings(old, workers=2))
        legato.send_signal(signal.SIGHUP)
        eventually(lambda: "the change of workers takes a restart" in legato.stderr, 10, "the warning")
        assert len(legato.workers()) == 1
        with RawClient(legato.data) as client:
            client.send(get())
            assert client.response().status == 200
