"""The tap's CPU time is linear in the bytes: ten times the stream costs ten times as much, within a fifth.

Both sizes are measured in turns and the least of five counts, since the machine is shared; what still looks
superlinear is measured twice again before it fails.  Arrivals are few (``CAP``), so that both sizes are
thinned; the pieces of the large stream are those of the small one ten times over, so that the processor's
caches see the same (but for encoded streams, which cannot be put together so).

More than 12 times as long is what this guards against, in every case.  Less than 8 times says that the tap
did not look at all of it, but where a beginning is known to cost more than what follows.  A body has one: its
first megabyte is kept whole, in a buffer that grows into memory never touched before; then only the end is,
in place.  That is a quarter of the small body and a fortieth of the large one, so that the ratio comes to 7
to 10, by what fresh memory costs on a machine.  At 5 a byte of the beginning would cost six times as much as
others; a tap that no longer looks at what comes behind the small body takes about 2 times as long.
"""

from __future__ import annotations

import gc
import json
import random
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import brotli
import pytest
import zstandard

from proxy.relay.framing import DEFAULT_LIMIT
from tests.helpers.taps import CHAT, MS, chat, opened

pytestmark = pytest.mark.alone

MB = 1024 * 1024
CAP = 500
TIMES = 10
WITHIN = 0.2
ROUNDS = 5
TRIES = 3

SSE = b"text/event-stream"
NDJSON = b"application/x-ndjson"


@dataclass(frozen=True)
class Case:
    """``pieces``: of a stream of one unit, or of ``TIMES`` of them.  ``tokens``: whether any are counted.

    ``least``: how many times as long the large stream takes at least.
    """

    pieces: Callable[[int], list[bytes]]
    path: str = CHAT
    content_type: bytes = SSE
    encoding: bytes = b""
    tokens: bool = True
    least: float = TIMES * (1 - WITHIN)


def words() -> Iterator[str]:
    choose = random.Random(7).choice
    while True:
        yield choose((" the", " of", "é", " token", ",", "\n", ' "', " deadlines", " 日本", " a"))


def chat_events() -> list[bytes]:
    """One megabyte of chat events, one a piece."""
    events, size, word = [chat(role="assistant")], 0, words()
    while size < MB:
        events.append(chat(next(word)))
        size += len(events[-1])
    return events


def ollama_lines() -> list[bytes]:
    """The same of Ollama's lines."""
    lines: list[bytes] = []
    size, word = 0, words()
    while size < MB:
        message = {"role": "assistant", "content": next(word)}
        line = {"model": "m", "created_at": "2026-11-20T03:14:07Z", "message": message, "done": False}
        lines.append(json.dumps(line).encode() + b"\n")
        size += len(lines[-1])
    return lines


def cut_small(pieces: list[bytes], longest: int = 80) -> list[bytes]:
    """The same bytes in random small pieces."""
    whole, at, step = b"".join(pieces), 0, random.Random(3).randint
    small: list[bytes] = []
    while at < len(whole):
        end = at + step(1, longest)
        small.append(whole[at:end])
        at = end
    return small


def repeated(pieces: list[bytes]) -> Callable[[int], list[bytes]]:
    return lambda times: pieces * times


def endless(begin: bytes) -> Callable[[int], list[bytes]]:
    """One line that never ends, up to the bound of an event: beyond it nothing is looked at any more."""
    return lambda times: [begin, *([b"x" * 64] * (times * (DEFAULT_LIMIT - 1024) // 64 // TIMES))]


def gzipped(pieces: list[bytes]) -> list[bytes]:
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    return [packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]


def brotlied(pieces: list[bytes]) -> list[bytes]:
    packer = brotli.Compressor(quality=3)
    return [packer.process(piece) + packer.flush() for piece in pieces]


def zstandarded(pieces: list[bytes]) -> list[bytes]:
    packer = zstandard.ZstdCompressor(level=3).compressobj()
    return [packer.compress(piece) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for piece in pieces]


def encoded(pack: Callable[[list[bytes]], list[bytes]]) -> Callable[[int], list[bytes]]:
    return lambda times: pack(chat_events() * times)


CASES: dict[str, Callable[[], Case]] = {
    "chat, an event a piece": lambda: Case(repeated(chat_events())),
    "chat, many events a piece": lambda: Case(repeated([b"".join(chat_events()[:2000])[:-1], b"\n"])),
    "chat, random small pieces": lambda: Case(repeated(cut_small(chat_events()))),
    "chat, an endless line": lambda: Case(endless(b"data: "), tokens=False),
    "chat, tiny lines of comments": lambda: Case(repeated([b":\n" * 64] * 1500), tokens=False),
    "chat, tiny lines of data": lambda: Case(repeated([b"data: x\n" * 16] * 2500), tokens=False),
    "ollama, a line a piece": lambda: Case(repeated(ollama_lines()), "/api/chat", NDJSON),
    "ollama, random small pieces": lambda: Case(repeated(cut_small(ollama_lines())), "/api/chat", NDJSON),
    "ollama, an endless line": lambda: Case(endless(b'{"a":"'), "/api/chat", NDJSON, tokens=False),
    "chat, gzip": lambda: Case(encoded(gzipped), encoding=b"gzip"),
    "chat, br": lambda: Case(encoded(brotlied), encoding=b"br"),
    "chat, zstd": lambda: Case(encoded(zstandarded), encoding=b"zstd"),
    "a body": lambda: Case(
        repeated([b"x" * 1000] * 4000), content_type=b"application/json", tokens=False, least=TIMES / 2
    ),
}


def seconds(case: Case, pieces: list[bytes]) -> float:
    """CPU time of feeding the pieces to a fresh tap."""
    tap = opened(case.path, content_type=case.content_type, encoding=case.encoding, cap=CAP)
    feed = tap.feed
    begin = time.process_time()
    for piece in pieces:
        feed(piece, MS)
    took = time.process_time() - begin
    assert (tap.faults, tap.unmeasured, tap.tokens > 0) == (0, None, case.tokens)
    return took


def ratio(case: Case) -> float:
    small, large = case.pieces(1), case.pieces(TIMES)
    least_small = least_large = float("inf")
    gc.collect()
    gc.disable()
    try:
        for _ in range(ROUNDS):
            least_small = min(least_small, seconds(case, small))
            least_large = min(least_large, seconds(case, large))
    finally:
        gc.enable()
    return least_large / least_small


@pytest.mark.parametrize("name", CASES)
def test_ten_times_the_stream_costs_ten_times_the_time(name: str) -> None:
    case = CASES[name]()
    seen: list[float] = []
    for _ in range(TRIES):
        seen.append(ratio(case))
        if case.least <= seen[-1] <= TIMES * (1 + WITHIN):
            return
    pytest.fail(
        f"{name}: {TIMES} times the bytes took {', '.join(f'{each:.1f}' for each in seen)} times as long"
    )


def test_this_would_see_a_decoder_that_looks_at_its_buffer_again() -> None:
    """The measure itself: something quadratic is far from ten."""
    held = bytearray()

    def feed(pieces: list[bytes]) -> float:
        held.clear()
        begin = time.process_time()
        for piece in pieces:
            held.extend(piece)
            held.find(b"\n")
        return time.process_time() - begin

    small = [b"x" * 64] * 1000
    assert feed(small * TIMES) > 2 * TIMES * min(feed(small) for _ in range(ROUNDS))
