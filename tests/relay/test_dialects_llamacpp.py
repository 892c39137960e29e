"""llama.cpp's /completion and /infill: events as documented, odd ones, and the recorded stream.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md, "POST /completion"
("Response format", ``return_tokens``, ``return_progress``, ``timings_per_token``) and "POST /infill".
"""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from proxy.link import Stream, Usage
from proxy.relay.dialects.base import ANSWER, BROKEN, RANKS, RUNNING_USAGE, TOKEN_IDS, Output, Reading
from proxy.relay.dialects.llamacpp import Chunk, LlamaCppCompletion
from proxy.relay.streamtap import StreamTap
from tests.helpers.recordings import load
from tests.helpers.taps import MS, arrivals, event

LLAMA = LlamaCppCompletion()
TIMINGS = {"cache_n": 4, "prompt_n": 5, "prompt_ms": 1.6, "predicted_n": 7, "predicted_ms": 25.7}


def piece(content: Any, told: Any = None, **fields: Any) -> dict[str, Any]:
    """An event as the server writes it while it generates; ``told``: tokens predicted so far."""
    value = {"index": 0, "content": content, "tokens": [29], "stop": False, "id_slot": -1}
    if told is not None:
        value |= {"tokens_predicted": told, "tokens_evaluated": 9}
    return {**value, **fields}


def last(told: int | None = 7, content: str = "", **fields: Any) -> dict[str, Any]:
    """The final event."""
    ending = {"tokens": [], "stop": True, "model": "tiny", "truncated": False, "stopping_word": ""}
    return piece(content, told, **{**ending, "stop_type": "eos", "timings": TIMINGS, **fields})


def data(value: Any) -> bytes:
    return json.dumps(value).encode()


def read(value: Any) -> Reading | None:
    """What the general way makes of an event."""
    payload = value if isinstance(value, bytes) else data(value)
    try:
        chunk: Chunk | None = LLAMA.decode(payload)
    except BROKEN:
        chunk = LLAMA.mend(payload)
    if chunk is None:
        return None
    assert LLAMA.plain(chunk) == 0
    return LLAMA.read(chunk)


def quick(payload: bytes) -> int:
    try:
        return LLAMA.quick(payload)
    except BROKEN:
        return 0


def tapped(*pieces: bytes, choices: int = 1) -> Stream:
    """One piece every 10 ms, through a tap that was told the dialect."""
    tap = StreamTap(LLAMA, None, 500 * MS, 50 * MS, 0, 20_000, choices, fixed=True)
    for number, one in enumerate(pieces):
        tap.feed(one, (number + 1) * 10 * MS)
    tap.finish(len(pieces) * 10 * MS)
    assert tap.faults == 0
    return tap.to_stream()


# ---------------------------------------------------------------- one event


@pytest.mark.parametrize(
    ("value", "output"),
    [
        (piece(" word", 3), Output(0, ANSWER, 5)),
        (piece("日本", 3, index=2), Output(2, ANSWER, 6)),
        (piece(" word", 3, timings=TIMINGS), Output(0, ANSWER, 5)),
        (piece(" word", 3, completion_probabilities=[{"id": 29, "logprob": -1.0}]), Output(0, ANSWER, 5)),
        (piece("", 3), Output(0)),
        (piece(None, 3), Output(0)),
        # Without a count of its own the ids tell, and without those nothing does.
        (piece("ab", tokens=[1, 2]), Output(0, ANSWER, 2, 2, TOKEN_IDS)),
        (piece("", tokens=[1, 2]), Output(0, 0, 0, 2, TOKEN_IDS)),
        (piece("ab", tokens=[]), Output(0, ANSWER, 2)),
        ({"content": "ab", "stop": False, "id_slot": 0, "multimodal": False}, Output(0, ANSWER, 2)),
        # The end.
        (last(), Output(0, finish="eos")),
        (last(stop_type="limit"), Output(0, finish="limit")),
        (last(stop_type="word", stopping_word="secret"), Output(0, finish="word")),
        (last(stop_type="none"), Output(0, finish="none")),
        (last(stop_type="A sentence!"), Output(0, finish="other")),
        (last(stop_type=None), Output(0, finish="other")),
        (last(stop_type=None, stopped_eos=False, stopped_limit=True), Output(0, finish="limit")),
        (last(stop_type=None, stopped_word=True), Output(0, finish="word")),
        (last(stop_type=5, stopped_eos="yes", stopped_limit=True), Output(0, finish="limit")),
        (last(content="a"), Output(0, ANSWER, 1, finish="eos")),
        # Fields of other types.
        (piece(["a", {"text": "b"}], 3), Output(0, ANSWER, 2)),
        (piece("a", 3, index="0", tokens="none", timings=[], stop="no"), Output(0, ANSWER, 1)),
        (piece("a", 3, index=-1), Output(0, ANSWER, 1)),
        (piece("a", "3", tokens={}), Output(0, ANSWER, 1)),
        (piece("\ud83d", 3), Output(0, ANSWER, 3)),
    ],
)
def test_what_one_event_brings(value: dict[str, Any], output: Output) -> None:
    reading = read(value)
    assert reading is not None
    assert reading.outputs == [output]
    assert reading.per_choice
    assert reading.error is None


@pytest.mark.parametrize(
    ("value", "usage"),
    [
        (piece("a", 3), Usage(prompt=9, output=3)),
        (last(), Usage(prompt=9, output=7, cached=4)),
        (piece("a", 3, timings=TIMINGS), Usage(prompt=9, output=3, cached=4)),
        (last(None), Usage(prompt=9, output=7, cached=4)),  # timings alone: 4 cached and 5 others
        (piece("a"), None),
        (piece("a", -1), None),
        (piece("a", 1.5), None),
        (piece("a", True), None),
        (piece("a", 10**30), None),
        (piece("a", 3, tokens_evaluated="many"), Usage(output=3)),
    ],
)
def test_usage(value: dict[str, Any], usage: Usage | None) -> None:
    reading = read(value)
    assert reading is not None
    assert reading.usage == usage


@pytest.mark.parametrize("content", ["", "a"])
@pytest.mark.parametrize("tokens", [[], [29]])
def test_the_prompts_progress_is_never_output(content: str, tokens: list[int]) -> None:
    progress = {"total": 900, "cache": 0, "processed": 512, "time_ms": 60}
    value = piece(content, 1, tokens=tokens, prompt_progress=progress)
    assert read(value) == Reading()
    assert read({**value, "index": "mended"}) == Reading()
    assert quick(data(value)) == 0


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"error": {"code": 400, "message": "m", "type": "exceed_context"}}, "exceed_context"),
        ({"error": {"code": 500, "message": "m"}}, "500"),
        ({"error": "m"}, "error"),
        ({**piece("a", 1), "error": {"type": "server_error"}}, "server_error"),
    ],
)  # fmt: skip
def test_errors_are_words(value: dict[str, Any], error: str) -> None:
    reading = read(value)
    assert reading is not None
    assert reading.error == error
    assert quick(data(value)) == 0


@pytest.mark.parametrize(
    "value",
    [{}, [], None, {"text": "a"}, {"choices": [{"text": "a"}]}, {"error": None}, {"tokens_predicted": 3}],
)
def test_what_is_no_event_of_it(value: Any) -> None:
    assert read(value) is None
    assert quick(data(value)) == 0


def test_it_is_recognised() -> None:
    def fields(value: dict[str, Any]) -> dict[str, msgspec.Raw]:
        return msgspec.json.decode(data(value), type=dict[str, msgspec.Raw])

    assert all(map(LLAMA.serves, ["/completion", "/infill", "/base/completion"]))
    assert not any(map(LLAMA.serves, ["/completions", "/v1/completions", "/chat/completions", "/"]))
    assert LLAMA.shows(fields(piece("a", 1)))
    assert LLAMA.shows(fields({"content": "a", "stop": False, "id_slot": 0}))
    assert LLAMA.shows(fields({"content": "a", "stop": False, "tokens_predicted": 1}))
    assert not LLAMA.shows(fields({"content": "a", "stop": ["\n"]}))
    assert not LLAMA.shows(fields({"choices": []}))
    assert LLAMA.plain_rank == RANKS[RUNNING_USAGE]
    assert LLAMA.response_id(fields(piece("a", 1, id="x"))) is None


# ---------------------------------------------------------------- the hot path


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (piece(" word", 3), -3),
        (piece("日本", 900, timings=TIMINGS), -900),
        (piece("a", 1, tokens=[]), -1),
        ({"content": "a", "stop": False, "tokens_predicted": 2}, -2),
        (piece("", 3), 0),
        (piece("a"), 0),
        (piece("a", 0), 0),
        (piece("a", 3, index=1), 0),
        (piece("a", 3, stop=True), 0),
        (last(), 0),
    ],
)
def test_a_plain_event_tells_the_tokens_so_far(value: dict[str, Any], told: int) -> None:
    assert quick(data(value)) == told
    assert quick(msgspec.json.encode(value)) == told


odd: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
events = st.fixed_dictionaries(
    {},
    optional={
        "content": st.text(max_size=5) | odd,
        "stop": st.booleans() | odd,
        "index": st.sampled_from([0, 1]) | odd,
        "tokens": st.lists(st.integers(0, 9), max_size=3) | odd,
        "tokens_predicted": st.integers(0, 9) | odd,
        "tokens_evaluated": st.integers(0, 9) | odd,
        "timings": st.just(TIMINGS) | odd,
        "prompt_progress": st.none() | odd,
        "stop_type": st.sampled_from(["eos", ""]) | odd,
        "stopped_limit": st.booleans() | odd,
        "error": st.none() | odd,
    },
)


@given(events, st.booleans())
def test_the_hot_path_says_what_the_general_way_says(value: dict[str, Any], ascii_only: bool) -> None:
    payload = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    reading, told = read(payload), quick(payload)
    if told:
        assert told < 0
        assert reading is not None
        assert reading.error is None
        assert reading.usage is not None
        assert reading.usage.output == -told
        assert [(one.choice, one.kind, one.tokens, one.finish) for one in reading.outputs] == [
            (0, ANSWER, -1, None)
        ]


@given(st.binary(max_size=30) | odd.map(data), st.data())
def test_nothing_raises(payload: bytes, more: st.DataObject) -> None:
    whole = data(last(content="a é"))
    at = more.draw(st.integers(0, len(whole)))
    for broken in (payload, whole[:at] + payload + whole[at:], whole[:at]):
        quick(broken)
        read(broken)


# ---------------------------------------------------------------- whole streams


def test_a_character_in_several_tokens_and_a_stop_word_that_was_none() -> None:
    """Half a character sets no event off; the start of a stop word sets one off without content."""
    stream = tapped(
        event(piece("a", 1)),
        event(piece("日", 4)),  # two tokens came before it, and only its own is in ``tokens``
        event(piece("", 5)),
        event(piece("", 6)),
        event(piece("END", 7)),
        event(last(7)),
    )
    assert arrivals(stream) == [[(10, 1), (20, 3), (50, 3)]]
    assert (stream.tokens_source, stream.finish_reason) == (RUNNING_USAGE, "eos")
    assert stream.usage == Usage(prompt=9, output=7, cached=4)
    assert stream.finished


def test_progress_comes_before_the_first_token() -> None:
    progress = event(piece("", 0, prompt_progress={"total": 9, "processed": 4}))
    stream = tapped(progress, progress, event(piece("a", 1)), event(last(1)))
    assert arrivals(stream) == [[(30, 1)]]
    assert (stream.first_event_ns, stream.first_answer_ns) == (10 * MS, 30 * MS)


def test_several_prompts_are_choices_and_their_usage_adds_up() -> None:
    stream = tapped(
        b"data: null\n\n",
        event(piece("b", 1, index=1)),
        event(piece("a", 1)),
        event(piece("aa", 3)),
        event(last(3)),
        event(last(1, index=1)),
        choices=2,
    )
    assert arrivals(stream) == [[(30, 1), (40, 2)], [(20, 1)]]
    assert stream.usage.output == 4


def test_old_events_count_one_each() -> None:
    old = {"multimodal": False, "id_slot": 0, "stop": False}
    ending = {"content": "", "id_slot": 0, "stop": True, "stopped_limit": True, "tokens_predicted": 2}
    stream = tapped(event({"content": "a", **old}), event({"content": "b", **old}), event(ending))
    assert arrivals(stream) == [[(10, 1), (20, 1)]]
    assert (stream.tokens_source, stream.finish_reason, stream.usage.output) == ("events", "limit", 2)


@pytest.mark.parametrize("cut", ["as received", "whole", "byte by byte"])
def test_the_recorded_stream_has_the_servers_number_and_a_naive_readers_first_token(cut: str) -> None:
    recording = load("llama.cpp__native_completion_stream")
    response = recording.response()
    pieces = list(response.body)
    if cut == "whole":
        pieces = [(pieces[-1][0], response.whole)]
    elif cut == "byte by byte":
        pieces = [(at_ns, bytes([byte])) for at_ns, part in pieces for byte in part]
    tap = StreamTap(LLAMA, None, 500 * MS, 50 * MS, 0, 20_000, 1)
    for at_ns, part in pieces:
        tap.feed(part, at_ns)
    tap.finish(pieces[-1][0])
    stream = tap.to_stream()

    told, first_ns = naive(pieces)
    assert stream.dialect == "llamacpp.completion"
    assert stream.tokens == told == stream.usage.output == 40
    assert stream.tokens_source == RUNNING_USAGE
    assert stream.first_answer_ns == first_ns
    assert (stream.finish_reason, stream.finished, stream.broken) == ("limit", True, 0)
    assert stream.usage == Usage(prompt=2, output=40, cached=1)
    if cut == "as received":
        assert first_ns == 3_488_544  # by hand
        assert [meta for _, meta in arrivals(stream)[0]] == [1] * 40


def naive(pieces: list[tuple[int, bytes]]) -> tuple[int, int]:
    """(the last event's ``predicted_n``, when the first event with content was whole), of plain JSON."""
    body, first_ns, final = b"", -1, {}
    for at_ns, part in pieces:
        body += part
        while b"\n\n" in body:
            head, _, body = body.partition(b"\n\n")
            final = json.loads(head.removeprefix(b"data: "))
            if final["content"] and first_ns < 0:
                first_ns = at_ns
    return final["timings"]["predicted_n"], first_ns
