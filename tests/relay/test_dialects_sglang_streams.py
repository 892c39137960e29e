"""SGLang's /generate: whole streams through the tap, against the way they were made and a naive reader."""

from __future__ import annotations

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given

from proxy.link import Stream, Usage
from proxy.relay.dialects.base import RANKS, RUNNING_USAGE
from proxy.relay.dialects.sglang import SGLangGenerate
from proxy.relay.streamtap import StreamTap
from tests.helpers.taps import DONE, MS, arrivals, event, sizes
from tests.relay.test_dialects_sglang import LENGTH, SGLANG, STOP, generated


def tapped(*pieces: bytes, choices: int = 1) -> Stream:
    """One piece every 10 ms, through a tap that was told the dialect."""
    tap = StreamTap(SGLANG, None, 500 * MS, 50 * MS, 0, 20_000, choices, fixed=True)
    for number, piece in enumerate(pieces):
        tap.feed(piece, (number + 1) * 10 * MS)
    tap.finish(len(pieces) * 10 * MS)
    assert tap.faults == 0
    return tap.to_stream()


def naive(pieces: list[bytes]) -> dict[int, list[tuple[int, int, int]]]:
    """An independent reader.  Per choice: (number of the event, tokens, bytes of text) where text appeared.

    It believes the text, not the ids: an event that begins with all that was there before repeats it.
    """
    whole: dict[int, str] = {}
    counted: dict[int, int] = {}
    found: dict[int, list[tuple[int, int, int]]] = {}
    for number, piece in enumerate(pieces):
        value = json.loads(piece.removeprefix(b"data: "))
        choice, before = value.get("index", 0), whole.get(value.get("index", 0), "")
        new = value["text"].removeprefix(before)
        whole[choice] = before + new
        ended, seen = value["meta_info"]["finish_reason"] is not None, found.setdefault(choice, [])
        tokens = value["meta_info"]["completion_tokens"] - counted.get(choice, 0)
        if tokens and (new or (ended and seen)):
            counted[choice] = value["meta_info"]["completion_tokens"]
            seen.append((number, tokens, len(new.encode())))
    return found


step = st.tuples(st.integers(0, 2), st.integers(0, 3), st.booleans())


def streamed(mode: str, steps: list[tuple[int, int, bool]], choices: int) -> list[bytes]:
    """What a server sends for these steps (choice, new tokens, whether their text is held back).

    ``whole``: text and ids so far; ``bare``: text so far, no ids; ``new``: new text, new ids; ``mixed``: text
    so far, new ids.  Each token's text is its own, so that no piece begins like what was before it.
    """
    pieces, told, shown, sent = [], [0] * choices, [0] * choices, [0] * choices
    ends = [(choice, 1, False) for choice in range(choices)]
    for number, (one, tokens, held) in enumerate([*steps, *ends]):
        choice, ended = one % choices, number >= len(steps)
        told[choice] += tokens
        was = shown[choice]
        if not held:
            shown[choice] = told[choice]
        words = [f"é{choice}.{token} " for token in range(shown[choice])]
        text = "".join(words[was:] if mode == "new" else words)
        ids = list(range(told[choice]))
        if mode in ("new", "mixed"):
            ids = ids[sent[choice] :]
        sent[choice] = told[choice]
        pieces.append(
            event(
                generated(
                    text,
                    told[choice],
                    ids=None if mode == "bare" else ids,
                    finish=LENGTH if ended else None,
                    index=choice if choices > 1 else None,
                )
            )
        )
    return pieces


@given(st.sampled_from(["whole", "bare", "new"]), st.lists(step, max_size=40), st.integers(1, 3))
def test_streams_are_counted_as_they_were_made(
    mode: str, steps: list[tuple[int, int, bool]], choices: int
) -> None:
    pieces = streamed(mode, steps, choices)
    halves = [half for piece in pieces for half in (piece[:9], piece[9:])]  # never one event: the general way
    expected = naive(pieces)
    stream = tapped(*halves, choices=choices)
    assert stream.finished
    assert arrivals(stream) == [
        [((number + 1) * 20, tokens) for number, tokens, _ in expected[choice]] for choice in sorted(expected)
    ]
    assert {size for choice in sizes(stream) for size in choice} <= {1}  # counts tell all, sizes nothing
    assert stream.usage.output == sum(told for _, told in ends_of(pieces))
    if mode == "new" or choices > 1:  # the same where whole events arrive
        faster = tapped(*pieces, choices=choices)
        assert [[tokens for _, tokens in one] for one in arrivals(faster)] == [
            [tokens for _, tokens, _ in expected[choice]] for choice in sorted(expected)
        ]


def ends_of(pieces: list[bytes]) -> list[tuple[int, int]]:
    """(choice, tokens) of the finishing events."""
    values = [json.loads(piece.removeprefix(b"data: ")) for piece in pieces]
    return [
        (value.get("index", 0), value["meta_info"]["completion_tokens"])
        for value in values
        if value["meta_info"]["finish_reason"] is not None
    ]


@given(st.sampled_from(["whole", "bare", "new", "mixed"]), st.lists(step, max_size=40))
def test_on_the_hot_path_an_arrival_has_all_tokens_told_so_far(
    mode: str, steps: list[tuple[int, int, bool]]
) -> None:
    """Held-back text may be taken for output there (its growth is not looked at), no token gets lost.

    Where the text is whole each event has a new token, as the server sends them.
    """
    pieces = streamed(mode, [step for step in steps if step[1] or mode == "new"], 1)
    told = [json.loads(piece.removeprefix(b"data: "))["meta_info"]["completion_tokens"] for piece in pieces]
    stream = tapped(*pieces)
    seen = 0
    for at_ms, tokens in arrivals(stream)[0]:
        seen += tokens
        assert seen == told[at_ms // 10 - 1]
    assert seen == told[-1] == stream.tokens
    assert stream.tokens_source == RUNNING_USAGE
    grown = {10 * (number + 1) for number in range(len(told)) if told[number] > ([0, *told])[number]}
    shown = {10 * (number + 1) for number, _, _ in naive(pieces)[0]}
    assert shown & grown <= {at_ms for at_ms, _ in arrivals(stream)[0]}


def test_plain_events_take_the_hot_path(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[bytes] = []

    class Watched(SGLangGenerate):
        @staticmethod
        def quick(data: bytes) -> int:
            looked_at.append(data)
            return SGLangGenerate.quick(data)

    pieces = [event(generated("é" * told, told, ids=[7] * told)) for told in range(1, 21)]
    tap = StreamTap(Watched(), None, 500 * MS, 50 * MS, 0, 20_000, 1, fixed=True)
    for number, piece in enumerate(pieces):
        tap.feed(piece, number * MS)
    assert len(looked_at) == 19
    assert tap.tokens == 20
    assert Watched.plain_rank == RANKS[RUNNING_USAGE]


def test_several_tokens_in_an_event_and_the_end() -> None:
    stream = tapped(
        event(generated("a", 1)),
        event(generated("ab", 2)),
        event(generated("abcde", 5)),
        event(generated("abcde", 6)),
        event(generated("abcdef", 7, finish=STOP)),
        DONE,
    )
    assert [tokens for _, tokens in arrivals(stream)[0]] == [1, 1, 3, 1, 1]
    assert (stream.finish_reason, stream.response_id, stream.error) == ("stop", "5f1a", None)
    assert stream.usage == Usage(prompt=12, output=7, cached=3)
    assert stream.finished


def test_the_first_token_is_the_first_text() -> None:
    stream = tapped(event(generated("", 1)), event(generated("é", 2)), event(generated("é.", 3, finish=STOP)))
    assert arrivals(stream) == [[(20, 2), (30, 1)]]
    assert stream.first_event_ns == 10 * MS
    assert stream.first_answer_ns == 20 * MS


def test_an_abort_in_the_middle_is_an_error() -> None:
    aborted = {"type": "abort", "message": "m", "status_code": 500, "err_type": "InternalServerError"}
    stream = tapped(event(generated("a", 1)), event(generated("a", 1, finish=aborted)), DONE)
    assert (stream.error, stream.finish_reason, stream.tokens) == ("InternalServerError", "abort", 1)
