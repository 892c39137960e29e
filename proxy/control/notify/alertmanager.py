"""Alertmanager: alerts by its API v2, ``POST /api/v2/alerts``.

It forgets an alert that it is not told of again (``resolve_timeout``, five minutes), so the lane reminds it.
``endsAt`` is left out while an alert fires: its own clock counts, whatever this host's says.  No label names
this host: what several hosts tell is one alert there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

import msgspec

from proxy.control.alerts.notice import Message, Notice
from proxy.control.notify.base import Kind, Notifier, Outcome
from proxy.control.notify.http import Answer, Post

PATH: Final = "/api/v2/alerts"
_NOT_A_LABEL: Final = re.compile(r"[^A-Za-z0-9_]")
_URL: Final = re.compile(r"https?://[^\s<>\"\\^`{|}]+", re.ASCII)
#: Alerts of one request; Prometheus sends as many.
_AT_ONCE: Final = 256


class Alertmanager(Notifier):
    """See the module."""

    kind: ClassVar[Kind] = "alertmanager"
    forgets: ClassVar[bool] = True

    def __init__(self, name: str, where: str, post: Post, token: str | None) -> None:
        super().__init__(name, where)
        self._post = post
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    async def tell(self, message: Message) -> Outcome:
        """POST what it holds."""
        return await self._put(message.notices)

    async def remind(self, notices: Sequence[Notice]) -> Outcome:
        """As if it were told for the first time."""
        return await self._put(notices)

    async def _put(self, notices: Sequence[Notice]) -> Outcome:
        outcome = Outcome(taken=True, said="nothing to tell")
        for start in range(0, len(notices), _AT_ONCE):
            body = msgspec.json.encode([alert(notice) for notice in notices[start : start + _AT_ONCE]])
            answer = await self._post(body, self._headers)
            outcome = self._post.outcome(answer)
            if isinstance(answer, Answer) and outcome.taken and answer.body.lstrip()[:1] == b"<":
                said = f"answered {answer.status} with a page for people: no Alertmanager does"
                outcome = Outcome(taken=False, said=said)
            if not outcome.taken:
                break
        return outcome


def alert(notice: Notice) -> dict[str, Any]:
    """A ``postableAlert`` of its OpenAPI document."""
    out: dict[str, Any] = {
        "labels": _labels(notice),
        "annotations": {name: text for name, text in _annotations(notice).items() if text},
        "startsAt": _when(notice.fired_unix_ns),
    }
    if notice.state == "resolved":
        ended_ns = notice.at_unix_ns if notice.resolved_unix_ns is None else notice.resolved_unix_ns
        # A clock that was set back in between: an end in the future would let it fire until then.
        out |= {"startsAt": _when(min(notice.fired_unix_ns, ended_ns)), "endsAt": _when(ended_ns)}
    if notice.url and _URL.fullmatch(notice.url):
        out["generatorURL"] = notice.url
    return out


def _labels(notice: Notice) -> dict[str, str]:
    """Names as Prometheus has them; an empty label is none."""
    named = {_NOT_A_LABEL.sub("_", name): text for name, text in notice.labels.items()}
    told = {(f"_{name}" if name[:1].isdigit() else name): text for name, text in named.items() if name}
    known = {"alertname": alert_name(notice.rule), "severity": notice.severity}
    return {name: text for name, text in (told | known).items() if text}


def alert_name(rule: str) -> str:
    """``burn_rate`` -> ``LegatoBurnRate``, as in the rules for Prometheus."""
    return "Legato" + "".join(word.capitalize() for word in rule.split("_"))


def _annotations(notice: Notice) -> dict[str, str]:
    value = "none" if notice.value is None else f"{notice.value:.4g}"
    figures = [f"{name} {figure:.4g}" for name, figure in notice.figures.items()]
    said = [f"value {value}, threshold {notice.threshold:.4g}", *figures]
    return {
        "summary": notice.summary,
        "description": f"{', '.join(said)}; since {_when(notice.since_unix_ns)}, told by {notice.host}",
        "runbook_url" if _URL.fullmatch(notice.runbook or "") else "runbook": notice.runbook or "",
        "worst": ", ".join(worst.id for worst in notice.worst),
        "incident": notice.incident,
    }


def _when(unix_ns: int) -> str:
    """RFC 3339, in milliseconds."""
    moment = datetime.fromtimestamp(unix_ns // 1_000_000 / 1_000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1_000:03}Z"
