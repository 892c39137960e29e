"""A real TCP server that replays recorded responses: the same pieces at the same (or scaled) moments.

A request says in its ``x-replay`` header what it wants (``plan``), so that one server and one proxy carry
every recording at once:

    with replaying(recordings) as server:
        ... send the request with plan("vllm__chat_stream", seconds=0.3, split=7) as a header ...
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from tests.helpers.upstream import Connection, Request, Upstream, scripted

HEADER = "X-Replay"

Ending = Literal["close", "keep", "client_closes"]


@dataclass(frozen=True)
class Tape:
    """One recorded response: ``pieces`` are (ns since the request was sent, bytes of one recv)."""

    name: str
    pieces: Sequence[tuple[int, bytes]]
    ending: Ending

    @property
    def raw(self) -> bytes:
        """The response as it was on the wire."""
        return b"".join(data for _, data in self.pieces)


def ending_of(end: str) -> Ending:
    """What a recording's ``end`` says: the server closed, kept the connection, or the client left."""
    if end.startswith("client closed"):
        return "client_closes"
    return "close" if "EOF" in end else "keep"


def plan(name: str, *, seconds: float | None = None, split: int | None = None) -> tuple[str, str]:
    """The header that asks for a recording.

    ``seconds``: all stamps are scaled so that it takes at most this long (never stretched).
    ``split``: a seed; the response is cut at random places instead of its own, some pieces of one byte.
    """
    return HEADER, f"{name} {'' if seconds is None else seconds}/{'' if split is None else split}"


def resplit(tape: Tape, seed: int) -> list[tuple[int, bytes]]:
    """Cut a response at random places.  Each piece is due when its last byte was in the recording."""
    dice = random.Random(seed)
    ends: list[tuple[int, int]] = []  # (offset behind the recorded piece, its stamp)
    offset = 0
    for at_ns, data in tape.pieces:
        offset += len(data)
        ends.append((offset, at_ns))
    raw, out, at, which = tape.raw, [], 0, 0
    while at < len(raw):
        size = dice.choice((1, dice.randint(1, 16), dice.randint(1, 300), dice.randint(1, 3000)))
        data = raw[at : at + size]
        at += len(data)
        while ends[which][0] < at:
            which += 1
        out.append((ends[which][1], data))
    return out


async def _replay(conn: Connection, tape: Tape, seconds: float | None, split: int | None) -> None:
    pieces = list(tape.pieces) if split is None else resplit(tape, split)
    last_ns = pieces[-1][0] if pieces else 0
    scale = 1.0 if seconds is None or not last_ns else min(1.0, seconds * 1e9 / last_ns)
    start_ns = time.monotonic_ns()
    for at_ns, data in pieces:
        await conn.until(start_ns + int(at_ns * scale))
        await conn.send(data)


def tapes_by_name(tapes: Sequence[Tape]) -> Mapping[str, Tape]:
    """For look-up."""
    return {tape.name: tape for tape in tapes}


@contextmanager
def replaying(tapes: Sequence[Tape]) -> Iterator[Upstream]:
    """A server that answers each request with the recording that its ``x-replay`` header names."""
    known = tapes_by_name(tapes)

    async def script(conn: Connection) -> None:
        while True:
            tape, seconds, split = _wanted(await conn.request(), known)
            await _replay(conn, tape, seconds, split)
            if tape.ending == "close":
                return
            if tape.ending == "client_closes":
                await conn.client_gone()
                return

    with scripted(script) as upstream:
        yield upstream


def _wanted(request: Request, known: Mapping[str, Tape]) -> tuple[Tape, float | None, int | None]:
    name, _, rest = (request.head.get(HEADER.encode()) or b"").decode().partition(" ")
    seconds, _, split = rest.partition("/")
    return known[name], float(seconds) if seconds else None, int(split) if split else None
