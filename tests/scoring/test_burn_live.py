"""What is in flight, and what became slower."""

from __future__ import annotations

import pytest

from scoring.alarm_live import Drift, Flight, Speeds, Stalled


def looks(*seen: tuple[int, int, float]) -> list[Flight]:
    """(streams, overdue, tokens per second), 10 s apart."""
    return [Flight(10.0 * step, *each) for step, each in enumerate(seen)]


FINE, HUNG, STARVED = (40, 1, 1_600.0), (40, 39, 0.0), (40, 26, 300.0)


@pytest.mark.parametrize(
    ("seen", "fires"),
    [
        ([FINE] * 4, False),
        ([FINE, HUNG], False),  # one look may be a hiccup
        ([FINE, FINE, HUNG], False),
        ([FINE, HUNG, HUNG], True),
        ([FINE, STARVED, STARVED, STARVED], True),
        ([HUNG, HUNG, HUNG, FINE], False),  # it goes on again
        ([HUNG], False),  # just started: 20 s are to be seen
        ([(4, 4, 5.0)] * 4, False),  # fewer than five
        ([(1, 1, 0.0)] * 40, False),  # one request that hangs by itself
        ([(2, 2, 0.0)] * 3, False),
        ([(2, 2, 0.0)] * 4, True),  # silent for 30 s
        ([(2, 2, 0.0), (2, 2, 1.0), (2, 2, 0.0), (2, 2, 0.0), (2, 2, 0.0)], False),
        ([(40, 2, 0.0)] * 4, True),
        ([(40, 0, 0.0)] * 9, False),  # long prompts, in time
        ([(0, 0, 0.0)] * 4, False),
        ([], False),
    ],
)
def test_what_is_stalled(seen: list[tuple[int, int, float]], fires: bool) -> None:
    assert Stalled().evaluate(looks(*seen)).fires is fires


def test_looks_of_each_second_will_do() -> None:
    every_second = [Flight(float(at), 40, 30 if at > 20 else 0, 10.0) for at in range(60)]
    fires_at = next(at for at in range(1, 60) if Stalled().evaluate(every_second[:at]).fires)
    assert fires_at in range(33, 39)  # most of 20 s


def test_a_stall_clears_where_a_quarter_is_overdue() -> None:
    third, fifth = (40, 14, 900.0), (40, 8, 900.0)
    assert not Stalled().evaluate(looks(third, third, third)).clears
    assert Stalled().evaluate(looks(fifth, fifth, fifth)).clears
    said = Stalled().evaluate(looks(*[HUNG] * 4))
    assert said.evidence["silent_s"] == 30
    assert said.reason == "39 of 40 streams in flight are overdue, and none had a token for 30 s"


@pytest.mark.parametrize(
    ("speeds", "fires", "clears"),
    [
        (None, False, True),  # nothing is frozen
        (Speeds(1.1, 1.2, 1.3, 500), False, True),
        (Speeds(None, 2.0, None, 500), True, False),
        (Speeds(None, 2.0, None, 19), False, False),
        (Speeds(1.6, 1.0, 1.0, 500), True, False),
        (Speeds(1.0, 1.0, 2.6, 500), True, False),
        (Speeds(1.0, 1.4, 1.0, 500), False, False),  # neither better nor worse
        (Speeds(0.5, 0.5, 0.5, 500), False, True),
        (Speeds(None, None, None, 500), False, False),
    ],
)
def test_what_is_drift(speeds: Speeds | None, fires: bool, clears: bool) -> None:
    said = Drift().evaluate(speeds)
    assert (said.fires, said.clears) == (fires, clears)


def test_drift_names_the_ratio_that_is_furthest() -> None:
    said = Drift().evaluate(Speeds(1.2, 2.0, 2.6, 500))
    assert (said.value, said.threshold) == (2.0, 1.6)
    assert said.reason == "tbt_p50 is 2.00 times the frozen one (limit 1.6)"


@pytest.mark.parametrize(
    ("rule", "keywords", "says"),
    [
        (Stalled, {"share": 1.5}, "share 1.5: give a share"),
        (Stalled, {"over_s": 0}, "over_s 0: give seconds above 0"),
        (Stalled, {"silent_streams": 0}, "silent_streams 0: give at least 1"),
        (Drift, {"tbt_p99": 1.0}, "tbt_p99 1.0: give a ratio above 1"),
    ],
)
def test_nonsense_is_refused(rule: type, keywords: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rule(**keywords)
