"""Deadlines and the curve by prompt length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.deadlines import DeadlineCurve, Deadlines

CURVE = DeadlineCurve([(0, 500), (8000, 2000), (32000, 6000)])


@pytest.mark.parametrize(
    ("prompt", "ttft"),
    [
        (0, 500),
        (4000, 1250),
        (8000, 2000),
        (8001, 2000),
        (8006, 2001),
        (20000, 4000),
        (32000, 6000),
        (10**9, 6000),
    ],
)
def test_straight_lines_between_points_rounded_down(prompt: int, ttft: int) -> None:
    assert CURVE.at(prompt) == ttft


def test_flat_outside_its_points() -> None:
    curve = DeadlineCurve([(100, 7), (200, 3)])
    assert curve.at(0) == 7
    assert curve.at(150) == 5
    assert curve.at(201) == 3
    assert DeadlineCurve([(0, 42)]).at(123456) == 42


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(0, 10**12)),
        min_size=1,
        max_size=6,
        unique_by=lambda p: p[0],
    ),
    st.integers(0, 2 * 10**6),
)
def test_never_outside_its_neighbours(points: list[tuple[int, int]], prompt: int) -> None:
    points.sort()
    curve = DeadlineCurve(points)
    assert all(curve.at(x) == y for x, y in points)
    low = max((p for p in points if p[0] <= prompt), default=points[0])
    high = min((p for p in points if p[0] >= prompt), default=points[-1])
    assert min(low[1], high[1]) <= curve.at(prompt) <= max(low[1], high[1])


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ([], "at least one point"),
        ([(0, 1), (0, 2)], "ascending order"),
        ([(5, 1), (4, 2)], "prompt_tokens 4 after 5"),
        ([(-1, 1)], "negative"),
        ([(0, -1)], "negative"),
    ],
)
def test_bad_curves(points: list[tuple[int, int]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DeadlineCurve(points)


def test_bad_deadlines() -> None:
    with pytest.raises(ValueError, match="ttft_ns -1"):
        Deadlines(-1, 5)
    with pytest.raises(ValueError, match="tbt_ns 0: give at least 1 ns"):
        Deadlines(0, 0)


def test_equal_curves_are_equal() -> None:
    assert DeadlineCurve([(0, 1)]) == DeadlineCurve(((0, 1),))
    assert hash(DeadlineCurve([(0, 1)])) == hash(DeadlineCurve(((0, 1),)))
    assert DeadlineCurve([(0, 1)]) != DeadlineCurve([(0, 2)])
