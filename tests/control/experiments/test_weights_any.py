"""Whatever is overridden, ejected, named and reloaded, in any order: the table in force is a sound one."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from proxy.control.experiments.weights import Named, WeightsError
from proxy.link import LearnedCurve, Table
from tests.control.experiments.tables import Host, table

CURVES = tuple(LearnedCurve(name, "m", ((0, index * 10**8),)) for index, name in enumerate("abcd", 1))
#: One file after the other, as somebody may write them; the versions are those of reloads that never ran.
FILES: list[dict[str, dict[str, int]]] = [
    {"one": {"a": 90, "b": 10}, "two": {"b": 1, "c": 1, "d": 0}},
    {"one": {"a": 90, "b": 10}},
    {"one": {"a": 50, "b": 50}, "two": {"b": 1, "c": 1, "d": 0}},
    {"two": {"b": 3, "c": 1}, "three": {"c": 1, "d": 1}},
    {},
]
SPLITS = ["one", "two", "three", "nowhere"]
WEIGHTS = st.dictionaries(st.sampled_from("abcd"), st.integers(-1, 1_000_001) | st.integers(0, 3), max_size=4)


class AnyOrder(RuleBasedStateMachine):
    """``said`` is what a reader of the rules would expect to hold: kept in the simplest way there is."""

    def __init__(self) -> None:
        super().__init__()
        self.file: Table = table(FILES[0], curves=CURVES)
        self.arms = FILES[0]
        self.host = Host(self.file)
        self.said: dict[str, dict[str, int]] = {}
        self.factors: dict[str, float] = {}
        self.named: dict[str, Named] = {}

    @rule(number=st.integers(0, len(FILES) - 1), version=st.integers(0, 40))
    def reload(self, number: int, version: int) -> None:
        arms = FILES[number]
        self.said = {name: said for name, said in self.said.items() if arms.get(name) == self.arms[name]}
        held = {name for each in arms.values() for name in each}
        self.factors = {name: factor for name, factor in self.factors.items() if name in held}
        self.arms, self.file = arms, table(arms, version, CURVES)
        self.host.weights.set_file(self.file)
        assert self.host.table.version >= version

    @rule(name=st.sampled_from(SPLITS), weights=WEIGHTS)
    def override(self, name: str, weights: dict[str, int]) -> None:
        self._say(name, weights)

    @rule(name=st.sampled_from(SPLITS), weight=st.integers(0, 5))
    def override_soundly(self, name: str, weight: int) -> None:
        self._say(name, {arm: weight + index for index, arm in enumerate(self.arms.get(name, {}))})

    def _say(self, name: str, weights: dict[str, int]) -> None:
        good = weights.keys() == self.arms.get(name, {"?": 0}).keys() and sum(weights.values()) > 0
        good = good and all(0 <= weight <= 1_000_000 for weight in weights.values())
        count = len(self.host.published)
        try:
            self.host.weights.override(name, weights, author="ann", reason="any")
        except WeightsError:
            assert not good
            assert len(self.host.published) == count, "what was refused changed nothing"
        else:
            assert good
            self.said[name] = weights
            assert len(self.host.published) == count + 1

    @rule(name=st.sampled_from(SPLITS))
    def clear(self, name: str) -> None:
        try:
            self.host.weights.clear(name, author="ann", reason="any")
        except WeightsError:
            assert name not in self.arms
        self.said.pop(name, None)

    @rule(name=st.sampled_from("abcde"), factor=st.sampled_from([0.0, 0.1, 0.3, 1.0]))
    def eject(self, name: str, factor: float) -> None:
        self.host.weights.eject(name, factor)
        self.factors[name] = factor

    @rule(names=st.sets(st.sampled_from(SPLITS)), experiment=st.sampled_from(["spring", "summer"]))
    def name_epochs(self, names: set[str], experiment: str) -> None:
        self.named = {name: Named(experiment, "b", "c") for name in names}
        self.host.weights.name_epochs(self.named)

    @rule()
    def renew(self) -> None:
        self.host.weights.renew()

    @invariant()
    def versions_rise(self) -> None:
        versions = [each.version for each in self.host.published]
        assert all(before < after for before, after in pairwise(versions))

    @invariant()
    def splits_are_the_files_by_the_weights_that_count(self) -> None:
        force = {route.split.name: route for route in self.host.table.routes if route.split is not None}
        assert {
            name: [arm for arm, _ in route.split.arms] for name, route in force.items() if route.split
        } == {name: sorted(arms) for name, arms in self.arms.items()}
        for name, route in force.items():
            assert route.split is not None
            arms = dict(route.split.arms)
            assert sum(arms.values()) > 0
            assert all(type(weight) is int and weight >= 0 for weight in arms.values())
            assert arms[route.backend] == max(arms.values())
            assert shares(arms) == shares(self.expected(name))
            assert bool(route.split.epoch) == (name in self.named)

    def expected(self, name: str) -> dict[str, Fraction]:
        chosen = {arm: Fraction(weight) for arm, weight in self.said.get(name, self.arms[name]).items()}
        lowered = {arm: weight * Fraction(str(self.factors.get(arm, 1.0))) for arm, weight in chosen.items()}
        return lowered if any(lowered.values()) else chosen

    @invariant()
    def where_nothing_was_done_it_is_the_files(self) -> None:
        if not self.said and not self.named and all(factor == 1.0 for factor in self.factors.values()):
            assert replace(self.host.table, version=self.file.version) == self.file

    @invariant()
    def views_tell_what_is_in_force(self) -> None:
        views: dict[str, Any] = {view.name: view for view in self.host.weights.splits()}
        assert views.keys() == self.arms.keys()
        for name, view in views.items():
            assert view.arms == self.host.arms(name)
            assert view.file_arms == self.arms[name]
            assert (None if view.override is None else view.override.arms) == self.said.get(name)


def shares(arms: Mapping[str, int | Fraction]) -> dict[str, Fraction]:
    total = Fraction(sum(arms.values()))
    return {name: weight / total for name, weight in arms.items()}


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
