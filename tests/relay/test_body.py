"""Responses that are no event streams: usage, finish reason, id, an error's word; bounded, never raising."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import brotli
import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.link import Stream, Usage
from proxy.relay import body as module
from proxy.relay.bodies import ANSWERS_MAX
from proxy.relay.body import BODY_LIMIT, HEAD_KEPT, TAIL_KEPT, BodyTap, NullTap
from proxy.relay.decompress import Inflater
from tests.helpers.recordings import load, names
from tests.helpers.taps import CHAT, opened
from tests.relay.families import FAMILIES, usage

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


@pytest.mark.parametrize(
    ("encoding", "pack"), [(b"gzip", gzip.compress), (b"br", brotli.compress), (b"zstd", zstandard.compress)]
)
def test_compressed(encoding: bytes, pack: Callable[[bytes], bytes]) -> None:
    assert read(pack(json.dumps(ANSWER).encode()), encoding=encoding).usage.output == 5


@pytest.mark.parametrize(
    ("_name", "path", "body", "told", "finish", "id"), FAMILIES, ids=[row[0] for row in FAMILIES]
)
def test_each_family(
    _name: str, path: str, body: Any, told: Usage, finish: str | None, id: str | None
) -> None:
    stream = read(body, path=path)
    assert (stream.usage, stream.finish_reason, stream.response_id) == (told, finish, id)
    assert (stream.error, stream.unmeasured, stream.finished) == (None, None, True)


@pytest.mark.parametrize("row", FAMILIES, ids=[row[0] for row in FAMILIES])
@pytest.mark.parametrize("where", ["first", "last", "both", "twice"])
def test_each_family_large(row: Any, where: str) -> None:
    """More than is kept, before, behind or on both sides of what matters: it is found all the same."""
    _, path, body, told, finish, id = row
    if isinstance(body, list) and where != "first":
        return  # of a large list nothing is told, see below
    pad = {"a": {"pad": 'an "escaped" key: "usage": {"completion_tokens": 7}, x\\' * 40_000}}
    late = {"b": [0.25] * 400_000}
    if isinstance(body, list):
        for batch in ([*body, pad], [pad, *body]):
            stream = read(batch, path=path, size=65536)
            assert (stream.usage, stream.finish_reason, stream.finished) == (Usage(), None, True)
        return
    large: Any = {
        "first": {**pad, **body},
        "last": {**body, **late},
        "both": {"x": 1, **pad, **body, "y": [{"usage": {"prompt_tokens": 1}, "id": "no", "status": "no"}]},
        "twice": {**{key: body[key] for key in body if key in ("id", "object", "model")}, **pad, **body},
    }[where]
    raw = json.dumps(large).encode()
    assert len(raw) > BODY_LIMIT
    stream = read(raw, path=path, size=65536)
    assert (stream.usage, stream.response_id, stream.error) == (told, id, None)
    assert stream.finish_reason == finish
    assert stream.finished


@pytest.mark.parametrize("at_the_start", [False, True])
@pytest.mark.parametrize("key", ["finish_reason", "finishReason"])
def test_the_finish_reason_of_a_choice_that_is_too_large_to_keep(at_the_start: bool, key: str) -> None:
    choice: dict[str, Any] = {"logprobs": [{"token": "secret", "logprob": -0.5}] * 30_000}
    choice = {key: "length", **choice} if at_the_start else {**choice, key: "length"}
    stream = read({"choices": [choice], "usage": {"completion_tokens": 5}, "id": "a"}, size=65536)
    assert (stream.finish_reason, stream.usage.output, stream.response_id) == ("length", 5, "a")
    sentence = {"choices": [{**choice, key: "secret, and more"}], "id": "a"}
    assert read(sentence, size=65536).finish_reason == "other"


@pytest.mark.parametrize("size", [10, 1_200_000])
def test_a_byte_order_mark_is_no_part_of_the_body(size: int) -> None:
    raw = b"\xef\xbb\xbf" + json.dumps({"id": "a", "pad": "x" * size, **ANSWER}).encode()
    stream = read(raw, size=65536)
    assert (stream.usage.output, stream.response_id) == (5, "chatcmpl-1")


RECORDED = {
    # name: (usage, finish reason), as the servers wrote them
    "llama.cpp__chat_nonstream": (usage(20, 40, 19), "length"),
    "llama.cpp__completions_nonstream": (usage(2, 16, 1), "length"),
    "llama.cpp__messages_nonstream": (usage(20, 24, 19), "max_tokens"),
    "llama.cpp__native_completion_nonstream": (usage(2, 16, 1), "limit"),
    "llama.cpp__responses_nonstream": (usage(15, 24, 14), "completed"),
    "transformers__chat_nonstream": (usage(20, 40), "length"),
    "transformers__completions_nonstream": (usage(2, 16), "length"),
    "vllm__chat_nonstream": (usage(20, 40), "length"),
    "vllm__completions_nonstream": (usage(2, 16), "length"),
    "vllm__messages_nonstream": (usage(20, 24), "max_tokens"),
    "vllm__responses_nonstream": (usage(15, 24, 0, 0), "max_output_tokens"),
    "llama.cpp-b10434__embeddings": (usage(7, None), None),
    "vllm__embeddings": (usage(7, 0), None),
}


def test_the_table_of_recordings_is_complete() -> None:
    found = {name for name in names() if "nonstream" in name or "embeddings" in name}
    # One is a stream, unasked; two are errors.
    streamed = {"transformers__responses_nonstream", "llama.cpp__embeddings", "transformers__embeddings"}
    assert found - streamed == set(RECORDED)


@pytest.mark.parametrize("name", sorted(RECORDED))
@pytest.mark.parametrize("large", [False, True])
def test_recorded_bodies(name: str, large: bool) -> None:
    """As they are; and grown by what servers may put before the rest, or behind it, beyond the bound."""
    recording = load(name)
    body = recording.response().whole
    expected, finish = RECORDED[name]
    told_id = json.loads(body).get("id")
    bodies = [body]
    if large:
        junk = b'"junk":[' + b'{"id":1,"a":"secret"},' * 60_000 + b"0]"
        bodies = [b"{" + junk + b"," + body[1:], body.rstrip()[:-1] + b"," + junk + b"}"]
    for raw in bodies:
        stream = read(raw, path=recording.path, size=10_000)
        assert (stream.usage, stream.finish_reason, stream.response_id) == (expected, finish, told_id)


@pytest.mark.parametrize("name", [name for name in names() if "__error" in name])
def test_recorded_errors_are_a_word(name: str) -> None:
    recording = load(name)
    stream = read(recording.response().whole, path=recording.path)
    assert stream.usage == Usage()
    assert stream.error is None or " " not in stream.error or stream.error == "Bad Request"


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
        ({"type": "error", "error": {"type": "overloaded_error", "message": "secret"}}, "overloaded_error"),
        ({"error": {"code": 429, "message": "secret", "status": "RESOURCE_EXHAUSTED"}}, "RESOURCE_EXHAUSTED"),
        ([{"error": {"code": 400, "message": "secret", "status": "INVALID_ARGUMENT"}}], "INVALID_ARGUMENT"),
        ({"error": "secret, secret", "error_type": "validation"}, "validation"),
        ({"object": "error", "message": "secret", "type": "BadRequestError", "code": 400}, "BadRequestError"),
        ({"object": "response", "status": "failed", "error": {"code": "server_error"}}, "server_error"),
        ({"object": "response", "status": "failed"}, "error"),
        ({"meta_info": {"finish_reason": {"type": "abort", "status_code": 503}}}, "503"),
    ],
)
def test_of_an_error_only_the_type_or_code(error: Any, word: str | None) -> None:
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


ODD: list[Any] = [
    None,
    True,
    -1,
    1.5,
    2**70,
    "7",
    [],
    [7],
    {},
    {"type": 7},
    {"a": {"b": []}},
    "secret words!",
]
NAMES = sorted(
    (
        {
            name
            for row in FAMILIES
            for answer in (row[2] if isinstance(row[2], list) else [row[2]])
            for name in answer
        }
        | {"error", "error_type", "code", "type", "stopped_eos", "promptFeedback"}
    )
    - {"model", "modelVersion", "model_name"}  # the model's name is kept as it comes
)


@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(ODD)), st.booleans())
def test_a_field_of_another_type_is_no_fault_and_costs_no_other(odd: dict[str, Any], in_a_list: bool) -> None:
    odd["usage"] = {"prompt_tokens": "7", "completion_tokens": 5, "prompt_tokens_details": 3}
    stream = read([odd] if in_a_list else odd, size=1000)
    if "usageMetadata" not in odd:
        assert (stream.usage.prompt, stream.usage.output) == (None, 5)
    assert msgspec.msgpack.encode(stream)


@settings(max_examples=50)
@given(st.sampled_from(FAMILIES), st.data())
def test_any_damage_is_no_fault(row: Any, draw: st.DataObject) -> None:
    raw = json.dumps(row[2]).encode()
    at = draw.draw(st.integers(0, len(raw)))
    junk = draw.draw(st.sampled_from([b"", b'"', b"{", b"}]", b"\xff", b"\\", b"[" * 5000, b'"usage":{']))
    for body in (raw[:at] + junk + raw[at:], raw[:at] + junk * 2 + b" " * BODY_LIMIT + raw[at:]):
        assert msgspec.msgpack.encode(read(body, path=row[1], size=100_000))


def test_a_large_body_is_never_held_whole() -> None:
    tap = opened(content_type=b"application/json")
    assert isinstance(tap, BodyTap)
    pieces = [json.dumps(ANSWER).encode()[:-1] + b',"data":"', *([b"x" * 65536] * 300), b'"}']
    tracemalloc.start()
    try:
        for piece in pieces:
            tap.feed(piece, 1)
            assert len(tap._body) + len(tap._head or b"") <= BODY_LIMIT
        tap.finish(2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * BODY_LIMIT
    assert not tap._head
    assert not tap._body
    stream = tap.to_stream()
    assert (stream.usage.output, stream.response_id, stream.finish_reason) == (5, "chatcmpl-1", "stop")


@pytest.mark.parametrize("size", [1, 7, 100_000, 3_000_000])
def test_the_cuts_of_a_large_body_change_nothing(size: int) -> None:
    tap, raw = opened(content_type=b"application/json"), b'{"a":"' + b"x" * 1_500_000 + b'",' + WHOLE[1:]
    pieces = [raw[:-2000], *(raw[at : at + size] for at in range(len(raw) - 2000, len(raw), size))]
    for piece in pieces if size < 1000 else (raw[at : at + size] for at in range(0, len(raw), size)):
        tap.feed(piece, 1)
    tap.finish(2)
    assert tap.to_stream().usage == usage(9, 5, 4)


WHOLE = json.dumps(ANSWER).encode()


def test_what_is_kept_is_the_beginning_and_the_end() -> None:
    """At the very border: a usage that ends where the tail begins is lost, one that begins there is found."""
    mine = b'"usage":{"completion_tokens":5}'
    for behind, found in ((TAIL_KEPT - len(mine) - 20, 5), (TAIL_KEPT - len(mine) + 20, None)):
        raw = b'{"a":"' + b"x" * BODY_LIMIT + b'",' + mine + b',"b":"' + b"y" * (behind - 8) + b'"}'
        for size in (65536, 100_003, len(raw)):
            assert read(raw, size=size).usage.output == found
    for before, found in ((HEAD_KEPT - len(mine) - 20, 5), (HEAD_KEPT - len(mine) + 20, None)):
        raw = b'{"a":"' + b"x" * (before - 8) + b'",' + mine + b',"b":"' + b"y" * BODY_LIMIT + b'"}'
        assert read(raw, size=65536).usage.output == found


@pytest.mark.alone
@pytest.mark.parametrize(
    "filling",
    [rb"\"", b"[", b'{"id":', b'"usage":{"id":', b'"a":', b'"usage" ', b"{},", b" ", b'"finish_reason" '],
)
def test_no_large_body_takes_long(filling: bytes) -> None:
    for raw in (b'{"a":"' + filling * (BODY_LIMIT // len(filling)), b"{" + filling * BODY_LIMIT):
        tap = opened(content_type=b"application/json")
        tap.feed(raw, 1)
        begin = time.process_time()
        tap.finish(2)
        assert time.process_time() - begin < 0.5
        assert (tap.faults, tap.to_stream().usage) == (0, Usage())


def test_a_list_of_more_answers_than_any_batch_has_is_something_else() -> None:
    one = {"meta_info": {"prompt_tokens": 1, "completion_tokens": 2}}
    assert read([one] * ANSWERS_MAX, size=65536).usage == usage(ANSWERS_MAX, 2 * ANSWERS_MAX)
    assert read([one] * (ANSWERS_MAX + 1), size=65536).usage == Usage()
    assert read(b"[" + b"{}," * 300_000 + b"{}]", size=65536).usage == Usage()


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
    assert isinstance(opened(content_type=b"application/json", encoding=b"nonsense"), NullTap)


def test_an_exception_is_counted_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("injected")

    tap = opened(content_type=b"application/json")
    tap.feed(b"{}", 1)
    monkeypatch.setattr(module, "read_whole", broken)
    tap.finish(2)
    assert tap.to_stream().unmeasured == "tap_error"
    assert tap.faults == 1
    tap = opened(content_type=b"application/json", encoding=b"gzip")
    monkeypatch.setattr(Inflater, "feed", broken)
    tap.feed(b"{}", 1)
    tap.feed(b"{}", 2)
    assert (tap.faults, tap.unmeasured) == (1, "tap_error")
