"""Slack: a message for an incoming webhook.

Limits and escaping are Slack's: https://docs.slack.dev/reference/block-kit/blocks and
https://docs.slack.dev/messaging/formatting-message-text
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

import msgspec

from proxy.control.alerts.notice import Message, Notice
from proxy.control.notify.base import Kind, Notifier, Outcome
from proxy.control.notify.http import Answer, Post

#: Slack's limits, in characters (counted as UTF-16, which is never too few) and items.
HEADER_MOST: Final = 150
SECTION_MOST: Final = 3_000
FIELD_MOST: Final = 2_000
FIELDS_MOST: Final = 10
BLOCKS_MOST: Final = 50
#: Ours: a notice is read at a glance.
_LINE_MOST: Final = 300
_LABEL_MOST: Final = 200
_NOTICES_MOST: Final = 20
_WORST_MOST: Final = 5
_ESCAPES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_URL: Final = re.compile(r"https?://[^\s<>|&\"]+")


class Slack(Notifier):
    """See the module."""

    kind: ClassVar[Kind] = "slack"

    def __init__(self, name: str, where: str, post: Post) -> None:
        super().__init__(name, where)
        self._post = post

    async def tell(self, message: Message) -> Outcome:
        """POST it.  Slack answers "ok"; what answers otherwise (a login page) has told nobody."""
        answer = await self._post(msgspec.json.encode(payload(message)), {})
        if isinstance(answer, Outcome) or not answer.ok or _is_ok(answer):
            return self._post.outcome(answer)
        return Outcome(taken=False, said=f"answered {answer.status}, but without Slack's 'ok'")


def _is_ok(answer: Answer) -> bool:
    """What broke off may have been going to be one; what is longer never was."""
    return answer.body == b"ok" or (not answer.whole and b"ok".startswith(answer.body))


def payload(message: Message) -> dict[str, Any]:
    """``text`` for notifications on the phone, ``blocks`` for the channel."""
    title = _title(message)
    first = message.notices[0].summary if message.notices else ""
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": cut(title, HEADER_MOST), "emoji": True}}
    ]
    for notice in message.notices[:_NOTICES_MOST]:
        blocks += _notice(notice)
    if (more := len(message.notices) - _NOTICES_MOST) > 0:
        blocks.append({"type": "context", "elements": [_text(f"and {more} more", SECTION_MOST)]})
    return {"text": escape(f"{title}: {first}" if first else title, SECTION_MOST), "blocks": blocks}


def _title(message: Message) -> str:
    sign = ":large_green_circle:" if message.state == "resolved" else ":red_circle:"
    if message.state == "firing" and all(each.severity == "ticket" for each in message.notices):
        sign = ":large_yellow_circle:"
    count = f" ({len(message.notices)} alerts)" if len(message.notices) > 1 else ""
    return f"{sign} {message.rule} {message.state}{count}"


def _notice(notice: Notice) -> Iterator[dict[str, Any]]:
    """A section with the figures, and one line of context: two blocks."""
    fields = [f"*{escape(name, _LABEL_MOST)}*\n{escape(text, _LABEL_MOST)}" for name, text in _facts(notice)]
    section: dict[str, Any] = {"type": "section", "text": _text(notice.summary or notice.rule, SECTION_MOST)}
    section["fields"] = [_mrkdwn(field) for field in fields[:FIELDS_MOST]]
    yield section
    yield {"type": "context", "elements": [_mrkdwn(part) for part in _context(notice)]}


def _facts(notice: Notice) -> Iterator[tuple[str, str]]:
    value = "none" if notice.value is None else f"{notice.value:.4g}"
    yield "value", f"{value} (threshold {notice.threshold:.4g})"
    yield "severity", notice.severity
    yield "since", _when(notice.since_unix_ns)
    if notice.resolved_unix_ns is not None:
        yield "resolved", _when(notice.resolved_unix_ns)
    for name, text in notice.labels.items():
        yield name or "label", text or "none"


def _context(notice: Notice) -> list[str]:
    """At most 10 elements; here up to 4."""
    parts = [escape(f"told by {notice.host}, incident {notice.incident}", _LINE_MOST)]
    links = [_link(url, text) for url, text in ((notice.url, "look"), (notice.runbook, "runbook")) if url]
    if worst := ", ".join(each.id for each in notice.worst[:_WORST_MOST]):
        parts.append(escape(f"worst requests: {worst}", _LINE_MOST))
    return [*parts, *(link for link in links if link)]


def _link(url: str, text: str) -> str:
    """What is no plain URL is shown as text: a path, or what could be mistaken for markup."""
    if _URL.fullmatch(url) and len(url) <= FIELD_MOST - 64:
        return f"<{url}|{text}>"
    return escape(f"{text}: {url}", _LINE_MOST)


def _text(text: str, most: int) -> dict[str, Any]:
    return _mrkdwn(escape(text, most))


def _mrkdwn(text: str) -> dict[str, Any]:
    """``verbatim``: what looks like a channel or a mention stays text."""
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def escape(text: str, most: int) -> str:
    """With ``&``, ``<`` and ``>`` as Slack wants them, in ``most`` characters, no entity cut in two."""
    out: list[str] = []
    used = 0
    for char in text:
        part = _ESCAPES.get(char, char)
        used += _size(part)
        if used > most - 1:
            return "".join([*out, "…"])
        out.append(part)
    return "".join(out) or " "


def cut(text: str, most: int) -> str:
    """Plain text: nothing is escaped."""
    out: list[str] = []
    used = 0
    for char in text:
        used += _size(char)
        if used > most - 1:
            return "".join([*out, "…"])
        out.append(char)
    return "".join(out) or " "


def _size(text: str) -> int:
    return sum(2 if ord(char) > 0xFFFF else 1 for char in text)


def _when(unix_ns: int) -> str:
    return datetime.fromtimestamp(unix_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
