"""Two arms compared: verdicts, what they rest on, and when there is none."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from scoring.compare import Comparison, Plan, Verdict, compare, judge
from scoring.compare_effect import estimate
from scoring.compare_sums import BUCKETS, METRICS, PLACE, ArmSums, Observed, sums_of

MS = 1_000_000
METRIC = {metric.name: metric for metric in METRICS}
GOOD = Observed("completed", "good", met=100, ttft_ns=200 * MS, normalized_ns=30 * MS)
BAD = Observed("completed", "bad", met=50, missed=50, ttft_ns=900 * MS, normalized_ns=90 * MS)
FAILED = Observed("upstream_error", "bad")


def arm(**kinds: int) -> ArmSums:
    """Independent requests: how many are good, bad, failed."""
    made = ArmSums()
    for name, one in (("good", GOOD), ("bad", BAD), ("failed", FAILED)):
        # Two speeds, so that times have a variance.
        some = [one, one if one.ttft_ns is None else one._replace(ttft_ns=one.ttft_ns * 1.1)]
        count = kinds.get(name, 0)
        made.add_many((some * (count // 2 + 1))[:count])
    made.assign(0, made.recorded)
    return made


def against(control: ArmSums, candidate: ArmSums, plan: Plan | None = None) -> Comparison:
    return compare([control], [candidate], [0.5], plan or Plan(1000))


@dataclass
class Case:
    why: str
    control: dict[str, int]
    candidate: dict[str, int]
    expected: dict[str, Verdict]
    margins: dict[str, float] = field(default_factory=dict)


CASES = (
    Case(
        "a worse one is worse in all that it shows",
        {"good": 1980, "bad": 20},
        {"good": 1900, "bad": 100},
        {
            "good": Verdict.WORSE,
            "fluidity": Verdict.WORSE,
            "deadline_misses": Verdict.WORSE,
            "ttft": Verdict.WORSE,
            "log_ttft": Verdict.WORSE,
            "errors": Verdict.EQUIVALENT,
        },
    ),
    Case(
        "a better one is better, more or less of each",
        {"good": 1900, "bad": 50, "failed": 50},
        {"good": 1990, "bad": 10},
        {"good": Verdict.BETTER, "ttft": Verdict.BETTER, "errors": Verdict.BETTER},
    ),
    Case(
        "alike by many is equivalent",
        {"good": 39600, "bad": 400},
        {"good": 39600, "bad": 400},
        {name: Verdict.EQUIVALENT for name in METRIC},
    ),
    Case(
        "alike by few is undecided",
        {"good": 990, "bad": 10},
        {"good": 990, "bad": 10},
        {"good": Verdict.UNDECIDED, "deadline_misses": Verdict.UNDECIDED},
    ),
    Case(
        "a sure difference that nobody minds is equivalent",
        {"good": 1980, "bad": 20},
        {"good": 1900, "bad": 100},
        {"good": Verdict.EQUIVALENT},
        {"good": 0.2},
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_verdicts(case: Case) -> None:
    found = against(arm(**case.control), arm(**case.candidate), Plan(1000, margins=case.margins))
    assert {name: found.metrics[name].verdict for name in case.expected} == case.expected
    assert found.requests == (sum(case.control.values()), sum(case.candidate.values()))
    for judged in found.metrics.values():
        assert judged.effect == pytest.approx(judged.candidate - judged.control)  # type: ignore[operator]
        assert judged.low < judged.effect < judged.high  # type: ignore[operator]


def test_worse_by_more_than_the_margin_is_said() -> None:
    plan = Plan(1000, margins={"good": 0.04, "errors": 0.04})
    for bad, beyond in ((100, False), (300, True)):
        found = against(arm(good=2000), arm(good=2000 - bad, failed=bad), plan)
        for name in ("good", "errors"):
            assert found.metrics[name].verdict is Verdict.WORSE
            assert found.metrics[name].beyond_margin is beyond, name


def test_undecided_says_why_and_about_how_many_more_it_takes() -> None:
    few = against(arm(good=30), arm(bad=30)).metrics["good"]
    assert (few.reasons, few.more_requests) == (("too_few",), 40), "50 each, however sure it looks"
    uneven = against(arm(good=4000), arm(bad=40)).metrics["good"]
    assert "too_few" in uneven.reasons
    early = against(arm(good=400), arm(bad=400), Plan(10_000)).metrics["good"]
    assert (early.reasons, early.more_requests) == (("too_few",), 200), "a twentieth of what is planned"
    alike = against(arm(good=990, bad=10), arm(good=990, bad=10)).metrics["good"]
    assert alike.more_requests is not None
    assert 2000 < alike.more_requests < 50_000, "until it is known to be within the margin"
    some = against(arm(good=395, bad=5), arm(good=390, bad=10)).metrics["good"]
    assert some.reasons == ("interval",)
    assert some.more_requests is not None
    # The same shares at that size are decided, and at half the growth they are not.
    for part, decided in ((1.1, True), (0.5, False)):
        factor = 1 + some.more_requests * part / 800
        bigger = [
            arm(good=round(400 * factor) - round(bad * factor), bad=round(bad * factor)) for bad in (5, 10)
        ]
        assert (against(bigger[0], bigger[1]).metrics["good"].verdict is not Verdict.UNDECIDED) == decided
    sure = against(arm(good=2000), arm(good=1800, bad=200)).metrics["good"]
    assert (sure.more_requests, sure.reasons) == (0, ())


def test_nothing_seen_is_no_number() -> None:
    found = against(ArmSums(), ArmSums())
    for judged in found.metrics.values():
        assert judged.verdict is Verdict.UNDECIDED
        assert judged.reasons == ("no_data",)
        assert judged.effect is None
    # An arm that answers nothing has no times, and is worse all the same.
    dead = against(arm(good=500), arm(failed=500))
    assert dead.metrics["errors"].verdict is dead.metrics["good"].verdict is Verdict.WORSE
    ttft = dead.metrics["ttft"]
    assert (ttft.reasons, ttft.candidate, ttft.effect) == (("no_data",), None, None)
    assert ttft.control == pytest.approx(0.21), "what there is of one arm is shown"


def test_no_two_shares_differ_by_more_than_all() -> None:
    found = against(arm(good=60), arm(failed=60))
    for name, ends in {"good": (-1.0, -0.9), "errors": (0.9, 1.0)}.items():
        judged = found.metrics[name]
        assert [judged.low, judged.high] == pytest.approx(list(ends), abs=0.15)
        assert 1.0 in (-(judged.low or 0), judged.high)


def test_a_ramp_through_a_bad_hour_is_no_difference() -> None:
    """The candidate gets a tenth in the good hour, half in the bad one: pooled it would look worse."""
    control = [arm(good=8910, bad=90), arm(good=4500, bad=500)]
    candidate = [arm(good=990, bad=10), arm(good=4500, bad=500)]
    found = compare(control, candidate, [0.1, 0.5], Plan(1000)).metrics["good"]
    assert found.effect == pytest.approx(0)
    pooled = [control[0], candidate[0]]
    pooled[0].merge(control[1])
    pooled[1].merge(candidate[1])
    assert judge(METRIC["good"], [pooled[0]], [pooled[1]], Plan(1000)).verdict is Verdict.WORSE


def test_epochs_weigh_by_their_counts_whatever_they_scored() -> None:
    control, candidate = [arm(good=900), arm(good=90, bad=10)], [arm(good=95, bad=5), arm(good=70, bad=30)]
    found = judge(METRIC["good"], control, candidate, Plan(1000))
    weights = np.array([900 * 100 / 1000, 100 * 100 / 200])
    assert found.effect == pytest.approx(weights @ [-0.05, -0.2] / weights.sum())


def test_an_epoch_of_one_request_vouches_for_nothing() -> None:
    """Forty changes of weights, after each of which the candidate gets one request."""
    rng = np.random.default_rng(5)
    control = [arm(good=int(good), bad=10 - int(good)) for good in rng.binomial(10, 0.7, 40)]
    candidate = [arm(good=int(good), bad=1 - int(good)) for good in rng.binomial(1, 0.7, 40)]
    found = estimate(sums_of(control, METRIC["good"]), sums_of(candidate, METRIC["good"]))
    assert float(found.error) == pytest.approx(np.sqrt(0.21 * (1 / 40 + 1 / 400)), rel=0.15)


def sticky(sessions: int, length: int, bad_every: int, offset: int = 0) -> ArmSums:
    """Sessions all of whose requests are good, or, one in ``bad_every``, all bad."""
    made = ArmSums(BUCKETS)
    for session in range(sessions):
        bucket = (session * 7 + offset) % BUCKETS
        one = (BAD if session % bad_every == 0 else GOOD)._replace(bucket=bucket)
        made.add_many([one] * length)
        made.assign(bucket, length)
    return made


def test_a_session_of_eight_that_stands_together_counts_once() -> None:
    found = against(sticky(500, 8, 20), sticky(500, 8, 20, offset=3)).metrics["good"]
    assert found.design_effect == pytest.approx(8, rel=0.1)
    assert found.independent_requests == pytest.approx(500, rel=0.1)


def test_fewer_than_fifty_occupied_buckets_are_undecided() -> None:
    for sessions, doubted in ((49, True), (50, False)):
        found = against(sticky(sessions, 40, 100), sticky(400, 40, 2)).metrics["good"]
        assert ("clusters" in found.reasons) == doubted
        assert found.effect is not None, "shown all the same"


def test_a_session_that_moves_to_the_other_arm_is_still_one() -> None:
    """The same sessions, good or bad for ever, first in one arm, then in the other: they cancel out."""
    halves = sticky(250, 8, 20), sticky(250, 8, 20, offset=1)
    same = compare([halves[0], halves[1]], [halves[1], halves[0]], [0.5, 0.5], Plan(1000)).metrics["good"]
    assert same.design_effect == pytest.approx(1)


@pytest.mark.parametrize(
    ("kind", "control", "candidate", "reasons"),
    [
        ("suspect", 0, 0, ()),
        ("suspect", 30, 30, ("suspect:share",)),
        ("suspect", 0, 18, ()),
        ("suspect", 0, 60, ("suspect:share", "suspect:differs")),
        ("unmeasured", 30, 30, ("unmeasured:share",)),
        ("unmeasured", 60, 0, ("unmeasured:share", "unmeasured:differs")),
    ],
)
def test_doubtful_requests_take_the_verdict_away(
    kind: str, control: int, candidate: int, reasons: tuple[str, ...]
) -> None:
    arms = [arm(good=2000 - doubtful) for doubtful in (control, candidate)]
    arms[1].add_many([BAD] * 200)
    arms[1].assign(0, 200)
    for one, doubtful in zip(arms, (control, candidate), strict=True):
        one.add_many([GOOD._replace(suspect=kind == "suspect", unmeasured=kind == "unmeasured")] * doubtful)
        one.assign(0, doubtful)
    found = against(arms[0], arms[1]).metrics["good"]
    assert found.reasons == reasons
    assert found.verdict is (Verdict.UNDECIDED if reasons else Verdict.WORSE)
    assert found.more_requests == (None if reasons else 0)


def test_shares_that_differ_are_a_doubt_though_both_are_small() -> None:
    arms = [arm(good=20_000), arm(good=19_880)]
    arms[1].add_many([GOOD._replace(suspect=True)] * 120)
    assert "suspect:differs" in against(arms[0], arms[1]).metrics["good"].reasons
    assert "suspect:share" not in against(arms[0], arms[1]).metrics["good"].reasons


@pytest.mark.parametrize("name", ["good", "deadline_misses", "ttft"])
def test_the_error_is_what_repeating_the_experiment_shows(name: str) -> None:
    """The delta method, two epochs, unequal arms: the stated error against the scatter of 400 repetitions."""
    rng = np.random.default_rng(8)
    effects, errors = [], []
    for _ in range(400):
        arms: tuple[list[ArmSums], list[ArmSums]] = ([], [])
        for sizes in ((900, 300), (500, 500)):
            for side, size in zip(arms, sizes, strict=True):
                side.append(_drawn(rng, size))
        found = estimate(sums_of(arms[0], METRIC[name]), sums_of(arms[1], METRIC[name]))
        effects.append(float(found.effect))
        errors.append(float(found.error))
    assert np.mean(errors) == pytest.approx(np.std(effects), rel=0.12)
    assert abs(np.mean(effects)) < 4 * np.std(effects) / 20


def _drawn(rng: np.random.Generator, size: int) -> ArmSums:
    made = ArmSums()
    y, x = np.zeros((2, len(PLACE), size), dtype=np.int64)
    total = np.ceil(np.exp(4 + rng.normal(size=size)))
    y[PLACE["good"]], x[PLACE["good"]] = rng.random(size) < 0.9, 1
    y[PLACE["deadline_misses"]], x[PLACE["deadline_misses"]] = rng.random(size) ** 3 * total, total
    y[PLACE["ttft"]], x[PLACE["ttft"]] = 1e5 * np.exp(rng.normal(size=size)), 1
    made.add_rows(np.zeros(size, dtype=np.int64), y, x)
    return made


@pytest.mark.parametrize(
    ("requests", "margins"),
    [(0, {}), (100, {"speed": 0.1}), (100, {"good": -0.1}), (100, {"good": float("nan")})],
)
def test_a_plan_that_is_none_is_refused(requests: int, margins: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a plan needs"):
        Plan(requests, margins=margins)


@pytest.mark.parametrize(
    ("control", "candidate", "shares"),
    [([], [], []), ([1], [1, 1], [0.5]), ([1], [1], [0.5, 0.5]), ([1], [BUCKETS], [0.5])],
)
def test_arms_that_do_not_match_are_refused(
    control: list[int], candidate: list[int], shares: list[float]
) -> None:
    with pytest.raises(ValueError, match="same epochs"):
        compare([ArmSums(n) for n in control], [ArmSums(n) for n in candidate], shares, Plan())


def test_freedom_is_that_of_buckets_of_even_size() -> None:
    even = [sums_of([sticky(sessions, 8, 20)], METRIC["good"]) for sessions in (60, 100)]
    assert float(estimate(even[0], even[1]).freedom) == pytest.approx(59)
    one_long = sticky(60, 8, 20)
    one_long.add_many([GOOD._replace(bucket=500)] * 480)
    uneven = sums_of([one_long], METRIC["good"])
    assert float(estimate(uneven, even[1]).freedom) < 4
