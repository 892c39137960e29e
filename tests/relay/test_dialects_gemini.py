"""Gemini's events: several tokens each, by running usage; thoughts, calls, blocks and errors.

The events are written after https://ai.google.dev/api/generate-content ("GenerateContentResponse",
"UsageMetadata", "FinishReason", "PromptFeedback"), https://ai.google.dev/api/caching#Part and
https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.link import Usage
from proxy.relay.dialects.base import ANSWER, REASONING, TOOL, Output, Reading
from proxy.relay.dialects.gemini import GeminiGenerate
from tests.helpers.gemini_events import CALL, PATH, body, candidate, counts, crlf, tapped, text
from tests.helpers.meanings import NO_JSON, meaning
from tests.helpers.taps import arrivals

GEMINI = GeminiGenerate()


def one(value: Any) -> Output:
    """The event's one output."""
    found = meaning(GEMINI, json.dumps(value).encode())  # lone surrogates stay escaped
    assert isinstance(found, Reading)
    (output,) = found.outputs
    return output


# ---------------------------------------------------------------- what is output


@pytest.mark.parametrize(
    ("parts", "kind", "size"),
    [
        ([{"text": "Hi"}], ANSWER, 2),
        ([{"text": "é"}, {"text": "a"}], ANSWER, 3),
        ([{"text": "Hm", "thought": True}], REASONING, 2),
        ([{"text": "Hm", "thought": True}, {"text": "Hi"}], ANSWER | REASONING, 4),
        ([{"text": "Hi", "thought": False, "thoughtSignature": "c2ln"}], ANSWER, 2),
        ([{"functionCall": CALL}], TOOL, 15),
        ([{"functionCall": {"name": "now", "args": {}}}], TOOL, 2),
        ([{"functionCall": {"name": "now"}}], TOOL, 0),
        ([{"functionCall": CALL, "thoughtSignature": "c2ln"}, {"functionCall": CALL}], TOOL, 30),
        ([{"executableCode": {"language": "PYTHON", "code": "1+1"}}], TOOL, 3),
        ([{"inlineData": {"mimeType": "image/png", "data": "aWdub3JlZA=="}}], ANSWER, 0),
        # Arguments that are streamed (Vertex AI, streamFunctionCallArguments).
        ([{"functionCall": {"name": "weather", "willContinue": True}}], 0, 0),
        ([{"functionCall": {"partialArgs": [{"jsonPath": "$.city", "stringValue": "Be"}]}}], TOOL, 2),
        ([{"functionCall": {"partialArgs": [{"jsonPath": "$.n", "numberValue": 12}]}}], TOOL, 2),
        ([{"functionCall": {}}], 0, 0),
        # None.
        ([], 0, 0),
        ([{"text": ""}], 0, 0),
        ([{"text": "", "thoughtSignature": "c2ln"}], 0, 0),
        ([{"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "2"}}], 0, 0),
        # Odd types: field by field.
        ([{"text": 7}, {"text": "a"}], ANSWER, 1),
        ([None, 5, "x"], 0, 0),
        ([{"text": "a", "thought": "yes"}], REASONING, 1),
        ([{"functionCall": "weather"}, {"executableCode": 7}], 0, 0),
        ([{"functionCall": {"args": [1]}}], TOOL, 3),
        ([{"functionCall": {"args": {"city": "\ud83d"}}}], TOOL, 14),  # a lone surrogate
        ([{"functionCall": {"partialArgs": [None, {"stringValue": None}]}}], TOOL, 4),
    ],
)
def test_parts(parts: list[Any], kind: int, size: int) -> None:
    assert one(body(candidate(*parts))) == Output(0, kind, size)


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        ({"content": {"parts": "Hi"}}, Output(0)),
        ({"content": None}, Output(0)),
        ({"content": {"role": "model"}, "finishReason": "STOP"}, Output(0, finish="STOP")),
        ({"index": "1"}, Output(0)),
        ({"index": 2.0}, Output(2)),
        ({"index": -1}, Output(0)),
        (None, Output(0)),
    ],
)
def test_an_odd_candidate(odd: Any, expected: Output) -> None:
    assert one({"candidates": [odd]}) == expected


@pytest.mark.parametrize(
    "value", [{}, None, [], 7, {"candidates": None}, {"modelVersion": "x"}, {"choices": []}]
)
def test_an_event_of_something_else(value: Any) -> None:
    assert meaning(GEMINI, value) is None


def test_an_event_with_usage_alone_is_no_output() -> None:
    found = meaning(GEMINI, {"usageMetadata": counts(3)})
    assert found == Reading([], Usage(prompt=8, output=3))


def test_broken_utf8_is_mended_and_broken_json_is_not() -> None:
    found = meaning(GEMINI, b'{"candidates":[{"content":{"parts":[{"text":"a\xc3"}]}}]}')
    assert found == Reading([Output(0, ANSWER, 4)])
    assert meaning(GEMINI, b'{"candidates":[') == NO_JSON


# ---------------------------------------------------------------- how it ends


@pytest.mark.parametrize(
    ("finish", "expected"),
    [
        ("STOP", "STOP"),
        ("MAX_TOKENS", "MAX_TOKENS"),
        ("SAFETY", "SAFETY"),
        ("MALFORMED_FUNCTION_CALL", "MALFORMED_FUNCTION_CALL"),
        ("FINISH_REASON_UNSPECIFIED", None),
        ("", None),
        (None, None),
        (1, "1"),
        ("because\nof you", "other"),
        (["STOP"], "other"),
    ],
)
def test_the_reason(finish: Any, expected: str | None) -> None:
    assert one(body(candidate({"text": "a"}, finish=finish))).finish == expected


@pytest.mark.parametrize(
    ("feedback", "finish"),
    [
        ({"blockReason": "SAFETY", "safetyRatings": []}, "SAFETY"),
        ({"blockReason": "PROHIBITED_CONTENT"}, "PROHIBITED_CONTENT"),
        ({"blockReason": "BLOCK_REASON_UNSPECIFIED"}, None),
        ({"safetyRatings": []}, None),
        ("odd", None),
    ],
)
def test_a_blocked_prompt_ends_without_any_output(feedback: Any, finish: str | None) -> None:
    stream = tapped(crlf({"promptFeedback": feedback, "usageMetadata": counts()}))
    assert (stream.dialect, stream.tokens, stream.unmeasured) == ("gemini.generate", 0, "no_tokens")
    assert (stream.finish_reason, stream.finished) == (finish, finish is not None)


def test_ratings_of_the_prompt_end_nothing() -> None:
    feedback = {"promptFeedback": {"blockReason": "SAFETY"}}
    assert one({**body(candidate({"text": "a"})), **feedback}).finish is None


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (
            {"code": 429, "message": "Quota of you exceeded", "status": "RESOURCE_EXHAUSTED"},
            "RESOURCE_EXHAUSTED",
        ),
        ({"code": 503, "message": "overloaded"}, "503"),
        ({"message": "overloaded"}, "error"),
        ({"status": "a sentence, and\nmore", "code": 500}, "500"),
        ("overloaded", "error"),
    ],
)
def test_an_error_in_the_middle(error: Any, found: str) -> None:
    stream = tapped(text("a", counts(1)), crlf({"error": error}))
    assert (stream.error, stream.finished, stream.tokens) == (found, False, 1)


# ---------------------------------------------------------------- counting


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        (counts(45), Usage(prompt=8, output=45)),
        (counts(45, 1000), Usage(prompt=8, output=1045, reasoning=1000)),
        (counts(None, 1000), Usage(prompt=8, output=1000, reasoning=1000)),
        ({**counts(3), "cachedContentTokenCount": 6}, Usage(prompt=8, output=3, cached=6)),
        (counts(), Usage(prompt=8)),
        ({"trafficType": "ON_DEMAND"}, None),
        ({"promptTokenCount": "8", "candidatesTokenCount": -1, "thoughtsTokenCount": True}, None),
        ("odd", None),
    ],
)
def test_what_it_reports(told: Any, usage: Usage | None) -> None:
    found = meaning(GEMINI, body(candidate({"text": "a"}), usage=told))
    assert isinstance(found, Reading)
    assert (found.usage, found.per_choice) == (usage, False)


def test_each_event_brings_what_the_usage_grew_by() -> None:
    stream = tapped(
        text("The sky", counts(2)),
        text(" is blue because of", counts(6)),
        text(" scattering.", counts(9)),
        text(" Really.", counts(12)),
        text("", counts(12), finish="STOP"),
    )
    assert stream.dialect == "gemini.generate"
    assert arrivals(stream) == [[(10, 2), (20, 4), (30, 3), (40, 3)]]
    assert (stream.tokens, stream.tokens_source, stream.several) == (12, "running_usage", True)
    assert stream.usage == Usage(prompt=8, output=12)
    assert (stream.finish_reason, stream.finished, stream.response_id) == ("STOP", True, "b1nZaMfFF6")


def test_thoughts_that_are_not_shown_are_nobodys_tokens() -> None:
    """They would buy slack: a thousand of them fifty seconds, in which the answer might stall."""
    stream = tapped(
        text("The sky", counts(2, 1000)),
        text(" is blue because of", counts(6, 1000)),
        text(" scattering", counts(9, 1000)),
        text(" of light.", counts(12, 1000), finish="STOP"),
    )
    assert arrivals(stream) == [[(10, 2), (20, 4), (30, 3), (40, 3)]]
    assert stream.usage == Usage(prompt=8, output=1012, reasoning=1000)


@pytest.mark.parametrize("thoughts", [2, 20, 500])
def test_thoughts_that_are_shown_count(thoughts: int) -> None:
    """Whatever their number: the hot path must not take the answer's own for the whole."""
    shown = crlf(body(candidate({"text": "Hm", "thought": True}), usage=counts(None, thoughts)))
    stream = tapped(
        shown,
        text("The sky", counts(2, thoughts)),
        text(" is blue because of some", counts(7, thoughts)),
        text(" scattering of the light.", counts(12, thoughts)),
        text(" Or so", counts(14, thoughts)),
        text("", counts(14, thoughts), finish="STOP"),
    )
    assert arrivals(stream) == [[(10, thoughts), (20, 2), (30, 5), (40, 5), (50, 2)]]
    assert (stream.first_reasoning_ns, stream.first_answer_ns) == (10_000_000, 20_000_000)


def test_a_call_counts_by_the_usage_too() -> None:
    stream = tapped(
        text("Let me look.", counts(4)),
        crlf(body(candidate({"functionCall": CALL}), usage=counts(16))),
        crlf(body(candidate({"functionCall": CALL}, finish="STOP"), usage=counts(28))),
    )
    assert arrivals(stream) == [[(10, 4), (20, 12), (30, 12)]]
    assert stream.first_tool_ns == 20_000_000


def test_usage_on_the_last_event_only_is_no_growth() -> None:
    """Vertex AI, and older models of the Gemini API: each event is one token while it streams."""
    quiet = {"trafficType": "ON_DEMAND"}
    stream = tapped(text("The sky", quiet), text(" is blue", quiet), text(".", counts(12), finish="STOP"))
    assert arrivals(stream) == [[(10, 1), (20, 1), (30, 1)]]
    assert (stream.tokens_source, stream.usage.output) == ("events", 12)


def test_usage_of_several_candidates_is_nobodys() -> None:
    both = [candidate({"text": "a"}), candidate({"text": "b"}, index=1)]
    ends = [candidate({"text": "."}, finish="STOP"), candidate({"text": "!"}, index=1, finish="MAX_TOKENS")]
    stream = tapped(crlf(body(*both, usage=counts(9))), crlf(body(*ends, usage=counts(30))), choices=2)
    assert arrivals(stream) == [[(10, 1), (20, 1)], [(10, 1), (20, 1)]]
    assert (stream.finished, stream.tokens_source, stream.usage.output) == (True, "events", 30)


def test_several_events_in_one_piece_and_cut_ones_count_alike() -> None:
    glued = text(" is", counts(3)) + text(" blue", counts(5)) + text(" today", counts(9))[:70]
    stream = tapped(text("The sky", counts(2)), glued, text(" today", counts(9))[70:], text(".", counts(10)))
    assert arrivals(stream) == [[(10, 2), (20, 1), (20, 2), (30, 4), (40, 1)]]


def test_code_that_runs_is_output_and_its_result_is_not() -> None:
    code, result = {"executableCode": {"code": "1+1"}}, {"codeExecutionResult": {"output": "2"}}
    stream = tapped(
        crlf(body(candidate(code), usage=counts(5))),
        crlf(body(candidate(result), usage=counts(5))),
        text("It is 2.", counts(11), finish="STOP"),
    )
    assert arrivals(stream) == [[(10, 5), (30, 6)]]


@pytest.mark.parametrize(
    "path", [PATH, "/v1/projects/p/locations/l/publishers/google/models/g:streamGenerateContent"]
)
def test_the_paths(path: str) -> None:
    assert GEMINI.serves(path)
    assert not GEMINI.serves(path.replace("stream", ""))


def test_a_rewritten_path_is_recognised_by_the_first_event() -> None:
    stream = tapped(text("a", counts(1)), path="/v1/rewritten")
    assert (stream.dialect, stream.tokens) == ("gemini.generate", 1)
