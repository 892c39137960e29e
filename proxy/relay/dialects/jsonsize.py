"""The size of what a server sent as parsed JSON where others send text: a tool call's arguments."""

from __future__ import annotations

import json

import msgspec

from proxy.relay.dialects.base import utf8_size


def json_size(value: object) -> int:
    """Bytes of UTF-8 of a decoded JSON value, written compactly; text counts as it is.  Raises nothing."""
    if isinstance(value, str):
        return utf8_size(value)
    try:
        return len(msgspec.json.encode(value))
    except (ValueError, RecursionError):  # lone surrogates; nested to the decoder's very limit
        try:
            return utf8_size(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
        except (ValueError, RecursionError):
            return 0
