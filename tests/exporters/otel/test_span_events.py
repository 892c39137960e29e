"""The first token and the stalls, as events of the CLIENT span: when, how late, whose doing, how many."""

from __future__ import annotations

import pytest

from proxy.exporters.otel.spans import STALLS_MAX
from proxy.link import ChoiceScore
from tests.control.facts import UNIX, stream
from tests.exporters.otel.asked import MS, T0, Usage, at, both, chat

#: The head came 1 ms before t = 0.
ZERO = UNIX + MS


def test_stalls_are_events_where_the_gap_began() -> None:
    """Due at 100, 150 and 200 ms; the third comes at 400: 200 ms late, and a further deadline every 50 ms."""
    _, client = both(chat(at(80), at(100), at(400), at(420), end_ms=430))
    first, stall = client.events
    assert (first.name, first.at_unix_ns) == ("legato.first_token", ZERO + 80 * MS)
    assert (stall.name, stall.at_unix_ns) == ("legato.stall", ZERO + 100 * MS)
    assert stall.attributes == {"legato.stall.late_s": 0.2, "legato.stall.missed": 5}
    told = {name: client.attributes[f"legato.{name}"] for name in ("met", "missed", "late_s", "stalls")}
    assert told == {"met": 3, "missed": 5, "late_s": 0.2, "stalls": 1}
    assert client.dropped_events == 0


def test_whose_stall_it_was_is_said() -> None:
    blocked = chat(at(80), at(100), at(400), end_ms=410, blocked=((T0 + 101 * MS, T0 + 399 * MS),))
    _, client = both(blocked)
    assert client.events[-1].attributes["legato.stall.reason"] == "client_blocked"
    assert client.attributes["legato.client_blocked"] is True
    lagged = chat(at(80), at(100), at(400), end_ms=410, lags=((T0 + 101 * MS, T0 + 399 * MS),))
    _, client = both(lagged)
    assert client.events[-1].attributes["legato.stall.reason"] == "suspect"
    assert client.attributes["legato.suspect"] is True


def test_the_choice_is_said_where_it_is_not_the_first() -> None:
    two = stream(choices=[[at(80), at(120)], [at(80), at(400)]], usage=Usage(1, 4))
    _, client = both(chat(end_ms=410, stream=two, choices_asked=2))
    (stall,) = [event for event in client.events if event.name == "legato.stall"]
    assert stall.attributes["legato.stall.choice"] == 1


def test_of_many_stalls_the_worst_are_told_and_the_rest_counted() -> None:
    """100 stalls, each a little longer than the one before."""
    events, now = [at(10)], 10
    for number in range(100):
        now += 200 + number
        events.append(at(now))
    _, client = both(chat(*events, end_ms=now + 1))
    stalls = [event for event in client.events if event.name == "legato.stall"]
    assert len(stalls) == STALLS_MAX
    assert client.dropped_events == 100 - STALLS_MAX
    assert client.attributes["legato.stalls"] == 100
    assert [event.at_unix_ns for event in client.events] == sorted(
        event.at_unix_ns for event in client.events
    )
    late = [event.attributes["legato.stall.late_s"] for event in stalls]
    assert late == sorted(late)
    assert late[0] == pytest.approx(late[-1] - 0.031, abs=0.0001)  # the last 32: a millisecond more each


def test_a_stall_that_thinning_hid_is_told_all_the_same() -> None:
    scores = (ChoiceScore(3, 1, 4, 150 * MS, 400 * MS, 120 * MS, 150 * MS, 4),)
    _, client = both(chat(at(80), at(120, 2), of={"thinned": True, "scores": scores}))
    (stall,) = [event for event in client.events if event.name == "legato.stall"]
    assert stall.at_unix_ns == ZERO + 120 * MS
    assert stall.attributes["legato.stall.late_s"] == 0.15
