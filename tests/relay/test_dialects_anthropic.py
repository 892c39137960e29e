"""Anthropic messages: what counts, what does not, how it ends, and what odd servers do to it.

The events are those of Anthropic's documentation, "Streaming messages" and "Messages" (API reference); a
name beside one says which server sends it so.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from proxy.link import Usage
from proxy.relay.dialects.anthropic import AnthropicMessages
from proxy.relay.dialects.base import ANSWER, REASONING, TOOL, Output, Reading
from tests.helpers.meanings import NO_JSON, decodes, encoded, fields, meaning, plain, quick, shown
from tests.helpers.taps import arrivals, event, tapped

MESSAGES = AnthropicMessages()
PATH = "/v1/messages"


def block_delta(kind: Any = "text_delta", index: Any = 0, **fields: Any) -> dict[str, Any]:
    """One delta of a content block."""
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def text(words: Any, **more: Any) -> dict[str, Any]:
    """A text delta."""
    return block_delta(text=words, **more)


def start(**usage: Any) -> dict[str, Any]:
    """The first event of a message."""
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "tiny"}
    return {"type": "message_start", "message": {**message, "stop_reason": None, "usage": usage}}


def begun(kind: str, **fields: Any) -> dict[str, Any]:
    """The first event of a content block."""
    return {"type": "content_block_start", "index": 0, "content_block": {"type": kind, **fields}}


def stop(reason: Any = "end_turn", **usage: Any) -> dict[str, Any]:
    """The event with the stop reason."""
    delta = {"stop_reason": reason, "stop_sequence": None}
    return {"type": "message_delta", "delta": delta, "usage": usage or {"output_tokens": 15}}


END = {"type": "message_stop"}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (lambda words: text(words), ANSWER),
        (lambda words: text(words, index=3), ANSWER),
        (lambda words: block_delta("thinking_delta", thinking=words, estimated_tokens=None), REASONING),
        (lambda words: block_delta("input_json_delta", index=1, partial_json=words), TOOL),
        # Where a block brings some already, clients show it.
        (lambda words: begun("text", text=words), ANSWER),
        (lambda words: begun("thinking", thinking=words, signature=""), REASONING),
    ],
)
@pytest.mark.parametrize(("words", "size"), [("{", 1), (" ", 1), ("é", 2), ("漢字", 6), ("👋", 4)])
def test_text_is_one_output(value: Any, kind: int, words: str, size: int) -> None:
    assert meaning(MESSAGES, value(words)) == Reading([Output(0, kind, size)])


@pytest.mark.parametrize(
    "nothing",
    [
        start(input_tokens=25, output_tokens=1),
        {"type": "ping"},
        begun("text", text=""),
        begun("thinking", thinking="", signature=""),
        begun("redacted_thinking", data="EmwKAhgBEgy3va3pzix"),
        begun("tool_use", id="toolu_1", name="get_weather", input={}),
        begun("tool_use", id="toolu_1", name="get_weather"),  # llama.cpp
        begun("tool_use", id="toolu_1", name="get_weather", input=None),
        begun("web_search_tool_result", tool_use_id="srvtoolu_1", content=[{"title": "Weather"}]),
        text(""),
        text(None),
        block_delta("thinking_delta", thinking=""),
        block_delta("thinking_delta", thinking="", estimated_tokens=50),
        block_delta("input_json_delta", partial_json=""),
        block_delta("signature_delta", signature="EqQBCgIYAhIM1gbcDa9GJwZA2b3h"),
        block_delta("citations_delta", citation={"type": "char_location", "cited_text": "Hi"}),
        block_delta("compaction_delta", content="So far."),
        block_delta("delta_of_next_year", text="x"),
        {"type": "content_block_delta", "index": 0},
        {"type": "content_block_stop", "index": 0},
    ],
)
def test_what_is_no_output_wherever_it_comes(nothing: dict[str, Any]) -> None:
    found = meaning(MESSAGES, nothing)
    assert isinstance(found, Reading)
    assert all(output == Output(0) for output in found.outputs)
    assert found.error is None
    assert quick(MESSAGES, encoded(nothing)) == plain(MESSAGES, encoded(nothing)) == 0
    events = (start(), nothing, text("a"), nothing, text("b"), nothing, text("c"), stop(), nothing, END)
    stream = tapped(*(event(each, each["type"]) for each in events), path=PATH)
    assert arrivals(stream) == [[(30, 1), (50, 1), (70, 1)]]
    assert (stream.finished, stream.unmeasured, stream.broken) == (True, None, 0)


def test_a_tools_arguments_may_come_with_its_block() -> None:
    given_whole = b'{"type":"content_block_start","content_block":{"type":"%s","input":{ "city": "Bern" }}}'
    for kind in (b"tool_use", b"server_tool_use", b"mcp_tool_use"):
        assert meaning(MESSAGES, given_whole % kind) == Reading([Output(0, TOOL, 18)])
    assert meaning(MESSAGES, given_whole % b"web_search_tool_result") == Reading([Output(0)])


def test_blocks_are_no_choices_and_the_first_of_each_kind_is_kept() -> None:
    """The order of "Streaming request with extended thinking" and of "with tool use", in one answer."""
    events = [
        start(input_tokens=472, output_tokens=2),
        begun("thinking", thinking="", signature=""),
        block_delta("thinking_delta", thinking="Let me see."),
        block_delta("signature_delta", signature="EqQBCgIYAhIM"),
        {"type": "content_block_stop", "index": 0},
        text("Okay", index=1),
        text(",", index=1),
        block_delta("input_json_delta", index=2, partial_json=""),
        block_delta("input_json_delta", index=2, partial_json='{"location":'),
        block_delta("input_json_delta", index=2, partial_json=' "San'),
        stop("tool_use", output_tokens=89),
        END,
    ]
    stream = tapped(*(event(each, each["type"]) for each in events), path=PATH)
    assert arrivals(stream) == [[(30, 1), (60, 1), (70, 1), (90, 1), (100, 1)]]
    firsts = (stream.first_event_ns, stream.first_reasoning_ns, stream.first_answer_ns, stream.first_tool_ns)
    assert firsts == (10_000_000, 30_000_000, 60_000_000, 90_000_000)
    assert (stream.finished, stream.finish_reason, stream.response_id) == (True, "tool_use", "msg_1")
    assert stream.usage == Usage(prompt=472, output=89)
    assert stream.tokens_source == "events"


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        *((each, each) for each in ("end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn")),
        *((each, each) for each in ("refusal", "model_context_window_exceeded")),
        ("I stopped, since I was told to!", "other"),
        (None, None),
        ("", None),
        (5, None),
    ],
)
def test_the_stop_reason_is_the_finish(reason: Any, word: str | None) -> None:
    found = meaning(MESSAGES, stop(reason))
    expected = [] if word is None else [Output(0, finish=word)]
    assert found == Reading(expected, usage=Usage(output=15))
    stream = tapped(event(text("a")), event(stop(reason)), event(END), path=PATH)
    assert (stream.finished, stream.finish_reason) == (word is not None, word)


ALL = {"input_tokens": 3, "cache_read_input_tokens": 1000, "cache_creation_input_tokens": 20}


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"output_tokens": 15}, Usage(output=15)),
        ({"input_tokens": 25, "output_tokens": 15}, Usage(prompt=25, output=15)),  # vLLM
        ({**ALL, "output_tokens": 15}, Usage(prompt=1023, output=15, cached=1000)),
        ({"input_tokens": 13, "cache_read_input_tokens": 7}, Usage(prompt=20, cached=7)),  # llama.cpp
        ({**ALL, "cache_read_input_tokens": None}, Usage(prompt=23)),
        ({"output_tokens": 15, "output_tokens_details": {"thinking_tokens": 9}},
         Usage(output=15, reasoning=9)),
        ({"output_tokens": 15, "server_tool_use": {"web_search_requests": 1}}, Usage(output=15)),
        # Odd types cost themselves only.
        ({**ALL, "cache_read_input_tokens": "7", "output_tokens": 15}, Usage(prompt=23, output=15)),
        ({"input_tokens": -1, "output_tokens": 15.0}, Usage(output=15)),
        ({"input_tokens": True, "output_tokens": 10**30}, Usage()),
        ({"input_tokens": 2**53 - 1, "cache_read_input_tokens": 1}, Usage(cached=1)),
        ({"output_tokens": 15, "output_tokens_details": [9]}, Usage(output=15)),
    ],
)  # fmt: skip
def test_usage_is_the_messages(usage: dict[str, Any], counts: Usage) -> None:
    found = meaning(MESSAGES, stop(**usage))
    assert isinstance(found, Reading)
    assert found.usage == counts
    assert not found.per_choice
    at_start = meaning(MESSAGES, start(**usage))
    assert isinstance(at_start, Reading)
    before = Usage(prompt=counts.prompt, cached=counts.cached, reasoning=counts.reasoning)
    assert at_start == Reading(usage=before)  # a place holder is no number of tokens
    assert meaning(MESSAGES, {"type": "message_delta", "usage": "odd"}) == Reading()
    assert meaning(MESSAGES, {"type": "message_start", "message": {"usage": 5}}) == Reading()


def test_cumulative_usage_is_no_growth_of_anything() -> None:
    """Several ``message_delta`` may come; what they report stays the total it is."""
    events = [
        start(input_tokens=25, cache_read_input_tokens=5, output_tokens=400),
        text("a"),
        stop(None, output_tokens=300),
        text("b"),
        stop("end_turn", output_tokens=301),
        END,
    ]
    stream = tapped(*map(event, events), path=PATH)
    assert arrivals(stream) == [[(20, 1), (40, 1)]]
    assert stream.usage == Usage(prompt=30, output=301, cached=5)
    assert stream.tokens_source == "events"


@pytest.mark.parametrize(
    ("error", "name"),
    [
        ({"type": "error", "error": {"type": "overloaded_error", "message": "secret"}}, "overloaded_error"),
        ({"type": "error", "error": {"type": "api_error"}, "request_id": "req_1"}, "api_error"),
        ({"type": "error", "error": {"code": 500, "message": "secret"}}, "500"),
        ({"type": "error", "error": "secret"}, "error"),
        ({"type": "error"}, "error"),
        ({"error": {"type": "InternalServerError", "message": "secret", "code": 500}}, "InternalServerError"),
    ],
)
def test_an_error_is_a_word(error: dict[str, Any], name: str) -> None:
    assert meaning(MESSAGES, error) == Reading(error=name)
    for named in ("", "error"):
        stream = tapped(event(text("a")), event(error, named), path=PATH)
        assert (stream.finished, stream.error, stream.tokens) == (False, name, 1)


@pytest.mark.parametrize("value", [{"type": "message"}, {"type": 5}, {"choices": []}, {}, [], 5])
def test_what_is_no_event_of_a_message(value: Any) -> None:
    assert meaning(MESSAGES, value) is None


@pytest.mark.parametrize(
    ("odd", "meant"),
    [
        (text("Hi", index="first"), Output(0, ANSWER, 2)),
        (text([{"type": "text", "text": "Hi"}]), Output(0, ANSWER, 2)),
        (block_delta("text_delta", text="Hi", thinking=5), Output(0, ANSWER, 2)),
        ({**text("Hi"), "usage": 5}, Output(0, ANSWER, 2)),
        (block_delta("input_json_delta", partial_json={"a": "é"}), Output(0, TOOL, 10)),
        (block_delta("input_json_delta", partial_json={}), Output(0)),
        (block_delta(5, text="Hi"), Output(0)),
        ({"type": "content_block_delta", "delta": "Hi"}, Output(0)),
        ({"type": "content_block_start", "content_block": "Hi"}, Output(0)),
        (begun("tool_use", id=5, input={"a": 1}, text=7), Output(0, TOOL, 7)),
        (begun("tool_use", input=[], text=7), Output(0)),
        (b'{"type":"content_block_delta","delta":{"type":"text_delta","text":"\\ud83d"}}',
         Output(0, ANSWER, 3)),
        (b'{"type":"content_block_delta","delta":{"type":"text_delta","text":"\xf0\x9f"}}',
         Output(0, ANSWER, 3)),
        (b'{"type":"content_block_start","content_block":{"type":"tool_use","input":{"a":"\\ud83d"}}}',
         Output(0, TOOL, 11)),
    ],
)  # fmt: skip
def test_odd_events_are_mended(odd: Any, meant: Output) -> None:
    assert meaning(MESSAGES, odd) == Reading([meant])


@pytest.mark.parametrize(
    "broken", [b"", b"{", b"data", b'{"type":"content_block_delta","delta":{"type":"text_d']
)
def test_broken_json_is_nothing(broken: bytes) -> None:
    assert meaning(MESSAGES, broken) == NO_JSON


def test_nested_without_end_is_broken_and_nothing_more() -> None:
    for depth in (400, 700, 5000, 100_000):
        nested = b"[" * depth + b"]" * depth
        for data in (
            b'{"type":"content_block_delta","delta":{"type":"text_delta","text":%s}}' % nested,
            b'{"type":"content_block_delta","delta":{"type":"input_json_delta","partial_json":%s}}' % nested,
            b'{"type":"content_block_start","content_block":{"type":"tool_use","input":%s,"text":5}}'
            % nested,
            b'{"type":"error","error":%s}' % nested,
        ):
            found = meaning(MESSAGES, data)
            assert found == NO_JSON or isinstance(found, Reading)


def test_which_events_and_paths_are_its_own() -> None:
    assert MESSAGES.serves("/v1/messages")
    assert MESSAGES.serves("/anthropic/v1/messages")
    assert not MESSAGES.serves("/v1/messages/count_tokens")
    assert not MESSAGES.serves("/v1/messages/batches")
    for proof in (start(), text("a"), begun("text"), stop(), END):
        assert MESSAGES.shows(fields(proof))
    others: list[Any] = [{"type": "response.created"}, {"type": "error"}, {"type": "ping"}, {"type": [1]}, {}]
    for other in others:
        assert not MESSAGES.shows(fields(other))
        assert MESSAGES.response_id(fields(other)) is None
    assert MESSAGES.response_id(fields(start())) == "msg_1"
    odd: Any
    for odd in (5, None, [], {}, {"id": 5}, {"id": "two words"}):
        assert MESSAGES.response_id(fields({"type": "message_start", "message": odd})) is None
    assert not MESSAGES.shows(fields(b'{"type":"\xff"}'))
    assert MESSAGES.response_id(fields(b'{"message":{"id":"\xff"}}')) is None


# ---------------------------------------------------------------- anything at all

KEYS = ["type", "text", "thinking", "partial_json", "stop_reason", "input", "usage", "input_tokens", "code"]
values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["", "a", "é", "tool_use"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(KEYS), inner, max_size=2)
    ),
    max_leaves=5,
)
words = st.one_of(st.text(max_size=4), values)
deltas = st.fixed_dictionaries(
    {"type": st.sampled_from(["text_delta", "text_delta", "thinking_delta", "input_json_delta", 5])},
    optional={"text": words, "thinking": words, "partial_json": words, "stop_reason": words},
)
kinds = [
    "content_block_delta",
    "content_block_start",
    "message_start",
    "message_delta",
    "ping",
    "error",
    "x",
    5,
]
anything: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"type": st.sampled_from(kinds)},
    optional={
        "delta": st.one_of(deltas, values),
        "index": values,
        **{name: values for name in ("content_block", "message", "usage", "error")},
    },
)
likely = st.builds(text, st.text(max_size=4), index=st.integers(0, 2))


@given(st.one_of(likely, anything, values))
def test_quick_plain_and_read_agree_and_nothing_raises(value: Any) -> None:
    data = encoded(value)
    size, found = quick(MESSAGES, data), meaning(MESSAGES, data)
    slow = plain(MESSAGES, data)
    assert size in (0, slow)
    if decodes(MESSAGES, data):  # what must be mended first is none of the hot path's
        assert size == slow
    if slow:
        assert found == Reading([Output(0, ANSWER, slow)])
    elif isinstance(found, Reading) and isinstance(value, dict) and value["type"] == "content_block_delta":
        assert not any(output.kind == ANSWER for output in found.outputs)
    shown(MESSAGES, data)


@given(st.one_of(st.binary(max_size=30), st.binary(max_size=8).map(lambda odd: b'{"type":"' + odd + b'"}')))
def test_no_bytes_raise(data: bytes) -> None:
    assert not quick(MESSAGES, data)
    assert not isinstance(meaning(MESSAGES, data), Reading) or b"ping" in data or b"error" in data
