"""``/api/curves``: what prefill and tokens take now, beside what is frozen."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Response
from msgspec import Meta, Struct

from proxy.control.core import Controller
from proxy.control.prefilled import PairPrefill, prefilled
from proxy.control.prefills import WINDOW_NS
from proxy.control.record import iso_time
from proxy.control.schema import answers, reply


class Curves(Struct, frozen=True):
    """Prefill curves by backend and model (miss-rate curves: /api/curves/miss-rate)."""

    time: str
    window_s: Annotated[float, Meta(description="What is live was learned in this stretch of time.")]
    prefill: list[PairPrefill]


STRUCTS: Final = (Curves,)


def curves_router(controller: Controller) -> APIRouter:
    """The route."""
    router = APIRouter(prefix="/api", tags=["curves"])

    @router.get(
        "/curves",
        summary="Prefill curves and times between tokens, live and frozen",
        **answers(Curves, 401, 403),
    )
    async def curves() -> Response:
        await controller.prefills.refresh(asked=True)
        shown = prefilled(controller.prefills, controller.now_monotonic_ns())
        return reply(Curves(iso_time(controller.now_unix_ns()), WINDOW_NS / 1e9, shown))

    return router
