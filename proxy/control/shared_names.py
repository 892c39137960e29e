"""Every hash and lease that hosts share: its name, and how long it is kept.

In Redis they stand as ``PREFIX:LAYOUT:shared:NAME`` and ``PREFIX:LAYOUT:lease:NAME`` (``fleet/layout.py``);
what they hold and weigh is a row each in ``fleet/README.md``.  A hash is gone so many seconds after the last
write to it.
"""

from __future__ import annotations

from typing import Final

_MINUTE_S: Final = 60
_DAY_S: Final = 86_400

#: Of each split the words that were said about its weights.
WEIGHTS: Final = "weights"
WEIGHTS_KEPT_S: Final = 10 * _MINUTE_S

#: Which experiments there are, by name; and what each control process counted of one.
EXPERIMENTS: Final = "experiments"
EXPERIMENTS_KEPT_S: Final = 30 * _DAY_S

#: What each host sees and calls its alerts; and what notifiers took.
ALERTS_SAID: Final = "alerts:said"
ALERTS_SAID_KEPT_S: Final = 60 * _MINUTE_S
ALERTS_SENT: Final = "alerts:sent"
ALERTS_SENT_KEPT_S: Final = 2 * _DAY_S
#: What each host settled, by group in 10 s, by SLO in a minute: a little longer than it is looked back.
ALERT_SLOTS_KEPT_S: Final = 65 * _MINUTE_S
ALERT_MINUTES_KEPT_S: Final = 370 * _MINUTE_S

#: The lease of who tells people.
ALERTS: Final = "alerts"
ALERTS_LEASE_S: Final = 20


def experiment_counts(name: str) -> str:
    """What each control process counted of this experiment."""
    return f"experiment:{name}"


def alert_slot(number: int) -> str:
    """The N-th 10 s since 1970."""
    return f"alerts:10s:{number}"


def alert_minute(number: int) -> str:
    """The N-th minute since 1970."""
    return f"alerts:1m:{number}"


#: All of them as the documents write them, and how long they are kept; each stands at a key of its own.
HASHES: Final = {
    WEIGHTS: WEIGHTS_KEPT_S,
    EXPERIMENTS: EXPERIMENTS_KEPT_S,
    "experiment:NAME": EXPERIMENTS_KEPT_S,
    "alerts:10s:N": ALERT_SLOTS_KEPT_S,
    "alerts:1m:N": ALERT_MINUTES_KEPT_S,
    ALERTS_SAID: ALERTS_SAID_KEPT_S,
    ALERTS_SENT: ALERTS_SENT_KEPT_S,
}
LEASES: Final = {ALERTS: ALERTS_LEASE_S}
