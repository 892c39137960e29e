"""A readable copy of a compressed body, for measuring only: the client gets the original bytes.

``open_inflater(content_encoding)`` -> an ``Inflater`` (gzip, deflate in both of its meanings), ``None`` for
an identity body; raises ``UnknownEncoding`` for anything else.  ``Inflater.feed(data) -> bytes`` raises
``BadEncoding`` where the bytes are not what they claim to be and ``Bomb`` where they grow without measure;
both end the measuring of that body and nothing else.

Bounds: one ``feed`` never returns (nor holds) more than ``FEED_LIMIT`` bytes, and once more than
``FREE_BYTES`` have come out, never more than ``RATIO_LIMIT`` times what went in.  DEFLATE reaches 1032:1;
streams of JSON events, the same words in every one, were seen at up to 40:1.
"""

from __future__ import annotations

import zlib
from typing import Final

FEED_LIMIT: Final = 4 * 1024 * 1024
FREE_BYTES: Final = 1024 * 1024
RATIO_LIMIT: Final = 200
MEMBERS_PER_FEED: Final = 16  # gzip allows members one after the other; each costs a fresh inflater

_GZIP: Final = zlib.MAX_WBITS | 16
_ZLIB: Final = zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS


class UnknownEncoding(Exception):
    """A content encoding that this version cannot read."""


class BadEncoding(Exception):
    """The bytes are not in the encoding that the head claims."""


class Bomb(Exception):
    """The bytes inflate beyond the bounds."""


class Inflater:
    """Incremental, bounded; ``wbits`` as in ``zlib.decompressobj``, ``None``: deflate, by its first bytes."""

    __slots__ = ("_bytes_in", "_bytes_out", "_ended", "_held", "_started", "_wbits", "_zlib")

    def __init__(self, wbits: int | None) -> None:
        self._wbits = wbits
        self._zlib: zlib._Decompress | None = None  # None: before the first member, or between two
        self._held = b""  # the first byte of a deflate body, until the second tells which kind it is
        self._bytes_in = 0
        self._bytes_out = 0
        self._started = False
        self._ended = False

    def feed(self, data: bytes) -> bytes:
        """Return what ``data`` inflates to."""
        if self._ended or not data:
            return b""
        self._bytes_in += len(data)
        if self._wbits is None:
            data = self._held + data
            if len(data) < 2:
                self._held = data
                return b""
            self._wbits = _deflate_kind(data)
        try:
            out = self._inflate(data)
        except zlib.error as error:
            raise BadEncoding(str(error)) from None
        self._bytes_out += len(out)
        if self._bytes_out > FREE_BYTES and self._bytes_out > RATIO_LIMIT * self._bytes_in:
            raise Bomb(f"{self._bytes_in} bytes became {self._bytes_out}")
        return out

    def _inflate(self, data: bytes) -> bytes:
        parts: list[bytes] = []
        size = 0
        if self._started and self._zlib is None:
            data = data.lstrip(b"\0")
        while data and self._open(data):
            inflater = self._zlib
            assert inflater is not None
            # One byte more than is allowed, so that reaching the limit and passing it differ.
            out = inflater.decompress(data, FEED_LIMIT + 1 - size)
            size += len(out)
            if size > FEED_LIMIT:
                raise Bomb(f"one piece became more than {FEED_LIMIT} bytes")
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
    """``deflate`` means the zlib format (RFC 9110, 8.4.1.2), but some send bare DEFLATE: RFC 1950's header
    tells (compression method 8, and the first two bytes a multiple of 31)."""
    zlib_header = start[0] & 0x0F == 8 and start[0] >> 4 <= 7 and (start[0] << 8 | start[1]) % 31 == 0
    return _ZLIB if zlib_header else _RAW


def open_inflater(content_encoding: bytes) -> Inflater | None:
    """The inflater for a ``Content-Encoding`` value; ``None``: the body is readable as it is."""
    name = content_encoding.strip().lower()
    if name in (b"", b"identity"):
        return None
    if name in (b"gzip", b"x-gzip"):
        return Inflater(_GZIP)
    if name == b"deflate":
        return Inflater(None)
    raise UnknownEncoding(name.decode("latin-1"))
