"""``/api/backends``: how each backend does, and who is taken out of its splits."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Response
from msgspec import Meta, Struct

from proxy.control.core import Controller
from proxy.control.experiments.health import Health, HealthView
from proxy.control.guard import Guard
from proxy.control.record import iso_time
from proxy.control.schema import answers, reply


class BackendPool(Struct, frozen=True):
    """The connections of all workers of this host to it, as of their last second."""

    up: Annotated[bool, Meta(description="The last connection that was tried was made, by some worker.")]
    since: Annotated[str, Meta(description="Since when it is up, or down.")]
    active: int
    idle: int
    connecting: int
    addresses: Annotated[int, Meta(description="How many its name has.")]


class BackendHealth(Struct, frozen=True, kw_only=True):
    """One backend, by the requests that it was asked for on this host."""

    name: str
    state: Annotated[
        str,
        Meta(
            description="ok | failing | ejected (it gets nothing of its splits) | returning (in steps of "
            "10%, 30% and all of its weight)"
        ),
    ]
    since: Annotated[str, Meta(description="Since when the state is what it is.")]
    until: Annotated[str | None, Meta(description="The end of being ejected, or of this step.")]
    kept: Annotated[str | None, Meta(description="It is failing: why it is not taken out all the same.")]
    weight_factor: Annotated[float, Meta(description="0 to 1: what its weight in splits is lowered to.")]
    splits: Annotated[dict[str, int], Meta(description="Its weights in force, by split.")]
    requests: Annotated[int, Meta(description="Of the window; those that say nothing of it are left out.")]
    failures: Annotated[
        int,
        Meta(
            description="Not connected (also where another backend stood in), reset, no answer or nonsense, "
            "timed out, or 5xx but for 503."
        ),
    ]
    failure_ratio: Annotated[float | None, Meta(description="Without requests none.")]
    consecutive_failures: Annotated[int, Meta(description="Since the last request that did not fail.")]
    last_failure: Annotated[str | None, Meta(description="One word of the last failure, or its status.")]
    last_failure_time: str | None
    pool: Annotated[BackendPool | None, Meta(description="Before a worker has told of it: none.")]


class BackendsView(Struct, frozen=True, kw_only=True):
    """All backends of the configuration, by name."""

    time: str
    window_s: Annotated[float, Meta(description="`ejection.window`: what the counts are of.")]
    ejection: Annotated[bool, Meta(description="Whether failing backends are taken out of their splits.")]
    backends: list[BackendHealth]


STRUCTS: Final = (BackendsView, BackendHealth, BackendPool)


def backends_router(controller: Controller, health: Health, reads: Guard) -> APIRouter:
    """The route."""
    router = APIRouter(prefix="/api", tags=["backends"], dependencies=[Depends(reads)])

    @router.get(
        "/backends",
        summary="How each backend does, and who is taken out of its splits",
        **answers(BackendsView, 401, 403),
    )
    async def backends() -> Response:
        splits = health.weights.splits()
        return reply(
            BackendsView(
                time=iso_time(controller.now_unix_ns()),
                window_s=health.settings.window / 1e9,
                ejection=health.settings.enabled,
                backends=[
                    _shown(
                        view,
                        {split.name: split.arms[view.name] for split in splits if view.name in split.arms},
                    )
                    for view in health.views()
                ],
            )
        )

    return router


def _shown(view: HealthView, splits: dict[str, int]) -> BackendHealth:
    return BackendHealth(
        name=view.name,
        state=view.state.value,
        since=iso_time(view.since_unix_ns),
        until=_maybe_time(view.until_unix_ns),
        kept=view.kept,
        weight_factor=view.factor,
        splits=splits,
        requests=view.requests,
        failures=view.failures,
        failure_ratio=round(view.failures / view.requests, 6) if view.requests else None,
        consecutive_failures=view.consecutive,
        last_failure=view.last_error,
        last_failure_time=_maybe_time(view.last_error_unix_ns),
        pool=_pool(view),
    )


def _pool(view: HealthView) -> BackendPool | None:
    pool = view.pool
    if pool is None:
        return None
    since = iso_time(view.up_since_unix_ns or view.since_unix_ns)
    return BackendPool(pool.up, since, pool.active, pool.idle, pool.connecting, pool.addresses)


def _maybe_time(unix_ns: int | None) -> str | None:
    return None if unix_ns is None else iso_time(unix_ns)
