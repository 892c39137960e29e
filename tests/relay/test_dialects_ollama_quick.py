"""The hot path says of Ollama's lines what the three steps say, or nothing; and no line raises."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from proxy.relay.dialects.base import ANSWER, Dialect, Output, Reading
from proxy.relay.dialects.ollama import OllamaChat, OllamaGenerate
from tests.helpers.meanings import meaning, plain, quick
from tests.helpers.ollama_lines import LOGPROB, call, chat, generate, tapped
from tests.helpers.watched import watched

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.floats(allow_nan=True),
    st.text(max_size=4),
    st.just([]),
    st.just([LOGPROB]),
    st.just({}),
    st.just({"function": {"arguments": {"a": 1}}}),
    st.just([call({"a": 1})]),
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "response": values,
        "done": values,
        "done_reason": values,
        "thinking": values,
        "tool_calls": values,
        "image": values,
        "logprobs": values,
        "eval_count": values,
        "prompt_eval_count": values,
        "error": values,
    },
)
messages = st.one_of(
    values,
    st.fixed_dictionaries({}, optional={"content": values, "thinking": values, "tool_calls": values}),
)


def agree(dialect: Dialect, data: bytes) -> None:
    fast, slow = quick(dialect, data), plain(dialect, data)
    assert fast in (0, slow)
    if slow:
        assert meaning(dialect, data) == Reading([Output(0, ANSWER, slow)])


@given(fields)
def test_steps_agree_on_any_line_of_generate(value: dict[str, Any]) -> None:
    agree(OllamaGenerate(), json.dumps(value).encode())


@given(fields, messages)
def test_steps_agree_on_any_line_of_chat(value: dict[str, Any], message: Any) -> None:
    agree(OllamaChat(), json.dumps({**value, "message": message}).encode())


#: One of these beside the text, and the line is no plain one.
MORE: list[dict[str, Any]] = [
    {"done": True},
    {"done": True, "done_reason": "stop"},
    {"logprobs": [LOGPROB]},
    {"logprobs": [LOGPROB, LOGPROB]},
    {"eval_count": 3},
    {"prompt_eval_count": 26},
    {"error": "x"},
]


@pytest.mark.parametrize("more", [*MORE, {"thinking": "Hm"}, {"tool_calls": [call({})]}, {"image": "aQ=="}])
def test_a_line_of_generate_with_more_than_text_is_not_plain(more: dict[str, Any]) -> None:
    data = generate("word", **more)
    agree(OllamaGenerate(), data)
    assert plain(OllamaGenerate(), data) == quick(OllamaGenerate(), data) == 0


@pytest.mark.parametrize("more", MORE)
def test_a_line_of_chat_with_more_than_text_is_not_plain(more: dict[str, Any]) -> None:
    data = chat("word", **more)
    agree(OllamaChat(), data)
    assert plain(OllamaChat(), data) == quick(OllamaChat(), data) == 0


@pytest.mark.parametrize("more", [{"thinking": "Hm"}, {"tool_calls": [call({})]}])
def test_a_message_with_more_than_text_is_not_plain(more: dict[str, Any]) -> None:
    data = chat("word", more)
    agree(OllamaChat(), data)
    assert plain(OllamaChat(), data) == quick(OllamaChat(), data) == 0


@pytest.mark.parametrize(
    ("dialect", "data", "path"),
    [(OllamaGenerate, generate("a"), "/api/generate"), (OllamaChat, chat("a"), "/api/chat")],
)
def test_a_usual_stream_goes_the_quick_way(
    dialect: type[Dialect], data: bytes, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = watched(dialect, monkeypatch)
    assert tapped(*[data] * 30, path=path).tokens == 30
    assert len(asked) > 15


@given(st.binary(max_size=40))
def test_nothing_raises_on_any_bytes(data: bytes) -> None:
    for whole in (data, b'{"response":"' + data + b'"}', b'{"message":{"content":"' + data + b'"}}'):
        agree(OllamaGenerate(), whole)
        agree(OllamaChat(), whole)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (generate("word"), 4),
        (generate("é", thinking="", logprobs=[], tool_calls=None), 2),
        (generate("word", done=True), 0),
    ],
)
def test_the_usual_line_of_generate_is_quick(data: bytes, size: int) -> None:
    assert OllamaGenerate().quick(data) == size


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (chat("word"), 4),
        (chat("é", {"thinking": "", "tool_calls": []}), 2),
        (chat("word", done=True), 0),
    ],
)
def test_the_usual_line_of_chat_is_quick(data: bytes, size: int) -> None:
    assert OllamaChat().quick(data) == size
