"""Anthropic's own client yields the same through Legato as from the server itself, and the record is right.

The events are those of Anthropic's documentation, "Streaming messages".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.helpers.procs import Legato
from tests.helpers.scripted import Answer, event_stream, plays
from tests.helpers.upstream import Upstream, json_response
from tests.helpers.vendors import REQUEST_ID, library, record_of

anthropic = library("anthropic")

WORDS = ["The", " sky", " is", " blue", " –", " 青", "い", ".", " ", "👋"]
PARTS = ["", '{"city":', ' "Zür', "ich", '"}']
TOOL = {"name": "weather", "input_schema": {"type": "object"}}
MESSAGE = {"type": "message", "role": "assistant", "model": "tiny", "stop_sequence": None}


def start(name: str, **usage: int) -> dict[str, Any]:
    told = {"input_tokens": 13, "output_tokens": 1, **usage}
    message: dict[str, Any] = {
        **MESSAGE,
        "id": f"msg_{name}",
        "content": [],
        "stop_reason": None,
        "usage": told,
    }
    return {"type": "message_start", "message": message}


def block(index: int, deltas: list[dict[str, Any]], **begun: Any) -> list[dict[str, Any]]:
    """A whole content block."""
    return [
        {"type": "content_block_start", "index": index, "content_block": begun},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def said(index: int = 0, words: list[str] = WORDS) -> list[dict[str, Any]]:
    return block(index, [{"type": "text_delta", "text": word} for word in words], type="text", text="")


def end(reason: str, output: int) -> list[dict[str, Any]]:
    delta = {"stop_reason": reason, "stop_sequence": None}
    return [
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": output}},
        {"type": "message_stop"},
    ]


def thought() -> list[dict[str, Any]]:
    deltas = [{"type": "thinking_delta", "thinking": word} for word in ("Let", " me", " see.")]
    deltas.append({"type": "signature_delta", "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"})
    return block(0, deltas, type="thinking", thinking="", signature="")


def called() -> list[dict[str, Any]]:
    deltas = [{"type": "input_json_delta", "partial_json": part} for part in PARTS]
    return block(1, deltas, type="tool_use", id="toolu_1", name="weather", input={})


OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
SLOW_S = 0.01  # moments that are compared lie far apart, also on a busy machine
STREAMS: dict[str, Answer] = {
    "text": event_stream([start("text"), {"type": "ping"}, *said(), *end("end_turn", 12)], named=True),
    "cached": event_stream(
        [
            start("cached", input_tokens=3, cache_read_input_tokens=1000, cache_creation_input_tokens=20),
            *said(),
            *end("max_tokens", 10),
        ],
        named=True,
    ),
    "thinking": event_stream(
        [start("thinking"), *thought(), *said(1), *end("end_turn", 13)], named=True, pace_s=SLOW_S
    ),
    "tool": event_stream(
        [start("tool"), *said(0, ["I", " look"]), *called(), *end("tool_use", 6)], named=True, pace_s=SLOW_S
    ),
    "overloaded": event_stream([start("overloaded"), *said()[:4], OVERLOADED], named=True),
    "cut": event_stream([start("cut"), *said()[:4]], named=True, cut=True),
    "unknown": json_response(
        {"type": "error", "error": {"type": "not_found_error", "message": "model: unknown"}}, b"404 Not Found"
    ),
}
WHOLE = {
    **MESSAGE,
    "id": "msg_whole",
    "content": [{"type": "text", "text": "The sky is blue."}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 13, "output_tokens": 5},
}


def answer(asked: dict[str, Any]) -> Answer:
    """Answers as the request asks."""
    return STREAMS[asked["model"]] if asked.get("stream") else json_response(WHOLE)


@pytest.fixture
def server(upstream: Upstream) -> Upstream:
    upstream.use(plays({"/v1/messages": answer}))
    return upstream


Ask = Callable[[Any, dict[str, Any]], list[dict[str, Any]]]


def raw_events(client: Any, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The events as they come; with an error as the last one."""
    found: list[dict[str, Any]] = []
    try:
        with client.messages.create(stream=True, **asked) as events:
            found.extend(event.model_dump() for event in events)
    except anthropic.APIStatusError as error:
        found.append({"raised": type(error).__name__, "status": error.status_code, "body": error.body})
    except Exception as error:  # the connection's own
        found.append({"raised": type(error).__name__})
    return found


def accumulated(client: Any, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The client's own events (text so far, tool inputs so far), and the message they make."""
    with client.messages.stream(**asked) as stream:
        events = [event.model_dump() for event in stream]
        return [*events, stream.get_final_message().model_dump()]


def asked_by(ask: Ask, url: str, model: str, request_id: str) -> list[dict[str, Any]]:
    asked: dict[str, Any] = {
        "model": model,
        "max_tokens": 30,
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "tools": [TOOL],
        "extra_headers": {REQUEST_ID: request_id},
    }
    with anthropic.Anthropic(base_url=url, api_key="test", max_retries=0, timeout=30) as client:
        return ask(client, asked)


class Case(NamedTuple):
    """How many events come, whether the last is an error, what the record says."""

    events: int
    raised: bool
    noted: dict[str, Any]


CASES = {
    "text": Case(
        15,  # a ping is not handed on
        False,
        {
            "path": "/v1/messages", "dialect": "anthropic.messages", "model": "text", "status": 200,
            "stream": True, "outcome": "completed", "finish_reason": "end_turn", "response_id": "msg_text",
            "events": 10, "tokens_observed": 10, "tokens_reported": 12, "output_tokens": 12,
            "tokens_source": "events+usage", "prompt_tokens": 13, "prompt_tokens_source": "usage",
            "first_reasoning_s": None, "first_tool_s": None, "unmeasured": None, "error": None,
        },
    ),
    "cached": Case(
        15,
        False,
        {
            "finish_reason": "max_tokens", "prompt_tokens": 1023, "cached_tokens": 1000,
            "tokens_observed": 10, "tokens_reported": 10, "tokens_source": "events+usage",
        },
    ),
    "thinking": Case(
        21,
        False,
        {
            "finish_reason": "end_turn", "events": 13, "tokens_observed": 13, "tokens_reported": 13,
            "first_tool_s": None,
        },
    ),
    "tool": Case(
        14,
        False,
        {
            "finish_reason": "tool_use", "events": 6, "tokens_observed": 6, "tokens_reported": 6,
            "first_reasoning_s": None,
        },
    ),
    "overloaded": Case(
        6,
        True,
        {
            "outcome": "upstream_error", "error": "overloaded_error", "finish_reason": None,
            "tokens_observed": 3, "tokens_reported": None, "dialect": "anthropic.messages",
        },
    ),
    "cut": Case(
        6,
        True,
        {"outcome": "upstream_error", "finish_reason": None, "tokens_observed": 3, "censored": True},
    ),
    "unknown": Case(1, True, {"status": 404, "outcome": "rejected", "tokens_observed": None}),
}  # fmt: skip


@pytest.mark.parametrize(("model", "case"), CASES.items(), ids=CASES)
def test_the_client_yields_the_same_and_the_record_is_right(
    model: str, case: Case, server: Upstream, legato: Legato
) -> None:
    name = f"anthropic-{model}"
    direct = asked_by(raw_events, server.url, model, name)
    assert (len(direct), "raised" in direct[-1]) == (case.events, case.raised)
    assert asked_by(raw_events, legato.url, model, name) == direct
    record = record_of(legato, name)
    assert {key: record[key] for key in case.noted} == case.noted


@pytest.mark.parametrize("model", ["text", "cached", "thinking", "tool"])
def test_what_the_client_makes_of_it_is_the_same(model: str, server: Upstream, legato: Legato) -> None:
    direct = asked_by(accumulated, server.url, model, f"made-{model}")
    assert asked_by(accumulated, legato.url, model, f"made-{model}") == direct
    assert direct[-1]["id"] == f"msg_{model}"


def test_the_first_of_each_kind_stands_in_the_order_it_came(server: Upstream, legato: Legato) -> None:
    asked_by(raw_events, legato.url, "thinking", "order-thinking")
    asked_by(raw_events, legato.url, "tool", "order-tool")
    thinking, tool = record_of(legato, "order-thinking"), record_of(legato, "order-tool")
    assert 0 < thinking["first_event_s"] <= thinking["first_reasoning_s"] < thinking["first_answer_s"]
    assert thinking["ttft_s"] == thinking["first_reasoning_s"]
    assert 0 < tool["first_event_s"] <= tool["first_answer_s"] < tool["first_tool_s"]


def test_a_whole_answer_is_the_same(server: Upstream, legato: Legato) -> None:
    def whole(client: Any, asked: dict[str, Any]) -> list[dict[str, Any]]:
        return [client.messages.create(**asked).model_dump()]

    direct = asked_by(whole, server.url, "tiny", "whole")
    assert asked_by(whole, legato.url, "tiny", "whole") == direct
    assert direct[0]["content"][0]["text"] == "The sky is blue."
