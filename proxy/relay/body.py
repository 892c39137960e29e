"""What is read of a response that is no event stream: a bounded copy of its JSON, looked at once, at the end.

Usage, the finish reason, the response's id, or an error's type or code.  A body beyond the bound, or in an
encoding that cannot be read, still is a record: without tokens.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from proxy.link import Stream, Usage
from proxy.relay.decompress import BadEncoding, Bomb, Inflater
from proxy.relay.dialects.base import BROKEN, count, error_word, identifier, word
from proxy.relay.dialects.registry import by_path

BODY_LIMIT: Final = 1024 * 1024


class _Choice(Struct, gc=False):
    finish_reason: object = None


class _Body(Struct, gc=False):
    """The top-level fields that matter; what is not one of them is skipped, not built."""

    id: object = None
    usage: dict[str, object] | None = None
    choices: list[_Choice] | None = None
    error: object = None
    stop_reason: object = None  # Anthropic's messages
    status: object = None  # OpenAI's responses


_decode: Final = msgspec.json.Decoder(_Body).decode


class BodyTap:
    """The tap of a response that is one body.  The interface is ``Tap``'s; no deadline applies to it."""

    __slots__ = (
        "_body",
        "_inflater",
        "_name",
        "_over",
        "_reading",
        "faults",
        "finished",
        "tokens",
        "unmeasured",
    )

    def __init__(self, path: str, inflater: Inflater | None) -> None:
        dialect = by_path(path)
        self._name = "generic" if dialect is None else dialect.name
        self._inflater = inflater
        self._body = bytearray()
        self._over = False
        self._reading = _Body()
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
        except (BadEncoding, Bomb):
            self._drop()
            return
        except Exception:
            self._fault()
            return
        if len(self._body) + len(data) > BODY_LIMIT:
            self._drop()
        else:
            self._body += data

    def finish(self, at_ns: int, complete: bool = True) -> None:
        """Read what the copy tells.  A body that is no JSON tells nothing, and that is no fault."""
        try:
            self.finished = self.finished or complete
            if self._body:
                self._reading = _decode(self._body)
        except BROKEN:
            pass
        except Exception:
            self._fault()
        self._drop()

    def to_stream(self) -> Stream:
        """The facts."""
        try:
            return self._stream()
        except Exception:
            self._fault()
            return Stream(self._name, unmeasured=self.unmeasured)

    def overdue_ns(self, now_ns: int) -> int:
        """No token is due."""
        return 0

    def missed_by(self, now_ns: int) -> int:
        """No deadline is missed."""
        return 0

    def _stream(self) -> Stream:
        body = self._reading
        usage = _usage(body.usage or {})
        reason = body.choices[0].finish_reason if body.choices else body.stop_reason
        return Stream(
            self._name,
            tokens_source="usage",
            usage=usage,
            finish_reason=word(reason, "other") if reason else None,
            finished=self.finished,
            error=None if body.error is None else error_word(body.error),
            response_id=identifier(body.id),
            unmeasured=self.unmeasured,
        )

    def _drop(self) -> None:
        self._over = True
        self._body = bytearray()
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


def _usage(usage: dict[str, object]) -> Usage:
    """OpenAI's names, then those of Anthropic and of OpenAI's responses."""
    prompt = count(usage.get("prompt_tokens", usage.get("input_tokens")))
    output = count(usage.get("completion_tokens", usage.get("output_tokens")))
    cached = _detail(usage, ("prompt_tokens_details", "input_tokens_details"), "cached_tokens")
    reasoning = _detail(usage, ("completion_tokens_details", "output_tokens_details"), "reasoning_tokens")
    return Usage(prompt=prompt, output=output, cached=cached, reasoning=reasoning)


def _detail(usage: dict[str, object], places: tuple[str, ...], key: str) -> int | None:
    for place in places:
        details = usage.get(place)
        if isinstance(details, dict):
            return count(details.get(key))
    return None
