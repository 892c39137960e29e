"""What is read of a request: the top-level keys that matter, of large bodies from their two ends."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.relay.call import WHOLE_LIMIT, Call, read_call

JSON: list[tuple[bytes, bytes]] = [(b"Content-Type", b"application/json")]
IMAGE = "data:image/png;base64," + "iVBORw0KGgo" * 10
LARGE = "x" * (WHOLE_LIMIT + 1)


def read(body: bytes | dict[str, Any], pieces: int = 1, fields: list[tuple[bytes, bytes]] = JSON) -> Call:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    step = max(1, -(-len(raw) // pieces))
    return read_call("POST", "/v1/x", fields, [raw[at : at + step] for at in range(0, len(raw), step)])


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


# ---------------------------------------------------------------- bodies that are decoded whole


def test_a_chat_request() -> None:
    call = read({"model": "m", "stream": True, "n": 2, "messages": [user("abc")]})
    assert call == Call("POST", "/v1/x", "m", True, 2, 3, text_only=True)


@pytest.mark.parametrize(
    ("body", "text_bytes"),
    [
        ({"prompt": "abcd"}, 4),
        ({"input": "ab", "instructions": "cd"}, 4),
        ({"messages": [user("ab"), user("cde")]}, 5),
        ({"messages": [user([{"type": "text", "text": "ab"}])]}, 2),
        ({"prompt": "ab", "tools": []}, 2),
        ({"prompt": "ab", "tools": [{"a": 1}]}, 2 + len('[{"a": 1}]')),
        ({"model": "much-longer-than-anything"}, 0),
        ({"messages": []}, 0),
    ],
)
def test_the_text_is_what_counts(body: dict[str, Any], text_bytes: int) -> None:
    assert read(body).text_bytes == text_bytes


def test_images_do_not_count_as_text() -> None:
    url = {"type": "image_url", "image_url": {"url": IMAGE}}
    with_image, without = (
        read({"messages": [user([one])]}).text_bytes for one in (url, {**url, "image_url": {}})
    )
    assert with_image - without < 60


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ({"model": 7}, None),
        ({"model": None}, None),
        ({"model": ["a"]}, None),
        ({"model": ""}, ""),
        ({"model": "x" * 257}, None),
        ({"model": "m", "messages": "not a list"}, "m"),
        ({"model": "m", "messages": [1, 2]}, "m"),
        ({"a": {"model": "nested"}}, None),
        ({"a": {"model": "nested"}, "model": "m"}, "m"),
    ],
)
def test_models(body: dict[str, Any], model: str | None) -> None:
    assert read(body).model == model


@pytest.mark.parametrize(
    ("n", "choices"), [(1, 1), (5, 5), (0, 1), (-3, 1), (True, 1), ("2", 1), (2000, 1), (2.0, 1)]
)
def test_choices(n: object, choices: int) -> None:
    assert read({"n": n}).choices == choices


@pytest.mark.parametrize("stream", [False, 1, "true", None, []])
def test_only_true_is_a_wish_for_a_stream(stream: object) -> None:
    assert read({"stream": stream}).stream is False


@pytest.mark.parametrize(
    ("body", "choices"),
    [
        ({"sampling_params": {"n": 3}}, 3),  # SGLang
        ({"sampling_params": [{"n": 3}]}, 1),  # a batch
        ({"n_cmpl": 4}, 4),  # llama.cpp
        ({"generationConfig": {"candidateCount": 2, "responseSchema": {"n": 9}}}, 2),  # Gemini
        ({"generation_config": {"candidate_count": 2}}, 2),
        ({"generationConfig": {"candidateCount": "2"}}, 1),
        ({"n": 2, "sampling_params": {"n": 3}}, 2),
        ({"sampling_params": 7}, 1),
    ],
)
def test_choices_by_other_names(body: dict[str, Any], choices: int) -> None:
    assert read(body).choices == choices


# ---------------------------------------------------------------- what the path says


@pytest.mark.parametrize(
    ("path", "model", "stream"),
    [
        ("/v1beta/models/gemini-2.5-pro:streamGenerateContent", "gemini-2.5-pro", True),
        ("/v1beta/models/gemini-2.5-pro:generateContent", "gemini-2.5-pro", False),
        ("/v1/projects/p/locations/l/publishers/google/models/g:streamGenerateContent", "g", True),
        ("/v1/projects/p/locations/l/publishers/anthropic/models/claude:streamRawPredict", "claude", True),
        ("/v2/models/llama/generate_stream", "llama", True),
        ("/v2/models/llama/versions/3/generate_stream/", "llama", True),
        ("/v2/models/llama/generate", "llama", False),
        ("/v1/models/ft:abc", "body", False),
        ("/v1/models/llama", "body", False),
        ("/v1beta/models/" + "x" * 257 + ":generateContent", None, False),
        ("/generate_stream", "body", True),
        ("/tgi/generate_stream", "body", True),
        ("/generate", "body", False),
        ("/v1/chat/completions", "body", False),
    ],
)
def test_the_path_names_the_model_and_wishes_for_a_stream(path: str, model: str | None, stream: bool) -> None:
    call = read_call("POST", path, JSON, [b'{"model":"body"}'])
    assert (call.model, call.stream) == (model, stream)


def test_a_path_says_so_without_any_body_that_can_be_read() -> None:
    for body in ([], [b"nonsense"], [b"[]"]):
        call = read_call("POST", "/v1beta/models/g:streamGenerateContent", [], body)
        assert (call.model, call.stream) == ("g", True)


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat", "/ollama/api/chat"])
@pytest.mark.parametrize(
    ("method", "body", "stream"),
    [
        ("POST", {"model": "m"}, True),
        ("POST", {"model": "m", "stream": None}, True),
        ("POST", {"model": "m", "stream": True}, True),
        ("POST", {"model": "m", "stream": False}, False),
        ("POST", {"model": "m", "stream": False, "prompt": LARGE}, False),
        ("POST", {"model": "m", "prompt": LARGE}, True),
        ("GET", {}, False),
    ],
)
def test_ollama_streams_unless_told_not_to(
    path: str, method: str, body: dict[str, Any], stream: bool
) -> None:
    assert read_call(method, path, JSON, [json.dumps(body).encode()]).stream is stream


@pytest.mark.parametrize(
    "kind", [b"text/plain", b"multipart/form-data; boundary=x", b"application/octet-stream"]
)
def test_what_says_that_it_is_no_json_is_not_read(kind: bytes) -> None:
    assert read({"model": "m"}, fields=[(b"content-type", kind)]).model is None


def test_without_a_type_it_is_read() -> None:
    assert read({"model": "m"}, fields=[]).model == "m"


@given(st.binary(max_size=200))
def test_nothing_raises(body: bytes) -> None:
    assert read(body).method == "POST"


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"messages":' + b"[" * 100_000, b'{"model":"\xff"}'])
def test_nor_does_what_is_deep_or_broken(body: bytes) -> None:
    assert read(body).model is None


# ---------------------------------------------------------------- large bodies


@pytest.mark.parametrize("pieces", [1, 2, 7, 40])
@pytest.mark.parametrize("where", ["before", "behind", "both"])
def test_keys_of_a_large_body_are_found_at_its_ends(where: str, pieces: int) -> None:
    keys: dict[str, Any] = {"model": "m", "stream": True, "n": 3}
    messages = {"messages": [user(LARGE)]}
    body = {
        "before": {**keys, **messages},
        "behind": {**messages, **keys},
        "both": {"model": "m", **messages, "stream": True, "n": 3},
    }[where]
    call = read(body, pieces)
    assert (call.model, call.stream, call.choices) == ("m", True, 3)
    assert abs(call.text_bytes - len(LARGE)) < 200


def test_a_key_that_stands_twice_counts_as_json_has_it() -> None:
    body = b'{"model":"first","messages":[{"content":"' + LARGE.encode() + b'"}],"model":"last"}'
    assert read(body).model == "last" == json.loads(body)["model"]


@pytest.mark.parametrize(
    "nested",
    [
        {"metadata": {"model": "evil", "stream": True}},
        {"metadata": {"a": "b", "messages": [], "model": "evil", "stream": True}},
        {"tools": [{"a": "b"}, {"model": "evil", "stream": True}]},
        {"tools": [{"x": ["y"], "model": "evil", "stream": True}]},
        {"note": '"}],"model":"evil","stream":true}'},
        {"note": '],"model":"evil","stream":true}'},
        {"note": 'a","messages":[],"model":"evil"'},
        {"note": "\\", "other": '","model":"evil","stream":true}'},
        {"note": '","', "more": {"model": "evil"}},
    ],
)
@pytest.mark.parametrize("real", [None, "real"])
@pytest.mark.parametrize("end", ["front", "back", "inside"])
def test_a_nested_or_quoted_model_never_wins(nested: dict[str, Any], real: str | None, end: str) -> None:
    model = {} if real is None else {"model": real}
    content = json.dumps(nested) if end == "inside" else "x"
    messages = {"messages": [user(LARGE), user(content)]}
    body = {
        "front": {**nested, **model, **messages},
        "back": {**model, **messages, **nested},
        "inside": {**model, **messages},
    }[end]
    call = read(body)
    assert call.model in (real, None)
    assert call.model != "evil"
    assert call.stream is False


@given(
    st.recursive(
        st.text(max_size=8) | st.integers(0, 9),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(
                st.sampled_from(["model", "stream", "n", "messages", 'a"', "\\"]), x, max_size=3
            )
        ),
        max_leaves=8,
    ),
    st.booleans(),
)
def test_whatever_stands_around_a_large_text_no_wrong_model_is_read(value: Any, behind: bool) -> None:
    text = {"messages": [user(LARGE), user(value)], "extra": value}
    body = {**text, "model": "real"} if behind else {"model": "real", **text}
    assert read(body).model in ("real", None)


def test_images_of_a_large_body_do_not_count_as_text() -> None:
    picture = "data:image/png;base64," + "A" * 3_000_000
    body = {
        "model": "m",
        "messages": [user([{"type": "image_url", "image_url": {"url": picture}}]), user("y" * 1000)],
    }
    sizes = {read(body, pieces).text_bytes for pieces in (1, 2, 10, 47, 3000)}
    (size,) = sizes  # however it came
    assert 1000 <= size < 1300


def test_an_image_whose_mark_is_cut_in_two_is_one_all_the_same() -> None:
    raw = json.dumps({"messages": [user("data:image/png;base64," + "A" * (2 * WHOLE_LIMIT))]}).encode()
    middle = raw.index(b";base64,")
    whole = read_call("POST", "/", JSON, [raw]).text_bytes
    assert whole < 100
    for cut in range(middle - 2, middle + 12):
        assert read_call("POST", "/", JSON, [raw[:cut], raw[cut:]]).text_bytes == whole


@pytest.mark.alone
def test_twenty_megabytes_hold_the_loop_for_a_moment_only() -> None:
    picture = "data:image/png;base64," + "A" * 20_000_000
    raw = json.dumps(
        {"model": "m", "messages": [user([{"type": "image_url", "image_url": {"url": picture}}])]}
    ).encode()
    body = [raw[at : at + 65_536] for at in range(0, len(raw), 65_536)]
    best = min(_seconds(body) for _ in range(5))
    assert best < 0.05  # some milliseconds, with room for a slow machine; a full decode is no option


def _seconds(body: list[bytes]) -> float:
    start = time.process_time()
    assert read_call("POST", "/", JSON, body).model == "m"
    return time.process_time() - start


def test_random_cuts_change_nothing() -> None:
    raw = json.dumps({"model": "m", "messages": [user(LARGE)], "stream": True}).encode()
    dice = random.Random(1)
    for _ in range(10):
        cuts = sorted(dice.sample(range(len(raw)), 5))
        body = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        call = read_call("POST", "/", JSON, body)
        assert (call.model, call.stream) == ("m", True)
