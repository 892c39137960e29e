"""Readable copies of compressed bodies: every cut, each coding, several at once, bombs that do not go off."""

from __future__ import annotations

import builtins
import gzip
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import brotli
import pytest
import zstandard
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

MB = 1024 * 1024


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def br(data: bytes) -> bytes:
    packed: bytes = brotli.compress(data, quality=4)
    return packed


PACKERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.compress,
    b"x-gzip": gzip.compress,
    b"deflate": zlib.compress,
    b" Deflate ": raw_deflate,
    b"br": br,
    b"zstd": zstd,
    b"gzip, br": lambda data: br(gzip.compress(data)),
    b"BR , identity,zstd": lambda data: zstd(br(data)),
    b"deflate, gzip, zstd": lambda data: zstd(gzip.compress(zlib.compress(data))),
}


class Packer:
    """A real encoder that flushes each event."""

    def __init__(self, encoding: str) -> None:
        self.compress: Callable[[bytes], bytes]
        self.flush: Callable[[], bytes]
        if encoding == "gzip":
            deflate = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
            self.compress, self.flush = deflate.compress, lambda: deflate.flush(zlib.Z_SYNC_FLUSH)
        elif encoding == "br":
            packer = brotli.Compressor(quality=4)
            self.compress, self.flush = packer.process, packer.flush
        else:
            frame = zstandard.ZstdCompressor().compressobj()
            self.compress = frame.compress
            self.flush = lambda: frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    def event(self, data: bytes) -> bytes:
        return self.compress(data) + self.flush()


FLUSHING = ["gzip", "br", "zstd"]


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


@pytest.mark.parametrize("encoding", FLUSHING)
def test_a_stream_that_is_flushed_event_by_event_can_be_read_event_by_event(encoding: str) -> None:
    packer, inflater = Packer(encoding), opened(encoding.encode())
    for token in range(50):
        event = b'data: {"token":%d}\n\n' % token
        assert inflater.feed(packer.event(event)) == event


@pytest.mark.parametrize("encoding", sorted(PACKERS))
def test_large_pieces_come_out_whole_and_at_once(encoding: bytes) -> None:
    """Beyond the coders' own buffers nothing is left behind until the next piece."""
    for size in (100_000, 128 * 1024, 300_000, MB, FEED_LIMIT - 1000):
        data = b"".join(b"%08x" % (number * 2654435761 % 2**32) for number in range(size // 8))
        assert inflate(encoding, [PACKERS[encoding](data)]) == data


@pytest.mark.parametrize("padding", [b"", b"\0" * 700])
def test_gzip_members_follow_each_other_and_may_be_padded(padding: bytes) -> None:
    packed = gzip.compress(b"one") + padding + gzip.compress(b"two") + padding
    assert inflate(b"gzip", [packed]) == b"onetwo"
    assert inflate(b"gzip", [packed[i : i + 1] for i in range(len(packed))]) == b"onetwo"


def test_zstd_frames_follow_each_other_and_some_are_skipped() -> None:
    skipped = b"\x50\x2a\x4d\x18" + (100).to_bytes(4, "little") + b"x" * 100
    packed = zstd(b"one") + skipped + zstd(b"") + zstd(b"two")
    assert inflate(b"zstd", [packed]) == b"onetwo"
    assert inflate(b"zstd", [packed[i : i + 1] for i in range(len(packed))]) == b"onetwo"


def test_what_follows_the_end_is_not_read() -> None:
    assert inflate(b"gzip", [gzip.compress(b"one") + b"garbage", b"more"]) == b"one"
    assert (
        inflate(b"deflate", [zlib.compress(b"one") + zlib.compress(b"two"), zlib.compress(b"three")])
        == b"one"
    )


@pytest.mark.parametrize("encoding", [b"br", b"zstd"])
def test_behind_the_end_of_a_newer_coding_there_is_nothing(encoding: bytes) -> None:
    for pieces in ([PACKERS[encoding](b"one") + b"garbage"], [PACKERS[encoding](b"one"), b"garbage"]):
        with pytest.raises(BadEncoding):
            inflate(encoding, pieces)


def test_an_identity_body_needs_no_inflater_and_an_unknown_one_has_none() -> None:
    for encoding in (b"", b"identity", b" , identity,"):
        assert open_inflater(encoding) is None
    for encoding in (b"compress", b"gzip, nonsense", b"dcz", b"gzip, gzip, gzip, gzip", b"gzip br"):
        with pytest.raises(UnknownEncoding):
            open_inflater(encoding)


@pytest.mark.parametrize(("package", "encoding"), [("brotli", b"br"), ("zstandard", b"zstd")])
def test_without_its_package_an_encoding_is_unknown(
    package: str, encoding: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == package:
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnknownEncoding):
        open_inflater(encoding)
    assert open_inflater(b"gzip") is not None


def test_a_brotli_that_cannot_be_bounded_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brotli, "Decompressor", object)
    with pytest.raises(UnknownEncoding):
        open_inflater(b"br")


def test_the_packages_are_imported_only_when_they_are_needed() -> None:
    script = (
        "import sys; from proxy.relay.decompress import open_inflater as o; o(b'gzip')\n"
        "names = {'brotli', 'zstandard'}; assert not names & set(sys.modules)\n"
        "o(b'br'); assert 'zstandard' not in sys.modules; o(b'zstd'); assert names < set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"br", b"zstd", b"gzip, br", b"br, gzip"])
def test_bytes_that_are_not_what_they_claim_to_be(encoding: bytes) -> None:
    packed = PACKERS[b"br" if encoding.endswith(b", br") else b"gzip"](b"data: not packed\n\n")
    for body in (b"data: not compressed at all\n\n", packed if b"," in encoding else b"\xff" * 40):
        with pytest.raises(BadEncoding):
            inflate(encoding, [body])


@given(st.sampled_from(sorted(PACKERS)), st.binary(max_size=200), st.binary(max_size=40), st.data())
def test_damaged_bodies_raise_nothing_else(
    encoding: bytes, data: bytes, junk: bytes, draw: st.DataObject
) -> None:
    packed = PACKERS[encoding](data)
    cut = draw.draw(st.integers(0, len(packed)))
    inflater = opened(encoding)
    try:
        for piece in (packed[:cut], junk, packed[cut:]):
            inflater.feed(piece)
    except (BadEncoding, Bomb):
        pass


@pytest.mark.parametrize("encoding", sorted(PACKERS))
def test_of_a_truncated_body_what_came_is_read(encoding: bytes) -> None:
    data = b"".join(b"%08x" % (number * 2654435761 % 2**32) for number in range(40_000))
    packed = PACKERS[encoding](data)
    pieces = [packed[at : at + 1000] for at in range(0, len(packed) - 2000, 1000)]
    out = inflate(encoding, pieces)
    assert data.startswith(out)
    assert len(out) >= len(data) // 3


def test_a_zstd_window_beyond_what_the_content_coding_allows() -> None:
    """RFC 9659: 8 MiB.  One that asks for more asks for our memory."""
    for window_log, allowed in ((23, True), (24, False)):
        parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=window_log)
        packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        packed = packer.compress(b"one") + packer.flush()
        if allowed:
            assert inflate(b"zstd", [packed]) == b"one"
        else:
            with pytest.raises(BadEncoding):
                inflate(b"zstd", [packed])


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


ZEROS = b"\0" * (10 * MB)


def packed_by(encodings: bytes, data: bytes) -> bytes:
    for encoding in encodings.split(b", "):
        data = PACKERS[encoding](data)
    return data


@pytest.mark.parametrize("size", [1, 64, 1000, 1 << 20])
@pytest.mark.parametrize(
    "encoding", [b"gzip", b"deflate", b"br", b"zstd", b"gzip, br", b"br, zstd", b"zstd, gzip", b"br, br"]
)
def test_ten_megabytes_of_zeros_are_a_bomb_in_every_coding_and_are_never_held(
    encoding: bytes, size: int
) -> None:
    packed = packed_by(encoding, ZEROS)
    assert len(packed) < 12_000
    pieces = [packed[at : at + size] for at in range(0, len(packed), size)]
    inflater = opened(encoding)

    def feed_all() -> None:
        for piece in pieces:
            inflater.feed(piece)

    tracemalloc.start()
    try:
        with pytest.raises(Bomb):
            feed_all()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 2 * FEED_LIMIT + MB  # the parts, and the parts joined


def test_what_lies_between_two_codings_is_bounded_too() -> None:
    """Padding becomes nothing, but there were megabytes of it."""
    packed = br(gzip.compress(b"x") + b"\0" * (3 * MB))
    with pytest.raises(Bomb):
        inflate(b"gzip, br", [packed])


def test_zstd_memory_grows_no_further_than_the_bound() -> None:
    """Blocks of four bytes that become 128 KiB each: the worst there is (the decoder's own memory counts)."""
    block = (131072 << 3 | 1 << 1).to_bytes(3, "little") + b"A"
    frame = b"\x28\xb5\x2f\xfd" + bytes([0, (21 - 10) << 3]) + block * 16_000  # 2 GB
    script = (
        "import resource, sys; from proxy.relay.decompress import *\n"
        "inflater = open_inflater(b'zstd'); inflater.feed(sys.stdin.buffer.read(6))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: inflater.feed(sys.stdin.buffer.read())\n"
        "except Bomb: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], input=frame, capture_output=True, check=True)
    assert int(done.stdout) < 4 * FEED_LIMIT // 1024


def test_many_members_in_one_piece_are_a_bomb_too() -> None:
    with pytest.raises(Bomb):
        opened(b"gzip").feed(gzip.compress(b"") * 10_000)


@pytest.mark.parametrize("encoding", FLUSHING)
def test_a_long_answer_that_packs_well_is_no_bomb(encoding: str) -> None:
    packer, inflater, out = Packer(encoding), opened(encoding.encode()), 0
    event = b'data: {"id":"cmpl-0","object":"text_completion","choices":[{"index":0,"text":"%06d"}]}\n\n'
    for token in range(30_000):
        out += len(inflater.feed(packer.event(event % token)))
    assert out == 30_000 * len(event % 0)
