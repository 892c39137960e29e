"""Whether requests are where the weights say and all there: what is called, what is chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from scoring.compare import Plan, Verdict, compare
from scoring.compare_always import few, multiplier
from scoring.compare_integrity import ALPHA_INTEGRITY
from scoring.compare_integrity import rejected as rejected_test
from scoring.compare_sums import BUCKETS, ArmSums, Observed

GOOD = Observed("completed", "good", met=100)


@dataclass
class Integrity:
    why: str
    assigned: tuple[int, int]
    share: float
    recorded: tuple[int, int]
    alarms: tuple[str, ...]
    in_flight: tuple[int, int] = (0, 0)


@pytest.mark.parametrize(
    "case",
    [
        Integrity("as the weights say", (9000, 1000), 0.1, (9000, 1000), ()),
        Integrity("chance", (9000, 1050), 0.1, (9000, 1050), ()),
        Integrity("too many", (9000, 1300), 0.1, (9000, 1300), ("assignment",)),
        Integrity("none at all", (1000, 0), 0.1, (1000, 0), ("assignment",)),
        Integrity("one arm has no weight", (1000, 3), 0.0, (1000, 3), ()),
        Integrity("three in a hundred lost", (1000, 1000), 0.5, (1000, 970), ("recorded:candidate",)),
        Integrity("they are only in flight", (1000, 1000), 0.5, (1000, 970), (), (0, 30)),
        Integrity("a worker's few", (1000, 1000), 0.5, (997, 996), ()),
        Integrity("the control's are lost", (1000, 1000), 0.5, (900, 1000), ("recorded:control",)),
        Integrity("nothing yet", (0, 0), 0.5, (0, 0), ()),
    ],
    ids=lambda case: case.why,
)
def test_integrity(case: Integrity) -> None:
    arms = []
    for assigned, recorded in zip(case.assigned, case.recorded, strict=True):
        made = ArmSums()
        made.add_many([GOOD] * recorded)
        made.assign(0, assigned)
        arms.append(made)
    found = compare([arms[0]], [arms[1]], [case.share], Plan(1000), in_flight=case.in_flight)
    assert tuple(test.name for test in found.integrity if test.alarm) == case.alarms
    if case.alarms and all(case.recorded):
        assert found.metrics["good"].reasons[0] == f"integrity:{case.alarms[0]}"
        assert found.metrics["good"].verdict is Verdict.UNDECIDED


def split(rng: np.random.Generator, sessions: int, share: float) -> tuple[ArmSums, ArmSums]:
    """Sticky assignments: whole sessions of 1 to 100 requests go to either arm."""
    arms = ArmSums(BUCKETS), ArmSums(BUCKETS)
    length = np.minimum(1 + rng.pareto(1.3, sessions), 100).astype(int)
    which, bucket = rng.random(sessions) < share, rng.integers(0, BUCKETS, sessions)
    for at, one in enumerate(arms):
        np.add.at(one.assigned, bucket[which == at], length[which == at])
        one.recorded = int(one.assigned.sum())
    return arms


def test_sticky_assignments_are_judged_by_sessions() -> None:
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(200):
        one, two = split(rng, 3000, 0.2)
        alarms += compare([one], [two], [0.2], Plan(1000)).integrity[0].alarm
    assert alarms == 0, "expected at most one in a thousand"
    called = 0
    for _ in range(20):
        one, two = split(rng, 10000, 0.3)
        called += compare([one], [two], [0.2], Plan(1000)).integrity[0].alarm
    assert called >= 19


@pytest.mark.parametrize(
    ("buckets", "part", "alarm"), [(122, 1.03, True), (122, 0.98, False), (118, 1.2, False)]
)
def test_sticky_assignments_are_called_where_the_boundary_is(buckets: int, part: float, alarm: bool) -> None:
    """Buckets of 100,000 requests, half of them with more of the candidate's; too few of them say nothing."""
    size, planned = 100_000, 5_000_000
    spread, within = buckets * size / 4, 274.0
    z = 4.0
    for _ in range(50):  # z decides the shift, the shift the variance, that the time, and that z
        shift = within * z / np.sqrt(buckets - 1 - z**2)
        variance = buckets * (shift**2 + within**2) * buckets / (buckets - 1)
        time = 2 * spread * spread / variance
        z = part * float(few(multiplier(np.array(time), planned, ALPHA_INTEGRITY), np.array(buckets - 1.0)))
    excess = shift + within * np.tile([1.0, -1.0], buckets // 2)
    arms = ArmSums(BUCKETS), ArmSums(BUCKETS)
    arms[1].assigned[:buckets] = np.round(size / 2 + excess).astype(np.int64)
    arms[0].assigned[:buckets] = size - arms[1].assigned[:buckets]
    found = compare([arms[0]], [arms[1]], [0.5], Plan(planned), in_flight=(10**9, 10**9))
    assert found.integrity[0].alarm is alarm


REJECTED = Observed("rejected", "excluded")


@dataclass
class Rejecting:
    why: str
    rejected: tuple[int, int]
    whole: tuple[int, int]
    alarm: bool
    planned: int = 1000


@pytest.mark.parametrize("sticky", [False, True], ids=["each", "sticky"])
@pytest.mark.parametrize(
    "case",
    [
        Rejecting("one arm takes none", (3, 100), (100, 100), True),
        Rejecting("nor where millions are planned", (3, 500), (500, 500), True, 10_000_000),
        Rejecting("the known one does", (400, 20), (1000, 1000), True),
        Rejecting("long prompts, say", (10, 100), (1000, 1000), True),
        Rejecting("both reject a third", (330, 345), (1000, 1000), False),
        Rejecting("chance", (10, 22), (1000, 1000), False),
        Rejecting("too few to tell", (0, 40), (1000, 40), False),
        Rejecting("nothing yet", (0, 0), (0, 0), False),
    ],
    ids=lambda case: case.why,
)
def test_an_arm_that_rejects_what_the_other_takes(case: Rejecting, sticky: bool) -> None:
    rng = np.random.default_rng(5)
    arms = []
    for rejected, whole in zip(case.rejected, case.whole, strict=True):
        made = ArmSums(BUCKETS if sticky else 1)
        observed = [REJECTED] * rejected + [GOOD] * (whole - rejected)
        buckets = rng.integers(0, made.buckets, whole).tolist()
        made.add_many([one._replace(bucket=at) for one, at in zip(observed, buckets, strict=True)])
        for at in buckets:
            made.assign(at)
        arms.append(made)
    found = compare([arms[0]], [arms[1]], [0.5], Plan(case.planned))
    (test,) = (test for test in found.integrity if test.name == "rejected")
    assert (test.alarm, test.alarm) == (case.alarm, test.p_value < ALPHA_INTEGRITY)
    if case.alarm:
        assert "integrity:rejected" in found.metrics["good"].reasons
        assert found.metrics["ttft"].verdict is Verdict.UNDECIDED


def test_equal_arms_are_hardly_ever_said_to_reject_differently_however_often_one_looks() -> None:
    rng = np.random.default_rng(6)
    alarms = 0
    for _ in range(150):
        arms = ArmSums(), ArmSums()
        called = False
        for _ in range(25):
            for arm in arms:
                hits = int(rng.binomial(40, 0.1))
                arm.add_many([REJECTED] * hits + [GOOD] * (40 - hits))
            called |= rejected_test([arms[0]], [arms[1]], 1000).alarm
        alarms += called
    assert alarms == 0
