"""What a metric of the catalog is, and what it is called over OTLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from proxy.exporters.vocabulary import Values

Kind = Literal["counter", "gauge", "histogram"]
Deadline = Literal["ttft", "tbt", "e2e", "target"]

#: Units in the words of UCUM.  Tokens per second are no ``{token}/s``, which Prometheus would put into the
#: name; so would it put ``ratio`` behind every gauge whose unit is ``1``.
UCUM: Final[Mapping[str, str]] = MappingProxyType(
    {
        "seconds": "s",
        "bytes": "By",
        "ratio": "1",
        "share": "{share}",
        "bool": "{bool}",
        "tokens per second": "{tokens_per_second}",
        "requests": "{request}",
        "deadlines": "{deadline}",
        "tokens": "{token}",
        "connections": "{connection}",
        "items": "{item}",
        "attempts": "{attempt}",
        "alerts": "{alert}",
        "processes": "{process}",
        "groups": "{group}",
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric.  ``closed`` lists the values of those labels that have a closed list; other labels take
    names from the configuration, or the model.  ``bounds`` are a histogram's default boundaries in ``unit``;
    ``deadline`` names the configured deadline that belongs among them."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    help: str
    closed: Mapping[str, Values] = field(default_factory=dict)
    bounds: tuple[float, ...] = ()
    deadline: Deadline | None = None

    @property
    def otlp_name(self) -> str:
        """Its name over OTLP: ``legato.`` and the rest without what kind and unit say already.

        Prometheus's OTLP receiver puts that behind the name again and arrives at ``name``; but ``_ratio``
        only behind a gauge's, so that a histogram keeps it.
        """
        base = self.name.removeprefix("legato_").removesuffix("_total")
        said = self.unit in ("seconds", "bytes") or (self.unit == "ratio" and self.kind == "gauge")
        return f"legato.{base.removesuffix(f'_{self.unit}') if said else base}"

    @property
    def otlp_unit(self) -> str:
        """Its unit in UCUM; what is counted stands in braces, which Prometheus leaves out."""
        return UCUM[self.unit]
