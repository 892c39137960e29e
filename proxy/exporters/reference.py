"""Writes ``METRICS.md``, the metrics reference, from the catalog: ``python -m proxy.exporters.reference``.

A test holds the file against ``markdown()``, so that it cannot fall behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from proxy.exporters.catalog import BUCKET_LIMIT, CATALOG, GROUP_LIMIT, OTHER, Metric
from proxy.exporters.vocabulary import Values

FILE: Final = Path(__file__).with_name("METRICS.md")

_HEAD: Final = f"""\
<!-- Written by `python -m proxy.exporters.reference` from catalog.py and vocabulary.py. -->

# Metrics

What `/metrics` on the admin listener exports, as Prometheus text or OpenMetrics by the request's `Accept`.
Each host exports its own numbers, its data processes merged; sums over a fleet are Prometheus's business.

- Counters count since `legato_counting_since_seconds`, the start of the control process, and exist at 0 from
  the start of their group. A gauge without a value is absent.
- Requests and deadlines are booked once, when the request ends. What is in flight stands beside them in
  gauges that are replaced each second, and is never added to anything.
- At most {GROUP_LIMIT} groups (backend, model, slo) are exported; the models of further ones are booked as
  `{OTHER}`. A label holds nothing else of what a client sent.
- A histogram has at most {BUCKET_LIMIT} buckets, `+Inf` included, and the configured deadlines are
  boundaries: for each that is none yet the default boundary nearest to it by ratio gives way, never the
  lowest nor the highest.
"""


def markdown() -> str:
    """The whole reference."""
    return "\n".join([_HEAD, *_metrics(), *_values(), *_buckets(), *_later()]).rstrip() + "\n"


def _metrics() -> Iterator[str]:
    yield "## The metrics\n"
    yield "| name | type | unit | labels | meaning |"
    yield "|---|---|---|---|---|"
    for metric in CATALOG:
        if metric.exported:
            yield _row(metric)
    yield ""


def _row(metric: Metric) -> str:
    return f"| `{metric.name}` | {metric.kind} | {metric.unit} | {_labels(metric)} | {metric.help} |"


def _labels(metric: Metric) -> str:
    return ", ".join(f"`{label}`" for label in metric.labels) or "none"


def _values() -> Iterator[str]:
    yield "## Values of labels that have a closed list\n"
    yield f"A value that is in no list would be an error of Legato's; it is exported as `{OTHER}`.\n"
    for metric in CATALOG:
        if metric.exported:
            for label, values in metric.closed.items():
                yield from _list(f"`{label}` of `{metric.name}`", values)


def _list(title: str, values: Values) -> Iterator[str]:
    yield f"### {title}\n"
    yield "| value | meaning |"
    yield "|---|---|"
    for value, meaning in values.items():
        yield f"| `{value}` | {meaning} |"
    yield ""


def _buckets() -> Iterator[str]:
    yield "## Default bucket boundaries\n"
    yield "| histogram | deadline among them | boundaries |"
    yield "|---|---|---|"
    for metric in CATALOG:
        if metric.bounds:
            bounds = " ".join(f"{bound:.10g}" for bound in metric.bounds)
            yield f"| `{metric.name}` | {metric.deadline or 'none'} | {bounds} |"
    yield ""


def _later() -> Iterator[str]:
    yield "## Not exported yet\n"
    yield "Names that are kept for capabilities of later versions.\n"
    yield "| name | type | labels | capability |"
    yield "|---|---|---|---|"
    for metric in CATALOG:
        if not metric.exported:
            yield f"| `{metric.name}` | {metric.kind} | {_labels(metric)} | {metric.since} |"
    yield ""


if __name__ == "__main__":
    FILE.write_text(markdown(), encoding="utf-8")
    print(f"wrote {FILE}")
