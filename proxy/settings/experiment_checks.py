"""What single values cannot show of an experiment: whether some route can hold it."""

from __future__ import annotations

from collections.abc import Iterator

from proxy.settings.experiment import Experiment
from proxy.settings.models import Config
from proxy.settings.problems import suggest
from proxy.settings.route import Route
from proxy.settings.tree import Loc, Tree

_TIMES = ("ttft", "log_ttft", "normalized_latency")


def experiment_findings(config: Config, tree: Tree) -> Iterator[tuple[Loc, str]]:
    """What does not go together in it, or with the routes."""
    experiment = config.experiment
    loc: Loc = ("experiment",)
    given = [key for key in ("control", "candidate", "split") if getattr(experiment, key) is not None]
    if experiment.name is None:
        if given:
            mend = f"{', '.join(given)}, but no name: without one there is no experiment, write name: NAME"
            yield (*loc, "name"), mend
        return
    arms = {key: getattr(experiment, key) for key in ("control", "candidate")}
    known = {*config.backends, *tree.names}
    lacking = False
    for key, backend in arms.items():
        if backend is None:
            lacking = True
            yield (*loc, key), f"experiment {experiment.name} needs one: name a backend, {key}: NAME"
        elif backend not in known:
            lacking = True
            meant = suggest(backend, known)
            names = f"known are {', '.join(sorted(known)) or 'none'}"
            mend = f"did you mean {meant!r}?" if meant else names
            yield (*loc, key), f"{backend!r} is no backend: {mend}"
    if lacking or any(bad[:1] == ("routes",) for bad in tree.bad):
        return  # what is left of routes that could not be read tells nothing
    if experiment.control == experiment.candidate:
        yield (*loc, "candidate"), f"{experiment.candidate!r} is the control too: name another backend"
        return
    yield from _placed(loc, experiment, config)


def cares_of_experiment(experiment: Experiment) -> Iterator[str]:
    """A margin that calls nearly everything equivalent: a share was most likely meant in percent."""
    margin = experiment.margin
    if experiment.name is None or margin is None:
        return
    times = experiment.metric in _TIMES
    if margin >= (0.25 if times else 0.1):
        told = f"{100 * margin:g}{'% more of a time' if times else ' points worse'}"
        yield f"experiment.margin: {told} counts as equivalent: write {margin:g}% if percent is meant"


def _placed(loc: Loc, experiment: Experiment, config: Config) -> Iterator[tuple[Loc, str]]:
    splits: dict[str, list[Route]] = {}
    for route in config.routes:
        if len(route.arms) > 1:
            splits.setdefault(route.name or route.all_names, []).append(route)
    both = {experiment.control, experiment.candidate}
    having = {name: routes for name, routes in splits.items() if both <= {arm for arm, _ in routes[0].arms}}
    named = f"{experiment.control} and {experiment.candidate}"
    wanted = experiment.split
    if wanted is not None and wanted not in splits:
        names = f"known are {', '.join(sorted(splits)) or 'none'}"
        meant = suggest(wanted, splits)
        mend = f"did you mean {meant!r}?" if meant else names
        yield (*loc, "split"), f"{wanted!r} is no route with a split: {mend}"
    elif wanted is not None and wanted not in having:
        has = ", ".join(arm for arm, _ in splits[wanted][0].arms)
        yield (*loc, "split"), f"{wanted!r} is split over {has}, not over {named}: name another route"
    elif not having:
        example = f"split: {{{experiment.control}: 90, {experiment.candidate}: 10}}"
        yield loc, f"no route is split over {named}: write one, for example {example}"
    elif wanted is None and len(having) > 1:
        names = " or ".join(f"split: {name}" for name in sorted(having))
        mend = "give the one that counts a name, and write it here" if _unnamed(having) else f"write {names}"
        yield (*loc, "split"), f"several routes are split over {named}: {mend}"
    else:
        routes = having[wanted or next(iter(having))]
        if any(bool(route.sticky.ways) != bool(routes[0].sticky.ways) for route in routes):
            mend = f"some routes split over {named} are sticky and some are not: give them names of their own"
            yield (*loc, "split"), mend


def _unnamed(having: dict[str, list[Route]]) -> bool:
    return any(routes[0].name is None for routes in having.values())
