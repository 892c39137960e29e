"""OpenAI responses: what counts, what does not, how it ends, and what odd servers do to it.

The events are those of OpenAI's API reference, "Streaming events" (Responses API); a name beside one says
which server sends it so.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from proxy.link import Usage
from proxy.relay.dialects.base import ANSWER, LOGPROBS, REASONING, REFUSAL, TOOL, Output, Reading
from proxy.relay.dialects.openai_responses import OpenAIResponses
from tests.helpers.meanings import NO_JSON, decodes, encoded, fields, meaning, plain, quick, shown
from tests.helpers.taps import arrivals, event, tapped

RESPONSES = OpenAIResponses()
PATH = "/v1/responses"
TEXT = "response.output_text.delta"
AT: dict[str, Any] = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "sequence_number": 4}

KINDS = {
    TEXT: ANSWER,
    "response.audio.transcript.delta": ANSWER,
    "response.refusal.delta": REFUSAL,
    "response.reasoning_text.delta": REASONING,
    "response.reasoning_summary_text.delta": REASONING,
    "response.reasoning.delta": REASONING,
    "response.function_call_arguments.delta": TOOL,
    "response.mcp_call_arguments.delta": TOOL,
    "response.custom_tool_call_input.delta": TOOL,
    "response.code_interpreter_call_code.delta": TOOL,
    "response.shell_call_command.delta": TOOL,
}


def text(delta: Any, **more: Any) -> dict[str, Any]:
    """A text delta."""
    return {"type": TEXT, **AT, "delta": delta, **more}


CREATED: dict[str, Any] = {"type": "response.created", "response": {"id": "resp_1", "usage": None}}


def ended(kind: str = "completed", **response: Any) -> dict[str, Any]:
    """The event that ends a response."""
    return {"type": f"response.{kind}", "response": {"id": "resp_1", "object": "response", **response}}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
@pytest.mark.parametrize(("delta", "size"), [("{", 1), (" ", 1), ("é", 2), ("漢字", 6), ("👋", 4)])
def test_a_delta_is_one_output(name: str, kind: int, delta: str, size: int) -> None:
    assert meaning(RESPONSES, {"type": name, **AT, "delta": delta}) == Reading([Output(0, kind, size)])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("delta", ["", None, {}, [], 5])
def test_an_empty_delta_is_none(name: str, delta: Any) -> None:
    assert meaning(RESPONSES, {"type": name, **AT, "delta": delta}) == Reading([Output(0)])


@pytest.mark.parametrize(
    "nothing",
    [
        {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress", "usage": None}},
        {"type": "response.in_progress", "response": {"id": "resp_1", "instructions": "Be kind."}},
        {"type": "response.queued", "response": {"id": "resp_1", "usage": {"output_tokens": 3}}},
        {"type": "response.output_item.added", "item": {"id": "msg_1", "content": []}},
        {"type": "response.output_item.done", "item": {"content": [{"text": "Hi", "type": "output_text"}]}},
        {"type": "response.content_part.added", "part": {"type": "output_text", "text": ""}},
        {"type": "response.content_part.done", "part": {"type": "output_text", "text": "Hi"}},
        {"type": "response.output_text.done", "text": "Hi", "logprobs": [{"token": "Hi", "logprob": -1}]},
        {"type": "response.output_text.annotation.added", "annotation": {"type": "url_citation"}},
        {"type": "response.refusal.done", "refusal": "No"},
        {"type": "response.reasoning_text.done", "text": "Hm"},
        {"type": "response.reasoning_summary_part.added", "part": {"type": "summary_text", "text": ""}},
        {"type": "response.reasoning_summary_text.done", "text": "Hm"},
        {"type": "response.function_call_arguments.done", "arguments": "{}", "name": "f"},
        {"type": "response.custom_tool_call_input.done", "input": "x"},
        {"type": "response.web_search_call.searching"},
        {"type": "response.image_generation_call.partial_image", "partial_image_b64": "aGk="},
        {"type": "response.audio.delta", "delta": "aGk="},
        {"type": "response.shell_call_output_content.delta", "delta": {"stdout": "files"}},
        {"type": "response.of.next.year.delta", "delta": "x"},
        {"type": "keepalive", "sequence_number": 9},
    ],
    ids=lambda value: value["type"],
)
def test_what_is_no_output(nothing: dict[str, Any]) -> None:
    found = meaning(RESPONSES, nothing)
    assert isinstance(found, Reading)
    assert (found.outputs, found.usage, found.error) == ([], None, None)
    assert quick(RESPONSES, encoded(nothing)) == plain(RESPONSES, encoded(nothing)) == 0
    events = (CREATED, nothing, text("a"), nothing, text("b"), nothing, text("c"), nothing, ended())
    stream = tapped(*(event(each, str(each["type"])) for each in events), path=PATH)
    assert arrivals(stream) == [[(30, 1), (50, 1), (70, 1)]]
    assert stream.finished


USAGE = {
    "input_tokens": 15,
    "input_tokens_details": {"cached_tokens": 7, "cache_write_tokens": 0},
    "output_tokens": 24,
    "output_tokens_details": {"reasoning_tokens": 4},
    "total_tokens": 39,
}
MAX = {"reason": "max_output_tokens"}
BOOM = {"code": "server_error", "message": "The model said something secret."}


@pytest.mark.parametrize(
    ("end", "finish", "error"),
    [
        (ended(), "completed", None),
        (ended(status="completed", error=None, incomplete_details=None), "completed", None),
        (ended("incomplete", incomplete_details=MAX), "max_output_tokens", None),
        (ended("incomplete", incomplete_details={"reason": "content_filter"}), "content_filter", None),
        (ended("completed", status="incomplete", incomplete_details=MAX), "max_output_tokens", None),  # vLLM
        (ended("incomplete"), "incomplete", None),
        (ended("incomplete", incomplete_details={"reason": "a whole sentence, alas!"}), "other", None),
        (ended("incomplete", incomplete_details={"reason": 5}), "incomplete", None),
        (ended("incomplete", incomplete_details="odd"), "incomplete", None),
        ({"type": "response.completed"}, "completed", None),
        ({"type": "response.completed", "response": "odd"}, "completed", None),
        (ended("failed", status="failed", error=BOOM), None, "server_error"),
        (ended("failed", status="failed", error=None), None, "error"),
        ({"type": "response.failed"}, None, "error"),
        (ended("completed", status="failed", error=BOOM), None, "server_error"),
    ],
)
def test_how_it_ends(end: dict[str, Any], finish: str | None, error: str | None) -> None:
    found = meaning(RESPONSES, end)
    assert isinstance(found, Reading)
    assert found.outputs == ([] if finish is None else [Output(0, finish=finish)])
    assert found.error == error
    stream = tapped(event(text("a")), event(end), path=PATH)
    assert (stream.finished, stream.finish_reason, stream.error) == (finish is not None, finish, error)


@pytest.mark.parametrize(
    ("error", "name"),
    [
        ({"type": "error", "code": "invalid_prompt", "message": "secret", "param": None}, "invalid_prompt"),
        ({"type": "error", "code": None, "message": "secret", "sequence_number": 3}, "error"),
        ({"type": "error", "code": "The secret, told", "message": "secret"}, "error"),
        ({"type": "error", "code": 503}, "503"),
        ({"type": "error", "error": {"type": "server_error", "message": "secret"}}, "server_error"),
        ({"type": "error", "error": {"code": "server_error", "message": "secret"}}, "server_error"),
        ({"type": "error", "error": "secret"}, "error"),
        ({"error": {"type": "InternalServerError", "code": 500, "message": "secret"}}, "InternalServerError"),
    ],
)  # fmt: skip
def test_an_error_is_a_word(error: dict[str, Any], name: str) -> None:
    assert meaning(RESPONSES, error) == Reading(error=name)
    stream = tapped(event(text("a")), event(error), path=PATH)
    assert (stream.finished, stream.error, stream.tokens) == (False, name, 1)


@pytest.mark.parametrize(
    "value", [{"object": "response"}, {"type": "message_start"}, {"choices": []}, {}, []]
)
def test_what_is_no_event_of_a_response(value: Any) -> None:
    assert meaning(RESPONSES, value) is None


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (USAGE, Usage(prompt=15, output=24, cached=7, reasoning=4)),
        ({"input_tokens": 15, "output_tokens": 24}, Usage(prompt=15, output=24)),
        ({"input_tokens": 15, "input_tokens_details": None}, Usage(prompt=15)),
        ({**USAGE, "output_tokens": "24"}, Usage(prompt=15, cached=7, reasoning=4)),
        ({**USAGE, "output_tokens": 24.0, "input_tokens": -1}, Usage(output=24, cached=7, reasoning=4)),
        ({**USAGE, "output_tokens": 10**30}, Usage(prompt=15, cached=7, reasoning=4)),
        ({**USAGE, "input_tokens_details": [1]}, Usage(prompt=15, output=24, reasoning=4)),
    ],
)
@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed"])
def test_usage_stands_at_the_end(usage: dict[str, Any], counts: Usage, kind: str) -> None:
    found = meaning(RESPONSES, ended(kind, usage=usage))
    assert isinstance(found, Reading)
    assert found.usage == counts
    assert not found.per_choice
    stream = tapped(event(text("a")), event(text("b")), event(ended(kind, usage=usage)), path=PATH)
    assert (stream.usage, stream.tokens, stream.tokens_source) == (counts, 2, "events")


def test_logprobs_count_tokens() -> None:
    one = [{"token": "x", "logprob": -0.1, "top_logprobs": []}]
    assert meaning(RESPONSES, text("ab", logprobs=one * 3)) == Reading([Output(0, ANSWER, 2, 3, LOGPROBS)])
    assert meaning(RESPONSES, text("ab", logprobs=[])) == Reading([Output(0, ANSWER, 2)])
    for logprobs, size in ((one, 0), ([], 2), (None, 2)):
        data = encoded(text("ab", logprobs=logprobs))
        assert quick(RESPONSES, data) == plain(RESPONSES, data) == size
    held = tapped(*(event(text(delta, logprobs=one)) for delta in ("a", "", "é")), event(ended()), path=PATH)
    assert arrivals(held) == [[(10, 1), (30, 2)]]  # half a character is held back for the next event
    assert held.tokens_source == "logprobs"


@pytest.mark.parametrize(
    ("odd", "meant"),
    [
        # Older shapes: an object as delta (OpenAI's first SDKs; forks of vLLM).
        ({"type": "response.reasoning.delta", "delta": {"content": "We"}}, Output(0, REASONING, 2)),
        ({"type": "response.reasoning_summary.delta", "delta": {"text": "We"}}, Output(0, REASONING, 2)),
        ({"type": "response.mcp_call.arguments.delta", "delta": {"a": 1}}, Output(0, TOOL, 7)),
        ({"type": "response.function_call_arguments.delta", "delta": {"text": "é"}}, Output(0, TOOL, 13)),
        (text([{"type": "text", "text": "Hi"}]), Output(0, ANSWER, 2)),
        (text("Hi", logprobs="odd"), Output(0, ANSWER, 2)),
        (text("Hi", logprobs={"content": [1]}), Output(0, ANSWER, 2)),
        (text("Hi", response=7), Output(0, ANSWER, 2)),
        (b'{"type":"response.output_text.delta","delta":"\\ud83d"}', Output(0, ANSWER, 3)),
        (b'{"type":"response.output_text.delta","delta":"\xf0\x9f"}', Output(0, ANSWER, 3)),
        (b'{"type":"response.output_text.delta","delta":"a","logprobs":[{"logprob":NaN}]}',
         Output(0, ANSWER, 1, 1, LOGPROBS)),
    ],
)  # fmt: skip
def test_odd_events_are_mended(odd: Any, meant: Output) -> None:
    assert meaning(RESPONSES, odd) == Reading([meant])


@pytest.mark.parametrize("broken", [b"", b"{", b"data", b'{"type":"response.output_text.delta","delta":"a"'])
def test_broken_json_is_nothing(broken: bytes) -> None:
    assert meaning(RESPONSES, broken) == NO_JSON


def test_nested_without_end_is_broken_and_nothing_more() -> None:
    for depth in (400, 700, 5000, 100_000):
        nested = b"[" * depth + b"]" * depth
        for key in (b"delta", b"logprobs", b"error", b"response"):
            data = b'{"type":"response.output_text.delta","%s":%s}' % (key, nested)
            found = meaning(RESPONSES, data)
            assert found == NO_JSON or isinstance(found, Reading)


def test_which_events_and_paths_are_its_own() -> None:
    assert RESPONSES.serves("/v1/responses")
    assert RESPONSES.serves("/openai/v1/responses")
    assert not RESPONSES.serves("/v1/responses/resp_1/cancel")
    assert not RESPONSES.serves("/v1/chat/completions")
    proof = {"type": "response.created", "response": {"id": "resp_1", "object": "response"}}
    assert RESPONSES.shows(fields(proof))
    assert RESPONSES.response_id(fields(proof)) == "resp_1"
    for other in ({"type": "message_start"}, {"type": "error"}, {"type": 5}, {"object": "response"}, {}):
        assert not RESPONSES.shows(fields(other))
        assert RESPONSES.response_id(fields(other)) is None
    odd: Any
    for odd in (5, None, [], {}, {"id": 5}, {"id": "two words"}):
        assert RESPONSES.response_id(fields({"type": "response.created", "response": odd})) is None
    assert not RESPONSES.shows(fields(b'{"type":"\xff"}'))
    assert RESPONSES.response_id(fields(b'{"response":{"id":"\xff"}}')) is None


# ---------------------------------------------------------------- anything at all

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["", "a", "é", "👋"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(
            st.sampled_from(["text", "content", "reason", "code", "usage", "id"]), inner, max_size=2
        ),
    ),
    max_leaves=4,
)
types = st.sampled_from(
    [*KINDS, "response.created", "response.completed", "response.failed", "error", "x", 5]
)
likely: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"type": st.just(TEXT), "delta": st.one_of(st.text(max_size=4), st.sampled_from(["", "é"]))},
    optional={
        "logprobs": st.sampled_from([None, [], [{"token": "x"}], {}]),
        "response": values,
        "error": values,
    },
)
anything = st.fixed_dictionaries(
    {"type": types},
    optional={name: values for name in ("delta", "logprobs", "response", "error", "code", "object")},
)


def is_plain(output: Output) -> bool:
    return output.kind == ANSWER and output.tokens < 0


@given(st.one_of(likely, anything, values))
def test_quick_plain_and_read_agree_and_nothing_raises(value: Any) -> None:
    data = encoded(value)
    size, found = quick(RESPONSES, data), meaning(RESPONSES, data)
    assert size >= 0
    assert size in (0, plain(RESPONSES, data))
    if decodes(RESPONSES, data):  # what must be mended first is none of the hot path's
        assert size == plain(RESPONSES, data)
    if plain(RESPONSES, data):
        assert found == Reading([Output(0, ANSWER, plain(RESPONSES, data))])
    elif isinstance(found, Reading) and isinstance(value, dict) and value.get("type") == TEXT:
        assert not any(is_plain(each) for each in found.outputs)
    shown(RESPONSES, data)


@given(st.one_of(st.binary(max_size=30), st.binary(max_size=8).map(lambda odd: b'{"type":"' + odd + b'"}')))
def test_no_bytes_raise(data: bytes) -> None:
    meaning(RESPONSES, data)
    assert quick(RESPONSES, data) == plain(RESPONSES, data) == 0
