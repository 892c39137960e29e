"""The sums of a comparison: what a request counts as, exact merging, numbers there and back."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.compare_sums import ALL, BUCKETS, METRICS, PLACE, ArmSums, Observed, sums_of

MS = 1_000_000


@dataclass
class Case:
    why: str
    one: Observed
    expected: dict[str, tuple[float, float]]


GOOD = Observed("completed", "good", met=90, missed=10, ttft_ns=200 * MS, normalized_ns=30 * MS)
CASES = (
    Case(
        "a good request counts in all",
        GOOD,
        {
            "good": (1, 1),
            "fluidity": (0.9, 1),
            "deadline_misses": (10, 100),
            "ttft": (0.2, 1),
            "log_ttft": (log(0.2), 1),
            "normalized_latency": (0.03, 1),
            "errors": (0, 1),
        },
    ),
    Case(
        "a refused connection is bad and an error, and has no times",
        Observed("upstream_error", "bad"),
        {"good": (0, 1), "fluidity": (0, 0), "deadline_misses": (0, 0), "ttft": (0, 0), "errors": (1, 1)},
    ),
    Case(
        "an excluded one is neither good nor bad", Observed("client_cancelled", "excluded"), {"good": (0, 0)}
    ),
    Case(
        "a rejected one is no chance of an error",
        Observed("rejected", "excluded"),
        {"errors": (0, 0), "good": (0, 0), "rejected": (1, 1)},
    ),
    Case("an error was not rejected", Observed("overloaded", "bad"), {"rejected": (0, 1)}),
    Case("an overloaded one is an error", Observed("overloaded", "bad"), {"errors": (1, 1)}),
    Case("a timeout is an error", Observed("timeout", "bad"), {"errors": (1, 1)}),
    Case("suspect", GOOD._replace(suspect=True), {"suspect": (1, 1), "unmeasured": (0, 1)}),
    Case("unmeasured", GOOD._replace(unmeasured=True), {"suspect": (0, 1), "unmeasured": (1, 1)}),
    Case("an hour is the most", GOOD._replace(ttft_ns=float("inf")), {"ttft": (3600, 1)}),
    Case("no time has a logarithm", GOOD._replace(ttft_ns=0), {"log_ttft": (log(1e-6), 1), "ttft": (0, 1)}),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_what_a_request_counts_as(case: Case) -> None:
    arm = ArmSums()
    arm.add_many([case.one])
    for name, (y, x) in case.expected.items():
        sums = sums_of([arm], ALL[PLACE[name]])
        assert (sums.y[0], sums.x[0]) == pytest.approx((y, x), abs=1e-6), name
        assert (sums.yy[0], sums.xy[0], sums.xx[0]) == pytest.approx((y * y, x * y, x * x), 1e-6, 1e-6), name
    assert arm.recorded == 1


def test_our_own_failures_are_recorded_and_count_against_nobody() -> None:
    arm = ArmSums()
    arm.add_many([Observed("proxy_error", "bad"), GOOD])
    assert arm.recorded == 2
    assert arm.requests.sum() == 1
    assert sums_of([arm], METRICS[0]).x[0] == 1


OBSERVED = st.builds(
    Observed,
    outcome=st.sampled_from(["completed", "upstream_error", "rejected", "client_cancelled", "proxy_error"]),
    result=st.sampled_from(["good", "bad", "excluded"]),
    met=st.integers(0, 1 << 40),
    missed=st.integers(0, 1 << 40),
    ttft_ns=st.none() | st.floats(0, 1e13),
    normalized_ns=st.none() | st.floats(0, 1e13),
    suspect=st.booleans(),
    unmeasured=st.booleans(),
    bucket=st.integers(0, 3),
)


def arm_of(some: list[Observed]) -> ArmSums:
    arm = ArmSums(4)
    for one in some:
        arm.assign(one.bucket)
    arm.add_many(some)
    return arm


@given(st.lists(OBSERVED, max_size=8), st.lists(OBSERVED, max_size=8), st.lists(OBSERVED, max_size=8))
def test_merging_is_exact_in_any_order(a: list[Observed], b: list[Observed], c: list[Observed]) -> None:
    whole = arm_of(a + b + c)
    left, right, tail = arm_of(a), arm_of(b), arm_of(c)
    tail.merge(left)
    tail.merge(right)
    assert tail == whole
    assert ArmSums.from_numbers(whole.to_numbers()) == whole


def test_squares_are_exact_beyond_64_bits() -> None:
    arm = ArmSums()
    arm.add_many([GOOD._replace(ttft_ns=3600e9)] * 1000)
    assert arm.squares[PLACE["ttft"]][0] == 1000 * 3_600_000_000**2 > 1 << 64


def test_a_bucket_that_is_none_is_refused_and_nothing_booked() -> None:
    arm = ArmSums(4)
    for bucket in (4, -1):
        with pytest.raises(IndexError, match="0 to 3"):
            arm.add_many([GOOD, GOOD._replace(bucket=bucket)])
    with pytest.raises(ValueError, match="NaN"):
        arm.add_many([GOOD, GOOD._replace(ttft_ns=float("nan"))])
    assert arm == ArmSums(4)


def test_other_buckets_do_not_merge() -> None:
    with pytest.raises(ValueError, match="do not merge"):
        ArmSums(4).merge(ArmSums(1))
    with pytest.raises(ValueError, match="buckets"):
        ArmSums(0)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda n: n[:-1],
        lambda n: [*n, 0],
        lambda n: [99, *n[1:]],
        lambda n: [n[0], 0, *n[2:]],
        lambda n: [n[0], 1 << 40, *n[2:]],
        lambda n: [*n[:2], 3, *n[3:]],
        lambda n: [*n[:5], 1 << 70, *n[6:]],
        lambda n: [],
    ],
)
def test_numbers_that_are_none_are_refused(spoil: object) -> None:
    assert callable(spoil)
    with pytest.raises(ValueError, match="numbers"):
        ArmSums.from_numbers(spoil(ArmSums(2).to_numbers()))


def test_an_arm_of_sticky_traffic_takes_less_than_100_kb() -> None:
    assert ArmSums(BUCKETS).nbytes < 100_000


def test_rows_in_bulk_are_the_same_as_requests() -> None:
    one, two = ArmSums(), ArmSums()
    one.add_many([GOOD] * 3)
    y = np.repeat(one.y // 3, 3, axis=1)
    two.add_rows(np.zeros(3, dtype=np.int64), y, np.repeat(one.x // 3, 3, axis=1))
    assert one == two
