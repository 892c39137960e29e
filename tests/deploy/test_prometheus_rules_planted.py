"""Prometheus itself over the simulated incidents: its rules fire when the table says that they do.

``promtool test rules`` is given the simulation's slots as series, scraped every 10 s.  The simulation in
numpy (``tests/scoring/alarm_promql.py``) knows what happened exactly; Prometheus extrapolates from scrapes.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.helpers.rulefiles import ALERTS, RECORDING
from tests.helpers.tools import need
from tests.scoring import alarm_promql
from tests.scoring.alarm_run import Fired, planted
from tests.scoring.alarm_traffic import SLOT_S, Ints, Traffic

NAMES = {"spike": "LegatoSpike", "errors": "LegatoErrors", "stalled": "LegatoStalled"}
GROUP = 'job="legato", instance="a", backend="one", model="tiny", slo="chat"'
#: What Prometheus is later or sooner by: extrapolation, and a count just at its limit.
NEAR_S = 20
#: Of the two healthy hours before, the last 40 minutes: enough to know what is usual.
BEFORE_S = 2_400
#: The groups of rules that this is about; the others would only cost time.
GROUPS = ["legato-minute", "legato-flight", "legato-soon-alerts"]


def series(traffic: Traffic, first: int, last: int) -> list[dict[str, str]]:
    def counter(name: str, labels: str, counts: Ints) -> dict[str, str]:
        sums = np.concatenate(([0], counts[first:last].cumsum()))
        return {"series": f"{name}{{{GROUP}{labels}}}", "values": " ".join(map(str, sums))}

    def gauge(name: str, counts: Ints) -> dict[str, str]:
        shown = np.concatenate((counts[first : first + 1], counts[first:last]))
        return {"series": f"{name}{{{GROUP}}}", "values": " ".join(map(str, shown))}

    return [
        counter("legato_fluidity_ratio_count", "", traffic.settled),
        counter("legato_fluidity_ratio_bucket", ', le="0.9"', 0 * traffic.missed),
        counter("legato_fluidity_ratio_bucket", ', le="0.995"', traffic.missed),
        counter("legato_fluidity_ratio_bucket", ', le="1.0"', traffic.settled),
        counter("legato_requests_total", ', outcome="completed"', traffic.tried - traffic.failed),
        counter("legato_requests_total", ', outcome="upstream_error"', traffic.failed),
        gauge("legato_requests_in_flight", traffic.streams),
        gauge("legato_requests_overdue", traffic.overdue),
    ]


@pytest.fixture(scope="module")
def rules_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = [
        group
        for file in (RECORDING, ALERTS)
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
        if group["name"] in GROUPS
    ]
    assert [group["name"] for group in found] == GROUPS
    file = tmp_path_factory.mktemp("rules") / "some.yaml"
    file.write_text(yaml.safe_dump({"groups": found}), encoding="utf-8")
    return file


def judged(
    rules: Path, traffic: Traffic, first: int, last: int, moments: dict[str, list[tuple[float, bool]]]
) -> Any:
    """A test for promtool: at these seconds after ``first`` an alert is out, or is not."""
    asked = [
        {
            "expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}})',
            "eval_time": f"{at_s:.0f}s",
            "exp_samples": [{"labels": "{}", "value": 1}] if out else [],
        }
        for name, each in moments.items()
        for at_s, out in each
    ]
    return {
        "rule_files": [str(rules)],
        "evaluation_interval": f"{SLOT_S}s",
        "group_eval_order": GROUPS,
        "tests": [
            {
                "interval": f"{SLOT_S}s",
                "input_series": series(traffic, first, last),
                "promql_expr_test": asked,
            }
        ],
    }


def moments_of(
    fired: list[Fired], start_s: float, at_s: float, end_s: float
) -> dict[str, list[tuple[float, bool]]]:
    """For each alert: nothing before the incident, out soon after it is due, and over soon after its end."""
    out: dict[str, list[tuple[float, bool]]] = {}
    for rule, name in NAMES.items():
        told = [each for each in fired if each.rule == rule and at_s <= each.from_s <= end_s]
        quiet = [(float(second), False) for second in range(1_200, int(at_s - start_s), 300)]
        if told:
            due_s, over_s = told[0].from_s - start_s, told[-1].until_s
            assert over_s is not None
            quiet += [(due_s - NEAR_S, False), (due_s + NEAR_S, True), (over_s - start_s + 2 * NEAR_S, False)]
        else:
            quiet.append((end_s - start_s, False))
        out[name] = [(second // SLOT_S * SLOT_S, is_out) for second, is_out in quiet]
    return out


@pytest.mark.parametrize(
    "incident", ["long prompts starve decoding", "hang", "10% errors", "total outage", "5% errors"]
)
def test_prometheus_tells_of_an_incident_when_the_table_says(
    incident: str, rules_file: Path, tmp_path: Path
) -> None:
    traffic, at_s, end_s = planted(incident, 0, 5.0)
    first, last = int(at_s - BEFORE_S) // SLOT_S, int(end_s + 420) // SLOT_S
    start_s = float(first * SLOT_S)
    fired = alarm_promql.run(traffic)
    assert [each.rule for each in fired if each.from_s < at_s] == []
    moments = moments_of(fired, start_s, at_s, end_s)
    if incident != "5% errors":
        assert any(out for each in moments.values() for _, out in each)
    file = tmp_path / "planted.yaml"
    asked = judged(rules_file, traffic, first, last, moments)
    file.write_text(yaml.safe_dump(asked, width=1_000_000), encoding="utf-8")
    command = [need("promtool"), "test", "rules", str(file)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
