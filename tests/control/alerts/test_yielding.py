"""When a host whose notifiers refuse stands back, and for how long."""

from __future__ import annotations

import pytest

from proxy.control.alerts.yielding import BACK_NS, REFUSED_NS, Yielding
from tests.control.facts import S

NOW = 1_000_000 * S


@pytest.mark.parametrize(
    ("refused_ns", "others", "yields", "wants"),
    [
        (0, [False], False, True),
        (REFUSED_NS - 1, [False], False, True),
        (REFUSED_NS, [False], True, False),
        (REFUSED_NS, [True, False], True, False),
        (REFUSED_NS, [True, True], True, True),  # it is not the host
        (REFUSED_NS, [], True, True),  # nobody else is there
    ],
)
def test_who_stands_back(refused_ns: int, others: list[bool], yields: bool, wants: bool) -> None:
    host = Yielding()
    assert (host.wants(NOW, refused_ns, others), host.yields) == (wants, yields)


@pytest.mark.parametrize(
    ("later_ns", "wants"),
    [(1, False), (BACK_NS - 1, False), (BACK_NS, True), (-1, True), (-3_600 * S, True)],
    ids=["at once", "just before", "after ten minutes", "clock set back a little", "by an hour"],
)
def test_for_how_long_also_where_the_clock_is_set(later_ns: int, wants: bool) -> None:
    host = Yielding()
    assert not host.wants(NOW, REFUSED_NS, [False])
    assert host.wants(NOW + later_ns, 0, [False]) == wants
