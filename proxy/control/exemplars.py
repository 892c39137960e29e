"""Histograms tell one request each bucket whose trace was kept: from a slow bucket to what happened in it.

A sink like the others, to be called after the one that decides which traces are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from string import hexdigits
from typing import Final

from proxy.control.ledger import DURATION, FLUIDITY, LONGEST_GAP, TBT, TTFT, Ledger
from proxy.control.settle import Settled

_HEX: Final = frozenset(hexdigits)


class Exemplars:
    """Per group, histogram and bucket the latest kept trace, so at most as many as there are buckets."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __call__(self, batch: Sequence[Settled], /) -> None:
        """Take those of a batch that was booked already."""
        for settled in batch:
            shown = shown_by(settled)
            book = None if shown is None else self._ledger.book_of(settled)
            if shown is None or book is None:
                continue
            for name, value in _observed(settled):
                book.hists[name].exemplify(value, *shown)


def shown_by(settled: Settled) -> tuple[int, str, str] | None:
    """When the request ended (unix nanoseconds), and trace and span, where these are kept."""
    facts, span_id = settled.facts, settled.kept_span
    if span_id is None or not _is_id(span_id, 16) or not _is_id(facts.trace_id, 32):
        return None
    return facts.received_unix_ns + facts.end_ns - facts.received_ns, str(facts.trace_id), span_id


def _observed(settled: Settled) -> Iterator[tuple[str, float]]:
    """What the ledger counted of it, one value a histogram; of the times between tokens the longest."""
    yield DURATION, max(settled.duration_ns, 0) / 1e9
    score = settled.score
    if score is None:
        return
    if score.ttft_ns is not None:
        yield TTFT, score.ttft_ns / 1e9
    if score.tbt is not None:
        yield TBT, score.tbt.max_ns / 1e9
        yield LONGEST_GAP, score.tbt.max_ns / 1e9
    if score.fluidity is not None:
        yield FLUIDITY, score.fluidity


def _is_id(text: str | None, digits: int) -> bool:
    """What a worker sends is only passed on as it must be: another version's mistake would spoil the page."""
    return text is not None and len(text) == digits and _HEX.issuperset(text)
