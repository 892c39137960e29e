"""A real ``legato serve``: what ended a moment ago is in the window, in the series, and in the report."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.procs import Legato, eventually
from tests.helpers.rawclient import RawClient, post
from tests.helpers.upstream import SSE_HEAD, Connection, Upstream, chat_chunk


async def two_tokens(conn: Connection) -> None:
    """A chat stream of two tokens at once."""
    await conn.request()
    events = [chat_chunk({"content": "a"}), chat_chunk({"content": "b"}), chat_chunk({}, finish="stop")]
    await conn.send(SSE_HEAD + b"".join(map(chunk, events)) + LAST_CHUNK)


def test_windows_series_and_report_tell_of_the_same_requests(legato: Legato, upstream: Upstream) -> None:
    upstream.use(two_tokens)
    for _ in range(5):
        with RawClient(legato.data) as client:
            client.send(post())
            assert client.response().status == 200
    group = eventually(
        lambda: next(
            (
                each
                for each in legato.json("/api/summary?window=5m")["groups"]
                if each["ttft_s"]["p50"] is not None and each["outcomes"]["completed"] >= 5
            ),
            None,
        )
    )
    assert group is not None
    assert group["output_tokens"] == 10
    summary = legato.json("/api/summary?window=5m")
    ever = legato.json("/api/summary")
    assert summary["total"]["outcomes"] == ever["total"]["outcomes"]
    assert 0 < summary["window_s"] <= 310

    series = legato.json("/api/timeseries?metric=requests&window=5m&step=10s")["series"]
    assert sum(point["value"] for point in series[0]["points"]) == summary["total"]["requests"]
    rates = legato.json("/api/curves/miss-rate?window=5m")["total"]["miss_rate"]
    assert rates["samples"] == 5

    told = subprocess.run(
        [
            sys.executable,
            "-m",
            "proxy.cli",
            "report",
            "--window",
            "5m",
            "--json",
            "--admin",
            legato.admin_url,
        ],
        capture_output=True,
        timeout=30,
        check=True,
    )
    report = json.loads(told.stdout)
    assert report["summary"]["total"]["outcomes"] == summary["total"]["outcomes"]
    assert told.stderr == b""
