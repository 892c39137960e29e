"""Triton's generate extension: events as documented for its TensorRT-LLM and vLLM backends, and odd ones.

Sources: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_generate.html;
https://github.com/triton-inference-server/tensorrtllm_backend, README ("Using the generate endpoint");
https://github.com/triton-inference-server/vllm_backend, docs/additional_outputs.md.
"""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from proxy.link import Stream
from proxy.relay.dialects.base import ANSWER, BROKEN, TOKEN_IDS, Output, Reading
from proxy.relay.dialects.triton import Chunk, TritonGenerate
from proxy.relay.streamtap import StreamTap
from tests.helpers.taps import MS, arrivals, event, sizes

TRITON = TritonGenerate()
TRTLLM = {
    "batch_index": 0,
    "context_logits": 0.0,
    "cum_log_probs": 0.0,
    "output_log_probs": [0.0, 0.0, 0.0],
    "sequence_end": False,
    "sequence_id": 0,
    "sequence_index": 0,
    "sequence_start": False,
}


def piece(text: Any, **fields: Any) -> dict[str, Any]:
    """An event as the extension defines it, and what a backend adds."""
    return {"model_name": "ensemble", "model_version": "1", "text_output": text, **fields}


def data(value: Any) -> bytes:
    return json.dumps(value).encode()


def decoded(value: Any) -> Chunk | None:
    payload = value if isinstance(value, bytes) else data(value)
    try:
        return TRITON.decode(payload)
    except BROKEN:
        return TRITON.mend(payload)


def read(value: Any) -> Reading | None:
    """What the general way makes of an event."""
    chunk = decoded(value)
    return None if chunk is None else TRITON.read(chunk)


def quick(payload: bytes) -> int:
    try:
        return TRITON.quick(payload)
    except BROKEN:
        return 0


def tapped(*pieces: bytes, complete: bool = True) -> Stream:
    """One piece every 10 ms, through a tap that was told the dialect."""
    tap = StreamTap(TRITON, None, 500 * MS, 50 * MS, 0, 20_000, 1, fixed=True)
    for number, one in enumerate(pieces):
        tap.feed(one, (number + 1) * 10 * MS)
    tap.finish(len(pieces) * 10 * MS, complete)
    assert tap.faults == 0
    return tap.to_stream()


# ---------------------------------------------------------------- one event


@pytest.mark.parametrize(
    ("value", "output"),
    [
        (piece(" word"), Output(0, ANSWER, 5)),
        (piece(" word", **TRTLLM), Output(0, ANSWER, 5)),
        (piece("日本", **{**TRTLLM, "sequence_end": True}), Output(0, ANSWER, 6)),
        (piece("a", sequence_index=2), Output(2, ANSWER, 1)),
        (piece("a", batch_index=1), Output(1, ANSWER, 1)),
        (piece(""), Output(0)),
        (piece("", **TRTLLM), Output(0)),
        # What the vLLM backend adds on request.
        (piece("a b", num_output_tokens=2), Output(0, ANSWER, 3, 2, TOKEN_IDS)),
        (piece("", num_output_tokens=1), Output(0, 0, 0, 1, TOKEN_IDS)),
        (piece("a", num_output_tokens=0), Output(0, ANSWER, 1)),
        (piece("a", finish_reason="None", cumulative_logprob=-1.5), Output(0, ANSWER, 1)),
        (piece("a", finish_reason="length"), Output(0, ANSWER, 1, finish="length")),
        (piece("a", finish_reason="A sentence!"), Output(0, ANSWER, 1, finish="other")),
        # Tensors of several elements.
        (piece(["a", "bc"]), Output(0, ANSWER, 3)),
        (piece(["a", "b"], num_output_tokens=[1, 2]), Output(0, ANSWER, 2, 3, TOKEN_IDS)),
        (piece(["a", ""], finish_reason=["stop", "None"]), Output(0, ANSWER, 1)),
        (piece(["", "b"], finish_reason=["None", "stop"]), Output(0, ANSWER, 1)),
        (piece(["a", "b"], finish_reason=["stop", "length"]), Output(0, ANSWER, 2, finish="length")),
        (piece("a", batch_index=[0], sequence_index=[1]), Output(1, ANSWER, 1)),
        # Fields of other types.
        (piece([]), None),
        (piece(5), None),
        (piece("a", num_output_tokens="two", finish_reason=5, batch_index="x"), Output(0, ANSWER, 1)),
        (piece("a", num_output_tokens=[], sequence_index=[], finish_reason=[]), Output(0, ANSWER, 1)),
        (piece("a", num_output_tokens=-1, sequence_index=-1), Output(0, ANSWER, 1)),
        (piece("\ud83d"), Output(0, ANSWER, 3)),
        ({"model_name": "m", "model_version": "1", "outputs": "a"}, None),
        ({}, None),
        ([], None),
    ],
)
def test_what_one_event_brings(value: Any, output: Output | None) -> None:
    assert read(value) == (None if output is None else Reading([output]))


@pytest.mark.parametrize("beside", [{}, piece("N/A"), piece("")])
@pytest.mark.parametrize(
    ("error", "word"),
    [
        ("Error generating stream: the prompt was ...", "error"),
        ({"type": "CANCELLED"}, "CANCELLED"),
        ({"message": "m", "code": 3}, "3"),
    ],
)
def test_an_error_is_a_word_and_the_text_beside_it_is_none(
    beside: dict[str, Any], error: Any, word: str
) -> None:
    value = {**beside, "error": error}
    assert read(value) == Reading(error=word)
    assert quick(data(value)) == 0
    chunk = decoded(value)
    assert chunk is not None
    assert TRITON.plain(chunk) == 0


def test_it_is_recognised() -> None:
    def fields(value: dict[str, Any]) -> dict[str, msgspec.Raw]:
        return msgspec.json.decode(data(value), type=dict[str, msgspec.Raw])

    served = [
        "/v2/models/m/generate_stream",
        "/v2/models/m/versions/1/generate_stream",
        "/base/v2/models/m/generate",
    ]
    others = [
        "/generate_stream",
        "/v2/models/m/infer",
        "/v2/models/m/generate_streams",
        "/v2/models/a/b/generate_stream",
        "/v2/models//generate_stream",
    ]
    assert all(map(TRITON.serves, served))
    assert not any(map(TRITON.serves, others))
    assert TRITON.shows(fields(piece("a")))
    assert not TRITON.shows(fields({"text_output": "a"}))
    assert TRITON.response_id(fields(piece("a", id="42"))) == "42"
    assert TRITON.response_id(fields(piece("a"))) is None
    assert TRITON.counted_end


# ---------------------------------------------------------------- the hot path


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (piece(" word"), 5),
        (piece("日本", **TRTLLM), 6),
        (piece("a", finish_reason="None"), 1),
        (piece("a", finish_reason=""), 1),
        (piece(""), 0),
        (piece("a", finish_reason="stop"), 0),
        (piece("a", num_output_tokens=1), 0),
        (piece("a", sequence_index=1), 0),
        (piece("a", batch_index=1), 0),
        (piece(["a"]), 0),
    ],
)
def test_a_plain_event_is_one_token(value: dict[str, Any], size: int) -> None:
    chunk = decoded(value)
    assert chunk is not None
    assert quick(data(value)) == size
    if not isinstance(value["text_output"], list):  # mended, it is plain after all
        assert TRITON.plain(chunk) == size


odd: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
events = st.fixed_dictionaries(
    {},
    optional={
        "model_name": st.just("m") | odd,
        "text_output": st.text(max_size=5) | odd,
        "batch_index": st.sampled_from([0, 1]) | odd,
        "sequence_index": st.sampled_from([0, 1]) | odd,
        "num_output_tokens": st.none() | st.integers(0, 3) | odd,
        "finish_reason": st.sampled_from([None, "", "None", "stop"]) | odd,
        "error": st.none() | odd,
    },
)


@given(events, st.booleans())
def test_the_three_ways_agree(value: dict[str, Any], ascii_only: bool) -> None:
    payload = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    chunk, size = decoded(payload), quick(payload)
    if chunk is None:
        assert not size
        return
    plain, reading = TRITON.plain(chunk), TRITON.read(chunk)
    assert size in (0, plain)
    if plain:
        assert reading == Reading([Output(0, ANSWER, plain)])


@given(st.binary(max_size=30) | odd.map(data), st.data())
def test_nothing_raises(payload: bytes, more: st.DataObject) -> None:
    whole = data(piece("a é", **TRTLLM, num_output_tokens=[1], finish_reason=["stop"]))
    at = more.draw(st.integers(0, len(whole)))
    for broken in (payload, whole[:at] + payload + whole[at:], whole[:at]):
        quick(broken)
        chunk = decoded(broken)
        if chunk is not None:
            TRITON.plain(chunk)
            TRITON.read(chunk)


# ---------------------------------------------------------------- whole streams


def test_a_stream_of_the_tensorrt_backend() -> None:
    stream = tapped(*(event(piece(text, **TRTLLM)) for text in [" What", "", " is", " ML", "?", ""]))
    assert arrivals(stream) == [[(10, 1), (30, 1), (40, 1), (50, 1)]]
    assert sizes(stream) == [[5, 3, 3, 1]]
    assert (stream.dialect, stream.tokens_source) == ("triton.generate", "events")
    assert stream.finished


def test_a_stream_of_the_vllm_backend_that_counts() -> None:
    told = [(" a", 2), ("", 1), (" é", 1), (".", 1)]
    pieces = [event(piece(text, num_output_tokens=n, finish_reason="None")) for text, n in told]
    pieces.append(event(piece("!", num_output_tokens=1, finish_reason="stop")))
    stream = tapped(*pieces)
    assert arrivals(stream) == [[(10, 2), (30, 2), (40, 1), (50, 1)]]
    assert (stream.tokens_source, stream.finish_reason) == (TOKEN_IDS, "stop")


def test_a_cut_is_no_end_and_an_error_under_200_is_seen() -> None:
    assert not tapped(event(piece("a")), complete=False).finished
    stream = tapped(event(piece("a")), event(piece("b")), event({"error": "Request was cancelled"}))
    assert (stream.tokens, stream.error) == (2, "error")
