"""What does not go together in ``alerts``: rules that could never fire, limits beyond what is kept."""

from __future__ import annotations

from collections.abc import Iterator

from proxy.settings.alerts import BurnWindow
from proxy.settings.models import Config
from proxy.settings.tree import Loc
from proxy.units import format_duration

#: For how long requests of an SLO are counted: longer windows belong into Prometheus.
KEPT_S = 6 * 3_600
_SILENT_MOST_NS = 60_000_000_000


def alert_findings(config: Config) -> Iterator[tuple[Loc, str]]:
    """Where, and what is wrong with its mend."""
    alerts = config.alerts
    if config.alerts.burn_rates:
        from scoring.burn import BurnRate

        for index, window in enumerate(alerts.burn_rates):
            loc: Loc = ("alerts", "burn_rates", index)
            if (found := _window(window)) is not None:
                yield (*loc, found[0]), found[1]
                continue
            for slo in config.slos:
                if not slo.pages or not 0 < slo.objective < 1:
                    continue  # nobody is paged for it; it was told there
                try:
                    BurnRate(slo.objective, window.burn, window.long / 1e9, window.short / 1e9, kept_s=KEPT_S)
                except ValueError as error:
                    yield (*loc, "burn"), f"for SLO {slo.name!r}: {error}"
                    break
    for name in ("over", "silent"):
        if (value := getattr(alerts.stalled, name)) > _SILENT_MOST_NS:
            mend = f"{format_duration(value)}: what is in flight is looked back at for 60s: give at most that"
            yield ("alerts", "stalled", name), mend


def _window(window: BurnWindow) -> tuple[str, str] | None:
    shown = {name: format_duration(getattr(window, name)) for name in ("long", "short")}
    for name in ("long", "short"):
        if getattr(window, name) % 10_000_000_000:
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
    quiet = [slo.name for slo in config.slos if not slo.pages]
    if quiet and alerts.notify:
        names = ", ".join(quiet)
        out.append(
            f"alerts: deadlines of {names} follow the server (learned: live): their misses page nobody"
        )
    return out
