"""What is read of a response that is no event stream: a bounded copy of its JSON, looked at once, at the end.

Usage, the finish reason, the response's id and model, or an error's type or code (``bodies.py``).  Of a body
beyond ``BODY_LIMIT`` the beginning and the end are kept, where these stand; a body that cannot be read, or is
in an encoding that cannot be read, still is a record: without tokens.
"""

from __future__ import annotations

from typing import Final

from proxy.link import Stream
from proxy.relay.bodies import Told, read_cut, read_whole
from proxy.relay.decompress import BadEncoding, Bomb, Inflater
from proxy.relay.dialects.base import BROKEN
from proxy.relay.dialects.registry import by_path

BODY_LIMIT: Final = 1024 * 1024
HEAD_KEPT: Final = 64 * 1024
TAIL_KEPT: Final = 256 * 1024


class BodyTap:
    """The tap of a response that is one body.  The interface is ``Tap``'s; no deadline applies to it."""

    __slots__ = (
        "_body",
        "_head",
        "_inflater",
        "_name",
        "_over",
        "_told",
        "faults",
        "finished",
        "tokens",
        "unmeasured",
    )

    def __init__(self, path: str, inflater: Inflater | None) -> None:
        dialect = by_path(path)
        self._name = "generic" if dialect is None else dialect.name
        self._inflater = inflater
        self._head: bytes | None = None  # the beginning of a large body; None: ``_body`` is all of it so far
        self._body = bytearray()  # the body, or the end of a large one
        self._over = False
        self._told = Told()
        self.faults = 0
        self.tokens = 0
        self.finished = False
        self.unmeasured: str | None = None

    def feed(self, data: bytes, at_ns: int) -> None:
        """Keep a copy, up to the bound."""
        if self._over:
            return
        try:
            if self._inflater is not None:
                data = self._inflater.feed(data)
            self._keep(data)
        except (BadEncoding, Bomb):
            self._drop()
        except Exception:
            self._fault()

    def _keep(self, data: bytes) -> None:
        body = self._body
        if self._head is None:
            if len(body) + len(data) <= BODY_LIMIT:
                body += data
                return
            self._head = bytes(body[:HEAD_KEPT]) + data[: max(HEAD_KEPT - len(body), 0)]
            del body[:-TAIL_KEPT]
        body += data[-TAIL_KEPT:]
        if len(body) > 2 * TAIL_KEPT:  # not at every piece: it would be moved each time
            del body[:-TAIL_KEPT]

    def finish(self, at_ns: int, complete: bool = True) -> None:
        """Read what the copy tells.  A body that is no JSON tells nothing, and that is no fault."""
        try:
            self.finished = self.finished or complete
            if self._head is not None:
                self._told = read_cut(self._head, bytes(self._body[-TAIL_KEPT:]))
            elif self._body:
                self._told = read_whole(bytes(self._body))
        except BROKEN:
            pass
        except Exception:
            self._fault()
        self._drop()

    def to_stream(self) -> Stream:
        """The facts."""
        usage, finish_reason, error, response_id, model = self._told
        return Stream(
            self._name,
            tokens_source="usage",
            usage=usage,
            finish_reason=finish_reason,
            finished=self.finished,
            error=error,
            response_id=response_id,
            unmeasured=self.unmeasured,
            model=model,
        )

    def overdue_ns(self, now_ns: int) -> int:
        """No token is due."""
        return 0

    def missed_by(self, now_ns: int) -> int:
        """No deadline is missed."""
        return 0

    def _drop(self) -> None:
        self._over = True
        self._head, self._body = None, bytearray()
        self._inflater = None

    def _fault(self) -> None:
        self.faults += 1
        self.unmeasured = "tap_error"
        self._drop()


class NullTap:
    """For bodies that carry nothing to count."""

    __slots__ = ("faults", "finished", "tokens", "unmeasured")

    def __init__(self) -> None:
        self.faults = 0
        self.finished = False
        self.tokens = 0
        self.unmeasured: str | None = None

    def feed(self, data: bytes, at_ns: int) -> None:
        """Nothing to see."""

    def finish(self, at_ns: int, complete: bool = True) -> None:
        """The body is whole, or not."""
        self.finished = complete

    def to_stream(self) -> Stream:
        """Nothing was seen."""
        return Stream("generic", finished=self.finished, unmeasured=self.unmeasured)

    def overdue_ns(self, now_ns: int) -> int:
        """No token is due."""
        return 0

    def missed_by(self, now_ns: int) -> int:
        """No deadline is missed."""
        return 0
