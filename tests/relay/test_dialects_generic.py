"""Which dialect a stream gets, and the generic one for all that nobody recognises."""

from __future__ import annotations

import pytest

from tests.helpers.taps import CHAT, COMPLETIONS, DONE, arrivals, chat, event, opened, sizes, tapped, text


@pytest.mark.parametrize(
    ("path", "first", "dialect"),
    [
        (CHAT, chat("a"), "openai.chat"),
        ("/base/v1/chat/completions/", chat("a"), "openai.chat"),
        ("/openai/deployments/x/chat/completions", chat("a"), "openai.chat"),
        (COMPLETIONS, text("a"), "openai.completions"),
        ("/v1/rewritten", chat("a"), "openai.chat"),
        ("/v1/rewritten", text("a"), "openai.completions"),
        ("/v1/rewritten", event({"choices": [{"delta": {"content": "a"}}]}), "openai.chat"),
        ("/v1/rewritten", event({"choices": [{"text": "a"}]}), "openai.completions"),
        ("/v1/rewritten", b"data: null\n\n" + text("a"), "openai.completions"),
        (CHAT, text("a"), "openai.completions"),
        ("/v1/greetings", event({"type": "greeting"}), "generic"),
        ("/v1/rewritten", event({"object": ["odd"], "choices": "odd"}), "generic"),
        ("/events", b"data: plain text\n\n", "generic"),
        ("/events", b"data: \xff\xfe\n\n", "generic"),
    ],
)
def test_the_path_promises_and_the_first_event_decides(path: str, first: bytes, dialect: str) -> None:
    stream = tapped(first, path=path)
    assert stream.dialect == dialect
    assert stream.tokens == 1
    assert stream.unmeasured is None


def test_each_event_with_data_is_one_token() -> None:
    stream = tapped(
        b": ping\n\n",
        b"data: one\n\n",
        b"data: 22\n\ndata: 333\n\n",
        b"data:\n\n",
        b"event: ping\n\n",
        DONE,
        path="/events",
    )
    assert arrivals(stream) == [[(20, 1), (30, 1), (30, 1)]]
    assert sizes(stream) == [[3, 2, 3]]
    assert stream.first_answer_ns == 20_000_000
    assert stream.tokens_source == "events"


def test_a_clean_end_is_its_end_and_a_cut_is_not() -> None:
    assert tapped(b"data: a\n\n", path="/events").finished
    tap = opened("/events")
    tap.feed(b"data: a\n\n", 1)
    assert not tap.finished
    tap.finish(2, False)
    assert not tap.finished


@pytest.mark.parametrize(
    "error",
    [
        event({"error": {"type": "oops"}}),
        event({"type": "oops"}, name="error"),
        b'data:{"error":{"code":"oops"}}\n\n',
    ],
)
def test_errors_are_seen(error: bytes) -> None:
    stream = tapped(b"data: a\n\n", b"data: b\n\n", error, path="/events")
    assert stream.error == "oops"
    assert stream.tokens == 2


def test_an_error_in_name_only_is_output() -> None:
    stream = tapped(
        b"data: a\n\n", event({"error": None, "text": "b"}), b'data: {"error" is a word\n\n', path="/events"
    )
    assert stream.error is None
    assert stream.tokens == 3


def test_no_data_no_tokens() -> None:
    assert tapped(path="/events").unmeasured == "no_tokens"
    assert tapped(b": ping\n\n", DONE, path="/events").unmeasured == "no_tokens"
