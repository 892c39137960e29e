"""Any other event stream, SSE or NDJSON: each non-empty event is one token, and a clean end is its end.

Its score says when something came, not what; the record's ``dialect`` tells so.  (``[DONE]`` and events named
``error`` never reach ``read``.)
"""

from __future__ import annotations

from typing import Final

from proxy.relay.dialects.base import (
    ANSWER,
    EVENTS,
    RANKS,
    Fields,
    Output,
    Reading,
    error_word,
    identifier,
    loose,
    model_name,
    plainly,
)

_NOT_PLAIN: Final = (b'{"error"', b'{ "error"', b"[DONE]")


class Generic:
    """See the module."""

    name = "generic"
    counted_end = True
    plain_rank = RANKS[EVENTS]

    @staticmethod
    def serves(path: str) -> bool:
        """No path promises it."""
        return False

    @staticmethod
    def shows(fields: Fields) -> bool:
        """Nothing proves it: it is what is left."""
        return False

    @staticmethod
    def response_id(fields: Fields) -> str | None:
        """``id``, which most APIs call it."""
        return identifier(plainly(fields, "id"))

    @staticmethod
    def model(fields: Fields) -> str | None:
        """``model``, which most APIs call it."""
        return model_name(plainly(fields, "model"))

    @staticmethod
    def decode(data: bytes) -> bytes:
        """The bytes themselves."""
        return data

    @staticmethod
    def mend(data: bytes) -> bytes | None:
        """Never needed: ``decode`` refuses nothing."""
        return data

    @staticmethod
    def quick(data: bytes) -> int:
        """As ``plain``: there is nothing to decode."""
        return 0 if data.startswith(_NOT_PLAIN) else len(data)

    @staticmethod
    def plain(chunk: bytes) -> int:
        """The event's size; an object that begins with ``error`` is looked at by ``read``."""
        return 0 if chunk.startswith(_NOT_PLAIN) else len(chunk)

    @staticmethod
    def read(chunk: bytes) -> Reading | None:
        """An error object is an error; everything else is output."""
        try:
            value = loose(chunk)
        except ValueError:
            value = None
        if isinstance(value, dict) and value.get("error") is not None:
            return Reading(error=error_word(value["error"]))
        return Reading([Output(0, ANSWER, len(chunk))] if chunk else [])
