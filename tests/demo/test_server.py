"""The simulated engine over a real socket, seen by the official client and by the demo's own."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import openai
import pytest
import uvicorn

from deploy.demo import client
from deploy.demo.cost import CostModel
from deploy.demo.machine import build_engine
from deploy.demo.openai_shapes import OWNER
from deploy.demo.server import build_app
from tests.helpers.procs import patience_s

#: A machine a hundred times faster than the demo's, so that tests are.
FAST = CostModel(overhead_ns=50_000, flops_per_gpu=312e14, bandwidth_per_gpu=2.039e14)

HELLO = b'[{"role": "user", "content": "hello"}]'


@pytest.fixture
def url() -> Iterator[str]:
    """A fast server of its own for each test, in a thread, on a port that the kernel chose."""
    with served(FAST) as where:
        yield where


@contextmanager
def served(cost: CostModel) -> Iterator[str]:
    """A server on a machine of that cost: its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = build_app("chunked", "sim", build_engine("chunked", cost=cost))
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="error", server_header=False, headers=[("server", OWNER)])
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def load(url: str) -> dict[str, int]:
    """What the engine holds now."""
    answer: dict[str, int] = httpx.get(f"{url}/load").json()
    return answer


def chat(tokens: int, **more: object) -> dict[str, object]:
    """The body of a chat request."""
    return {
        "model": "sim",
        "messages": [{"role": "user", "content": "hello there"}],
        "max_tokens": tokens,
        **more,
    }


def test_the_openai_client_reads_a_stream_to_its_end(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as api:
        chunks = list(
            api.chat.completions.create(
                model="sim",
                messages=[{"role": "user", "content": "hello there"}],
                max_tokens=7,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert len([delta for delta in deltas if delta.content]) == 7
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 7)  # 11 bytes of prompt, 4 a token
    assert not chunks[-1].choices
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_openai_client_reads_whole_answers_and_completions(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as api:
        whole = api.chat.completions.create(
            model="sim", messages=[{"role": "user", "content": "x"}], max_tokens=5
        )
        pieces = list(api.completions.create(model="sim", prompt="x", max_tokens=5, stream=True))
    assert whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 5
    assert len([piece for piece in pieces if piece.choices[0].text]) == 5


def test_it_says_that_it_is_a_simulator(url: str) -> None:
    answer = httpx.get(f"{url}/v1/models")
    assert answer.headers["server"] == OWNER
    (entry,) = answer.json()["data"]
    assert entry["owned_by"] == OWNER
    assert "simulated" in entry["root"]
    assert httpx.get(f"{url}/health").status_code == 200


def test_events_are_one_a_token_and_usage_only_comes_when_asked_for(url: str) -> None:
    plain = httpx.post(f"{url}/v1/chat/completions", json=chat(3, stream=True))
    assert plain.headers["content-type"].startswith("text/event-stream")
    events = [line[6:] for line in plain.text.split("\n\n") if line]
    assert len(events) == 1 + 3 + 1
    assert events[-1] == "[DONE]"
    assert all("usage" not in json.loads(event) for event in events[:-1])
    running = httpx.post(
        f"{url}/v1/chat/completions",
        json=chat(3, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}),
    )
    counts = [json.loads(event[6:]).get("usage") for event in running.text.split("\n\n")[1:-2]]
    assert [count and count["completion_tokens"] for count in counts] == [1, 2, 3, 3]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b'{"model": "sim", "messages": [', 400, "JSON"),
        (b"[]", 400, "object"),
        (b'{"model": "other", "messages": %s}' % HELLO, 404, "does not exist"),
        (b'{"model": "sim"}', 400, "messages"),
        (b'{"model": "sim", "messages": %s, "max_tokens": 0}' % HELLO, 400, "max_tokens"),
        (b'{"model": "sim", "messages": %s, "n": 2}' % HELLO, 400, "`n`"),
        (b'{"model": "sim", "messages": %s}' % HELLO.replace(b"hello", b"x" * 70_000), 400, "context"),
    ],
)
def test_bad_requests_are_answered_in_openais_shape(url: str, body: bytes, status: int, says: str) -> None:
    answer = httpx.post(f"{url}/v1/chat/completions", content=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert says in error["message"]
    assert error["code"] == status


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place_in_the_engine(stream: bool) -> None:
    with served(CostModel()) as url:  # 15,000 tokens would take it seven minutes
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps(chat(15_000, stream=stream)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body)
            wait_for(lambda: load(url)["running"] == 1)
        wait_for(lambda: load(url) == {"waiting": 0, "running": 0})


def test_the_demos_own_client_counts_what_came(url: str) -> None:
    asked = chat(9, stream=True, stream_options={"include_usage": True})
    reply = asyncio.run(client.post(f"{url}/v1/chat/completions", asked))
    assert (reply.ok, reply.tokens) == (True, 9)
    assert reply.events == 1 + 9 + 1 + 1  # role, tokens, usage, [DONE]
    refused = asyncio.run(client.post(f"{url}/v1/chat/completions", chat(0)))
    assert (refused.ok, refused.status) == (False, 400)


def test_an_event_is_counted_once_however_it_is_split() -> None:
    stream = b"".join(b'data: {"n":%d,"usage":{"completion_tokens":%d}}\n\n' % (n, n) for n in range(5))
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(stream)
    for size in (1, 2, 3, 5, 7, 40, 4000):
        reply = client.Reply()
        reader = client.Reader(reply, keep=False)
        reader.parser.feed_data(head)
        for at in range(0, len(stream), size):
            reader.parser.feed_data(stream[at : at + size])
        assert (reply.events, reply.tokens, reply.end) == (5, 4, "complete")


def test_the_demos_own_client_says_who_cannot_be_reached_and_who_breaks_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/x"

        def answer() -> None:
            connection, _ = listener.accept()
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        reply = asyncio.run(client.post(address, {}))
        thread.join(10)
    assert (reply.ok, reply.status, reply.end) == (False, 200, "truncated")
    assert "cannot connect" in asyncio.run(client.post(address, {})).end


def wait_for(condition: object, within_s: float = 10.0) -> None:
    """Poll until ``condition()`` holds."""
    assert callable(condition)
    deadline = time.monotonic() + patience_s(within_s)
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.01)
