"""A readable copy of a compressed body, for measuring only: the client gets the original bytes.

``open_inflater(content_encoding)`` -> an ``Inflater`` (gzip, deflate, br, zstd, or up to three of them, one
over the other), ``None`` for an identity body; raises ``UnknownEncoding`` for anything else.
``Inflater.feed(data) -> bytes`` raises ``BadEncoding`` where the bytes are not what they claim to be and
``Bomb`` where they grow without measure; both end the measuring of that body and nothing else.

Bounds: one ``feed`` never returns more than ``FEED_LIMIT`` bytes (nor holds much more), and once more than
``FREE_BYTES`` have come out, never more than ``RATIO_LIMIT`` times what went in; of several codings each is
held to it.  Streams of chat events, 245 bytes each, were seen at up to 30:1 when flushed event by event
(gzip, br, zstd; the same token again and again), and at up to 80:1 when packed whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from proxy.relay.codecs import BadEncoding, Bomb, Brotli, Codec, Deflate, UnknownEncoding, Zstd

__all__ = [
    "CODINGS_MAX",
    "FEED_LIMIT",
    "FREE_BYTES",
    "RATIO_LIMIT",
    "BadEncoding",
    "Bomb",
    "Inflater",
    "UnknownEncoding",
    "open_inflater",
]

FEED_LIMIT: Final = 4 * 1024 * 1024
FREE_BYTES: Final = 1024 * 1024
RATIO_LIMIT: Final = 200
CODINGS_MAX: Final = 3

_CODECS: Final[dict[bytes, Callable[[], Codec]]] = {
    b"gzip": lambda: Deflate(gzip=True),
    b"x-gzip": lambda: Deflate(gzip=True),
    b"deflate": lambda: Deflate(gzip=False),
    b"br": Brotli,
    b"zstd": Zstd,
}


class Inflater:
    """Incremental, bounded.  ``codecs``: the outermost coding's, which was applied last, first."""

    __slots__ = ("_bytes_in", "_bytes_out", "_codecs")

    def __init__(self, codecs: list[Codec]) -> None:
        self._codecs = codecs
        self._bytes_in = 0
        self._bytes_out = [0] * len(codecs)

    def feed(self, data: bytes) -> bytes:
        """Return what ``data`` inflates to."""
        self._bytes_in += len(data)
        for number, codec in enumerate(self._codecs):
            if not data:
                break
            data = codec.inflate(data, FEED_LIMIT)
            self._bytes_out[number] += len(data)
            grown = self._bytes_out[number]
            if grown > FREE_BYTES and grown > RATIO_LIMIT * self._bytes_in:
                raise Bomb(f"{self._bytes_in} bytes became {grown}")
        return data


def open_inflater(content_encoding: bytes) -> Inflater | None:
    """The inflater for a ``Content-Encoding`` value; ``None``: the body is readable as it is.

    Several codings stand in the order in which they were applied (RFC 9110, 8.4).
    """
    names = [name.strip().lower() for name in content_encoding.split(b",")]
    names = [name for name in names if name not in (b"", b"identity")]
    if not names:
        return None
    if len(names) > CODINGS_MAX:
        raise UnknownEncoding(f"{len(names)} codings")
    if any(name not in _CODECS for name in names):
        raise UnknownEncoding(content_encoding.decode("latin-1"))
    return Inflater([_CODECS[name]() for name in reversed(names)])
