"""SSE framing: against a slow decoder written from the standard, at every cut; bounds; linear time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.relay.framing import DEFAULT_LIMIT, Event, SseDecoder


def decode(*pieces: bytes, limit: int = DEFAULT_LIMIT, flush: bool = False) -> list[tuple[bytes, bytes]]:
    decoder = SseDecoder(limit)
    events = [event for piece in pieces for event in decoder.decode(piece)]
    if flush:
        events += decoder.flush()
    return [(event.name, event.data) for event in events]


def by_the_standard(text: bytes) -> list[tuple[bytes, bytes]]:
    """The WHATWG's steps, one by one, on the whole stream (and the field ``error``, as the module says)."""
    text = text.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events: list[tuple[bytes, bytes]] = []
    data: list[bytes] = []
    name = b""
    for line in text.split(b"\n")[:-1]:  # what follows the last line end is no line yet
        if line == b"":
            if data:
                events.append((name, b"\n".join(data)))
            data, name = [], b""
            continue
        if line.startswith(b":"):
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
        elif field == b"error" and b":" in line:
            name = b"error"
            data.append(value)
    return events


WORDS = (
    *(
        b"data",
        b"data:",
        b"data: ",
        b"event: ",
        b"event",
        b"id: 7",
        b"retry: 10",
        b"error: ",
        b":",
        b": ping",
    ),
    *(b" ", b"x", b'{"a":1}', b"[DONE]", b"\xc3", b"\xa9", b"\xef\xbb\xbf"),
    *(b"\n", b"\n", b"\n\n", b"\r", b"\r\n", b"\r\n\r\n"),
)
streams = st.lists(st.sampled_from(WORDS), max_size=40).map(b"".join)


@settings(max_examples=400)
@given(streams, st.data())
def test_whole_in_pieces_and_byte_by_byte_agree_with_the_standard(text: bytes, draw: st.DataObject) -> None:
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    expected = by_the_standard(text)
    assert decode(text) == expected
    assert decode(*pieces) == expected
    assert decode(*(text[i : i + 1] for i in range(len(text)))) == expected


@settings(max_examples=400)
@given(streams, st.data())
def test_the_bound_and_the_flush_do_not_depend_on_the_cuts(text: bytes, draw: st.DataObject) -> None:
    cut = draw.draw(st.integers(0, len(text)))
    limit = draw.draw(st.integers(3, 30))
    whole = decode(text, limit=limit, flush=True)
    assert decode(text[:cut], text[cut:], limit=limit, flush=True) == whole
    assert decode(*(text[i : i + 1] for i in range(len(text))), limit=limit, flush=True) == whole
    assert all(len(data) <= limit for _, data in whole)


@pytest.mark.parametrize(
    ("text", "events"),
    [
        (b"data: a\n\n", [(b"", b"a")]),
        (b"data:a\n\n", [(b"", b"a")]),
        (b"data:  a\n\n", [(b"", b" a")]),  # only one space belongs to the colon
        (b"data: a\r\n\r\n", [(b"", b"a")]),
        (b"data: a\r\r", [(b"", b"a")]),
        (b"data: a\n\ndata: b\n\n", [(b"", b"a"), (b"", b"b")]),
        (b"data: a\ndata: b\n\n", [(b"", b"a\nb")]),
        (b"data\n\n", [(b"", b"")]),
        (b": ping\n\ndata: a\n\n", [(b"", b"a")]),
        (b":\n\n", []),
        (b"event: error\ndata: a\n\ndata: b\n\n", [(b"error", b"a"), (b"", b"b")]),
        (b"event: alone\n\ndata: b\n\n", [(b"", b"b")]),  # an event without data loses its name
        (b"id: 1\nretry: 5\nnonsense: 2\ndata: a\n\n", [(b"", b"a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [(b"", b"a")]),
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [(b"", b"a")]),  # only at the start
        (b'error: {"code":500}\n\n', [(b"error", b'{"code":500}')]),
        (b"data: a\n", []),
        (b"data: a", []),
    ],
)
def test_each_rule(text: bytes, events: list[tuple[bytes, bytes]]) -> None:
    assert decode(text) == events
    assert decode(*(text[i : i + 1] for i in range(len(text)))) == events


@pytest.mark.parametrize("rest", [b"data: a", b"data: a\n", b"data: a\r"])
def test_an_event_whose_closing_line_is_missing_comes_with_the_flush(rest: bytes) -> None:
    assert decode(b"data: x\n\n" + rest, flush=True) == [(b"", b"x"), (b"", b"a")]
    assert decode(b"data: x\n\n", flush=True) == [(b"", b"x")]


def test_id_and_retry_are_kept_and_nonsense_in_them_is_not() -> None:
    decoder = SseDecoder()
    decoder.decode(b"id: 7\nretry: 250\n\nid: a\0b\nretry: soon\n\n")
    assert decoder.last_event_id == b"7"
    assert decoder.retry_ms == 250


def test_idle_says_whether_the_next_byte_begins_an_event() -> None:
    decoder = SseDecoder()
    assert not decoder.idle  # a byte order mark may come
    decoder.decode(b"data: a\n\n")
    assert decoder.idle
    for held in (b"d", b"ata: x\n", b"\r"):
        decoder.decode(held)
        assert not decoder.idle
    decoder.decode(b"\n")
    assert decoder.idle


def test_an_event_at_the_bound_passes_and_one_beyond_ends_the_decoding() -> None:
    decoder = SseDecoder(limit=100)
    assert decoder.decode(b"data: " + b"x" * 94 + b"\n\n") == [Event(b"", b"x" * 94)]
    assert decoder.decode(b"data: " + b"x" * 95 + b"\n\ndata: a\n\n") == []
    assert decoder.overflowed
    assert decoder.decode(b"data: a\n\n") == []
    assert decoder.flush() == []


def test_a_line_of_20_mb_is_given_up_at_the_bound_and_nothing_is_held() -> None:
    decoder = SseDecoder()
    held = 0
    for _ in range(20 * 1024):
        assert decoder.decode(b"x" * 1024) == []
        held = max(held, len(decoder._line))
    assert decoder.overflowed
    assert held <= DEFAULT_LIMIT
    assert not decoder._line


def test_an_event_that_never_ends_is_given_up_at_the_bound() -> None:
    decoder = SseDecoder()
    sent = 0
    while not decoder.overflowed:
        assert decoder.decode(b"data: 0123456789\n") == []
        sent += 17
        assert len(decoder._data) <= DEFAULT_LIMIT
        assert sent < 3 * DEFAULT_LIMIT


def test_comments_for_ever_are_never_too_much() -> None:
    decoder = SseDecoder(limit=1000)
    for _ in range(1000):
        assert decoder.decode(b": ping\n\n") == []
    assert not decoder.overflowed
    assert decoder.comments == 1000


@pytest.mark.alone
def test_one_huge_line_in_small_pieces_takes_linear_time() -> None:
    def seconds(megabytes: int) -> float:
        pieces = [b"data: "] + [b"x" * 1024] * (megabytes * 1024) + [b"\n\n"]
        best = float("inf")
        for _ in range(3):
            decoder = SseDecoder(limit=64 * 1024 * 1024)
            begin = time.process_time()
            events = [event for piece in pieces for event in decoder.decode(piece)]
            best = min(best, time.process_time() - begin)
            assert len(events) == 1
            assert len(events[0].data) == megabytes * 1024 * 1024
        return best

    # Ten times the bytes; a decoder that looks at its buffer again takes a hundred times as long.
    assert seconds(20) < 40 * seconds(2) + 0.05
