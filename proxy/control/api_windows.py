"""``/api/summary``, ``/api/timeseries``, ``/api/curves/miss-rate``: what was measured, by window."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated, Final

from fastapi import APIRouter, Query, Response

from proxy.control.core import Controller
from proxy.control.schema import ApiError, answers, reply
from proxy.control.summary import Summary, summarise
from proxy.control.timeseries import POINTS_MOST, By, Metric, Reader, TimeSeries, Wanted, step_of
from proxy.control.windowed import MissRates, miss_rates, summarise_window
from proxy.control.windows import DAY_NS
from proxy.tasks import spawn
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
    """Merges a window in steps, so that the link and other readers have their turn between them."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._renewing: dict[int, asyncio.Task[None]] = {}

    async def ready(self, window_ns: int) -> None:
        """Returns when an answer takes no longer than an answer may; the next one is seen to."""
        book, now_ns = self._controller.windows, self._controller.now_unix_ns()
        if book.due(window_ns, now_ns) and window_ns not in self._renewing:
            task = spawn(_stepwise(book.renew(window_ns, now_ns)), "window")
            self._renewing[window_ns] = task
            task.add_done_callback(lambda _: self._renewing.pop(window_ns, None))
        if not book.has(window_ns, now_ns):
            await asyncio.shield(self._renewing[window_ns])


async def _stepwise(steps: Iterator[None]) -> None:
    for _ in steps:
        await asyncio.sleep(0)


_Window = Annotated[
    str | None,
    Query(
        max_length=32,
        description="The stretch of time up to now, 10s to 1d, with its unit (`5m`, `1h`). Its old end is "
        "moved outwards to a slot's (10 s in the last hour, 1 min before), by up to half a minute more where "
        "the same window was asked a moment ago: `covered_from` tells.",
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


def series_of(controller: Controller, metric: Metric, window: str, step: str | None, by: By) -> Reader:
    """The question of ``/api/timeseries``; ``ApiError`` 422 where it cannot be answered."""
    window_ns, now_ns = window_of(window), controller.now_unix_ns()
    step_ns = -(-window_ns // _POINTS) if step is None else duration("step", step, TEN_NS, DAY_NS, _STEP)
    if step_ns > window_ns:
        raise ApiError(422, f"step: {step!r} is longer than the window {window!r}", _STEP)
    controller.windows.advance(now_ns)
    wanted = Wanted(metric, by, now_ns - window_ns, now_ns, step_of(step_ns, window_ns))
    reader = Reader(controller.windows, wanted)
    if reader.count > POINTS_MOST:
        message = f"step: {step!r} makes {reader.count} points by {by}: {POINTS_MOST} are possible"
        raise ApiError(422, message, "give a longer step, a shorter window, or by=none")
    return reader


def windows_router(controller: Controller) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/api", tags=["windows"])
    preparing = _Preparing(controller)

    @router.get(
        "/summary",
        summary="Everything since the start or in a window, by group",
        **answers(Summary, 401, 403, 422),
    )
    async def summary(window: _Window = None) -> Response:
        if window is None:
            return reply(summarise(controller))
        window_ns = window_of(window)
        await preparing.ready(window_ns)
        return reply(summarise_window(controller, window_ns))

    @router.get(
        "/curves/miss-rate",
        summary="Miss-rate curves in a window, by group",
        **answers(MissRates, 401, 403, 422),
    )
    async def show_miss_rates(window: _Window = "1h") -> Response:
        window_ns = window_of("1h" if window is None else window)
        await preparing.ready(window_ns)
        return reply(miss_rates(controller, window_ns))

    @router.get(
        "/timeseries", summary="One metric over a window, in steps", **answers(TimeSeries, 401, 403, 422)
    )
    async def timeseries(
        metric: Annotated[Metric, Query(description="What to show; times in seconds.")],
        window: _Window = "1h",
        step: _Step = None,
        by: Annotated[By, Query(description="One series for each of these; `none`: one for all.")] = "none",
    ) -> Response:
        reader = series_of(controller, metric, "1h" if window is None else window, step, by)
        await _stepwise(reader.steps())
        return reply(reader.answer())

    return router
