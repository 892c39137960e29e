"""From traffic to a promise: prefill is learned, frozen, put into force, and deadlines follow the prompt."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.curves import read_curves
from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.procs import Legato, eventually, serve
from tests.helpers.rawclient import CHAT, RawClient, post
from tests.helpers.upstream import (
    DONE,
    SSE_HEAD,
    Connection,
    Request,
    Upstream,
    chat_chunk,
    scripted,
    serve_forever,
    sse,
)

pytestmark = pytest.mark.alone

BYTES_PER_TOKEN = 4
SLACK_S, FALLBACK_S = 0.3, 2.0
#: Both ends of the prompts, in tokens.
SHORT, LONG = 64, 1_024
REQUESTS = 320

_numbers = count(1)


def prefill_s(tokens: int) -> float:
    return 0.02 + 0.0001 * tokens


async def tell(conn: Connection, request: Request) -> None:
    """The first token comes when the prompt has been read."""
    tokens = len(json.loads(request.body)["messages"][0]["content"]) // BYTES_PER_TOKEN
    await conn.send(SSE_HEAD)
    await asyncio.sleep(prefill_s(tokens))
    usage = {"prompt_tokens": tokens, "completion_tokens": 2, "total_tokens": tokens + 2}
    last = {"object": "chat.completion.chunk", "choices": [], "usage": usage}
    await conn.send(chunk(chat_chunk({"content": "a"})))
    await asyncio.sleep(0.005)
    events = [chat_chunk({"content": "b"}), chat_chunk({}, finish="stop"), sse(last), DONE]
    await conn.send(b"".join(map(chunk, events)) + LAST_CHUNK)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with scripted(serve_forever(tell)) as running:
        yield running


def settings(upstream: Upstream, learned: str) -> dict[str, Any]:
    ttft = {"learned": learned, "slack": f"{SLACK_S}s", "fallback": f"{FALLBACK_S}s"}
    return {
        "record_headers": {"request_id": "x-request-id"},
        "backends": {"one": {"url": upstream.url}},
        "slos": [{"name": "chat", "ttft": ttft, "tbt": "50ms"}],
    }


def send(legato: Legato, tokens: int) -> str:
    """One prompt; its request id."""
    name = f"r{next(_numbers)}"
    message = {"role": "user", "content": "x" * (tokens * BYTES_PER_TOKEN)}
    body = json.dumps({"model": "m", "stream": True, "messages": [message]}).encode()
    with RawClient(legato.data) as client:
        client.send(post(CHAT, body, ("X-Request-Id", name)))
        assert client.response().status == 200
    return name


def ask(legato: Legato, tokens: int) -> dict[str, Any]:
    """One prompt's record."""
    return legato.record(request_id=send(legato, tokens))


def teach(legato: Legato) -> None:
    """Prompts of all lengths, some at a time."""
    dice = random.Random(3)
    sizes = [round(SHORT * (LONG / SHORT) ** dice.random()) for _ in range(REQUESTS)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda tokens: send(legato, tokens), sizes))


def freeze(legato: Legato, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "proxy.cli", "freeze", "--admin", legato.admin_url, "--out", str(out)]
    return subprocess.run([*command, *more], capture_output=True, text=True, check=False, timeout=60)


def test_a_promise_follows_the_prompt_once_what_was_learned_is_frozen(upstream: Upstream) -> None:
    with serve(config=settings(upstream, "live")) as legato:
        assert legato.config_file is not None
        out = legato.config_file.with_name("curves.yaml")
        assert ask(legato, LONG)["ttft_target_s"] == FALLBACK_S
        early = freeze(legato, out)
        assert early.returncode == 1
        assert re.search("one, m: [01] requests in the window, 200 are needed", early.stderr)
        assert not out.exists()

        teach(legato)
        assert ask(legato, LONG)["ttft_target_s"] == FALLBACK_S  # learned, and nobody is judged by it
        eventually(lambda: freeze(legato, out).returncode == 0, 20, "a curve")
        (frozen,) = read_curves(str(out)).curves
        assert (frozen.backend, frozen.model) == ("one", "m")
        for tokens in (2 * SHORT, LONG // 2):
            assert frozen.curve.at(tokens) / 1e9 == pytest.approx(prefill_s(tokens), rel=0.15)
        assert freeze(legato, out).returncode == 2  # it is in the way

        new = legato.config_file.with_suffix(".new")
        new.write_text(yaml.safe_dump(settings(upstream, "curves.yaml")))
        os.replace(new, legato.config_file)
        legato.send_signal(signal.SIGHUP)
        eventually(lambda: ask(legato, SHORT)["ttft_target_s"] != FALLBACK_S, 10, "the new table", 0.05)
        for tokens in (2 * SHORT, LONG // 2):
            want_s = SLACK_S + frozen.curve.at(tokens) / 1e9
            assert ask(legato, tokens)["ttft_target_s"] == pytest.approx(want_s, rel=0.02)

        (pair,) = legato.json("/api/curves")["prefill"]
        assert pair["frozen"][0]["prefill_drift"] == pytest.approx(1.0, abs=0.15)
        assert pair["live"]["taught"] + pair["live"]["disturbed"] >= REQUESTS
        drift = legato.metrics().value("legato_prefill_drift_ratio", backend="one", model="m")
        assert drift == pair["frozen"][0]["prefill_drift"]
        assert legato.metrics().value("legato_tbt_drift_ratio", model="m", at="p50") > 0
