"""What does not go together in ``alerts``: rules that could never fire, limits beyond what is kept."""

from __future__ import annotations

from collections.abc import Iterator

from proxy.settings.alerts import Alerts, BurnWindow, StalledLimits
from proxy.settings.models import Config
from proxy.settings.slo import LearnedTtft
from proxy.settings.tree import Loc
from proxy.units import format_duration

#: For how long requests of an SLO are counted: longer windows belong into Prometheus.
KEPT_S = 6 * 3_600
_SILENT_MOST_NS = 60_000_000_000
_SLOT_NS = 10_000_000_000
#: The settings with the limits of a rule.
_LIMITS = {
    "spike": "spike",
    "errors": "errors",
    "stalled": "stalled",
    "drift": "drift",
    "burn_rates": "burn_rate",
}


def alert_findings(config: Config) -> Iterator[tuple[Loc, str]]:
    """Where, and what is wrong with its mend."""
    if config.alerts.burn_rates:
        yield from _burn_findings(config)
    yield from _stalled_findings(config.alerts.stalled)


def _burn_findings(config: Config) -> Iterator[tuple[Loc, str]]:
    from scoring.burn import BurnRate

    seen: dict[tuple[int, int], int] = {}
    for index, window in enumerate(config.alerts.burn_rates):
        loc: Loc = ("alerts", "burn_rates", index)
        if (found := _window(window)) is not None:
            yield (*loc, found[0]), found[1]
            continue
        first = seen.setdefault((window.long, window.short), index)
        if first != index:
            yield loc, _twice(window, first)
            continue
        for slo in config.slos:
            if not slo.pages or not 0 < slo.objective < 1:
                continue  # nobody is paged for it; it was told there
            try:
                BurnRate(slo.objective, window.burn, window.long / 1e9, window.short / 1e9, kept_s=KEPT_S)
            except ValueError as error:
                yield (*loc, "burn"), f"for SLO {slo.name!r}: {error}"
                break


def _twice(window: BurnWindow, first: int) -> str:
    """Of two alerts with one name only one could fire, and its severity would be the other's."""
    long, short = format_duration(window.long), format_duration(window.short)
    return (
        f"{long}/{short}: alerts.burn_rates[{first}] has these windows too, and an alert is known by its "
        "windows: give another long or short"
    )


def _stalled_findings(stalled: StalledLimits) -> Iterator[tuple[Loc, str]]:
    for name in ("over", "silent"):
        value = getattr(stalled, name)
        mend = None
        if value > _SILENT_MOST_NS:
            mend = "what is in flight is looked back at for 60s: give at most that"
        elif name == "over" and value % _SLOT_NS:
            mend = "what is in flight is looked at each 10s: give a multiple of that, such as 20s"
        if mend is not None:
            yield ("alerts", "stalled", name), f"{format_duration(value)}: {mend}"


def _window(window: BurnWindow) -> tuple[str, str] | None:
    shown = {name: format_duration(getattr(window, name)) for name in ("long", "short")}
    for name in ("long", "short"):
        if getattr(window, name) % _SLOT_NS:
            return name, f"{shown[name]}: requests are counted by 10s: give a multiple of that"
    if window.short >= window.long:
        return "short", f"{shown['short']}: give less than long, {shown['long']}"
    if window.long > KEPT_S * 10**9:
        return "long", (
            f"{shown['long']}: only 6h are kept, so it can never be seen: shorten it, or alert on that "
            "window in Prometheus (deploy/prometheus)"
        )
    return None


def cares_of_alerts(config: Config) -> list[str]:
    """What is allowed and deserves a look."""
    alerts = config.alerts
    out = []
    if "burn_rate" in alerts.rules and not alerts.burn_rates:
        out += [
            f"SLO {slo.name}: at an objective of {slo.objective:.6g} no usual burn rate can fire: "
            "set alerts.burn_rates"
            for slo in config.slos
            if slo.pages and (1 - 1e-9) / (1 - slo.objective) <= 6
        ]
    out += _unwatched(config)
    quiet = [slo.name for slo in config.slos if not slo.pages]
    if quiet and alerts.notify:
        names = ", ".join(quiet)
        out.append(
            f"alerts: deadlines of {names} follow the server (learned: live): their misses page nobody"
        )
    return out


def _unwatched(config: Config) -> Iterator[str]:
    """Limits that were set for what is never judged."""
    alerts = config.alerts
    for name, rule in _LIMITS.items():
        if rule not in alerts.rules and getattr(alerts, name) != Alerts.model_fields[name].default:
            yield f"alerts.{name}: alerts.rules does not name {rule}, so these limits do nothing"
    if alerts.notify and not alerts.rules:
        yield "alerts.rules: none is named, so nobody is ever told anything"
    frozen = any(isinstance(slo.ttft, LearnedTtft) and not slo.ttft.live for slo in config.slos)
    if "drift" in alerts.rules and alerts.drift != Alerts.model_fields["drift"].default and not frozen:
        yield "alerts.drift: no SLO has a frozen curve (ttft: {learned: FILE}), so these limits do nothing"
