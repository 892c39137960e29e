"""What every alert rule answers, and how long an answer must hold before somebody is told.

A rule looks at numbers and says ``Evaluation``; ``Hold`` turns a row of them into a ``Phase`` (ok, pending,
firing) with a resolution that is slower and lower than the firing, so that nothing flaps.  Pure: time is an
argument, in nanoseconds of any clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

SECOND_NS: Final = 1_000_000_000

State = Literal["ok", "pending", "firing"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a rule says of one moment.

    ``fires``: the condition holds; ``clears``: it is far enough from holding to count towards resolution
    (between the two neither is set).  ``value`` is compared with ``threshold`` (both in the rule's own
    unit; ``value`` is ``None`` where there is nothing to judge).  ``evidence``: the figures behind it by
    name, ``reason``: one sentence without names of users, models or prompts.
    """

    fires: bool
    clears: bool
    value: float | None
    threshold: float
    evidence: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Phase:
    """Where an alert stands.  ``since_ns``: since when in that state (pending and firing: since the
    condition was first seen); ``calm_ns``: since when it clears; ``judged_ns``: when there was last
    anything to judge."""

    state: State = "ok"
    since_ns: int = 0
    calm_ns: int | None = None
    judged_ns: int = 0


@dataclass(frozen=True, slots=True)
class Hold:
    """How long a rule must fire before it is believed, and be clear before it is resolved, in seconds.

    ``quiet_s``: where nothing could be judged for so long (no traffic) a firing alert is resolved too.
    ``ValueError`` for a negative time.
    """

    fire_s: float = 0
    clear_s: float = 120
    quiet_s: float = 900

    def __post_init__(self) -> None:
        for name in ("fire_s", "clear_s", "quiet_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} {getattr(self, name)!r}: give seconds from 0 up")

    def step(self, phase: Phase, said: Evaluation, now_ns: int) -> Phase:
        """The phase after this evaluation.  A clock that goes back does nothing but wait."""
        judged_ns = phase.judged_ns if said.value is None and phase.judged_ns else now_ns
        if phase.state == "firing":
            return self._while_firing(phase, said, now_ns, judged_ns)
        if not said.fires:
            return Phase("ok", phase.since_ns if phase.state == "ok" else now_ns, None, judged_ns)
        since_ns = phase.since_ns if phase.state == "pending" else now_ns
        held = now_ns - since_ns >= self.fire_s * SECOND_NS
        return Phase("firing" if held else "pending", since_ns, None, judged_ns)

    def _while_firing(self, phase: Phase, said: Evaluation, now_ns: int, judged_ns: int) -> Phase:
        if said.fires:
            return Phase("firing", phase.since_ns, None, judged_ns)
        calm_ns = phase.calm_ns
        if said.clears:
            calm_ns = now_ns if calm_ns is None else calm_ns
        elif said.value is not None:
            calm_ns = None  # between the two thresholds: neither better nor worse
        calm = calm_ns is not None and now_ns - calm_ns >= self.clear_s * SECOND_NS
        quiet = now_ns - judged_ns >= self.quiet_s * SECOND_NS
        if calm or (quiet and said.value is None):
            return Phase("ok", now_ns, None, judged_ns)
        return Phase("firing", phase.since_ns, calm_ns, judged_ns)


def share_of(name: str, value: float) -> float:
    """``value`` if it is above 0 and at most 1; ``ValueError`` that names it otherwise."""
    if not 0 < value <= 1:
        raise ValueError(f"{name} {value!r}: give a share above 0%, up to 100%")
    return value
