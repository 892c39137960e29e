"""The rules in force: those that the settings name, with their limits, for the SLOs of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from proxy.control.alerts.notice import Severity
from proxy.control.alerts.rings import LONGEST_S
from proxy.link import SloSpec
from proxy.settings.alerts import ALL_RULES, Alerts
from proxy.units import format_duration
from scoring.alarm_live import Drift, Stalled
from scoring.alarm_rule import Hold
from scoring.alarm_share import Errors, Spike
from scoring.burn import BurnRate, standard

_S: Final = 10**9

#: How long what is seen at once (a backend that cannot be reached) must hold, and be over.
DOWN: Final = Hold(fire_s=10, clear_s=30)
EXPERIMENT: Final = Hold(fire_s=0, clear_s=120)
PROXY: Final = Hold(fire_s=60, clear_s=180)

SEVERITY: Final[Mapping[str, Severity]] = {
    "spike": "page",
    "errors": "page",
    "stalled": "page",
    "drift": "ticket",
    "backend_down": "page",
    "experiment": "ticket",
    "proxy": "ticket",
}
#: What each rule is, for people.
WHAT: Final[Mapping[str, str]] = {
    "burn_rate": "bad requests use up what the objective leaves too fast, over a long and a short window",
    "spike": "requests of the last minute with a missed deadline, against the group's last hour",
    "errors": "requests of the last minute that failed, against the group's last hour",
    "stalled": "streams in flight whose next token should have come, or that had none for long",
    "drift": "live speeds of a backend against the frozen ones",
    "backend_down": "a backend that cannot be reached",
    "experiment": "a candidate that is surely worse than its margin, or an experiment that cannot be trusted",
    "proxy": "Legato itself: a late event loop, what was dropped or not measured, exporters, Redis",
}


#: The rules about the promises of an SLO; the others are about backends, experiments and Legato itself.
OF_SLOS: Final = ("spike", "stalled", "errors", "burn_rate")
#: Rules that page nobody while deadlines follow the server: what is missed is how the server was.
_LIVE: Final = frozenset({"spike", "stalled", "burn_rate"})
#: Rules that count missed deadlines of tokens, of which an SLO may promise nothing.
_OF_TOKENS: Final = frozenset({"spike"})


def unwatched(slo: SloSpec) -> frozenset[str]:
    """The rules of ``OF_SLOS`` that an SLO's terms keep from paging anybody (``legato_slo_watched``).

    Where only the duration is promised, ``stalled`` stays: what is overdue then has taken longer than that
    (``relay/flight.py``).
    """
    return (frozenset() if slo.pages else _LIVE) | (_OF_TOKENS if slo.duration_only else frozenset())


class Burn(NamedTuple):
    """A burn rate of one SLO; ``window`` names it: ``1h/5m``."""

    window: str
    severity: Severity
    rule: BurnRate


@dataclass(frozen=True)
class Rules:
    """``on``: the rules that are watched; ``burns``: by SLO; ``silent``: SLOs by rule that it is not for."""

    on: frozenset[str] = frozenset(ALL_RULES)
    spike: Spike = field(default_factory=Spike)
    errors: Errors = field(default_factory=Errors)
    stalled: Stalled = field(default_factory=Stalled)
    drift: Drift = field(default_factory=Drift)
    burns: Mapping[str, tuple[Burn, ...]] = field(default_factory=dict)
    silent: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Alerts, slos: Sequence[SloSpec]) -> Rules:
        """What was set; values were checked with the configuration."""
        spike, errors, stalled, drift = settings.spike, settings.errors, settings.stalled, settings.drift
        return cls(
            on=frozenset(settings.rules),
            spike=Spike(share=spike.share, times=spike.times, hits=spike.requests),
            errors=Errors(share=errors.share, times=errors.times, hits=errors.requests),
            stalled=Stalled(
                share=stalled.share,
                over_s=stalled.over / _S,
                streams=stalled.streams,
                silent_s=stalled.silent / _S,
            ),
            drift=Drift(prefill=drift.prefill, tbt_p50=drift.tbt_p50, tbt_p99=drift.tbt_p99),
            burns={
                slo.name: tuple(_burns(settings, slo.objective))
                for slo in slos
                if "burn_rate" not in unwatched(slo)
            },
            silent={rule: frozenset(slo.name for slo in slos if rule in unwatched(slo)) for rule in OF_SLOS},
        )

    def watches(self, rule: str, slo: str | None) -> bool:
        """Whether an alert of this rule may be, of this SLO if it is of one."""
        return rule in self.on and slo not in self.silent.get(rule, ())


def _burns(settings: Alerts, objective: float) -> list[Burn]:
    if not settings.burn_rates:
        rules, _ = standard(objective, kept_s=LONGEST_S)
        return [burn_of(rule) for rule in rules]
    out = []
    for window in settings.burn_rates:
        try:
            rule = BurnRate(
                objective, window.burn, window.long / _S, window.short / _S, window.severity, LONGEST_S
            )
        except ValueError:  # told when the configuration was read; an objective that came later
            continue
        out.append(burn_of(rule))
    return out


def burn_of(rule: BurnRate) -> Burn:
    """With its name."""
    long, short = (format_duration(round(length_s * _S)) for length_s in (rule.long_s, rule.short_s))
    return Burn(f"{long}/{short}", "ticket" if rule.severity == "ticket" else "page", rule)
