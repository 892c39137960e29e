"""SGLang's /generate: events as documented, and odd ones; whole streams are next door.

Sources: https://docs.sglang.io/basic_usage/native_api.html ("Generate (text generation model)") and
https://docs.sglang.io/basic_usage/sampling_params.html ("Streaming": each event's text is printed from where
the last one ended, so it is all of the answer so far).
"""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from proxy.link import Usage
from proxy.relay.dialects.base import ANSWER, BROKEN, Output, Reading
from proxy.relay.dialects.sglang import Chunk, SGLangGenerate

SGLANG = SGLangGenerate()


def generated(
    text: Any, told: Any, *, ids: Any = None, finish: Any = None, index: int | None = None, **meta: Any
) -> dict[str, Any]:
    """An event as the server writes it: ``index`` only where several choices were asked for."""
    value: dict[str, Any] = {"text": text}
    if ids is not None:
        value["output_ids"] = ids
    value["meta_info"] = {
        "id": "5f1a",
        "finish_reason": finish,
        "prompt_tokens": 12,
        "completion_tokens": told,
        "cached_tokens": 3,
        "e2e_latency": 0.25,
        **meta,
    }
    if index is not None:
        value["index"] = index
    return value


def data(value: Any) -> bytes:
    return json.dumps(value).encode()


def read(value: Any) -> Reading | None:
    """What the general way makes of an event."""
    return read_bytes(value if isinstance(value, bytes) else data(value))


def read_bytes(payload: bytes) -> Reading | None:
    try:
        chunk: Chunk | None = SGLANG.decode(payload)
    except BROKEN:
        chunk = SGLANG.mend(payload)
    if chunk is None:
        return None
    assert SGLANG.plain(chunk) == 0
    return SGLANG.read(chunk)


def quick(payload: bytes) -> int:
    try:
        return SGLANG.quick(payload)
    except BROKEN:
        return 0


# ---------------------------------------------------------------- one event

STOP = {"type": "stop", "matched": 128009}
LENGTH = {"type": "length", "length": 32}


@pytest.mark.parametrize(
    ("value", "output"),
    [
        # All of the text so far: by ids as many as tokens, or without ids.
        (generated("The capital", 2), Output(0, ANSWER, total=11)),
        (generated("The capital", 2, ids=[1, 2]), Output(0, ANSWER, total=11)),
        (generated("日本", 2, ids=[1, 2], index=3), Output(3, ANSWER, total=6)),
        (generated("", 1, ids=[1]), Output(0, 0, total=0)),
        # Only what is new: fewer ids than tokens.
        (generated(" of", 3, ids=[3]), Output(0, ANSWER, size=3)),
        (generated("", 3, ids=[3]), Output(0, 0, size=0)),
        (generated(" of", 3, ids=[]), Output(0, ANSWER, size=3)),
        # Ids alone: a server without a tokenizer.
        ({"output_ids": [1, 2], "meta_info": {"completion_tokens": 2}}, Output(0, ANSWER)),
        ({"output_ids": [], "meta_info": {"completion_tokens": 2}}, Output(0, 0)),
        # The end.
        (generated("Paris.", 2, finish=STOP), Output(0, ANSWER, total=6, finish="stop")),
        (generated("Paris.", 2, finish=LENGTH), Output(0, ANSWER, total=6, finish="length")),
        (generated("Paris.", 2, finish="length"), Output(0, ANSWER, total=6, finish="length")),
        (generated("", 0, finish={"type": "abort"}), Output(0, 0, total=0, finish="abort")),
        (generated("a", 1, finish={"type": "A sentence!"}), Output(0, ANSWER, total=1, finish="other")),
        (generated("a", 1, finish={"matched": 2}), Output(0, ANSWER, total=1, finish="other")),
        (generated("a", 1, finish=["stop"]), Output(0, ANSWER, total=1, finish="other")),
        (generated("a", 1, finish=""), Output(0, ANSWER, total=1)),
        # Fields of other types.
        (generated("a", "1", ids="none", index=-1), Output(0, ANSWER, total=1)),
        (generated("a", 1, index=-1), Output(0, ANSWER, total=1)),
        (generated("a", 3, ids=[None], index=2, prompt_tokens="x"), Output(2, ANSWER, size=1)),
        (generated(None, 1), Output(0, 0)),
        (generated(["a"], 1), Output(0, ANSWER, total=1)),
        (generated("\ud83d", 1), Output(0, ANSWER, total=3)),
        ({"text": "a", "meta_info": {}}, Output(0, ANSWER, total=1)),
    ],
)  # fmt: skip
def test_what_one_event_brings(value: dict[str, Any], output: Output) -> None:
    reading = read(value)
    assert reading is not None
    assert reading.outputs == [output]
    assert reading.per_choice
    assert reading.error is None


@pytest.mark.parametrize("odd", ["many", -1, 1.5, True, None, [], 10**30])
def test_odd_counts_are_no_counts(odd: Any) -> None:
    reading = read(generated("a", odd, prompt_tokens=odd, cached_tokens=odd))
    assert reading is not None
    assert reading.usage == Usage()


def test_usage_is_the_choices_own_and_knows_no_hidden_reasoning() -> None:
    reading = read(generated("a", 7, reasoning_tokens=5))
    assert reading is not None
    assert reading.usage == Usage(prompt=12, output=7, cached=3)
    mended = read(generated("a", 7, ids="none"))
    assert mended is not None
    assert mended.usage == reading.usage


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"error": {"message": "The input is too long."}}, "error"),
        ({"error": {"message": "m", "type": "BadRequestError", "code": 400}}, "BadRequestError"),
        ({"error": "The input is too long."}, "error"),
        (generated("", 0, finish={"type": "abort", "message": "m", "err_type": "BadRequest"}), "BadRequest"),
        (generated("", 0, finish={"type": "abort", "message": "m", "status_code": 503}), "503"),
        (generated("", 0, finish={"type": "abort", "status_code": None, "err_type": None}), None),
        (generated("", 0, finish={"type": "abort", "message": "secret", "err_type": "A sentence!"}), None),
        (generated("", 0, finish={"type": "stop", "status_code": 200}), None),
        ({**generated("a", 1), "error": {"type": "Cancelled"}}, "Cancelled"),
    ],
)  # fmt: skip
def test_errors_are_words(value: dict[str, Any], error: str | None) -> None:
    reading = read(value)
    assert reading is not None
    assert reading.error == error


@pytest.mark.parametrize(
    "value", [{}, [], "text", {"text": ["vLLM's"]}, {"token": {"text": "a"}, "index": 1}, {"error": None}]
)
def test_what_is_no_event_of_it(value: Any) -> None:
    assert read(value) is None
    assert quick(data(value)) == 0


def test_it_is_recognised() -> None:
    def fields(value: dict[str, Any]) -> dict[str, msgspec.Raw]:
        return msgspec.json.decode(data(value), type=dict[str, msgspec.Raw])

    assert all(map(SGLANG.serves, ["/generate", "/base/generate"]))
    assert not any(map(SGLANG.serves, ["/generate_stream", "/v2/models/m/generate", "/regenerate", "/"]))
    assert SGLANG.shows(fields(generated("a", 1)))
    assert not SGLANG.shows(fields({"text": ["a"]}))
    assert SGLANG.response_id(fields(generated("a", 1))) == "5f1a"
    assert SGLANG.response_id(fields({"meta_info": {"id": "no id"}})) is None
    assert SGLANG.response_id(fields({"meta_info": ["5f1a"]})) is None


# ---------------------------------------------------------------- the hot path


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (generated("The capital", 2, ids=[1, 2]), -2),
        (generated(" of", 900, ids=[3], index=0), -900),
        (generated("a", 1), -1),
        (generated("", 1), 0),
        (generated(None, 1), 0),
        (generated("a", 0), 0),
        (generated("a", 2**53), 0),
        (generated("a", 1, index=1), 0),
        (generated("a", 1, finish=STOP), 0),
        (generated("a", 1, finish="stop"), 0),
        ({**generated("a", 1), "error": {"message": "m"}}, 0),
    ],
)
def test_a_plain_event_tells_the_tokens_so_far(value: dict[str, Any], told: int) -> None:
    assert quick(data(value)) == told
    assert quick(msgspec.json.encode(value)) == told


odd: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
metas = st.fixed_dictionaries(
    {},
    optional={
        "completion_tokens": st.integers(0, 9) | odd,
        "prompt_tokens": odd,
        "cached_tokens": odd,
        "finish_reason": st.sampled_from([None, "", "stop", STOP, {"type": "abort", "status_code": 500}])
        | odd,
    },
)
events = st.fixed_dictionaries(
    {},
    optional={
        "text": st.text(max_size=5) | odd,
        "output_ids": st.lists(st.integers(0, 9), max_size=4) | odd,
        "meta_info": metas | odd,
        "index": st.sampled_from([0, 1]) | odd,
        "error": st.none() | odd,
    },
)


@given(events, st.booleans())
def test_the_hot_path_says_what_the_general_way_says(value: dict[str, Any], ascii_only: bool) -> None:
    payload = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    reading, told = read(payload), quick(payload)
    if told:
        assert told < 0
        assert reading is not None
        assert reading.error is None
        assert reading.usage is not None
        assert reading.usage.output == -told
        assert [(one.choice, one.kind, one.finish) for one in reading.outputs] == [(0, ANSWER, None)]


@given(st.binary(max_size=30) | odd.map(data), st.data())
def test_nothing_raises(payload: bytes, more: st.DataObject) -> None:
    whole = data(generated("a é", 3, ids=[1, 2, 3], finish=STOP))
    at = more.draw(st.integers(0, len(whole)))
    for broken in (payload, whole[:at] + payload + whole[at:], whole[:at]):
        quick(broken)
        read_bytes(broken)
