"""A PromQL query held against the catalog of metrics: names, labels, closed values, what may be rated.

    faults('sum by (slo) (rate(legato_requests_total{outcome="done"}[5m]))')  # -> ["outcome is never done"]

``recorded`` are series that recording rules make, by their labels: gauges.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from proxy.exporters.catalog import BY_NAME
from proxy.exporters.vocabulary import Values
from tests.helpers.promql import OF_COUNTERS, OF_GAUGES, Selector, read

Recorded = Mapping[str, Collection[str]]
NOTHING: Final[Recorded] = {}
#: Labels that Prometheus gives to what it scrapes.
TARGET: Final = {"job", "instance"}
#: Of vLLM: what its documentation names.  (kind, labels)
ENGINE: Final = {
    "vllm:time_to_first_token_seconds": ("histogram", {"model_name", "engine"}),
    "vllm:inter_token_latency_seconds": ("histogram", {"model_name", "engine"}),
    "vllm:num_requests_running": ("gauge", {"model_name", "engine"}),
    "vllm:num_requests_waiting": ("gauge", {"model_name", "engine"}),
    "vllm:kv_cache_usage_perc": ("gauge", {"model_name", "engine"}),
}


def known_as(name: str, recorded: Recorded = NOTHING) -> tuple[str, set[str], Mapping[str, Values]] | None:
    """How a series of this name is to be read, its labels, and those that have a closed list."""
    if name in recorded:
        return "gauge", set(recorded[name]), {}
    kind: str
    closed: Mapping[str, Values]
    base = re.sub(r"_(bucket|count|sum)$", "", name)
    for known, suffix in ((name, ""), (base, name[len(base) :])):
        if known in BY_NAME:
            metric = BY_NAME[known]
            kind, labels, closed = metric.kind, set(metric.labels), metric.closed
        elif known in ENGINE:
            (kind, labels), closed = ENGINE[known], {}
        else:
            continue
        if (kind == "histogram") != bool(suffix):
            continue  # a histogram has no series of its bare name, others none with a suffix
        labels = labels | TARGET | ({"le"} if suffix == "_bucket" else set())
        return ("counter" if kind == "histogram" else kind), labels, closed
    return None


def faults(expr: str, legend: str = "", recorded: Recorded = NOTHING) -> list[str]:
    """What is wrong with a query, held against the catalog."""
    try:
        found = read(expr)
    except ValueError as error:
        return [str(error)]
    out = [fault for selector in found.selectors for fault in _faults_of(selector, recorded)]
    shown = {label for one in found.selectors for call in one.inside for label in call.by}
    bare = {label for one in found.selectors if not any(call.by for call in one.inside) for label in TARGET}
    out += [f"legend: {label}" for label in re.findall(r"{{(\w+)}}", legend) if label not in shown | bare]
    for one in found.selectors:  # what was recorded, and what is not summed, has its labels still
        if not any(call.by for call in one.inside):
            known = known_as(one.name, recorded)
            shown |= known[1] if known is not None else set()
    return out + [f"matched by {label}" for label in found.matched - shown]


def _faults_of(selector: Selector, recorded: Recorded) -> Iterator[str]:
    known = known_as(selector.name, recorded)
    if known is None:
        yield f"{selector.name} is not exported"
        return
    kind, labels, closed = known
    for label, _, value in selector.matchers:
        if label not in labels:
            yield f"{selector.name} has no label {label}"
        elif label in closed and not value.startswith("$") and set(value.split("|")) - set(closed[label]):
            yield f"{label} is never {value}"
    for call in selector.inside:
        for label in (*call.by, *call.without):
            if label not in labels:
                yield f"{selector.name} has no label {label} to be summed by"
    yield from _faults_of_calls(selector, kind)


def _faults_of_calls(selector: Selector, kind: str) -> Iterator[str]:
    names = [call.name for call in selector.inside]
    around = names[-1] if names else ""
    if kind == "counter" and around not in OF_COUNTERS:
        yield f"{selector.name} is a counter and is not rated"
    if kind == "gauge" and around in OF_COUNTERS:
        yield f"{selector.name} is a gauge and is rated"
    if (selector.window is not None) != (around in OF_COUNTERS | OF_GAUGES):
        yield f"{selector.name}: a window belongs to a function of windows, and to nothing else"
    if "histogram_quantile" in names:
        summed = [call for call in selector.inside if call.name == "sum"]
        if not selector.name.endswith("_bucket") or not summed or "le" not in summed[-1].by:
            yield f"{selector.name}: a quantile needs _bucket summed by le"
    elif selector.name.endswith("_bucket") and not any(label == "le" for label, _, _ in selector.matchers):
        yield f"{selector.name} outside a quantile"
