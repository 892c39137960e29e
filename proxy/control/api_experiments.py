"""``/api/experiments`` and ``/api/splits``: what is tried out, and who gets how much of the traffic.

Reading needs what reading needs everywhere; starting, stopping and other weights are changes (``guard.py``).
Nothing is decided here: ``experiments/`` does, and what it refuses comes back with its mend.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Final, NoReturn, Protocol

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.params import Depends as Needs
from msgspec import Meta, Struct

from proxy.control.bodies import body_of, takes
from proxy.control.experiments.arms import Override, SplitView, WeightsError
from proxy.control.experiments.spec import ExperimentError, ExperimentSpec
from proxy.control.experiments.views import ExperimentView
from proxy.control.experiments.weights import Weights
from proxy.control.guard import Changes, Guard
from proxy.control.record import iso_time
from proxy.control.schema import ApiError, answers, reply
from proxy.settings.problems import suggest


class Experiments(Protocol):
    """Who runs them (``experiments.Experiments``)."""

    def start(self, spec: ExperimentSpec, author: str) -> object:
        """Begin one; raises ``ExperimentError`` or ``WeightsError``."""

    def stop(self, name: str, author: str, reason: str) -> object:
        """End one; raises ``ExperimentError`` or ``WeightsError``."""

    def views(self) -> Sequence[ExperimentView]:
        """Each, whole."""


_Author = Annotated[str, Meta(min_length=1, max_length=100, description="Who asks for it; it is shown.")]
_Reason = Annotated[str, Meta(min_length=1, max_length=300, description="Why; it is shown.")]


class StartExperiment(ExperimentSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An experiment to start, and who wants it."""

    author: _Author

    @property
    def spec(self) -> ExperimentSpec:
        """Without the author."""
        return ExperimentSpec(**{name: getattr(self, name) for name in ExperimentSpec.__struct_fields__})


class Word(Struct, frozen=True, forbid_unknown_fields=True):
    """Who asks for a change, and why."""

    author: _Author
    reason: _Reason


class NewWeights(Word, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Weights in place of the file's: one for each of the split's backends."""

    weights: dict[str, int]


class ExperimentList(Struct, frozen=True):
    """All that this process knows of, running ones first, then the latest."""

    experiments: list[ExperimentView]


class OverrideView(Struct, frozen=True, kw_only=True):
    """Weights that somebody put in place of the file's; they go with the next change of the file there."""

    weights: dict[str, int]
    author: str
    reason: str
    at: str


class SplitWeights(Struct, frozen=True, kw_only=True):
    """One split as it stands."""

    name: str
    weights: Annotated[dict[str, int], Meta(description="in force; the share is a weight over their sum")]
    file_weights: dict[str, int]
    override: OverrideView | None
    ejected: Annotated[
        dict[str, float], Meta(description="by what factor a backend's weight is lowered by its health")
    ]
    experiment: str | None
    elsewhere: Annotated[
        OverrideView | None,
        Meta(description="what other hosts go by and this one does not, since its file says other weights"),
    ]


class SplitList(Struct, frozen=True):
    """All splits of the configuration, by name."""

    splits: list[SplitWeights]


STRUCTS: Final = (ExperimentList, ExperimentView, SplitList, SplitWeights, StartExperiment, NewWeights, Word)
_CHANGE: Final = (401, 403, 413, 415, 422)

_Name = Annotated[str, Path(max_length=1000)]


def experiments_router(
    experiments: Experiments, weights: Weights, reads: Guard, changes: Changes
) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/api", tags=["experiments"])
    _experiments(router, experiments, [Depends(reads)], [Depends(changes)])
    _splits(router, weights, [Depends(reads)], [Depends(changes)])
    return router


def _experiments(
    router: APIRouter, experiments: Experiments, reads: Sequence[Needs], changes: Sequence[Needs]
) -> None:
    @router.get(
        "/experiments", summary="All experiments", dependencies=reads, **answers(ExperimentList, 401, 403)
    )
    async def show_all() -> Response:
        return reply(ExperimentList(ordered(experiments.views())))

    @router.get(
        "/experiments/{name}",
        summary="One experiment",
        dependencies=reads,
        **answers(ExperimentView, 401, 403, 404),
    )
    async def show_one(name: _Name) -> Response:
        return reply(_named(experiments, name))

    @router.post(
        "/experiments",
        summary="Start an experiment",
        dependencies=changes,
        **takes(StartExperiment, answers(ExperimentView, *_CHANGE, 409)),
    )
    async def start(request: Request) -> Response:
        asked = await body_of(request, StartExperiment)
        try:
            experiments.start(asked.spec, asked.author)
        except (ExperimentError, WeightsError) as error:
            taken = any(view.spec.name == asked.name for view in experiments.views())
            _refuse(error, 409 if taken else 422)
        return reply(_named(experiments, asked.name))

    @router.post(
        "/experiments/{name}/stop",
        summary="Stop an experiment",
        dependencies=changes,
        **takes(Word, answers(ExperimentView, *_CHANGE, 404, 409)),
    )
    async def stop(name: _Name, request: Request) -> Response:
        word = await body_of(request, Word)
        running = _named(experiments, name).state == "running"
        try:
            experiments.stop(name, word.author, word.reason)
        except (ExperimentError, WeightsError) as error:
            _refuse(error, 422 if running else 409)
        return reply(_named(experiments, name))


def _splits(router: APIRouter, weights: Weights, reads: Sequence[Needs], changes: Sequence[Needs]) -> None:
    @router.get("/splits", summary="Weights by split", dependencies=reads, **answers(SplitList, 401, 403))
    async def show_splits() -> Response:
        return reply(SplitList([_shown(view) for view in weights.splits()]))

    @router.put(
        "/splits/{name}/weights",
        summary="Put other weights in place of the file's",
        dependencies=changes,
        **takes(NewWeights, answers(SplitWeights, *_CHANGE, 404)),
    )
    async def override(name: _Name, request: Request) -> Response:
        asked = await body_of(request, NewWeights)
        try:
            weights.override(name, asked.weights, author=asked.author, reason=asked.reason)
        except WeightsError as error:
            _refuse(error, 422 if _known(weights, name) else 404)
        return reply(_split(weights, name))

    @router.delete(
        "/splits/{name}/weights",
        summary="The file's weights again",
        dependencies=changes,
        **takes(Word, answers(SplitWeights, *_CHANGE, 404)),
    )
    async def clear(name: _Name, request: Request) -> Response:
        word = await body_of(request, Word)
        try:
            weights.clear(name, author=word.author, reason=word.reason)
        except WeightsError as error:
            _refuse(error, 422 if _known(weights, name) else 404)
        return reply(_split(weights, name))


def ordered(views: Iterable[ExperimentView]) -> list[ExperimentView]:
    """Running ones first, of each kind the latest first."""
    latest = sorted(views, key=lambda view: view.since, reverse=True)
    return sorted(latest, key=lambda view: view.state != "running")


def _refuse(error: ExperimentError | WeightsError, status: int) -> NoReturn:
    raise ApiError(status, error.what, error.mend) from None


def _named(experiments: Experiments, name: str) -> ExperimentView:
    """The running one of that name, or the latest."""
    views = ordered(experiments.views())
    for view in views:
        if view.spec.name == name:
            return view
    known = sorted({view.spec.name for view in views})
    meant = suggest(name[:200], known)
    mend = f"did you mean {meant!r}?" if meant else "GET /api/experiments lists them"
    raise ApiError(404, f"{name[:60]!r} is no experiment of this Legato", mend)


def _known(weights: Weights, name: str) -> bool:
    return any(view.name == name for view in weights.splits())


def _split(weights: Weights, name: str) -> SplitWeights:
    (view,) = (view for view in weights.splits() if view.name == name)
    return _shown(view)


def _shown(view: SplitView) -> SplitWeights:
    return SplitWeights(
        name=view.name,
        weights=view.arms,
        file_weights=view.file_arms,
        override=_override(view.override),
        ejected=view.ejected,
        experiment=view.experiment,
        elsewhere=_override(view.elsewhere),
    )


def _override(of: Override | None) -> OverrideView | None:
    if of is None:
        return None
    return OverrideView(weights=of.arms, author=of.author, reason=of.reason, at=iso_time(of.at_unix_ns))
