"""Readable copies of compressed bodies: every cut, every kind of deflate, and bombs that do not go off."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.relay.decompress import (
    FEED_LIMIT,
    FREE_BYTES,
    RATIO_LIMIT,
    BadEncoding,
    Bomb,
    Inflater,
    UnknownEncoding,
    open_inflater,
)


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.compress,
    b"x-gzip": gzip.compress,
    b"deflate": zlib.compress,
    b" Deflate ": raw_deflate,
}


def opened(encoding: bytes) -> Inflater:
    inflater = open_inflater(encoding)
    assert inflater is not None
    return inflater


def inflate(encoding: bytes, pieces: list[bytes]) -> bytes:
    inflater = opened(encoding)
    return b"".join(inflater.feed(piece) for piece in pieces)


@given(st.sampled_from(sorted(PACKERS)), st.binary(max_size=500), st.lists(st.integers(0, 600), max_size=6))
def test_every_cut_gives_the_same_bytes(encoding: bytes, data: bytes, cuts: list[int]) -> None:
    packed = PACKERS[encoding](data)
    ends = sorted(min(cut, len(packed)) for cut in cuts)
    pieces = [packed[a:b] for a, b in zip([0, *ends], [*ends, len(packed)], strict=True)]
    assert inflate(encoding, [packed]) == data
    assert inflate(encoding, pieces) == data
    assert inflate(encoding, [packed[i : i + 1] for i in range(len(packed))]) == data


def test_a_stream_that_is_flushed_event_by_event_can_be_read_event_by_event() -> None:
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    inflater = opened(b"gzip")
    for token in range(20):
        event = b'data: {"token":%d}\n\n' % token
        assert inflater.feed(packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH)) == event


@pytest.mark.parametrize("padding", [b"", b"\0" * 700])
def test_gzip_members_follow_each_other_and_may_be_padded(padding: bytes) -> None:
    packed = gzip.compress(b"one") + padding + gzip.compress(b"two") + padding
    assert inflate(b"gzip", [packed]) == b"onetwo"
    assert inflate(b"gzip", [packed[i : i + 1] for i in range(len(packed))]) == b"onetwo"


def test_what_follows_the_end_is_not_read() -> None:
    assert inflate(b"gzip", [gzip.compress(b"one") + b"garbage", b"more"]) == b"one"
    assert (
        inflate(b"deflate", [zlib.compress(b"one") + zlib.compress(b"two"), zlib.compress(b"three")])
        == b"one"
    )


def test_an_identity_body_needs_no_inflater_and_an_unknown_one_has_none() -> None:
    assert open_inflater(b"") is None
    assert open_inflater(b"identity") is None
    for encoding in (b"br", b"zstd", b"gzip, gzip", b"nonsense"):
        with pytest.raises(UnknownEncoding):
            open_inflater(encoding)


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate"])
def test_bytes_that_are_not_what_they_claim_to_be(encoding: bytes) -> None:
    with pytest.raises(BadEncoding):
        inflate(encoding, [b"data: not compressed at all\n\n"])


@cache
def bomb(megabytes: int) -> bytes:
    return gzip.compress(b"\0" * (megabytes * 1024 * 1024))


def test_a_bomb_in_one_piece_stops_at_the_bound() -> None:
    with pytest.raises(Bomb):
        opened(b"gzip").feed(bomb(FEED_LIMIT // 1024 // 1024 + 1))


def test_one_piece_never_becomes_more_than_the_bound_however_honest_it_is() -> None:
    """The ratio is harmless; the time and the memory that one piece may take are not."""
    data = b"".join(b"%08d" % number for number in range(FEED_LIMIT // 8 + 1))
    packed = gzip.compress(data)
    assert len(data) < 10 * len(packed)
    with pytest.raises(Bomb):
        opened(b"gzip").feed(packed)
    assert inflate(b"gzip", [packed[: len(packed) // 2], packed[len(packed) // 2 :]]) == data


@settings(max_examples=10, deadline=None)
@given(st.integers(100, 5000))
def test_a_bomb_in_small_pieces_stops_by_its_ratio(size: int) -> None:
    packed, inflater, out, fed, exploded = bomb(40), opened(b"gzip"), 0, 0, False
    while not exploded:
        assert fed < len(packed), "it never went off"
        piece = packed[fed : fed + size]
        fed += len(piece)
        try:
            out += len(inflater.feed(piece))
        except Bomb:
            exploded = True
    assert out <= max(FREE_BYTES, RATIO_LIMIT * fed) + FEED_LIMIT
    assert fed < len(packed) // 2


def test_many_members_in_one_piece_are_a_bomb_too() -> None:
    with pytest.raises(Bomb):
        opened(b"gzip").feed(gzip.compress(b"") * 10_000)


def test_a_long_answer_that_packs_well_is_no_bomb() -> None:
    packer, inflater, out = zlib.compressobj(wbits=zlib.MAX_WBITS | 16), opened(b"gzip"), 0
    event = b'data: {"id":"cmpl-0","object":"text_completion","choices":[{"index":0,"text":"%06d"}]}\n\n'
    for token in range(30_000):
        out += len(inflater.feed(packer.compress(event % token) + packer.flush(zlib.Z_SYNC_FLUSH)))
    assert out == 30_000 * len(event % 0)
