"""The hot path's decoder says what the three steps say, or nothing."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from proxy.relay.dialects.base import BROKEN, Dialect
from proxy.relay.dialects.generic import Generic
from proxy.relay.dialects.openai_chat import OpenAIChat
from proxy.relay.dialects.openai_completions import OpenAICompletions

texts = st.one_of(st.none(), st.text(max_size=5), st.sampled_from(["", "word", "é", "\ud83d\ude00"]))
nothing: dict[str, list[Any]] = {
    "finish_reason": [None, "", "stop"],
    "logprobs": [None, {"content": []}],
    "token_ids": [None, [], [5]],
    "index": [0, 1],
    "reasoning": [None, "", "hm"],
}
beside: dict[str, list[Any]] = {
    "usage": [None, {"completion_tokens": 3}],
    "timings": [None, {"predicted_n": 2}],
    "error": [None, {"type": "boom"}],
}
deltas: dict[str, list[Any]] = {
    "reasoning_content": [None, "", "hm"],
    "refusal": [None, "", "no"],
    "tool_calls": [None, [], [{"function": {"arguments": "{"}}]],
    "function_call": [None, {"arguments": "{"}],
    "role": ["assistant"],
}


def some(of: dict[str, list[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of these fields with any of these values."""
    return st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in of.items()})


def quick(dialect: Dialect, data: bytes) -> int:
    try:
        return dialect.quick(data)
    except BROKEN:
        return 0


def slow(dialect: Dialect, data: bytes) -> int:
    try:
        return dialect.plain(dialect.decode(data))
    except BROKEN:
        return 0


@given(texts, some(deltas), some(nothing), some(beside), st.integers(0, 2))
def test_a_chat_event(
    content: str | None, delta: dict[str, Any], choice: dict[str, Any], more: dict[str, Any], n: int
) -> None:
    one = {**{k: v for k, v in choice.items() if k != "reasoning"}, "delta": {"content": content, **delta}}
    data = json.dumps({"id": "x", "choices": [one] * n, **more}).encode()
    assert quick(OpenAIChat(), data) == slow(OpenAIChat(), data)


@given(texts, some(nothing), some(beside), st.integers(0, 2))
def test_a_completion_event(
    content: str | None, choice: dict[str, Any], more: dict[str, Any], n: int
) -> None:
    data = json.dumps({"id": "x", "choices": [{**choice, "text": content}] * n, **more}).encode()
    assert quick(OpenAICompletions(), data) == slow(OpenAICompletions(), data)


@given(st.one_of(st.binary(max_size=20), st.sampled_from([b'{"error": {}}', b'{"text": 1}'])))
def test_an_event_of_no_dialect(data: bytes) -> None:
    assert quick(Generic(), data) == slow(Generic(), data)


@pytest.mark.parametrize("content", ["word", "é", "\u20ac uro"])
def test_the_size_is_in_bytes(content: str) -> None:
    data = json.dumps({"choices": [{"delta": {"content": content}}]}, ensure_ascii=False).encode()
    assert OpenAIChat().quick(data) == len(content.encode())
