"""How long a prompt is, for every API's way to carry one: text, token ids, and what is neither."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.relay.call import WHOLE_LIMIT, Call, read_call
from proxy.relay.prompt import LOOKS, media_bytes

JSON: list[tuple[bytes, bytes]] = [(b"Content-Type", b"application/json")]
B64 = "iVBORw0KGgoAAAANSUhEUgAA" * 40
URL = "data:image/png;base64," + B64
SOURCE = {"type": "base64", "media_type": "image/png", "data": B64}
IMAGE = {"type": "image", "source": SOURCE}
Body = dict[str, Any]


INPUT_IMAGE = {"type": "input_image", "image_url": URL}
INPUT_TEXT = {"type": "input_text", "text": "abc"}
PLAIN = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "abc"}}


def read(body: Body | bytes) -> Call:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_call("POST", "/", JSON, [raw])


def user(content: Any, **more: Any) -> Body:
    return {"role": "user", "content": content, **more}


def text(words: str) -> Body:
    return {"type": "text", "text": words}


# ---------------------------------------------------------------- text alone

TEXTS: dict[str, tuple[Body | bytes, int]] = {
    "chat": ({"messages": [{"role": "system", "content": "abc"}, user("de")]}, 5),
    "chat, parts": ({"messages": [user([text("abc"), text("de")])]}, 5),
    "chat, null content": ({"messages": [{"role": "assistant", "content": None}, user("de")]}, 2),
    "chat, tool calls": (
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "de"},
            ]
        },
        1 + 7 + 2,
    ),
    "chat, reasoning by two names": ({"messages": [user("a", reasoning_content="bc", reasoning="bc")]}, 3),
    "chat, reasoning by the second name": (
        {"messages": [user("a", reasoning_content=None, reasoning="bc")]},
        3,
    ),
    "chat, tools": ({"messages": [user("a")], "tools": [{"x": "y"}]}, 1 + len('[{"x": "y"}]')),
    "chat, an output format is none": ({"messages": [user("a")], "response_format": {"x": "y"}}, 1),
    "completions": ({"prompt": "abc", "suffix": "de"}, 5),
    "completions, several": ({"prompt": ["abc", "de"]}, 5),
    "embeddings": ({"input": ["abc", "de"]}, 5),
    "responses": (
        {"input": "abc", "instructions": "de", "text": {"format": {"type": "json_schema", "name": "s"}}},
        5,
    ),
    "responses, items": (
        {
            "input": [
                {"type": "message", "role": "user", "content": [INPUT_TEXT]},
                {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "d"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "status": "done"},
                {"type": "function_call_output", "call_id": "c", "output": "gh"},
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "ij", "logprobs": [{"a": "b"}]}],
                },
            ]
        },
        3 + 1 + 3 + 2 + 2,
    ),
    "anthropic": (
        {
            "system": [{**text("abc"), "cache_control": {"type": "ephemeral"}}],
            "messages": [user([text("de")])],
        },
        5,
    ),
    "anthropic, tools": (
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "ab", "signature": "x" * 300},
                        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": [1, 2]}},
                    ],
                },
                user([{"type": "tool_result", "tool_use_id": "t", "content": [text("cd")]}]),
            ]
        },
        2 + 1 + len('{"a":[1,2]}') + 2,
    ),
    "anthropic, a document of text": (
        {"messages": [user([PLAIN])]},
        3,
    ),
    "ollama generate": ({"prompt": "abc", "system": "de", "images": []}, 5),
    "ollama chat": ({"messages": [user("abc", images=None, thinking="de")]}, 5),
    "tgi": ({"inputs": "abc", "parameters": {"stop": ["x"]}}, 3),
    "sglang": ({"text": "abc", "sampling_params": {"n": 1}}, 3),
    "sglang, several": ({"text": ["abc", "de"]}, 5),
    "llama.cpp": ({"prompt": "abc"}, 3),
    "llama.cpp infill": ({"input_prefix": "abc", "input_suffix": "de", "input_extra": [{"text": "g"}]}, 6),
    "gemini": (
        {
            "systemInstruction": {"parts": [{"text": "abc"}]},
            "contents": [
                {"role": "user", "parts": [{"text": "de"}]},
                {
                    "role": "model",
                    "parts": [{"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "x"}],
                },
                {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"b": 2}}}]},
            ],
            "generationConfig": {"temperature": 1},
        },
        3 + 2 + 1 + 7 + 1 + 7,
    ),
    "triton": ({"text_input": "abc", "parameters": {"stop": "x"}}, 3),
    "escapes": ({"prompt": 'a"b\\n\n'}, 6),
    "letters by their numbers": (b'{"prompt":"\\u4f60\\u597d"}', 6),
    "letters as they are": ({"prompt": "ab"}, 2),
}


@pytest.mark.parametrize(("body", "text_bytes"), TEXTS.values(), ids=TEXTS.keys())
def test_text_of_every_api(body: Body | bytes, text_bytes: int) -> None:
    call = read(body)
    assert (call.text_bytes, call.tokens, call.text_only) == (text_bytes, 0, True)


def test_letters_count_the_same_however_a_client_writes_them() -> None:
    body = {"messages": [user("你好，世界！" * 50)]}
    escaped, plain = json.dumps(body).encode(), json.dumps(body, ensure_ascii=False).encode()
    assert len(escaped) > 1.8 * len(plain)
    assert read(escaped).text_bytes == read(plain).text_bytes == len("你好，世界！".encode()) * 50
    parts = json.dumps({"messages": [user([text("你好，世界！" * 50)])]}).encode()
    assert read(parts).text_bytes == read(plain).text_bytes


def test_the_escapes_of_a_long_string_are_counted_at_its_beginning() -> None:
    words = 'say "hello"\n' * 30_000
    assert read({"prompt": words}).text_bytes == pytest.approx(len(words), rel=0.001)


# ---------------------------------------------------------------- token ids


@pytest.mark.parametrize(
    ("body", "tokens", "text_bytes"),
    [
        ({"prompt": [1, 22, 333]}, 3, 0),
        ({"prompt": [[1, 22], [333]]}, 3, 0),
        ({"prompt": []}, 0, 0),
        ({"prompt": [[]]}, 0, 0),
        ({"prompt": [12, "abc", 34]}, 2, 3),  # llama.cpp
        ({"prompt": [-1, 5]}, 2, 0),
        ({"input_ids": list(range(1000))}, 1000, 0),  # SGLang
        ({"input": [1, 2, 3]}, 3, 0),
        ({"context": [1, 2, 3], "prompt": "abc"}, 3, 3),  # Ollama
        ({"prompt": [True, None, 1.5]}, 0, 0),
    ],
)
def test_token_ids_are_tokens(body: Body, tokens: int, text_bytes: int) -> None:
    call = read(body)
    assert (call.tokens, call.text_bytes, call.text_only) == (tokens, text_bytes, False)


@pytest.mark.parametrize("body", [{"prompt": list(range(200_000))}, {"input_ids": [list(range(200_000))]}])
def test_many_token_ids_are_counted_without_being_decoded(body: Body) -> None:
    call = read({"model": "m", "stream": True, **body, "temperature": 0})
    assert call.tokens == pytest.approx(200_000, abs=5)
    assert (call.model, call.stream, call.text_bytes, call.text_only) == ("m", True, 0, False)


# ---------------------------------------------------------------- what is no text

MEDIA: dict[str, Body] = {
    "openai": {"messages": [user([text("abc"), {"type": "image_url", "image_url": {"url": URL}}])]},
    "openai, by address": {
        "messages": [user([text("abc"), {"type": "image_url", "image_url": {"url": "https://x/y.png"}}])]
    },
    "openai, sound": {
        "messages": [
            user([text("abc"), {"type": "input_audio", "input_audio": {"data": B64, "format": "wav"}}])
        ]
    },
    "openai, file": {"messages": [user([text("abc"), {"type": "file", "file": {"file_data": URL}}])]},
    "by a name of tomorrow": {"messages": [user([text("abc"), {"type": "hologram", "hologram": URL}])]},
    "responses": {"input": [user([INPUT_TEXT, INPUT_IMAGE])]},
    "responses, file": {"input": [user([INPUT_TEXT, {"type": "input_file", "file_id": "f"}])]},
    "responses, screenshot": {
        "input": [user("abc"), {"type": "computer_call_output", "output": INPUT_IMAGE}]
    },
    "anthropic": {"messages": [user([text("abc"), IMAGE])]},
    "anthropic, pdf": {"messages": [user([text("abc"), {"type": "document", "source": SOURCE}])]},
    "anthropic, in a tool's result": {
        "messages": [user([{"type": "tool_result", "content": [text("abc"), IMAGE]}])]
    },
    "ollama generate": {"prompt": "abc", "images": [B64, B64]},
    "ollama chat": {"messages": [user("abc", images=[B64])]},
    "gemini": {"contents": [{"parts": [{"text": "abc"}, {"inlineData": {"mimeType": "x", "data": B64}}]}]},
    "gemini, snake": {"contents": [{"parts": [{"text": "abc"}, {"inline_data": {"data": B64}}]}]},
    "gemini, file": {"contents": [{"parts": [{"text": "abc"}, {"fileData": {"fileUri": "gs://x"}}]}]},
    "sglang": {"text": "abc", "image_data": B64},
    "llama.cpp": {"prompt": {"prompt_string": "abc", "multimodal_data": [B64]}},
    # context that is not in the body
    "responses, earlier": {"input": "abc", "previous_response_id": "resp_1"},
    "responses, stored": {"input": "abc", "prompt": {"id": "pmpt_1"}},
    "responses, reasoning": {
        "input": [user("abc"), {"type": "reasoning", "summary": [], "encrypted_content": "x" * 500}]
    },
    "gemini, cached": {"contents": [{"parts": [{"text": "abc"}]}], "cachedContent": "cachedContents/1"},
    "anthropic, redacted": {"messages": [user([text("abc"), {"type": "redacted_thinking", "data": B64}])]},
}


@pytest.mark.parametrize("body", MEDIA.values(), ids=MEDIA.keys())
def test_what_is_no_text_does_not_count_and_is_known(body: Body) -> None:
    call = read(body)
    assert (call.text_bytes, call.text_only) == (3, False)


def test_a_picture_in_markdown_ends_where_it_ends() -> None:
    call = read({"inputs": f"![]({URL})what is this?"})
    assert call.text_bytes == len("![](data:image/png;base64,)what is this?")
    assert not call.text_only


NOT_HIDDEN: list[Body] = [
    {"prompt": "abc", "previous_response_id": None},
    {"prompt": "abc", "images": [], "conversation": ""},
    {"prompt": "abc", "cachedContent": None, "image_data": None},
]


@pytest.mark.parametrize("body", NOT_HIDDEN)
def test_keys_that_say_nothing_hide_nothing(body: Body) -> None:
    assert read(body).text_only


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"messages":[]}', b'{"messages":"x"}', b'{"prompt":"\\ud800']
)
def test_without_text_nothing_is_text_only(body: bytes) -> None:
    assert not read(body).text_only


# ---------------------------------------------------------------- large bodies

LARGE = "word " * (WHOLE_LIMIT // 5)
BIG64 = "iVBORw0KGgoAAAANSUhEUgAA" * 50_000

LARGE_MEDIA: dict[str, Body] = {
    "data url": {"messages": [user([{"type": "image_url", "image_url": {"url": URL + BIG64}}])]},
    "anthropic": {"messages": [user([{"type": "image", "source": {"type": "base64", "data": BIG64}}])]},
    "gemini": {"contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": BIG64}}]}]},
    "ollama": {"prompt": "", "images": [BIG64, BIG64]},
    "ollama chat": {"messages": [user("", images=[BIG64, BIG64])]},
    "sglang": {"text": "", "image_data": BIG64},
    "sound": {"messages": [user([{"type": "input_audio", "input_audio": {"format": "wav", "data": BIG64}}])]},
}


@pytest.mark.parametrize("spaced", [True, False])
@pytest.mark.parametrize("body", LARGE_MEDIA.values(), ids=LARGE_MEDIA.keys())
def test_media_of_a_large_body_do_not_count_however_it_was_cut(body: Body, spaced: bool) -> None:
    raw = json.dumps({"model": "m", **body}, separators=(", ", ": ") if spaced else (",", ":")).encode()
    whole = read_call("POST", "/", JSON, [raw])
    assert whole.text_bytes < 250
    assert not whole.text_only
    assert whole.model == "m"
    dice = random.Random(3)
    for _ in range(5):
        cuts = sorted(dice.sample(range(400), 3) + dice.sample(range(len(raw)), 3))
        pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        assert read_call("POST", "/", JSON, pieces) == whole


MARKS = [b";base64,", b'"', b'"data":"', b'"data": "', b'"images":["', b"A" * 40, b"]", b" ", b")", b'"image']


@given(
    st.lists(
        st.sampled_from(MARKS),
        max_size=30,
    ),
    st.lists(st.integers(0, 600), max_size=8),
)
def test_cuts_never_change_what_is_found(words: list[bytes], cuts: list[int]) -> None:
    raw = b"".join(words)
    at = sorted({min(cut, len(raw)) for cut in cuts})
    pieces = [raw[a:b] for a, b in zip([0, *at], [*at, len(raw)], strict=True)]
    found = media_bytes([raw])
    assert 0 <= found <= len(raw)
    assert media_bytes(pieces) == found


def test_text_behind_a_picture_in_a_large_body_is_text() -> None:
    raw = json.dumps(
        {"inputs": f"![](data:image/png;base64,{BIG64}) and what is this?" + "?" * 1_000}
    ).encode()
    assert len(raw) - media_bytes([raw]) == len(raw) - len(BIG64)


def test_data_that_is_no_base64_is_text() -> None:
    raw = json.dumps(
        {"x": [{"data": "these are words, not a picture, and there are many of them"}] * 10}
    ).encode()
    assert media_bytes([raw]) == 0


def test_large_text_is_estimated_whole_and_teaches_nothing() -> None:
    call = read({"messages": [user(LARGE)]})
    assert call.text_bytes == pytest.approx(len(LARGE), rel=0.001)
    assert not call.text_only


# ---------------------------------------------------------------- time


@pytest.mark.parametrize("messages", [1, 7])
def test_so_many_parts_are_looked_into_and_no_more(messages: int) -> None:
    def parts(number: int) -> Call:
        each = number // messages
        contents = [[text("ab")] * each] * (messages - 1) + [[text("ab")] * (number - each * (messages - 1))]
        return read({"messages": [user(content) for content in contents]})

    assert (parts(LOOKS).text_bytes, parts(LOOKS).text_only) == (2 * LOOKS, True)
    assert not parts(LOOKS + 1).text_only
    assert parts(LOOKS + 1).text_bytes > 2 * LOOKS, "they still count, roughly"


HOSTILE: dict[str, bytes] = {
    "many objects": json.dumps({"messages": [user([text("a")] * 14_000)]}).encode(),
    "many messages": json.dumps({"messages": [user("")] * 16_000}).encode(),
    "many objects in many messages": json.dumps({"messages": [user([text("a")] * 5)] * 2_600}).encode(),
    "much data": b'{"x":[' + b'{"data":1},' * 1_000_000 + b"1]}",
    "many marks": b'{"x":"' + b";base64," * 1_000_000 + b'"}',
    "many escapes": b'{"prompt":"' + b"\\n" * 250_000 + b'"}',
}


@pytest.mark.alone
@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_body_holds_the_loop(raw: bytes) -> None:
    assert LOOKS < 10_000

    def seconds() -> float:
        start = time.process_time()
        read(raw)
        return time.process_time() - start

    assert min(seconds() for _ in range(5)) < 0.05  # some milliseconds, with room for a slow machine


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "text", "content", "image_url", "input", "data", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)
KEYS = [
    "messages",
    "prompt",
    "input",
    "text",
    "contents",
    "system",
    "tools",
    "images",
    "n",
    "sampling_params",
    "model",
]


@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=6))
def test_whatever_a_body_holds_it_is_measured(body: Body) -> None:
    call = read(body)
    raw = json.dumps(body)
    assert 0 <= call.text_bytes <= len(raw)
    assert 0 <= call.tokens <= len(raw)
