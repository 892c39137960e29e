"""The histogram's promises: its error, its bounds, and that merging is adding."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.quantiles import quantile
from scoring.sketch import RELATIVE_ERROR, LogHistogram

NANOSECONDS = st.integers(0, 10**13)
RATIOS = st.floats(0, 1).filter(lambda x: x == 0 or x > 1e-12)
VALUES = st.lists(st.one_of(NANOSECONDS, RATIOS), min_size=1, max_size=200)
QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.9, 0.99, 1.0)


def of(values: list[float]) -> LogHistogram:
    histogram = LogHistogram()
    for value in values:
        histogram.add(value)
    return histogram


def test_the_stated_error_is_at_most_one_percent() -> None:
    assert RELATIVE_ERROR <= 0.01


@given(VALUES)
def test_every_quantile_is_within_the_stated_error(values: list[float]) -> None:
    histogram = of(values)
    for q in QUANTILES:
        true = quantile(sorted(values), q)
        found = histogram.quantile(q)
        assert found is not None
        assert abs(found - true) <= RELATIVE_ERROR * true * (1 + 1e-12)
    assert histogram.count == len(values)
    assert histogram.quantile(1.0) == max(values)


@given(VALUES)
def test_adding_many_is_adding_each(values: list[float]) -> None:
    many = LogHistogram()
    many.add_many(np.array(values, dtype=np.float64))
    one_by_one = of([float(value) for value in values])
    assert many.to_plain()["counts"] == one_by_one.to_plain()["counts"]
    assert (many.zeros, many.minimum, many.maximum) == (
        one_by_one.zeros,
        one_by_one.minimum,
        one_by_one.maximum,
    )
    assert math.isclose(many.sum, one_by_one.sum)


@given(
    st.lists(NANOSECONDS, max_size=50), st.lists(NANOSECONDS, max_size=50), st.lists(NANOSECONDS, max_size=50)
)
def test_merging_is_adding_in_any_order_and_grouping(a: list[float], b: list[float], c: list[float]) -> None:
    left = of(a)
    left.merge(of(b))
    left.merge(of(c))
    tail = of(c)
    tail.merge(of(b))
    right = tail
    right.merge(of(a))
    assert left == right == of(a + b + c)  # integers: sums too are exact


def test_merging_leaves_the_other_alone_and_with_itself_doubles() -> None:
    histogram, other = of([1, 2, 0]), of([3])
    histogram.merge(other)
    assert other == of([3])
    histogram.merge(histogram)
    assert histogram == of([1, 2, 0, 3] * 2)


def test_zero_is_exact_and_apart() -> None:
    histogram = of([0, 0, 0, 5])
    assert histogram.quantile(0.75) == 0
    assert histogram.quantile(0.76) == 5
    assert (histogram.zeros, histogram.count, histogram.sum, histogram.minimum) == (3, 4, 5, 0)


def test_times() -> None:
    histogram = LogHistogram()
    histogram.add(7, times=3)
    histogram.add(0, times=2)
    histogram.add(9, times=0)
    assert histogram == of([7, 7, 7, 0, 0])


@pytest.mark.parametrize("value", [-1, -1e-300, math.nan, math.inf, -math.inf])
def test_what_is_no_amount_is_refused_and_changes_nothing(value: float) -> None:
    histogram = of([5])
    with pytest.raises(ValueError, match="finite numbers from 0 up"):
        histogram.add(value)
    with pytest.raises(ValueError, match="finite numbers from 0 up"):
        histogram.add_many(np.array([1.0, value, 2.0]))
    assert histogram == of([5])


def test_bounded_whatever_comes() -> None:
    histogram = LogHistogram()
    histogram.add_many(np.logspace(-300, 300, 200_000))
    assert histogram.buckets <= 6656
    assert histogram.count == 200_000
    extremes = [5e-324, 1e-30, 1e30, 1.7e308]
    singly, together = of(extremes), LogHistogram()
    together.add_many(np.array(extremes))
    assert singly.to_plain()["counts"] == together.to_plain()["counts"]
    assert singly.buckets == 2
    assert (singly.quantile(0.0), singly.quantile(1.0)) == (2.0**-40 * (1 + RELATIVE_ERROR), 1.7e308)


def test_nothing_added() -> None:
    histogram = LogHistogram()
    histogram.add_many(np.empty(0))
    assert histogram.quantile(0.5) is None
    assert (histogram.count, histogram.sum) == (0, 0)
    assert LogHistogram.from_plain(histogram.to_plain()) == histogram


@given(st.lists(st.one_of(NANOSECONDS, RATIOS), max_size=50))
def test_plain_data_survives_json(values: list[float]) -> None:
    histogram = of(values)
    again = LogHistogram.from_plain(json.loads(json.dumps(histogram.to_plain())))
    assert again == histogram
    again.add(3)
    assert again != histogram


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"v": 2},
        {"v": 1, "counts": 5, "zeros": 0, "sum": 0, "min": None, "max": None},
        {"v": 1, "counts": [[1, -1]], "zeros": 0, "sum": 0, "min": 1, "max": 1},
        {"v": 1, "counts": [[10**6, 1]], "zeros": 0, "sum": 0, "min": 1, "max": 1},
        {"v": 1, "counts": [[1, 1]], "zeros": 0, "sum": 0, "min": None, "max": None},
    ],
)
def test_plain_data_that_is_no_histogram(plain: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="histogram"):
        LogHistogram.from_plain(plain)
