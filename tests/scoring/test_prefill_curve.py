"""A prefill curve as a value: inside and outside of what was seen, as a file, and against another."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import pytest

from scoring.prefill import Curve, drift

TABLE = Curve(points=((100, 1_000), (200, 1_400), (1_000, 9_000), (2_000, 12_000)), observed=(100, 2_000))
SQUARE = Curve(points=((10, 200), (100, 10_100)), quadratic=(100.0, 0.0, 1.0), observed=(10, 100))


@pytest.mark.parametrize(
    ("curve", "prompt", "ttft", "extrapolated"),
    [
        (TABLE, 0, 1_000, True),
        (TABLE, 100, 1_000, False),
        (TABLE, 150, 1_200, False),
        (TABLE, 1_500, 10_500, False),
        (TABLE, 2_000, 12_000, False),
        (TABLE, 3_000, 15_000, True),  # 3 ns a token over the last octave
        (SQUARE, 5, 200, True),
        (SQUARE, 50, 2_600, False),
        (SQUARE, 110, 12_100, True),  # 10,100 + 10 * 200
        (Curve(points=((7, 42),), observed=(7, 7)), 1_000, 42, True),
    ],
)
def test_inside_and_outside_of_what_was_observed(
    curve: Curve, prompt: int, ttft: int, extrapolated: bool
) -> None:
    assert curve.at(prompt) == ttft
    assert curve.extrapolated(prompt) is extrapolated


PLAIN = TABLE.to_plain()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "version: 2"),
        ({"version": True}, "version: True"),
        ({"pionts": []}, "pionts: not known"),
        ({"points": []}, "points: give at least one"),
        ({"points": 3}, "points: 3 is no list"),
        ({"points": [[1, 2], [3]]}, r"points\[1\]: \[3\] is no pair \[prompt_tokens, ttft_ns\]"),
        ({"points": [[1, 2], [3, 1.5]]}, r"points\[1\]\[1\]: 1.5"),
        ({"points": [[1, 2], [-3, 1]]}, r"points\[1\]\[0\]: -3"),
        ({"points": [[5, 2], [5, 3]]}, r"points\[1\]: 5 tokens after 5"),
        ({"points": [[5, 9], [6, 8]]}, r"points\[1\]: 8 ns after 9"),
        ({"observed": [1, 2]}, r"observed: \[1, 2\] is not where the points"),
        ({"samples": "many"}, "samples: 'many'"),
        ({"bimodal": 1}, "bimodal: 1 is neither"),
        ({"net_of_cache": None}, "net_of_cache: None"),
        ({"fast_share": 1.5}, "fast_share: 1.5"),
        ({"fast_share": math.nan}, "fast_share: nan"),
        ({"quadratic": {"c0_ns": 1}}, "quadratic: .* has not just c0_ns"),
        ({"quadratic": {"c0_ns": 1, "c1_ns_per_token": -1, "c2_ns_per_token2": 0}}, "c1_ns_per_token: -1"),
        ({"quadratic": {"c0_ns": "1e3", "c1_ns_per_token": 1, "c2_ns_per_token2": 0}}, "c0_ns: '1e3'"),
        (
            {"quadratic": {"c0_ns": 9, "c1_ns_per_token": 1, "c2_ns_per_token2": 0}},
            r"points\[0\]: 1000 ns, but",
        ),
        ({"traffic": [[1, 2, 3]]}, r"traffic\[0\]: .* \[prompt_tokens, requests\]"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_place(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}" if says[0] != "c" else says):
        Curve.from_plain(PLAIN | change)


def test_a_file_may_hold_points_alone_and_must_be_a_mapping() -> None:
    curve = Curve.from_plain({"version": 1, "points": [[1, 5], [9, 8]]})
    assert (curve.at(5), curve.observed, curve.samples) == (6, (1, 9), 0)
    with pytest.raises(ValueError, match="a mapping, not list"):
        Curve.from_plain([])


# --- drift -------------------------------------------------------------------------------------------------


def scaled(curve: Curve, factors: Sequence[int]) -> Curve:
    points = tuple((x, y * factor) for (x, y), factor in zip(curve.points, factors, strict=True))
    return Curve(points=points, observed=curve.observed, traffic=((100, 1), (200, 1), (1_000, 5), (2_000, 1)))


def test_drift_is_the_median_of_the_ratios_weighted_by_traffic() -> None:
    live = scaled(TABLE, [1, 2, 3, 9])
    assert drift(live, TABLE) == statistics.median_low([1] + [2] + [3] * 5 + [9])
    assert drift(live, TABLE, [(100, 5), (200, 1), (1_000, 1)]) == 1
    assert drift(live, TABLE, [(2_000, 0.5), (3_000, 99), (50, 99), (100, 0)]) == 9  # 3,000 and 50: not seen
    assert drift(live, TABLE, [(3_000, 1)]) is None
    assert drift(TABLE, TABLE) is None  # it knows of no traffic
    assert drift(TABLE, live, live.traffic) == pytest.approx(1 / 3)
