"""``/api/requests``: the recent and the worst records, and one of them with its timeline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import chain
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Path, Query, Response
from msgspec import Meta, Struct
from pydantic import BaseModel, ConfigDict

from proxy.control.core import Controller
from proxy.control.fleet.store import StoreError
from proxy.control.record import Record, Timeline
from proxy.control.schema import ApiError, answers, reply
from proxy.control.scope import DEGRADED, HERE, Degraded, ScopeQuery, Share, instead, of_all, reader_of
from proxy.control.settle import Settled
from proxy.control.store import Store
from proxy.control.timeline import timeline
from scoring.outcome import Outcome, SloResult


class RecordPage(Struct, frozen=True):
    """Records that match, newest or worst first."""

    requests: list[Record]
    matched: Annotated[int, Meta(description="how many matched, those beyond `limit` included")]
    searched: Annotated[int, Meta(description="how many are kept at all")]
    scope: Annotated[str, Meta(description="`fleet`: of all hosts; `host`: of this one")]
    degraded: Annotated[Degraded | None, Meta(description=DEGRADED)]


class RecordDetail(Record, frozen=True, kw_only=True):
    """One record with its timeline (``null`` where it was not streamed, its arrivals are gone, or another
    host has them)."""

    timeline: Timeline | None


STRUCTS: Final = (RecordPage, RecordDetail)

#: Records built between two turns of the loop.
_AT_ONCE: Final = 32

_Name = Annotated[str | None, Query(max_length=256)]


class Filters(BaseModel):
    """What to show; every condition that is given must hold."""

    model_config = ConfigDict(extra="forbid")

    sort: Annotated[
        Literal["recent", "worst"], Query(description="`worst`: lowest fluidity, then most missed deadlines.")
    ] = "recent"
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100
    backend: _Name = None
    model: _Name = None
    slo: _Name = None
    outcome: Outcome | None = None
    slo_result: SloResult | None = None
    stream: Annotated[bool | None, Query(description="Streamed or not.")] = None
    status: Annotated[int | None, Query(ge=100, le=999)] = None
    min_missed: Annotated[int | None, Query(ge=0, description="At least so many missed deadlines.")] = None
    max_fluidity: Annotated[float | None, Query(ge=0, le=1, description="Fluidity at most this.")] = None
    min_duration_s: Annotated[float | None, Query(ge=0)] = None
    id: _Name = None
    request_id: _Name = None
    response_id: _Name = None
    trace_id: _Name = None
    scope: ScopeQuery = None

    def conditions(self) -> list[Callable[[Settled], bool]]:
        """Those that are given, as predicates."""
        given: list[Callable[[Settled], bool]] = []
        for name, read in _EQUAL.items():
            wanted = getattr(self, name)
            if wanted is not None:
                given.append(lambda settled, read=read, wanted=wanted: read(settled) == wanted)  # type: ignore[misc]
        if (missed := self.min_missed) is not None:
            given.append(lambda settled: (settled.record.missed or 0) >= missed)
        if (fluidity := self.max_fluidity) is not None:
            given.append(lambda settled: _fluidity(settled) <= fluidity)
        if (duration_s := self.min_duration_s) is not None:
            given.append(lambda settled: settled.duration_ns >= duration_s * 1e9)
        return given

    def fits(self, record: Record) -> bool:
        """The same of a record of another host."""
        if any(
            wanted is not None and getattr(record, name) != wanted
            for name, wanted in ((name, getattr(self, name)) for name in _EQUAL)
        ):
            return False
        return (
            (self.min_missed is None or (record.missed or 0) >= self.min_missed)
            and (self.max_fluidity is None or _least(record) <= self.max_fluidity)
            and (self.min_duration_s is None or record.duration_s >= self.min_duration_s)
        )


_EQUAL: Final[dict[str, Callable[[Settled], Any]]] = {
    "backend": lambda settled: settled.facts.backend,
    "model": lambda settled: settled.model,
    "slo": lambda settled: settled.facts.slo,
    "outcome": lambda settled: settled.outcome,
    "slo_result": lambda settled: settled.result,
    "stream": lambda settled: settled.as_stream,
    "status": lambda settled: settled.facts.status,
    "id": lambda settled: settled.facts.id,
    "request_id": lambda settled: settled.facts.request_id,
    "response_id": lambda settled: settled.names[1],
    "trace_id": lambda settled: settled.facts.trace_id,
}


def _fluidity(settled: Settled) -> float:
    """For comparing; what has none is beyond every bound."""
    return _least(settled.record)


def _least(record: Record) -> float:
    return 2.0 if record.fluidity is None else record.fluidity


def requests_router(controller: Controller) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/api/requests", tags=["requests"])

    @router.get("", summary="Recent or worst requests", **answers(RecordPage, 401, 403, 422))
    async def list_requests(filters: Annotated[Filters, Query()]) -> Response:
        # Only where it is asked for: this host's own have timelines, and cost nothing to look up.
        reader, share = reader_of(controller, filters.scope or "host"), HERE
        if reader is not None:
            try:
                others, own = await reader.records(), await own_records(controller.store)
                return reply(_select_all(own, others, filters, of_all(reader)))
            except StoreError as error:
                share = instead(reader, error.reason)
        return reply(select(controller.store, filters, share))

    @router.get("/{id}", summary="One request with its timeline", **answers(RecordDetail, 401, 403, 404))
    async def one_request(
        id: Annotated[str, Path(max_length=256, description="Its id, request_id, response_id or trace_id.")],
    ) -> Response:
        kept = controller.store.find(id)
        if kept is not None:
            return reply(_detail(kept.settled.record, timeline(kept.settled) if kept.arrivals else None))
        elsewhere, mend = await _elsewhere(controller, id)
        if elsewhere is not None:
            return reply(_detail(elsewhere, None))
        raise ApiError(404, "no kept request has this id, request_id, response_id or trace_id", mend)

    return router


async def _elsewhere(controller: Controller, id: str) -> tuple[Record | None, str]:
    """The record of another host, or what to do where there is none."""
    mend = "only the most recent and the worst requests are kept: the access log has all of them"
    if controller.reader is None:
        return None, mend
    try:
        return await controller.reader.find(id), mend
    except StoreError as error:
        return None, f"other hosts could not be asked (Redis: {error.reason}); {mend}"


def _detail(record: Record, shown: Timeline | None) -> RecordDetail:
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    return RecordDetail(**fields, timeline=shown)


async def own_records(store: Store) -> list[Record]:
    """All that are kept here; those that nobody asked for yet are built now, between turns of the loop."""
    found = []
    for number, settled in enumerate(list(_distinct(store)), 1):
        found.append(settled.record)
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
    return found


def _select_all(
    own: Iterable[Record], others: Iterable[Record], filters: Filters, share: Share
) -> RecordPage:
    """The records of all hosts that match; this host's as they are here, the latest included."""
    every: dict[str, Record] = {}
    for record in chain(own, others):
        every.setdefault(record.id, record)
    found = [record for record in every.values() if filters.fits(record)]
    if filters.sort == "worst":
        found = [record for record in found if record.fluidity is not None]
        found.sort(key=lambda record: (_least(record), -(record.missed or 0)))
    else:
        found.sort(key=_ended, reverse=True)
    return RecordPage(found[: filters.limit], len(found), len(every), share.scope, share.degraded)


def _ended(record: Record) -> float:
    """Unix seconds, to the millisecond; another host's text is not trusted to be a time."""
    try:
        return datetime.fromisoformat(record.time).timestamp() + record.duration_s
    except (ValueError, OverflowError):
        return 0.0


def select(store: Store, filters: Filters, share: Share = HERE) -> RecordPage:
    """The records of this host that match."""
    conditions = filters.conditions()
    everything = list(_distinct(store))
    found = [settled for settled in everything if all(holds(settled) for holds in conditions)]
    if filters.sort == "worst":
        found = [settled for settled in found if settled.record.fluidity is not None]
        found.sort(key=lambda settled: (_fluidity(settled), -(settled.record.missed or 0)))
    else:
        found.sort(key=lambda settled: settled.facts.received_unix_ns + settled.duration_ns, reverse=True)
    shown = [settled.record for settled in found[: filters.limit]]
    return RecordPage(shown, len(found), len(everything), share.scope, share.degraded)


def _distinct(store: Store) -> Iterator[Settled]:
    seen: set[str] = set()
    books: Iterable[Iterable[Any]] = (store.recent, store.worst)
    for book in books:
        for kept in book:
            if kept.settled.facts.id not in seen:
                seen.add(kept.settled.facts.id)
                yield kept.settled
