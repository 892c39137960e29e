"""A worker that falls behind sheds measuring of new streams; the record says so whenever the stream ends."""

from __future__ import annotations

import os
import time
from signal import SIGCONT, SIGSTOP

from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.procs import Legato, eventually, serve
from tests.helpers.rawclient import CHAT, STREAMED_CHAT, RawClient, post
from tests.helpers.upstream import SSE_HEAD, Connection, chat_chunk, scripted


async def when_told(conn: Connection) -> None:
    await conn.request()
    await conn.send(SSE_HEAD + chunk(chat_chunk({"content": "a"})))
    await conn.told()
    await conn.send(chunk(chat_chunk({}, finish="stop")) + LAST_CHUNK)


def hold_back(legato: Legato) -> None:
    """Let the worker stand still most of the time until it sheds."""

    def stand_still() -> bool:
        (worker,) = legato.workers()
        os.kill(worker, SIGSTOP)
        time.sleep(0.3)
        os.kill(worker, SIGCONT)
        time.sleep(0.03)
        return "sheds measuring" in legato.stderr

    eventually(stand_still, 20, "shedding")


def test_why_a_stream_was_not_measured_is_known_when_it_begins() -> None:
    with scripted(when_told) as upstream, serve(upstream.url) as legato, RawClient(legato.data) as client:
        hold_back(legato)
        client.send(post(CHAT, STREAMED_CHAT))
        eventually(lambda: upstream.requests, 5, "the request")
        eventually(lambda: "measures again" in legato.stderr, 10, "measuring again")
        upstream.connection(0).tell()
        assert client.response().status == 200
        record = legato.record(path=CHAT)
        assert (record["unmeasured"], record["slo_result"]) == ("shed", "excluded")
