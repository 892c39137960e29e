"""A small HTTP/1.1 reader for tests, written apart from the product so that they cannot share a mistake.

It keeps what went over the wire as it was: names in their case, headers in their order, duplicates apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: Header names that belong to one connection, not to the message (RFC 9110, 7.6.1).
HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)

Headers = list[tuple[bytes, bytes]]


class Nonsense(Exception):
    """The peer sent something that is no HTTP message."""


@dataclass(frozen=True)
class Head:
    """The first line's three words and the headers, as they came; ``raw`` ends with the empty line."""

    raw: bytes
    words: tuple[bytes, bytes, bytes]
    headers: Headers

    def get(self, name: bytes) -> bytes | None:
        """The first value of a header, whatever its case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def all(self, name: bytes) -> list[bytes]:
        """Every value of a header, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def end_to_end(self, *also_without: bytes) -> Headers:
        """The headers that a proxy must hand on (``also_without``: names in lower case)."""
        named = {token.strip().lower() for value in self.all(b"connection") for token in value.split(b",")}
        gone = HOP_BY_HOP | named | set(also_without)
        return [(key, value) for key, value in self.headers if key.lower() not in gone]


def parse_head(raw: bytes) -> Head:
    """Take a head apart; ``Nonsense`` when it has no three words or a header without a colon."""
    lines = raw.removesuffix(b"\r\n\r\n").split(b"\r\n")
    words = lines[0].split(b" ", 2)
    if len(words) == 2:
        words.append(b"")
    if len(words) != 3:
        raise Nonsense(f"first line {lines[0]!r}")
    headers: Headers = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon:
            raise Nonsense(f"header line {line!r}")
        headers.append((name, value.strip(b" \t")))
    return Head(raw, (words[0], words[1], words[2]), headers)


@dataclass
class BodyReader:
    """Takes a body's framing off.  ``length``: bytes still to come; ``None``, not chunked: until EOF."""

    chunked: bool = False
    length: int | None = None
    body: bytearray = field(default_factory=bytearray)
    chunk_sizes: list[int] = field(default_factory=list)
    done: bool = False
    _pending: bytearray = field(default_factory=bytearray)
    _left: int = 0
    _in_trailer: bool = False

    def __post_init__(self) -> None:
        self.done = not self.chunked and self.length == 0

    def feed(self, data: bytes) -> bytes:
        """Take bytes; return those that lie beyond the end of the body."""
        if self.done:
            return data
        if self.chunked:
            return self._feed_chunked(data)
        if self.length is None:
            self.body += data
            return b""
        taken = data[: self.length]
        self.body += taken
        self.length -= len(taken)
        self.done = self.length == 0
        return data[len(taken) :]

    def _feed_chunked(self, data: bytes) -> bytes:
        pending = self._pending
        pending += data
        while not self.done:
            if self._left:  # data of a chunk and the CRLF behind it
                if len(pending) < self._left:
                    break
                if pending[self._left - 2 : self._left] != b"\r\n":
                    raise Nonsense("a chunk without its CRLF")
                self.body += pending[: self._left - 2]
                del pending[: self._left]
                self._left = 0
                continue
            line, found, _ = bytes(pending).partition(b"\r\n") if len(pending) < 65536 else _split(pending)
            if not found:
                break
            del pending[: len(line) + 2]
            if self._in_trailer:
                self.done = not line
                continue
            size = int(line.split(b";")[0], 16)
            self.chunk_sizes.append(size)
            self._in_trailer = size == 0
            self._left = size + 2 if size else 0
        if not self.done:
            return b""
        rest = bytes(pending)
        pending.clear()
        return rest


def _split(pending: bytearray) -> tuple[bytes, bytes, bytes]:
    at = pending.find(b"\r\n")
    return (b"", b"", b"") if at < 0 else (bytes(pending[:at]), b"\r\n", b"")


def request_body(head: Head) -> BodyReader:
    """The reader for a request's body (none without a length)."""
    if b"chunked" in (head.get(b"transfer-encoding") or b"").lower():
        return BodyReader(chunked=True)
    return BodyReader(length=int(head.get(b"content-length") or 0))


def response_body(head: Head, *, to_head: bool = False) -> BodyReader:
    """The reader for a response's body; ``to_head``: it answers a HEAD request."""
    status = int(head.words[1])
    if to_head or status in (204, 304) or status < 200:
        return BodyReader(length=0)
    if b"chunked" in (head.get(b"transfer-encoding") or b"").lower():
        return BodyReader(chunked=True)
    length = head.get(b"content-length")
    return BodyReader(length=None if length is None else int(length))


def chunk(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
