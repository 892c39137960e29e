"""The official client gets the same objects through Legato as from the server itself."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.procs import Legato, free_port, serve
from tests.helpers.upstream import (
    DONE,
    SSE_HEAD,
    Connection,
    Request,
    Upstream,
    chat_chunk,
    chat_stream,
    json_response,
    serve_forever,
    sse,
)

MESSAGES: Any = [{"role": "user", "content": "Say something."}]
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
ARGUMENTS = ['{"ci', 'ty": "', "Zür", 'ich", "', 'unit": "', 'C"}']


def tool_call(part: dict[str, Any]) -> bytes:
    return chat_chunk({"tool_calls": [{"index": 0, **part}]})


def tool_events() -> list[bytes]:
    return [
        chat_chunk({"role": "assistant", "content": None}),
        tool_call({"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": ""}}),
        *(tool_call({"function": {"arguments": part}}) for part in ARGUMENTS),
        chat_chunk({}, finish="tool_calls"),
        DONE,
    ]


def two_choices() -> list[bytes]:
    words = [("a", 0), ("x", 1), ("y", 1), ("b", 0), ("é", 1), ("漢", 0)]
    usage = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1764000000, "model": "tiny"}
    return [
        *(chat_chunk({"role": "assistant", "content": ""}, index=index) for index in (0, 1)),
        *(chat_chunk({"content": word}, index=index) for word, index in words),
        *(chat_chunk({}, finish="stop", index=index) for index in (1, 0)),
        sse(
            {
                **usage,
                "choices": [],
                "usage": {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11},
            }
        ),
        DONE,
    ]


async def like_vllm(conn: Connection, request: Request) -> None:
    """Answers as the request asks, one event per write."""
    asked = json.loads(request.body)
    if asked.get("model") == "unknown":
        error = {"message": "The model does not exist.", "type": "NotFoundError", "param": None, "code": 404}
        await conn.send(json_response({"error": error}, b"404 Not Found"))
        return
    if not asked.get("stream"):
        await conn.send(json_response(whole_answer()))
        return
    if asked.get("tools"):
        events = tool_events()
    elif asked.get("n") == 2:
        events = two_choices()
    elif asked["max_tokens"] > 100:
        await conn.send(SSE_HEAD + chunk(chat_chunk({"role": "assistant", "content": "first"})))
        await conn.client_gone()
        return
    else:
        await conn.send(chat_stream(["Hel", "lo", " ", "wörld", " ", "👋"]))
        return
    await conn.send(SSE_HEAD)
    for event in events:
        await conn.send(chunk(event))
    await conn.send(LAST_CHUNK)


def whole_answer() -> dict[str, Any]:
    message = {"role": "assistant", "content": "Hello."}
    return {
        "id": "chatcmpl-2",
        "object": "chat.completion",
        "created": 1764000000,
        "model": "tiny",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }


@pytest.fixture
def vllm(upstream: Upstream) -> Upstream:
    upstream.use(serve_forever(like_vllm))
    return upstream


@pytest.fixture
def clients(vllm: Upstream, legato: Legato) -> Iterator[tuple[OpenAI, OpenAI]]:
    """The client towards the server itself, and the same through Legato."""
    with client_of(vllm.url) as direct, client_of(legato.url) as proxied:
        yield direct, proxied


def client_of(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="sk-test", max_retries=0, timeout=30)


Ask = Callable[[OpenAI], Any]


def streamed(client: OpenAI, **more: Any) -> list[dict[str, Any]]:
    asked = {"max_tokens": 20, **more}
    with client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, **asked) as events:
        return [event.model_dump() for event in events]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="chat"),
        pytest.param({"tools": TOOLS, "tool_choice": "required"}, id="tool-calls"),
        pytest.param({"n": 2, "stream_options": {"include_usage": True}}, id="two-choices"),
    ],
)
def test_streamed_objects_are_equal(clients: tuple[OpenAI, OpenAI], more: dict[str, Any]) -> None:
    direct, proxied = clients
    expected = streamed(direct, **more)
    assert len(expected) > 7
    assert streamed(proxied, **more) == expected


def test_a_whole_answer_is_equal(clients: tuple[OpenAI, OpenAI]) -> None:
    answers = [client.chat.completions.create(model="tiny", messages=MESSAGES) for client in clients]
    assert answers[0].model_dump() == answers[1].model_dump()
    assert answers[0].choices[0].message.content == "Hello."


def test_an_error_of_the_server_is_equal(clients: tuple[OpenAI, OpenAI]) -> None:
    errors = []
    for client in clients:
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="unknown", messages=MESSAGES)
        errors.append((caught.value.status_code, caught.value.body))
    assert errors[0] == errors[1]


def test_what_the_server_was_asked_is_equal_but_for_the_host(
    vllm: Upstream, clients: tuple[OpenAI, OpenAI]
) -> None:
    for client in clients:
        streamed(client)
    direct, proxied = vllm.requests
    assert direct.body == proxied.body
    assert direct.target == proxied.target
    assert direct.head.end_to_end(b"host") == proxied.head.end_to_end(b"host")


def test_an_abort_in_the_middle_closes_the_upstream(vllm: Upstream, clients: tuple[OpenAI, OpenAI]) -> None:
    _, proxied = clients
    took_ns = []
    for number in range(7):
        events = proxied.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, max_tokens=1000
        )
        assert next(iter(events)).choices[0].delta.content == "first"
        connection = vllm.connection(number)
        left_ns = connection.now_ns()
        events.close()
        took_ns.append(connection.wait_gone() - left_ns)
    assert statistics.median(took_ns) < 100_000_000, took_ns


def test_an_unreachable_server_is_an_error_that_the_client_understands() -> None:
    with serve(f"http://127.0.0.1:{free_port()}") as legato, client_of(legato.url) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="tiny", messages=MESSAGES)
        assert caught.value.status_code == 502
        assert caught.value.code == "connection_refused"
