"""The keys of a body that tell its session: read with the rest, and only where a route goes by one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.relay.call import SESSION_KEYS, WHOLE_LIMIT, read_call
from proxy.relay.prompt import LOOKS

USER = {"user": b"u1"}


def keys(body: Any, asks: bool = False, **more: Any) -> dict[str, bytes] | None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_call("POST", "/v1/chat/completions", more.get("fields", []), [raw], asks, True).keys


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"user": "u1"}, USER),
        ({"user": 7, "prompt_cache_key": "k", "safety_identifier": "größe"},
         {"user": b"7", "prompt_cache_key": b"k", "safety_identifier": "größe".encode()}),
        ({"metadata": {"user": "u1"}, "messages": [{"role": "user", "content": "x", "user": "u1"}]}, {}),
        ({"user": ""}, {}),
        ({"user": None}, {}),
        ({"user": True}, {}),
        ({"user": 1.5}, {}),
        ({"user": {"id": "u1"}}, {}),
        ({"user": ["u1"]}, {}),
        ({"user": "x" * 4096}, {"user": b"x" * 4096}),
        ({"user": "x" * 4097}, {}),
        (b'{"user": "\\ud800"}', {}),  # half a character: no text
        (b'{"user": "u0", "user": "u1"}', USER),
        ({"user": "u1", "messages": 5}, USER),  # the rest is nonsense
        ({"user": "u1", "messages": [{"content": "x"}] * (LOOKS + 1)}, USER),
        (b'{"user": "u1"', None),
        (b"[]", {}),
        (b"", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("asks", [False, True])
def test_a_text_or_a_whole_number_of_the_top_level(body: Any, told: Any, asks: bool) -> None:
    assert (keys(body, asks) or {}) == (told or {})


@pytest.mark.parametrize("place", ["front", "back"])
@pytest.mark.parametrize("asks", [False, True])
def test_of_a_large_body_both_ends_are_read(place: str, asks: bool) -> None:
    long = {"messages": [{"role": "user", "content": "x" * (WHOLE_LIMIT + 1)}]}
    body = {"user": "u1", **long} if place == "front" else {**long, "user": "u1"}
    assert keys(body, asks) == USER


def test_what_is_no_json_has_none() -> None:
    assert keys({"user": "u1"}, fields=[(b"Content-Type", b"text/plain")]) is None


_TEXTS = st.text(max_size=5) | st.integers() | st.none() | st.lists(st.integers(), max_size=2)


@given(st.dictionaries(st.sampled_from([*SESSION_KEYS, "model", "max_tokens", "n", "prompt"]), _TEXTS))
def test_nothing_else_is_read_otherwise(body: dict[str, Any]) -> None:
    raw = [json.dumps(body).encode()]
    for asks in (False, True):
        plain = read_call("POST", "/", [], raw, asks)
        keyed = read_call("POST", "/", [], raw, asks, True)
        assert plain.keys is None
        for name in plain.__struct_fields__:
            assert name == "keys" or getattr(plain, name) == getattr(keyed, name)
