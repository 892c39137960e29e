"""What single values cannot show of taking failing backends out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from proxy.settings.experiment import Ejection
from proxy.settings.models import Config
from proxy.settings.tree import Loc
from proxy.units import format_duration

_S: Final = 1_000_000_000
#: Health is looked at once a second; longer than a day nothing is counted anywhere.
_SHORTEST_NS: Final = _S
_LONGEST_NS: Final = 86_400 * _S


def ejection_findings(ejection: Ejection) -> Iterator[tuple[Loc, str]]:
    """What cannot be kept."""
    for name in ("window", "time"):
        value = getattr(ejection, name)
        if not _SHORTEST_NS <= value <= _LONGEST_NS:
            mend = "health is looked at once a second: write a time from 1s to 24h"
            yield ("ejection", name), f"{format_duration(value)}: {mend}"


def cares_of_ejection(config: Config) -> list[str]:
    """What is allowed and still deserves a look."""
    several = any(sum(weight > 0 for _, weight in route.arms) > 1 for route in config.routes)
    if config.ejection.enabled and not several:
        return ["ejection is enabled, but no route splits its traffic: nobody can be taken out"]
    return []
