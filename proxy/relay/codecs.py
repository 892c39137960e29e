"""One content coding each, incremental and bounded: DEFLATE in its three wrappings, Brotli, Zstandard.

A ``Codec``'s ``inflate(data, most) -> bytes`` gives what ``data`` becomes, flushed pieces at once, and never
more than ``most`` bytes: it raises ``Bomb`` where there would be more (having held at most half a megabyte
beyond), and ``BadEncoding`` where the bytes are not what they claim to be.  A codec that has raised is not
used again.

The packages ``brotli`` and ``zstandard`` are imported when a response is so encoded, not before.

Worst cases that the bounds are made for: DEFLATE reaches 1032:1; a Zstandard block of four bytes becomes
128 KiB (RFC 8878, 3.1.1.2); a Brotli meta-block of a few bytes becomes 16 MiB (RFC 7932, 9.2).
"""

from __future__ import annotations

import zlib
from typing import Final, Protocol

MEMBERS_PER_FEED: Final = 16  # gzip allows members one after the other; each costs a fresh inflater
ZSTD_WINDOW_MAX: Final = 8 * 1024 * 1024  # what the content coding allows (RFC 9659)

_GZIP: Final = zlib.MAX_WBITS | 16
_ZLIB: Final = zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS
_ZSTD_BLOCK_MAX: Final = 128 * 1024
_ZSTD_BLOCK_MIN: Final = 4  # bytes of the smallest block that becomes anything: a header of three, and one
_BROTLI_STEP: Final = 256 * 1024  # its buffer grows by blocks, up to about twice this


class UnknownEncoding(Exception):
    """A content encoding that this version cannot read."""


class BadEncoding(Exception):
    """The bytes are not in the encoding that the head claims."""


class Bomb(Exception):
    """The bytes inflate beyond the bounds."""


class Codec(Protocol):
    """One coding's decoder, for one body."""

    def inflate(self, data: bytes, most: int, /) -> bytes:
        """What ``data`` becomes; raises ``BadEncoding`` and ``Bomb``."""


class Deflate:
    """gzip, or what is called deflate: the zlib format (RFC 9110, 8.4.1.2) or, as some send, bare DEFLATE.

    What follows the end (of the last gzip member) is not read.
    """

    __slots__ = ("_ended", "_held", "_started", "_wbits", "_zlib")

    def __init__(self, *, gzip: bool) -> None:
        self._wbits = _GZIP if gzip else None  # None: which kind of deflate is not known yet
        self._zlib: zlib._Decompress | None = None  # None: before the first member, or between two
        self._held = b""  # the first byte of a deflate body, until the second tells which kind it is
        self._started = False
        self._ended = False

    def inflate(self, data: bytes, most: int) -> bytes:
        """See ``Codec``."""
        if self._ended:
            return b""
        if self._wbits is None:
            data = self._held + data
            if len(data) < 2:
                self._held = data
                return b""
            self._wbits = _deflate_kind(data)
        try:
            return self._inflate(data, most)
        except zlib.error as error:
            raise BadEncoding(str(error)) from None

    def _inflate(self, data: bytes, most: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        if self._started and self._zlib is None:
            data = data.lstrip(b"\0")
        while data and self._open(data):
            inflater = self._zlib
            assert inflater is not None
            # One byte more than is allowed, so that reaching the limit and passing it differ.
            out = inflater.decompress(data, most + 1 - size)
            size += len(out)
            if size > most:
                raise Bomb(f"one piece became more than {most} bytes")
            parts.append(out)
            if not inflater.eof:
                break
            if len(parts) > MEMBERS_PER_FEED:
                raise Bomb(f"more than {MEMBERS_PER_FEED} gzip members in one piece")
            data = inflater.unused_data.lstrip(b"\0")  # zeros after a member are padding
            self._zlib = None
        return b"".join(parts)

    def _open(self, data: bytes) -> bool:
        """Have an inflater for ``data``; false where what follows the end is not ours to read."""
        if self._zlib is None:
            if self._started and (self._wbits != _GZIP or data[0] != 0x1F):
                self._ended = True
                return False
            assert self._wbits is not None
            self._zlib = zlib.decompressobj(self._wbits)
            self._started = True
        return True


def _deflate_kind(start: bytes) -> int:
    """RFC 1950's header tells: compression method 8, and the first two bytes a multiple of 31."""
    zlib_header = start[0] & 0x0F == 8 and start[0] >> 4 <= 7 and (start[0] << 8 | start[1]) % 31 == 0
    return _ZLIB if zlib_header else _RAW


class Brotli:
    """``br``.  Raises ``UnknownEncoding`` without a package ``brotli`` that can bound its output (1.2)."""

    __slots__ = ("_brotli", "_error")

    def __init__(self) -> None:
        try:
            import brotli
        except ImportError:
            raise UnknownEncoding("br: no package brotli") from None
        if not hasattr(brotli.Decompressor, "can_accept_more_data"):
            raise UnknownEncoding("br: the package brotli is older than 1.2")
        self._brotli = brotli.Decompressor()
        self._error: type[Exception] = brotli.error

    def inflate(self, data: bytes, most: int) -> bytes:
        """See ``Codec``."""
        brotli = self._brotli
        parts: list[bytes] = []
        size = 0
        try:
            while True:
                step = min(most + 1 - size, _BROTLI_STEP)
                out: bytes = brotli.process(data, output_buffer_limit=step)
                size += len(out)
                if size > most:
                    raise Bomb(f"one piece became more than {most} bytes")
                parts.append(out)
                if len(out) < step:  # else some may be left, also where all input was taken
                    return out if len(parts) == 1 else b"".join(parts)
                data = b""
        except self._error as error:
            raise BadEncoding(str(error)) from None


class Zstd:
    """``zstd``, frame after frame.  Raises ``UnknownEncoding`` where there is no package ``zstandard``.

    Its decoder has no bound of its own: it is fed so little at a time that it cannot exceed ours by more
    than a block.
    """

    __slots__ = ("_error", "_zstd")

    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError:
            raise UnknownEncoding("zstd: no package zstandard") from None
        decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX)
        self._zstd = decompressor.decompressobj(read_across_frames=True)
        self._error: type[Exception] = zstandard.ZstdError

    def inflate(self, data: bytes, most: int) -> bytes:
        """See ``Codec``."""
        parts: list[bytes] = []
        size = at = 0
        try:
            while at < len(data):
                # Blocks that end in a slice of n bytes: at most n // 4 + 1, one having begun before it.
                blocks = (most - size) // _ZSTD_BLOCK_MAX
                end = at + max((blocks - 1) * _ZSTD_BLOCK_MIN, 1)
                out = self._zstd.decompress(data[at:end])
                at = end
                size += len(out)
                if size > most:
                    raise Bomb(f"one piece became more than {most} bytes")
                parts.append(out)
        except self._error as error:
            raise BadEncoding(str(error)) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)
