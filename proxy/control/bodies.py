"""The JSON bodies of routes that change something: read within a bound, checked key by key, described.

An error names the key, what it held and the mend.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from fastapi import Request
from msgspec import Struct

from proxy.control.schema import ApiError
from proxy.settings.problems import suggest

#: No body that anybody needs is longer.
BODY_MAX: Final = 64 * 1024
_PLACE: Final = re.compile(r" - at `\$\.?([^`]*)`")
_SHOWN: Final = 60

T = TypeVar("T", bound=Struct)


async def body_of(request: Request, model: type[T]) -> T:
    """The body as the struct; ``ApiError`` 413 or 422."""
    return checked(await _read(request), model)


def takes(model: type[Struct], described: dict[str, Any]) -> dict[str, Any]:
    """What ``answers`` says of a route that has such a body; the struct belongs into its ``STRUCTS``."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    described["openapi_extra"]["requestBody"] = body
    return described


async def _read(request: Request) -> bytes:
    held = bytearray()
    async for part in request.stream():
        held += part
        if len(held) > BODY_MAX:
            raise ApiError(
                413, f"the body has more than {BODY_MAX // 1024} KiB", "send only what the route asks for"
            )
    return bytes(held)


def checked(body: bytes, model: type[T]) -> T:
    """The struct that this JSON is; ``ApiError`` 422."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(model)}
    keys = f"its keys are {', '.join(fields)}"
    try:
        told = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ApiError(422, "the body is no JSON", f"send a JSON object: {keys}") from None
    if not isinstance(told, Mapping):
        raise ApiError(422, "the body is no JSON object", f"send one: {keys}")
    for key in told:
        if key not in fields:
            meant = suggest(str(key)[:200], fields)
            raise ApiError(
                422, f"{_shown(key)} is no key of this", f"did you mean {meant!r}?" if meant else keys
            )
    missing = [name for name, field in fields.items() if field.required and name not in told]
    if missing:
        raise ApiError(422, f"{missing[0]} is missing", f"give {', '.join(missing)}")
    try:
        return msgspec.convert(told, model)
    except msgspec.ValidationError as error:
        what = str(error)
        found = _PLACE.search(what)
        place = found[1] if found else ""
        key = re.split(r"[.\[]", place, maxsplit=1)[0]
        held = f" {_shown(told[key])}:" if key in told else ""
        raise ApiError(
            422,
            f"{place or 'the body'}:{held} {_PLACE.sub('', what)}",
            "see /openapi.json for what it may be",
        ) from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
