"""NDJSON framing: against a naive splitter, at every cut; bounds; idleness; linear time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.relay.framing import DEFAULT_LIMIT, Event
from proxy.relay.ndjson import NdjsonDecoder


def decode(*pieces: bytes, limit: int = DEFAULT_LIMIT, flush: bool = False) -> list[bytes]:
    decoder = NdjsonDecoder(limit)
    events = [event for piece in pieces for event in decoder.decode(piece)]
    if flush:
        events += decoder.flush()
    assert all(event.name == b"" for event in events)
    return [event.data for event in events]


def byte_by_byte(text: bytes) -> list[bytes]:
    return [text[i : i + 1] for i in range(len(text))]


def naive(text: bytes, flush: bool) -> list[bytes]:
    lines = text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not flush:
        lines.pop()  # what follows the last line end is no line yet
    return [line.removesuffix(b"\r") for line in lines if line.strip()]


WORDS = (
    *(b'{"a":1}', b'{"a":"\\n"}', b'{"a":\t1}', b"null", b"x", b" ", b"\t", b"\xc3", b"\xa9"),
    *(b"\xef\xbb\xbf", b"\xef", b"\xbb", b"\n", b"\n", b"\n\n", b"\r", b"\r\n", b"\r\r\n"),
)
streams = st.lists(st.sampled_from(WORDS), max_size=40).map(b"".join)


@settings(max_examples=400)
@given(streams, st.booleans(), st.data())
def test_whole_in_pieces_and_byte_by_byte_agree_with_the_naive_splitter(
    text: bytes, flush: bool, draw: st.DataObject
) -> None:
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    expected = naive(text, flush)
    assert decode(text, flush=flush) == expected
    assert decode(*pieces, flush=flush) == expected
    assert decode(*byte_by_byte(text), flush=flush) == expected


@settings(max_examples=400)
@given(streams, st.integers(3, 12), st.data())
def test_the_bound_does_not_depend_on_the_cuts(text: bytes, limit: int, draw: st.DataObject) -> None:
    cut = draw.draw(st.integers(0, len(text)))
    whole = decode(text, limit=limit, flush=True)
    assert decode(text[:cut], text[cut:], limit=limit, flush=True) == whole
    assert decode(*byte_by_byte(text), limit=limit, flush=True) == whole
    assert all(len(data) <= limit for data in whole)
    lines = text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if all(len(line.removesuffix(b"\r")) <= limit for line in lines):
        assert whole == naive(text, True)


@pytest.mark.parametrize(
    ("text", "events"),
    [
        (b'{"a":1}\n', [b'{"a":1}']),
        (b'{"a":1}\r\n{"b":2}\r\n', [b'{"a":1}', b'{"b":2}']),
        (b"1\n2\n3\n", [b"1", b"2", b"3"]),
        (b"\n\r\n \t\r\n1\n\n", [b"1"]),
        (b"1\r2\n", [b"1\r2"]),  # a CR alone ends no line: JSON takes it for a space
        (b"\xef\xbb\xbf1\n\xef\xbb\xbf2\n", [b"1", b"\xef\xbb\xbf2"]),  # only at the start
        (b"1\n2", [b"1"]),
        (b"", []),
    ],
)
def test_each_rule(text: bytes, events: list[bytes]) -> None:
    assert decode(text) == events
    assert decode(*byte_by_byte(text)) == events


def test_a_last_line_without_its_end_comes_with_the_flush_once() -> None:
    decoder = NdjsonDecoder()
    assert decoder.decode(b"1\n2") == [Event(b"", b"1")]
    assert decoder.flush() == [Event(b"", b"2")]
    assert decoder.flush() == []
    assert decoder.idle


def test_idle_says_whether_the_next_byte_begins_a_line() -> None:
    decoder = NdjsonDecoder()
    assert not decoder.idle  # a byte order mark may come
    decoder.decode(b"1\n")
    assert decoder.idle
    for held in (b"2", b"3\r"):
        decoder.decode(held)
        assert not decoder.idle
    decoder.decode(b"\n")
    assert decoder.idle


def test_the_line_end_last_seen() -> None:
    decoder = NdjsonDecoder()
    for text, crlf in ((b"1\n", False), (b"2\r", False), (b"\n", True), (b"3", True), (b"\n", False)):
        decoder.decode(text)
        assert decoder.crlf is crlf


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_at_the_bound_passes_and_one_beyond_ends_the_decoding(end: bytes) -> None:
    decoder = NdjsonDecoder(limit=100)
    assert decoder.decode(b"x" * 100 + end) == [Event(b"", b"x" * 100)]
    assert decoder.decode(b"1\n" + b"x" * 101 + end + b"2\n") == [Event(b"", b"1")]
    assert decoder.overflowed
    assert not decoder.idle
    assert decoder.decode(b"3\n") == []
    assert decoder.flush() == []


def test_a_line_of_20_mb_is_given_up_at_the_bound_and_nothing_is_held() -> None:
    decoder, held = NdjsonDecoder(), 0
    for _ in range(20 * 1024):
        assert decoder.decode(b"x" * 1024) == []
        held = max(held, len(decoder._line))
    assert decoder.overflowed
    assert DEFAULT_LIMIT - 1024 <= held <= DEFAULT_LIMIT
    assert not decoder._line


@pytest.mark.alone
def test_one_huge_line_in_small_pieces_takes_linear_time() -> None:
    def seconds(megabytes: int) -> float:
        pieces = [b"x" * 1024] * (megabytes * 1024) + [b"\n"]
        best = float("inf")
        for _ in range(3):
            decoder = NdjsonDecoder(limit=64 * 1024 * 1024)
            begin = time.process_time()
            events = [event for piece in pieces for event in decoder.decode(piece)]
            best = min(best, time.process_time() - begin)
            assert [len(event.data) for event in events] == [megabytes * 1024 * 1024]
        return best

    # Ten times the bytes; a decoder that looks at its buffer again takes a hundred times as long.
    assert seconds(20) < 40 * seconds(2) + 0.05
