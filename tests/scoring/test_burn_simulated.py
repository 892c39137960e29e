"""The rules over simulated traffic: planted incidents are found in time, healthy days page nobody.

Two seeds here; ``python -m tests.scoring.alarm_run`` does all and prints the tables.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.scoring.alarm_run import Rules, healthy, plant
from tests.scoring.alarm_traffic import INCIDENTS, SLOT_S, simulate

SEEDS = (0, 1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", INCIDENTS)
def test_an_incident_is_found_in_time_and_resolved(name: str, seed: int) -> None:
    got = plant(name, seed, 5.0, Rules())
    assert got.early == 0
    assert got.first_s is not None
    assert got.first_s <= (600 if name == "decode twice as slow" else 60)
    assert got.resolved_s is not None
    assert got.resolved_s <= 900


@pytest.mark.parametrize("calm", [False, True], ids=["bursty", "calm"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_healthy_day_pages_nobody(seed: int, calm: bool) -> None:
    assert healthy(seed, 5.0, Rules(), calm) == []


def test_the_healthy_day_is_no_easy_one() -> None:
    day, six = simulate(0, 24, 5.0), np.ones(6)
    late = np.convolve(day.missed, six, "valid") / np.convolve(day.settled, six, "valid")
    assert day.settled.sum() > 600_000
    assert late.max() > 5 * late.mean() > 0.1
    assert day.tried.max() > 3 * day.tried.mean()


def test_the_simulated_incidents_are_what_they_say() -> None:
    at_s, slots = 1_800, slice(185, 205)  # from 50 s after the start on
    for name, incident in INCIDENTS.items():
        seen, usual = simulate(0, 1, 5.0, incident, at_s), simulate(0, 1, 5.0)
        failed = seen.failed[slots].sum() / usual.tried[slots].sum()
        assert failed == pytest.approx(incident.failing, abs=0.1 * incident.failing + 0.01), name
        if incident.speed < 1:
            assert seen.streams[slots].sum() > 1.2 * usual.streams[slots].sum(), name
        if incident.late:
            assert seen.overdue[slots].sum() > 0.6 * seen.streams[slots].sum(), name
        before = slice(0, at_s // SLOT_S - 1)
        assert (seen.streams[before] == usual.streams[before]).all(), name
