"""The tables of deploy/runbooks are what the rules do now: two seeds of them, and the burn rate's."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from scoring.burn import detection_table
from tests.scoring import alarm_promql
from tests.scoring.alarm_run import planted
from tests.scoring.alarm_table import FILE, SEEDS, by_incident, incidents, part, seed_row
from tests.scoring.alarm_traffic import INCIDENTS

TEXT = FILE.read_text(encoding="utf-8")


def table(name: str) -> list[str]:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end of {name} -->", TEXT, re.DOTALL)
    assert found is not None
    return found[1].splitlines()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_row_of_a_seed_is_current(seed: int) -> None:
    assert seed_row(seed) in table("seeds"), "run make alerts-table"


def test_every_seed_is_there_and_no_healthy_day_pages() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table("seeds")[2:]]
    assert [int(row[0]) for row in rows] == list(SEEDS)
    assert {row[3] for row in rows} == {row[4] for row in rows} == {"0, 0"}


def test_the_incidents_hold_what_two_seeds_say() -> None:
    shown = {line.split("|")[1].strip(): line for line in table("incidents")[2:]}
    assert list(shown) == list(INCIDENTS)
    head = table("incidents")[:2]
    assert by_incident([incidents(0)]).splitlines()[:2] == head
    for name, (own, other) in incidents(1).items():
        cells = [cell.strip() for cell in shown[name].strip("|").split("|")]
        for got, (found, told, over) in ((own, cells[1:4]), (other, cells[4:7])):
            if got is None:
                continue
            assert found == "20 of 20"
            assert got.first_s is not None
            assert got.first_s <= float(told.split(", ")[1].removesuffix(" s")) + 0.5
            assert got.resolved_s is not None
            assert got.resolved_s <= float(over.removesuffix(" s")) + 0.5


def test_the_burn_rates_table_is_current() -> None:
    assert table("burn rate") == detection_table().splitlines(), "run make alerts-table"


def test_what_has_no_marks_is_not_written() -> None:
    assert part("a", "x\n<!-- a -->\nold\n<!-- end of a -->\ny\n", "new\n").split() == [
        "x", "<!--", "a", "-->", "new", "<!--", "end", "of", "a", "-->", "y",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no marks <!-- b -->"):
        part("b", "nothing", "new")


def test_a_long_incident_does_not_hide_itself_in_what_is_usual() -> None:
    """Of Prometheus's rules: minutes in which they fired are left out."""
    traffic, at_s, _ = planted("total outage", 0, 5.0)
    first = round(at_s / 10) + 10
    failed = traffic.failed.copy()
    failed[first:] = traffic.tried[first:]  # it never ends
    alerts = alarm_promql.run(replace(traffic, failed=failed))
    (told,) = (each for each in alerts if each.rule == "errors")
    assert told.until_s is None
