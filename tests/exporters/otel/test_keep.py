"""Which requests become spans: the flag or the ratio first, then bad ones at a rate."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.exporters.otel.keep import Keep
from tests.exporters.otel.asked import TRACE, at, chat, ids, plain

S = 1_000_000_000
GOOD = chat(trace=ids(sampled=False))
BAD = chat(at(900), trace=ids(sampled=False), end_ms=910)
EXCLUDED = plain(trace=ids(sampled=False))


@pytest.mark.parametrize(
    ("settled", "kept"),
    [
        (chat(trace=ids(sampled=True, theirs=True)), "sampled"),
        (chat(trace=ids(sampled=True, theirs=False, parent=None)), "sampled"),
        (chat(at(900), trace=ids(sampled=True), end_ms=910), "sampled"),
        (GOOD, None),
        (chat(trace=ids(sampled=False, theirs=True)), None),
        (BAD, "bad"),
        (chat(at(900), trace=ids(sampled=False, theirs=True), end_ms=910), "bad"),
        (EXCLUDED, None),
        (chat(at(900), trace=None, end_ms=910), None),
        (chat(at(900), trace=ids(sampled=False), trace_id=None, end_ms=910), None),
    ],
)
def test_what_is_kept(settled: Any, kept: str | None) -> None:
    assert Keep(20.0, 0)(settled, 0) == kept


@pytest.mark.parametrize(
    ("rate", "at_s", "expected"),
    [
        (2.0, [0, 0, 0, 0], [1, 1, 0, 0]),  # a burst of one second's worth
        (2.0, [0, 0, 0.5, 0.5, 1.0], [1, 1, 1, 0, 1]),  # one more each half second
        (2.0, [0, 0, 3600, 3600, 3600], [1, 1, 1, 1, 0]),  # a quiet hour saves up no more than a second
        (0.5, [0, 1, 2, 3.9, 4], [1, 0, 1, 0, 1]),  # less than one a second still keeps one
        (0.0, [0, 5, 3600], [0, 0, 0]),
    ],
)
def test_bad_ones_at_a_rate(rate: float, at_s: list[float], expected: list[int]) -> None:
    keep = Keep(rate, 0)
    assert [keep(BAD, round(each * S)) is not None for each in at_s] == [bool(each) for each in expected]
    assert keep.counts.late == sum(expected)
    assert keep.counts.limited == len(expected) - sum(expected)


def test_sampled_ones_do_not_use_up_the_rate_of_the_bad() -> None:
    keep = Keep(1.0, 0)
    for _ in range(5):
        assert keep(chat(at(900), end_ms=910, trace_id=TRACE), 0) == "sampled"
    assert keep(BAD, 0) == "bad"
    assert keep(GOOD, 0) is None
    assert (keep.counts.sampled, keep.counts.late, keep.counts.passed, keep.counts.limited) == (5, 1, 1, 0)
