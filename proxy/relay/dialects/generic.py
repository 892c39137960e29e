"""Any other event stream: each non-empty data event is one token, and a clean end is its end.

Its score says when something came, not what; the record's ``dialect`` tells so.  (``[DONE]`` and events named
``error`` never reach ``read``.)
"""

from __future__ import annotations

from typing import Final

from proxy.relay.dialects.base import ANSWER, Output, Reading, error_word, loose

_NOT_PLAIN: Final = (b'{"error"', b'{ "error"', b"[DONE]")


class Generic:
    """See the module."""

    name = "generic"
    counted_end = True

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
