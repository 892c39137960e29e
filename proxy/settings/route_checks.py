"""What single values cannot show of routes that share their requests among several backends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from proxy.settings.models import Config
from proxy.settings.problems import suggest
from proxy.settings.route import Mirror, Route
from proxy.settings.tree import Loc, Tree
from proxy.settings.types import SECRET_HEADERS
from proxy.units import format_duration

_COOKIE: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
#: What means something only where there are several backends.
_WITH_SPLIT: Final = ("sticky", "force", "failover", "seed", "name")
#: A copy and its request wait so long for each other, to be compared.
PAIRED_WITHIN_NS: Final = 900_000_000_000


def split_findings(loc: Loc, route: Route, config: Config, tree: Tree) -> Iterator[tuple[Loc, str]]:
    """What does not go together in one route."""
    if any(bad[: len(loc) + 1] == (*loc, "split") for bad in tree.bad):
        return  # what is left of a split that could not be read tells nothing
    several = route.split is not None and len(route.split) > 1
    if route.split is not None and not sum(route.split.values()):
        yield (
            (*loc, "split"),
            "no backend has a weight above 0: write for example {stable: 90, canary: 10}",
        )
    for name in _WITH_SPLIT:
        if not several and getattr(route, name) != Route.model_fields[name].default:
            mend = "has a meaning only with a split over several backends: leave it out, or write one"
            yield (*loc, name), f"{name} {mend}"
    if not several:
        return
    yield from _sticky((*loc, "sticky"), route)
    if route.force.header in SECRET_HEADERS:
        yield (*loc, "force", "header"), f"{route.force.header!r} carries a secret: name a header of its own"
    for name, _ in route.arms:
        backend = config.backends.get(name)
        if route.failover and backend is not None and backend.transport != "native":
            mend = f"backend {name} has transport {backend.transport}, which connects by itself"
            yield (*loc, "failover"), f"{mend}: take the native one, or leave failover out"
    same = [other for other in config.routes if other.name is not None and other.name == route.name]
    if same and same[0] is not route:
        yield (*loc, "name"), f"{route.name!r} is the name of another route too: choose one of its own"
    yield from _alike((*loc, "split"), route, config)


def _alike(loc: Loc, route: Route, config: Config) -> Iterator[tuple[Loc, str]]:
    """Routes without names over the same backends are one split, which has its weights once."""
    unnamed = [other for other in config.routes if other.name is None and len(other.arms) > 1]
    same = [other for other in unnamed if other.all_names == route.all_names]
    if route.name is None and same and same[0].arms != route.arms:
        first = next(place for place, other in enumerate(config.routes) if other is same[0])
        mend = f"routes[{first}] shares among the same backends by other weights: give these routes names"
        yield loc, f"{', '.join(f'{name} {weight}' for name, weight in route.arms)}: {mend}"


def _sticky(loc: Loc, route: Route) -> Iterator[tuple[Loc, str]]:
    sticky = route.sticky
    if len(sticky.ways) > 1:
        given = " and ".join(f"{kind}: {name}" for kind, name in sticky.ways)
        yield loc, f"{given}: a session is told by one of them, leave the others out"
    if sticky.header in SECRET_HEADERS:
        mend = "name another header" if sticky.header != "cookie" else "write cookie: NAME for one of them"
        yield (*loc, "header"), f"{sticky.header!r} carries a secret, and nothing is made of those: {mend}"
    if sticky.cookie is not None and not _COOKIE.fullmatch(sticky.cookie):
        yield (*loc, "cookie"), f"{sticky.cookie!r} is not a cookie's name: write for example session"


def mirror_findings(loc: Loc, route: Route, config: Config, tree: Tree) -> Iterator[tuple[Loc, str]]:
    """What does not go together in a route's mirror."""
    mirror = route.mirror
    known = {*config.backends, *tree.names}
    if mirror.backend is None:
        if mirror != Mirror():
            yield (*loc, "backend"), "copies need a shadow: write backend: NAME, or leave mirror out"
        return
    if mirror.backend not in known:
        meant = suggest(mirror.backend, known)
        mend = f"did you mean {meant!r}?" if meant else f"known are {', '.join(sorted(known)) or 'none'}"
        yield (*loc, "backend"), f"{mirror.backend!r} is no backend: {mend}"
    elif mirror.backend in (name for name, _ in route.arms):
        mend = f"{mirror.backend!r} serves this route itself, and would be asked twice: name another backend"
        yield (*loc, "backend"), mend
    elif (backend := config.backends.get(mirror.backend)) is not None and backend.transport != "native":
        mend = f"backend {mirror.backend} has transport {backend.transport}, and copies go by the native one"
        yield (*loc, "backend"), f"{mend}: leave transport out, or mirror to another backend"
    if mirror.timeout > PAIRED_WITHIN_NS:
        given = format_duration(mirror.timeout)
        mend = "a copy is compared with its request within 15m: write 15m or less"
        yield (*loc, "timeout"), f"{given}: {mend}"


def cares_of_mirrors(config: Config) -> list[str]:
    """What is allowed and still deserves a look, one sentence each."""
    serves = {name for route in config.routes for name, _ in route.arms}
    return [
        f"route {index}: {shadow} serves another route too: what copies cost it is felt there"
        for index, route in enumerate(config.routes)
        if (shadow := route.mirror.backend) in serves
    ]


def cares_of_splits(config: Config) -> list[str]:
    """What is allowed and still deserves a look, one sentence each."""
    out: list[str] = []
    seen: dict[str, int] = {}
    for index, route in enumerate(config.routes):
        if len(route.arms) < 2:
            continue
        out += [
            f"route {index}: {name} has weight 0, "
            + ("only forced requests go there" if route.force.header else "nothing goes there")
            for name, weight in route.arms
            if not weight
        ]
        if route.name is None:
            if route.all_names in seen:
                both = f"routes {seen[route.all_names]} and {index} split over the same backends"
                out.append(f"{both}: their assignments are counted together unless they have names")
            seen.setdefault(route.all_names, index)
    return out
