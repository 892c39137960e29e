"""OpenAI chat completions: what counts, what does not, and how tokens are counted."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.link import Usage
from tests.helpers.taps import DONE, arrivals, chat, chunk, sizes, tapped

END = chat(finish="stop")


@pytest.mark.parametrize(
    ("delta", "first"),
    [
        ({"content": "Hi"}, "answer"),
        ({"content": " "}, "answer"),
        ({"content": "Hi", "role": "assistant"}, "answer"),
        ({"content": "Hi", "tool_calls": []}, "answer"),
        ({"reasoning_content": "Hm"}, "reasoning"),
        ({"reasoning": "Hm"}, "reasoning"),
        ({"reasoning": "Hm", "reasoning_content": "Hm", "content": ""}, "reasoning"),
        ({"refusal": "No"}, "answer"),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, "tool"),
        ({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}]}, "tool"),
        ({"function_call": {"arguments": "{"}}, "tool"),
        # Fields of other types: understood as far as they go.
        ({"content": [{"type": "text", "text": "Hi"}]}, "answer"),
        ({"content": ["Hi"]}, "answer"),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}]}, "reasoning"),
        ({"tool_calls": [{"index": 0, "function": {"arguments": {"city": "Bern"}}}]}, "tool"),
        ({"tool_calls": [{"index": 0, "function": {"arguments": {"city": "\ud83d"}}}]}, "tool"),
        ({"content": "Hi", "tool_calls": "none"}, "answer"),
        ({"content": "Hi", "reasoning": {"odd": 1}}, "answer"),
    ],
)
def test_output_counts_once(delta: dict[str, Any], first: str) -> None:
    stream = tapped(chat(**delta), END, DONE)
    assert (stream.tokens, stream.events, stream.tokens_source) == (1, 1, "events")
    stamps = {
        "answer": stream.first_answer_ns,
        "reasoning": stream.first_reasoning_ns,
        "tool": stream.first_tool_ns,
    }
    assert [name for name, at_ns in stamps.items() if at_ns is not None] == [first]
    assert stream.unmeasured is None


@pytest.mark.parametrize(
    "nothing",
    [
        chat(role="assistant"),
        chat("", role="assistant"),
        chat(""),
        chat(reasoning_content=""),
        chat(refusal=""),
        chat(tool_calls=[]),
        chat(tool_calls=[{"index": 0, "id": "c", "type": "function", "function": {"name": "f"}}]),
        chat(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": ""}}]),
        chat(tool_calls=[{"index": 0, "function": None}]),
        chat(function_call={"name": "f"}),
        chunk(choices=[{"index": 0, "delta": {}}]),
        chunk(choices=[{"index": 0, "delta": None}]),
        chunk(choices=[{"index": 0}]),
        chunk(choices=[]),
        chunk(choices=None),
        chunk(
            choices=[{"index": 0, "delta": {"role": "assistant"}}],
            prompt_progress={"total": 9, "processed": 4},
        ),
        chunk(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 0}),
        chunk(choices=[], prompt_filter_results=[]),
        b"data: null\n\n",
        b"data: {}\n\n",
        b": ping\n\n",
        b"event: ping\n\n",
        b"data: [1, 2]\n\n",
    ],
)
def test_what_carries_no_output_counts_nothing_wherever_it_comes(nothing: bytes) -> None:
    stream = tapped(nothing, chat("a"), nothing, chat("b"), nothing, END, nothing, DONE)
    assert arrivals(stream) == [[(20, 1), (40, 1)]]
    assert stream.first_answer_ns == 20_000_000
    assert stream.finished
    assert stream.unmeasured is None
    assert stream.broken == 0


def test_the_first_event_and_the_first_token_are_kept_apart() -> None:
    stream = tapped(
        chat(role="assistant"),
        chat(reasoning="Hm"),
        chat("a"),
        chat(tool_calls=[{"function": {"arguments": "{"}}]),
    )
    assert stream.first_event_ns == 10_000_000
    assert stream.first_reasoning_ns == 20_000_000
    assert stream.first_answer_ns == 30_000_000
    assert stream.first_tool_ns == 40_000_000


def test_an_event_with_reasoning_and_answer_is_one_event_of_both_kinds() -> None:
    stream = tapped(chat("a", reasoning="Hm"))
    assert stream.tokens == 1
    assert stream.first_answer_ns == stream.first_reasoning_ns == 10_000_000
    assert sizes(stream) == [[3]]


@pytest.mark.parametrize(
    ("more", "stamp"),
    [
        ({"tool_calls": [{"function": {"arguments": "{"}}]}, "first_tool_ns"),
        ({"function_call": {"arguments": "{"}}, "first_tool_ns"),
        ({"reasoning": "Hm"}, "first_reasoning_ns"),
        ({"reasoning_content": "Hm"}, "first_reasoning_ns"),
    ],
)
def test_text_with_more_beside_it_is_seen_whole_among_plain_events(more: dict[str, Any], stamp: str) -> None:
    stream = tapped(chat("a"), chat("b"), chat("c", **more), chat("d"))
    assert stream.tokens == 4
    assert getattr(stream, stamp) == 30_000_000
    assert sizes(stream)[0][2] > 1


def test_sizes_are_bytes_of_utf8() -> None:
    lone = b'data: {"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}\n\n'
    stream = tapped(
        chat("abc"), chat("é"), chat("日本"), lone, chat(tool_calls=[{"function": {"arguments": '{"a":'}}])
    )
    assert sizes(stream) == [[3, 2, 6, 3, 5]]


# ---------------------------------------------------------------- counting


def logprobs(number: int) -> dict[str, Any]:
    return {"logprobs": {"content": [{"token": "t", "logprob": -1.0, "top_logprobs": []}] * number}}


def usage(output: int, *, reasoning: int | None = None) -> dict[str, Any]:
    details = None if reasoning is None else {"reasoning_tokens": reasoning}
    return {"usage": {"prompt_tokens": 9, "completion_tokens": output, "completion_tokens_details": details}}


def one(content: str | None, **fields: Any) -> bytes:
    """A chunk with one choice, and fields beside ``choices``."""
    return chunk(choices=[{"index": 0, "delta": {"content": content}}], **fields)


def last(content: str | None, **fields: Any) -> bytes:
    return chunk(choices=[{"index": 0, "delta": {"content": content}, "finish_reason": "stop"}], **fields)


def test_token_ids_go_before_logprobs_and_those_before_running_usage() -> None:
    both = {"token_ids": [1, 2, 3], **logprobs(2)}
    stream = tapped(chunk(choices=[{"index": 0, "delta": {"content": "abc"}, **both}], **usage(7)), END)
    assert (stream.tokens, stream.tokens_source) == (3, "token_ids")
    stream = tapped(
        chunk(choices=[{"index": 0, "delta": {"content": "abc"}, **logprobs(2)}], **usage(7)), END
    )
    assert (stream.tokens, stream.tokens_source) == (2, "logprobs")
    stream = tapped(one("abc", **usage(7)), END)
    assert (stream.tokens, stream.tokens_source) == (7, "running_usage")


def test_the_source_is_the_least_sure_one_that_was_needed() -> None:
    sure = chat("a", choice={"token_ids": [1, 2]})
    assert tapped(sure, sure).tokens_source == "token_ids"
    assert tapped(sure, chat("b", choice=logprobs(1))).tokens_source == "logprobs"
    stream = tapped(sure, chat("b"), sure)
    assert (stream.tokens, stream.tokens_source) == (5, "events")


@pytest.mark.parametrize(
    "empty", [{"token_ids": []}, {"logprobs": {"content": []}}, {"logprobs": None}, {"logprobs": {}}]
)
def test_empty_lists_of_tokens_say_nothing(empty: dict[str, Any]) -> None:
    stream = tapped(chat("a", choice=empty), chat("", choice=empty), END)
    assert (stream.tokens, stream.tokens_source) == (1, "events")


def test_tokens_that_are_held_back_come_with_the_next_output() -> None:
    """Half a UTF-8 character: an event with a token id and no text."""
    stream = tapped(
        chat("a", choice={"token_ids": [1]}),
        chat("", choice={"token_ids": [2]}),
        chat("é", choice={"token_ids": [3]}),
        chat("b", choice={"token_ids": [4]}),
        chat("", finish="stop", choice={"token_ids": [5]}),
    )
    assert arrivals(stream) == [[(10, 1), (30, 2), (40, 1), (50, 1)]]


def test_plain_events_after_held_back_tokens_carry_them() -> None:
    stream = tapped(chat("a"), chat("b"), chat("", choice={"token_ids": [2, 3]}), chat("c"), chat("d"))
    assert arrivals(stream) == [[(10, 1), (20, 1), (40, 3), (50, 1)]]


def test_running_usage_gives_each_event_its_growth() -> None:
    stream = tapped(
        one("", **usage(0)),
        one("a", **usage(2)),
        one("b", **usage(3)),
        one("", **usage(4)),
        one("c", **usage(6)),
        last("d", **usage(9)),
        chunk(choices=[], **usage(9)),
    )
    assert arrivals(stream) == [[(20, 2), (30, 1), (50, 3), (60, 3)]]
    assert stream.usage == Usage(prompt=9, output=9)
    assert stream.tokens_source == "running_usage"


def test_a_final_count_on_the_finishing_event_is_not_running() -> None:
    """transformers: where held-back characters made events fewer, the last event is not their heir."""
    for ending in (last("", **usage(7)), last("c", **usage(7))):
        stream = tapped(chat("a"), chat("b"), ending)
        assert stream.tokens == stream.events
        assert stream.tokens_source == "events"
        assert stream.usage.output == 7


def test_an_answer_in_one_event_may_be_counted_by_the_usage_in_it() -> None:
    assert tapped(last("abc", **usage(3))).tokens == 3
    assert tapped(last("abc", **usage(0))).tokens == 1


def test_usage_that_stands_still_is_not_running() -> None:
    zeros = tapped(*[one("a", **usage(0))] * 20, END)
    assert (zeros.tokens, zeros.tokens_source) == (20, "events")
    stuck = tapped(one("a", **usage(1)), *[one("a", **usage(1))] * 20, END)
    assert stuck.tokens >= 13
    assert stuck.tokens_source == "events"
    late = tapped(*[one("a", **usage(1))] * 12, one("a", **usage(40)), one("a", **usage(60)))
    assert [tokens for _, tokens in arrivals(late)[0]][-2:] == [1, 1]  # given up for good


def test_hidden_reasoning_buys_no_slack() -> None:
    hidden = tapped(
        one("", **usage(500, reasoning=500)),
        one("a", **usage(501, reasoning=500)),
        one("b", **usage(502, reasoning=500)),
    )
    assert arrivals(hidden) == [[(20, 1), (30, 1)]]
    shown = tapped(
        chunk(choices=[{"index": 0, "delta": {"reasoning": "Hm"}}], **usage(5, reasoning=5)),
        one("a", **usage(6, reasoning=5)),
    )
    assert arrivals(shown) == [[(10, 5), (20, 1)]]


def test_running_usage_of_several_choices_is_nobodys() -> None:
    def both(index: int, output: int) -> bytes:
        return chunk(choices=[{"index": index, "delta": {"content": "a"}}], **usage(output))

    pieces = [both(0, 3), both(1, 6), both(0, 9), both(1, 12)]
    stream = tapped(*pieces, choices=2)
    assert arrivals(stream) == [[(10, 1), (30, 1)], [(20, 1), (40, 1)]]
    assert stream.tokens_source == "events"


def timings(output: int) -> dict[str, Any]:
    return {"timings": {"cache_n": 19, "prompt_n": 1, "predicted_n": output, "predicted_ms": 0.7}}


def test_llama_cpps_timings_are_usage_and_run_per_choice() -> None:
    stream = tapped(
        chat(role="assistant"), one("a", **timings(1)), one("b", **timings(3)), last("", **timings(3))
    )
    assert arrivals(stream) == [[(20, 1), (30, 2)]]
    assert stream.usage == Usage(prompt=20, output=3, cached=19)
    final = tapped(chat("a"), chat("b"), last("", **timings(4)))
    assert (final.tokens, final.usage.output) == (2, 4)


def test_timings_of_several_choices_add_up_and_usage_goes_before_them() -> None:
    def end(index: int) -> bytes:
        return chunk(choices=[{"index": index, "delta": {}, "finish_reason": "length"}], **timings(2))

    pieces = [chat("a"), chat("b", index=1), end(0), end(1)]
    assert tapped(*pieces, choices=2).usage == Usage(prompt=20, output=4, cached=19)
    assert tapped(*pieces, chunk(choices=[], **usage(3), **timings(2)), choices=2).usage.output == 3


@pytest.mark.parametrize("odd", [-1, 1.5, "many", 10**40, True, None, [], {}])
def test_odd_usage_is_no_usage(odd: Any) -> None:
    stream = tapped(one("a", usage={"completion_tokens": odd, "prompt_tokens": 3}), chat("b"), END)
    assert stream.usage == Usage(prompt=3, output=None)
    assert stream.tokens == 2


def test_usage_in_full() -> None:
    reported = {
        "prompt_tokens": 9,
        "completion_tokens": 5.0,
        "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    assert tapped(chat("a"), END, chunk(choices=[], usage=reported)).usage == Usage(9, 5, 4, 2)
