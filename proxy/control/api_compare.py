"""``/api/compare``: two backends over a window, for one look.

Not an experiment: it compares whoever was sent to either, with intervals that hold for one window chosen
beforehand (``scoring.compare_fixed``).  From this host's windows or the fleet's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Response

from proxy.control.api_windows import window_of
from proxy.control.core import Controller
from proxy.control.fleet.store import StoreError
from proxy.control.guard import Guard
from proxy.control.look import Asked, CompareLook, NothingToCompare, compared
from proxy.control.schema import ApiError, answers, reply
from proxy.control.scope import HERE, Scope, ScopeQuery, Share, instead, of_all, reader_of
from proxy.control.settle import NONE, GroupKey
from proxy.control.windows import Windowed
from proxy.settings.problems import suggest

STRUCTS: Final = (CompareLook,)
#: Names that an error lists.
_NAMED_MOST: Final = 20

_Backend = Annotated[str, Query(max_length=200, description="A backend's name.")]
_Only = Annotated[str | None, Query(max_length=256, description="Only this one's requests.")]
_Window = Annotated[
    str, Query(max_length=32, description="The stretch of time up to now, 10s to 1d, with its unit.")
]


def compare_router(controller: Controller, reads: Guard) -> APIRouter:
    """The route."""
    router = APIRouter(prefix="/api", tags=["experiments"], dependencies=[Depends(reads)])

    @router.get(
        "/compare", summary="Two backends over a window, for one look", **answers(CompareLook, 401, 403, 422)
    )
    async def compare(
        a: _Backend,
        b: _Backend,
        window: _Window = "1h",
        model: _Only = None,
        slo: _Only = None,
        scope: ScopeQuery = None,
    ) -> Response:
        asked = Asked(a, b, model, slo, window_of(window))
        if a == b:
            raise ApiError(422, f"b: {_shown(b)} is a too", "name two backends")
        read, share = await _read(controller, asked.window_ns, scope)
        _check_names(controller, asked, read.groups)
        try:
            return reply(compared(asked, read, share))
        except NothingToCompare as empty:
            raise _nothing(asked, empty.backends, window) from None

    return router


async def _read(controller: Controller, window_ns: int, scope: Scope | None) -> tuple[Windowed, Share]:
    reader, share = reader_of(controller, scope), HERE
    if reader is not None:
        try:
            found = await reader.read(window_ns, reader.now_ns())
            return found.windowed, of_all(reader, found.instances)
        except StoreError as error:
            share = instead(reader, error.reason)
    for _ in controller.windows.prepare(window_ns, controller.now_unix_ns()):
        await asyncio.sleep(0)  # the link and other readers have their turn
    return controller.windows.read(window_ns, controller.now_unix_ns()), share


def _check_names(controller: Controller, asked: Asked, groups: Iterable[GroupKey]) -> None:
    keys = list(groups)
    backends = {spec.name for spec in controller.table.backends} | {key.backend for key in keys}
    slos = {slo.name for slo in controller.slos} | {key.slo for key in keys}
    for place, name, known, what in (
        ("a", asked.control, backends, "backend"),
        ("b", asked.candidate, backends, "backend"),
        ("model", asked.model, {key.model for key in keys}, "model"),
        ("slo", asked.slo, slos, "SLO"),
    ):
        if name is None or name in known:
            continue
        meant = suggest(name, known - {NONE})  # nobody means what stands for no name at all
        listed = ", ".join(sorted(known)[:_NAMED_MOST]) or "none yet"
        mend = f"did you mean {meant!r}?" if meant else f"known are: {listed}"
        raise ApiError(422, f"{place}: {_shown(name)} is no {what} that is known here", mend)


def _nothing(asked: Asked, empty: list[str], window: str) -> ApiError:
    of = [f", {kind} {_shown(name)}" for kind, name in (("model", asked.model), ("SLO", asked.slo)) if name]
    return ApiError(
        422,
        f"no request of {' and '.join(empty)}{''.join(of)} ended in the last {window}",
        "send it some, or give a longer window",
    )


def _shown(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:57] + "...")
