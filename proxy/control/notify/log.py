"""Telling the log: one line an alert."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import ClassVar, Final

from proxy.control.alerts.notice import Message, Notice
from proxy.control.notify.base import Kind, Notifier, Outcome

_log = logging.getLogger("legato.alerts")

_NOT_A_NAME: Final = re.compile(r"[^A-Za-z0-9_.-]")
#: So many of one message have a line of their own.
_MOST_LINES: Final = 50
_TAKEN: Final = Outcome(taken=True, said="written")


class Log(Notifier):
    """A warning for what fires, an information for what is over."""

    kind: ClassVar[Kind] = "log"

    def __init__(self, name: str) -> None:
        super().__init__(name, "standard error")

    async def tell(self, message: Message) -> Outcome:
        """Write it."""
        level = logging.WARNING if message.state == "firing" else logging.INFO
        for notice in message.notices[:_MOST_LINES]:
            _log.log(level, "%s", line(notice))
        if (more := len(message.notices) - _MOST_LINES) > 0:
            _log.log(level, "alert state=%s rule=%s and %d more", message.state, message.rule, more)
        return _TAKEN


def line(notice: Notice) -> str:
    """``alert state=firing rule=spike severity=page backend=vllm summary="..." value=0.31 ...``."""
    told = {
        "state": notice.state,
        "rule": notice.rule,
        "severity": notice.severity,
        **{_NOT_A_NAME.sub("_", name): text for name, text in notice.labels.items()},
        "summary": notice.summary,
        "value": None if notice.value is None else f"{notice.value:.6g}",
        "threshold": f"{notice.threshold:.6g}",
        "since": _when(notice.since_unix_ns),
        "resolved": None if notice.resolved_unix_ns is None else _when(notice.resolved_unix_ns),
        "incident": notice.incident,
        "number": str(notice.number),
        "worst": ",".join(worst.id for worst in notice.worst) or None,
        "url": notice.url,
    }
    parts = [f"{name}={_quoted(value)}" for name, value in told.items() if value is not None]
    return " ".join(["alert", *parts])


def _quoted(text: str) -> str:
    """As it is where it is one plain word; otherwise as a JSON string, so that a line stays one line."""
    plain = text.isascii() and text.isprintable() and not any(char in text for char in ' "=\\')
    return text if text and plain else json.dumps(text)


def _when(unix_ns: int) -> str:
    return datetime.fromtimestamp(unix_ns / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
