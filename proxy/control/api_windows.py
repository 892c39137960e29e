"""``/api/summary``, ``/api/timeseries``, ``/api/curves/miss-rate``: what was measured, by window."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated, Final

from fastapi import APIRouter, Query, Response

from proxy.control.core import Controller
from proxy.control.fleet.reader import Reader as FleetReader
from proxy.control.fleet.store import StoreError
from proxy.control.schema import ApiError, answers, reply
from proxy.control.scope import HERE, ScopeQuery, instead, of_all, reader_of
from proxy.control.summary import Summary, summarise
from proxy.control.timeseries import (
    POINTS_MOST,
    By,
    FleetSeries,
    Metric,
    Reader,
    TimeSeries,
    TooManyPoints,
    Wanted,
    step_of,
)
from proxy.control.windowed import MissRates, miss_rates, miss_rates_of, summarise_fleet, summarise_window
from proxy.control.windows import DAY_NS
from proxy.units import format_duration, parse_duration
from scoring.window import TEN_NS

STRUCTS: Final = (Summary, MissRates, TimeSeries)

_STEP: Final = "write it with its unit, 10s or more: for example 10s, 1m or 15m"
#: Without a step, about so many points.
_POINTS: Final = 60
_WINDOW: Final = "write it with its unit, from 10s to 1d: for example 5m, 1h or 90s"


def duration(name: str, text: str, least_ns: int, most_ns: int, mend: str) -> int:
    """A parameter that is a duration; ``ApiError`` 422 names it, its value and the mend."""
    try:
        ns = parse_duration(text)
    except ValueError as error:
        raise ApiError(422, f"{name}: {error}", mend) from error
    if not least_ns <= ns <= most_ns:
        side = "short" if ns < least_ns else "long"
        bounds = f"{format_duration(least_ns)} to {format_duration(most_ns)} is possible"
        raise ApiError(422, f"{name}: {text!r} is too {side}: {bounds}", mend)
    return ns


def window_of(text: str) -> int:
    """The parameter ``window``, in nanoseconds."""
    return duration("window", text, TEN_NS, DAY_NS, _WINDOW)


class _Preparing:
    """Reads a window in steps, so that the link and other readers have their turn between them."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def ready(self, window_ns: int) -> None:
        """Returns when an answer takes no longer than an answer may."""
        await _stepwise(self._controller.windows.prepare(window_ns, self._controller.now_unix_ns()))


async def _stepwise(steps: Iterator[None]) -> None:
    for _ in steps:
        await asyncio.sleep(0)


_Window = Annotated[
    str | None,
    Query(
        max_length=32,
        description="The stretch of time up to now, 10s to 1d, with its unit (`5m`, `1h`). Its old end is "
        "moved outwards to a slot's (10 s in the last hour, 1 min before); over the fleet by at most a "
        "twentieth of the window (or 10 s): `covered_from` tells.",
        examples=["5m"],
    ),
]


_Step = Annotated[
    str | None,
    Query(
        max_length=32,
        description="The length of a step, with its unit: a multiple of 10 s, for windows of more than an "
        "hour of 1 min; otherwise it is rounded up. Without one: about 60 points.",
        examples=["1m"],
    ),
]


def wanted_of(
    controller: Controller, now_ns: int, metric: Metric, window: str, step: str | None, by: By
) -> Wanted:
    """The question of ``/api/timeseries``; ``ApiError`` 422 where it is none."""
    window_ns = window_of(window)
    step_ns = -(-window_ns // _POINTS) if step is None else duration("step", step, TEN_NS, DAY_NS, _STEP)
    if step_ns > window_ns:
        raise ApiError(422, f"step: {step!r} is longer than the window {window!r}", _STEP)
    return Wanted(
        metric, by, now_ns - window_ns, now_ns, step_of(step_ns, window_ns), controller.ledger.rate_quantile
    )


def series_of(controller: Controller, metric: Metric, window: str, step: str | None, by: By) -> Reader:
    """Who reads the answer from this host's windows; ``ApiError`` 422 where it cannot be answered."""
    wanted = wanted_of(controller, controller.now_unix_ns(), metric, window, step, by)
    controller.windows.advance(wanted.to_ns)
    reader = Reader(controller.windows, wanted)
    if reader.count > POINTS_MOST:
        raise _too_many(reader.count, step, by)
    return reader


def _too_many(count: int, step: str | None, by: By) -> ApiError:
    message = f"step: {step!r} makes {count} points by {by}: {POINTS_MOST} are possible"
    return ApiError(422, message, "give a longer step, a shorter window, or by=none")


async def _fleet_summary(controller: Controller, reader: FleetReader, window_ns: int) -> Summary:
    found = await reader.read(window_ns, reader.now_ns())
    now = await reader.now()
    return summarise_fleet(controller, window_ns, found, now, of_all(reader, found.instances))


async def _fleet_series(
    controller: Controller, reader: FleetReader, metric: Metric, window: str, step: str | None, by: By
) -> TimeSeries:
    wanted = wanted_of(controller, reader.now_ns(), metric, window, step, by)
    series = FleetSeries(wanted)
    try:
        return await reader.series(
            (metric, window, step, by), series.bounds, series.take, lambda: series.answer(of_all(reader))
        )
    except TooManyPoints as many:
        raise _too_many(many.count, step, by) from None


def windows_router(controller: Controller) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/api", tags=["windows"])
    preparing = _Preparing(controller)

    @router.get(
        "/summary",
        summary="Everything since the start or in a window, by group",
        **answers(Summary, 401, 403, 422),
    )
    async def summary(window: _Window = None, scope: ScopeQuery = None) -> Response:
        reader, share = reader_of(controller, scope, window), HERE
        if window is None:
            return reply(summarise(controller))
        window_ns = window_of(window)
        if reader is not None:
            try:
                return reply(await _fleet_summary(controller, reader, window_ns))
            except StoreError as error:
                share = instead(reader, error.reason)
        await preparing.ready(window_ns)
        return reply(summarise_window(controller, window_ns, share))

    @router.get(
        "/curves/miss-rate",
        summary="Miss-rate curves in a window, by group",
        **answers(MissRates, 401, 403, 422),
    )
    async def show_miss_rates(window: _Window = "1h", scope: ScopeQuery = None) -> Response:
        window_ns = window_of("1h" if window is None else window)
        reader, share = reader_of(controller, scope), HERE
        if reader is not None:
            try:
                found = await reader.read(window_ns, reader.now_ns())
                return reply(miss_rates_of(controller, found.windowed, of_all(reader, found.instances)))
            except StoreError as error:
                share = instead(reader, error.reason)
        await preparing.ready(window_ns)
        return reply(miss_rates(controller, window_ns, share))

    @router.get(
        "/timeseries", summary="One metric over a window, in steps", **answers(TimeSeries, 401, 403, 422)
    )
    async def timeseries(
        metric: Annotated[Metric, Query(description="What to show; times in seconds.")],
        window: _Window = "1h",
        step: _Step = None,
        by: Annotated[By, Query(description="One series for each of these; `none`: one for all.")] = "none",
        scope: ScopeQuery = None,
    ) -> Response:
        window = "1h" if window is None else window
        fleet, share = reader_of(controller, scope), HERE
        if fleet is not None:
            try:
                return reply(await _fleet_series(controller, fleet, metric, window, step, by))
            except StoreError as error:
                share = instead(fleet, error.reason)
        reader = series_of(controller, metric, window, step, by)
        await _stepwise(reader.steps())
        return reply(reader.answer(share))

    return router
