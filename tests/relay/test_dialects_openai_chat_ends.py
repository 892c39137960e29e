"""Chat completions: choices, ends, errors, and events that are broken."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.taps import DONE, arrivals, chat, chunk, event, fed, opened, sizes, tapped
from tests.relay.test_dialects_openai_chat import END


def test_choices_are_apart() -> None:
    stream = tapped(
        chat("b", index=1), chat("a"), chat("bb", index=1), END, chat(index=1, finish="length"), choices=2
    )
    assert arrivals(stream) == [[(20, 1)], [(10, 1), (30, 1)]]
    assert stream.finish_reason == "stop"
    assert stream.finished


def test_two_choices_in_one_event() -> None:
    both = chunk(choices=[{"index": 0, "delta": {"content": "a"}}, {"index": 1, "delta": {"content": "bb"}}])
    stream = tapped(both, both, choices=2)
    assert arrivals(stream) == [[(10, 1), (20, 1)]] * 2
    assert sizes(stream) == [[1, 1], [2, 2]]


def test_an_answer_is_whole_when_every_choice_has_its_finish_reason() -> None:
    tap = opened(choices=2)
    tap.feed(chat("a") + END, 1)
    assert not tap.finished  # the other choice may be to come
    tap.feed(chat("b", index=1), 2)
    assert not tap.finished
    tap.feed(chat(index=1, finish="stop"), 3)
    assert tap.finished


def test_each_choices_score_says_whether_it_is_finished() -> None:
    stream = tapped(chat("a"), chat("b", index=1), END, choices=2)
    assert [score.finished for score in stream.scores] == [True, False]


def test_a_server_that_ignores_n_is_whole_at_the_clean_end() -> None:
    tap = opened(choices=2)
    tap.feed(chat("a") + END, 1)
    tap.finish(2)
    assert tap.finished


def test_done_alone_is_no_end() -> None:
    stream = tapped(chat("a"), DONE)
    assert not stream.finished
    assert stream.finish_reason is None


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("stop", "stop"),
        ("content_filter", "content_filter"),
        ("x" * 99, "other"),
        ("a\nsentence", "other"),
        (7, None),
        ("", None),
    ],
)
def test_finish_reasons_are_words(reason: Any, kept: str | None) -> None:
    stream = tapped(chat("a"), chat("b", finish=reason))
    assert stream.finish_reason == kept
    assert stream.finished == (kept is not None)
    assert stream.tokens == 2


@pytest.mark.parametrize(
    ("broken_off", "word"),
    [
        (
            event({"error": {"message": "secret", "type": "InternalServerError", "code": 500}}),
            "InternalServerError",
        ),
        (event({"error": {"message": "secret", "type": None, "code": 500}}), "500"),
        (event({"error": {"message": "secret", "code": "overloaded"}}), "overloaded"),
        (
            event(
                {
                    "error": {
                        "message": "secret",
                        "type": "A secret. In a sentence, with more than 64 characters, as it were",
                    }
                }
            ),
            "error",
        ),
        (event({"error": "secret"}), "error"),
        (event({"message": "secret", "type": "server_error"}, name="error"), "server_error"),
        (event({"type": "error", "error": {"type": "overloaded_error"}}, name="error"), "overloaded_error"),
        (b"event: error\ndata: secret\n\n", "error"),
        (b'error: {"code":500,"message":"secret"}\n\n', "500"),
        (
            chunk(
                choices=[{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
                error={"code": 502},
            ),
            "502",
        ),
    ],
)
def test_an_error_event_gives_its_type_or_code_and_never_its_message(broken_off: bytes, word: str) -> None:
    stream = tapped(chat("a"), broken_off, DONE)
    assert stream.error == word
    assert stream.tokens == 1
    assert "secret" not in repr(stream)


def test_the_response_id_is_kept_from_the_first_event_that_has_one() -> None:
    azure = event({"id": "", "object": "", "choices": [], "prompt_filter_results": []})
    assert tapped(azure, chat("a"), chat("b")).response_id == "chatcmpl-1"
    assert tapped(event({"id": 7, "choices": [{"delta": {"content": "a"}}]})).response_id is None
    assert tapped(event({"id": "no id\n", "choices": [{"delta": {"content": "a"}}]})).response_id is None


# ---------------------------------------------------------------- broken events


def test_broken_json_is_skipped_and_counted() -> None:
    """It may have been anything: an output that is made up would be worse than one that is missed."""
    stream = tapped(
        chat("a"),
        b'data: {"choices":[{"index":0,"delta":{"content":"b"\n\n',
        b"data: oops\n\n",
        chat("c"),
        END,
    )
    assert stream.tokens == 2
    assert stream.broken == 2
    assert stream.unmeasured is None
    assert stream.finished


def test_broken_utf8_counts() -> None:
    """A server that cuts a character in two sent output all the same."""
    broken = b'data: {"choices":[{"index":0,"delta":{"content":"\xc3"}}]}\n\n'
    stream = tapped(chat("a"), broken, chat("b"), END)
    assert stream.tokens == 3
    assert stream.broken == 0


def test_deep_nesting_is_broken_and_no_fault() -> None:
    deep = b"data: " + b"[" * 5000 + b"]" * 5000 + b"\n\n"
    tap = fed(opened(), chat("a"), b'data: {"usage":' + deep[6:-2] + b"}\n\n", deep, chat("b"))
    assert tap.tokens == 2
    assert tap.to_stream().broken == 2


def test_a_stream_of_which_nothing_is_understood_is_unmeasured() -> None:
    for strange in (b"data: oops\n\n", event({"type": "greeting"}), event([1, 2])):
        assert tapped(strange, strange, DONE).unmeasured == "unrecognised"


def test_a_stream_without_a_token_is_unmeasured_for_that_reason() -> None:
    for pieces in (
        [],
        [DONE],
        [chat(role="assistant"), DONE],
        [chat(role="assistant"), END],
        [b": ping\n\n"],
    ):
        assert tapped(*pieces).unmeasured == "no_tokens"
    assert tapped(event({"error": {"type": "oops"}}), DONE).unmeasured is None  # that much is clear
    tap = opened()
    tap.feed(chat(role="assistant"), 1)
    tap.finish(2, False)  # cut before the first token: the wait is what is scored
    assert tap.unmeasured is None
