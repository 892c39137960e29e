"""Arrivals as the link packs them -> tokens per event, apportioned from the server's final count.  Pure.

A server that says nothing about tokens while it streams gives one token per event; its final usage then
tells how many there were.  The rest is spread over the events in proportion to the bytes of content that
each carried, so that an event with twice the text holds about twice the tokens.  Whatever is spread, each
event keeps at least what was counted, arrivals keep their stamps, and the sum is the server's count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from proxy.link import META_TOKENS_BITS, META_TOKENS_MAX, Stream
from scoring.trace import Choice

Int64s = npt.NDArray[np.int64]

_EXACT = 1 << 62


@dataclass(frozen=True, slots=True)
class Counted:
    """``choices`` as they are scored; ``observed`` and ``reported`` tokens; ``source`` as in the record."""

    choices: tuple[Choice, ...]
    observed: int
    reported: int | None
    source: str

    @property
    def output(self) -> int:
        """The tokens that the request produced, by the best word there is."""
        return self.observed if self.reported is None else self.reported


#: A stream of which nothing came: one choice that owes its first token.
EMPTY: Final = Counted((Choice(np.zeros(0, np.int64), np.zeros(0, np.int64)),), 0, None, "events")


def unpack(packed: bytes) -> tuple[Int64s, Int64s, Int64s]:
    """One choice's ``[at_ns, meta, ...]`` -> stamps relative to t = 0, tokens, content bytes.

    ``ValueError`` when ``packed`` is not whole pairs of little-endian int64, or time runs backwards.
    """
    pairs = np.frombuffer(packed, dtype="<i8").reshape(-1, 2)
    at_ns = pairs[:, 0].astype(np.int64)
    meta = pairs[:, 1]
    if len(at_ns) and (int(at_ns[0]) < 0 or (at_ns[1:] < at_ns[:-1]).any()):
        raise ValueError("arrivals are not in order of time, or lie before t = 0")
    return (
        at_ns,
        (meta & META_TOKENS_MAX).astype(np.int64),
        (meta >> META_TOKENS_BITS).astype(np.int64),
    )


def spread(extra: int, weights: Int64s) -> Int64s:
    """``extra`` whole tokens over events in proportion to ``weights`` (>= 0, any sum); the sum is exact.

    By cumulative rounding: after any number of events, what was given differs from the exact share by
    less than one token.
    """
    if not weights.any():
        weights = np.ones_like(weights)
    running = np.cumsum(weights, dtype=np.int64)
    total = int(running[-1])
    if total < _EXACT // max(extra, 1):
        given = running * extra // total
    else:  # saturated sizes: a float's rounding moves at most a token between neighbours
        given = np.floor(running / float(total) * extra).astype(np.int64)
        given[-1] = extra
    return np.diff(given, prepend=np.int64(0))


def visible_tokens(stream: Stream) -> int | None:
    """The server's output count, less the reasoning tokens that it kept to itself; ``None``: not reported."""
    usage = stream.usage
    if usage.output is None:
        return None
    hidden = usage.reasoning if usage.reasoning and stream.first_reasoning_ns is None else 0
    return max(usage.output - hidden, 0)


def count(stream: Stream) -> Counted:
    """Tokens per event of a stream, with their source."""
    parts = [unpack(packed) for packed in stream.choices]
    counted = [tokens for _, tokens, _ in parts]
    source = stream.tokens_source
    visible = visible_tokens(stream)
    if source != "events" or visible is None or not parts or stream.thinned:  # thinned: scored online
        return Counted(_choices(stream, parts, counted), stream.tokens, stream.usage.output, source)
    have = sum(int(tokens.sum()) for tokens in counted)
    extra = visible - have
    if extra < 0 or extra > have:
        # Fewer than there were events, or more than twice as many: hidden tokens, most likely.  Spread over
        # these events they would fill every gap and make a stall vanish; so the events stand.
        return Counted(_choices(stream, parts, counted), stream.tokens, stream.usage.output, "events")
    if extra:
        added = spread(extra, np.concatenate([content for _, _, content in parts]))
        edges = np.cumsum([len(tokens) for tokens in counted])[:-1]
        counted = [tokens + more for tokens, more in zip(counted, np.split(added, edges), strict=True)]
    return Counted(_choices(stream, parts, counted), stream.tokens, stream.usage.output, "events+usage")


def _choices(
    stream: Stream, parts: list[tuple[Int64s, Int64s, Int64s]], tokens: list[Int64s]
) -> tuple[Choice, ...]:
    """Stamps and tokens as they are scored, and which choices owe nothing more at a cut."""
    finished = [score.finished for score in stream.scores] or [False] * len(parts)
    return tuple(Choice(part[0], n, done) for part, n, done in zip(parts, tokens, finished, strict=True))
