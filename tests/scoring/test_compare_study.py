"""Small versions of the study: A/A experiments looked at all the time, and power."""

from __future__ import annotations

import numpy as np
import pytest

from scoring.compare import Plan
from tests.scoring.compare_study import World, ever_called, power, sticky_power

#: Chance alone gives more than this many of 200 at 5% once in a thousand times.
MOST = 21 / 200


def test_sticky_sessions_alike_are_rarely_told_apart_and_simpler_rules_fail() -> None:
    found = ever_called(World(ticks=24), Plan(1000), 200, 11, ("good", "ttft", "log_ttft"))
    for name, row in found.items():
        assert row["always valid"] <= MOST, name
        assert row["t, buckets"] > 0.05, name
        assert row["t-test"] > 0.15, name
    assert found["log_ttft"]["per request"] > 0.12


def test_independent_requests_alike_are_rarely_told_apart() -> None:
    world = World(sessions=2500, sticky=False, ticks=24)
    found = ever_called(world, Plan(1000), 200, 12, ("good", "ttft"))
    for name, row in found.items():
        assert row["always valid"] <= MOST, name
        assert row["t-test"] > 0.15, name


def test_a_real_harm_is_called() -> None:
    world = World(sessions=2500, sticky=False, ticks=24, harm=2.5)
    assert ever_called(world, Plan(1000), 100, 13, ("good",))["good"]["always valid"] > 0.9


def test_99_to_96_percent_good_is_called_by_a_thousand_requests() -> None:
    size, share = power((0.99, 0.96), 1000, Plan(1000), 2000, 14)
    assert size[-1] == 1000
    assert share[-1] >= 0.9
    assert share[np.searchsorted(size, 567)] < 0.9, (
        "what a look at 567 alone would give is the price of looking"
    )


@pytest.mark.parametrize("good", [0.99, 0.9])
def test_alike_is_rarely_called_by_the_same_looks(good: float) -> None:
    assert power((good, good), 2000, Plan(1000), 1000, 15)[1][-1] <= 0.05


def test_sessions_cost_about_their_design_effect() -> None:
    size, share, design_effect = sticky_power((0.99, 0.96), 1200, Plan(1000), 100, 16, step=50)
    assert 1.5 < design_effect < 3
    assert 1200 < size[np.argmax(share >= 0.9)] < 3000
