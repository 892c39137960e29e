"""Tables with splits, and who keeps what was published."""

from __future__ import annotations

from collections.abc import Mapping

from proxy.control.experiments.weights import Weights
from proxy.link import BackendSpec, LearnedCurve, Match, RouteSpec, SloSpec, SplitSpec, Table

MS = 1_000_000
S = 1_000_000_000
T0 = 1_800_000_000 * S


def split(name: str, arms: Mapping[str, int], epoch: str = "") -> SplitSpec:
    return SplitSpec(name, tuple(sorted(arms.items())), "seed", ("header", "x-session-id"), epoch=epoch)


def table(
    splits: Mapping[str, Mapping[str, int]], version: int = 1, curves: tuple[LearnedCurve, ...] = ()
) -> Table:
    """A route for each split, one without, and an SLO."""
    names = sorted({name for arms in splits.values() for name in arms} | {"alone"})
    routes = [
        RouteSpec(
            Match(model=name), max(sorted(arms.items()), key=lambda arm: arm[1])[0], split=split(name, arms)
        )
        for name, arms in splits.items()
    ]
    slo = SloSpec("chat", Match(), ((0, 500 * MS),), 50 * MS, curves=curves, slack_ns=10 * MS)
    backends = tuple(BackendSpec(name, f"http://{name}:80") for name in names)
    return Table(version, backends, (*routes, RouteSpec(Match(), "alone")), (slo,))


class Clock:
    """A wall clock that is moved by hand."""

    def __init__(self, now_ns: int = T0) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def pass_s(self, seconds: float) -> None:
        self.now_ns += round(seconds * S)


class Host:
    """One host's weights, and every table that it published."""

    def __init__(self, file: Table, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.published: list[Table] = []
        self.weights = Weights(self.published.append, self.clock)
        self.weights.set_file(file)

    @property
    def table(self) -> Table:
        assert self.published[-1] is self.weights.table, "what is in force is what was published"
        return self.weights.table

    def arms(self, name: str = "ab") -> dict[str, int]:
        """In force, as workers are told."""
        (found,) = (route.split for route in self.table.routes if route.split and route.split.name == name)
        return dict(found.arms)

    def said(self, name: str = "ab") -> str | None:
        """Whose weights stand in place of the file's."""
        (view,) = (view for view in self.weights.splits() if view.name == name)
        return None if view.override is None else view.override.author
