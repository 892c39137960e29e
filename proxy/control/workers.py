"""What each worker said, and what is known to be lost.

A worker numbers its finished requests from 1.  For every number that a worker gave out up to the last one
seen here, exactly one of these holds: it was settled by this control process; it was settled by one that
died (``settled_by_lost_control``); or it never arrived (``facts``).  What it had begun beyond that number is
``worker_lost`` once it is dead (``dead``).  Where there is no count of what it began, ``worker_lost`` is
estimated: what was in flight at its last beat, less those whose facts came after it.

``lost_in_flight`` is that estimate by backend in any case: it fits what the same beat says was assigned.

A worker is known by its id and its incarnation.  Its link may break and come back; only when another
incarnation takes its place, or it stays away for ``GRACE_NS``, is it gone.

A beat counts from the worker's start.  Of a worker that is older than this control process (or was given up
by it) only what comes after its first beat here is counted: all counters begin with the control process, and
one that is killed makes no reader's rate see a worker's whole past once more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from proxy.control.dead import Dead
from proxy.control.experiments.assigned import AssignedBook, Counts, Key, WorkerRows
from proxy.control.labels import GroupCap
from proxy.control.settle import NONE, GroupKey
from proxy.control.snapshot import BackendStats, Hist
from proxy.exporters.vocabulary import DROPPED
from proxy.link import DELAY_BOUNDS_NS, Beat, Facts, GroupNow, Hello, Waiting

if TYPE_CHECKING:
    from proxy.tally import Entry, Tally

#: A worker whose link broke reconnects every 0.2 s; after this it counts as gone.
GRACE_NS: Final = 2_000_000_000
#: So many that were given up are remembered: what they say again was settled.
_GIVEN_UP_MOST: Final = 64
#: What a beat counts that is told exactly by the numbers of the facts.
_TOLD_BY_NUMBERS: Final = "facts"

_DELAY_BOUNDS_S: Final = tuple(bound / 1e9 for bound in DELAY_BOUNDS_NS)


@dataclass(slots=True)
class Worker:
    """One incarnation of a worker."""

    worker: int
    incarnation: str
    seen: int  # the highest number settled or given up
    from_birth: bool = True  # no other control process settled anything of it
    missing: int = 0  # gaps seen in its numbers
    connected: bool = True
    gone_at_ns: int | None = None  # monotonic: when its link ended
    beat: Beat | None = None
    ended: int = 0  # requests of that beat's picture whose facts came since
    older: bool = False  # it had finished requests before its first hello here
    seen_first: bool = True  # it was not given up here before
    first: Beat | None = None  # of an older one: what it had counted by then
    rows: WorkerRows = field(default_factory=lambda: WorkerRows(older=False))
    ended_of: dict[str, int] = field(default_factory=dict)  # ``ended`` by backend
    tallied_at: int | None = None  # where it counts what it begins; None: nowhere that can be read


@dataclass(slots=True)
class Delays:
    """Cumulative counts per bucket of ``DELAY_BOUNDS_NS`` and the sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(DELAY_BOUNDS_NS) + 1))
    sum_ns: int = 0

    def add(self, counts: list[int], sum_ns: int, sign: int = 1) -> None:
        """Add a beat's histogram; one of another length is of another version and is left out."""
        if len(counts) == len(self.counts):
            self.counts = [mine + sign * more for mine, more in zip(self.counts, counts, strict=True)]
            self.sum_ns += sign * sum_ns

    def copy(self) -> Delays:
        """An independent copy."""
        return Delays(list(self.counts), self.sum_ns)

    def freeze(self) -> Hist:
        """In seconds, as readers see it."""
        return Hist(_DELAY_BOUNDS_S, tuple(self.counts), self.sum_ns / 1e9)


class Workers:
    """All workers that were ever heard of by this control process.  ``tally``: what they say they begin."""

    def __init__(self, tally: Tally | None = None) -> None:
        self._dead = Dead(tally)
        self._live: dict[int, Worker] = {}  # by worker id: the incarnation that counts
        self._given_up: dict[str, int] = {}  # what was seen of those that stayed away and may come back
        self._lost = dict.fromkeys(DROPPED, 0)
        self._past: dict[str, Delays] = {"forward": Delays(), "lag": Delays(), "blocked": Delays()}
        self._assigned = AssignedBook()
        self._before: dict[Key, int] = {}  # assigned before this control process began, where it is counted
        self._lost_at: dict[str, int] = {}  # ``worker_lost`` by backend
        self._not_copied: dict[str, int] = {}  # by shadow backend: of workers that are gone

    # ------------------------------------------------------------ what arrives

    def hello(self, hello: Hello) -> Worker:
        """A worker connected, for the first time or again."""
        known = self._live.get(hello.worker)
        if known is not None and known.incarnation != hello.incarnation:
            self._retire(known)
            known = None
        if known is None:
            seen = self._given_up.pop(hello.incarnation, None)
            older = hello.next_seq > 1
            known = Worker(hello.worker, hello.incarnation, seen or 0, seen is None, older=older)
            known.rows = WorkerRows(older)
            known.seen_first = seen is None
            self._dead.hello(known)
            self._live[hello.worker] = known
        known.connected = True
        known.gone_at_ns = None
        if hello.acked > known.seen:  # acknowledged by somebody else: a control process that is no more
            self._lost["settled_by_lost_control"] += hello.acked - known.seen
            known.seen = hello.acked
            known.from_birth = False
        return known

    def fresh(self, worker: Worker, batch: list[Facts]) -> list[Facts]:
        """Those of a batch that were not settled before; what is missing between them is counted lost."""
        out: list[Facts] = []
        for facts in batch:
            ahead = facts.seq - worker.seen
            if ahead <= 0:
                continue  # sent again after a lost acknowledgement
            if ahead > 1:
                self._lost["facts"] += ahead - 1
                worker.missing += ahead - 1
            worker.seen = facts.seq
            out.append(facts)
        beat = worker.beat
        if beat is not None:
            for facts in out:
                if facts.received_unix_ns <= beat.at_unix_ns and facts.mirror_of is None:
                    worker.ended += 1
                    name = facts.backend or ""
                    worker.ended_of[name] = worker.ended_of.get(name, 0) + 1
        return out

    def beat(self, worker: Worker, beat: Beat) -> None:
        """The latest picture replaces the one before."""
        if worker.older and worker.first is None:
            worker.first = beat
            if worker.seen_first:
                self._inherit(beat)
        worker.beat = beat
        worker.ended = 0
        worker.ended_of.clear()
        self._assigned.add(worker.rows.news(beat.assigned))

    def _inherit(self, beat: Beat) -> None:
        for row in beat.assigned:
            if row.epoch:
                key = (row.split, row.backend, row.epoch)
                self._before[key] = self._before.get(key, 0) + row.session + row.draw + row.no_key

    def left(self, worker: Worker, now_ns: int) -> None:
        """Its link ended."""
        worker.connected = False
        worker.gone_at_ns = now_ns

    def sweep(self, now_ns: int) -> None:
        """Give up those that stayed away for too long."""
        for worker in list(self._live.values()):
            if worker.gone_at_ns is not None and now_ns - worker.gone_at_ns >= GRACE_NS:
                self._retire(worker)
                del self._live[worker.worker]
                self._given_up[worker.incarnation] = worker.seen
                if len(self._given_up) > _GIVEN_UP_MOST:
                    del self._given_up[next(iter(self._given_up))]

    def settled(self, worker: Worker) -> None:
        """What ``fresh`` gave of it is booked."""
        self._dead.settled(worker)

    def look_for_dead(self, now_ns: int, read_ns: int, *, last: bool = False) -> list[Entry]:
        """Count what dead workers took along; returns those of which only a former control process heard.

        ``read_ns``: when all that had arrived was booked.  ``last``: at the end, when nothing more is read.
        """
        losses = self._dead.look(now_ns, read_ns, last=last)
        for loss in losses:
            self._lost["settled_by_lost_control"] += loss.elsewhere
            self._lost["worker_lost"] += loss.gone
        return [loss.entry for loss in losses if not loss.heard]

    def _retire(self, worker: Worker) -> None:
        beat = worker.beat
        if beat is None:
            return
        tallied = worker.tallied_at is not None
        if not beat.draining:
            if not tallied:
                in_flight = sum(group.in_flight for group in beat.groups)
                self._lost["worker_lost"] += max(in_flight - worker.ended, 0)
            for name, running in _running([beat]).items():
                lost = max(running - worker.ended_of.get(name, 0), 0)
                self._lost_at[name] = self._lost_at.get(name, 0) + lost
        if worker.from_birth and not tallied:  # what was dropped at the very end left no gap
            self._lost["facts"] += max(beat.dropped.get(_TOLD_BY_NUMBERS, 0) - worker.missing, 0)
        _add_dropped(self._lost, worker)
        _add_not_copied(self._not_copied, worker)
        _add_delays(self._past, worker)

    # ------------------------------------------------------------ what readers see

    @property
    def connected(self) -> int:
        """Workers whose link is up."""
        return sum(worker.connected for worker in self._live.values())

    def _beats(self) -> list[Beat]:
        return [worker.beat for worker in self._live.values() if worker.beat is not None]

    def dropped(self) -> dict[str, int]:
        """Everything that was given up, by what it was."""
        out = dict(self._lost)
        for worker in self._live.values():
            _add_dropped(out, worker)
        return out

    def delays(self) -> dict[str, Hist]:
        """forward, lag and blocked over all workers, those that are gone included."""
        sums = {name: delays.copy() for name, delays in self._past.items()}
        for worker in self._live.values():
            _add_delays(sums, worker)
        return {name: delays.freeze() for name, delays in sums.items()}

    def groups_now(self, cap: GroupCap) -> tuple[GroupNow, ...]:
        """The streams in flight, merged over workers under capped labels."""
        cap = cap.copy()
        merged: dict[GroupKey, GroupNow] = {}
        for beat in self._beats():
            for now in beat.groups:
                add_now(merged, cap.admit(GroupKey(now.backend or NONE, now.model or NONE, now.slo)), now)
        return tuple(merged[key] for key in sorted(merged))

    def waiting(self, cap: GroupCap) -> dict[GroupKey, list[Waiting]]:
        """Streams in flight that are overdue, a few of each worker and group, the most overdue first."""
        cap = cap.copy()
        found: dict[GroupKey, list[Waiting]] = {}
        for beat in self._beats():
            for now in beat.groups:
                if now.worst:
                    key = cap.admit(GroupKey(now.backend or NONE, now.model or NONE, now.slo))
                    found.setdefault(key, []).extend(now.worst)
        for worst in found.values():
            worst.sort(key=lambda each: each.overdue_ns, reverse=True)
        return found

    def assigned(self) -> dict[Key, Counts]:
        """What was assigned since this control process began, by (split, backend, epoch)."""
        return self._assigned.totals()

    def assigned_before(self) -> dict[Key, int]:
        """What the workers that are older had assigned in epochs before this control process began."""
        return dict(self._before)

    def in_flight(self) -> dict[str, int]:
        """Requests in flight by backend, as the last beats show them."""
        return _running(self._beats())

    def lost_in_flight(self) -> dict[str, int]:
        """``worker_lost`` by the backend that they were at."""
        return dict(self._lost_at)

    def not_copied(self) -> dict[str, int]:
        """Copies that were drawn and not begun, by shadow backend."""
        out = dict(self._not_copied)
        for worker in self._live.values():
            _add_not_copied(out, worker)
        return out

    def backends(self) -> tuple[BackendStats, ...]:
        """Each backend's pools, added up; up if any worker reaches it."""
        return merge_backends(beat for beat in self._beats())


def add_now(merged: dict[GroupKey, GroupNow], key: GroupKey, now: GroupNow) -> None:
    """Add one picture of streams in flight to what others say of the same key."""
    held = merged.setdefault(key, GroupNow(*key, 0, 0, 0, 0))
    held.in_flight += now.in_flight
    held.overdue += now.overdue
    held.missed += now.missed
    held.worst_overdue_ns = max(held.worst_overdue_ns, now.worst_overdue_ns)
    held.tokens_per_s += now.tokens_per_s
    held.awaited += now.awaited


def merge_backends(beats: Iterable[Beat]) -> tuple[BackendStats, ...]:
    """One ``BackendStats`` per name, sorted."""
    merged: dict[str, BackendStats] = {}
    for beat in beats:
        for now in beat.backends:
            held = merged.get(now.name, BackendStats(now.name, False, 0, 0, 0, 0))
            merged[now.name] = BackendStats(
                name=now.name,
                up=held.up or now.up,
                active=held.active + now.active,
                idle=held.idle + now.idle,
                connecting=held.connecting + now.connecting,
                addresses=max(held.addresses, now.addresses),
            )
    return tuple(merged[name] for name in sorted(merged))


def _running(beats: Iterable[Beat]) -> dict[str, int]:
    out: dict[str, int] = {}
    for beat in beats:
        for group in beat.groups:
            out[group.backend] = out.get(group.backend, 0) + group.in_flight
    return out


def _add_dropped(out: dict[str, int], worker: Worker) -> None:
    """Add what it gave up since it is counted here, but for what its facts' numbers tell."""
    if worker.beat is not None:
        before = {} if worker.first is None else worker.first.dropped
        for name, counted in worker.beat.dropped.items():
            if name in out and name != _TOLD_BY_NUMBERS:
                out[name] += max(counted - before.get(name, 0), 0)


def _add_not_copied(out: dict[str, int], worker: Worker) -> None:
    if worker.beat is not None:
        before = {} if worker.first is None else worker.first.mirror_dropped
        for name, counted in worker.beat.mirror_dropped.items():
            out[name] = out.get(name, 0) + max(counted - before.get(name, 0), 0)


def _add_delays(sums: dict[str, Delays], worker: Worker) -> None:
    for beat, sign in ((worker.beat, 1), (worker.first, -1)):
        if beat is not None:
            sums["forward"].add(beat.forward, beat.forward_sum_ns, sign)
            sums["lag"].add(beat.lag, beat.lag_sum_ns, sign)
            sums["blocked"].add(beat.blocked, beat.blocked_sum_ns, sign)
