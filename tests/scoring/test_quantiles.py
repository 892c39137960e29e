"""Nearest rank, exactly."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.quantiles import quantile, rank


@given(st.lists(st.integers(0, 50), min_size=1, max_size=300), st.integers(0, 100))
def test_smallest_value_that_a_share_does_not_exceed(values: list[int], percent: int) -> None:
    values.sort()
    found = quantile(values, percent / 100)
    fit = [v for v in values if 100 * sum(w <= v for w in values) >= percent * len(values)]
    assert found == min(fit)


@pytest.mark.parametrize(
    ("q", "count", "expected"),
    [
        (0.5, 1, 1),
        (0.5, 2, 1),
        (0.5, 3, 2),
        (0.99, 100, 99),
        (0.99, 101, 100),
        (0.07, 100, 7),
        (0.0, 9, 1),
        (1.0, 9, 9),
    ],
)
def test_rank(q: float, count: int, expected: int) -> None:
    assert rank(q, count) == expected


def test_the_99th_percentile_is_finite_while_at_most_one_percent_is_not() -> None:
    assert quantile([1.0] * 99 + [inf], 0.99) == 1.0
    assert quantile([1.0] * 98 + [inf] * 2, 0.99) == inf


def test_bad_questions() -> None:
    with pytest.raises(ValueError, match=r"quantile 1\.5: give a number from 0 to 1"):
        rank(1.5, 10)
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)
