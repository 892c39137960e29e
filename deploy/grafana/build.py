"""Writes ``dashboards/legato-overview.json`` from the panels: ``python -m deploy.grafana.build``.

Classic dashboard JSON, schema 39: Grafana 10.4 and later import it.  A test holds the file against
``rendered()``, so edit the panels, not the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, Final

from deploy.grafana.panels import MATCHERS, Panel, Query, Row
from deploy.grafana.proxied import BLIND, ENGINE, NOW, US
from deploy.grafana.users import FEELS, SERVED
from deploy.grafana.watched import TOLD, TRIED

FILE: Final = Path(__file__).parent / "dashboards" / "legato-overview.json"
ROWS: Final = (SERVED, FEELS, NOW, TOLD, TRIED, US, BLIND, ENGINE)

SCHEMA: Final = 39
COLUMNS: Final = 24
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_WORST: Final = "${admin}/api/requests?sort=worst&limit=20"
_LETTERS: Final = "ABCDEFGHIJ"

_LINKS: Final = f"""\
The requests behind the numbers (admin API, `${{admin}}`): \
[who suffered most]({_WORST}), \
[the last five minutes](${{admin}}/api/summary?window=5m), \
[the curves](${{admin}}/api/curves). \
A record's `id` opens its timeline: `${{admin}}/api/requests/ID`.
"""

Json = dict[str, Any]


def expanded(expr: str) -> str:
    """A query with the variables' matchers in place of their words."""
    for word, matchers in MATCHERS.items():
        expr = expr.replace(word, matchers)
    return expr


def rendered() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


def dashboard() -> Json:
    """The whole dashboard."""
    return {
        "uid": "legato-overview",
        "title": "Legato: what users feel",
        "description": "Token deadlines and the proxy's own health. Written by deploy/grafana/build.py.",
        "tags": ["legato", "llm"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 2,  # one cursor and its values in all panels
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "timezone": "browser",
        "fiscalYearStartMonth": 0,
        "templating": {"list": list(_variables())},
        "annotations": {"list": [_restarts()]},
        "links": [_link("The worst requests")],
        "panels": list(_panels()),
    }


# ---------------------------------------------------------------- around the panels


def _variables() -> Iterator[Json]:
    yield {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
    }
    yield _values("job", "label_values(legato_build_info, job)")
    yield _values("backend", 'label_values(legato_backend_up{job=~"$job"}, backend)')
    yield _values("model", 'label_values(legato_requests_total{job=~"$job", backend=~"$backend"}, model)')
    yield _values("slo", 'label_values(legato_slo_objective_ratio{job=~"$job"}, slo)')
    address = "http://127.0.0.1:9464"
    yield {
        "name": "admin",
        "label": "Admin URL",
        "description": "Where links to requests lead: an admin listener, as your browser reaches it.",
        "type": "textbox",
        "query": address,
        "current": {"text": address, "value": address},
        "options": [{"text": address, "value": address, "selected": True}],
        "hide": 0,
    }


def _values(name: str, query: str) -> Json:
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"qryType": 1, "query": query, "refId": name},  # of label values
        "definition": query,
        "refresh": 2,  # with the time range: groups come and go
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "options": [],
        "hide": 0,
    }


def _restarts() -> Json:
    """A mark where an instance's counters begin anew."""
    return {
        "name": "Counters restarted",
        "datasource": _SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "purple",
        "expr": expanded("changes(legato_counting_since_seconds{@job}[2m]) > 0"),
        "step": "60s",
        "titleFormat": "The control process restarted",
        "textFormat": "{{instance}}",
    }


def _link(title: str) -> Json:
    return {
        "title": title,
        "type": "link",
        "url": _WORST,
        "icon": "external link",
        "tooltip": "/api/requests?sort=worst on the admin listener",
        "targetBlank": True,
        "asDropdown": False,
        "includeVars": False,
        "keepTime": False,
        "tags": [],
    }


# ---------------------------------------------------------------- panels


def _panels() -> Iterator[Json]:
    ids = count(1)
    yield _text(next(ids))
    top = 2
    for row in ROWS:
        header: Json = {
            "id": next(ids),
            "type": "row",
            "title": row.title,
            "collapsed": row.collapsed,
            "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
            "panels": [],
        }
        places, below = _placed(row, top + 1)
        inside = [_panel(panel, next(ids), place) for panel, place in zip(row.panels, places, strict=True)]
        if row.collapsed:
            header["panels"], top = inside, top + 1
            yield header
        else:
            yield header
            yield from inside
            top = below


def _placed(row: Row, top: int) -> tuple[list[Json], int]:
    """Where its panels stand, from left to right and in lines as high as their highest; and where it ends."""
    places: list[Json] = []
    left = height = 0
    for panel in row.panels:
        if left + panel.width > COLUMNS:
            left, top, height = 0, top + height, 0
        places.append({"x": left, "y": top, "w": panel.width, "h": panel.height})
        left, height = left + panel.width, max(height, panel.height)
    return places, top + height


def _text(number: int) -> Json:
    return {
        "id": number,
        "type": "text",
        "title": "",
        "transparent": True,
        "gridPos": {"x": 0, "y": 0, "w": COLUMNS, "h": 2},
        "options": {"mode": "markdown", "content": _LINKS},
    }


def _panel(panel: Panel, number: int, place: Json) -> Json:
    stat = panel.kind == "stat"
    targets = list(zip(_LETTERS, panel.queries, strict=False))
    defaults: Json = {
        "unit": panel.unit,
        "color": {"mode": "thresholds" if stat else "palette-classic"},
        "thresholds": {
            "mode": "absolute",
            "steps": [{"value": value, "color": color} for value, color in panel.steps],
        },
        "mappings": _mappings(panel),
    }
    if panel.least is not None:
        defaults["min"] = panel.least
    if panel.most is not None:
        defaults["max"] = panel.most
    if not stat:
        defaults["custom"] = _drawing(panel)
    if panel.worst:
        defaults["links"] = [{"title": "The worst requests", "url": _WORST, "targetBlank": True}]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": defaults,
            "overrides": [_dashed(letter) for letter, query in targets if query.promise],
        },
        "options": _stat_options() if stat else _graph_options(),
        "targets": [_target(letter, query, panel) for letter, query in targets],
    }


def _target(letter: str, query: Query, panel: Panel) -> Json:
    at_once = panel.kind == "stat"
    return {
        "refId": letter,
        "datasource": _SOURCE,
        "editorMode": "code",
        "expr": expanded(query.expr),
        "legendFormat": query.legend,
        "instant": at_once,
        "range": not at_once,
    }


def _mappings(panel: Panel) -> list[Json]:
    if panel.words is None:
        return []
    options = {value: {"text": text, "index": i} for i, (value, text) in enumerate(panel.words.items())}
    return [{"type": "value", "options": options}]


def _drawing(panel: Panel) -> Json:
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if panel.stacked else 0,
        "showPoints": "auto",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if panel.lines else "off"},
    }


def _dashed(letter: str) -> Json:
    return {
        "matcher": {"id": "byFrameRefID", "options": letter},
        "properties": [
            {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}},
            {"id": "custom.lineWidth", "value": 2},
            {"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}},
        ],
    }


def _graph_options() -> Json:
    return {
        "legend": {
            "showLegend": True,
            "displayMode": "table",
            "placement": "bottom",
            "calcs": ["lastNotNull", "max"],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _stat_options() -> Json:
    return {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "orientation": "auto",
        "textMode": "value_and_name",
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
    }


if __name__ == "__main__":
    FILE.write_text(rendered(), encoding="utf-8")
    print(f"wrote {FILE}")
