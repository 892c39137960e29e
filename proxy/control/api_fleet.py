"""``/api/fleet``: how sharing through Redis goes, and which hosts share."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Response
from msgspec import Meta, Struct

from proxy.control.core import Controller
from proxy.control.fleet.layout import HostValue
from proxy.control.fleet.store import StoreError
from proxy.control.record import iso_time
from proxy.control.schema import ApiError, answers, reply
from proxy.control.scope import Degraded, instead


class FleetHost(Struct, frozen=True, kw_only=True):
    """One control process that wrote within the last day."""

    incarnation: str
    host: str
    version: str
    started: str
    clock_offset_s: Annotated[float, Meta(description="Redis's clock less the host's.")]
    sums: Annotated[dict[str, int], Meta(description="Of all that Redis has acknowledged to it.")]
    lost: Annotated[dict[str, int], Meta(description="Requests that are in nobody's sums, by what happened.")]


class FleetView(Struct, frozen=True, kw_only=True):
    """How this host shares, and with whom."""

    incarnation: Annotated[str, Meta(description="This control process: drawn anew at each start.")]
    status: Annotated[str, Meta(description="starting | ok | degraded")]
    reason: Annotated[str | None, Meta(description="Why it is degraded, one word.")]
    since: Annotated[str, Meta(description="Since when the status is what it is.")]
    clock_offset_s: Annotated[float, Meta(description="Redis's clock less ours; slots are by Redis's.")]
    waiting_slots: Annotated[int, Meta(description="Written here, not acknowledged by Redis yet.")]
    waiting_bytes: int
    written: Annotated[str | None, Meta(description="When Redis last acknowledged everything.")]
    nonsense: Annotated[
        int, Meta(description="Values that this host read and passed over: damaged, or of another version.")
    ]
    acknowledged: Annotated[dict[str, int], Meta(description="What Redis has of this control process.")]
    hosts: Annotated[list[FleetHost], Meta(description="Empty where Redis cannot be asked; see degraded.")]
    degraded: Degraded | None


STRUCTS: Final = (FleetView, FleetHost)


def fleet_router(controller: Controller) -> APIRouter:
    """The route."""
    router = APIRouter(prefix="/api", tags=["about"])

    @router.get(
        "/fleet",
        summary="How sharing through Redis goes, and which hosts share",
        **answers(FleetView, 401, 403, 404),
    )
    async def fleet() -> Response:
        shared = controller.fleet
        if shared is None:
            raise ApiError(404, "this host shares with nobody", "set redis.url to see many hosts as one")
        state, reader = shared.state(), shared.reader
        hosts, degraded = [], None
        try:
            hosts = await reader.hosts()
        except StoreError as error:
            degraded = instead(reader, error.reason).degraded
        return reply(
            FleetView(
                incarnation=state.incarnation,
                status=state.status,
                reason=state.reason,
                since=iso_time(state.since_unix_ns),
                clock_offset_s=round(state.offset_ns / 1e9, 6),
                waiting_slots=state.waiting_slots,
                waiting_bytes=state.waiting_bytes,
                written=None if state.written_unix_ns is None else iso_time(state.written_unix_ns),
                nonsense=reader.nonsense,
                acknowledged=state.acknowledged,
                hosts=[_shown(name, each) for name, each in hosts],
                degraded=degraded,
            )
        )

    return router


def _shown(incarnation: str, told: HostValue) -> FleetHost:
    return FleetHost(
        incarnation=incarnation,
        host=told.host,
        version=told.version,
        started=iso_time(told.started_unix_ns),
        clock_offset_s=round(told.offset_ns / 1e9, 6),
        sums=told.sums,
        lost=told.lost,
    )
