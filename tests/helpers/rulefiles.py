"""The files of deploy/prometheus as data: their rules, what they record, and every query in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from proxy.control.alerts.words import RUNBOOKS
from tests.helpers.promcheck import TARGET

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/prometheus"
PAGES = ROOT / RUNBOOKS
RECORDING, ALERTS = (FOLDER / f"rules/legato-{name}.yaml" for name in ("recording", "alerts"))
EXAMPLE = FOLDER / "alertmanager.example.yaml"
UNIT_TESTS = sorted((FOLDER / "tests").glob("*.yaml"))
#: The address that users replace; a name that never resolves.
BASE = "https://runbooks.invalid/legato/"
#: Of Prometheus itself, and recorded by it.
ITS_OWN = {
    "up": TARGET,
    "ALERTS": {"alertname", "alertstate", "job", "backend", "model", "slo"},
}
LEVELS = {
    "slo": {"job", "slo"},
    "group": {"job", "backend", "model", "slo"},
    "model": {"job", "backend", "model"},
}
Rule = dict[str, Any]


def rules(file: Path) -> list[tuple[Rule, Rule]]:
    """(group, rule), in order."""
    groups = yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    return [(group, rule) for group in groups for rule in group["rules"]]


RECORDED = {
    rule["record"]: LEVELS[rule["record"].split(":")[0]] | set(rule.get("labels", ()))
    for _, rule in rules(RECORDING)
}
ALL = [rule for _, rule in rules(ALERTS)]


def name_of(rule: Rule) -> str:
    labels = rule.get("labels", {})
    kind = labels.get("what") or labels.get("window") or labels.get("at", "")
    return str(rule.get("alert") or rule["record"]) + (f"-{kind}" if kind else "")


def expressions() -> Iterator[tuple[str, str]]:
    """(where, query): of rules, and of the queries in annotations."""
    for file in (RECORDING, ALERTS):
        for _, rule in rules(file):
            yield name_of(rule), rule["expr"]
            for number, query in enumerate(asked(rule)):
                yield f"{name_of(rule)} query {number}", query


def asked(rule: Rule) -> list[str]:
    """The queries of its annotations, with a name in the place of each label."""
    text = rule.get("annotations", {}).get("description", "")
    found = re.findall(r'printf "((?:[^"\\]|\\.)*)"', text)
    return [each.replace('\\"', '"').replace("%q", '"x"') for each in found]
