"""One metric over a window in equal steps, for everything or by what groups share.

Each point is of the slots between its bounds.  Requests stand where they ended, with all that they brought:
the tokens of a stream of a minute stand in its last step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Final, Literal, NamedTuple, get_args

from msgspec import Meta, Struct, field

from proxy.control.record import iso_time
from proxy.control.settle import GroupKey
from proxy.control.windowed import seconds
from proxy.control.windows import WindowBook, by
from scoring.slot import Slot
from scoring.window import TEN_NS, View

MINUTE_NS: Final = 6 * TEN_NS
HOUR_NS: Final = 60 * MINUTE_NS
#: Most points of one answer, over all its series.
POINTS_MOST: Final = 20_000
#: So many steps are read at once: it bounds the memory of an answer.
_AT_ONCE: Final = 60

Metric = Literal[
    "requests",
    "good_ratio",
    "deadline_miss_rate",
    "share_under_target",
    "ttft_p50",
    "ttft_p90",
    "ttft_p99",
    "tbt_p50",
    "tbt_p99",
    "duration_p50",
    "duration_p99",
    "tokens_per_second",
    "fluidity_p1",
    "fluidity_p50",
    "fluid_token_rate",
]
By = Literal["none", "backend", "model", "slo", "group"]


class Point(Struct, frozen=True):
    """One step."""

    from_: str = field(name="from")
    to: str
    value: Annotated[float | None, Meta(description="null where nothing was observed")]


class Series(Struct, frozen=True):
    """The steps of one group, or of all that share the names that are given; ``null`` names: of all."""

    backend: str | None
    model: str | None
    slo: str | None
    points: list[Point]


class TimeSeries(Struct, frozen=True):
    """One metric over a window."""

    metric: str
    unit: str
    by: str
    step_s: Annotated[float, Meta(description="as asked, or longer where only longer slots are kept")]
    relative_error: Annotated[float, Meta(description="quantiles are at most this far from the true ones")]
    series: list[Series]


#: Names, and the groups that they stand for; ``None``: all.
_Lane = tuple[tuple[str | None, str | None, str | None], Sequence[GroupKey] | None]


class Wanted(NamedTuple):
    """A question: the bounds of its steps are multiples of ``step_ns``."""

    metric: Metric
    by: By
    from_ns: int
    to_ns: int
    step_ns: int


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _miss_rate(slot: Slot) -> float | None:
    return _ratio(slot.deadlines["missed"], slot.deadlines["met"] + slot.deadlines["missed"])


def _good(slot: Slot) -> float | None:
    return _ratio(slot.results["good"], slot.results["good"] + slot.results["bad"])


def _quantile(name: str, q: float) -> Callable[[Slot, float], float | None]:
    return lambda slot, _: seconds(slot.hists[name], q)


#: Unit and value of each metric, of a slot that covers so many seconds.
_METRICS: Final[dict[str, tuple[str, Callable[[Slot, float], float | None]]]] = {
    "requests": ("requests", lambda slot, _: slot.requests),
    "good_ratio": ("ratio", lambda slot, _: _good(slot)),
    "deadline_miss_rate": ("ratio", lambda slot, _: _miss_rate(slot)),
    "share_under_target": (
        "ratio",
        lambda slot, _: _ratio(slot.totals["under_target"], slot.totals["scored"]),
    ),
    "ttft_p50": ("seconds", _quantile("ttft", 0.5)),
    "ttft_p90": ("seconds", _quantile("ttft", 0.9)),
    "ttft_p99": ("seconds", _quantile("ttft", 0.99)),
    "tbt_p50": ("seconds", _quantile("tbt", 0.5)),
    "tbt_p99": ("seconds", _quantile("tbt", 0.99)),
    "duration_p50": ("seconds", _quantile("duration", 0.5)),
    "duration_p99": ("seconds", _quantile("duration", 0.99)),
    "tokens_per_second": (
        "tokens per second",
        lambda slot, covered_s: slot.totals["output_tokens"] / covered_s if covered_s > 0 else None,
    ),
    "fluidity_p1": ("ratio", lambda slot, _: slot.fluidity(0.01)),
    "fluidity_p50": ("ratio", lambda slot, _: slot.fluidity(0.5)),
    "fluid_token_rate": ("tokens per second", lambda slot, _: slot.fluid_rate()[0]),
}
assert set(_METRICS) == set(get_args(Metric))


def step_of(step_ns: int, window_ns: int) -> int:
    """The step as it can be read: a multiple of 10 s within the last hour, of a minute beyond it."""
    grain_ns = TEN_NS if window_ns <= HOUR_NS else MINUTE_NS
    return -(-step_ns // grain_ns) * grain_ns


class Reader:
    """Reads the series of a question one part after the other: ``steps``, then ``answer``."""

    def __init__(self, book: WindowBook, wanted: Wanted) -> None:
        self._book = book
        self._wanted = wanted
        self._series: list[Series] = []
        self._error = 0.0

    @property
    def count(self) -> int:
        """How many points there will be, at most."""
        wanted = self._wanted
        steps = -(-(wanted.to_ns - wanted.from_ns) // wanted.step_ns) + 1
        return steps * len(self._lanes())

    def steps(self) -> Iterator[None]:
        """Do the work; other work may be done between any two steps."""
        wanted = self._wanted
        stride_ns = wanted.step_ns * _AT_ONCE
        for names, keys in self._lanes():
            points: list[Point] = []
            at_ns = wanted.from_ns // wanted.step_ns * wanted.step_ns
            while at_ns < wanted.to_ns:
                until_ns = min(at_ns + stride_ns, wanted.to_ns)
                points += map(self._point, self._book.series(keys, at_ns, until_ns, wanted.step_ns))
                at_ns += stride_ns
                yield
            self._series.append(Series(*names, points))

    def answer(self) -> TimeSeries:
        """What was read."""
        wanted = self._wanted
        unit = _METRICS[wanted.metric][0]
        return TimeSeries(
            wanted.metric, unit, wanted.by, wanted.step_ns / 1e9, round(self._error, 6), self._series
        )

    def _lanes(self) -> list[_Lane]:
        shared, keys = self._wanted.by, self._book.keys
        if shared == "none":
            return [((None, None, None), None)]
        if shared == "group":
            return [((key.backend, key.model, key.slo), (key,)) for key in sorted(keys)]
        place = GroupKey._fields.index(shared)
        lanes: list[_Lane] = []
        for name, of in by(keys, shared).items():
            names: list[str | None] = [None, None, None]
            names[place] = name
            lanes.append(((names[0], names[1], names[2]), of))
        return lanes

    def _point(self, view: View) -> Point:
        end_ns = min(view.end_ns, self._wanted.to_ns)
        self._error = max(self._error, view.relative_error)
        value = _METRICS[self._wanted.metric][1](view.slot, (end_ns - view.start_ns) / 1e9)
        shown = None if value is None else round(value, 6)
        return Point(iso_time(view.start_ns), iso_time(end_ns), shown)
