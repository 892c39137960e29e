"""What one group did in one stretch of time: exact sums, histograms, and points of its miss-rate curve.

Everything in a slot is an integer: times in nanoseconds, miss rates (1 - fluidity) in billionths.  So sums
are exact, and merging is associative and commutative to the last bit, whatever the order and grouping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from scoring.outcome import Outcome, SloResult
from scoring.quantiles import rank
from scoring.sketch import LogHistogram

OUTCOMES: Final = tuple(outcome.value for outcome in Outcome)
RESULTS: Final = tuple(result.value for result in SloResult)
DEADLINES: Final = ("met", "missed", "suspect", "client_blocked")
#: Sums that are single numbers.
TOTALS: Final = ("output_tokens", "prompt_tokens", "tokens", "scored", "under_target")
#: In nanoseconds, but for ``miss_rate``: 1 - fluidity in billionths.
HISTOGRAMS: Final = (
    "ttft",
    "tbt",
    "tpot",
    "duration",
    "normalized",
    "miss_rate",
    "longest_gap",
    "least_tbt",
)
BILLION: Final = 1_000_000_000
#: The ``Dd`` of the miss-rate curve: 5 ms to 1 s, each 1.26 times the one before, to 10 us.
GRID_NS: Final = tuple(round(5_000_000 * 200 ** (point / 23) / 10_000) * 10_000 for point in range(24))
#: More than this is booked as this: 104 days in nanoseconds.  It keeps every sum packable.
_MOST: Final = 1 << 53
_MOST_WEIGHT: Final = 1 << 32  # of one sample; sums of them stay packable


class Booking(NamedTuple):
    """One settled request in plain values; ``None`` and empty where it has no such thing.

    ``gaps_ns``: int64 of shape (gaps,), the times between events with tokens; ``zero_gaps``: the gaps of 0
    within events.  ``tokens``: those that were seen to arrive.  ``miss_rates``: missed / (met + missed) for
    each ``Dd`` of ``GRID_NS``, shape (24,), NaN where no deadline counts; ``miss_weight``: for how many
    requests, itself among them, it stands in a sample.
    """

    outcome: str
    result: str
    duration_ns: int
    output_tokens: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    met: int = 0
    missed: int = 0
    suspect: int = 0
    client_blocked: int = 0
    under_target: bool = False
    ttft_ns: float | None = None
    tpot_ns: float | None = None
    normalized_ns: float | None = None
    longest_gap_ns: float | None = None
    least_tbt_ns: float | None = None
    gaps_ns: npt.NDArray[np.int64] | None = None
    zero_gaps: int = 0
    miss_rates: Sequence[float] | npt.NDArray[np.float64] | None = None
    miss_weight: int = 1


class MissCurve:
    """How the requests of a sample would have fared with each ``Dd`` of ``GRID_NS``: counts of miss rates.

    Each counts as many times as there are requests for which it stands, so that busy times and groups weigh
    what they are; ``samples`` are those that were computed.  Row: ``Dd``.  Columns: none missed; ``2**bits``
    equal parts of each power of two from 1/1024 up (the first takes what is smaller too); all missed.  A
    quantile is within ``relative_error`` of the sample's own.
    """

    BITS: Final = 3
    _OCTAVES: Final = 10
    __slots__ = ("bits", "counts", "samples")

    def __init__(self, bits: int = BITS) -> None:
        self.bits = bits
        self.samples = 0
        self.counts = np.zeros((len(GRID_NS), self.columns(bits)), dtype=np.int64)

    @classmethod
    def columns(cls, bits: int) -> int:
        """How many columns there are at a resolution."""
        return (cls._OCTAVES << bits) + 2

    @property
    def relative_error(self) -> float:
        """Of miss rates from 1/1024 up; none and all are exact."""
        return 0.5 / (1 << self.bits)

    def add(self, rates: npt.NDArray[np.float64], weight: int = 1) -> None:
        """Take one request that stands for ``weight``: its miss rate by ``Dd``, NaN where it has none."""
        known = ~np.isnan(rates)
        clipped = np.clip(rates, 0.0, 1.0)[known]
        column = (clipped.view(np.int64) >> (52 - self.bits)) - ((1023 - self._OCTAVES) << self.bits) + 1
        column = np.where(clipped > 0, np.maximum(column, 1), 0)
        self.counts[np.flatnonzero(known), column] += weight
        self.samples += 1

    def merge(self, other: MissCurve) -> None:
        """Add another's counts; the coarser resolution holds for both."""
        self.lower(other.bits)
        if other.bits > self.bits:
            other = other.copy()
            other.lower(self.bits)
        self.counts += other.counts
        self.samples += other.samples

    def lower(self, bits: int) -> None:
        """Merge neighbouring columns down to this resolution; it never rises."""
        step = self.bits - bits
        if step <= 0:
            return
        parts = self.counts[:, 1:-1].reshape(len(GRID_NS), -1, 1 << step).sum(axis=2)
        self.counts = np.hstack((self.counts[:, :1], parts, self.counts[:, -1:]))
        self.bits = bits

    def copy(self) -> MissCurve:
        """One that is equal and independent."""
        made = MissCurve(self.bits)
        made.counts[:] = self.counts
        made.samples = self.samples
        return made

    def quantile(self, q: float) -> list[float | None]:
        """The q-quantile of the miss rate for each ``Dd``; ``None`` where no request has one."""
        return [self._of_row(row, q) for row in self.counts]

    def _of_row(self, row: npt.NDArray[np.int64], q: float) -> float | None:
        total = int(row.sum())
        if not total:
            return None
        column = int(np.searchsorted(row.cumsum(), rank(q, total)))
        if column == 0:
            return 0.0
        octave, part = divmod(column - 1, 1 << self.bits)
        low = 2.0 ** (octave - self._OCTAVES)
        return min(low * (1 + (part + 0.5) / (1 << self.bits)), 1.0)


class Slot:
    """The sums, histograms and curve of any number of requests."""

    __slots__ = ("curve", "deadlines", "hists", "level", "outcomes", "results", "totals")

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.results = dict.fromkeys(RESULTS, 0)
        self.deadlines = dict.fromkeys(DEADLINES, 0)
        self.totals = dict.fromkeys(TOTALS, 0)
        self.hists = {name: LogHistogram() for name in HISTOGRAMS}
        self.curve: MissCurve | None = None
        self.level = 0

    @property
    def requests(self) -> int:
        """How many requests were booked."""
        return sum(self.outcomes.values())

    @property
    def relative_error(self) -> float:
        """Quantiles of the histograms are at most this far from the true ones."""
        return self.hists["ttft"].relative_error

    @property
    def nbytes(self) -> int:
        """Memory that the slot takes, about."""
        held = sum(hist.nbytes for hist in self.hists.values())
        return _BARE_BYTES + held + (0 if self.curve is None else self.curve.counts.nbytes)

    def add(self, booking: Booking) -> None:
        """Book one request.

        ``ValueError``, and nothing booked, for an outcome or a result that is not in the closed lists, or
        miss rates that do not fit the grid.
        """
        if booking.outcome not in self.outcomes or booking.result not in self.results:
            known = ", ".join((*OUTCOMES, *RESULTS))
            raise ValueError(f"outcome {booking.outcome!r}, result {booking.result!r}: known are {known}")
        if booking.miss_rates is not None and len(booking.miss_rates) != len(GRID_NS):
            raise ValueError(f"{len(booking.miss_rates)} miss rates: one for each of {len(GRID_NS)} Dd")
        self.outcomes[booking.outcome] += 1
        self.results[booking.result] += 1
        totals, hists = self.totals, self.hists
        totals["output_tokens"] += _amount(booking.output_tokens)
        totals["prompt_tokens"] += _amount(booking.prompt_tokens)
        totals["tokens"] += _amount(booking.tokens)
        hists["duration"].add(_amount(booking.duration_ns))
        for name, value in (
            ("ttft", booking.ttft_ns),
            ("tpot", booking.tpot_ns),
            ("normalized", booking.normalized_ns),
            ("longest_gap", booking.longest_gap_ns),
        ):
            if value is not None:
                hists[name].add(_amount(value))
        if booking.gaps_ns is not None and len(booking.gaps_ns):
            try:
                hists["tbt"].add_many(booking.gaps_ns)
            except ValueError:  # negative ones, which nobody should give
                hists["tbt"].add_many(np.maximum(booking.gaps_ns, 0))
        hists["tbt"].add(0, booking.zero_gaps)
        self._add_score(booking)

    def _add_score(self, booking: Booking) -> None:
        deadlines = self.deadlines
        met, missed = _amount(booking.met), _amount(booking.missed)
        deadlines["met"] += met
        deadlines["missed"] += missed
        deadlines["suspect"] += _amount(booking.suspect)
        deadlines["client_blocked"] += _amount(booking.client_blocked)
        due = met + missed
        if due:
            self.totals["scored"] += 1
            self.totals["under_target"] += bool(booking.under_target)
            self.hists["miss_rate"].add(-(-missed * BILLION // due))  # up: a missed deadline is never none
            if booking.least_tbt_ns is not None:
                self.hists["least_tbt"].add(_amount(booking.least_tbt_ns))
        if booking.miss_rates is not None:
            if self.curve is None:
                self.curve = MissCurve()
            weight = min(max(1, _amount(booking.miss_weight)), _MOST_WEIGHT)
            self.curve.add(np.asarray(booking.miss_rates, dtype=np.float64), weight)

    def merge(self, other: Slot) -> None:
        """Add all that ``other`` booked; ``other`` stays as it is.

        The coarser level holds for all histograms, the coarser of two resolutions for the curve; a slot
        without a curve brings no samples.
        """
        self.level = max(self.level, other.level)
        for mine, theirs in zip(self.sums(), other.sums(), strict=True):
            for name, counted in theirs.items():
                mine[name] += counted
        for name, hist in other.hists.items():
            self.hists[name].merge(hist)
        if other.curve is not None:
            if self.curve is None:
                self.curve = MissCurve(other.curve.bits)
            self.curve.merge(other.curve)

    def lower(self, level: int) -> None:
        """Lower the histograms to this level and the curve with them, which from level 3 on is dropped; no
        level ever rises."""
        if level <= self.level:
            return
        self.level = level
        for hist in self.hists.values():
            hist.lower(level)
        if level >= MissCurve.BITS:
            self.curve = None
        elif self.curve is not None:
            self.curve.lower(MissCurve.BITS - level)

    def sums(self) -> tuple[dict[str, int], ...]:
        """All exact sums, in the order of the packed form."""
        return self.outcomes, self.results, self.deadlines, self.totals

    def fluidity(self, q: float) -> float | None:
        """The q-quantile of fluidity, 1 less it within ``relative_error``; ``None`` where none was scored."""
        missed = self.hists["miss_rate"]
        if not missed.count:
            return None
        rate = missed.ranked(missed.count + 1 - rank(q, missed.count))
        return None if rate is None else 1 - min(rate / BILLION, 1.0)

    def fluid_rate(self, q: float = 0.99) -> tuple[float | None, str | None]:
        """1 / the q-quantile of the least TBT deadline, in tokens per second; or ``None`` and why not."""
        scored, hist = self.totals["scored"], self.hists["least_tbt"]
        if not scored:
            return None, "no stream was scored"
        least_ns = hist.ranked(rank(q, scored))  # those without one count as infinite
        if least_ns is None:
            without = f"{scored - hist.count} of {scored} streams"
            return None, f"TTFT: {without} reach their target with no TBT deadline"
        return (BILLION / least_ns if least_ns else None), None


#: Dicts, histograms without buckets and the slot itself: measured, CPython 3.11.
_BARE_BYTES: Final = 4_000


def _amount(value: float) -> int:
    """A whole number from 0 to ``_MOST``; NaN, which nobody should give, is 0."""
    kept = min(value, _MOST)
    return round(kept) if kept > 0 else 0
