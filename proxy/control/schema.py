"""Typed answers of the admin API: msgspec structs are both the answer and its OpenAPI schema.

A route says ``**answers(Summary)`` and returns ``reply(Summary(...))``; nothing is described twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from msgspec import Struct

_REF: Final = "#/components/schemas/{name}"
_encoder = msgspec.json.Encoder()


class Problem(Struct, frozen=True):
    """What is wrong and how to mend it."""

    status: int
    message: str
    mend: str


class Error(Struct, frozen=True):
    """The body of every answer that is an error."""

    error: Problem


class ApiError(Exception):
    """Ends a request of the admin API with an ``Error``."""

    def __init__(self, status: int, message: str, mend: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.problem = Problem(status, message, mend)
        self.headers = headers


def reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON of a struct."""
    return Response(
        _encoder.encode(value), status, {"cache-control": "no-store", **(headers or {})}, "application/json"
    )


def refusal(error: ApiError) -> Response:
    """The answer that an ``ApiError`` stands for."""
    return reply(Error(error.problem), error.problem.status, error.headers)


_MEANINGS: Final = {
    401: "A token is configured and this request carries none, or another.",
    403: "No token is configured and the client is not on this host.",
    404: "Not known (any more).",
    409: "Not now: it stands as it is.",
    413: "The body is too long.",
    415: "The body is not JSON by its content type.",
    422: "A parameter, or the body, is not what it should be.",
    503: "Not ready.",
}


def answers(model: type[Struct], *errors: int, name: str | None = None) -> dict[str, Any]:
    """Keyword arguments of a route that answers with ``model``, or with an ``Error`` of these statuses."""

    def body(of: type[Struct]) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": _REF.format(name=of.__name__)}}}

    responses: dict[str, Any] = {"200": {"description": model.__doc__ or "", "content": body(model)}}
    unknown = {422} if 401 in errors else set()  # who must be let in (``Guard``) must name known parameters
    for status in sorted({*errors, *unknown}):
        responses[str(status)] = {"description": _MEANINGS[status], "content": body(Error)}
    return {
        "response_model": None,
        "response_class": Response,
        "openapi_extra": {"responses": responses},
    }


def describe(app: FastAPI, structs: Iterable[type[Struct]]) -> dict[str, Any]:
    """The OpenAPI document of an app whose routes use ``answers`` with these structs."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
    )
    _, components = msgspec.json.schema_components((Error, *structs), ref_template=_REF)
    for operation in (o for path in document["paths"].values() for o in path.values()):
        unprocessable = operation["responses"].get("422")
        if unprocessable is not None:
            unprocessable["content"] = {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}}
            unprocessable["description"] = _MEANINGS[422]
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas.update(components)
    document["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "The token of `admin.token_file`."}
    }
    return document
