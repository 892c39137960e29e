"""Which promise a request gets by the length of its prompt: from the configuration to the record."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.curves import learned
from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.procs import Legato, eventually, serve
from tests.helpers.rawclient import CHAT, RawClient, post
from tests.helpers.upstream import (
    DONE,
    SSE_HEAD,
    Connection,
    Request,
    chat_chunk,
    scripted,
    serve_forever,
)

MS = 1_000_000
_numbers = count(1)


async def answer(conn: Connection, request: Request) -> None:
    """One token, and no usage: prompts stay at four bytes a token."""
    events = [chat_chunk({"content": "a"}), chat_chunk({}, finish="stop"), DONE]
    await conn.send(SSE_HEAD + b"".join(map(chunk, events)) + LAST_CHUNK)


def settings(url: str, curves: Path) -> dict[str, Any]:
    quadratic = {"base": "120ms", "per_token": "80us", "per_token_squared": "0.35ns", "slack": "30ms"}
    frozen = {"learned": str(curves), "slack": "300ms", "fallback": {0: "1s", 1000: "2s"}}
    live = {"learned": "live", "slack": "300ms", "fallback": "3s"}
    return {
        "record_headers": {"request_id": "x-request-id"},
        "backends": {"one": {"url": url}},
        "slos": [
            {"name": "short", "match": {"prompt_tokens": {"max": 63}}, "ttft": "250ms"},
            {
                "name": "quadratic",
                "match": {"model": "q", "prompt_tokens": {"min": 64, "max": 8192}},
                "ttft": quadratic,
            },
            {"name": "live", "match": {"model": "live"}, "ttft": live},
            {"name": "frozen", "ttft": frozen},
        ],
    }


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("curves") / "curves.yaml"
    learned(file, ("one", "known", 700 * MS))
    return file


@pytest.fixture(scope="module")
def legato(curves: Path) -> Iterator[Legato]:
    with scripted(serve_forever(answer)) as upstream, serve(config=settings(upstream.url, curves)) as process:
        yield process


def promise(legato: Legato, model: str, tokens: int) -> tuple[str, float]:
    """The SLO of a prompt of so many tokens, and its first token's deadline in seconds."""
    name = f"r{next(_numbers)}"
    messages = [{"role": "user", "content": "x" * (4 * tokens)}]
    body = json.dumps({"model": model, "messages": messages, "stream": True}).encode()
    with RawClient(legato.data) as client:
        client.send(post(CHAT, body, ("X-Request-Id", name)))
        assert client.response().status == 200
    record = legato.record(request_id=name)
    return record["slo"], record["ttft_target_s"]


@pytest.mark.parametrize(
    ("model", "tokens", "slo", "ttft_s"),
    [
        ("q", 63, "short", 0.25),
        ("q", 64, "quadratic", 0.155121),  # 150 ms + 5.12 ms + 1.4336 us
        ("q", 8192, "quadratic", 0.828848),  # 150 ms + 655.36 ms + 23.4881024 ms
        ("q", 8193, "frozen", 2.0),
        ("known", 63, "short", 0.25),
        ("known", 500, "frozen", 1.0),
        ("known", 9000, "frozen", 1.0),
        ("unknown", 500, "frozen", 1.5),
        ("live", 500, "live", 3.0),
    ],
)
def test_the_prompts_length_decides(legato: Legato, model: str, tokens: int, slo: str, ttft_s: float) -> None:
    assert promise(legato, model, tokens) == (slo, ttft_s)


def test_a_new_freeze_is_promised_after_a_reload(legato: Legato, curves: Path) -> None:
    assert promise(legato, "known", 500) == ("frozen", 1.0)
    learned(curves, ("one", "known", 100 * MS))
    assert promise(legato, "known", 500) == ("frozen", 1.0), "not before"
    legato.send_signal(signal.SIGHUP)
    eventually(lambda: promise(legato, "known", 500) == ("frozen", 0.4), 10)
