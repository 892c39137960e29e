"""A read that is one whole chunk is known by its length: the size line is the one we would have written."""

from __future__ import annotations

from proxy.relay.upstream import _LINES


def test_every_whole_chunk_is_known_and_nothing_else() -> None:
    known = {}
    for size in range(1, len(_LINES)):
        chunk = b"%x\r\n%b\r\n" % (size, b"a" * size)
        if len(chunk) < len(_LINES):
            known[len(chunk)] = b"%x\r\n" % size
    assert {length: line for length, line in enumerate(_LINES) if line} == known
    assert _LINES[len(b"0\r\n\r\n")] == b""  # the last chunk is the parser's
