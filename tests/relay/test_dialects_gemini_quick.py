"""The hot path says of Gemini's events what the three steps say, or nothing; and no event raises."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from proxy.relay.dialects.base import ANSWER, Reading
from proxy.relay.dialects.gemini import GeminiGenerate
from tests.helpers.gemini_events import CALL, body, candidate, counts, tapped, text
from tests.helpers.meanings import meaning, plain, quick
from tests.helpers.watched import watched

GEMINI = GeminiGenerate()

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**54),
    st.floats(allow_nan=True),
    st.text(max_size=4),
    st.sampled_from(["STOP", "FINISH_REASON_UNSPECIFIED"]),
    st.just([]),
    st.just({}),
    st.just(CALL),
)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(values, st.fixed_dictionaries({}, optional=fields))


def likely(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({}, optional=fields)


def anything(shape: Any) -> st.SearchStrategy[Any]:
    parts = shape(
        text=st.one_of(st.text(max_size=4), values),
        thought=values,
        functionCall=values,
        executableCode=values,
        inlineData=values,
    )
    content = shape(parts=st.lists(parts, max_size=2))
    candidates = shape(content=content, index=st.sampled_from([0, 0, 1, None]), finishReason=values)
    number = st.one_of(st.integers(0, 9), values)
    usage = shape(candidatesTokenCount=number, thoughtsTokenCount=number, promptTokenCount=number)
    return st.fixed_dictionaries(
        {},
        optional={
            "candidates": st.one_of(st.lists(candidates, max_size=2), values),
            "usageMetadata": usage,
            "promptFeedback": values,
            "error": st.sampled_from([None, None, {"code": 1}]),
        },
    )


def agree(data: bytes) -> int:
    fast = quick(GEMINI, data)
    assert fast <= 0
    assert plain(GEMINI, data) == 0
    found = meaning(GEMINI, data)
    if fast:
        assert isinstance(found, Reading)
        (output,) = found.outputs
        usage = found.usage
        assert usage is not None
        assert usage.output is not None
        assert (output.choice, output.kind, output.finish, found.error) == (0, ANSWER, None, None)
        assert -fast == usage.output - (usage.reasoning or 0)
        # Were the thoughts shown, this many tokens could not pass for growth.
        assert not usage.reasoning or usage.reasoning > output.size
    return fast


@given(st.one_of(anything(some), anything(likely)))
def test_steps_agree_on_any_event(value: Any) -> None:
    agree(json.dumps(value).encode())


@given(st.text(min_size=1, max_size=9), st.integers(1, 99), st.integers(0, 99))
def test_steps_agree_on_usual_events(content: str, answer: int, thoughts: int) -> None:
    data = json.dumps(body(candidate({"text": content}), usage=counts(answer, thoughts))).encode()
    hidden = not 0 < thoughts <= len(content.encode())
    assert agree(data) == (-answer if hidden else 0)


def test_a_usual_stream_goes_the_quick_way(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = watched(GeminiGenerate, monkeypatch)
    stream = tapped(*(text(" a b", counts(2 * number, 1000)) for number in range(1, 31)))
    assert (stream.tokens, stream.events) == (60, 30)
    assert len(asked) > 25


@given(st.binary(max_size=40))
def test_nothing_raises_on_any_bytes(data: bytes) -> None:
    agree(data)
    agree(b'{"candidates":[{"content":{"parts":[{"text":"' + data + b'"}]}}]}')


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        (body(candidate({"text": "a"}), usage=counts(45)), -45),
        (body(candidate({"text": "a", "thoughtSignature": "c2ln"}), usage=counts(45, 1000)), -45),
        (body(candidate({"text": "a", "thought": True}), usage=counts(45, 1000)), 0),
        (body(candidate({"text": "a"}, index=1), usage=counts(45)), 0),
        (body(candidate({"text": "a"}), candidate({"text": "b"}, index=1), usage=counts(45)), 0),
        (body(candidate({"text": "a"}, {"text": "b"}), usage=counts(45)), 0),
        (body(candidate({"text": "a"}, finish="STOP"), usage=counts(45)), 0),
        (body(candidate({"text": "a", "functionCall": CALL}), usage=counts(45)), 0),
        (body(candidate({"text": "a", "executableCode": {"code": "1"}}), usage=counts(45)), 0),
        (body(candidate({"text": "a", "inlineData": {"data": "aQ=="}}), usage=counts(45)), 0),
        (body(usage=counts(45)), 0),
        (body(candidate(), usage=counts(45)), 0),
        (body(candidate({"text": "a"}), usage=counts()), 0),
        (body(candidate({"text": "a"})), 0),
        (body(candidate({"text": "a"}), usage=counts(45), error={"code": 1}), 0),
    ],
)
def test_the_usual_event_is_quick(value: dict[str, Any], tokens: int) -> None:
    assert agree(json.dumps(value).encode()) == tokens
