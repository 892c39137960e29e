"""The weights of splits at run time: the file's, what somebody put in their place, and what is ejected.

``Weights`` makes of the file's table the one in force, and publishes it.  See the README of this folder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from msgspec.structs import replace

from proxy.control.experiments.arms import (
    Arms,
    Named,
    Override,
    SplitView,
    WeightsError,
    arms_of,
    checked_arms,
    checked_word,
    epoch_of,
    in_words,
    split_named,
    splits_in,
    with_arms,
)
from proxy.control.experiments.overrides import Overrides
from proxy.control.shared import Shared
from proxy.link import LearnedCurve, RouteSpec, SloSpec, SplitSpec, Table

__all__ = ["Named", "Override", "SplitView", "Weights", "WeightsError", "arms_of", "epoch_of"]

_log = logging.getLogger("legato.weights")

#: Different weights within one experiment: each is an epoch with accumulators of its own.
EPOCHS_MAX: Final = 64
#: Weights are whole numbers: this many parts of one where a backend is on its way back.
PARTS: Final = 1000


class Weights:
    """See the module.  ``publish(table)``: that table is in force from now on; ``unix_ns()``: the time."""

    def __init__(self, publish: Callable[[Table], None], unix_ns: Callable[[], int]) -> None:
        self._publish = publish
        self._file: Table | None = None
        self._table: Table | None = None
        self._overrides = Overrides(unix_ns)
        self._factors: dict[str, float] = {}
        self._names: dict[str, Named] = {}
        self._epochs: dict[str, set[str]] = {}  # by experiment: the weights that it has seen

    @property
    def table(self) -> Table:
        """The table in force."""
        if self._table is None:
            raise RuntimeError("no table was set")
        return self._table

    # ------------------------------------------------------------ what changes it

    def set_file(self, table: Table) -> None:
        """What the configuration says, at the start and at each reload.

        Overrides of splits that it says nothing new of stay; of the others the file wins.
        """
        after = splits_in(table)
        for name in self._overrides.set_file({name: _arms_in(specs) for name, specs in after.items()}):
            _log.warning("split %s: the file was changed there and wins, the override is dropped", name)
        backends = {arm for specs in after.values() for spec in specs for arm, _ in spec.arms}
        self._factors = {name: factor for name, factor in self._factors.items() if name in backends}
        self._file = table
        self._put_in_force(table.version)

    def override(
        self, split: str, arms: Mapping[str, int], *, author: str, reason: str, seq_unix_ns: int | None = None
    ) -> None:
        """Other weights than the file's, for all of the split's backends.  Raises ``WeightsError``."""
        specs = self._specs(split)
        author, reason = checked_word(author, reason)
        weights = checked_arms(split, arms, dict(specs[0].arms))
        self._bound_epochs(split, weights)
        self._overrides.say(split, dict(weights), author, reason, seq_unix_ns)
        _log.info("split %s: weights %s by %s: %s", split, in_words(dict(weights)), author, reason)
        self._put_in_force()

    def clear(self, split: str, *, author: str, reason: str) -> None:
        """The file's weights again.  Raises ``WeightsError``."""
        self._specs(split)
        author, reason = checked_word(author, reason)
        overridden = self._overrides.of(split) is not None
        self._overrides.say(split, None, author, reason, None)  # in any case: other hosts may have one
        if overridden:
            _log.info("split %s: the file's weights again, by %s: %s", split, author, reason)
            self._put_in_force()

    async def sync(self, shared: Shared) -> None:
        """Tell the other hosts what was changed here, and take what was changed there.  May raise."""
        taken = await self._overrides.sync(shared)
        for split, word in taken.items():
            weights = "the file's weights again" if word.arms is None else f"weights {in_words(word.arms)}"
            _log.info("split %s: %s by %s on another host: %s", split, weights, word.author, word.reason)
        if taken:
            self._put_in_force(only_if_changed=True)

    def eject(self, backend: str, factor: float) -> None:
        """Lower a backend's weights: 0.0 takes it out, 1.0 puts it back, what is between is on the way.

        A split of which nothing would be left stays as it is.
        """
        factor = min(max(factor, 0.0), 1.0)
        if self._factors.get(backend, 1.0) == factor:
            return
        if factor == 1.0:
            del self._factors[backend]
        else:
            self._factors[backend] = factor
        self._put_in_force(only_if_changed=True)

    def name_epochs(self, names: Mapping[str, Named]) -> None:
        """By split: the experiment that its assignments are counted for; nobody counts for the others."""
        if dict(names) == self._names:
            return
        self._names = dict(names)
        running = {named.experiment for named in self._names.values()}
        self._epochs = {name: seen for name, seen in self._epochs.items() if name in running}
        self._put_in_force(only_if_changed=True)

    def renew(self) -> None:
        """The same once more under a new version: workers read their certificates again."""
        self._put_in_force()

    # ------------------------------------------------------------ what readers see

    def splits(self) -> list[SplitView]:
        """Each split of the file, by name."""
        force = splits_in(self.table)
        return [
            self._view(name, specs[0], force[name][0]) for name, specs in sorted(self._file_splits().items())
        ]

    def chosen(self) -> list[tuple[str, dict[str, int]]]:
        """Each route's split, by name: its weights before anything is ejected."""
        return [
            (name, dict(self._chosen(spec)))
            for name, specs in sorted(self._file_splits().items())
            for spec in specs
        ]

    def _view(self, name: str, spec: SplitSpec, force: SplitSpec) -> SplitView:
        named = self._names.get(name)
        _, ejected = self._lowered(self._chosen(spec))
        return SplitView(
            name=name,
            arms=dict(force.arms),
            file_arms=dict(spec.arms),
            override=self._overrides.of(name),
            ejected=ejected,
            experiment=None if named is None else named.experiment,
            epoch=force.epoch,
            elsewhere=self._overrides.elsewhere(name),
        )

    # ------------------------------------------------------------ the table in force

    def _put_in_force(self, version: int = 0, only_if_changed: bool = False) -> None:
        file = self._file
        if file is None:
            return
        before = self._table
        routes = tuple(self._route(route) for route in file.routes)
        judges = _judges(self._names)
        slos = tuple(_as_promised(slo, judges) for slo in file.slos)
        if only_if_changed and before is not None and (routes, slos) == (before.routes, before.slos):
            return
        least = 0 if before is None else before.version + 1
        self._table = replace(file, version=max(version, least), routes=routes, slos=slos)
        self._note_epochs()
        self._publish(self._table)

    def _route(self, route: RouteSpec) -> RouteSpec:
        spec = route.split
        if spec is None:
            return route
        arms, _ = self._lowered(self._chosen(spec))
        named = self._names.get(spec.name)
        epoch = "" if named is None else epoch_of(named.experiment, dict(arms))
        split = with_arms(spec, arms, epoch)
        if split is spec:
            return route
        most, _ = max(arms, key=lambda arm: arm[1])
        return replace(route, backend=most, split=split)

    def _chosen(self, spec: SplitSpec) -> Arms:
        """The override's weights, or the file's."""
        override = self._overrides.of(spec.name)
        return spec.arms if override is None else tuple(sorted(override.arms.items()))

    def _lowered(self, arms: Arms) -> tuple[Arms, dict[str, float]]:
        """Without what is ejected, and what that is; as they are where nothing would be left."""
        ejected = {name: self._factors[name] for name, weight in arms if weight and name in self._factors}
        left = tuple((name, round(weight * PARTS * ejected.get(name, 1.0))) for name, weight in arms)
        if not ejected or not sum(weight for _, weight in left):
            return arms, {}
        return left, ejected

    # ------------------------------------------------------------ experiments

    def _bound_epochs(self, split: str, arms: Arms) -> None:
        named = self._names.get(split)
        if named is None:
            return
        seen = self._epochs.get(named.experiment, set())
        lowered, _ = self._lowered(arms)
        if len(seen) >= EPOCHS_MAX and epoch_of(named.experiment, dict(lowered)) not in seen:
            raise WeightsError(
                f"experiment {named.experiment} has had {len(seen)} different weights",
                f"each is judged by itself, and {EPOCHS_MAX} are the most: stop it and start a new one",
            )

    def _note_epochs(self) -> None:
        for specs in splits_in(self.table).values():
            for spec in specs:
                if spec.epoch:
                    seen = self._epochs.setdefault(self._names[spec.name].experiment, set())
                    if len(seen) < EPOCHS_MAX:
                        seen.add(spec.epoch)

    def _file_splits(self) -> dict[str, list[SplitSpec]]:
        return {} if self._file is None else splits_in(self._file)

    def _specs(self, split: str) -> list[SplitSpec]:
        known = self._file_splits()
        split_named(split, known)
        return known[split]


def _arms_in(specs: list[SplitSpec]) -> tuple[Arms, ...]:
    """The weights of all routes that share a split's name."""
    return tuple(spec.arms for spec in specs)


def _judges(names: Mapping[str, Named]) -> dict[str, str]:
    """By backend the other one whose learned curves its requests are promised: its control.

    Backends that several experiments join are judged by one curve, so that it is one in each of them.
    """
    above: dict[str, str] = {}

    def first(name: str) -> str:
        while name in above:
            name = above[name]
        return name

    for _, named in sorted(names.items()):
        control, candidate = first(named.control), first(named.candidate)
        if control != candidate:
            above[candidate] = control
    return {name: first(name) for name in above}


def _as_promised(slo: SloSpec, judges: Mapping[str, str]) -> SloSpec:
    """Both arms of an experiment are judged by the control's curves, which are what users know."""
    own = tuple(curve for curve in slo.curves if curve.backend not in judges)
    lent = (
        LearnedCurve(name, curve.model, curve.points)
        for name, judge in sorted(judges.items())
        for curve in own
        if curve.backend == judge
    )
    curves = (*own, *lent)
    return slo if curves == slo.curves else replace(slo, curves=curves)
