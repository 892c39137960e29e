"""What travels from the alerts to those who are told: one alert, and a message of several of one rule."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

Severity = Literal["page", "ticket"]
State = Literal["firing", "resolved"]


#: The outcome of a request that has none yet.
IN_FLIGHT: Final = "in_flight"


class Worst(Struct, frozen=True):
    """A request that shows it; by its id it is found in the admin API, on any host of a fleet.

    While it hangs its ``outcome`` is ``in_flight``, ``missed`` is so far, and it is found once it has ended.
    """

    id: str
    request_id: str | None
    trace_id: str | None
    outcome: str
    missed: int | None
    fluidity: float | None


class Notice(Struct, frozen=True):
    """One alert as it is told.

    ``key``: rule and labels, the same on every host and at every time; ``incident``: the same for all that is
    told of one firing; ``number``: 0 for its first message, then counted up by repeats.  ``labels``: backend,
    model and slo, or what the rule is about; ``figures``: by name.  Times are unix nanoseconds: since when
    the condition holds, when it began to fire, when it was resolved.
    """

    key: str
    incident: str
    number: int
    state: State
    rule: str
    severity: Severity
    labels: dict[str, str]
    summary: str
    value: float | None
    threshold: float
    figures: dict[str, float]
    since_unix_ns: int
    fired_unix_ns: int
    resolved_unix_ns: int | None
    at_unix_ns: int
    host: str
    worst: tuple[Worst, ...] = ()
    url: str | None = None  # where to look, if ``alerts.url`` is set
    runbook: str | None = None


class Message(Struct, frozen=True):
    """What one notifier sends at once: the notices of one rule that are due at one time.

    ``id``: the same for every attempt, so that a receiver may tell a repetition.
    """

    id: str
    rule: str
    state: State
    notices: tuple[Notice, ...]
