"""What a request asks of sampling, by every API's names; read only where it is asked for."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.link import Asked
from proxy.relay.call import WHOLE_LIMIT, read_call
from proxy.relay.prompt import LOOKS

USER = [{"role": "user", "content": "a"}]
LARGE = "x" * (WHOLE_LIMIT + 1)
ALL = Asked(7, 0.5, 0.25)


def asked(body: Any, *, asks: bool = True) -> Asked | None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_call("POST", "/v1/x", [], [raw], asks).asked


APIS: dict[str, dict[str, Any]] = {
    "chat": {"messages": USER, "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.25},
    "chat, the older name": {"messages": USER, "max_tokens": 7, "temperature": 0.5, "top_p": 0.25},
    "chat, both names": {"max_tokens": 9, "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.25},
    "responses": {"input": "a", "max_output_tokens": 7, "temperature": 0.5, "top_p": 0.25},
    "llama.cpp": {"prompt": "a", "n_predict": 7, "temperature": 0.5, "top_p": 0.25},
    "ollama": {"prompt": "a", "options": {"num_predict": 7, "temperature": 0.5, "top_p": 0.25}},
    "tgi": {"inputs": "a", "parameters": {"max_new_tokens": 7, "temperature": 0.5, "top_p": 0.25}},
    "sglang": {"text": "a", "sampling_params": {"max_new_tokens": 7, "temperature": 0.5, "top_p": 0.25}},
    "gemini": {
        "contents": [], "generationConfig": {"maxOutputTokens": 7, "temperature": 0.5, "topP": 0.25}
    },
    "gemini, as protocol buffers spell it": {
        "contents": [], "generation_config": {"max_output_tokens": 7, "temperature": 0.5, "top_p": 0.25}
    },
    "triton": {"text_input": "a", "parameters": {"max_tokens": 7, "temperature": 0.5, "top_p": 0.25}},
    "in two places": {"max_tokens": 7, "options": {"num_predict": 9, "temperature": 0.5, "top_p": 0.25}},
    "whole numbers": {"max_tokens": 7.0, "temperature": 0.5, "top_p": 0.25},
    "more than text": {"messages": "odd", "max_tokens": 7, "temperature": 0.5, "top_p": 0.25},
    "very many messages": {"messages": USER * (LOOKS + 1), "n_predict": 7, "temperature": 0.5, "top_p": 0.25},
    "large, behind its prompt": {"prompt": LARGE, "max_tokens": 7, "temperature": 0.5, "top_p": 0.25},
    "large, before its prompt": {"max_tokens": 7, "temperature": 0.5, "top_p": 0.25, "prompt": LARGE},
    "large, on both sides": {"max_tokens": 7, "temperature": 0.5, "prompt": LARGE, "top_p": 0.25},
    "large, in a place": {
        "contents": LARGE, "generationConfig": {"maxOutputTokens": 7, "temperature": 0.5, "topP": 0.25}
    },
}  # fmt: skip


@pytest.mark.parametrize("body", APIS.values(), ids=APIS)
def test_every_apis_names(body: dict[str, Any]) -> None:
    assert asked(body) == ALL
    assert asked(body, asks=False) is None


ODD: list[tuple[dict[str, Any], Asked | None]] = [
    ({}, None),
    ({"max_tokens": None, "temperature": None, "top_p": None}, None),
    ({"max_tokens": 0, "temperature": 0}, Asked(0, 0.0)),
    ({"max_tokens": -1}, None),
    ({"n_predict": -1, "top_p": 1}, Asked(top_p=1.0)),
    ({"max_tokens": 2**53}, None),
    ({"max_tokens": 2**80, "temperature": 10**400}, None),
    ({"max_tokens": 1.5}, None),
    ({"max_tokens": True, "temperature": False, "top_p": True}, None),
    ({"max_tokens": "7", "temperature": "hot", "top_p": [0.5]}, None),
    ({"max_tokens": "7", "max_output_tokens": 7}, Asked(7)),
    ({"max_completion_tokens": None, "max_tokens": 7}, Asked(7)),
    ({"options": {"num_predict": -1}}, None),
    ({"options": [1], "parameters": "text", "sampling_params": [{"temperature": 1}]}, None),
    ({"options": {"num_predict": {"a": 1}, "temperature": [1]}}, None),
    ({"options": {}, "parameters": {"top_p": 0.5}}, Asked(top_p=0.5)),
    ({"messages": [{"role": "user", "content": "a", "max_tokens": 7}]}, None),
]


@pytest.mark.parametrize(("body", "told"), ODD)
def test_what_cannot_be_one_says_nothing(body: dict[str, Any], told: Asked | None) -> None:
    assert asked(body) == told


def test_no_json_asks_nothing() -> None:
    for raw in (b"", b"[1]", b"max_tokens=7", b'{"max_tokens": 7', b"\xff"):
        assert asked(raw) is None


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())
NAMES = st.sampled_from(["max_tokens", "n_predict", "temperature", "top_p", "max_completion_tokens"])
PLACES = st.sampled_from(
    ["options", "parameters", "sampling_params", "generationConfig", "messages", "prompt"]
)


@given(st.dictionaries(NAMES | PLACES, VALUES | st.dictionaries(NAMES, VALUES)), st.booleans())
def test_it_never_raises_and_changes_nothing_else(body: dict[str, Any], large: bool) -> None:
    raw = json.dumps(body | ({"prompt": LARGE} if large else {})).encode()
    plain, asking = (read_call("POST", "/", [], [raw], asks) for asks in (False, True))
    assert plain.asked is None
    told = asking.asked or Asked()
    assert told.max_tokens is None or 0 <= told.max_tokens < 2**53
    for value in (told.temperature, told.top_p):
        assert value is None or isfinite(value)
    for name in plain.__struct_fields__[:-1]:
        assert getattr(asking, name) == getattr(plain, name)
