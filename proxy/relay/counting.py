"""How many tokens one event brought, by the surest thing that the event itself says.

Token ids > log probabilities > the growth of running usage > one for each event that carried output.

Running usage is usage on events that are not the last (vLLM's ``continuous_usage_stats``, llama.cpp's
``timings_per_token``).  It is believed from its first growth on; its growth since the last output belongs
to the event that brings the next.  Reported reasoning tokens that were never streamed are hidden: they are
taken off, since spread over the visible ones they would buy slack that nobody saw.  A number that stands
still while output comes is not running, and is given up for one per event.
"""

from __future__ import annotations

from typing import Final

from proxy.link import Usage
from proxy.relay.arrivals import Track
from proxy.relay.dialects.base import EVENTS, RANKS, REASONING, RUNNING_USAGE, Output

_SOURCE: Final = {rank: source for source, rank in RANKS.items()}
_UNCOUNTED: Final = 4
_STILL_MAX: Final = 8


class Counter:
    """Counts for one stream.

    ``rank``: the least sure way by which any of its tokens was counted.  ``several``: some event told more
    than one.  ``burst``: by how many the running usage grew at most; as many events may follow with the same
    number (llama.cpp's speculation sends the tokens of a step one by one, each with the step's total).
    """

    __slots__ = ("_running", "_seen", "_still", "_streams_reasoning", "burst", "rank", "several")

    def __init__(self) -> None:
        self.rank = _UNCOUNTED
        self._running: bool | None = None  # None: not seen yet; False: given up
        self._still = 0  # outputs in a row for which the usage did not grow
        self._seen = 0  # tokens at the last of them
        self.burst = 0
        self._streams_reasoning = False
        self.several = False

    @property
    def source(self) -> str:
        """The record's ``tokens_source``."""
        return _SOURCE.get(self.rank, EVENTS)

    def tokens(self, output: Output, usage: Usage | None, track: Track) -> int:
        """Tokens of one output.  ``usage``: what the event reports so far of this one choice, if it does."""
        if output.kind & REASONING:
            self._streams_reasoning = True
        if output.tokens >= 0:
            tokens, source = output.tokens, output.source
        else:
            growth = None if usage is None else self._growth(output, usage, track)
            if growth is not None:
                tokens, source = growth, RUNNING_USAGE
            else:
                tokens, source = 1 if output.kind else 0, EVENTS
        if tokens > 1:
            self.several = True
        if output.kind:
            self.rank = min(self.rank, RANKS[source])
            if not track.tokens and not track.pending:
                tokens = max(tokens, 1)  # output did come
        return tokens

    def _growth(self, output: Output, usage: Usage, track: Track) -> int | None:
        """Tokens beyond those counted, by running usage; ``None``: the usage is not running."""
        reported = usage.output
        if reported is None or self._running is False:
            return None
        if usage.reasoning and not self._streams_reasoning:
            reported = max(reported - usage.reasoning, 0)
        counted = track.tokens + track.pending
        if self._running is None:
            # A final count on the finishing event looks the same; it is running only if nothing came before.
            if not reported or (output.finish is not None and (counted or not output.kind)):
                return None
            self._running = True
        growth = reported - counted
        if growth > 0:
            self._still = 0
            self.burst = max(self.burst, growth)
            return growth
        if output.kind:
            if track.tokens != self._seen:  # it grew on the hot path in between
                self._still, self._seen = 0, track.tokens
            self._still += 1
            if self._still >= max(_STILL_MAX, self.burst):
                self._running = False
                return None
        return 0
