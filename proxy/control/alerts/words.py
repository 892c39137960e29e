"""What is said of an alert in one sentence: what, where, how bad; and where to read on.

Names of backends, models and SLOs as they are labels; nothing of a request but counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from proxy.control.record import iso_time
from scoring.alarm_rule import Evaluation
from scoring.alarm_share import BLOCKS_LEAST

RUNBOOKS: Final = "deploy/runbooks"


def runbook(rule: str) -> str:
    """The page of a rule, from the project's root."""
    return f"{RUNBOOKS}/{rule.replace('_', '-')}.md"


def link(base: str | None, key: str) -> str | None:
    """Where an alert is seen, if anybody said how people reach the admin API."""
    return None if base is None else f"{base}/api/alerts#{quote(key, safe='')}"


def summary(rule: str, labels: Mapping[str, str], said: Evaluation, since_ns: int) -> str:
    """``42% of 310 requests of llama-70b on canary missed a deadline in the last minute (usual 1.2%), since
    2026-11-22T03:14:10Z``."""
    since = iso_time(since_ns)[:19] + "Z"
    return f"{_what(rule, labels, said)}, since {since}"


def over(rule: str, labels: Mapping[str, str], since_ns: int, until_ns: int) -> str:
    """The same when it is over."""
    lasted_s = max(until_ns - since_ns, 0) // 10**9
    minutes, seconds = divmod(lasted_s, 60)
    lasted = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    return f"{rule} of {_where(labels)} is over after {lasted}"


def _what(rule: str, labels: Mapping[str, str], said: Evaluation) -> str:
    figures, where = said.evidence, _where(labels)
    if rule in ("spike", "errors") and "requests" in figures:
        what = "missed a deadline" if rule == "spike" else "failed"
        share, usual = said.value or 0.0, figures.get("usual_share", 0.0)
        cold = figures.get("usual_minutes", BLOCKS_LEAST) < BLOCKS_LEAST  # too little was seen of the group
        known = f"usual: not known yet, {usual:.1%} is assumed" if cold else f"usual {usual:.1%}"
        return (
            f"{share:.0%} of {figures['requests']:.0f} requests of {where} {what} in the last minute "
            f"({known})"
        )
    if rule == "stalled" and figures.get("streams"):
        silent_s = figures.get("silent_s", 0.0)
        silent = f", none had a token for {silent_s:.0f} s" if silent_s >= 20 else ""
        return f"{figures['overdue']:.0f} of {figures['streams']:.0f} streams of {where} are overdue{silent}"
    if rule == "backend_down":
        return f"backend {labels.get('backend', '')} is down: {said.reason}"
    return f"{where}: {said.reason}" if said.reason else where


def _where(labels: Mapping[str, str]) -> str:
    if "model" in labels:
        slo = f" (SLO {labels['slo']})" if "slo" in labels else ""
        return f"{labels['model']} on {labels['backend']}{slo}"
    if "backend" in labels:
        return f"backend {labels['backend']}"
    if "experiment" in labels:
        return f"experiment {labels['experiment']}"
    if "host" in labels:
        return f"Legato on {labels['host']} ({labels.get('what', '')})"
    return f"SLO {labels.get('slo', '')} ({labels.get('window', '')})"
