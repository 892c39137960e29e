"""The first token's deadline follows the prompt's length, which is learned from what the server reports."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.procs import Legato, alive, eventually, serve
from tests.helpers.rawclient import CHAT, RawClient, post
from tests.helpers.upstream import (
    DONE,
    SSE_HEAD,
    Connection,
    Request,
    Upstream,
    chat_chunk,
    json_response,
    scripted,
    serve_forever,
    sse,
)

BYTES_PER_TOKEN = 2.5
#: Tokens that each model's chat template adds.
TEMPLATES = {"plain": 0, "chatty": 150}
DEFAULT_S, PER_TOKEN_S = 0.5, 0.001
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0K" * 400}}
#: A picture costs as many tokens as it costs: to learn from it would spoil the ratio at once.
PICTURE_TOKENS = 5_000

_numbers = count(1)


def true_tokens(model: str, text_bytes: int) -> int:
    return TEMPLATES.get(model, 0) + round(text_bytes / BYTES_PER_TOKEN)


def target_s(tokens: float) -> float:
    """What the deadline's table says of a prompt of so many tokens."""
    return DEFAULT_S + PER_TOKEN_S * tokens


async def tell(conn: Connection, request: Request) -> None:
    """Answer, streamed or not, and report the true length of the prompt."""
    body = json.loads(request.body)
    content = body["messages"][0]["content"]
    texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    tokens = true_tokens(body["model"], sum(map(len, texts)))
    tokens += PICTURE_TOKENS * (not isinstance(content, str))
    usage = {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}
    if not body.get("stream"):
        message = {"role": "assistant", "content": "a"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        await conn.send(json_response({"object": "chat.completion", "choices": [choice], "usage": usage}))
        return
    last = {"object": "chat.completion.chunk", "choices": [], "usage": usage}
    events = [chat_chunk({"content": "a"}), chat_chunk({}, finish="stop"), sse(last), DONE]
    await conn.send(SSE_HEAD + b"".join(map(chunk, events)) + LAST_CHUNK)


def settings(upstream: Upstream, tbt: str = "50ms") -> dict[str, Any]:
    points = {0: f"{DEFAULT_S}s", 100_000: f"{target_s(100_000)}s"}
    return {
        "workers": 2,
        "record_headers": {"request_id": "x-request-id"},
        "backends": {"one": {"url": upstream.url}},
        "slos": [{"name": "chat", "ttft": points, "tbt": tbt}],
    }


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with scripted(serve_forever(tell)) as server:
        yield server


@pytest.fixture(scope="module")
def legato(upstream: Upstream) -> Iterator[Legato]:
    with serve(config=settings(upstream)) as process:
        yield process


def send(legato: Legato, model: str, size: int, *, stream: bool = True, picture: bool = False) -> str:
    """One prompt of ``size`` bytes, on a connection of its own: any worker may have it.  Its request id."""
    content: Any = "x" * size
    if picture:
        content = [{"type": "text", "text": content}, PICTURE]
    name = f"r{next(_numbers)}"
    body = {"model": model, "messages": [{"role": "user", "content": content}], "stream": stream}
    with RawClient(legato.data) as client:
        client.send(post(CHAT, json.dumps(body).encode(), ("X-Request-Id", name)))
        assert client.response().status == 200
    return name


def ask(legato: Legato, model: str, size: int, *, picture: bool = False) -> dict[str, Any]:
    """One prompt's record."""
    return legato.record(request_id=send(legato, model, size, picture=picture))


def teach(legato: Legato, model: str, number: int, *, picture: bool = False) -> None:
    """Prompts of all lengths, streamed and not."""
    dice = random.Random(5)
    for each in range(number):
        size = round(64 * 2 ** dice.uniform(0, 9))
        send(legato, model, size, stream=bool(each % 2), picture=picture)


def promises(legato: Legato, model: str, size: int, tokens: float, times: int = 4) -> bool:
    """Whether several requests in a row are promised what is right for so many tokens, within 3%."""
    right = pytest.approx(target_s(tokens), rel=0.03)
    return all(ask(legato, model, size)["ttft_target_s"] == right for _ in range(times))


def test_the_first_promises_are_the_defaults_and_later_ones_are_right(legato: Legato) -> None:
    first = ask(legato, "plain", 8_000)
    assert first["ttft_target_s"] == target_s(8_000 / 4)
    assert (first["prompt_tokens"], first["prompt_tokens_source"]) == (true_tokens("plain", 8_000), "usage")
    teach(legato, "plain", 24)
    for size in (200, 8_000, 60_000):
        eventually(lambda size=size: promises(legato, "plain", size, true_tokens("plain", size)), 10)  # type: ignore[misc]
    assert ask(legato, "other", 8_000)["ttft_target_s"] == target_s(8_000 / 4), "models are apart"


def test_a_template_is_learned_too_and_pictures_teach_nothing(legato: Legato) -> None:
    teach(legato, "chatty", 30)
    for size in (200, 8_000, 60_000):
        tokens = true_tokens("chatty", size)
        eventually(lambda size=size, tokens=tokens: promises(legato, "chatty", size, tokens), 10)  # type: ignore[misc]
    teach(legato, "chatty", 120, picture=True)
    ask(legato, "chatty", 500)
    assert promises(legato, "chatty", 8_000, true_tokens("chatty", 8_000))
    with_picture = ask(legato, "chatty", 8_000, picture=True)
    assert with_picture["ttft_target_s"] == pytest.approx(target_s(true_tokens("chatty", 8_000)), rel=0.03)
    assert with_picture["prompt_tokens"] == true_tokens("chatty", 8_000) + PICTURE_TOKENS


def test_what_was_learned_outlives_tables_and_processes(legato: Legato, upstream: Upstream) -> None:
    teach(legato, "plain", 24)
    tokens = true_tokens("plain", 8_000)
    eventually(lambda: promises(legato, "plain", 8_000, tokens), 10)
    # A new table.
    write(legato, settings(upstream, tbt="70ms"))
    legato.send_signal(signal.SIGHUP)
    eventually(lambda: ask(legato, "plain", 8_000)["tbt_target_s"] == 0.07, 10, "the new table")
    assert promises(legato, "plain", 8_000, tokens)
    # A new worker is told when it says hello.
    old = legato.workers()
    kill(old[0])
    eventually(lambda: len(set(legato.workers()) - set(old)) == 1 and len(legato.workers()) == 2, 10)
    eventually(lambda: legato.get("/readyz", 1)[0] == 200, 10)
    eventually(lambda: promises(legato, "plain", 8_000, tokens, times=10), 10)
    # A new control process knows nothing: the workers go by what the old one told them.
    (control,) = legato.controls()
    kill(control)
    eventually(lambda: legato.controls() not in ([], [control]), 10)
    eventually(lambda: legato.get("/readyz", 1)[0] == 200, 20)
    assert promises(legato, "plain", 8_000, tokens, times=3)


def write(legato: Legato, config: dict[str, Any]) -> None:
    assert legato.config_file is not None
    new = Path(f"{legato.config_file}.new")
    new.write_text(yaml.safe_dump(config))
    os.replace(new, legato.config_file)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid), 5, "a death")
