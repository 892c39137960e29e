"""What an input means: six bytes choose how a response is looked at, the rest is its body.

| byte | chooses |
|---|---|
| 0 | the request's path (and, if byte 4 says so, the dialect that the route sets) |
| 1 | the response's content type |
| 2 | its content encoding: packed by a real encoder, packed and then damaged, or the body as it is |
| 3 | the cuts: none, each byte, behind each line or event, or random ones with this seed |
| 4 | bits: 0, 1 choices asked for; 2 cut short; 3 time passes; 4 dialect set; 5 allocations are traced |
| 5 | how often the body is repeated (bits 0 to 2), which byte is damaged |

Any bytes are an input; ``planned`` never raises.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import brotli
import zstandard

HEADER: Final = 6
BODY_MAX: Final = 64 * 1024

PATHS: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/api/generate",
    "/api/chat",
    "/generate",
    "/generate_stream",
    "/completion",
    "/v2/models/m/generate_stream",
    "/v1beta/models/gemini:streamGenerateContent",
    "/v1beta/models/gemini:generateContent",
    "/v1/embeddings",
    "/",
)
DIALECTS: Final = (
    "openai.chat",
    "openai.completions",
    "openai.responses",
    "anthropic.messages",
    "ollama.generate",
    "ollama.chat",
    "sglang.generate",
    "tgi.generate",
    "llamacpp.completion",
    "triton.generate",
    "gemini.generate",
    "generic",
    "no such dialect",
)
CONTENT_TYPES: Final = (
    b"text/event-stream; charset=utf-8",
    b"application/x-ndjson",
    b"application/json",
    b"text/plain",
)

Packer = Callable[[bytes], bytes]


def _brotli(data: bytes) -> bytes:
    packed: bytes = brotli.compress(data, quality=1)
    return packed


def _gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(1, wbits=zlib.MAX_WBITS | 16)
    return packer.compress(data) + packer.flush()


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(data)


#: (header, what packs the body in order); none for a header that is a lie.
ENCODINGS: Final[tuple[tuple[bytes, tuple[Packer, ...]], ...]] = (
    (b"", ()),
    (b"gzip", (_gzip,)),
    (b"br", (_brotli,)),
    (b"zstd", (_zstd,)),
    (b"deflate", (lambda data: zlib.compress(data, 1),)),
    (b"gzip, br", (_gzip, _brotli)),
    (b"br, zstd, gzip", (_brotli, _zstd, _gzip)),
    (b"gzip", ()),
    (b"br", ()),
    (b"zstd", ()),
    (b"deflate", ()),
    (b"compress", ()),
)
#: Byte 2 beyond the encodings: the same once more, one byte damaged.
_DAMAGED_FROM: Final = len(ENCODINGS)


@dataclass(frozen=True)
class Plan:
    """One response as the tap is shown it.  ``sound``: its encoding is what it claims to be."""

    path: str
    dialect: str | None
    content_type: bytes
    encoding: bytes
    pieces: tuple[bytes, ...]
    choices: int
    complete: bool
    timed: bool
    traced: bool
    sound: bool

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return sum(map(len, self.pieces))


def planned(data: bytes) -> Plan:
    """What an input means."""
    path, kind, encoding, cuts, flags, repeat = data[:HEADER].ljust(HEADER, b"\0")
    body = (data[HEADER:] * (repeat % 8 + 1))[:BODY_MAX]
    which = encoding % (2 * _DAMAGED_FROM)
    header, packers = ENCODINGS[which % _DAMAGED_FROM]
    for pack in packers:
        body = pack(body)
    damaged = which >= _DAMAGED_FROM
    if damaged and body:
        at = repeat * 7919 % len(body)
        body = body[:at] + bytes([body[at] ^ (1 << repeat % 8)]) + body[at + 1 :]
    return Plan(
        path=PATHS[path % len(PATHS)],
        dialect=DIALECTS[path % len(DIALECTS)] if flags & 16 else None,
        content_type=CONTENT_TYPES[kind % len(CONTENT_TYPES)],
        encoding=header,
        pieces=tuple(cut(body, cuts)),
        choices=(flags & 3) + 1,
        complete=not flags & 4,
        timed=bool(flags & 8),
        traced=bool(flags & 32),
        sound=not damaged and (bool(packers) or not header),
    )


def cut(body: bytes, how: int) -> list[bytes]:
    """The body in pieces, as a network (or a server) might cut it."""
    if how == 0 or not body:
        return [body]
    if how == 1:
        return [body[at : at + 1] for at in range(len(body))]
    if how == 2:
        return body.splitlines(keepends=True)
    if how <= 16:
        return [piece for piece in re.split(rb"(?<=\n\n)|(?<=\r\n\r\n)", body) if piece]
    chosen = random.Random(how)
    places = sorted(chosen.randrange(len(body)) for _ in range(chosen.randrange(1, 40)))
    return [body[begin:end] for begin, end in zip([0, *places], [*places, len(body)], strict=True)]


def seed(path: str, content_type: bytes, body: bytes, cuts: int = 2, flags: int = 0) -> bytes:
    """The input that means this response, not encoded."""
    kind = content_type.partition(b";")[0]
    kinds = [known.partition(b";")[0] for known in CONTENT_TYPES]
    where = PATHS.index(path) if path in PATHS else len(PATHS) - 1
    return bytes([where, kinds.index(kind) if kind in kinds else 0, 0, cuts, flags, 0]) + body
