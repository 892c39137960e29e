"""Writes ``METRICS.md``, the metrics reference, from the catalog: ``python -m proxy.exporters.reference``.

A test holds the file against ``markdown()``, so that it cannot fall behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from proxy.control.genai import ERROR_LIMIT, SECONDS, SET_LIMIT, TOKENS
from proxy.exporters.catalog import BUCKET_LIMIT, CATALOG, GROUP_LIMIT, OTHER
from proxy.exporters.metric import Metric
from proxy.exporters.otel.genai import CONVENTIONS, TOKEN_USAGE
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
- Where traces are exported, OpenMetrics shows exemplars: behind each bucket of `legato_ttft_seconds`,
  `legato_tbt_seconds` (a request's longest gap), `legato_longest_gap_seconds`,
  `legato_request_duration_seconds` and `legato_fluidity_ratio` the latest request in it whose trace was
  kept, by `trace_id` and `span_id`, but for `otel.exemplars: off`.  (Prometheus keeps them with
  `--enable-feature=exemplar-storage`.)
- The same metrics go out over OTLP where `otel` is configured, under the names below.
"""

_OVER_OTLP: Final = """\
## Over OTLP

The same metrics, labels (as attributes), values and exemplars under OpenTelemetry's kind of names, from which
Prometheus's OTLP receiver makes the names above again.  Sums and histograms are cumulative since the start of
the control process.  Send them into one Prometheus one way only, or every series is there twice.
"""

_GEN_AI: Final = f"""\
### Calls of models, by the GenAI conventions

Histograms with the conventions' names and boundaries (all in Development there), over OTLP alone.  We are a
client of the engine; what is measured is Legato's call of it.  Attributes: `gen_ai.operation.name`,
`gen_ai.provider.name` (the format's flavour: of vLLM serving OpenAI's API it is `openai`),
`gen_ai.request.model` (as the groups' models, `{OTHER}` beyond the cap), `server.address` and `server.port`
(the backend's as configured); on the duration `error.type` (at most {ERROR_LIMIT} values, then `_OTHER`), on
the tokens `gen_ai.token.type` (`input`, `output`).  At most {SET_LIMIT} sets of them.  The two of chunks are
for streams alone (of a stream that was thinned, between the arrivals that were kept); tokens are those that
the server reported, never an estimate.  `duration` and `time_to_first_chunk` have exemplars, where traces are
exported.
"""


def markdown() -> str:
    """The whole reference."""
    return "\n".join([_HEAD, *_metrics(), *_values(), *_buckets(), *_otlp()]).rstrip() + "\n"


def _metrics() -> Iterator[str]:
    yield "## The metrics\n"
    yield "| name | type | unit | labels | meaning |"
    yield "|---|---|---|---|---|"
    for metric in CATALOG:
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


def _otlp() -> Iterator[str]:
    yield _OVER_OTLP
    yield "| name | over OTLP | unit |"
    yield "|---|---|---|"
    for metric in CATALOG:
        yield f"| `{metric.name}` | `{metric.otlp_name}` | `{metric.otlp_unit}` |"
    yield ""
    yield _GEN_AI
    yield "| histogram | unit | meaning | boundaries |"
    yield "|---|---|---|---|"
    for each in CONVENTIONS:
        bounds = " ".join(f"{bound:.10g}" for bound in (TOKENS if each is TOKEN_USAGE else SECONDS))
        yield f"| `{each.name}` | `{each.unit}` | {each.help} | {bounds} |"
    yield ""


if __name__ == "__main__":
    FILE.write_text(markdown(), encoding="utf-8")
    print(f"wrote {FILE}")
