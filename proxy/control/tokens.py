"""Arrivals as the link packs them -> tokens per event, completed from the server's final count.  Pure.

What a stream tells while it runs falls short where a server holds tokens back: half a UTF-8 character,
several steps flushed at once, speculation.  The count that it reports at the end says how many there were.
What is missing is apportioned over the events by largest remainder, in proportion to the bytes of content
that each carried: an event with twice the text holds about twice the tokens.  Every event keeps at least what
was counted, arrivals keep their stamps, and the sum is the server's number exactly.

Tokens that nobody saw are not apportioned: spread over the visible events they would buy slack, and a stall
would vanish.  Reported reasoning tokens are taken off when no reasoning was streamed; a number beyond twice
what was counted is believed only where something shows that events carry several tokens.

Thinned streams are left as they were counted.  Their score was kept online, token by token, with every stamp;
merged arrivals may hide a late token behind its neighbour, so a score computed again from them, however well
the tokens are apportioned, would be the worse one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from proxy.link import META_BYTES_MAX, META_TOKENS_BITS, META_TOKENS_MAX, Stream
from scoring.trace import Choice

Int64s = npt.NDArray[np.int64]

#: Beyond this many times what was counted a reported number needs evidence of several tokens per event.
RATIO_MAX: Final = 2
#: Such evidence: a median event with more bytes of content than one token usually has.
MEDIAN_BYTES: Final = 12

_COUNTED: Final = "events"
_COMPLETED: Final = "events+usage"
_EXACT: Final = 1 << 62
_COUNT_MAX: Final = 1 << 53  # as the dialects bound what a server may report


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

    @property
    def on_events(self) -> int:
        """The tokens that stand on the events, what was apportioned included."""
        return sum(int(choice.tokens.sum()) for choice in self.choices)


#: A stream of which nothing came: one choice that owes its first token.
EMPTY: Final = Counted((Choice(np.zeros(0, np.int64), np.zeros(0, np.int64)),), 0, None, _COUNTED)


def unpack(packed: bytes) -> tuple[Int64s, Int64s, Int64s]:
    """One choice's ``[at_ns, meta, ...]`` -> stamps relative to t = 0, tokens, content bytes.

    ``ValueError`` when ``packed`` is not whole pairs of little-endian int64, time runs backwards, or a size
    is negative.
    """
    pairs = np.frombuffer(packed, dtype="<i8").reshape(-1, 2)
    at_ns = pairs[:, 0].astype(np.int64)
    meta = pairs[:, 1].astype(np.int64)
    if len(at_ns) and (int(at_ns[0]) < 0 or (at_ns[1:] < at_ns[:-1]).any()):
        raise ValueError("arrivals are not in order of time, or lie before t = 0")
    if len(meta) and int(meta.min()) < 0:
        raise ValueError("arrivals with a negative size")
    return at_ns, meta & META_TOKENS_MAX, meta >> META_TOKENS_BITS


def apportion(extra: int, weights: Int64s) -> Int64s:
    """``extra`` (>= 0) whole tokens over events (at least one) in proportion to ``weights`` (>= 0).

    Largest remainder: each event gets the whole part of its exact share; what is left goes one by one to
    the largest fractions, the earliest first where they are equal.  Weights that are all 0 count as equal.
    The sum is exact: beyond int64 Python's integers take over.
    """
    if not weights.any():
        weights = np.ones_like(weights)
    if int(weights.max()) * max(extra, len(weights)) >= _EXACT:
        return _apportion_slowly(extra, weights.tolist())
    given, left = np.divmod(weights * extra, weights.sum())
    short = extra - int(given.sum())
    if short:
        given[np.argsort(-left, kind="stable")[:short]] += 1
    return given


def _apportion_slowly(extra: int, weights: list[int]) -> Int64s:
    total = sum(weights)
    shares = [divmod(weight * extra, total) for weight in weights]
    given = [whole for whole, _ in shares]
    by_fraction = sorted(range(len(shares)), key=lambda event: shares[event][1], reverse=True)  # stable
    for event in by_fraction[: extra - sum(given)]:
        given[event] += 1
    return np.array(given, dtype=np.int64)


def hidden_tokens(stream: Stream) -> int:
    """Reported reasoning tokens of a stream that showed no reasoning."""
    return stream.usage.reasoning or 0 if stream.first_reasoning_ns is None else 0


def visible_tokens(stream: Stream) -> int | None:
    """The server's output count, less the reasoning tokens that it kept to itself; ``None``: not reported."""
    output = stream.usage.output
    return None if output is None else max(output - hidden_tokens(stream), 0)


def count(stream: Stream) -> Counted:
    """Tokens per event of a stream, with their source."""
    parts = [_Part(*unpack(packed)) for packed in stream.choices]
    source = stream.tokens_source
    if not stream.thinned:
        groups = _groups(stream, parts)
        told = sum(len(of) for _, of in groups) == len(parts) > 0
        confirmed = source == _COUNTED and told and all(said == _have(of) for said, of in groups)
        if sum(_complete(said, of, stream.several) for said, of in groups) or confirmed:
            source = _COMPLETED
    finished = [score.finished for score in stream.scores] or [False] * len(parts)
    choices = (Choice(part.at_ns, part.tokens, done) for part, done in zip(parts, finished, strict=True))
    return Counted(tuple(choices), stream.tokens, stream.usage.output, source)


@dataclass(slots=True)
class _Part:
    """One choice's events: stamps, tokens, bytes of content."""

    at_ns: Int64s
    tokens: Int64s
    sizes: Int64s

    @property
    def content(self) -> int:
        """All bytes of content; as many events as one frame holds cannot overflow it."""
        return int(np.minimum(self.sizes, META_BYTES_MAX).sum())


def _have(parts: list[_Part]) -> int:
    return sum(int(part.tokens.sum()) for part in parts)


def _groups(stream: Stream, parts: list[_Part]) -> list[tuple[int, list[_Part]]]:
    """(number that the server said, the choices that share it): those with a number of their own stand alone.

    Hidden reasoning tokens are told of the whole request.  With several choices nobody knows whose they were,
    so these share what was visible of the request's.
    """
    hidden = hidden_tokens(stream)
    own = stream.reported if not hidden or len(parts) == 1 else ()
    groups, rest = [], []
    for part, said in zip(parts, (*own, *[-1] * len(parts)), strict=False):
        if 0 <= said < _COUNT_MAX:
            groups.append((max(said - hidden, 0), [part]))
        else:
            rest.append(part)
    visible = visible_tokens(stream)
    if rest and visible is not None and visible < _COUNT_MAX:
        groups.append((visible - sum(said for said, _ in groups), rest))
    return groups


def _complete(said: int, parts: list[_Part], several: bool) -> int:
    """Add what is missing to these choices' tokens; how much that was.  Fewer than counted: nothing is."""
    have = _have(parts)
    missing = said - have
    sizes = np.concatenate([part.sizes for part in parts])
    if missing <= 0 or not len(sizes):
        return 0
    if said > RATIO_MAX * have and not several and not _long(sizes):
        return 0
    shares = [missing]
    if len(parts) > 1:
        weights = [part.content for part in parts] if sizes.any() else [len(part.sizes) for part in parts]
        shares = apportion(missing, np.array(weights, dtype=np.int64)).tolist()
    for part, share in zip(parts, shares, strict=True):
        if share:
            part.tokens = part.tokens + apportion(share, part.sizes)
    return missing


def _long(sizes: Int64s) -> bool:
    """Whether the median event (the mean of the middle two) holds more than ``MEDIAN_BYTES``."""
    middle = np.sort(sizes)[(len(sizes) - 1) // 2 : len(sizes) // 2 + 1]
    return int(middle.sum()) > MEDIAN_BYTES * len(middle)
