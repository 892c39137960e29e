"""Ollama's lines: which of them are tokens, how they end, and what they report.

The lines are written after https://docs.ollama.com/api/generate, https://docs.ollama.com/api/chat,
https://docs.ollama.com/capabilities/streaming and https://docs.ollama.com/api/errors.
"""

from __future__ import annotations

from typing import Any

import pytest

from proxy.link import Usage
from proxy.relay.dialects.base import ANSWER, REASONING, TOOL, Dialect, Output, Reading
from proxy.relay.dialects.ollama import OllamaChat, OllamaGenerate
from tests.helpers.meanings import NO_JSON, meaning
from tests.helpers.ollama_lines import COUNTS, HEAD, LOGPROB, call, chat, generate, line, tapped
from tests.helpers.taps import arrivals, sizes


def one(dialect: Dialect, data: bytes) -> Output:
    """The line's one output."""
    found = meaning(dialect, data)
    assert isinstance(found, Reading)
    (output,) = found.outputs
    return output


# ---------------------------------------------------------------- what is output


@pytest.mark.parametrize(
    ("data", "kind", "size"),
    [
        (generate(" Yes"), ANSWER, 4),
        (generate("é"), ANSWER, 2),
        (generate(""), 0, 0),
        (generate(None), 0, 0),
        (generate("", thinking="Hm"), REASONING, 2),
        (generate("a", thinking="Hm"), ANSWER | REASONING, 3),
        (generate("", tool_calls=[call({"city": "Bern"})]), TOOL, 15),
        (generate("", image="aWdub3JlZA=="), ANSWER, 0),
        (generate("", completed=3, total=9), 0, 0),
        # Odd types: field by field.
        (generate(7), 0, 0),
        (generate(["a"]), 0, 0),
        (generate("a", thinking=5), ANSWER, 1),
        (generate("a", tool_calls="none"), ANSWER, 1),
        (generate("a", logprobs=3), ANSWER, 1),
    ],
)
def test_a_line_of_generate(data: bytes, kind: int, size: int) -> None:
    output = one(OllamaGenerate(), data)
    assert (output.choice, output.kind, output.size, output.finish) == (0, kind, size, None)


@pytest.mark.parametrize(
    ("data", "kind", "size"),
    [
        (chat(" Yes"), ANSWER, 4),
        (chat(""), 0, 0),
        (chat("", {"thinking": "Hm"}), REASONING, 2),
        (chat("", {"tool_calls": [call({"city": "Bern"})]}), TOOL, 15),
        (chat("", {"tool_calls": [call({"a": 1}), call({"b": 2})]}), TOOL, 14),
        (chat("", {"tool_calls": [call({})]}), TOOL, 2),
        (chat("", {"tool_calls": [call('{"city":"Bern"}')]}), TOOL, 15),
        (chat("", {"tool_calls": [call({"name": "\ud83d"})]}), TOOL, 14),  # a lone surrogate
        (chat("", {"tool_calls": []}), 0, 0),
        (chat("", {"images": None}), 0, 0),
        # Odd types: field by field.
        (chat({"text": "a"}), 0, 0),
        (chat("a", {"thinking": ["Hm"]}), ANSWER, 1),
        (chat("a", {"tool_calls": [None, 5, {"function": 5}]}), ANSWER, 1),
        (line({**HEAD, "message": "a", "done": False}), 0, 0),
        (line({**HEAD, "message": None, "done": False}), 0, 0),
    ],
)
def test_a_line_of_chat(data: bytes, kind: int, size: int) -> None:
    output = one(OllamaChat(), data)
    assert (output.choice, output.kind, output.size, output.finish) == (0, kind, size, None)


@pytest.mark.parametrize(
    "data", [b"{}", b"null", b"[]", b"7", b'"x"', b'{"status":"pulling manifest"}', b'{"model":"m"}']
)
def test_a_line_of_something_else(data: bytes) -> None:
    assert meaning(OllamaGenerate(), data) is None
    assert meaning(OllamaChat(), data) is None


def test_broken_utf8_is_mended_and_broken_json_is_not() -> None:
    assert one(OllamaGenerate(), b'{"response":"a\xc3","done":false}').size == 4  # a U+FFFD
    assert one(OllamaChat(), b'{"message":{"content":"\xff"},"done":false}').kind == ANSWER
    assert meaning(OllamaGenerate(), b'{"response":"a') == NO_JSON
    assert meaning(OllamaChat(), b"") == NO_JSON


# ---------------------------------------------------------------- how it ends


@pytest.mark.parametrize(
    ("end", "finish"),
    [
        ({"done": True, "done_reason": "stop"}, "stop"),
        ({"done": True, "done_reason": "length"}, "length"),
        ({"done": True, "done_reason": "load"}, "load"),
        ({"done": True, "done_reason": "unload"}, "unload"),
        ({"done": True}, "unstated"),
        ({"done": True, "done_reason": ""}, "unstated"),
        ({"done": True, "done_reason": "I stopped, since\nthe user said so"}, "other"),
        ({"done": True, "done_reason": {"odd": 1}}, "other"),
        ({"done": 1, "done_reason": "stop"}, "stop"),
        ({"done": "true", "done_reason": "stop"}, "stop"),
        ({"done": False, "done_reason": "stop"}, None),
        ({"done": "no", "done_reason": "stop"}, None),
        ({"done": [], "done_reason": "stop"}, None),
        ({"done": None}, None),
    ],
)
def test_the_reason(end: dict[str, Any], finish: str | None) -> None:
    assert one(OllamaGenerate(), generate("", **end)).finish == finish
    assert one(OllamaChat(), chat("", **end)).finish == finish


def test_a_stream_of_generate() -> None:
    stream = tapped(
        generate(" Yes"), generate("."), generate("!"), generate("", done=True, done_reason="stop", **COUNTS)
    )
    assert stream.dialect == "ollama.generate"
    assert arrivals(stream) == [[(10, 1), (20, 1), (30, 1)]]
    assert sizes(stream) == [[4, 1, 1]]
    assert stream.usage == Usage(prompt=26, output=4)
    assert (stream.finish_reason, stream.finished, stream.tokens_source) == ("stop", True, "events")


def test_a_stream_of_chat_with_thoughts_and_a_tool() -> None:
    stream = tapped(
        chat("", {"thinking": "Hm"}),
        chat("", {"tool_calls": [call({"city": "Bern"})]}),
        chat("Sun"),
        chat("ny"),
        chat("", done=True, done_reason="stop", **COUNTS),
        path="/api/chat",
    )
    assert stream.dialect == "ollama.chat"
    assert arrivals(stream) == [[(10, 1), (20, 1), (30, 1), (40, 1)]]
    assert (stream.first_reasoning_ns, stream.first_tool_ns, stream.first_answer_ns) == (
        10_000_000,
        20_000_000,
        30_000_000,
    )
    assert stream.finished


def test_the_last_line_may_carry_text_too() -> None:
    stream = tapped(generate("a"), generate("!", done=True, done_reason="length"))
    assert arrivals(stream) == [[(10, 1), (20, 1)]]
    assert stream.finish_reason == "length"


def test_several_lines_in_one_piece_are_as_many_tokens() -> None:
    stream = tapped(generate("a"), generate("b") + generate("c") + generate("d")[:9], generate("d")[9:])
    assert arrivals(stream) == [[(10, 1), (20, 1), (20, 1), (30, 1)]]


def test_logprobs_tell_the_tokens_also_of_lines_that_show_nothing() -> None:
    stream = tapped(
        chat("a", logprobs=[LOGPROB]),
        chat("", logprobs=[LOGPROB]),
        chat("bc", logprobs=[LOGPROB, LOGPROB]),
        chat("", done=True, done_reason="stop", **COUNTS),
        path="/api/chat",
    )
    assert arrivals(stream) == [[(10, 1), (30, 3)]]
    assert stream.tokens_source == "logprobs"


def test_a_model_that_is_loaded_says_no_token() -> None:
    stream = tapped(generate("", done=True, done_reason="load"))
    assert (stream.tokens, stream.finish_reason, stream.unmeasured) == (0, "load", "no_tokens")


def test_an_image_is_an_answer_and_its_progress_is_none() -> None:
    stream = tapped(
        generate("", completed=1, total=2),
        generate("", completed=2, total=2),
        generate("", image="aWdub3JlZA==", done=True, done_reason="stop"),
    )
    assert arrivals(stream) == [[(30, 1)]]
    assert (stream.finished, stream.unmeasured) == (True, None)


@pytest.mark.parametrize("message", ["an error was encountered while running the model", "", "short"])
def test_an_error_in_the_middle_has_no_type_and_its_message_is_not_kept(message: str) -> None:
    stream = tapped(generate(" Yes"), line({"error": message}))
    assert (stream.error, stream.finished, stream.tokens) == ("error", False, 1)
    stream = tapped(chat(" Yes"), line({"error": message}), path="/api/chat")
    assert (stream.error, stream.finished, stream.tokens) == ("error", False, 1)


def test_a_cut_stream_is_not_finished() -> None:
    stream = tapped(generate(" Yes"), generate("."))
    assert (stream.finished, stream.finish_reason) == (False, None)


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        ({"prompt_eval_count": 26, "eval_count": 4}, Usage(prompt=26, output=4)),
        ({"eval_count": 4}, Usage(output=4)),  # the prompt was in the cache (older servers)
        ({"prompt_eval_count": 26.0, "eval_count": "4"}, Usage(prompt=26)),
        ({"prompt_eval_count": -1, "eval_count": 2**60}, None),
        ({"prompt_eval_count": True, "eval_count": [4]}, None),
        ({}, None),
    ],
)
def test_what_it_reports(counts: dict[str, Any], usage: Usage | None) -> None:
    found = meaning(OllamaGenerate(), generate("", done=True, **counts))
    assert isinstance(found, Reading)
    assert (found.usage, found.per_choice) == (usage, False)


@pytest.mark.parametrize(("first", "name"), [(generate("a"), "ollama.generate"), (chat("a"), "ollama.chat")])
@pytest.mark.parametrize("path", ["/api/generate", "/ollama/api/chat/", "/v1/rewritten"])
def test_the_first_line_decides(first: bytes, name: str, path: str) -> None:
    stream = tapped(first, path=path)
    assert (stream.dialect, stream.tokens, stream.response_id) == (name, 1, None)
