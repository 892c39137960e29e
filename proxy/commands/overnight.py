"""What else ``legato report`` finds: alerts that fired in its window, speeds beside the frozen ones.  Pure.

Both are other routes of the admin API, and may not be there: then nothing is said of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

Json = Mapping[str, Any]

#: From here up a ratio of live to frozen is told: half way to where the alert fires.
_DRIFTS: Final = (
    ("prefill_drift", "prefill", 1.25),
    ("tbt_p50_drift", "tbt p50", 1.3),
    ("tbt_p99_drift", "tbt p99", 1.75),
)
#: As many are named; the rest is counted.
_NAMED: Final = 3


def fired(alerts: Json, covered_from: str) -> list[str]:
    """One sentence on the alerts that fired in the window or still did in it; none where none did."""
    begun = datetime.fromisoformat(covered_from)
    found: dict[tuple[str, str | None], Json] = {}
    for alert in (*alerts["firing"], *alerts["history"]):
        resolved = alert["resolved"]
        if alert["fired"] and (resolved is None or datetime.fromisoformat(resolved) >= begun):
            found.setdefault((alert["key"], alert["fired"]), alert)
    if not found:
        return []
    return [f"alerts that fired: {_named([_alert(alert) for alert in found.values()])}"]


def drifted(curves: Json, instance: str) -> list[str]:
    """One sentence on the backends that are slower now than the curves in force say; none where none is."""
    found = list(_drifts(curves))
    return [f"slower than frozen (as {instance} sees it): {_named(found)}"] if found else []


def _alert(alert: Json) -> str:
    labels = " / ".join(str(value) for value in alert["labels"].values())
    until = "and still does" if alert["resolved"] is None else f"to {alert['resolved']}"
    return f"{alert['rule']}{f' of {labels}' if labels else ''} from {alert['fired']} {until}"


def _drifts(curves: Json) -> Iterator[str]:
    for pair in curves["prefill"]:
        name = " / ".join(part for part in (pair["backend"], pair["model"]) if part)
        for frozen in pair["frozen"]:
            slower = [
                f"{what} {frozen[field]:.2f} times"
                for field, what, least in _DRIFTS
                if frozen[field] is not None and frozen[field] >= least
            ]
            if slower:
                yield f"{name} {', '.join(slower)} ({frozen['file']})"


def _named(found: list[str]) -> str:
    more = len(found) - _NAMED
    return "; ".join(found[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
