"""All experiments of this host: who starts and ends them, what reaches them, what readers see of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from msgspec.structs import replace

from proxy.control.experiments import agreed
from proxy.control.experiments.arms import Named, SplitView, checked_word
from proxy.control.experiments.experiment import Entry, Experiment, Seen
from proxy.control.experiments.explain import alarms_of, view_of
from proxy.control.experiments.hanging import late_of
from proxy.control.experiments.spec import ExperimentError, ExperimentSpec, place, spec_of
from proxy.control.experiments.views import ExperimentAlarm, ExperimentView, State
from proxy.control.experiments.weights import Weights, WeightsError
from proxy.control.experiments.words import surely_worse
from proxy.control.labels import GroupCap
from proxy.control.settle import Settled
from proxy.control.shared import Shared
from proxy.control.snapshot import ExperimentStats
from proxy.control.workers import Workers
from proxy.link import SplitSpec, Table
from proxy.settings.experiment import Experiment as ExperimentSettings
from scoring.compare import Comparison, Judged

__all__ = ["ExperimentAlarm", "ExperimentError", "ExperimentSpec", "ExperimentView", "Experiments"]

_log = logging.getLogger("legato.experiments")

#: So many that have ended stay readable, those that ended last.
ENDED_MAX: Final = 32
#: Who starts what the configuration says.
FILE: Final = "file"
_LOGGED_MOST: Final = 10
#: Only backends count here: a table has fewer, and models' names are no labels.
_GROUPS_MOST: Final = 1 << 16


class Experiments:
    """See the module.  A sink of settled requests; ``tick`` once a second, ``sync`` with other hosts."""

    def __init__(self, weights: Weights, workers: Workers, unix_ns: Callable[[], int]) -> None:
        self._weights = weights
        self._workers = workers
        self._unix_ns = unix_ns
        self._known: dict[str, Experiment] = {}
        self._from_file: str | None = None  # the name that the file has
        self._faults = 0
        self._views: tuple[int, list[ExperimentView]] | None = None
        self._hosts = agreed.Hosts()

    # ------------------------------------------------------------ beginning and ending

    def configure(self, settings: ExperimentSettings, table: Table) -> None:
        """What the file says, at the start and at each reload; ``table``: its routes.  Raises nothing."""
        for experiment in self._running():
            self._keep_placed(experiment, table)
        spec = spec_of(settings)
        if self._from_file is not None and (spec is None or spec.name != self._from_file):
            self._end(self._known.get(self._from_file), "stopped", FILE, "the file does not have it any more")
        self._from_file = None if spec is None else spec.name
        known = None if spec is None else self._known.get(spec.name)
        if spec is not None and known is None:
            try:
                self._begin(spec, FILE, table)
            except ExperimentError as error:  # what ran at run time in its split, say
                _log.error("experiment %s was not started: %s", spec.name, error)
        elif spec is not None and known is not None and known.spec != spec:
            _log.error(
                "experiment %s: its terms were fixed when it began, and the file has others: name a new one",
                spec.name,
            )
        elif known is not None and not known.entry.running:
            _log.warning("experiment %s has ended, and a name is used once: name a new one", known.spec.name)
        for each in self._known.values():
            each.unlike_file = spec is not None and spec.name == each.spec.name and spec != each.spec
        self._views = None
        self._mark()

    def start(self, spec: ExperimentSpec, author: str) -> None:
        """Begin one now.  Raises ``ExperimentError``."""
        self._begin(spec, _word(author, "started")[0], self._weights.table)
        self._mark()

    def stop(self, name: str, author: str, reason: str) -> None:
        """End one: its figures stay.  Raises ``ExperimentError``."""
        author, reason = _word(author, reason)
        experiment = self._known.get(name)
        if experiment is None:
            known = ", ".join(sorted(self._known)) or "none"
            raise ExperimentError(f"there is no experiment {name!r}"[:120], f"known are: {known}")
        if not experiment.entry.running:
            raise ExperimentError(f"experiment {name} has ended", "its figures stay as they are")
        self._end(experiment, "stopped", author, reason)
        self._mark()

    def _begin(self, spec: ExperimentSpec, author: str, table: Table) -> None:
        split = place(spec, table)
        if spec.name in self._known:
            raise ExperimentError(
                f"there is an experiment {spec.name} already", "a name is used once: choose a new one"
            )
        for other in self._running():
            if other.entry.split == split.name:
                raise ExperimentError(
                    f"split {split.name} is in experiment {other.spec.name}", "stop that one first, or wait"
                )
        self._add(Entry(spec, split.name, author, self._unix_ns()), split)
        _log.info("experiment %s began: %s against %s", spec.name, spec.candidate, spec.control)

    def _add(self, entry: Entry, split: SplitSpec | None) -> None:
        self._known[entry.spec.name] = Experiment(entry, split, self._seen())
        self._views = None

    def _keep_placed(self, experiment: Experiment, table: Table) -> None:
        """A reload may have taken an experiment's ground away."""
        try:
            split = place(replace(experiment.spec, split=experiment.entry.split), table)
        except ExperimentError as error:
            if experiment.split is not None:
                self._end(experiment, "stopped", FILE, f"the routes were changed: {error.what}"[:200])
            return
        if experiment.split is None:
            return  # it was begun elsewhere, with groups of sessions that are not known here
        if (split.sticky is not None) != experiment.clustered:
            self._end(experiment, "stopped", FILE, "the routes were changed: sticky or not")
            return
        # Those in flight may have failed over while that was allowed.
        experiment.split = replace(split, failover=split.failover or experiment.split.failover)

    def _end(self, experiment: Experiment | None, state: State, by: str, reason: str) -> None:
        if experiment is None or not experiment.entry.running:
            return
        experiment.see(self._seen(), self._unix_ns())
        experiment.end(state, by, reason, self._unix_ns())
        self._views = None
        _log.info("experiment %s %s by %s: %s", experiment.spec.name, state, by, reason)

    def _mark(self) -> None:
        """Tell the weights whose assignments are to be counted."""
        self._weights.name_epochs(
            {
                each.entry.split: Named(each.spec.name, each.spec.control, each.spec.candidate)
                for each in self._running()
                if each.split is not None
            }
        )

    def _running(self) -> list[Experiment]:
        return [each for each in self._known.values() if each.entry.running]

    # ------------------------------------------------------------ what reaches them

    def __call__(self, batch: Sequence[Settled]) -> None:
        """Settled requests."""
        for settled in batch:
            assignment = settled.facts.assignment
            if assignment is None or not assignment.epoch or assignment.by == "forced":
                continue
            experiment = self._known.get(assignment.epoch.partition("|")[0])
            if experiment is None or not experiment.counting:
                continue
            place_ = experiment.place_of((assignment.split, assignment.backend, assignment.epoch))
            if place_ is None:
                continue
            try:
                experiment.book.add(*place_, settled)
            except Exception as error:  # whatever is odd about a request, settling must go on
                experiment.book.unbooked += 1
                self._fault("a request could not be booked", error)

    def tick(self) -> None:
        """About once a second."""
        if not any(experiment.counting for experiment in self._known.values()):
            return
        now_unix_ns = self._unix_ns()
        seen = self._seen()
        splits = {view.name: view for view in self._weights.splits()}
        for experiment in list(self._known.values()):
            if not experiment.counting:
                continue
            try:
                self._look(experiment, seen, splits.get(experiment.entry.split), now_unix_ns)
            except Exception as error:  # a fault in one must not end the process, nor the others
                self._fault(f"experiment {experiment.spec.name} could not be looked at", error)
        self._forget()

    def _look(self, experiment: Experiment, seen: Seen, view: SplitView | None, now_unix_ns: int) -> None:
        experiment.see(seen, now_unix_ns)
        if experiment.entry.running:
            experiment.watch(view, now_unix_ns)
        tripped = experiment.guard(now_unix_ns)
        if tripped is not None:
            self._tripped(experiment, tripped, now_unix_ns)
        if experiment.settled(now_unix_ns):
            experiment.finish(view_of(experiment, None, now_unix_ns))
            self._views = None

    def _tripped(self, experiment: Experiment, judged: Judged, now_unix_ns: int) -> None:
        what = surely_worse(judged, experiment.spec)
        experiment.tripped = what, now_unix_ns
        _log.warning("experiment %s: %s", experiment.spec.name, what)
        if experiment.spec.abort:
            self._end(experiment, "aborted", f"experiment {experiment.spec.name}", what)
            self._mark()
            self._send_back(experiment)

    def _send_back(self, experiment: Experiment) -> None:
        """Of an aborted one: nothing to the candidate any more."""
        entry = experiment.entry
        if experiment.split is None:
            return
        view = next((each for each in self._weights.splits() if each.name == entry.split), None)
        if view is None:
            return
        arms = dict(view.file_arms if view.override is None else view.override.arms)
        weight = arms.get(experiment.spec.candidate, 0)
        arms[experiment.spec.candidate] = 0
        if not sum(arms.values()):
            arms[experiment.spec.control] = weight or 1
        try:
            self._weights.override(
                entry.split,
                arms,
                author=f"experiment {experiment.spec.name}",
                reason=(entry.ended_for or "the candidate is surely worse")[:300],
                seq_unix_ns=entry.until_unix_ns,
            )
        except WeightsError as error:
            _log.error("experiment %s was aborted, its weights stay: %s", experiment.spec.name, error)

    def _seen(self) -> Seen:
        workers = self._workers
        backends = {each.name: each for each in workers.backends()}
        return Seen(
            workers.assigned(),
            workers.in_flight(),
            workers.lost_in_flight(),
            backends,
            workers.assigned_before(),
            late_of(workers.groups_now(GroupCap(_GROUPS_MOST))),
        )

    def _forget(self) -> None:
        """Those that ended last stay."""
        ended = [each for each in self._known.values() if not each.entry.running]
        ended.sort(key=lambda each: each.entry.until_unix_ns or 0)
        for experiment in ended[: max(len(ended) - ENDED_MAX, 0)]:
            del self._known[experiment.spec.name]
            self._hosts.forget(experiment.spec.name)

    def _fault(self, what: str, error: Exception) -> None:
        self._faults += 1
        if self._faults <= _LOGGED_MOST:
            _log.error("%s: %s", what, type(error).__name__)

    # ------------------------------------------------------------ what readers see

    def views(self) -> list[ExperimentView]:
        """Each of them, the latest first; at most a second old."""
        now_unix_ns = self._unix_ns()
        if self._views is None or not 0 <= now_unix_ns - self._views[0] < 1_000_000_000:
            splits = {view.name: view for view in self._weights.splits()}
            known = sorted(self._known.values(), key=lambda each: -each.entry.since_unix_ns)
            views = [view_of(each, splits.get(each.entry.split), now_unix_ns) for each in known]
            self._views = now_unix_ns, views
        return self._views[1]

    def compare(self, name: str) -> Comparison | None:
        """One's comparison; ``None``: there is no such, or its figures are final (``views`` has them)."""
        experiment = self._known.get(name)
        if experiment is None or not experiment.counting:
            return None
        return experiment.compare(self._unix_ns())

    def alarms(self) -> list[ExperimentAlarm]:
        """What somebody should look at now."""
        now_unix_ns = self._unix_ns()
        return [alarm for each in self._known.values() for alarm in alarms_of(each, now_unix_ns)]

    def stats(self) -> tuple[ExperimentStats, ...]:
        """For metrics: the running ones' arms."""
        splits = {view.name: view for view in self._weights.splits()}
        out = []
        for each in self._running():
            view = splits.get(each.entry.split)
            weights = {} if view is None else view.arms
            whole = sum(weights.values()) or 1
            for arm, backend in enumerate(each.arms):
                share = weights.get(backend, 0) / whole
                out.append(ExperimentStats(each.spec.name, backend, share, each.book.assigned(arm)))
        return tuple(out)

    # ------------------------------------------------------------ other hosts

    async def sync(self, shared: Shared) -> None:
        """Tell other hosts what was counted here, hear what they did.  May raise ``Unshared``."""
        entries = await self._hosts.entries(shared)
        for name, entry in entries.items():
            self._adopt(name, entry)
        for experiment in list(self._known.values()):
            await self._hosts.agree(shared, experiment, entries)
        for experiment in list(self._known.values()):
            if experiment.counting and not experiment.conflict:
                await self._hosts.share(shared, experiment)
        await self._hosts.drop_forgotten(shared)
        self._mark()

    def _adopt(self, name: str, entry: Entry) -> None:
        """What another host knows of an experiment."""
        experiment = self._known.get(name)
        if experiment is None:
            self._join(entry)
            return
        if not agreed.same(entry, experiment.entry):
            experiment.conflict = True
            return
        ends_here = experiment.entry.running and not entry.running
        if ends_here:
            experiment.see(self._seen(), self._unix_ns())
            experiment.entry = replace(entry, final=None)
            self._mark()
            if entry.state == "aborted":
                self._send_back(experiment)
        elif experiment.entry.final is None and agreed.ended_before(entry, experiment.entry):
            experiment.entry = replace(entry, final=None)  # both ended it at once: the first end counts
        if entry.final is not None and experiment.entry.final != entry.final:
            experiment.finish(entry.final)  # the first to say it is who all show
        self._views = None

    def _join(self, entry: Entry) -> None:
        split: SplitSpec | None = None
        if entry.final is None:
            try:
                split = place(replace(entry.spec, split=entry.split), self._weights.table)
            except ExperimentError:
                split = None  # its figures are shown; nothing is counted for it here
        if entry.running and split is not None:
            self._give_way(entry)
        self._add(entry, split)
        if entry.state == "aborted" and entry.final is None:
            self._send_back(self._known[entry.spec.name])

    def _give_way(self, entry: Entry) -> None:
        """Two hosts began one in the same split at once: the one that began first goes on."""
        for other in self._running():
            if other.entry.split != entry.split:
                continue
            mine = (other.entry.since_unix_ns, other.spec.name)
            if (entry.since_unix_ns, entry.spec.name) < mine:
                self._end(
                    other, "stopped", entry.by, f"experiment {entry.spec.name} began before it elsewhere"
                )


def _word(author: str, reason: str) -> tuple[str, str]:
    try:
        return checked_word(author, reason)
    except WeightsError as error:
        raise ExperimentError(error.what, error.mend) from error
