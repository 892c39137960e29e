"""Every alert of Prometheus has its runbook, every page its alert, and the Alertmanager example holds."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from proxy.commands import alerts, compare, experiment, freeze
from proxy.control.alerts.rules import SEVERITY
from proxy.control.alerts.words import runbook
from proxy.control.notify.alertmanager import alert_name
from proxy.exporters.vocabulary import RULE
from tests.helpers.promcheck import faults
from tests.helpers.promql import read
from tests.helpers.rulefiles import ALL, BASE, EXAMPLE, ITS_OWN, PAGES, RECORDED, ROOT
from tests.helpers.tools import need

# ---------------------------------------------------------------- runbooks


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_alert_has_its_page_and_every_page_its_alert() -> None:
    pages: dict[str, set[str]] = {}
    for rule in ALL:
        url = rule["annotations"]["runbook_url"]
        assert url.startswith(BASE), url
        file, _, anchor = url.removeprefix(BASE).partition("#")
        pages.setdefault(file, set()).add(rule["alert"])
        assert not anchor or anchor in anchors(PAGES / file), url
        if rule["alert"] == "LegatoProxy":
            assert anchor == rule["labels"]["what"]
    assert set(pages) == {page.name for page in PAGES.glob("*.md")} - {"README.md"}
    overview = (PAGES / "README.md").read_text(encoding="utf-8")
    for file, names in pages.items():
        text = (PAGES / file).read_text(encoding="utf-8")
        assert all(name in text for name in names), (file, names)
        assert f"]({file})" in overview
    assert {(ROOT / runbook(rule)).name for rule in RULE} <= set(pages)


def test_the_overview_has_the_severities_of_rules_and_of_legatos_own() -> None:
    told: dict[str, set[str]] = {}
    for rule in ALL:
        told.setdefault(rule["alert"], set()).add(rule["labels"]["severity"])
    for name, severity in SEVERITY.items():
        told[alert_name(name)].add(severity)
    told["LegatoExperiment"].add("page")  # a guardrail: proxy/control/alerts/signals.py
    shown: dict[str, set[str]] = {}
    for line in (PAGES / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4:
            for name in re.findall(r"`(Legato\w+)`", cells[0]):
                shown.setdefault(name, set()).update(re.findall(r"\b(page|ticket|none)\b", cells[1]))
    del told["LegatoBurnRateCannotFire"]  # on the page of LegatoBurnRate
    both = shown["LegatoDown"] & shown["LegatoWatchdog"]  # one line of two
    assert both == told.pop("LegatoDown") | told.pop("LegatoWatchdog")
    assert {name: shown[name] for name in told} == told


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_says_what_to_do_and_its_links_and_queries_hold(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert (page.parent / link).exists(), link
    for query in re.findall(r"```promql\n(.*?)```", text, re.DOTALL):
        assert faults(query.strip(), recorded={**RECORDED, **ITS_OWN}) == [], query
    if page.name == "README.md":
        return
    wanted = ["First look", "How it ends", "How soon, and how often for nothing"]
    if page.name != "proxy.md":  # it has a section for each cause
        wanted += ["Likely causes, in order", "What to do"]
    heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert set(wanted) <= set(heads)
    assert "**For users.**" in text
    assert "Dashboard: " in text or page.name in {"drift.md"}


def test_commands_that_pages_name_exist() -> None:
    program = typer.Typer()
    for module in (alerts, compare, experiment, freeze):
        module.register(program)
    commands = typer.main.get_command(program)
    found = 0
    for page in PAGES.glob("*.md"):
        for words in re.findall(
            r"(?:`|^ {4})legato ((?:[a-z]+ ?)+)", page.read_text(encoding="utf-8"), re.MULTILINE
        ):
            at: Any = commands
            for word in words.split():
                if not hasattr(at, "commands"):
                    break  # an argument
                if word == "check":  # of the program itself
                    break
                assert word in at.commands, (page.name, words)
                at = at.commands[word]
                found += 1
    assert found > 20


def titles() -> set[str]:
    panels = json.loads((ROOT / "deploy/grafana/dashboards/legato-overview.json").read_text())["panels"]
    return {panel["title"] for top in panels for panel in (top, *top.get("panels", ()))}


def test_panels_that_pages_name_are_on_the_dashboard() -> None:
    known = titles()
    for page in PAGES.glob("*.md"):
        for line in re.findall(r"Dashboard: (.+?)\n\n", page.read_text(encoding="utf-8"), re.DOTALL):
            for title in re.findall(r"\*(.+?)\*", line.replace("\n", " ")):
                assert title in known or title in {"running and waiting"}, (page.name, title)


# ---------------------------------------------------------------- Alertmanager


def routed(**labels: str) -> str:
    told = subprocess.run(
        [need("amtool"), "config", "routes", "test", f"--config.file={EXAMPLE}"]
        + [f"{name}={value}" for name, value in labels.items()],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return told.stdout.strip()


def test_amtool_accepts_the_example_and_routes_by_severity() -> None:
    checked = subprocess.run(
        [need("amtool"), "check-config", str(EXAMPLE)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    receivers = {"page": "pager", "ticket": "tickets", "none": "dead-mans-switch"}
    for rule in ALL:
        severity = rule["labels"]["severity"]
        assert routed(alertname=rule["alert"], severity=severity) == receivers[severity]


def test_what_is_held_back_is_what_the_source_explains() -> None:
    by_name = {rule["alert"]: rule for rule in ALL}
    config = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    for each in config["inhibit_rules"]:
        named = [
            re.findall(r'alertname =~? "([^"]+)"', " ".join(each[f"{side}_matchers"]))[0].split("|")
            for side in ("source", "target")
        ]
        for name in (*named[0], *named[1]):
            labels = {label for one in read(by_name[name]["expr"]).selectors for label in _labels_of(one)}
            assert set(each["equal"]) <= labels, (name, each["equal"], labels)


def _labels_of(one: Any) -> set[str]:
    sums = [call for call in one.inside if call.by]
    return set(sums[0].by) if sums else set(RECORDED.get(one.name, ()))
