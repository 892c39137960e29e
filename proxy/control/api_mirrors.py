"""``/api/mirrors``: each shadow backend beside those whose requests it got copies of."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Response
from msgspec import Meta, Struct

from proxy.control.core import Controller
from proxy.control.experiments.pairs import BLOCK_NS, PairBook, Pairs, PairSeen
from proxy.control.guard import Guard
from proxy.control.record import iso_time
from proxy.control.schema import answers, reply
from proxy.exporters.vocabulary import MIRRORED
from scoring.compare import MOST_DOUBTFUL
from scoring.compare_pairs import Paired


class MirrorMetric(Struct, frozen=True, kw_only=True):
    """One metric over the pairs in which both sides have it; times in seconds."""

    pairs: int
    backend: float | None
    shadow: float | None
    effect: Annotated[float | None, Meta(description="The shadow's less the backend's.")]
    low: Annotated[float | None, Meta(description="Of the effect; holds at every moment at once.")]
    high: float | None
    margin: Annotated[float | None, Meta(description="A difference that nobody minds.")]
    verdict: Annotated[str, Meta(description="Of the shadow: better | worse | equivalent | undecided")]
    reasons: Annotated[list[str], Meta(description="Why it is undecided.")]
    gain: Annotated[
        float | None,
        Meta(description="By what factor the variance would be larger without pairs, with as many of each."),
    ]
    more_pairs: Annotated[int | None, Meta(description="About how many more until a verdict.")]


class MirrorIds(Struct, frozen=True, kw_only=True):
    """One pair: the request, which ``/api/requests/{id}`` shows, and its copy, which nothing else does."""

    time: str
    id: str
    copy_id: str
    ttft_s: float | None
    copy_ttft_s: float | None
    fluidity: float | None
    copy_fluidity: float | None


class MirrorPairs(Struct, frozen=True, kw_only=True):
    """The requests that one backend served and their copies."""

    backend: str
    pairs: Annotated[int, Meta(description="That are compared.")]
    excluded: Annotated[
        dict[str, int],
        Meta(
            description="Pairs that are not: one of the two was suspect (the proxy's own lateness), "
            "unmeasured, blocked (not read for a while, mostly for a slow client), or given_up by the proxy; "
            "the request was rejected (4xx), or its copy alone was (rejected_by_shadow)."
        ),
    ]
    cut: Annotated[int, Meta(description="Compared in part: the client left before the answer's end.")]
    metrics: dict[str, MirrorMetric]
    last: Annotated[list[MirrorIds], Meta(description="The latest first.")]


class MirrorShadow(Struct, frozen=True, kw_only=True):
    """One shadow backend."""

    shadow: str
    shares: Annotated[list[float], Meta(description="Of the routes that copy to it now, 0 to 1.")]
    results: Annotated[dict[str, int], Meta(description="Of every copy that was drawn.")]
    unpaired: Annotated[dict[str, int], Meta(description="Whose other half did not come in time.")]
    by_backend: list[MirrorPairs]
    says: Annotated[list[str], Meta(description="What to bear in mind.")]


class MirrorsView(Struct, frozen=True, kw_only=True):
    """Mirroring on this host, since its control process began."""

    since: str
    waiting: Annotated[int, Meta(description="Halves whose other half is not settled yet.")]
    shadows: list[MirrorShadow]


STRUCTS: Final[tuple[type[Struct], ...]] = (MirrorsView,)


def mirrors_router(controller: Controller, pairs: Pairs, reads: Guard) -> APIRouter:
    """The route."""
    router = APIRouter(prefix="/api", tags=["experiments"], dependencies=[Depends(reads)])

    @router.get(
        "/mirrors", summary="Shadow backends, by requests and their copies", **answers(MirrorsView, 401, 403)
    )
    async def mirrors() -> Response:
        return reply(view(controller, pairs))

    return router


def view(controller: Controller, pairs: Pairs) -> MirrorsView:
    """What the route answers."""
    shares: dict[str, list[float]] = {}
    for route in controller.table.routes:
        if route.mirror is not None:
            shares.setdefault(route.mirror.backend, []).append(route.mirror.ratio)
    results = pairs.results(controller.workers.not_copied())
    names = sorted({*shares, *(shadow for shadow, _ in results), *pairs.shadows})
    return MirrorsView(
        since=iso_time(controller.since_unix_ns),
        waiting=pairs.waiting,
        shadows=[_shadow(name, shares.get(name, []), results, pairs) for name in names],
    )


def _shadow(
    name: str, shares: list[float], results: dict[tuple[str, str], int], pairs: Pairs
) -> MirrorShadow:
    held = pairs.shadows.get(name)
    told = {result: results.get((name, result), 0) for result in MIRRORED}
    by_backend = [_pairs(backend, book) for backend, book in pairs.of_shadow(name)]
    return MirrorShadow(
        shadow=name,
        shares=shares,
        results=told,
        unpaired={half: 0 if held is None else held.unpaired[half] for half in ("requests", "copies")},
        by_backend=by_backend,
        says=[*_says(name, shares, told), *_rejects(name, by_backend)],
    )


def _says(name: str, shares: list[float], told: dict[str, int]) -> list[str]:
    drawn = sum(told.values())
    if not shares:
        return [f"No route copies to {name} any more."]
    if min(shares) >= 1.0 and not told["dropped"]:
        return [f"{name} carries copies of every request of its route: so far its load is a server's own."]
    out = [
        f"{name} carries copies only, of a part of the requests: under all of them it might be slower, and a "
        "better result here is none for that load."
    ]
    if told["dropped"]:
        out.append(
            f"{told['dropped']} of {drawn} copies were dropped, most of them when much was going on: what is "
            "compared is the rest."
        )
    return out


def _rejects(name: str, by_backend: list[MirrorPairs]) -> list[str]:
    count = sum(each.excluded.get("rejected_by_shadow", 0) for each in by_backend)
    if not count:
        return []
    return [f"{name} rejected {count} copies of requests that were taken: they are in no metric."]


def _pairs(backend: str, book: PairBook) -> MirrorPairs:
    return MirrorPairs(
        backend=backend,
        pairs=book.sums.pairs,
        excluded=dict(book.excluded),
        cut=book.cut,
        metrics={name: _metric(one) for name, one in book.compare().items()},
        last=[_ids(seen) for seen in reversed(book.last)],
    )


def _metric(one: Paired) -> MirrorMetric:
    return MirrorMetric(
        pairs=one.pairs,
        backend=_short(one.backend),
        shadow=_short(one.shadow),
        effect=_short(one.effect),
        low=_short(one.low),
        high=_short(one.high),
        margin=_short(one.margin),
        verdict=one.verdict.value,
        reasons=[f"{reason}: {_WHY[reason]}" for reason in one.reasons],
        gain=_short(one.gain),
        more_pairs=one.more_pairs,
    )


_WHY: Final = {
    "too_few": f"not enough pairs yet, or all of them within a few times {BLOCK_NS // 10**9} s",
    "interval": "the interval tells nothing apart yet",
    "no_data": "no two pairs in which both sides have it",
    "no_variance": "all pairs differ alike, which tells nothing of the next one",
    "unmeasured": f"in over {MOST_DOUBTFUL:.0%} of the pairs one of the two could not be measured",
    "suspect": f"in over {MOST_DOUBTFUL:.0%} of the pairs one of the two has stalls that were the proxy's",
    "rejected_by_shadow": f"over {MOST_DOUBTFUL:.0%} of the copies were rejected (4xx), of what was taken",
}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _ids(seen: PairSeen) -> MirrorIds:
    return MirrorIds(
        time=iso_time(seen.at_unix_ns),
        id=seen.id,
        copy_id=seen.copy_id,
        ttft_s=_seconds(seen.ttft_ns),
        copy_ttft_s=_seconds(seen.copy_ttft_ns),
        fluidity=_short(seen.fluidity),
        copy_fluidity=_short(seen.copy_fluidity),
    )


def _seconds(ns: float | None) -> float | None:
    return None if ns is None else round(ns * 1e-9, 6)
