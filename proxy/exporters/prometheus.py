"""``/metrics``: one immutable ``Snapshot`` as Prometheus text or OpenMetrics, with exemplars in the latter.

The text is built here, from label strings that are made once per group, since ``prometheus_client``'s own
exposition of the same series takes several times as long (64 groups are about 11,000 series) and the control
process renders between other duties.  What it writes is held against that library's parsers by the tests.
What is exported, and the guards around it: ``rows.py``.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import accumulate
from typing import Final

from proxy.control.snapshot import Exemplar, Hist, Snapshot
from proxy.exporters.catalog import CATALOG, GROUP_LIMIT
from proxy.exporters.metric import Metric
from proxy.exporters.rows import LABEL_LIMIT, Labels, histograms, samples, view_of

__all__ = ["LABEL_LIMIT", "OPENMETRICS", "TEXT", "render"]

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def render(snapshot: Snapshot, accept: str | None) -> tuple[bytes, str]:
    """The exposition and its content type, chosen by the request's ``Accept`` (absent: Prometheus text)."""
    openmetrics = _wants_openmetrics(accept)
    view = view_of(snapshot)
    out: list[str] = []
    for metric in CATALOG:
        out.append(_head(metric, openmetrics))
        name, names = metric.name, metric.labels
        if metric.kind == "histogram":
            for labels, hist in histograms(metric, view):
                _add_histogram(out, name, _pairs(names, labels), hist, openmetrics)
        else:
            out += [
                f"{name}{_braced(names, labels)} {_number(value)}\n"
                for labels, value in samples(metric, view)
            ]
    if openmetrics:
        out.append("# EOF\n")
    return "".join(out).encode(), OPENMETRICS if openmetrics else TEXT


# ---------------------------------------------------------------- negotiation


def _wants_openmetrics(accept: str | None) -> bool:
    """Whether OpenMetrics 1.0 is accepted and not liked less than the classic text."""
    openmetrics = text = 0.0
    for item in (accept or "").lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        given = dict(pair for p in parameters if len(pair := p.replace(" ", "").split("=", 1)) == 2)
        quality = _quality(given.get("q", "1"))
        if kind == "application/openmetrics-text" and given.get("version", "1.0.0") == "1.0.0":
            openmetrics = max(openmetrics, quality)
        elif kind == "text/plain" and given.get("version", "0.0.4") == "0.0.4":
            text = max(text, quality)
    return openmetrics > 0 and openmetrics >= text


def _quality(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0


# ---------------------------------------------------------------- text


@lru_cache(maxsize=2 * len(CATALOG))
def _head(metric: Metric, openmetrics: bool) -> str:
    family = metric.name
    if openmetrics and metric.kind == "counter":
        family = family.removesuffix("_total")
    unit = f"# UNIT {family} {metric.unit}\n" if openmetrics and family.endswith(f"_{metric.unit}") else ""
    return f"# HELP {family} {metric.help}\n# TYPE {family} {metric.kind}\n{unit}"


@lru_cache(maxsize=64 * GROUP_LIMIT)
def _braced(names: Labels, values: Labels) -> str:
    return f"{{{_pairs(names, values)}}}" if names else ""


@lru_cache(maxsize=4 * GROUP_LIMIT)
def _pairs(names: Labels, values: Labels) -> str:
    """Labels without their braces."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


@lru_cache(maxsize=256)
def _le(bounds: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(f'le="{_number(bound)}"}} ' for bound in (*bounds, math.inf))


def _add_histogram(out: list[str], name: str, labels: str, hist: Hist, openmetrics: bool) -> None:
    start = f"{name}_bucket{{{labels}," if labels else f"{name}_bucket{{"
    totals = list(accumulate(hist.counts))
    lines = [f"{start}{le}{total}\n" for le, total in zip(_le(hist.bounds), totals, strict=True)]
    if openmetrics:
        for exemplar in hist.exemplars:
            lines[exemplar.bucket] = lines[exemplar.bucket][:-1] + _exemplar(exemplar)
    out += lines
    braced = f"{{{labels}}}" if labels else ""
    out.append(f"{name}_count{braced} {totals[-1]}\n{name}_sum{braced} {_number(hist.sum)}\n")


def _exemplar(exemplar: Exemplar) -> str:
    """Behind a bucket: the trace of one request in it, what it had and when (Unix seconds)."""
    ids = f'trace_id="{exemplar.trace_id}",span_id="{exemplar.span_id}"'
    return f" # {{{ids}}} {_number(exemplar.value)} {exemplar.at_unix_ns / 1e9:.3f}\n"


def _number(value: int | float) -> str:
    """As both formats want it: ``repr`` round-trips, only what is not finite is spelled differently."""
    if isinstance(value, int) or math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
