"""One choice's arrivals and its score while it streams: a ``Track``.

Arrivals are pairs ``at_ns, meta`` in one ``array('q')`` (16 bytes an event), the layout of
``link.Stream``.  The score is METRICS' closed form with one number carried, ``due_ns``, the deadline of
the next token: with n tokens so far it is ``peak + n * tbt``, so "late" is ``at > due``; a late token
starts the deadlines afresh from itself.

The number of arrivals is capped.  At the cap neighbours are merged two by two, a segment at a time (the
streams beside this one must not wait for it), but for the first: the pair's tokens and bytes are added up
and stand at the *later* stamp, so that no token is ever shown earlier than it came.  Merging still can
hide a record of the running maximum behind its neighbour, so no rule keeps the score: the exact one, kept
here, travels beside the arrivals (``link.ChoiceScore``), and the longest gap is taken before its
neighbours are merged.
"""

from __future__ import annotations

import sys
from array import array
from operator import add, sub
from typing import Final

from proxy.link import META_TOKENS_BITS, META_TOKENS_MAX, ChoiceScore

_LEAST_CAP: Final = 8
_STEP: Final = 500
_SIZE_MAX: Final = 1 << 24  # of one event, beyond the framing's own bound: sums of them fit for ever


class Track:
    """See the module.  Times are nanoseconds relative to t = 0.

    ``room``: events until the next thinning.  It is the only counter that the tap's fast path touches:
    ``events`` and ``tokens`` are told from it.
    """

    __slots__ = (
        "_arrivals",
        "_cap",
        "_cursor",
        "_events_before",
        "_extra_tokens",
        "_longest_gap_ns",
        "_raw_from",
        "_refill",
        "_step",
        "_text_bytes",
        "_worst",
        "append",
        "due_ns",
        "finish",
        "late",
        "late_ns",
        "missed",
        "pending",
        "room",
        "tbt_ns",
        "thinned",
    )

    def __init__(self, ttft_ns: int, tbt_ns: int, cap: int) -> None:
        self._arrivals = array("q")
        self.append = self._arrivals.append
        self.due_ns = ttft_ns
        self.tbt_ns = tbt_ns
        self._cap = max(cap, _LEAST_CAP)
        self.room = self._refill = self._cap
        self._events_before = 0  # events up to the last thinning
        self._extra_tokens = 0  # tokens beyond one per event
        self._step = min((self._cap - 1) // 4, _STEP)  # pairs merged at once
        self._cursor = 2  # where in the array the next merging goes on; the first event stays as it is
        self._raw_from = 2  # where unmerged stamps begin
        self.late = 0
        self.missed = 0
        self.late_ns = 0
        self._worst = (0, 0, 0)  # (start of its gap, late_ns, missed)
        self._longest_gap_ns = 0
        self.thinned = False
        self.pending = 0  # tokens that events without output brought: they are seen with the next output
        self.finish: str | None = None
        self._text_bytes = 0  # so far, where events repeat all of the text

    @property
    def events(self) -> int:
        """Events that brought tokens."""
        return self._events_before + self._refill - self.room

    @property
    def tokens(self) -> int:
        """Tokens so far."""
        return self._events_before + self._refill - self.room + self._extra_tokens

    def arrive(self, at_ns: int, tokens: int, size: int) -> None:
        """``tokens`` (at least one) with ``size`` bytes of content came at ``at_ns``."""
        if at_ns > self.due_ns:
            self.late_at(at_ns)
        self.due_ns += tokens * self.tbt_ns
        self._extra_tokens += tokens - 1
        self.append(at_ns)
        self.append(min(size, _SIZE_MAX) << META_TOKENS_BITS | min(tokens, META_TOKENS_MAX))
        self.room -= 1
        if not self.room:
            self.thin()

    def growth(self, text_bytes: int) -> int:
        """How much is new of a text that every event repeats from its beginning."""
        grown = max(text_bytes - self._text_bytes, 0)
        self._text_bytes = text_bytes
        return grown

    def late_at(self, at_ns: int) -> None:
        """The token that comes now is late: count the deadlines that passed, let them start afresh."""
        late_ns = at_ns - self.due_ns
        missed = late_ns // self.tbt_ns + 1
        self.late += 1
        self.missed += missed
        self.late_ns += late_ns
        self.due_ns = at_ns
        if late_ns > self._worst[1]:
            self._worst = (self._arrivals[-2] if self._arrivals else 0, late_ns, missed)

    def overdue_ns(self, now_ns: int) -> int:
        """How long the next token is overdue; 0 or less: it is not."""
        return now_ns - self.due_ns

    def missed_by(self, now_ns: int) -> int:
        """Deadlines missed, those included that have passed for the next token."""
        over = now_ns - self.due_ns
        return self.missed + (over // self.tbt_ns + 1 if over > 0 else 0)

    def thin(self) -> None:
        """Merge the neighbours of one segment two by two, in C: some 0.1 ms, whatever the cap."""
        kept = self._arrivals
        begin, pairs = self._segment()
        end = begin + 4 * pairs
        raw = begin >= self._raw_from
        if raw:
            self._note_gaps(end)
        segment = kept[begin:end]
        merged = array("q", bytes(16 * pairs))
        merged[0::2] = segment[2::4]
        # While all tokens together fit into a meta's bits, so does every pair's sum.
        add_metas = add if self.tokens <= META_TOKENS_MAX else _add_metas
        merged[1::2] = array("q", map(add_metas, segment[1::4], segment[3::4]))
        kept[begin:end] = merged  # in place: ``append`` stays bound to it
        self._events_before += self._refill
        self._refill = self.room = self._cap - len(kept) // 2
        self._cursor = begin + 2 * pairs
        self._raw_from = self._cursor if raw else self._raw_from - 2 * pairs
        self.thinned = True

    def _segment(self) -> tuple[int, int]:
        """Where to merge next (an index, and a number of pairs): a sweep over what was merged already, then
        one over what came since, and again from the second event; never across the border of the two."""
        step, most = self._step, (0, 0)
        for begin in (self._cursor, self._raw_from, 2):
            end = self._raw_from if begin < self._raw_from else len(self._arrivals)
            pairs = min((end - begin) // 4, step)
            if pairs == step:
                return begin, pairs
            most = max(most, (pairs, begin))
        return most[1], most[0]

    def _note_gaps(self, end: int) -> None:
        """Remember the longest gap that ends in the unmerged stamps up to ``end``."""
        stamps = self._arrivals[max(self._raw_from - 2, 0) : end : 2]
        if len(stamps) > 1:
            self._longest_gap_ns = max(self._longest_gap_ns, max(map(sub, stamps[1:], stamps)))

    def packed(self) -> bytes:
        """The arrivals, little-endian."""
        if sys.byteorder == "big":
            swapped = self._arrivals[:]
            swapped.byteswap()
            return swapped.tobytes()
        return self._arrivals.tobytes()

    def score(self) -> ChoiceScore:
        """What was kept online, exact."""
        if self.thinned:
            self._note_gaps(len(self._arrivals))
        return ChoiceScore(
            self.tokens,
            self.late,
            self.missed,
            self.late_ns,
            self.due_ns,
            *self._worst,
            self._longest_gap_ns,
            self.finish is not None,
        )


def _add_metas(one: int, other: int) -> int:
    mask = META_TOKENS_MAX
    tokens = min((one & mask) + (other & mask), mask)
    return (one >> META_TOKENS_BITS) + (other >> META_TOKENS_BITS) << META_TOKENS_BITS | tokens
