"""OpenAI completions: what counts, what does not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.taps import COMPLETIONS, DONE, arrivals, chunk, event, sizes, tapped, text

END = text("", finish="length")


def completed(*pieces: bytes, choices: int = 1) -> Any:
    stream = tapped(*pieces, path=COMPLETIONS, choices=choices)
    assert stream.dialect == "openai.completions"
    return stream


def test_text_counts() -> None:
    stream = completed(text("a"), text("é"), text("b", finish="stop"), DONE)
    assert arrivals(stream) == [[(10, 1), (20, 1), (30, 1)]]
    assert sizes(stream) == [[1, 2, 1]]
    assert stream.first_answer_ns == 10_000_000
    assert (stream.finished, stream.finish_reason, stream.response_id) == (True, "stop", "cmpl-1")


def test_reasoning_counts_as_such() -> None:
    stream = completed(text("", reasoning="Hm"), text("a"), END)
    assert arrivals(stream) == [[(10, 1), (20, 1)]]
    assert (stream.first_reasoning_ns, stream.first_answer_ns) == (10_000_000, 20_000_000)


@pytest.mark.parametrize(
    "nothing",
    [
        text(""),
        text(None),
        b"data: null\n\n",
        event({"object": "text_completion", "choices": []}),
        event({"object": "text_completion", "choices": [{"index": 0}]}),
        event({"object": "text_completion", "choices": [], "usage": {"completion_tokens": 0}}),
        b": ping\n\n",
    ],
)
def test_what_carries_no_text_counts_nothing(nothing: bytes) -> None:
    stream = completed(nothing, text("a"), nothing, END, nothing, DONE)
    assert arrivals(stream) == [[(20, 1)]]
    assert stream.unmeasured is None


def test_an_echoed_prompt_is_not_counted() -> None:
    """vLLM: the first event of a choice holds the prompt and the first token; its logprobs hold both, too."""
    echo = text("import os a", logprobs={"tokens": ["import", " os", " a"]}, prompt_token_ids=[7, 8])
    stream = completed(echo, text("b", logprobs={"tokens": ["b"]}), END)
    assert arrivals(stream) == [[(10, 1), (20, 1)]]
    assert stream.tokens_source == "logprobs"
    assert arrivals(completed(text("import os a", prompt_token_ids=[7, 8]), text("b"))) == [
        [(10, 1), (20, 1)]
    ]


def test_token_ids_and_both_shapes_of_logprobs() -> None:
    assert completed(text("ab", token_ids=[1, 2]), END).tokens == 2
    assert (
        completed(text("ab", logprobs={"tokens": ["a", "b"], "token_logprobs": [-1, None]}), END).tokens == 2
    )
    assert completed(text("ab", logprobs={"content": [{"token": "a"}, {"token": "b"}]}), END).tokens == 2


def test_choices_are_apart_also_when_they_answer_several_prompts() -> None:
    pieces = [b"data: null\n\n", text("b", index=1), text("a"), text("", index=1, finish="length"), END]
    stream = completed(*pieces)
    assert arrivals(stream) == [[(30, 1)], [(20, 1)]]
    assert stream.finished


def test_fields_of_other_types_are_understood_as_far_as_they_go() -> None:
    stream = completed(text(["a", "b"]), text("c", finish=0), text(7), text("d", token_ids="none"), END)
    assert arrivals(stream) == [[(10, 1), (20, 1), (40, 1)]]


def test_broken_events_are_skipped_or_mended() -> None:
    stream = completed(text("a"), b'data: {"choices":[{"text":"\xff"}]}\n\n', b"data: {oops\n\n", END)
    assert (stream.tokens, stream.broken) == (2, 1)


def test_the_first_event_goes_before_the_path() -> None:
    chat_like = chunk(choices=[{"index": 0, "delta": {"content": "a"}}])
    assert tapped(chat_like, path=COMPLETIONS).dialect == "openai.chat"
    assert tapped(chat_like, path=COMPLETIONS).tokens == 1
