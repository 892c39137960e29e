"""A bucket tells the latest request in it whose trace was kept, and nothing of others."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from proxy.control.core import Controller
from proxy.control.exemplars import Exemplars
from proxy.control.ledger import DURATION, FLUIDITY, LONGEST_GAP, TBT, TTFT
from proxy.control.settle import Settled
from proxy.control.snapshot import Exemplar, Hist
from proxy.link import Facts, FactsBatch, Match, SloSpec
from tests.control.facts import MS, T0, UNIX, at, facts, streamed, table

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


class Plane:
    """A control plane where ``kept`` says which span of a trace is kept, as the exporter of traces does."""

    def __init__(self, kept: dict[str, str]) -> None:
        self.controller = Controller(
            table(), instance="i", version="1", unix_ns=lambda: UNIX, monotonic_ns=lambda: T0
        )
        self._kept = kept
        self.controller.add_sink(self._keep)
        self.controller.add_sink(Exemplars(self.controller.ledger))

    def _keep(self, batch: Sequence[Settled], /) -> None:
        for settled in batch:
            settled.kept_span = self._kept.get(settled.facts.trace_id or "")

    def feed(self, *every: Facts) -> None:
        self.controller.feed(FactsBatch(list(every)))

    def hists(self, model: str = "llama") -> dict[str, Hist]:
        (group,) = (group for group in self.controller.snapshot().groups if group.model == model)
        return group.hists

    def told(self, name: str, model: str = "llama") -> tuple[Exemplar, ...]:
        return self.hists(model)[name].exemplars


def a_stream(trace_id: str | None = TRACE, first_ms: int = 60, **fields: object) -> Facts:
    return streamed(
        *(at(first_ms), at(first_ms + 20), at(first_ms + 320)),
        **{"end_ms": first_ms + 400, "trace_id": trace_id, **fields},  # type: ignore[arg-type]
    )


def test_a_kept_trace_stands_in_the_bucket_of_each_of_its_values() -> None:
    plane = Plane({TRACE: SPAN})
    plane.feed(a_stream())
    ended_ns = UNIX + MS + 460 * MS  # the head came 1 ms before t = 0
    for name, value in ((TTFT, 0.06), (TBT, 0.3), (LONGEST_GAP, 0.3), (DURATION, 0.46)):
        hist = plane.hists()[name]
        (told,) = hist.exemplars
        assert (told.value, told.at_unix_ns, told.trace_id, told.span_id) == (value, ended_ns, TRACE, SPAN)
        lower = hist.bounds[told.bucket - 1]
        assert lower < value <= hist.bounds[told.bucket]
        assert hist.counts[told.bucket] >= 1
    assert plane.told(FLUIDITY)[0].value < 1


def test_the_latest_of_a_bucket_stays_and_others_have_their_own() -> None:
    traces = [f"{i:032x}" for i in range(1, 4)]
    plane = Plane({trace: f"{i:016x}" for i, trace in enumerate(traces)})
    plane.feed(a_stream(traces[0]), a_stream(traces[1]), a_stream(traces[2], first_ms=4_000))
    assert [told.trace_id for told in plane.told(TTFT)] == [traces[1], traces[2]]


@pytest.mark.parametrize(
    ("trace_id", "span_id"),
    [
        (TRACE, None),
        (None, SPAN),
        (TRACE, "abc"),
        (TRACE, SPAN + "0"),
        ("abc", SPAN),
        ('"} 1\n' + "0" * 27, SPAN),
    ],
)
def test_without_a_kept_trace_or_with_ids_that_are_none_there_is_no_exemplar(
    trace_id: str | None, span_id: str | None
) -> None:
    plane = Plane({} if span_id is None else {trace_id or "": span_id})
    plane.feed(a_stream(trace_id))
    assert {hist.exemplars for hist in plane.hists().values()} == {()}


def test_what_is_not_streamed_has_its_duration_alone() -> None:
    plane = Plane({TRACE: SPAN})
    plane.feed(facts(300, trace_id=TRACE))
    assert {name for name, hist in plane.hists().items() if hist.exemplars} == {DURATION}


def test_a_model_beyond_the_cap_is_shown_where_it_was_booked() -> None:
    plane = Plane({TRACE: SPAN})
    plane.feed(*(facts(10, seq=i + 1, model=f"m{i}") for i in range(100)))
    plane.feed(facts(10, seq=101, model="one-too-many", trace_id=TRACE))
    assert plane.told(DURATION, "other")[0].trace_id == TRACE
    assert sum(bool(g.hists[DURATION].exemplars) for g in plane.controller.snapshot().groups) == 1


def test_there_are_never_more_than_buckets() -> None:
    traces = [f"{i:032x}" for i in range(1, 400)]
    plane = Plane(dict.fromkeys(traces, SPAN))
    plane.feed(*(facts(3 * i, seq=i, trace_id=trace) for i, trace in enumerate(traces, 1)))
    told = plane.told(DURATION)
    assert len({each.bucket for each in told}) == len(told) <= 20
    assert [each.bucket for each in told] == sorted(each.bucket for each in told)


def test_new_boundaries_move_exemplars_to_where_their_values_belong() -> None:
    plane = Plane({TRACE: SPAN})
    plane.feed(a_stream(first_ms=60))
    (before,) = plane.told(TTFT)
    points = tuple((i, (30 + 5 * i) * MS) for i in range(5))  # 30 to 50 ms: more boundaries below it
    plane.controller.set_table(table(SloSpec("default", Match(), points, 50 * MS), version=2))
    (after,) = plane.told(TTFT)
    bounds = plane.hists()[TTFT].bounds
    assert (after.value, after.trace_id) == (before.value, before.trace_id)
    assert after.bucket != before.bucket
    assert bounds[after.bucket - 1] < after.value <= bounds[after.bucket]
