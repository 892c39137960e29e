"""What this host sees by itself: speeds against frozen ones, backends that are away, experiments, itself.

Each is a ``Verdict`` as the rules over slots give them; in a fleet hosts tell each other theirs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple, Protocol

from proxy.control.alerts.judge import Verdict
from proxy.control.alerts.rules import DOWN, EXPERIMENT, PROXY, SEVERITY, Rules
from proxy.control.core import Controller
from proxy.control.experiments.health import TRIED_NS
from proxy.control.prefills import Pair, Prefills
from proxy.control.settle import NONE
from proxy.control.snapshot import Snapshot
from proxy.control.windows import WindowBook
from scoring.alarm_live import Speeds
from scoring.alarm_rule import Evaluation

_S: Final = 1_000_000_000
#: Gaps of so long are compared with frozen ones; a fresh look each 30 s, since it reads many slots.
_FIVE_MINUTES_NS: Final = 300 * _S
LOOK_NS: Final = 30 * _S
#: Loop lag, share of streams that are not measured, and how long an exporter or Redis may be in trouble.
LAG_S: Final = 0.05
UNMEASURED: Final = 0.05
#: Not measured because somebody wanted it so, or because there was nothing.
_NO_FAULT: Final = frozenset({"switched_off", "no_tokens"})
#: What is let go in ordinary times: arrivals of very long streams are thinned.
_ORDINARY: Final = frozenset({"arrivals"})
#: Fewer streams than these say nothing of a share.
_STREAMS: Final = 20
TROUBLE_S: Final = 300


class Down(Protocol):
    """A backend that cannot be reached."""

    @property
    def backend(self) -> str: ...
    @property
    def tried_unix_ns(self) -> int: ...


class _Down(NamedTuple):
    backend: str
    tried_unix_ns: int


class ExperimentAlarm(Protocol):
    """What an experiment warns of."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def what(self) -> str: ...


class Signals:
    """See the module.  ``judge`` once in 10 s, with the wall clock's time."""

    def __init__(
        self,
        controller: Controller,
        *,
        down: Callable[[], Iterable[Down]] | None = None,
        experiments: Callable[[], Iterable[ExperimentAlarm]] = tuple,
    ) -> None:
        self._controller = controller
        self._down = down or (lambda: _unreached(controller))
        self._experiments = experiments
        self._self = Itself()
        self._speeds: dict[Pair, Speeds] = {}
        self._looked_ns: int | None = None

    def judge(self, rules: Rules, now_ns: int) -> Iterator[Verdict]:
        """Everything but what the slots tell."""
        if "drift" in rules.on:
            yield from self._drift(rules, now_ns)
        if "backend_down" in rules.on:
            yield from self._backends()
        if "experiment" in rules.on:
            for alarm in self._experiments():
                labels = (("experiment", alarm.name), ("kind", alarm.kind))
                said = Evaluation(True, False, 1.0, 1.0, {}, alarm.what)
                severity = "page" if alarm.kind == "guardrail" else SEVERITY["experiment"]
                yield Verdict("experiment", labels, severity, EXPERIMENT, said)
        if "proxy" in rules.on:
            seen = self._controller.snapshot() if self._self.due(now_ns) else None
            for what, said in self._self.judge(seen, now_ns):
                labels = (("host", self._controller.instance), ("what", what))
                yield Verdict("proxy", labels, SEVERITY["proxy"], PROXY, said)

    def _drift(self, rules: Rules, now_ns: int) -> Iterator[Verdict]:
        prefills = self._controller.prefills
        if self._looked_ns is None or not 0 <= now_ns - self._looked_ns < LOOK_NS:
            self._looked_ns = now_ns
            self._speeds = dict(speeds(prefills, self._controller.windows, self._controller.now_unix_ns()))
        for pair in sorted(prefills.frozen):
            labels = (("backend", pair.backend), ("model", pair.model or NONE))
            said = rules.drift.evaluate(self._speeds.get(pair, Speeds(None, None, None, 0)))
            yield Verdict("drift", labels, SEVERITY["drift"], rules.drift.hold, said)

    def _backends(self) -> Iterator[Verdict]:
        now_ns = self._controller.now_unix_ns()
        down = {each.backend: each.tried_unix_ns for each in self._down()}
        for spec in self._controller.table.backends:
            said = Evaluation(False, True, 0.0, 1.0, {}, "it is reached")
            if (tried_ns := down.get(spec.name)) is not None:
                said = self._unreached(now_ns - tried_ns)
            yield Verdict("backend_down", (("backend", spec.name),), SEVERITY["backend_down"], DOWN, said)

    def _unreached(self, ago_ns: int) -> Evaluation:
        """A host that tries no more must not hold back for ever what others see of that backend."""
        if ago_ns > TRIED_NS:
            return Evaluation(False, False, None, 1.0, {}, "nobody has tried to connect for five minutes")
        why = f"no worker on {self._controller.instance} could connect to it"
        return Evaluation(True, False, 1.0, 1.0, {}, why)


def _unreached(controller: Controller) -> Iterator[Down]:
    """Backends whose last connection attempt failed in every worker."""
    for backend in controller.workers.backends():
        if not backend.up:
            yield _Down(backend.name, controller.now_unix_ns())


def speeds(prefills: Prefills, windows: WindowBook, now_ns: int) -> Iterator[tuple[Pair, Speeds]]:
    """How many times slower than frozen each pair with a frozen curve is now."""
    prefill = {(each.backend, each.model): each.prefill for each in prefills.drifts}
    for pair, held in prefills.frozen.items():
        label = (pair.backend, pair.model or NONE)
        keys = [key for key in windows.keys if (key.backend, key.model) == label]
        if not keys:
            continue
        slot = windows.windows.view(keys, now_ns - _FIVE_MINUTES_NS, now_ns + 1).slot
        gaps, then = slot.hists["tbt"], held[0].curve
        p50, p99 = gaps.quantile(0.5), gaps.quantile(0.99)
        yield (
            pair,
            Speeds(
                prefill.get(label),
                _over(p50, then.tbt_p50_s),
                _over(p99, then.tbt_p99_s),
                slot.totals["scored"],
            ),
        )


def _over(now_ns: float | None, then_s: float | None) -> float | None:
    return now_ns / 1e9 / then_s if now_ns is not None and then_s else None


class _Seen(NamedTuple):
    """Counters at one look; ``lag``: counts per bucket."""

    at_ns: int
    lag: tuple[int, ...]
    bounds: tuple[float, ...]
    dropped: int
    unmeasured: int
    streams: int
    failures: Mapping[str, int]
    redis_up: bool | None


class Itself:
    """Legato's own health, from its counters of the last minutes.  A look a half minute, ten kept."""

    def __init__(self) -> None:
        self._looks: deque[_Seen] = deque(maxlen=12)

    def due(self, now_ns: int) -> bool:
        """Whether a fresh snapshot is wanted: it costs some milliseconds."""
        return not self._looks or not 0 <= now_ns - self._looks[-1].at_ns < LOOK_NS

    def judge(self, snapshot: Snapshot | None, now_ns: int) -> Iterator[tuple[str, Evaluation]]:
        """What is wrong, and what is not, by one word each."""
        if snapshot is not None:
            if self._looks and now_ns < self._looks[-1].at_ns:
                self._looks.clear()  # the clock went back
            self._looks.append(_seen(snapshot, now_ns))
        if not self._looks:
            return
        now = self._looks[-1]
        minutes = self._since(now, 120)
        yield "lag", _lag(now, minutes)
        dropped = now.dropped - minutes.dropped
        yield "dropped", _said(dropped > 0, dropped, 1, f"{dropped} records were dropped in two minutes")
        yield "unmeasured", _unmeasured(now, minutes)
        yield "exporters", self._failing(now)
        if now.redis_up is not None:
            yield "redis", self._redis(now)

    def _since(self, now: _Seen, seconds: float) -> _Seen:
        """The youngest look that is at least so old, or the oldest."""
        old = [each for each in self._looks if now.at_ns - each.at_ns >= seconds * _S]
        return old[-1] if old else self._looks[0]

    def _long_enough(self, now: _Seen) -> list[_Seen] | None:
        """The looks of the last five minutes; ``None``: there are not so many."""
        if now.at_ns - self._looks[0].at_ns < TROUBLE_S * _S:
            return None
        return [each for each in self._looks if now.at_ns - each.at_ns <= (TROUBLE_S + 30) * _S]

    def _failing(self, now: _Seen) -> Evaluation:
        looks = self._long_enough(now)
        if looks is None:
            return _said(False, 0, 1, "")
        for name in sorted(now.failures):
            counts = [each.failures.get(name, 0) for each in looks]
            minutes = [after > before for before, after in zip(counts[::2], counts[2::2], strict=False)]
            if minutes and all(minutes):  # some in every minute
                more = counts[-1] - counts[0]
                return _said(True, more, 1, f"exporting by {name} failed {more} times in five minutes")
        return _said(False, 0, 1, "exporters work")

    def _redis(self, now: _Seen) -> Evaluation:
        looks = self._long_enough(now)
        away = looks is not None and not any(each.redis_up for each in looks)
        return _said(away, float(away), 1, "Redis has been away for five minutes: this host tells by itself")


def _seen(snapshot: Snapshot, now_ns: int) -> _Seen:
    return _Seen(
        now_ns,
        snapshot.lag.counts,
        snapshot.lag.bounds,
        sum(count for what, count in snapshot.dropped.items() if what not in _ORDINARY),
        sum(count for why, count in snapshot.unmeasured.items() if why not in _NO_FAULT),
        sum(group.hists["legato_fluidity_ratio"].count for group in snapshot.groups),
        dict(snapshot.export_failures),
        None if snapshot.redis is None else snapshot.redis.up,
    )


def _lag(now: _Seen, before: _Seen) -> Evaluation:
    counts = [max(a - b, 0) for a, b in zip(now.lag, before.lag, strict=True)]
    total = sum(counts)
    if not total:
        return Evaluation(False, False, None, LAG_S, {}, "nothing was measured")
    so_far, p99_s = 0, now.bounds[-1]
    for bound, count in zip((*now.bounds, now.bounds[-1]), counts, strict=True):
        so_far += count
        if so_far >= 0.99 * total:
            p99_s = bound
            break
    fires = p99_s > LAG_S
    reason = f"the event loop was late by up to {p99_s * 1e3:.0f} ms (99% of two minutes)"
    return Evaluation(fires, not fires, p99_s, LAG_S, {"lag_p99_s": p99_s}, reason)


def _unmeasured(now: _Seen, before: _Seen) -> Evaluation:
    lost, streams = now.unmeasured - before.unmeasured, now.streams - before.streams
    total = lost + streams
    if total < _STREAMS:
        return Evaluation(False, True, None, UNMEASURED, {}, "too few streams")
    share = lost / total
    fires = share > UNMEASURED
    reason = f"{lost} of {total} streams of two minutes were not measured"
    return Evaluation(fires, share < UNMEASURED / 2, share, UNMEASURED, {"streams": total}, reason)


def _said(fires: bool, value: float, threshold: float, reason: str) -> Evaluation:
    return Evaluation(fires, not fires, float(value), float(threshold), {}, reason)
