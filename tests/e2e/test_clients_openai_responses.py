"""OpenAI's client yields the same responses through Legato as from the server, and the record is right.

The events are those of OpenAI's API reference, "Streaming events" (Responses API).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.helpers.procs import Legato
from tests.helpers.scripted import Answer, event_stream, plays
from tests.helpers.upstream import Upstream, json_response
from tests.helpers.vendors import REQUEST_ID, library, record_of

openai = library("openai")

WORDS = ["The", " sky", " is", " blue", " –", " 青", "い", ".", " ", "👋"]
PARTS = ['{"city":', ' "Zür', "ich", '"}']
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
AT = {"item_id": "item_1", "output_index": 0, "content_index": 0}
LOGPROB = {"token": "x", "logprob": -0.25, "top_logprobs": []}


def usage(output: int, *, reasoning: int = 0) -> dict[str, Any]:
    return {
        "input_tokens": 15,
        "input_tokens_details": {"cached_tokens": 7, "cache_write_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": 15 + output,
    }


def whole(name: str, status: str, **more: Any) -> dict[str, Any]:
    """A response object."""
    return {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": 1764000000,
        "status": status,
        "model": name,
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "error": None,
        "incomplete_details": None,
        "usage": None,
        **more,
    }


def message(content: list[dict[str, Any]], status: str) -> dict[str, Any]:
    return {"id": "item_1", "type": "message", "role": "assistant", "status": status, "content": content}


def said(words: list[str] = WORDS, **more: Any) -> list[dict[str, Any]]:
    """One message item, from its beginning to its end."""
    part = {"type": "output_text", "text": "", "annotations": []}
    done = {**part, "text": "".join(words)}
    return [
        {"type": "response.output_item.added", "output_index": 0, "item": message([], "in_progress")},
        {"type": "response.content_part.added", **AT, "part": part},
        *(
            {"type": "response.output_text.delta", **AT, "delta": word, "logprobs": [], **more}
            for word in words
        ),
        {"type": "response.output_text.done", **AT, "text": done["text"], "logprobs": []},
        {"type": "response.content_part.done", **AT, "part": done},
        {"type": "response.output_item.done", "output_index": 0, "item": message([done], "completed")},
    ]


def thought() -> list[dict[str, Any]]:
    at = {"item_id": "item_0", "output_index": 0, "summary_index": 0}
    return [
        {"type": "response.reasoning_summary_text.delta", **at, "delta": word}
        for word in ("Let", " me", " see.")
    ]


def called() -> list[dict[str, Any]]:
    at = {"item_id": "item_1", "output_index": 0}
    arguments = "".join(PARTS)
    item = {"type": "function_call", "id": "item_1", "call_id": "call_1", "name": "weather", "arguments": ""}
    return [
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        *({"type": "response.function_call_arguments.delta", **at, "delta": part} for part in PARTS),
        {"type": "response.function_call_arguments.done", **at, "arguments": arguments},
        {"type": "response.output_item.done", "output_index": 0, "item": {**item, "arguments": arguments}},
    ]


def streamed(name: str, middle: list[dict[str, Any]], end: str | None, **more: Any) -> list[dict[str, Any]]:
    """A whole stream, its events numbered; ``end``: completed, incomplete, failed, or none."""
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": whole(name, "queued")},
        {"type": "response.in_progress", "response": whole(name, "in_progress")},
        *middle,
    ]
    if end is not None:
        events.append({"type": f"response.{end}", "response": whole(name, end, **more)})
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


FAILED = {"code": "server_error", "message": "The model failed."}
MAX = {"reason": "max_output_tokens"}
RATE = {"type": "error", "code": "rate_limit_exceeded", "message": "Slow down.", "param": None}
EVENTS = {
    "text": streamed("text", said(), "completed", usage=usage(12)),
    "logprobs": streamed("logprobs", said(logprobs=[LOGPROB] * 2), "completed", usage=usage(20)),
    "limit": streamed("limit", said(), "incomplete", incomplete_details=MAX, usage=usage(10)),
    "thinking": streamed("thinking", [*thought(), *said()], "completed", usage=usage(13, reasoning=3)),
    "tool": streamed("tool", called(), "completed", usage=usage(4)),
    "failed": streamed("failed", said()[:5], "failed", error=FAILED),
    "error": streamed("error", [*said()[:5], RATE], None),
    "cut": streamed("cut", said()[:5], None),
}
SLOW_S = 0.01  # moments that are compared lie far apart, also on a busy machine
STREAMS: dict[str, Answer] = {
    **{name: event_stream(events, named=True, cut=name == "cut") for name, events in EVENTS.items()},
    "slow": event_stream(EVENTS["thinking"], named=True, pace_s=SLOW_S),
    "nameless": event_stream(streamed("nameless", said(), "completed", usage=usage(10))),  # transformers
    "unknown": json_response({"error": {"message": "unknown", "type": "not_found"}}, b"404 Not Found"),
}


def answer(asked: dict[str, Any]) -> Answer:
    """Answers as the request asks."""
    if asked.get("stream"):
        return STREAMS[asked["model"]]
    done = {"type": "output_text", "text": "The sky is blue.", "annotations": []}
    output = [message([done], "completed")]
    return json_response(whole("whole", "completed", output=output, usage=usage(5)))


@pytest.fixture
def server(upstream: Upstream) -> Upstream:
    upstream.use(plays({"/v1/responses": answer}))
    return upstream


Ask = Callable[[Any, dict[str, Any]], list[dict[str, Any]]]


def raw_events(client: Any, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The events as they come; with an error that is raised as the last one."""
    found: list[dict[str, Any]] = []
    try:
        with client.responses.create(stream=True, **asked) as events:
            found.extend(event.model_dump() for event in events)
    except openai.APIStatusError as error:
        found.append({"raised": type(error).__name__, "status": error.status_code, "body": error.body})
    except Exception as error:  # an error in the stream, or the connection's own
        found.append({"raised": type(error).__name__, "says": str(error)})
    return found


def accumulated(client: Any, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The client's own events, which repeat the text so far, and the response they make."""
    with client.responses.stream(**asked) as stream:
        events = [event.model_dump() for event in stream]
        return [*events, stream.get_final_response().model_dump()]


def at_once(client: Any, asked: dict[str, Any]) -> list[dict[str, Any]]:
    return [client.responses.create(**asked).model_dump()]


def asked_by(ask: Ask, url: str, model: str, request_id: str) -> list[dict[str, Any]]:
    asked: dict[str, Any] = {
        "model": model,
        "input": "Why is the sky blue?",
        "tools": [TOOL],
        "extra_headers": {REQUEST_ID: request_id},
    }
    with openai.OpenAI(base_url=f"{url}/v1", api_key="test", max_retries=0, timeout=30) as client:
        return ask(client, asked)


class Case(NamedTuple):
    """How many events come, whether an error is raised behind them, what the record says."""

    events: int
    raised: bool
    noted: dict[str, Any]


CASES = {
    "text": Case(
        18,
        False,
        {
            "path": "/v1/responses",
            "dialect": "openai.responses",
            "model": "text",
            "status": 200,
            "stream": True,
            "outcome": "completed",
            "finish_reason": "completed",
            "response_id": "resp_text",
            "events": 10,
            "tokens_observed": 10,
            "tokens_reported": 12,
            "output_tokens": 12,
            "tokens_source": "events+usage",
            "prompt_tokens": 15,
            "prompt_tokens_source": "usage",
            "cached_tokens": 7,
            "first_reasoning_s": None,
            "first_tool_s": None,
            "unmeasured": None,
            "error": None,
        },
    ),
    "nameless": Case(
        18, False, {"dialect": "openai.responses", "tokens_observed": 10, "finish_reason": "completed"}
    ),
    "logprobs": Case(
        18, False, {"events": 10, "tokens_observed": 20, "tokens_reported": 20, "tokens_source": "logprobs"}
    ),
    "limit": Case(18, False, {"outcome": "completed", "finish_reason": "max_output_tokens"}),
    "thinking": Case(
        21, False, {"events": 13, "tokens_observed": 13, "finish_reason": "completed", "first_tool_s": None}
    ),
    "tool": Case(10, False, {"events": 4, "tokens_observed": 4, "first_answer_s": None, "error": None}),
    "failed": Case(
        8,
        False,
        {
            "outcome": "upstream_error",
            "error": "server_error",
            "finish_reason": None,
            "tokens_observed": 3,
            "tokens_reported": None,
        },
    ),
    "error": Case(
        8,
        False,
        {
            "outcome": "upstream_error",
            "tokens_observed": 3,
            "finish_reason": None,
            "error": "rate_limit_exceeded",
        },
    ),
    "cut": Case(8, True, {"outcome": "upstream_error", "tokens_observed": 3, "censored": True}),
    "unknown": Case(1, True, {"status": 404, "outcome": "rejected", "tokens_observed": None}),
}


@pytest.mark.parametrize(("model", "case"), CASES.items(), ids=CASES)
def test_the_client_yields_the_same_and_the_record_is_right(
    model: str, case: Case, server: Upstream, legato: Legato
) -> None:
    name = f"responses-{model}"
    direct = asked_by(raw_events, server.url, model, name)
    assert (len(direct), "raised" in direct[-1]) == (case.events, case.raised)
    assert asked_by(raw_events, legato.url, model, name) == direct
    record = record_of(legato, name)
    assert {key: record[key] for key in case.noted} == case.noted


@pytest.mark.parametrize("model", ["text", "tool"])
def test_what_the_client_makes_of_it_is_the_same(model: str, server: Upstream, legato: Legato) -> None:
    direct = asked_by(accumulated, server.url, model, f"made-{model}")
    assert asked_by(accumulated, legato.url, model, f"made-{model}") == direct
    assert direct[-1]["id"] == f"resp_{model}"


def test_the_first_token_is_not_the_first_event(server: Upstream, legato: Legato) -> None:
    asked_by(raw_events, legato.url, "slow", "order")
    record = record_of(legato, "order")
    assert 0 < record["first_event_s"] < record["first_reasoning_s"] < record["first_answer_s"]
    assert record["ttft_s"] == record["first_reasoning_s"]


def test_a_whole_answer_is_the_same(server: Upstream, legato: Legato) -> None:
    direct = asked_by(at_once, server.url, "tiny", "at-once")
    assert asked_by(at_once, legato.url, "tiny", "at-once") == direct
    assert direct[0]["output"][0]["content"][0]["text"] == "The sky is blue."
