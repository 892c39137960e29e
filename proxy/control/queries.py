"""Query parameters that a route does not know: refused, since whoever mistypes one reads the wrong answer."""

from __future__ import annotations

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel

from proxy.control.schema import ApiError
from proxy.settings.problems import suggest


def only_known(request: Request) -> None:
    """Pass, or raise ``ApiError`` 422 with the parameter that was probably meant."""
    route = request.scope.get("route")
    if not request.query_params or not isinstance(route, APIRoute) or not route.path.startswith("/api"):
        return
    known = _known(route)
    for name in request.query_params:
        if name not in known:
            meant = suggest(name[:60], known)
            there_are = f"it knows {', '.join(known)}" if known else "it takes none"
            mend = f"did you mean {meant}?" if meant else there_are
            raise ApiError(422, f"{name[:60]!r} is no parameter of {route.path}", mend)


def _known(route: APIRoute) -> list[str]:
    """A route's parameters; those of a model (``Annotated[Filters, Query()]``) one by one."""
    out: list[str] = []
    for field in route.dependant.query_params:
        model = field.field_info.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            out += model.model_fields
        else:
            out.append(field.alias)
    return out
