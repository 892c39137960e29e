"""What prefill takes, learned per backend and model from settled streams, beside the curves that are frozen.

``PrefillLearner`` (``scoring.prefill``) learns, this chooses what it may learn from, and keeps the fits: one
takes some 80 ms, so it is made on a copy in a thread, now and then, and everybody reads the last one.
Nothing that is learned here judges a request: that takes a file, which ``legato freeze`` writes.

A stream teaches if it completed, its first token was seen, and its server said how long the prompt was.  The
proxy's own share must not be learned as prefill: where reading was paused for a client before the first
token, or our loop was late when it came, by more than 2% of the time that it took, the stream is left out.
(To leave out each that a span of lateness touches would keep long prompts from ever being learned on a busy
host: in a second there is nearly always a millisecond of it.)
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Final, NamedTuple

from proxy.control.scored import excluded_of
from proxy.control.settle import MODEL_MAX, NONE, Settled
from proxy.control.snapshot import Drift
from proxy.control.windows import WindowBook
from proxy.curves import FrozenCurve, FrozenCurves
from proxy.settings.slo import LearnedTtft, Slo
from scoring.lanes import WAKING_NS
from scoring.outcome import Outcome
from scoring.prefill import Curve, PrefillLearner, drift
from scoring.sketch import LogHistogram

_log = logging.getLogger("legato.control")

#: Backends and models that are kept, by their last request; what a client calls a model is its own text.
PAIRS: Final = 64
WINDOW_NS: Final = 3_600 * 10**9
#: A fit stands for so long while requests come, and for so long where none do.
REFIT_NS: Final = 30 * 10**9
REFIT_IDLE_NS: Final = 300 * 10**9
#: As ``REFIT_NS``, where somebody asks for the curves.
ASKED_NS: Final = 2 * 10**9
#: Of the time to the first token: how much of its end our own loop may have been late.
DISTURBED: Final = 0.02


class Pair(NamedTuple):
    """Whose curve it is; ``model`` is ``""`` for requests that name none."""

    backend: str
    model: str


class Frozen(NamedTuple):
    """A curve of a file, and the SLOs that go by it."""

    file: str
    frozen_at: str
    slos: tuple[str, ...]
    curve: FrozenCurve


class Fit(NamedTuple):
    """What was known of a pair at ``at_ns`` (monotonic); ``curve`` or ``why_not`` is ``None``."""

    at_ns: int
    seen: int  # requests that had been learned from by then
    curve: Curve | None
    why_not: str | None
    tbt_p50_s: float | None
    tbt_p99_s: float | None


@dataclass(slots=True)
class Learned:
    """One pair's learner, its last fit, and how many streams taught or could not."""

    learner: PrefillLearner
    fit: Fit | None = None
    taught: int = 0
    unreported: int = 0
    disturbed: int = 0

    def due(self, now_ns: int, after_ns: int) -> bool:
        """Whether a fit would tell something new."""
        if self.fit is None:
            return True
        if self.fit.seen == self.taught:
            after_ns = REFIT_IDLE_NS  # only the window has moved on
        return now_ns - self.fit.at_ns >= after_ns

    def why_not(self, now_ns: int) -> str | None:
        """Why there is no curve, for people."""
        said = self.learner.why_not(now_ns)
        if said is not None and self.unreported > self.taught:
            said += (
                f"; {self.unreported} more did not tell their prompt's tokens: have clients ask for them "
                "(OpenAI's stream_options: {include_usage: true})"
            )
        return said


class Prefills:
    """All pairs.  ``settled`` for each settled request, ``refresh`` about once a second, the rest to read.

    ``windows``: where the times between tokens are; both clocks are the controller's.
    """

    def __init__(
        self, windows: WindowBook, *, unix_ns: Callable[[], int], monotonic_ns: Callable[[], int]
    ) -> None:
        self.pairs: OrderedDict[Pair, Learned] = OrderedDict()
        self.frozen: Mapping[Pair, tuple[Frozen, ...]] = {}
        self._windows = windows
        self._unix_ns = unix_ns
        self._monotonic_ns = monotonic_ns
        self._drifts: tuple[Drift, ...] = ()
        self._fitting = asyncio.Lock()

    # ------------------------------------------------------------ learning

    def settled(self, settled: Settled) -> None:
        """A request ended: learn from it if it tells what prefill took."""
        score, facts = settled.score, settled.facts
        if score is None or score.ttft_ns is None or settled.outcome is not Outcome.COMPLETED:
            return
        if facts.backend is None or len(facts.model or "") > MODEL_MAX:
            return
        learned = self._learned(Pair(facts.backend, facts.model or ""))
        usage = settled.usage
        if not usage.prompt:
            learned.unreported += 1
        elif (facts.lags or facts.blocked) and _disturbed(settled, score.ttft_ns):
            learned.disturbed += 1
        elif learned.learner.add(self._monotonic_ns(), usage.prompt, usage.cached, score.ttft_ns):
            learned.taught += 1

    def _learned(self, pair: Pair) -> Learned:
        learned = self.pairs.get(pair)
        if learned is None:
            learned = self.pairs[pair] = Learned(PrefillLearner(window_ns=WINDOW_NS))
            if len(self.pairs) > PAIRS:
                gone, _ = self.pairs.popitem(last=False)
                if gone in self.frozen:
                    self._compare()
        self.pairs.move_to_end(pair)
        return learned

    # ------------------------------------------------------------ fitting

    async def refresh(self, *, asked: bool = False) -> None:
        """Fit what is due: the one that waits longest, or, where somebody asked for curves, all of them."""
        if self._fitting.locked() and not asked:
            return  # the caller has other duties
        async with self._fitting:
            now_ns = self._monotonic_ns()
            after_ns = ASKED_NS if asked else REFIT_NS
            due = [pair for pair, learned in self.pairs.items() if learned.due(now_ns, after_ns)]
            due.sort(key=self._fitted_at_ns)
            for pair in due if asked else due[:1]:
                await self._fit(pair)
            if due:
                self._compare()

    def _fitted_at_ns(self, pair: Pair) -> int:
        fit = self.pairs[pair].fit
        return -1 if fit is None else fit.at_ns

    async def _fit(self, pair: Pair) -> None:
        learned = self.pairs.get(pair)
        if learned is None:
            return  # it left while another was fitted
        now_ns, seen = self._monotonic_ns(), learned.taught
        curve, why_not = None, learned.why_not(now_ns)
        if why_not is None:
            try:
                # On a copy (a millisecond), since the learner goes on learning meanwhile.
                curve = await asyncio.to_thread(deepcopy(learned.learner).curve, now_ns)
            except Exception as error:  # what cannot be fitted must not end the control process
                why_not = f"the fit failed: {type(error).__name__}"
                _log.exception("the prefill curve of backend %s could not be fitted", pair.backend)
        learned.fit = Fit(now_ns, seen, curve, why_not, *self._tbt(pair))

    def _tbt(self, pair: Pair) -> tuple[float | None, float | None]:
        """The median and the 99th percentile of the window's times between tokens, in seconds."""
        label = pair.model or NONE
        keys = [key for key in self._windows.keys if (key.backend, key.model) == (pair.backend, label)]
        if not keys:
            return None, None  # under ``other``, if anywhere
        now_ns = self._unix_ns()
        gaps = self._windows.windows.view(keys, now_ns - WINDOW_NS, now_ns + 1).slot.hists["tbt"]
        return _quantile_s(gaps, 0.5), _quantile_s(gaps, 0.99)

    # ------------------------------------------------------------ comparing

    def freeze(self, slos: Iterable[Slo]) -> None:
        """The curves that the configuration in force names; the first SLO's file comes first."""
        self.frozen = frozen_of(slos)
        self._compare()

    def _compare(self) -> None:
        drifts = []
        for pair, held in self.frozen.items():
            learned = self.pairs.get(pair)
            if learned is not None and learned.fit is not None:
                drifts.append(drift_of(pair, learned.fit, held[0]))
        self._drifts = tuple(each for each in drifts if each.known)

    @property
    def drifts(self) -> tuple[Drift, ...]:
        """Where there are both: the live curve of each pair over the frozen one."""
        return self._drifts


def frozen_of(slos: Iterable[Slo]) -> dict[Pair, tuple[Frozen, ...]]:
    """The curves that these SLOs go by, by pair; each file once, in the SLOs' order."""
    files: dict[str, tuple[FrozenCurves, list[str]]] = {}
    for slo in slos:
        if isinstance(slo.ttft, LearnedTtft) and slo.ttft.frozen is not None:
            files.setdefault(slo.ttft.learned, (slo.ttft.frozen, []))[1].append(slo.name)
    out: dict[Pair, tuple[Frozen, ...]] = {}
    for file, (held, names) in files.items():
        for each in held.curves:
            pair = Pair(each.backend, each.model)
            out[pair] = (*out.get(pair, ()), Frozen(file, held.frozen_at, tuple(names), each))
    return out


def drift_of(pair: Pair, fit: Fit, frozen: Frozen) -> Drift:
    """How many times slower than frozen; a ratio is left out where either side has no value."""
    then = frozen.curve
    prefill = None if fit.curve is None else drift(fit.curve, then.curve)
    tbt = {"p50": _over(fit.tbt_p50_s, then.tbt_p50_s), "p99": _over(fit.tbt_p99_s, then.tbt_p99_s)}
    known = {at: ratio for at, ratio in tbt.items() if ratio is not None}
    return Drift(pair.backend, pair.model or NONE, prefill, known)


def _over(live: float | None, frozen: float | None) -> float | None:
    return live / frozen if live is not None and frozen else None


def _quantile_s(hist: LogHistogram, q: float) -> float | None:
    found = hist.quantile(q)
    return None if found is None else found / 1e9


def _disturbed(settled: Settled, ttft_ns: int) -> bool:
    """Whether what would be learned is in part the client's or the proxy's own time.

    As the scorer has it, only lateness counts that lasted until the token came.
    """
    late_ns, reached_ns = 0, ttft_ns
    for from_ns, to_ns, reason in sorted(excluded_of(settled.facts), key=lambda each: -each.to_ns):
        if reason == "client_blocked":
            if from_ns < ttft_ns and to_ns > 0:
                return True
        elif to_ns >= reached_ns - WAKING_NS:
            from_ns = min(max(from_ns, 0), reached_ns)
            late_ns += max(0, min(to_ns, reached_ns) - from_ns)
            reached_ns = from_ns
    return late_ns > DISTURBED * ttft_ns
