"""Responses that are no event streams: usage, finish reason, id, an error's word; bounded, never raising."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from proxy.link import Stream, Usage
from proxy.relay import body as module
from proxy.relay.body import BODY_LIMIT, BodyTap, NullTap
from tests.helpers.taps import CHAT, opened

ANSWER = {
    "id": "chatcmpl-1",
    "choices": [{"index": 0, "message": {"content": "secret"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}},
}


def read(
    value: Any, *, path: str = CHAT, encoding: bytes = b"", size: int = 7, complete: bool = True
) -> Stream:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    tap = opened(path, content_type=b"application/json", encoding=encoding)
    assert isinstance(tap, BodyTap)
    for at in range(0, len(raw), size):
        tap.feed(raw[at : at + size], at)
    tap.finish(len(raw), complete)
    assert tap.faults == 0
    assert (tap.overdue_ns(10**18), tap.missed_by(10**18)) == (0, 0)
    stream = tap.to_stream()
    assert "secret" not in repr(stream)
    return stream


def test_a_chat_answer() -> None:
    stream = read(ANSWER)
    assert stream.usage == Usage(prompt=9, output=5, cached=4)
    assert (stream.dialect, stream.finish_reason, stream.finished) == ("openai.chat", "stop", True)
    assert stream.response_id == "chatcmpl-1"
    assert (stream.choices, stream.events, stream.unmeasured) == ((), 0, None)


def test_compressed() -> None:
    assert read(gzip.compress(json.dumps(ANSWER).encode()), encoding=b"gzip").usage.output == 5


def test_the_names_of_other_families() -> None:
    stream = read(
        {"id": "msg", "stop_reason": "end_turn", "usage": {"input_tokens": 3, "output_tokens": 4}},
        path="/v1/messages",
    )
    assert (stream.usage.prompt, stream.usage.output, stream.finish_reason) == (3, 4, "end_turn")
    details = {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 1},
        "output_tokens_details": {"reasoning_tokens": 2},
    }
    assert read({"usage": details}).usage == Usage(3, None, 1, 2)


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (
            {"error": {"message": "secret", "type": "invalid_request_error", "code": 400}},
            "invalid_request_error",
        ),
        ({"error": {"message": "secret", "code": 404}}, "404"),
        ({"error": "secret"}, "error"),
        ({"detail": "secret"}, None),
    ],
)
def test_of_an_error_only_the_type_or_code(error: dict[str, Any], word: str | None) -> None:
    assert read(error).error == word


@pytest.mark.parametrize(
    "odd",
    [b"", b"no json", b"[1,2]", b"null", b'{"usage":7}', b'{"choices":{}}', b"[" * 100_000, b'{"id":"\xff"}'],
)
def test_what_is_no_answer_tells_nothing(odd: bytes) -> None:
    stream = read(odd, size=1000)
    assert (stream.usage, stream.finish_reason, stream.response_id, stream.error) == (
        Usage(),
        None,
        None,
        None,
    )
    assert stream.unmeasured is None


def test_a_body_beyond_the_bound_is_a_record_without_usage_and_is_not_held() -> None:
    tap = opened(content_type=b"application/json")
    assert isinstance(tap, BodyTap)
    tap.feed(json.dumps(ANSWER).encode()[:-1] + b',"data":"', 1)
    for _ in range(100):
        tap.feed(b"x" * 65536, 2)
        assert len(tap._body) <= BODY_LIMIT
    tap.feed(b'"}', 3)
    tap.finish(4)
    stream = tap.to_stream()
    assert (stream.usage, stream.finished, stream.unmeasured) == (Usage(), True, None)


def test_a_truncated_body_is_not_finished() -> None:
    assert not read(json.dumps(ANSWER).encode()[:40], complete=False).finished


@pytest.mark.parametrize(
    ("encoding", "raw"), [(b"gzip", b"no gzip"), (b"gzip", gzip.compress(b" " * 60_000_000))]
)
def test_bodies_that_cannot_be_read(encoding: bytes, raw: bytes) -> None:
    assert read(raw, encoding=encoding, size=10_000).usage == Usage()


def test_other_content_types_are_not_looked_at() -> None:
    for kind in (b"text/plain", b"", b"audio/mpeg", b"application/octet-stream"):
        tap = opened(content_type=kind)
        assert isinstance(tap, NullTap)
        tap.feed(b"anything", 1)
        tap.finish(2)
        assert (tap.tokens, tap.finished, tap.to_stream().unmeasured) == (0, True, None)
        assert (tap.overdue_ns(10**18), tap.missed_by(10**18)) == (0, 0)
    assert isinstance(opened(content_type=b"application/problem+json"), BodyTap)
    assert isinstance(opened(content_type=b"application/json", encoding=b"br"), NullTap)


def test_an_exception_is_counted_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("injected")

    tap = opened(content_type=b"application/json")
    tap.feed(b"{}", 1)
    monkeypatch.setattr(module, "_decode", broken)
    tap.finish(2)
    monkeypatch.setattr(module, "_usage", broken)
    assert tap.to_stream().unmeasured == "tap_error"
    assert tap.faults == 2
