"""From measurements to figures: the value per round, medians, ratios within a round, and the noise."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
FAULTS = ("lost", "out_of_order", "bad_status", "broken", "unfinished")


@dataclass(frozen=True)
class Figure:
    """One line of the report.  ``added``: the direct way's value in the same round is taken off."""

    load: str
    key: str
    title: str
    unit: str
    added: bool = False


#: Whose ratio within a round is of interest.
COMPARED = (
    ("legato", "naive"),
    ("legato", "nginx"),
    ("everything", "legato"),
    ("redis away", "legato"),
    ("mirrored", "legato"),
    ("legato again", "legato"),
)

FIGURES = (
    Figure("saturated", "cpu_us_per_unit", "CPU per chunk, saturated", "us"),
    Figure("saturated", "cpu_data_us_per_unit", "CPU of the data process per chunk, saturated", "us"),
    Figure("saturated", "per_s", "chunks per second, saturated", "/s"),
    Figure("paced", "cpu_us_per_unit", "CPU per chunk, 50 streams x 20 ms", "us"),
    Figure("paced", "p50_us", "delay added per chunk, p50", "us", added=True),
    Figure("paced", "p99_us", "delay added per chunk, p99", "us", added=True),
    Figure("paced", "p999_us", "delay added per chunk, p99.9", "us", added=True),
    Figure("paced", "first_p50_us", "TTFT added, p50", "us", added=True),
    Figure("paced minute", "p50_us", "a minute: delay added per chunk, p50", "us", added=True),
    Figure("paced minute", "p99_us", "a minute: delay added per chunk, p99", "us", added=True),
    Figure("paced minute", "p999_us", "a minute: delay added per chunk, p99.9", "us", added=True),
    Figure("wide", "cpu_us_per_unit", "CPU per chunk, 300 streams x 50 ms", "us"),
    Figure("wide", "p50_us", "300 streams: delay added, p50", "us", added=True),
    Figure("wide", "p99_us", "300 streams: delay added, p99", "us", added=True),
    Figure("wide", "p999_us", "300 streams: delay added, p99.9", "us", added=True),
    Figure("requests", "per_s", "small requests per second", "/s"),
    Figure("requests", "cpu_us_per_unit", "CPU per small request", "us"),
    Figure("memory", "rss_data_mb", "memory at 1,000 streams, data process", "MB"),
    Figure("memory", "rss_mb", "memory at 1,000 streams, all", "MB"),
    Figure("paced scraped", "p99_us", "scraped each second: delay added, p99", "us", added=True),
    Figure("paced summaries", "p99_us", "summaries read: delay added, p99", "us", added=True),
    Figure("saturated scraped", "cpu_us_per_unit", "scraped each second: CPU per chunk", "us"),
    Figure("bodies 100 KB", "per_s", "requests with 100 KB per second", "/s"),
    Figure("bodies 100 KB", "cpu_us_per_unit", "CPU per request with 100 KB", "us"),
    Figure("bodies 10 MB", "per_s", "requests with 10 MB per second", "/s"),
    Figure("bodies 10 MB", "cpu_us_per_unit", "CPU per request with 10 MB", "us"),
    Figure("tls off", "cpu_us_per_unit", "Python client: CPU per chunk, plain", "us"),
    Figure("tls on", "cpu_us_per_unit", "Python client: CPU per chunk, TLS", "us"),
)


@dataclass(frozen=True)
class Ratio:
    """Ratios of two targets within each round: their median and their range."""

    median: float
    low: float
    high: float


class Results:
    """All measurements of a run."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self._by = {(row["load"], row["target"], row["round"]): row for row in self.rows}
        self.rounds = sorted({row["round"] for row in self.rows})
        self.targets = list(dict.fromkeys(row["target"] for row in self.rows))

    def values(self, figure: Figure, target: str) -> dict[int, float]:
        """The figure per round."""
        out = {}
        for number in self.rounds:
            value = self._value(figure, figure.load, target, number)
            # a scraped load is compared with the same load on the direct way, which has nothing to scrape
            plain = figure.load.removesuffix(" scraped").removesuffix(" summaries")
            base = self._value(figure, plain, "direct", number)
            if value is None or (figure.added and base is None):
                continue
            if figure.added and target != "direct":
                assert base is not None
                value -= base
            out[number] = value
        return out

    def _value(self, figure: Figure, load: str, target: str, number: int) -> float | None:
        row = self._by.get((load, target, number), {})
        value = row.get(figure.key)
        return None if value is None else float(value)

    def median(self, figure: Figure, target: str) -> float | None:
        """The median over the rounds."""
        values = self.values(figure, target).values()
        return statistics.median(values) if values else None

    def ratio(self, figure: Figure, over: str, under: str) -> Ratio | None:
        """``over`` / ``under`` within each round that has both (an added delay below zero is noise)."""
        top, bottom = self.values(figure, over), self.values(figure, under)
        both = [number for number in self.rounds if top.get(number, 0) > 0 and bottom.get(number, 0) > 0]
        ratios = [top[number] / bottom[number] for number in both]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios)) if ratios else None

    def faults(self) -> list[Row]:
        """Measurements with a lost, disordered, failed or unfinished stream."""
        return [row for row in self.rows if any(row.get(fault) for fault in FAULTS)]

    def foreign_share(self) -> float:
        """The largest share of the proxy's core that something else used during a measurement."""
        return max((row.get("foreign_share") or 0.0 for row in self.rows), default=0.0)

    def summary(self) -> list[Row]:
        """One entry per figure that was measured: medians, ratios to the others, and the A/A control."""
        return [entry for figure in FIGURES if (entry := self._entry(figure, self.targets))]

    def _entry(self, figure: Figure, targets: Sequence[str]) -> Row:
        medians = {name: value for name in targets if (value := self.median(figure, name)) is not None}
        if not medians or set(medians) <= {"direct"}:
            return {}
        ratios = {}
        for over, under in COMPARED:
            ratio = self.ratio(figure, over, under)
            if ratio is not None:
                ratios[f"{over} / {under}"] = [
                    round(part, 3) for part in (ratio.median, ratio.low, ratio.high)
                ]
        return {
            "load": figure.load,
            "figure": figure.title,
            "unit": figure.unit,
            "added_over_direct": figure.added,
            "median": {name: round(value, 2) for name, value in medians.items()},
            "ratio_median_low_high": ratios,
        }
