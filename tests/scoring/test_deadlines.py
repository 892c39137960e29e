"""Deadlines and the curve by prompt length."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scoring.deadlines import LONGEST_NS, DeadlineCurve, Deadlines, QuadraticDeadline

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


# ---------------------------------------------------------------- arithmetic, against exact fractions

PARTS = st.integers(0, 3_600 * 10**15)
PROMPTS = st.integers(0, 10**9) | st.integers(0, 20_000)


@given(st.integers(0, LONGEST_NS), PARTS, PARTS, PROMPTS)
@example(0, 0, 350_000, 8192)  # 0.35 ns a token squared: 23,488,102.4 ns
@example(0, 0, 500_000, 1)
@example(0, 1, 0, 999_999)
@example(LONGEST_NS - 1, 1_000_000, 0, 1)
@example(LONGEST_NS, 0, 10**15, 10**9)
def test_a_quadratic_is_the_exact_sum_rounded_down(c0: int, c1: int, c2: int, prompt: int) -> None:
    exact = c0 + Fraction(c1 * prompt, 10**6) + Fraction(c2 * prompt**2, 10**6)
    assert QuadraticDeadline(c0, c1, c2).at(prompt) == min(floor(exact), LONGEST_NS)


@given(st.integers(0, 10**12), PARTS, PARTS, PROMPTS, PROMPTS)
def test_a_quadratic_never_falls(c0: int, c1: int, c2: int, one: int, other: int) -> None:
    curve = QuadraticDeadline(c0, c1, c2)
    assert curve.at(min(one, other)) <= curve.at(max(one, other))


POINTS = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, LONGEST_NS)),
    min_size=1,
    max_size=8,
    unique_by=lambda p: p[0],
)


@given(POINTS, st.integers(0, 2 * 10**6))
@example([(0, 0), (3, 10)], 1)
@example([(0, 10), (3, 0)], 1)
def test_points_give_the_exact_line_rounded_down(points: list[tuple[int, int]], prompt: int) -> None:
    points.sort()
    below = [point for point in points if point[0] <= prompt]
    above = [point for point in points if point[0] > prompt]
    if below and above:
        (x0, y0), (x1, y1) = below[-1], above[0]
        exact = y0 + Fraction((y1 - y0) * (prompt - x0), x1 - x0)
    else:
        exact = Fraction((below[-1] if below else above[0])[1])
    assert DeadlineCurve(points).at(prompt) == floor(exact)


@given(POINTS, PROMPTS, PROMPTS)
def test_rising_points_give_a_curve_that_never_falls(
    points: list[tuple[int, int]], one: int, other: int
) -> None:
    levels = sorted(level for _, level in points)
    curve = DeadlineCurve(zip(sorted(prompt for prompt, _ in points), levels, strict=True))
    assert curve.at(min(one, other)) <= curve.at(max(one, other))


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**15)), min_size=1, unique_by=lambda p: p[0]),
    st.integers(0, 10**15),
    st.integers(0, 2 * 10**6),
)
def test_slack_makes_every_deadline_later_by_itself(
    points: list[tuple[int, int]], slack: int, prompt: int
) -> None:
    curve = DeadlineCurve(sorted(points))
    assert curve.later(slack).at(prompt) == curve.at(prompt) + slack


def test_no_slack_reaches_beyond_the_clock() -> None:
    assert DeadlineCurve([(0, 5), (9, LONGEST_NS)]).later(LONGEST_NS).points == (
        (0, LONGEST_NS),
        (9, LONGEST_NS),
    )


@pytest.mark.parametrize("parts", [(-1, 0, 0), (0, -1, 0), (0, 0, -1)])
def test_no_part_of_a_quadratic_is_negative(parts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no part of a quadratic can be negative"):
        QuadraticDeadline(*parts)


def test_equal_quadratics_are_equal() -> None:
    one, same, other = QuadraticDeadline(1, 2, 3), QuadraticDeadline(1, 2, 3), QuadraticDeadline(1, 2, 4)
    assert one == same != other
    assert len({one, same, other}) == 2
    assert repr(one) == "QuadraticDeadline(1, 2, 3)"
    assert one != DeadlineCurve([(0, 1)])
