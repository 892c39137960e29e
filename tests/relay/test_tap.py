"""The tap: the fast way equals the general one, cuts change nothing, nothing is ever raised, bounds hold."""

from __future__ import annotations

import gzip
import subprocess
import sys
import time
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.link import ChoiceScore, Stream
from proxy.relay.arrivals import Track
from proxy.relay.dialects.openai_chat import OpenAIChat
from proxy.relay.framing import DEFAULT_LIMIT, SseDecoder
from proxy.relay.streamtap import StreamTap
from scoring.fluidity import FluidityScorer
from tests.helpers.taps import CHAT, DONE, MS, arrivals, chat, chunk, event, fed, opened, tapped

END = chat(finish="stop")


# ---------------------------------------------------------------- cuts and the fast way

events = st.sampled_from(
    [
        chat("a"),
        chat("b"),
        chat("é日"),
        chat("a").replace(b"\n\n", b"\r\n\r\n"),
        chat("a").replace(b": ", b":"),
        chat("a").replace(b"data: ", b"data:"),
        chat("a", index=1),
        chat("a", reasoning="Hm"),
        chat("", choice={"token_ids": [1, 2]}),
        chat("ab", choice={"token_ids": [1, 2]}),
        chunk(choices=[{"index": 0, "delta": {"content": "abc"}}], usage={"completion_tokens": 6}),
        chunk(choices=[], usage={"completion_tokens": 9, "prompt_tokens": 3}),
        chat(role="assistant"),
        END,
        event({"error": {"type": "oops"}}),
        event({"type": "oops"}, name="error"),
        b": ping\n\n",
        b"data: null\n\n",
        b"data: {oops\n\n",
        b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":["a"]}}]}\n\n',
        b'data: {"choices":[\ndata: {"delta":{"content":"a"}}]}\n\n',
        b'data: {"choices":[\rdata: {"delta":{"content":"a"}}]}\n\n',
        b"event: x\r",
        b"\xef\xbb\xbf",
        b"\n",
        DONE,
    ]
)


@settings(max_examples=200)
@given(st.lists(events, max_size=25), st.sampled_from([CHAT, "/v1/completions", "/events"]), st.data())
def test_cuts_change_nothing(pieces: list[bytes], path: str, draw: st.DataObject) -> None:
    """Each piece has its stamp; whole, cut anywhere and byte by byte the tap says the same."""
    cuts = [sorted(draw.draw(st.lists(st.integers(0, len(piece)), max_size=3))) for piece in pieces]

    def run(cut: list[list[int]] | None) -> Stream:
        tap = opened(path)
        for number, piece in enumerate(pieces):
            ends = list(range(1, len(piece))) if cut is None else cut[number]
            for a, b in zip([0, *ends], [*ends, len(piece)], strict=True):
                tap.feed(piece[a:b], number * 70 * MS)
        tap.finish(len(pieces) * 70 * MS)
        assert tap.faults == 0
        return tap.to_stream()

    whole = run([[] for _ in pieces])
    assert run(cuts) == whole
    assert run(None) == whole


@given(st.lists(st.binary(max_size=60), max_size=10), st.sampled_from([CHAT, "/events"]))
def test_garbage_is_never_a_fault(pieces: list[bytes], path: str) -> None:
    fed(opened(path), *pieces).to_stream()
    fed(opened(path), chat("a"), chat("b"), *pieces, chat("c")).to_stream()


FIELDS = (
    *(
        "choices",
        "index",
        "delta",
        "content",
        "tool_calls",
        "function",
        "arguments",
        "usage",
        "error",
        "text",
    ),
    *(
        "completion_tokens",
        "finish_reason",
        "logprobs",
        "token_ids",
        "timings",
        "predicted_n",
        "id",
        "object",
    ),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(FIELDS), inner, max_size=4
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(json_values, max_size=4), st.sampled_from([CHAT, "/v1/completions", "/events"]))
def test_any_json_is_never_a_fault(values: list[object], path: str) -> None:
    fed(opened(path), *map(event, values), event({"choices": values})).to_stream()
    wrapped = [
        event({"choices": [{"index": 0, "delta": {"content": value}, "text": value}]}) for value in values
    ]
    fed(opened(path), chat("a"), *wrapped, chat("b")).to_stream()


@given(
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from([1, 1, 1, 1, 3])), min_size=1, max_size=40),
    st.integers(0, 300),
    st.integers(1, 90),
)
def test_the_score_is_the_scorers_on_both_ways(
    steps: list[tuple[int, int]], ttft_ms: int, tbt_ms: int
) -> None:
    """Plain events take the fast way, those with token ids the general one; t = 0 is not the clock's zero."""
    t0_ns = 10**15
    tap = opened(ttft_ms=ttft_ms, tbt_ms=tbt_ms, t0_ns=t0_ns)
    scorer = FluidityScorer(ttft_ms * MS, tbt_ms * MS)
    at_ns = 0
    for gap_ms, tokens in steps:
        at_ns += gap_ms * MS
        now_ns = t0_ns + at_ns - 1
        assert tap.missed_by(now_ns) == scorer.missed_by(at_ns - 1)
        assert max(tap.overdue_ns(now_ns), 0) == max(scorer.overdue_ns(at_ns - 1), 0)
        tap.feed(chat("abc", choice={"token_ids": [1] * tokens} if tokens > 1 else None), t0_ns + at_ns)
        scorer.arrive(at_ns, tokens)
    (score,) = tap.to_stream().scores
    assert (score.tokens, score.late, score.missed) == (scorer.tokens, scorer.late, scorer.missed)
    assert (score.late_ns, score.due_ns) == (scorer.late_ns, scorer.due_ns)
    assert tap.tokens == scorer.tokens


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_a_plain_stream_takes_the_fast_way(line_end: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    first, plain = (chat(word).replace(b"\n", line_end) for word in ("first", "plain"))
    tap = opened()
    tap.feed(first, MS)

    def slow(*_: object) -> None:
        raise AssertionError("the general way was taken")

    monkeypatch.setattr(StreamTap, "_feed", slow)
    for at in range(2, 50):
        tap.feed(plain, at * MS)
    assert tap.faults == 0
    assert tap.tokens == 49


def test_a_data_process_pays_for_no_more_than_it_needs() -> None:
    """numpy and pydantic cost memory in every worker; neither comes in with the tap."""
    code = "import sys, proxy.relay.tap; print(sorted({'numpy', 'pydantic', 'fastapi'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# ---------------------------------------------------------------- never into the relay


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (OpenAIChat, "read"),
        (OpenAIChat, "mend"),
        (StreamTap, "_event"),
        (StreamTap, "_take"),
        (Track, "arrive"),
    ],
)
def test_an_exception_ends_the_measuring_and_is_counted(
    target: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("injected")

    tap = opened()
    tap.feed(chat("a"), 1)
    monkeypatch.setattr(target, name, broken)
    for piece in (
        chat(role="assistant"),
        chat(["odd"]),
        chat("b", choice={"token_ids": [1, 2]}),
        chat("c"),
        END,
    ):
        tap.feed(piece, 2)
    tap.finish(3)
    assert (tap.faults, tap.unmeasured) == (1, "tap_error")
    assert tap.to_stream().unmeasured == "tap_error"
    assert tap.overdue_ns(10**18) <= 0


def test_exceptions_at_the_end_are_caught_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("injected")

    tap = opened()
    tap.feed(chat("a"), 1)
    monkeypatch.setattr(SseDecoder, "flush", broken)
    tap.finish(2)
    monkeypatch.setattr(Track, "packed", broken)
    assert tap.to_stream().unmeasured == "tap_error"
    assert tap.faults == 2


# ---------------------------------------------------------------- where it stands


def test_a_stream_that_hangs_is_overdue_while_it_hangs() -> None:
    tap = opened(ttft_ms=500, tbt_ms=50)
    assert tap.overdue_ns(500 * MS) == 0
    assert (tap.overdue_ns(510 * MS), tap.missed_by(510 * MS)) == (10 * MS, 1)
    tap.feed(chat(role="assistant"), 520 * MS)  # a role is no token
    assert (tap.overdue_ns(560 * MS), tap.missed_by(560 * MS)) == (60 * MS, 2)
    tap.feed(chat("a"), 600 * MS)  # 100 late: due at 500 and 550 and 600
    assert (tap.overdue_ns(650 * MS), tap.missed_by(650 * MS)) == (0, 3)
    assert (tap.overdue_ns(660 * MS), tap.missed_by(660 * MS)) == (10 * MS, 4)
    tap.feed(END, 670 * MS)
    assert (tap.overdue_ns(9999 * MS), tap.missed_by(9999 * MS)) == (0, 3)


@pytest.mark.parametrize("over", [END, DONE, event({"error": {"type": "oops"}})])
def test_nothing_is_awaited_once_it_is_over(over: bytes) -> None:
    tap = opened()
    tap.feed(chat("a") + over, 1)
    assert tap.overdue_ns(10**18) <= 0
    assert tap.missed_by(10**18) == 0


def test_nothing_is_awaited_of_events_that_nobody_understands() -> None:
    tap = opened()
    tap.feed(event({"type": "greeting"}), 1)
    assert tap.overdue_ns(10**18) <= 0


def test_each_choice_is_awaited_for_itself() -> None:
    tap = opened(ttft_ms=500, tbt_ms=50, choices=2)
    tap.feed(chat("a"), 100 * MS)
    tap.feed(chat("b", index=1), 400 * MS)
    assert tap.overdue_ns(600 * MS) == 50 * MS  # both next tokens were due at 550
    assert tap.missed_by(600 * MS) == 4  # at 550 and at 600, each
    tap.feed(END, 540 * MS)
    assert tap.missed_by(600 * MS) == 2


def test_a_client_that_leaves_after_the_finish_reason_had_its_answer() -> None:
    tap = opened()
    tap.feed(chat("a"), 1)
    tap.finish(2, False)
    assert not tap.finished
    tap = opened()
    tap.feed(chat("a") + END, 1)
    tap.finish(2, False)
    assert tap.finished


# ---------------------------------------------------------------- bounds


def test_more_arrivals_than_the_cap_are_thinned_and_the_score_is_exact() -> None:
    capped, full = opened(cap=50), opened()
    for at in range(1000):
        for tap in (capped, full):
            tap.feed(chat("a"), (at + (400 if at > 500 else 0)) * MS)
    thin, whole = capped.to_stream(), full.to_stream()
    assert (thin.thinned, whole.thinned) == (True, False)
    assert len(arrivals(thin)[0]) <= 50
    assert thin.events == whole.events == 1000
    assert sum(tokens for _, tokens in arrivals(thin)[0]) == thin.tokens == whole.tokens == 1000
    assert thin.scores[0].longest_gap_ns == 401 * MS
    assert _without_gap(thin.scores[0]) == _without_gap(whole.scores[0])


def _without_gap(score: ChoiceScore) -> list[int]:
    return [getattr(score, name) for name in score.__struct_fields__ if name != "longest_gap_ns"]


def test_the_cap_is_shared_by_the_choices_that_were_asked_for() -> None:
    tap = opened(cap=80, choices=4)
    for _ in range(200):
        for index in range(4):
            tap.feed(chat("a", index=index), MS)
    assert sum(len(each) for each in arrivals(tap.to_stream())) <= 80


def test_choices_without_number_end_the_measuring() -> None:
    tap = opened()
    for index in range(1000):
        tap.feed(chat("a", index=index), MS)
    assert tap.unmeasured == "dialect"
    assert len(tap.to_stream().choices) <= 128


def test_an_event_of_20_mb_ends_the_measuring_and_holds_nothing() -> None:
    tap = opened()
    tap.feed(chat("a"), 1)
    begin = time.process_time()
    for _ in range(20 * 16):
        tap.feed(b"x" * 65536, 2)
    assert time.process_time() - begin < 2
    tap.feed(b"\n\n" + chat("b"), 3)
    tap.finish(4)
    assert (tap.unmeasured, tap.tokens, tap.faults) == ("event_too_large", 1, 0)


def test_a_large_event_within_the_bound_is_measured() -> None:
    stream = tapped(chat("a"), chat("b" * (DEFAULT_LIMIT - 300)), chat("c"))
    assert stream.tokens == 3


# ---------------------------------------------------------------- encodings


def test_compressed_streams_are_measured_event_by_event() -> None:
    plain, packed = opened(), opened(encoding=b"gzip")
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    for at, piece in enumerate([chat(role="assistant"), chat("a"), chat("b"), chat("c"), END, DONE]):
        plain.feed(piece, at * MS)
        packed.feed(packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH), at * MS)
    for tap in (plain, packed):
        tap.finish(99 * MS)
    assert packed.to_stream() == plain.to_stream()
    assert packed.tokens == 3


@pytest.mark.parametrize(
    ("encoding", "body", "reason"),
    [
        (b"br", b"anything", "encoding"),
        (b"gzip", b"data: not gzip\n\n", "encoding"),
        (b"gzip", gzip.compress(b" " * 50_000_000), "bomb"),
        (b"deflate", zlib.compress(b":\n" * 25_000_000), "bomb"),
    ],
)
def test_what_cannot_be_read_is_unmeasured(encoding: bytes, body: bytes, reason: str) -> None:
    tap = opened(encoding=encoding)
    for at in range(0, len(body), 10_000):
        tap.feed(body[at : at + 10_000], at)
    tap.finish(10**9)
    assert (tap.unmeasured, tap.faults) == (reason, 0)
    assert tap.overdue_ns(10**18) <= 0
