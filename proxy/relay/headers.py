"""Which header fields travel through a proxy and which end at each hop (RFC 9110, section 7.6.1).  Pure.

A field list is ``list[tuple[bytes, bytes]]`` in the order, case and number in which it came; what is
kept is kept as it is.
"""

from __future__ import annotations

from typing import Final, NamedTuple

Fields = list[tuple[bytes, bytes]]

#: Fields of one connection, never forwarded.  ``Trailer`` goes with them since trailers are not forwarded.
HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
#: What a ``Connection`` field may not take away: the framing and the target are ours to keep right.
_PROTECTED: Final = frozenset((b"host", b"content-length", b"content-type", b"content-encoding"))


def tokens(value: bytes) -> list[bytes]:
    """The comma-separated tokens of a list-valued field, in lower case, without white space."""
    return [token for part in value.lower().split(b",") if (token := part.strip())]


def named_by_connection(fields: Fields) -> frozenset[bytes]:
    """The field names that ``Connection`` fields declare hop-by-hop, less those that it may not take."""
    names: list[bytes] = []
    for name, value in fields:
        if name.lower() == b"connection":
            names += tokens(value)
    return frozenset(names) - _PROTECTED if names else frozenset()


def end_to_end(fields: Fields, also_drop: frozenset[bytes] = frozenset()) -> Fields:
    """The fields that travel on: neither hop-by-hop nor named by ``Connection`` nor in ``also_drop``."""
    drop = HOP_BY_HOP | also_drop
    named = named_by_connection(fields)
    if named:
        drop |= named
    return [field for field in fields if field[0].lower() not in drop]


class Framing(NamedTuple):
    """How a response body is delimited: at most one of the two; neither means until the connection ends."""

    length: int | None
    chunked: bool


class ResponseHead(NamedTuple):
    """A response's head as the relay needs it: what travels on, how the body ends, what the tap asks for."""

    status: int
    reason: bytes
    fields: Fields
    framing: Framing
    content_type: bytes
    content_encoding: bytes
    keep_alive_s: int | None
    bad_coding: bool  # a transfer coding that nobody asked for: the body cannot be passed on truthfully


def read_response_head(status: int, reason: bytes, raw: Fields) -> ResponseHead:
    """One pass over an upstream's header: keep end-to-end fields, learn framing, type and keep-alive.

    ``Transfer-Encoding: chunked`` stays in its place when it is the only coding, since the body goes out
    chunked again; the downstream side drops it for HTTP/1.0 clients.
    """
    length: int | None = None
    content_type = content_encoding = b""
    hop: dict[bytes, bytes] = {}
    fields: Fields = []
    for field in raw:
        name = field[0].lower()
        if name in HOP_BY_HOP:
            hop[name] = field[1] if name not in hop else hop[name] + b"," + field[1]
            if name != b"transfer-encoding" or field[1].strip().lower() != b"chunked":
                continue
        elif name == b"content-length":
            length = int(field[1])
        elif name == b"content-type":
            content_type = field[1].lower()
        elif name == b"content-encoding":
            content_encoding = field[1].lower().strip()
        fields.append(field)
    chunked = bad_coding = False
    keep_alive_s: int | None = None
    if hop:
        coding = hop.get(b"transfer-encoding")
        chunked = coding is not None and coding.strip().lower() == b"chunked"
        bad_coding = coding is not None and not chunked
        keep_alive_s = _keep_alive_timeout(hop.get(b"keep-alive", b""))
        if hop.get(b"connection", b"").lower() not in (b"", b"close", b"keep-alive"):
            named = named_by_connection(raw)
            fields = [f for f in fields if f[0].lower() not in named]
    framing = Framing(None if chunked else length, chunked)
    return ResponseHead(
        status, reason, fields, framing, content_type, content_encoding, keep_alive_s, bad_coding
    )


def _keep_alive_timeout(value: bytes) -> int | None:
    for token in tokens(value):
        if token.startswith(b"timeout=") and token[8:].isdigit():
            return int(token[8:])
    return None


def find(fields: Fields, name: bytes) -> bytes | None:
    """The first value of ``name`` (lower case), or ``None``."""
    for field in fields:
        if field[0].lower() == name:
            return field[1]
    return None
