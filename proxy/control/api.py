"""The admin API: probes, metrics, and what was measured, as typed JSON.

Every answer is a struct (``schema.py``), every error an ``Error`` with its mend, every route is in the
OpenAPI document.  Nothing here is computed twice: the routes only choose and encode.
"""

from __future__ import annotations

import html
import platform
from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from msgspec import Struct
from starlette.exceptions import HTTPException

from proxy.control.api_curves import STRUCTS as CURVE_STRUCTS
from proxy.control.api_curves import curves_router
from proxy.control.api_fleet import STRUCTS as FLEET_STRUCTS
from proxy.control.api_fleet import fleet_router
from proxy.control.api_requests import STRUCTS as REQUEST_STRUCTS
from proxy.control.api_requests import requests_router
from proxy.control.api_windows import STRUCTS as WINDOW_STRUCTS
from proxy.control.api_windows import windows_router
from proxy.control.core import Controller
from proxy.control.guard import Guard
from proxy.control.record import iso_time
from proxy.control.schema import ApiError, answers, describe, refusal, reply
from proxy.control.stages import STRUCTS as STAGE_STRUCTS
from proxy.control.stages import Stages
from proxy.exporters.prometheus import render

_DESCRIPTION: Final = (
    "What Legato measured on the streams that it carried. Probes and /metrics are open; the rest needs the "
    "token of `admin.token_file`, or, where none is configured, a client on the same host."
)


class Health(Struct, frozen=True):
    """The control process runs."""

    status: str


class Readiness(Struct, frozen=True):
    """Whether traffic may come: a worker has its table and nothing is draining.  Upstreams do not matter."""

    ready: bool
    workers: int
    draining: bool


class Version(Struct, frozen=True):
    """What runs here, and since when it counts."""

    version: str
    python: str
    instance: str
    since: str


class ConfigView(Struct, frozen=True):
    """The configuration in force, secrets taken out."""

    table_version: int
    reload_ok: bool
    reload_error: str | None
    config: dict[str, Any]


STRUCTS: Final[tuple[type[Struct], ...]] = (
    Health,
    Readiness,
    Version,
    ConfigView,
    *WINDOW_STRUCTS,
    *CURVE_STRUCTS,
    *REQUEST_STRUCTS,
    *FLEET_STRUCTS,
    *STAGE_STRUCTS,
)


def create_app(
    controller: Controller,
    *,
    config: Callable[[], dict[str, Any]],
    token: Callable[[], str | None],
    write_token: Callable[[], str | None] = lambda: None,
    reload_error: Callable[[], str | None] = lambda: None,
    stages: Stages | None = None,
) -> FastAPI:
    """The admin application.

    ``config``: the configuration in force, already redacted; ``token``: what readers must send, or ``None``;
    ``write_token``: what those who change something must send; ``stages``: who watches the traffic.
    """
    app = FastAPI(
        title="Legato admin API",
        version=controller.version,
        description=_DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    guard = Guard(token)
    guarded = [Depends(guard)]
    app.include_router(_probes(controller))
    app.include_router(_about(controller, config, reload_error), dependencies=guarded)
    app.include_router(windows_router(controller), dependencies=guarded)
    app.include_router(curves_router(controller), dependencies=guarded)
    app.include_router(requests_router(controller), dependencies=guarded)
    app.include_router(fleet_router(controller), dependencies=guarded)
    if stages is not None:
        for router in stages.routers(guard, guard.changes(write_token)):
            app.include_router(router)
    document: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not document:
            document.update(describe(app, STRUCTS))
        return document

    app.openapi = openapi  # type: ignore[method-assign]
    app.include_router(_pages(app), dependencies=guarded)
    _install_errors(app)
    return app


def _probes(controller: Controller) -> APIRouter:
    router = APIRouter(tags=["probes"])

    @router.get("/healthz", summary="Is the control process alive", **answers(Health))
    async def healthz() -> Response:
        return reply(Health("ok"))

    @router.get("/readyz", summary="May traffic come", **answers(Readiness, 503))
    async def readyz() -> Response:
        ready = controller.ready
        readiness = Readiness(ready, controller.workers.connected, controller.draining)
        return reply(readiness, 200 if ready else 503)

    @router.get(
        "/metrics",
        summary="Prometheus exposition",
        response_model=None,
        response_class=Response,
        openapi_extra={
            "responses": {
                "200": {
                    "description": "Prometheus text, or OpenMetrics where `Accept` prefers it.",
                    "content": {
                        "text/plain": {"schema": {"type": "string"}},
                        "application/openmetrics-text": {"schema": {"type": "string"}},
                    },
                }
            }
        },
    )
    async def metrics(request: Request) -> Response:
        body, content_type = controller.render(render, request.headers.get("accept"))
        return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})

    return router


def _about(
    controller: Controller, config: Callable[[], dict[str, Any]], reload_error: Callable[[], str | None]
) -> APIRouter:
    router = APIRouter(prefix="/api", tags=["about"])

    @router.get("/version", summary="What runs here", **answers(Version, 401, 403))
    async def version() -> Response:
        since = iso_time(controller.since_unix_ns)
        return reply(Version(controller.version, platform.python_version(), controller.instance, since))

    @router.get("/config", summary="The configuration in force, redacted", **answers(ConfigView, 401, 403))
    async def show_config() -> Response:
        return reply(ConfigView(controller.table.version, controller.reload_ok, reload_error(), config()))

    return router


def _pages(app: FastAPI) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/openapi.json")
    async def openapi() -> Response:
        return reply(app.openapi())

    @router.get("/")
    async def index() -> Response:
        rows = "".join(
            f"<tr><td><a href='{html.escape(path)}'>{html.escape(path)}</a></td>"
            f"<td>{html.escape(operation['summary'])}</td></tr>"
            for path, operations in app.openapi()["paths"].items()
            for operation in operations.values()
        )
        body = (
            f"<!doctype html><title>Legato</title><h1>Legato {html.escape(app.version)}</h1>"
            f"<table>{rows}</table><p><a href='/openapi.json'>OpenAPI</a></p>"
        )
        return Response(body, media_type="text/html; charset=utf-8")

    return router


def _install_errors(app: FastAPI) -> None:
    async def on_api_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return refusal(error)

    async def on_invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"][1:])
        return refusal(ApiError(422, f"{place}: {first['msg']}", "see /openapi.json for what it may be"))

    async def on_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = "there is nothing here" if error.status_code == 404 else str(error.detail)
        return refusal(ApiError(error.status_code, message, "GET / lists what there is"))

    async def on_failure(_: Request, error: Exception) -> Response:
        name = type(error).__name__  # its text may hold what a record must not
        return refusal(ApiError(500, f"the control process failed: {name}", "please report it"))

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_failure)
