"""What Legato's admin API says, as far as the demo shows it: JSON in, frozen values out.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ArmView:
    """One backend as Legato measured it.  Times in seconds; ``None``: nothing was observed yet."""

    name: str
    in_flight: int
    overdue: int
    requests: int
    outcomes: dict[str, int]
    good: int
    bad: int
    fluidity_p50: float | None
    fluidity_p1: float | None
    share_under: float | None  # of the scored requests, below the target
    ttft_p50: float | None
    ttft_p99: float | None
    tbt_p50: float | None
    tbt_p99: float | None
    longest_gap: float | None
    missed: int
    suspect: int  # deadlines that Legato's own lateness explains: not counted as missed
    miss_rate: float | None
    tokens: int
    fluid_token_rate: float | None
    fluid_token_rate_reason: str | None


@dataclass(frozen=True, slots=True)
class ProxyView:
    """Legato's own share."""

    forward_p50: float | None
    forward_p99: float | None
    loop_lag_p99: float | None
    dropped: dict[str, int]  # what -> how many, only what is not 0
    unmeasured: dict[str, int]  # streams by reason, only what is not 0


@dataclass(frozen=True, slots=True)
class View:
    """One answer of ``/api/summary``."""

    arms: dict[str, ArmView]
    proxy: ProxyView

    def arm(self, name: str) -> ArmView:
        """That arm; one without numbers if nothing of it was seen yet."""
        return self.arms.get(name) or _EMPTY


def read_summary(data: dict[str, Any]) -> View:
    """``/api/summary`` as a ``View``.  ``KeyError`` or ``TypeError`` if it is none."""
    arms = {group["backend"]: _arm(group) for group in data["groups"] if group["backend"]}
    share = data["proxy"]
    return View(
        arms,
        ProxyView(
            forward_p50=share["forward"]["p50_s"],
            forward_p99=share["forward"]["p99_s"],
            loop_lag_p99=share["event_loop_lag"]["p99_s"],
            dropped={what: count for what, count in share["dropped"].items() if count},
            unmeasured={reason: count for reason, count in share["unmeasured"].items() if count},
        ),
    )


def _arm(group: dict[str, Any]) -> ArmView:
    return ArmView(
        name=group["backend"],
        in_flight=group["in_flight"]["requests"],
        overdue=group["in_flight"]["overdue"],
        requests=group["requests"],
        outcomes={outcome: count for outcome, count in group["outcomes"].items() if count},
        good=group["results"]["good"],
        bad=group["results"]["bad"],
        fluidity_p50=group["fluidity"]["p50"],
        fluidity_p1=group["fluidity"]["p1"],
        share_under=group["share_under_target"],
        ttft_p50=group["ttft_s"]["p50"],
        ttft_p99=group["ttft_s"]["p99"],
        tbt_p50=group["tbt_s"]["p50"],
        tbt_p99=group["tbt_s"]["p99"],
        longest_gap=group["tbt_s"]["max"],
        missed=group["deadlines"]["missed"],
        suspect=group["deadlines"]["suspect"],
        miss_rate=group["deadline_miss_rate"],
        tokens=group["output_tokens"],
        fluid_token_rate=group["fluid_token_rate"],
        fluid_token_rate_reason=group["fluid_token_rate_reason"],
    )


_EMPTY = ArmView(
    name="",
    in_flight=0,
    overdue=0,
    requests=0,
    outcomes={},
    good=0,
    bad=0,
    fluidity_p50=None,
    fluidity_p1=None,
    share_under=None,
    ttft_p50=None,
    ttft_p99=None,
    tbt_p50=None,
    tbt_p99=None,
    longest_gap=None,
    missed=0,
    suspect=0,
    miss_rate=None,
    tokens=0,
    fluid_token_rate=None,
    fluid_token_rate_reason=None,
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One event of a request's timeline: tokens that arrived together, and when the first was due."""

    at_s: float
    tokens: int
    due_s: float
    missed: int


@dataclass(frozen=True, slots=True)
class Stall:
    """A token that came late: the silence began at ``at_s``."""

    at_s: float
    late_s: float
    missed: int


@dataclass(frozen=True, slots=True)
class RequestView:
    """One request with its timeline."""

    id: str
    backend: str
    prompt_tokens: int
    output_tokens: int
    outcome: str
    fluidity: float
    met: int
    missed: int
    late_s: float
    ttft_s: float | None
    ttft_target_s: float
    tbt_target_s: float
    end_s: float
    arrivals: tuple[Arrival, ...]  # of the first choice
    stalls: tuple[Stall, ...]


def read_request(data: dict[str, Any]) -> RequestView | None:
    """``/api/requests/{id}`` as a ``RequestView``; ``None`` where it has no score or no timeline any more."""
    timeline = data["timeline"]
    if timeline is None or data["fluidity"] is None:
        return None
    return RequestView(
        id=data["id"],
        backend=data["backend"],
        prompt_tokens=data["prompt_tokens"],
        output_tokens=data["output_tokens"],
        outcome=data["outcome"],
        fluidity=data["fluidity"],
        met=data["met"],
        missed=data["missed"],
        late_s=data["late_s"],
        ttft_s=data["ttft_s"],
        ttft_target_s=timeline["ttft_target_s"],
        tbt_target_s=timeline["tbt_target_s"],
        end_s=timeline["end_s"],
        arrivals=tuple(
            Arrival(event["at_s"], event["tokens"], event["deadline_s"], event["missed"])
            for event in timeline["events"]
            if not event["choice"]
        ),
        stalls=tuple(
            Stall(stall["at_s"], stall["late_s"], stall["missed"])
            for stall in timeline["stalls"]
            if not stall["choice"] and stall["reason"] is None
        ),
    )
