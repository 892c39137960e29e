"""The life of one experiment: what it counted here and what other hosts did, its verdict, its guardrail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from proxy.control.experiments.arms import SplitView, arms_of
from proxy.control.experiments.assigned import ZERO, Counts, Key
from proxy.control.experiments.book import CANDIDATE, CONTROL, Book, Pair, merged
from proxy.control.experiments.hanging import NOBODY, Hanging, Late
from proxy.control.experiments.spec import ExperimentSpec
from proxy.control.experiments.views import ExperimentView, State
from proxy.control.snapshot import BackendStats
from proxy.link import SplitSpec
from scoring.compare import OVERDUE, Comparison, Judged, Plan, compare, judge, occupied
from scoring.compare_sums import ALL, BUCKETS, LEAST_BUCKETS, PLACE, ArmSums, with_bad

#: A comparison is computed at most this often.
FRESH_NS: Final = 1_000_000_000
#: What was assigned before the end counts if it ends within this; then the figures are final.
SETTLING_NS: Final = 600_000_000_000
#: Metrics of which the guardrail asks whether the candidate is surely worse by the margin.
GUARDED: Final = ("good", "errors")
#: The guardrail's intervals are tightest at this size at most: who plans for a million requests does not want
#: fifty thousand to fail first.
GUARD_REQUESTS: Final = 1000
#: What keeps a metric undecided and is no doubt about the data.
_NO_DOUBT: Final = frozenset({"interval", "too_few", "no_data", "no_variance"})
_EJECTIONS_MAX: Final = 16
#: A worker's picture of what is in flight is a moment older than its counts, by a part of a second at most:
#: this part of what was assigned in the last two looks may be in flight and not in the picture.
_FRESH_PART: Final = 4


class Entry(msgspec.Struct, frozen=True):
    """What all hosts agree on of one experiment.  ``final``: its last picture, once it will not change."""

    spec: ExperimentSpec
    split: str
    by: str
    since_unix_ns: int
    state: State = "running"
    until_unix_ns: int | None = None
    ended_by: str | None = None
    ended_for: str | None = None
    final: ExperimentView | None = None

    @property
    def running(self) -> bool:
        """Whether requests are assigned in it."""
        return self.state == "running"


@dataclass(slots=True)
class Ejected:
    """A backend of the split was out, or on its way back."""

    backend: str
    since_unix_ns: int
    until_unix_ns: int | None = None


@dataclass(slots=True)
class Seen:
    """What workers say at one moment, all of it since this control process began."""

    assigned: Mapping[Key, Counts]
    in_flight: Mapping[str, int]
    lost: Mapping[str, int]
    backends: Mapping[str, BackendStats] = field(default_factory=dict)
    before: Mapping[Key, int] = field(default_factory=dict)  # assigned before it began
    late: Late = NOBODY


class Experiment:
    """One experiment on this host.

    ``split``: as this host's table has it; ``None`` where it has none that holds both.  ``seen``: what had
    been assigned, and lost, before.
    """

    def __init__(self, entry: Entry, split: SplitSpec | None, seen: Seen) -> None:
        self.entry = entry
        self.arms = (entry.spec.control, entry.spec.candidate)
        self._begins = f"{entry.spec.name}|"
        self.split = split
        self.conflict = False  # another host runs another one of this name
        self.strangers = 0  # control processes whose counts are of other terms
        self.unread = 0  # or could not be read
        self.hosts = 1
        self.unlike_file = False  # the file has other terms for it by now
        self.before = 0  # assigned before this control process began
        self.clustered = split is not None and split.sticky is not None
        self.book = Book(BUCKETS if self.clustered else 1)
        self.others: Book | None = None
        self.tripped: tuple[str, int] | None = None  # by the guardrail: what, and since when
        self.ejections: list[Ejected] = []
        self.alarming: dict[str, int] = {}  # integrity tests that alarm, since when
        self._counted = {key: counts for key, counts in seen.assigned.items() if self.place_of(key)}
        self._lost = dict(seen.lost)
        self._fresh: tuple[list[int], list[int]] = ([0, 0], [0, 0])  # assigned in the last two looks, by arm
        self._hanging = (Hanging(), Hanging())  # by arm
        self._total: Book | None = None
        self._compared: tuple[int, Comparison] | None = None

    @property
    def spec(self) -> ExperimentSpec:
        """Its terms."""
        return self.entry.spec

    @property
    def counting(self) -> bool:
        """Whether its figures may still change."""
        return self.entry.final is None

    def place_of(self, key: Key) -> tuple[str, int] | None:
        """The epoch and the arm of an assignment that counts here; ``None``: it does not."""
        split, backend, epoch = key
        if split != self.entry.split or not epoch.startswith(self._begins) or backend not in self.arms:
            return None
        return epoch, self.arms.index(backend)

    # ------------------------------------------------------------ what happens

    def see(self, seen: Seen, now_unix_ns: int) -> None:
        """About once a second: count what was assigned, and what is known to be lost."""
        new = [0, 0]
        for key, counts in seen.assigned.items():
            place = self.place_of(key)
            if place is None:
                continue
            more = counts.plus(self._counted.get(key, ZERO), -1)
            self._counted[key] = counts
            self.book.assign(*place, more)
            new[place[1]] += more.assigned
        self.before = sum(count for key, count in seen.before.items() if self.place_of(key))
        self._fresh = (self._fresh[1], new)
        self._lose(seen.lost)
        for arm, side in enumerate(self.book.sides):
            running = self._at(arm, seen.in_flight)
            fresh = (self._fresh[0][arm] + self._fresh[1][arm]) // _FRESH_PART
            side.in_flight = min(running + fresh, self._open(arm))
            side.overdue, side.hanging = self._hanging[arm].look(
                self.arms[arm], seen.late, seen.in_flight.get(self.arms[arm], 0), self._open(arm)
            )
            if not self.entry.running:
                continue
            backend = seen.backends.get(self.arms[arm])
            if backend is not None:
                side.load += seen.in_flight.get(self.arms[arm], 0) / max(backend.addresses, 1)
                side.ticks += 1
        self.stale()

    def _at(self, arm: int, by_backend: Mapping[str, int]) -> int:
        """At the arm's backend; where another may stand in for it, at any of the split's."""
        if self.split is None or not self.split.failover:
            return by_backend.get(self.arms[arm], 0)
        return sum(by_backend.get(name, 0) for name, _ in self.split.arms)

    def _open(self, arm: int) -> int:
        """Assigned, and not known to have come to any end."""
        book = self.book
        return max(book.assigned(arm) - book.recorded(arm) - book.sides[arm].lost, 0)

    def _lose(self, lost: Mapping[str, int]) -> None:
        """A worker that was killed: its requests in flight are nobody's fault, but no more than were open."""
        more = {name: max(count - self._lost.get(name, 0), 0) for name, count in lost.items()}
        self._lost = dict(lost)
        for arm, side in enumerate(self.book.sides):
            side.lost += min(self._at(arm, more), self._open(arm))

    def watch(self, view: SplitView | None, now_unix_ns: int) -> None:
        """Note which of the split's backends are out."""
        out = set() if view is None else set(view.ejected)
        for each in self.ejections:
            if each.until_unix_ns is None and each.backend not in out:
                each.until_unix_ns = now_unix_ns
        known = {each.backend for each in self.ejections if each.until_unix_ns is None}
        self.ejections += [Ejected(name, now_unix_ns) for name in sorted(out - known)]
        del self.ejections[:-_EJECTIONS_MAX]

    def guard(self, now_unix_ns: int) -> Judged | None:
        """Look at the guardrail and the integrity tests: what tripped the guardrail just now."""
        comparison = self.compare(now_unix_ns)
        alarming = {test.name for test in comparison.integrity if test.alarm}
        self.alarming = {name: self.alarming.get(name, now_unix_ns) for name in sorted(alarming)}
        if self.tripped is not None or not self.entry.running:
            return None
        for name in GUARDED:
            judged = self._guarded(comparison.metrics[name])
            if judged.beyond_margin:
                self.tripped = (name, now_unix_ns)
                return judged
        return None

    def _guarded(self, judged: Judged) -> Judged:
        """The same by the guardrail's own plan, and with what hangs: one of the two is asked, never both.

        Of what is overdue the control has all that can be its own as bad, the candidate only what must be,
        and hangs: whom both treat alike are told apart no more often than without.
        """
        plan = self.spec.plan
        doubts = {code for code in judged.reasons if code not in _NO_DOUBT}
        hangs = OVERDUE in doubts
        if (plan.requests <= GUARD_REQUESTS and not hangs) or doubts - {OVERDUE, "clusters"}:
            return judged
        pairs = [pair for pair, _ in self._epochs()]
        control, candidate = ([pair[arm] for pair in pairs] for arm in (CONTROL, CANDIDATE))
        if hangs and judged.metric == "good":  # that they fail is not known
            control = with_bad(control, self.overdue_of(CONTROL))
            candidate = with_bad(candidate, self.total().sides[CANDIDATE].hanging)
        if self.clustered and min(occupied(control), occupied(candidate)) < LEAST_BUCKETS:
            return judged
        sooner = Plan(min(plan.requests, GUARD_REQUESTS), plan.alpha, plan.margins)
        found = judge(ALL[PLACE[judged.metric]], control, candidate, sooner)
        return replace(found, reasons=(OVERDUE,)) if hangs else found

    def end(self, state: State, by: str, reason: str, at_unix_ns: int) -> None:
        """No more requests are assigned in it; those that were still count."""
        self.entry = msgspec.structs.replace(
            self.entry, state=state, until_unix_ns=at_unix_ns, ended_by=by, ended_for=reason
        )

    def settled(self, now_unix_ns: int) -> bool:
        """Whether what was assigned before its end has ended, or has had the time to."""
        until_unix_ns = self.entry.until_unix_ns
        return until_unix_ns is not None and now_unix_ns - until_unix_ns >= SETTLING_NS

    def finish(self, final: ExperimentView) -> None:
        """Keep the last picture, and let go of what it was made of."""
        self.entry = msgspec.structs.replace(self.entry, final=final)
        self.book, self.others = Book(1), None
        self.stale()

    # ------------------------------------------------------------ what is known

    def stale(self) -> None:
        """Something was counted."""
        self._total = None

    def total(self) -> Book:
        """What was counted here and elsewhere.  Not to be written to."""
        if self.others is None:
            self.book.flush()
            return self.book
        if self._total is None:
            self._total = merged([self.book, self.others], self.book.buckets)
        return self._total

    def compare(self, now_unix_ns: int) -> Comparison:
        """The comparison of all that was counted, at most a second old."""
        if self._compared is None or not 0 <= now_unix_ns - self._compared[0] < FRESH_NS:
            self.stale()
            self._compared = now_unix_ns, self._compare()
        return self._compared[1]

    def _epochs(self) -> list[tuple[Pair, float]]:
        """What is compared, with the candidate's share."""
        total = self.total()
        epochs: list[tuple[Pair, float]] = []
        for name, pair in total.epochs.items():
            share = share_of(name, self.spec)
            if (share is not None and 0 < share < 1) or all(_any(sums) for sums in pair):
                epochs.append((pair, 0.0 if share is None else share))
        if not epochs:
            epochs = [((ArmSums(total.buckets), ArmSums(total.buckets)), 0.5)]
        return epochs

    def _compare(self) -> Comparison:
        epochs = self._epochs()
        return compare(
            [pair[CONTROL] for pair, _ in epochs],
            [pair[CANDIDATE] for pair, _ in epochs],
            [share for _, share in epochs],
            self.spec.plan,
            in_flight=(self.open_of(CONTROL), self.open_of(CANDIDATE)),
            overdue=(self.overdue_of(CONTROL), self.overdue_of(CANDIDATE)),
        )

    def open_of(self, arm: int) -> int:
        """Assigned, and not recorded for no fault of the arm's: in flight, or lost with a worker."""
        side = self.total().sides[arm]
        return side.in_flight + side.lost

    def overdue_of(self, arm: int) -> int:
        """Of what all hosts were assigned: overdue, and not ended."""
        total = self.total()
        side = total.sides[arm]
        # What a control process told before it died may have been settled by its successor.
        return min(side.overdue, max(total.assigned(arm) - total.recorded(arm) - side.lost, 0))


def share_of(epoch: str, spec: ExperimentSpec) -> float | None:
    """The candidate's share of what goes to either arm; ``None``: nothing does."""
    try:
        _, weights = arms_of(epoch)
    except ValueError:
        return None
    control, candidate = weights.get(spec.control, 0), weights.get(spec.candidate, 0)
    return candidate / (control + candidate) if control + candidate else None


def _any(sums: ArmSums) -> bool:
    return sums.recorded > 0 or bool(sums.assigned.any())
