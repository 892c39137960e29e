"""One metric over a window in equal steps, for everything or by what groups share.

Each point is of the slots between its bounds.  Requests stand where they ended, with all that they brought:
the tokens of a stream of a minute stand in its last step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Final, Literal, NamedTuple, get_args

from msgspec import Meta, Struct, field

from proxy.control.ledger import RATE_QUANTILE
from proxy.control.record import iso_time
from proxy.control.scope import HERE, Degraded, Share
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
    scope: str
    degraded: Degraded | None
    series: list[Series]


#: Names, and the groups that they stand for; ``None``: all.
_Names = tuple[str | None, str | None, str | None]
_Lane = tuple[_Names, Sequence[GroupKey] | None]


class Wanted(NamedTuple):
    """A question: the bounds of its steps are multiples of ``step_ns``."""

    metric: Metric
    by: By
    from_ns: int
    to_ns: int
    step_ns: int
    rate_quantile: float = RATE_QUANTILE  # of the fluid token rate


class _Over(NamedTuple):
    """What a value is over: so many seconds, and the quantile of the fluid token rate."""

    covered_s: float
    rate_quantile: float


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _miss_rate(slot: Slot) -> float | None:
    return _ratio(slot.deadlines["missed"], slot.deadlines["met"] + slot.deadlines["missed"])


def _good(slot: Slot) -> float | None:
    return _ratio(slot.results["good"], slot.results["good"] + slot.results["bad"])


def _quantile(name: str, q: float) -> Callable[[Slot, _Over], float | None]:
    return lambda slot, _: seconds(slot.hists[name], q)


#: Unit and value of each metric, of a slot.
_METRICS: Final[dict[str, tuple[str, Callable[[Slot, _Over], float | None]]]] = {
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
        lambda slot, over: slot.totals["output_tokens"] / over.covered_s if over.covered_s > 0 else None,
    ),
    "fluidity_p1": ("ratio", lambda slot, _: slot.fluidity(0.01)),
    "fluidity_p50": ("ratio", lambda slot, _: slot.fluidity(0.5)),
    "fluid_token_rate": ("tokens per second", lambda slot, over: slot.fluid_rate(over.rate_quantile)[0]),
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

    def answer(self, share: Share = HERE) -> TimeSeries:
        """What was read."""
        return _answer(self._wanted, self._error, self._series, share)

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
        return _point_of(self._wanted, view.slot, view.start_ns, end_ns)


class TooManyPoints(Exception):
    """The answer would have ``count`` points and more."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


class FleetSeries:
    """The series of a question over all hosts: ``take`` each of ``bounds``, the first first, then ``answer``.

    Which groups there are is known at the end; nothing but points is held until then.
    """

    def __init__(self, wanted: Wanted) -> None:
        first = wanted.from_ns // wanted.step_ns * wanted.step_ns
        self._wanted = wanted
        self._error = Slot().relative_error
        self._lanes: dict[_Names, dict[int, Point]] = {}
        #: Unix nanoseconds of each step.
        self.bounds = [(at, at + wanted.step_ns) for at in range(first, wanted.to_ns, wanted.step_ns)]
        self._check(1)

    def take(self, index: int, groups: Mapping[GroupKey, Slot]) -> None:
        """The merged slots of one step."""
        lanes: dict[_Names, Slot] = {}
        for key, slot in groups.items():
            names = _names(key, self._wanted.by)
            held = lanes.setdefault(names, slot)
            if held is not slot:
                held.merge(slot)
        for names, slot in lanes.items():
            self._error = max(self._error, slot.relative_error)
            self._lanes.setdefault(names, {})[index] = self._point(index, slot)
        self._check(len(self._lanes))

    def answer(self, share: Share) -> TimeSeries:
        """What was taken."""
        if self._wanted.by == "none":
            self._lanes.setdefault((None, None, None), {})
        empty = Slot()
        series = [
            Series(*names, [points.get(at) or self._point(at, empty) for at in range(len(self.bounds))])
            for names, points in sorted(self._lanes.items(), key=str)
        ]
        return _answer(self._wanted, self._error, series, share)

    def _point(self, index: int, slot: Slot) -> Point:
        start_ns, end_ns = self.bounds[index]
        return _point_of(self._wanted, slot, start_ns, min(end_ns, self._wanted.to_ns))

    def _check(self, lanes: int) -> None:
        if lanes * len(self.bounds) > POINTS_MOST:
            raise TooManyPoints(lanes * len(self.bounds))


def _names(key: GroupKey, shared: By) -> _Names:
    """Those of the names that the groups of a lane share."""
    backend, model, slo = (
        name if shared in (field, "group") else None
        for field, name in zip(GroupKey._fields, key, strict=True)
    )
    return backend, model, slo


def _point_of(wanted: Wanted, slot: Slot, start_ns: int, end_ns: int) -> Point:
    value = _METRICS[wanted.metric][1](slot, _Over((end_ns - start_ns) / 1e9, wanted.rate_quantile))
    return Point(iso_time(start_ns), iso_time(end_ns), None if value is None else round(value, 6))


def _answer(wanted: Wanted, error: float, series: list[Series], share: Share) -> TimeSeries:
    unit = _METRICS[wanted.metric][0]
    return TimeSeries(
        wanted.metric,
        unit,
        wanted.by,
        wanted.step_ns / 1e9,
        round(error, 6),
        share.scope,
        share.degraded,
        series,
    )
