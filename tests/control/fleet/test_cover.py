"""The slots of a window: all of it once, nothing twice, and few of them."""

from __future__ import annotations

import pytest

from proxy.control.fleet import cover
from proxy.control.fleet.layout import Grain
from tests.control.facts import UNIX, S
from tests.control.test_windows import HOUR, MINUTE

DAY = 24 * HOUR
WINDOWS = (10 * S, 5 * MINUTE, 19 * MINUTE, 20 * MINUTE, HOUR, 6 * HOUR, 19 * HOUR, 20 * HOUR, DAY)
MOMENTS = (UNIX, UNIX // HOUR * HOUR, UNIX // HOUR * HOUR - 1, UNIX // MINUTE * MINUTE + 59 * S)


@pytest.mark.parametrize("window_ns", WINDOWS)
@pytest.mark.parametrize("now_ns", MOMENTS)
def test_one_slot_begins_where_the_one_before_ends(window_ns: int, now_ns: int) -> None:
    start_ns, places = cover.window(window_ns, now_ns)
    at_ns = start_ns
    for place in places:
        assert place.start_ns == at_ns
        at_ns += place.grain.length_ns
    assert places[-1].start_ns <= now_ns < at_ns
    assert 0 <= now_ns - window_ns - start_ns < max(window_ns // cover.SLACK, 10 * S)
    assert len(places) <= 90


@pytest.mark.parametrize("window_ns", WINDOWS)
def test_it_begins_in_a_slot_that_is_still_kept(window_ns: int) -> None:
    for now_ns in MOMENTS:
        _, places = cover.window(window_ns, now_ns)
        for place in places:
            assert place.grain.expires_s(place.number) * S > now_ns


@pytest.mark.parametrize(
    ("window_ns", "tens", "minutes", "hours"),
    [(5 * MINUTE, 4, 5, 0), (HOUR, 0, 46, 1), (DAY, 0, 0, 25)],
)
def test_the_longest_slots_that_fit(window_ns: int, tens: int, minutes: int, hours: int) -> None:
    _, places = cover.window(window_ns, UNIX + 15 * S)  # 03:14:22
    found = [sum(place.grain is grain for place in places) for grain in Grain]
    assert found == [tens, minutes, hours]


def test_a_stretch_stays_within_its_bounds_but_for_now() -> None:
    start_ns = UNIX // HOUR * HOUR
    minute = list(cover.stretch(start_ns, start_ns + MINUTE, start_ns + HOUR))
    assert minute == [cover.Place(Grain.MINUTE, start_ns // MINUTE)]
    # The hour that has just begun is as long as its first half minute.
    begun = list(cover.stretch(start_ns, start_ns + MINUTE, start_ns + 30 * S))
    assert begun == [cover.Place(Grain.HOUR, start_ns // HOUR)]
    assert list(cover.stretch(start_ns + MINUTE, start_ns + 2 * MINUTE, start_ns)) == []
