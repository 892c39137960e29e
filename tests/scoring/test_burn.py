"""The burn-rate rules, and how long an answer must hold."""

from __future__ import annotations

import pytest

from scoring.alarm_rule import Evaluation, Hold, Phase
from scoring.burn import DAY_S, BurnRate, Counts, detection_table, standard


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"objective": 0.9}, "burn 14.4: with an objective of 0.9 no outage burns faster than 10"),
        ({"objective": 0.95, "burn": 20}, "burn 20: .* faster than 20, so it can never fire: give less"),
        ({"objective": 0.99, "burn": 0}, "burn 0: give a number above 0"),
        ({"objective": 1.0}, "objective 1: give a share above 0% and below 100%"),
        (
            {"objective": 0.99, "burn": 1, "long_s": 3 * DAY_S},
            "long_s 259200: only 86400 s are kept.*shorten it",
        ),
        ({"objective": 0.99, "long_s": 300, "short_s": 300}, "short_s 300: give more than 0 s and less than"),
    ],
)
def test_a_rule_that_can_never_fire_says_what_to_change(keywords: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        BurnRate(**keywords)  # type: ignore[arg-type]


def test_the_fastest_burn_that_can_be_exceeded_is_accepted() -> None:
    rule = BurnRate(0.9, 9.9)
    assert rule.evaluate(Counts(1_000, 1_000), Counts(100, 100)).fires
    assert not rule.evaluate(Counts(1_000, 989), Counts(100, 100)).fires


@pytest.mark.parametrize(
    ("long", "short", "fires"),
    [
        (Counts(10_000, 1_441), Counts(1_000, 145), True),
        (Counts(10_000, 1_440), Counts(1_000, 500), False),  # exactly the limit
        (Counts(10_000, 5_000), Counts(1_000, 144), False),  # it is over
        (Counts(10_000, 100), Counts(1_000, 1_000), False),  # not enough to matter
        (Counts(20, 4), Counts(2, 2), False),  # fewer than five bad ones
        (Counts(20, 5), Counts(2, 2), True),
        (Counts(600, 600, covered_s=60), Counts(600, 600, covered_s=60), False),  # a minute after the start
        (Counts(6_000, 6_000, covered_s=600), Counts(3_000, 3_000), True),
    ],
)
def test_both_windows_must_burn(long: Counts, short: Counts, fires: bool) -> None:
    assert BurnRate(0.99).evaluate(long, short).fires is fires


def test_the_figures_are_there() -> None:
    said = BurnRate(0.99).evaluate(Counts(10_000, 2_000), Counts(1_000, 300))
    assert said.value == pytest.approx(20)
    assert said.threshold == 14.4
    assert said.evidence["short_burn"] == pytest.approx(30)
    assert "20.0 times the budget over 1h and 30.0 times over 5m" in said.reason


def test_without_requests_it_says_nothing() -> None:
    said = BurnRate(0.99).evaluate(Counts(10_000, 2_000), Counts(0, 0))
    assert (said.fires, said.clears, said.value) == (False, False, None)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("before", [0.0, 0.005])
def test_it_fires_when_the_formula_says(share: float, before: float) -> None:
    rule = BurnRate(0.99)
    predicted_s = rule.detection_s(share, before)
    assert predicted_s is not None
    assert _fires_at(rule, share, before) == pytest.approx(predicted_s, abs=1.5)


def _fires_at(rule: BurnRate, share: float, before: float) -> int:
    """By trying each second, at 1,000 requests a second."""

    def window(length_s: float, t: int) -> Counts:
        inside = min(t, length_s)
        return Counts(round(1_000 * length_s), round(1_000 * (share * inside + before * (length_s - inside))))

    return next(
        t for t in range(7_200) if rule.evaluate(window(rule.long_s, t), window(rule.short_s, t)).fires
    )


def test_the_detection_times_of_the_documentation() -> None:
    fast, slow = standard(0.99)[0]
    assert fast.detection_s() == pytest.approx(8.64 * 60)
    assert slow.detection_s() == pytest.approx(21.6 * 60)
    assert fast.detection_s(0.1) is None  # 10% errors burn at 10
    assert fast.detection_s(1.0, 0.2) == 0.0  # it is above the limit already
    assert "| 0.99 | page 1h/5m at 14.4 | 8.6 min | 17.3 min | never | never |" in detection_table()


def test_it_resolves_when_the_formula_says() -> None:
    rule = BurnRate(0.99)
    after_s = next(
        t
        for t in range(600)
        if rule.evaluate(Counts(3_600_000, 900_000), Counts(300_000, 1_000 * max(300 - t, 0))).clears
    )
    assert after_s + rule.hold.clear_s == pytest.approx(rule.resolution_s(), abs=1.5)


def test_defaults_leave_out_what_can_never_fire_and_say_why() -> None:
    rules, why = standard(0.9)
    assert [(rule.burn, rule.severity) for rule in rules] == [(6, "page")]
    assert "14.4" in why[0]
    assert "only 86400 s are kept" in why[1]
    assert [rule.severity for rule in standard(0.99, kept_s=3 * DAY_S)[0]] == ["page", "page", "ticket"]


FIRES = Evaluation(True, False, 2.0, 1.0)
BETWEEN = Evaluation(False, False, 0.9, 1.0)
CLEARS = Evaluation(False, True, 0.1, 1.0)
NOTHING = Evaluation(False, False, None, 1.0)


@pytest.mark.parametrize(
    ("said", "states"),
    [
        ([FIRES, FIRES, FIRES, FIRES], "pending pending firing firing"),
        ([FIRES, BETWEEN, FIRES, FIRES], "pending ok pending pending"),
        ([FIRES] * 3 + [CLEARS] * 4, "pending pending firing firing firing firing ok"),
        (
            [FIRES] * 3 + [CLEARS, CLEARS, BETWEEN, CLEARS],
            "pending pending firing firing firing firing firing",
        ),
        ([FIRES] * 3 + [CLEARS, CLEARS, FIRES, CLEARS, CLEARS], "pending pending" + " firing" * 6),
        ([FIRES] * 3 + [NOTHING] * 6, "pending pending firing firing firing firing firing firing ok"),
        ([FIRES] * 3 + [NOTHING] * 5 + [BETWEEN, NOTHING], "pending pending" + " firing" * 8),
        ([FIRES] * 3 + [CLEARS, NOTHING, NOTHING, NOTHING], "pending pending firing firing firing firing ok"),
    ],
)
def test_it_is_believed_after_20_s_and_resolved_after_30(said: list[Evaluation], states: str) -> None:
    hold, phase, seen = Hold(fire_s=20, clear_s=30, quiet_s=60), Phase(), []
    for step, each in enumerate(said):
        phase = hold.step(phase, each, (100 + 10 * step) * 10**9)
        seen.append(phase.state)
    assert seen == states.split()


def test_an_alert_is_as_old_as_its_first_sign() -> None:
    hold, phase = Hold(fire_s=20, clear_s=30), Phase()
    for at_s in (100, 110, 120, 130):
        phase = hold.step(phase, FIRES, at_s * 10**9)
    assert phase == Phase("firing", 100 * 10**9, None, 130 * 10**9)


def test_a_clock_that_goes_back_resolves_nothing() -> None:
    hold = Hold(clear_s=30)
    phase = hold.step(Phase(), FIRES, 100 * 10**9)
    for at_s in (110, 50, 120):
        phase = hold.step(phase, CLEARS, at_s * 10**9)
        assert phase.state == "firing"


def test_what_is_judged_is_not_quiet() -> None:
    hold = Hold(clear_s=30, quiet_s=0)
    phase = hold.step(hold.step(Phase(), FIRES, 10**9), BETWEEN, 2 * 10**9)
    assert phase.state == "firing"
    assert hold.step(phase, NOTHING, 3 * 10**9).state == "ok"


def test_a_negative_time_is_refused() -> None:
    with pytest.raises(ValueError, match="clear_s -1: give seconds from 0 up"):
        Hold(clear_s=-1)
