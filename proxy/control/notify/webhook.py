"""A webhook: the message as JSON, signed where there is a secret.  The document: ``webhook.schema.json``."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Callable
from typing import ClassVar, Literal

import msgspec
from msgspec import Struct, structs

from proxy.control.alerts.notice import Message, Notice, State
from proxy.control.notify.base import Kind, Notifier, Origin, Outcome
from proxy.control.notify.http import Post


class Payload(Struct, frozen=True):
    """What a webhook is sent: a message, and who sends it.

    ``id`` is the same for every attempt; ``instance``: the host that sends.  Times are unix nanoseconds.
    """

    schema: Literal[1]
    instance: str
    version: str
    id: str
    rule: str
    state: State
    notices: tuple[Notice, ...]


class Webhook(Notifier):
    """See the module."""

    kind: ClassVar[Kind] = "webhook"

    def __init__(
        self,
        name: str,
        where: str,
        *,
        post: Post,
        secret: bytes | None,
        origin: Origin,
        unix_ns: Callable[[], int],
    ) -> None:
        super().__init__(name, where)
        self._post = post
        self._secret = secret
        self._origin = origin
        self._unix_ns = unix_ns

    async def tell(self, message: Message) -> Outcome:
        """POST it."""
        body = payload(message, self._origin)
        at_s = str(self._unix_ns() // 1_000_000_000)
        headers = {"X-Legato-Id": _plain(message.id), "X-Legato-Timestamp": at_s}
        if self._secret is not None:
            headers["X-Legato-Signature"] = f"v1={signature(self._secret, at_s, body)}"
        return self._post.outcome(await self._post(body, headers))


def payload(message: Message, origin: Origin) -> bytes:
    """The body."""
    notices = tuple(_finite(notice) for notice in message.notices)
    told = Payload(1, origin.instance, origin.version, message.id, message.rule, message.state, notices)
    return msgspec.json.encode(told)


def signature(secret: bytes, at_s: str, body: bytes) -> str:
    """HMAC-SHA256 over the time, a full stop and the body, in hex: the time is signed against replays."""
    return hmac.new(secret, at_s.encode() + b"." + body, hashlib.sha256).hexdigest()


def _finite(notice: Notice) -> Notice:
    """JSON has no infinity: such figures are left out."""
    value = notice.value if notice.value is not None and math.isfinite(notice.value) else None
    figures = {name: figure for name, figure in notice.figures.items() if math.isfinite(figure)}
    return structs.replace(notice, value=value, figures=figures)


def _plain(text: str) -> str:
    """Fit for a header."""
    return "".join(char if char.isascii() and char.isprintable() else "?" for char in text)[:128]
