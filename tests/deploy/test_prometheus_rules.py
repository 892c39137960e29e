"""The rules for Prometheus read what is exported, and say what Legato's own rules say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from proxy.control.notify.alertmanager import alert_name
from proxy.exporters.vocabulary import RULE, WATCHED_RULE
from proxy.settings.alerts import Alerts
from scoring.burn import STANDARD, Window
from tests.helpers.promcheck import TARGET, faults
from tests.helpers.promql import read
from tests.helpers.rulefiles import (
    ALERTS,
    ALL,
    ITS_OWN,
    LEVELS,
    RECORDED,
    RECORDING,
    UNIT_TESTS,
    expressions,
    name_of,
    rules,
)
from tests.helpers.tools import need
from tests.scoring import alarm_promql

#: Static labels are not ``$labels`` while a rule is judged.
TEMPLATED = re.compile(r"\$labels\.(\w+)")


# ---------------------------------------------------------------- what Prometheus says


def test_promtool_accepts_them() -> None:
    checked = subprocess.run(
        [need("promtool"), "check", "rules", "--lint-fatal", str(RECORDING), str(ALERTS)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert f"SUCCESS: {len(RECORDED) + 1} rules found" in checked.stdout  # one of them for p50 and p99
    assert f"SUCCESS: {len(ALL)} rules found" in checked.stdout


@pytest.mark.parametrize("file", UNIT_TESTS, ids=lambda file: file.stem)
def test_the_unit_tests_of_promtool_pass(file: Path) -> None:
    checked = subprocess.run(
        [need("promtool"), "test", "rules", str(file)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_is_seen_firing_and_not_firing() -> None:
    fired: set[str] = set()
    silent: set[str] = set()
    for file in UNIT_TESTS:
        for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            for case in test["alert_rule_test"]:
                for alert in case["exp_alerts"]:
                    fired.add(name_of({"alert": case["alertname"], "labels": alert["exp_labels"]}))
                if not case["exp_alerts"]:
                    silent.add(case["alertname"])
    # Of a drift with ``at`` and of one without: one rule.
    assert {name.removesuffix("-p50") for name in fired} == {name_of(rule) for rule in ALL}
    assert silent == {rule["alert"] for rule in ALL} - {"LegatoWatchdog"}


# ---------------------------------------------------------------- what they read


@pytest.mark.parametrize(("where", "expr"), list(expressions()), ids=lambda part: part.split("\n")[0][:60])
def test_every_query_asks_for_what_is_exported_or_recorded(where: str, expr: str) -> None:
    assert faults(expr, recorded={**RECORDED, **ITS_OWN}) == [], where


def test_what_is_recorded_has_the_labels_of_its_level_and_is_used() -> None:
    used = {one.name for _, expr in expressions() for one in read(expr).selectors}
    for record in RECORDED:
        # The shares of good requests are for dashboards too.
        assert record in used or re.fullmatch(r"(slo|group):legato_good:ratio_rate\w+", record), record
    for _, rule in rules(RECORDING):
        for one in read(rule["expr"]).selectors:
            sums = [call for call in one.inside if call.by]
            if sums:
                level = LEVELS[rule["record"].split(":")[0]]
                assert set(sums[0].by) - {"le"} == level, (rule["record"], one.name)


def test_annotations_name_labels_that_are_there_and_figures() -> None:
    for rule in ALL:
        texts = rule["annotations"]
        assert set(texts) == {"summary", "description", "runbook_url"}, name_of(rule)
        found = set(TEMPLATED.findall(texts["summary"] + texts["description"]))
        available: set[str] = set()
        for one in read(rule["expr"]).selectors:
            inner = [call for call in one.inside if call.by]
            available |= set(inner[0].by) if inner else RECORDED.get(one.name, set()) | TARGET
        assert found <= available, (name_of(rule), found - available)
        assert not found & set(rule["labels"]), "a static label is not among $labels"
        if rule["labels"].get("what") not in ("config", "workers") and rule["alert"] not in (
            "LegatoDown",
            "LegatoWatchdog",
        ):
            assert "$value" in texts["summary"] + texts["description"] or "printf" in texts["description"]


# ---------------------------------------------------------------- the same as Legato's own


def test_every_rule_of_legato_has_its_alert() -> None:
    names = {rule["alert"] for rule in ALL}
    assert {alert_name(rule) for rule in RULE} <= names
    only_here = {"LegatoBurnRateCannotFire", "LegatoDown", "LegatoWatchdog"}
    assert names == {alert_name(rule) for rule in RULE} | only_here
    for rule in ALL:
        assert re.fullmatch(r"Legato([A-Z][a-z]+)+", rule["alert"])
        assert rule["labels"]["severity"] in ({"none"} if "Watch" in rule["alert"] else {"page", "ticket"})


def unless(rule: str) -> str:
    """Not where every instance says that this rule pages nobody for the SLO."""
    return f'unless on (job, slo) max by (job, slo) (legato_slo_watched{{rule="{rule}"}}) == 0'


def test_who_is_paged_is_what_the_slo_says() -> None:
    named = {alert_name(rule): rule for rule in WATCHED_RULE} | {"LegatoBurnRateCannotFire": "burn_rate"}
    del named["LegatoErrors"]  # of every SLO
    for rule in ALL:
        expr = " ".join(rule["expr"].split())
        if rule["alert"] in named:
            assert expr.endswith(" " + unless(named[rule["alert"]])), name_of(rule)
        else:
            assert "legato_slo_watched" not in expr, name_of(rule)


def window_of(long_s: float) -> str:
    return f"{long_s / 86_400:g}d" if long_s > 86_400 else f"{long_s / 3_600:g}h"


def short_of(short_s: float) -> str:
    return f"{short_s / 3_600:g}h" if short_s >= 3_600 else f"{short_s / 60:g}m"


@pytest.mark.parametrize("window", STANDARD, ids=lambda window: window.severity + str(window.burn))
def test_burn_rates_are_those_of_the_table(window: Window) -> None:
    long, short = window_of(window.long_s), short_of(window.short_s)
    (rule,) = (
        r for r in ALL if r["alert"] == "LegatoBurnRate" and r["labels"]["window"] == f"{long}/{short}"
    )
    assert rule["labels"]["severity"] == window.severity
    words = rule["expr"].split()
    assert (
        words
        == (
            f"slo:legato_burn:ratio_rate{long} > {window.burn:g} and slo:legato_burn:ratio_rate{short} > "
            f"{window.burn:g} and slo:legato_bad:increase{long} >= 5 {unless('burn_rate')}"
        ).split()
    )
    if window.burn > 1:  # 1 / (1 - objective) is always more than 1
        (says_so,) = (
            r
            for r in ALL
            if r["alert"] == "LegatoBurnRateCannotFire" and r["labels"]["window"] == f"{long}/{short}"
        )
        assert says_so["expr"].split()[-13:-11] == ["<=", f"{window.burn:g}"]


def test_the_objective_is_read_and_windows_are_counted_in_evaluations() -> None:
    by_name = {rule["record"]: (group, rule) for group, rule in rules(RECORDING)}
    assert "legato_slo_objective_ratio" in by_name["slo:legato_objective:ratio"][1]["expr"]
    for name, seconds in (("1h", 3_600), ("6h", 21_600), ("3d", 259_200)):
        group, rule = by_name[f"slo:legato_watched:ratio{name}"]
        assert group["interval"] == "30s"
        assert by_name["slo:legato_objective:ratio"][0] is group or group["name"] == "legato-burn"
        assert f"[{name}]) / {seconds // 30}, 1)" in rule["expr"]


def test_limits_are_legatos_own_where_they_are_the_same() -> None:
    own = Alerts()
    by_name = {name_of(rule): " ".join(rule["expr"].split()) for rule in ALL}
    for name, limits in (("LegatoSpike", own.spike), ("LegatoErrors", own.errors)):
        metric = "late" if name == "LegatoSpike" else "failed"
        assert f"group:legato_{metric}:ratio1m >= {limits.share:g} and" in by_name[name]
        assert f">= {limits.times:g} * group:legato_{metric}:usual1h" in by_name[name]
        assert f"group:legato_{metric}:increase1m >= {limits.requests}" in by_name[name]
    stalled = by_name["LegatoStalled"]
    assert f"ratio >= {own.stalled.share:g} and group:legato_overdue:sum >= {own.stalled.streams})" in stalled
    drift = by_name["LegatoDrift"]
    for at, limit in (("p50", own.drift.tbt_p50), ("p99", own.drift.tbt_p99)):
        assert f'{{at="{at}"}} > {limit:g}' in drift
    assert f"prefill_drift:ratio > {own.drift.prefill:g}" in drift


def test_the_simulation_has_the_numbers_of_the_rules() -> None:
    for name, share in (("LegatoSpike", alarm_promql.SPIKE), ("LegatoErrors", alarm_promql.ERRORS)):
        (rule,) = (each for each in ALL if each["alert"] == name)
        expr = rule["expr"]
        behind_s = share.behind * 10
        assert f"ratio1m >= {share.share:g}\n" in expr
        assert f"ratio1m >= {share.at_once:g}\n" in expr
        assert f"[{behind_s + 5}s]) >= {share.share:g}" in expr  # all samples from then on
        assert f"offset {behind_s}s >= {share.share:g}" in expr
        assert f">= {share.times:g} * " in expr
        assert f"increase1m >= {share.hits}" in expr
        assert (rule["for"], rule["keep_firing_for"]) == (f"{share.hold * 10}s", f"{share.keep // 6}m")
    (rule,) = (each for each in ALL if each["alert"] == "LegatoStalled")
    half, streams, hold, keep = alarm_promql.STALLED
    assert f"ratio >= {half:g} and group:legato_overdue:sum >= {streams}" in rule["expr"]
    assert (rule["for"], rule["keep_firing_for"]) == (f"{hold * 10}s", f"{keep // 6}m")
    assert {group["interval"] for group, each in rules(ALERTS) if each["alert"] == "LegatoSpike"} == {"10s"}
