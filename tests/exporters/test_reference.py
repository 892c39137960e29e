"""The metrics reference is written from the catalog and is not behind it."""

from __future__ import annotations

from itertools import pairwise

from proxy.exporters.catalog import CATALOG
from proxy.exporters.otel.genai import CONVENTIONS
from proxy.exporters.reference import FILE, markdown


def test_the_reference_is_current() -> None:
    assert FILE.read_text(encoding="utf-8") == markdown(), "run: python -m proxy.exporters.reference"


def test_every_metric_and_every_value_is_documented() -> None:
    text = markdown()
    for metric in CATALOG:
        assert f"| `{metric.name}` |" in text
        assert metric.help in text
        for values in metric.closed.values():
            for value, meaning in values.items():
                assert f"| `{value}` | {meaning} |" in text


def test_every_name_over_otlp_is_documented() -> None:
    text = markdown()
    for metric in CATALOG:
        row = f"| `{metric.name}` | `{metric.otlp_name}` | `{metric.otlp_unit}` |"
        assert row in text
    for convention in CONVENTIONS:
        assert f"| `{convention.name}` | `{convention.unit}` |" in text


def test_tables_keep_their_columns() -> None:
    """A bar in a sentence would break its row."""
    lines = markdown().splitlines()
    for before, line in pairwise(lines):
        if before.startswith("|") and line.startswith("|"):
            assert line.count("|") == before.count("|"), line
