"""Requests and their copies, side by side: what mirroring tells of a shadow backend.

``Pairs`` is told of settled requests (a sink) and of settled copies (``copies``), in any order; it brings
those together that belong together and keeps sums only (``scoring.compare_pairs``).  All of it is of this
host and since this process began.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, TypeVar

from proxy.control.experiments.book import observed
from proxy.control.settle import Settled
from scoring.compare import MOST_DOUBTFUL, Plan, Verdict
from scoring.compare_pairs import Paired, PairSums, compare_pairs
from scoring.compare_sums import Observed
from scoring.outcome import Outcome

K = TypeVar("K")
V = TypeVar("V")

#: Halves that wait for the other: so many at most, so long at most.
WAITING_MOST: Final = 20_000
WAIT_NS: Final = 900_000_000_000
#: Pairs that are complete within one such stretch of time count as one, where that is the wider.
BLOCK_NS: Final = 10_000_000_000
#: Backends and shadows that are told apart; past it those go that were new the longest ago.
_KEYS_MOST: Final = 128
#: The last pairs whose ids are shown.
LAST: Final = 20
#: Intervals are tightest at this many pairs.
PLAN: Final = Plan(requests=1000)

#: Pairs that are left out for one of these are the hard ones, or one side's own: past ``MOST_DOUBTFUL`` of
#: them what is left tells of other requests than those that were sent.
DOUBTS: Final = ("unmeasured", "suspect", "rejected_by_shadow")

_TIMEOUTS: Final = frozenset({"timeout_connect", "timeout_first_byte", "timeout_idle"})


class _Half(NamedTuple):
    """What is kept of a request or a copy until the other one is there."""

    id: str
    backend: str
    shadow: str
    copy: bool
    since_ns: int  # monotonic: when it was settled
    at_unix_ns: int
    observed: Observed
    fluidity: float | None
    excluded: str | None  # why it can be in no pair that is compared
    cut: bool


class PairSeen(NamedTuple):
    """One pair that was compared; of the request and of its copy."""

    at_unix_ns: int
    id: str
    copy_id: str
    ttft_ns: float | None
    copy_ttft_ns: float | None
    fluidity: float | None
    copy_fluidity: float | None


@dataclass(slots=True)
class PairBook:
    """All pairs of one backend and one shadow.  ``excluded``: pairs that are not compared, by the reason."""

    sums: PairSums = field(default_factory=PairSums)
    excluded: Counter[str] = field(default_factory=Counter)
    cut: int = 0  # compared, though the request's client left: only in part
    last: deque[PairSeen] = field(default_factory=lambda: deque(maxlen=LAST))

    def compare(self) -> dict[str, Paired]:
        """The verdicts of now, by metric: none where too many pairs are left out."""
        found, doubts = compare_pairs(self.sums, PLAN), self.doubts()
        if not doubts:
            return found
        return {
            name: replace(
                one,
                verdict=Verdict.UNDECIDED,
                reasons=(*doubts, *(reason for reason in one.reasons if reason != "interval")),
                more_pairs=None,
            )
            for name, one in found.items()
        }

    def doubts(self) -> tuple[str, ...]:
        """Why no verdict is to be had, of ``DOUBTS``."""
        return tuple(
            reason
            for reason in DOUBTS
            if self.excluded[reason] > MOST_DOUBTFUL * (self.excluded[reason] + self.sums.pairs)
        )


@dataclass(slots=True)
class ShadowBook:
    """One shadow.  ``results``: of copies that were begun and are settled; ``unpaired``: of ``requests`` and
    ``copies`` those whose other half did not come in time."""

    results: Counter[str] = field(default_factory=Counter)
    unpaired: Counter[str] = field(default_factory=Counter)


class Pairs:
    """See the module.  ``monotonic_ns``: the clock by which halves wait and blocks are told apart."""

    def __init__(self, monotonic_ns: Callable[[], int]) -> None:
        self.books: dict[tuple[str, str], PairBook] = {}  # by (backend, shadow)
        self.shadows: dict[str, ShadowBook] = {}
        self._now_ns = monotonic_ns
        self._waiting: dict[str, _Half] = {}  # by the request's id, oldest first

    # ------------------------------------------------------------ what is told

    def __call__(self, batch: Sequence[Settled]) -> None:
        """Requests were settled: those that were copied wait for, or find, their copies."""
        for settled in batch:
            shadow = settled.facts.copied
            if shadow is not None:
                self._take(settled.facts.id, self._half(settled, shadow, copy=False))

    def copies(self, batch: Sequence[Settled]) -> None:
        """Copies were settled."""
        for settled in batch:
            facts = settled.facts
            if facts.mirror_of is not None and facts.backend is not None:
                self._shadow(facts.backend).results[result_of(settled)] += 1
                self._take(facts.mirror_of, self._half(settled, facts.backend, copy=True))

    def sweep(self) -> None:
        """About once a second: who waited in vain is given up."""
        until_ns = self._now_ns() - WAIT_NS
        while self._waiting and next(iter(self._waiting.values())).since_ns <= until_ns:
            self._give_up()

    @property
    def waiting(self) -> int:
        """Halves that wait."""
        return len(self._waiting)

    def results(self, not_copied: dict[str, int]) -> dict[tuple[str, str], int]:
        """Every copy that was drawn, by (shadow, result); ``not_copied``: those that were not begun."""
        out = {
            (shadow, result): count
            for shadow, book in self.shadows.items()
            for result, count in book.results.items()
        }
        for shadow, count in not_copied.items():
            out[shadow, "dropped"] = out.get((shadow, "dropped"), 0) + count
        return out

    def of_shadow(self, shadow: str) -> Iterator[tuple[str, PairBook]]:
        """The backends whose requests it got copies of, each with their pairs."""
        for backend, of in sorted(self.books):
            if of == shadow:
                yield backend, self.books[backend, of]

    # ------------------------------------------------------------ within

    def _half(self, settled: Settled, shadow: str, *, copy: bool) -> _Half:
        facts = settled.facts
        return _Half(
            id=facts.id,
            backend=settled.group.backend,
            shadow=shadow,
            copy=copy,
            since_ns=self._now_ns(),
            at_unix_ns=facts.received_unix_ns,
            observed=(seen := observed(settled, 0)),
            fluidity=None if settled.score is None else settled.score.fluidity,
            excluded=_why_not(settled, seen),
            cut=settled.outcome is Outcome.CLIENT_CANCELLED,
        )

    def _take(self, id: str, half: _Half) -> None:
        other = self._waiting.get(id)
        if other is None:
            self._waiting[id] = half
            if len(self._waiting) > WAITING_MOST:
                self._give_up()
        elif other.copy != half.copy:
            del self._waiting[id]
            self._pair(other if half.copy else half, half if half.copy else other)

    def _give_up(self) -> None:
        half = self._waiting.pop(next(iter(self._waiting)))
        self._shadow(half.shadow).unpaired["copies" if half.copy else "requests"] += 1

    def _pair(self, request: _Half, copy: _Half) -> None:
        book = _kept(self.books, (request.backend, copy.backend), PairBook)
        reason = request.excluded or copy.excluded or _rejected(request, copy)
        if reason is not None:
            book.excluded[reason] += 1
            return
        book.sums.add(request.observed, copy.observed, self._now_ns() // BLOCK_NS, cut=request.cut)
        book.cut += request.cut
        book.last.append(
            PairSeen(
                request.at_unix_ns,
                request.id,
                copy.id,
                request.observed.ttft_ns,
                copy.observed.ttft_ns,
                request.fluidity,
                copy.fluidity,
            )
        )

    def _shadow(self, name: str) -> ShadowBook:
        return _kept(self.shadows, name, ShadowBook)


def result_of(settled: Settled) -> str:
    """What became of a copy: ``vocabulary.MIRRORED``."""
    end, error = settled.facts.end, settled.facts.error
    if end == "complete":
        return "completed" if settled.outcome is Outcome.COMPLETED else "failed"
    if end in _TIMEOUTS or error == "copy_timeout":
        return "timeout"
    return "dropped" if end == "self" else "failed"


def _why_not(settled: Settled, seen: Observed) -> str | None:
    """Why this half can be compared with nothing: we, or a client that read slowly, had a part in it."""
    if settled.outcome is Outcome.PROXY_ERROR:
        return "given_up"
    if seen.unmeasured:
        return "unmeasured"
    if seen.suspect:
        return "suspect"
    return "blocked" if settled.facts.blocked else None


def _rejected(request: _Half, copy: _Half) -> str | None:
    """A 4xx is in no metric; one of the shadow alone is a difference all the same, and is told by itself."""
    if request.observed.outcome == Outcome.REJECTED:
        return "rejected"
    return "rejected_by_shadow" if copy.observed.outcome == Outcome.REJECTED else None


def _kept(held: dict[K, V], key: K, make: Callable[[], V]) -> V:
    found = held.get(key)
    if found is None:
        found = held[key] = make()
        if len(held) > _KEYS_MOST:
            del held[next(iter(held))]
    return found
