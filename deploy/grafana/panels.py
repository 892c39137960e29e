"""The overview dashboard as data: rows of panels, each with its queries, its unit and what it teaches.

Queries are PromQL.  Words stand for the matchers of the dashboard's variables, so that a query shows
what it is about:

    @group    job, backend, model and slo      (metrics of a group)
    @model    job, backend and model           (what was learned)
    @backend  job and backend                  (metrics of a backend)
    @slo      job and slo                      (what was promised)
    @job      job                              (the proxy itself)
    @engine   the model as vLLM names it       (vLLM's own metrics)

A legend's ``{{label}}`` is a label of the result.  ``build.py`` makes Grafana's JSON of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

MATCHERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "@group": 'job=~"$job", backend=~"$backend", model=~"$model", slo=~"$slo"',
        "@model": 'job=~"$job", backend=~"$backend", model=~"$model"',
        "@backend": 'job=~"$job", backend=~"$backend"',
        "@slo": 'job=~"$job", slo=~"$slo"',
        "@job": 'job=~"$job"',
        "@engine": 'model_name=~"$model"',
    }
)


@dataclass(frozen=True, slots=True)
class Query:
    """One query.  A ``promise`` is a dashed line that the others are held against."""

    expr: str
    legend: str
    promise: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.  ``unit`` is Grafana's; ``steps`` are (from this value on, colour), the first from below
    all; ``about`` says what it shows and where to look when it is bad."""

    title: str
    about: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Literal["timeseries", "stat"] = "timeseries"
    width: int = 8
    height: int = 8
    steps: tuple[tuple[float | None, str], ...] = ((None, "green"),)
    lines: bool = False  # draw the steps as lines
    stacked: bool = False
    least: float | None = 0.0
    most: float | None = None
    words: Mapping[str, str] | None = None  # value -> what a stat says instead
    worst: bool = False  # with a link to the worst requests


@dataclass(frozen=True, slots=True)
class Row:
    """A question and the panels that answer it."""

    title: str
    panels: tuple[Panel, ...]
    collapsed: bool = False


def quantiles(metric: str, *wanted: float, by: str = "slo", match: str = "@group") -> tuple[Query, ...]:
    """The quantiles of a histogram over the dashboard's interval, each a line."""
    labels, braces = (f"le, {by}", f"{{{{{by}}}}} ") if by else ("le", "")
    return tuple(
        Query(
            f"histogram_quantile({q:g}, sum by ({labels})"
            f" (rate({metric}_bucket{{{match}}}[$__rate_interval])))",
            f"{braces}p{q * 100:g}",
        )
        for q in wanted
    )


def burn(window: str) -> Query:
    """How fast the error budget is spent over ``window``: 1 spends exactly all of it."""
    return Query(
        f'(sum by (slo) (rate(legato_slo_requests_total{{@group, result="bad"}}[{window}]))'
        f' / sum by (slo) (rate(legato_slo_requests_total{{@group, result=~"good|bad"}}[{window}])))'
        " / on (slo) (1 - max by (slo) (legato_slo_objective_ratio{@slo}))",
        f"{{{{slo}}}} {window}",
    )


def good(window: str) -> str:
    """The share of good requests among the judged ones."""
    return (
        f'sum by (slo) (rate(legato_slo_requests_total{{@group, result="good"}}[{window}]))'
        f' / sum by (slo) (rate(legato_slo_requests_total{{@group, result=~"good|bad"}}[{window}]))'
    )


#: Table 5-8 of Google's SRE workbook: 14.4 pages within the hour, 6 within six, 1 is a ticket.
BURN_STEPS: Final = ((None, "green"), (1.0, "yellow"), (6.0, "orange"), (14.4, "red"))
BAD_FROM_ONE: Final = ((None, "green"), (1.0, "red"))
