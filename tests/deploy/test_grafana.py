"""The dashboard is what its panels say, imports into Grafana, and asks only for what is exported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana import build
from proxy.exporters.catalog import CATALOG
from tests.helpers.promcheck import faults, known_as
from tests.helpers.promql import Selector, selectors

GRAFANA = Path(build.__file__).parent
Json = dict[str, Any]

#: Exported, and on no panel: why.
NOT_SHOWN: dict[str, str] = {
    "legato_slo_watched": "terms of an SLO, which rules of deploy/prometheus ask",
}
#: Grafana's own.
BUILT_IN = {"__rate_interval", "__range", "__all"}

DASHBOARD: Json = json.loads(build.FILE.read_text(encoding="utf-8"))


def panels() -> list[Json]:
    """All of them, those in collapsed rows too."""
    top: list[Json] = DASHBOARD["panels"]
    return [*top, *(inner for panel in top for inner in panel.get("panels", ()))]


@dataclass(frozen=True)
class Asked:
    """One query of the file; variables' queries and annotations have no legend."""

    where: str
    expr: str
    legend: str = ""


def queries() -> Iterator[Asked]:
    for panel in panels():
        for target in panel.get("targets", ()):
            yield Asked(f"{panel['title']} {target['refId']}", target["expr"], target["legendFormat"])
    for annotation in DASHBOARD["annotations"]["list"]:
        yield Asked(annotation["name"], annotation["expr"], annotation["textFormat"])


def series_of_variables() -> Iterator[tuple[Selector, str]]:
    """What ``label_values(series, label)`` reads."""
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
            assert found is not None, variable
            assert variable["query"]["query"] == variable["definition"]
            (selector,) = selectors(found[1])
            yield selector, found[2]


# ---------------------------------------------------------------- the file


def test_the_file_is_what_the_panels_say() -> None:
    assert build.FILE.read_text(encoding="utf-8") == build.rendered(), "run python -m deploy.grafana.build"


def test_it_is_a_classic_dashboard_that_imports_anywhere() -> None:
    assert 39 <= DASHBOARD["schemaVersion"] <= 41
    assert "__inputs" not in DASHBOARD  # the variable asks for the data source
    assert "id" not in DASHBOARD  # of one Grafana's database
    assert DASHBOARD["graphTooltip"] == 2
    for panel in panels():
        assert panel["type"] in {"row", "text", "timeseries", "stat"}
        for part in [panel, *panel.get("targets", ())]:
            assert part.get("datasource", {"uid": "${datasource}"})["uid"] == "${datasource}"


def test_ids_are_unique_and_so_are_titles_and_letters() -> None:
    for key in ("id", "title"):
        found = [panel[key] for panel in panels()]
        assert sorted(set(found)) == sorted(found), key
    for panel in panels():
        letters = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(letters)) == len(letters), panel["title"]
        if panel["type"] not in {"row", "text"}:
            assert letters, panel["title"]


def _cells(panel: Json) -> set[tuple[int, int]]:
    at = panel["gridPos"]
    assert at["x"] >= 0
    assert at["x"] + at["w"] <= 24, panel["title"]
    return {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}


def test_nothing_lies_on_anything_else() -> None:
    groups = [DASHBOARD["panels"], *(p["panels"] for p in DASHBOARD["panels"] if p.get("panels"))]
    for group in groups:
        taken: dict[tuple[int, int], str] = {}
        for panel in group:
            for cell in _cells(panel):
                assert cell not in taken, (panel["title"], taken.get(cell))
                taken[cell] = panel["title"]


def test_every_panel_teaches_and_has_its_unit() -> None:
    for panel in panels():
        if panel["type"] in {"timeseries", "stat"}:
            assert len(panel["description"]) > 40, panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None


def test_times_are_shown_as_times_and_shares_as_shares() -> None:
    for panel in panels():
        for target in panel.get("targets", ()):
            names = {one.name for one in selectors(target["expr"])}
            unit = panel["fieldConfig"]["defaults"]["unit"]
            if "histogram_quantile" in target["expr"]:
                seconds = all("_seconds" in name for name in names)
                assert unit == ("s" if seconds else "percentunit"), panel["title"]


def test_every_row_of_the_readme_is_there() -> None:
    text = (GRAFANA / "README.md").read_text(encoding="utf-8")
    titles = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert re.findall(r"^\| \*(.+?)\* \|", text, re.MULTILINE) == titles


# ---------------------------------------------------------------- variables


def test_every_variable_that_is_used_exists_and_every_one_that_exists_is_used() -> None:
    text = json.dumps([DASHBOARD["panels"], DASHBOARD["links"], DASHBOARD["annotations"]])
    lists = json.dumps(DASHBOARD["templating"])
    used = set(re.findall(r"\$\{?(\w+)", text)) - BUILT_IN
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert names == {"datasource", "job", "backend", "model", "slo", "admin"}
    assert used == names
    assert set(re.findall(r"\$\{?(\w+)", lists)) - BUILT_IN <= names


def test_variables_offer_several_values_and_all() -> None:
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            assert (variable["multi"], variable["includeAll"]) == (True, True), variable["name"]
            assert re.fullmatch(variable["allValue"], "any name at all")
    assert DASHBOARD["templating"]["list"][0]["query"] == "prometheus"


def test_a_variable_is_compared_as_an_expression_for_it_may_hold_several() -> None:
    every = [one for asked in queries() for one in selectors(asked.expr)]
    for selector in [*every, *(one for one, _ in series_of_variables())]:
        for label, operator, value in selector.matchers:
            if value.startswith("$"):
                assert operator == "=~", (selector.name, label)


def test_links_lead_to_the_requests_behind_the_numbers() -> None:
    texts = [panel["options"]["content"] for panel in panels() if panel["type"] == "text"]
    assert any("](${admin}/api/requests?sort=worst" in text for text in texts)
    assert all("/api/requests?sort=worst" in link["url"] for link in DASHBOARD["links"])


# ---------------------------------------------------------------- queries against the catalog


@pytest.mark.parametrize("asked", list(queries()), ids=lambda asked: asked.where)
def test_every_query_asks_for_what_is_exported(asked: Asked) -> None:
    assert faults(asked.expr, asked.legend) == []


def test_variables_ask_for_what_is_exported() -> None:
    found = list(series_of_variables())
    assert len(found) == 4
    for selector, label in found:
        known = known_as(selector.name)
        assert known is not None, selector.name
        assert {label, *(name for name, _, _ in selector.matchers)} <= known[1], selector.name


QUANTILE = "histogram_quantile(0.99, sum by (le, slo) (rate(legato_ttft_seconds_bucket[5m])))"


@pytest.mark.parametrize(
    ("expr", "fault"),
    [
        ("sum(rate(legato_request_total[5m]))", "legato_request_total is not exported"),
        ("slo:legato_good:ratio_rate5m", "slo:legato_good:ratio_rate5m is not exported"),
        ("sum(rate(legato_ttft_seconds[5m]))", "legato_ttft_seconds is not exported"),
        ("sum(rate(legato_requests_total_count[5m]))", "legato_requests_total_count is not exported"),
        ("max(vllm:gpu_cache_usage_perc)", "vllm:gpu_cache_usage_perc is not exported"),
        ('max(legato_workers{slo="chat"})', "legato_workers has no label slo"),
        ('sum(rate(legato_requests_total{outcome="done"}[5m]))', "outcome is never done"),
        (
            'sum(rate(legato_slo_requests_total{result=~"good|well"}[5m]))',
            "result is never good|well",
        ),
        (
            "sum by (route) (legato_requests_in_flight)",
            "legato_requests_in_flight has no label route to be summed by",
        ),
        ("sum(legato_requests_total)", "legato_requests_total is a counter and is not rated"),
        (
            "sum(max_over_time(legato_dropped_total[5m]))",
            "legato_dropped_total is a counter and is not rated",
        ),
        ("sum(rate(legato_workers[5m]))", "legato_workers is a gauge and is rated"),
        (
            "sum(rate(legato_requests_total))",
            "legato_requests_total: a window belongs to a function of windows, and to nothing else",
        ),
        (
            QUANTILE.replace("le, ", ""),
            "legato_ttft_seconds_bucket: a quantile needs _bucket summed by le",
        ),
        (
            QUANTILE.replace("_bucket", "_sum").replace("le, ", ""),
            "legato_ttft_seconds_sum: a quantile needs _bucket summed by le",
        ),
        (
            "histogram_quantile(0.9, rate(legato_ttft_seconds_bucket[5m]))",
            "legato_ttft_seconds_bucket: a quantile needs _bucket summed by le",
        ),
        ("sum(rate(legato_ttft_seconds_bucket[5m]))", "legato_ttft_seconds_bucket outside a quantile"),
        (
            "sum by (slo) (legato_requests_overdue) / on (slot) max by (slo) (legato_slo_objective_ratio)",
            "matched by slot",
        ),
        ("sum(legato_workers) by (instance)", "write by before the parentheses of sum"),
        ("prediction(legato_workers)", "prediction is no function that is known here"),
        ('{job="legato"}', "{ without a name before it"),
        ("sum(legato_workers))", ") too much"),
        ("sum(legato_workers", "it ends too early"),
        ("max(legato_workers{instance=~$job})", "what is '$job})'?"),
    ],
)
def test_the_check_sees_what_is_wrong(expr: str, fault: str) -> None:
    assert faults(expr) == [fault]


def test_the_check_sees_a_legend_of_a_label_that_is_summed_away() -> None:
    assert faults("sum by (slo) (legato_requests_overdue)", "{{slo}} {{model}}") == ["legend: model"]
    assert faults(QUANTILE, "{{slo}} p99") == []


def test_every_metric_is_on_a_panel_or_left_out_for_a_reason() -> None:
    shown = {one.name for asked in queries() for one in selectors(asked.expr)}
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown} | shown
    exported = {metric.name for metric in CATALOG}
    assert exported - shown == set(NOT_SHOWN)
    assert all(NOT_SHOWN.values())


# ---------------------------------------------------------------- provisioning


def test_grafana_finds_the_dashboard_and_its_data_source() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["type"] == "prometheus"
    assert source["isDefault"] is True  # what the variable offers first
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/legato.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    assert [file.name for file in (GRAFANA / "dashboards").iterdir()] == [build.FILE.name]
    assert provider["options"]["path"] in (GRAFANA / "README.md").read_text(encoding="utf-8")
