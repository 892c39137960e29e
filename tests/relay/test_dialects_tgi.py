"""TGI's events: one token each, some of them not shown; how they end and what they report.

The events are written after ``StreamResponse``, ``StreamDetails`` and ``ErrorResponse`` in
https://huggingface.github.io/text-generation-inference/ and the example in
https://huggingface.co/docs/text-generation-inference/basic_tutorials/consuming_tgi.
"""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from proxy.link import Stream, Usage
from proxy.relay.dialects.base import ANSWER, EVENTS, LOGPROBS, TOKEN_IDS, Output, Reading
from proxy.relay.dialects.tgi import TGIGenerate
from tests.helpers.meanings import NO_JSON, meaning, plain, quick
from tests.helpers.taps import arrivals, event, fed, opened, sizes
from tests.helpers.watched import watched

TGI = TGIGenerate()
PATH = "/generate_stream"
DETAILS = {"finish_reason": "eos_token", "generated_tokens": 4, "input_length": 9, "seed": None}


def body(text: Any = "", *, special: Any = False, id: Any = 42, **fields: Any) -> dict[str, Any]:
    token = {"id": id, "text": text, "logprob": -0.31, "special": special}
    return {"index": 1, "token": token, "generated_text": None, "details": None, **fields}


def token(text: Any = "", **fields: Any) -> bytes:
    return event(body(text, **fields))


def last(text: str = "</s>", *, special: bool = True, **details: Any) -> bytes:
    return event(body(text, special=special, generated_text="abc", details={**DETAILS, **details}))


def tapped(*pieces: bytes, path: str = PATH) -> Stream:
    return fed(opened(path), *pieces).to_stream()


def one(value: Any) -> Output:
    """The event's one output."""
    found = meaning(TGI, value)
    assert isinstance(found, Reading)
    (output,) = found.outputs
    return output


# ---------------------------------------------------------------- what is output


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (body(" Hi"), Output(0, ANSWER, 3, 1, TOKEN_IDS)),
        (body("é"), Output(0, ANSWER, 2, 1, TOKEN_IDS)),
        (body(" Hi", index=7), Output(0, ANSWER, 3, 1, TOKEN_IDS)),  # the token's number, no choice
        (body(" Hi", top_tokens=[{"id": 42, "text": " Hi"}]), Output(0, ANSWER, 3, 1, TOKEN_IDS)),
        (body(""), Output(0, 0, 0, 1, TOKEN_IDS)),
        (body("</s>", special=True), Output(0, 0, 0, 1, TOKEN_IDS)),
        (body(" Hi", id=0), Output(0, ANSWER, 3, 1, TOKEN_IDS)),
        # Odd types: field by field.
        (body(" Hi", id=None), Output(0, ANSWER, 3, 1, LOGPROBS)),
        ({"token": {"text": " Hi"}, "details": None}, Output(0, ANSWER, 3, -1, EVENTS)),
        (body(" Hi", special=None), Output(0, ANSWER, 3, 1, TOKEN_IDS)),
        (body(7), Output(0, 0, 0, 1, TOKEN_IDS)),
        (body(["a"], id="42"), Output(0, 0, 0, 1, LOGPROBS)),
        ({"token": {}}, Output(0, 0, 0, -1, EVENTS)),
    ],
)
def test_an_event(value: dict[str, Any], expected: Output) -> None:
    assert one(value) == expected


@pytest.mark.parametrize(
    "value", [{}, None, [], 7, {"token": None}, {"token": "a"}, {"index": 1}, {"text_output": "a"}]
)
def test_an_event_of_something_else(value: Any) -> None:
    assert meaning(TGI, value) is None


def test_broken_utf8_is_mended_and_broken_json_is_not() -> None:
    found = meaning(TGI, b'{"token":{"id":5,"text":"a\xc3"}}')
    assert found == Reading([Output(0, ANSWER, 4, 1, TOKEN_IDS)])
    assert meaning(TGI, b'{"token":') == NO_JSON


# ---------------------------------------------------------------- how it ends


@pytest.mark.parametrize(
    ("end", "finish"),
    [
        ({"generated_text": "abc", "details": DETAILS}, "eos_token"),
        ({"generated_text": "abc", "details": {**DETAILS, "finish_reason": "length"}}, "length"),
        (
            {"generated_text": "abc", "details": {**DETAILS, "finish_reason": "stop_sequence"}},
            "stop_sequence",
        ),
        ({"generated_text": "abc", "details": None}, "unstated"),  # the request did not ask for details
        ({"generated_text": "", "details": None}, "unstated"),
        ({"generated_text": None, "details": DETAILS}, "eos_token"),
        ({"generated_text": "abc", "details": {"finish_reason": "because\nof you"}}, "other"),
        ({"generated_text": "abc", "details": "odd"}, "unstated"),
        ({"generated_text": None, "details": None}, None),
        ({}, None),
    ],
)
def test_the_reason(end: dict[str, Any], finish: str | None) -> None:
    assert one({"token": {"id": 2, "text": "", "special": True}, **end}).finish == finish


def test_a_stream_to_the_end_of_the_sequence() -> None:
    """The last token is not shown, was generated all the same, and the server counts it."""
    stream = tapped(token("a"), token(" b"), token("c"), last())
    assert stream.dialect == "tgi.generate"
    assert arrivals(stream) == [[(10, 1), (20, 1), (30, 1), (40, 1)]]
    assert sizes(stream) == [[1, 2, 1, 0]]
    assert stream.usage == Usage(prompt=9, output=4)
    assert (stream.tokens_source, stream.finish_reason, stream.finished) == ("token_ids", "eos_token", True)


def test_a_stream_that_is_as_long_as_it_may_be() -> None:
    stream = tapped(token("a"), last("b", special=False, finish_reason="length", generated_tokens=2))
    assert arrivals(stream) == [[(10, 1), (20, 1)]]
    assert (stream.finish_reason, stream.tokens) == ("length", stream.usage.output)


def test_tokens_that_show_nothing_come_with_the_next_that_does() -> None:
    """Half a character, and a special token in the middle."""
    stream = tapped(token("a"), token(""), token("é"), token("<|x|>", special=True), token("b"), token("c"))
    assert arrivals(stream) == [[(10, 1), (30, 2), (50, 2), (60, 1)]]
    assert stream.tokens_source == "token_ids"


def test_several_events_in_one_piece_are_as_many_tokens() -> None:
    stream = tapped(token("a"), token("b"), token("c") + token("d"), token("e"), last())
    assert arrivals(stream) == [[(10, 1), (20, 1), (30, 1), (30, 1), (40, 1), (50, 1)]]


def test_an_answer_without_any_text_has_no_token_that_could_be_late() -> None:
    stream = tapped(last(generated_tokens=1))
    assert (stream.tokens, stream.unmeasured, stream.finished) == (0, "no_tokens", True)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"error": "Model is overloaded", "error_type": "overloaded"}, "overloaded"),
        ({"error": "Request failed during generation", "error_type": "generation"}, "generation"),
        ({"error": "Input validation error", "error_type": "validation"}, "validation"),
        ({"error": "Incomplete generation", "error_type": "incomplete_generation"}, "incomplete_generation"),
        ({"error": "Incomplete generation"}, "error"),
        ({"error": "x", "error_type": "a sentence, and\nmore"}, "error"),
        ({"error": {"message": "x", "type": "oops"}}, "oops"),
        ({"error_type": "overloaded"}, "overloaded"),
    ],
)
def test_an_error_in_the_middle(value: dict[str, Any], found: str) -> None:
    stream = tapped(token("a"), token("b"), event(value))
    assert (stream.error, stream.finished, stream.tokens) == (found, False, 2)


@pytest.mark.parametrize(
    ("details", "usage"),
    [
        (DETAILS, Usage(prompt=9, output=4)),
        ({"generated_tokens": 4}, Usage(output=4)),
        ({"generated_tokens": 4, "prefill": [{"id": 1}, {"id": 2}]}, Usage(prompt=2, output=4)),
        ({"generated_tokens": 4, "prefill": []}, Usage(output=4)),
        ({"generated_tokens": "4", "input_length": -1}, None),
        ({"generated_tokens": True, "input_length": 2**60}, None),
        ({}, None),
        ("odd", None),
        (None, None),
    ],
)
def test_what_it_reports(details: Any, usage: Usage | None) -> None:
    found = meaning(TGI, body("</s>", special=True, generated_text="abc", details=details))
    assert isinstance(found, Reading)
    assert (found.usage, found.per_choice) == (usage, False)


@pytest.mark.parametrize("path", ["/", "/generate_stream", "/invocations", "/base/generate_stream", "/llm"])
def test_the_first_event_decides(path: str) -> None:
    assert tapped(token("a"), path=path).dialect == "tgi.generate"


@pytest.mark.parametrize(
    ("path", "served"),
    [
        ("", True),
        ("/", True),
        ("/generate_stream", True),
        ("/models/a/generate_stream", True),
        ("/invocations", True),
        ("/endpoints/a/invocations", True),
        ("/v2/models/a/generate_stream", False),  # Triton
        ("/generate", False),
        ("/v1/chat/completions", False),
    ],
)
def test_the_paths(path: str, served: bool) -> None:
    assert TGI.serves(path) is served


# ---------------------------------------------------------------- the hot path says the same

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**54),
    st.floats(allow_nan=True),
    st.text(max_size=4),
    st.just([]),
    st.just({}),
    st.just(DETAILS),
)
tokens = st.one_of(
    values,
    st.fixed_dictionaries({}, optional={"id": values, "text": values, "logprob": values, "special": values}),
)
beside = st.fixed_dictionaries(
    {}, optional={"generated_text": values, "details": values, "error": values, "error_type": values}
)


def agree(data: bytes) -> None:
    fast, slow = quick(TGI, data), plain(TGI, data)
    assert fast in (0, slow)
    if slow:
        assert meaning(TGI, data) == Reading([Output(0, ANSWER, slow, 1, TOKEN_IDS)])


@given(tokens, beside)
def test_steps_agree_on_any_event(of_token: Any, value: dict[str, Any]) -> None:
    agree(json.dumps({"token": of_token, **value}).encode())


@pytest.mark.parametrize(
    "more",
    [
        {"special": True},
        {"id": None},
        {"id": -1},
        {"generated_text": "abc"},
        {"generated_text": ""},
        {"details": DETAILS},
        {"details": {}},
        {"error": "x"},
        {"error_type": "overloaded"},
    ],
)
def test_an_event_with_more_than_a_token_that_is_shown_is_not_plain(more: dict[str, Any]) -> None:
    data = json.dumps(body("word", **more)).encode()
    agree(data)
    assert plain(TGI, data) == quick(TGI, data) == 0


def test_a_usual_stream_goes_the_quick_way(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = watched(TGIGenerate, monkeypatch)
    assert tapped(*[token("a")] * 30).tokens == 30
    assert len(asked) > 15


@given(st.binary(max_size=40))
def test_nothing_raises_on_any_bytes(data: bytes) -> None:
    agree(data)
    agree(b'{"token":{"id":1,"text":"' + data + b'"}}')


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (body(" word"), 5),
        (body("é"), 2),
        (body(" word", top_tokens=[{"id": 42}]), 5),
        ({"token": {"id": 5, "text": "a"}}, 1),
        (body("</s>", special=True), 0),
    ],
)
def test_the_usual_event_is_quick(value: dict[str, Any], size: int) -> None:
    assert TGI.quick(json.dumps(value).encode()) == size
