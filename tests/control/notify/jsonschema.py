"""A judge of JSON by JSON Schema, as far as the schemas of these tests go; an unknown word is an error."""

from __future__ import annotations

import re
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_NOTES = {"$schema", "$defs", "title", "description", "definitions", "default", "$id", "$comment", "format"}
_JUDGED = {
    "$ref",
    "type",
    "enum",
    "const",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "pattern",
    "anyOf",
    "allOf",
}


def problems(
    value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, at: str = "$"
) -> list[str]:
    """Everything that is wrong, with its place; empty if nothing is."""
    root = schema if root is None else root
    unknown = schema.keys() - _NOTES - _JUDGED
    if unknown:
        return [f"{at}: the judge does not know {sorted(unknown)}"]
    out: list[str] = []
    if "$ref" in schema:
        out += problems(value, _follow(schema["$ref"], root), root, at)
    if "anyOf" in schema and all(problems(value, each, root, at) for each in schema["anyOf"]):
        out.append(f"{at}: none of anyOf: {value!r}")
    for each in schema.get("allOf", ()):
        out += problems(value, each, root, at)
    if "type" in schema and not _is(value, schema["type"]):
        return [*out, f"{at}: {value!r} is no {schema['type']}"]
    if "enum" in schema and value not in schema["enum"]:
        out.append(f"{at}: {value!r} is none of {schema['enum']}")
    if "const" in schema and value != schema["const"]:
        out.append(f"{at}: {value!r} is not {schema['const']!r}")
    if isinstance(value, str):
        out += _text(value, schema, at)
    if isinstance(value, list):
        out += _list(value, schema, root, at)
    if isinstance(value, dict):
        out += _object(value, schema, root, at)
    return out


def _is(value: Any, kinds: str | list[str]) -> bool:
    named = [kinds] if isinstance(kinds, str) else kinds
    return any(
        isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
        for kind in named
    )


def _follow(ref: str, root: dict[str, Any]) -> dict[str, Any]:
    at: Any = root
    for step in ref.removeprefix("#/").split("/"):
        at = at[step]
    found: dict[str, Any] = at
    return found


def _text(value: str, schema: dict[str, Any], at: str) -> list[str]:
    size = len(value.encode("utf-16-le")) // 2  # as JavaScript counts, which is never less
    out = []
    if not schema.get("minLength", 0) <= size <= schema.get("maxLength", size):
        out.append(f"{at}: {size} characters")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        out.append(f"{at}: {value[:80]!r} is not as {schema['pattern']}")
    return out


def _list(value: list[Any], schema: dict[str, Any], root: dict[str, Any], at: str) -> list[str]:
    out = []
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        out.append(f"{at}: {len(value)} items")
    for index, item in enumerate(value):
        out += problems(item, schema.get("items", {}), root, f"{at}[{index}]")
    return out


def _object(value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any], at: str) -> list[str]:
    known, more = schema.get("properties", {}), schema.get("additionalProperties", {})
    out = [f"{at}: {name} is missing" for name in schema.get("required", ()) if name not in value]
    for name, inner in value.items():
        if name in known:
            out += problems(inner, known[name], root, f"{at}.{name}")
        elif more is False:
            out.append(f"{at}: {name!r} is not known")
        elif isinstance(more, dict):
            out += problems(inner, more, root, f"{at}.{name}")
    return out
