"""The table in the terminal and the JSON file."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.bench.figures import FAULTS, Results
from deploy.bench.loads import Load
from deploy.bench.processes import Cores

COLUMNS = ("direct", "legato", "naive", "nginx", "everything", "redis away", "mirrored")
RATIOS = (
    ("legato / naive", "x naive"),
    ("legato / nginx", "x nginx"),
    ("everything / legato", "on / off"),
    ("mirrored / legato", "mirror / none"),
    ("redis away / legato", "away / off"),
)
CONTROL = "legato again / legato"


def machine(cores: Cores) -> dict[str, Any]:
    """Where it was measured."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "proxy_core": cores.proxy,
        "load_core": cores.load,
    }


def notes(where: dict[str, Any], results: Results) -> list[str]:
    """What one must know to read the table."""
    pinned = (
        f"the proxy alone on core {where['proxy_core']}, upstream and load on core {where['load_core']}"
        if where["proxy_core"] is not None
        else "ONE core for all: the figures are of little worth, nothing could be pinned"
    )
    lines = [
        f"{where['cpu']}, {where['system']}, Python {where['python']}; {pinned}; everything on loopback.",
        f"Medians of {len(results.rounds)} interleaved round(s). Only ratios within this run mean anything, "
        "and a ratio inside the A/A range means nothing. (In brackets: the direct way itself.)",
    ]
    foreign = results.foreign_share()
    if foreign > 0.1:
        lines.append(f"Something else used up to {foreign:.0%} of the proxy's core meanwhile: expect noise.")
    return lines


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.1f}"


def show(console: Console, results: Results, where: dict[str, Any]) -> None:
    """Print the table, what it means, and what went wrong."""
    present = [name for name in COLUMNS if name in results.targets]
    table = Table(title="Legato against the direct way and other proxies", title_justify="left")
    table.add_column("figure")
    for name in present:
        table.add_column(name, justify="right")
    shown = [(key, title) for key, title in RATIOS if set(key.split(" / ")) <= set(results.targets)]
    for _, title in shown:
        table.add_column(title, justify="right", style="bold")
    table.add_column("A/A (range)", justify="right", style="dim")
    for entry in results.summary():
        ratios = entry["ratio_median_low_high"]
        cells = [_number(entry["median"].get(name)) for name in present]
        if entry["added_over_direct"] and "direct" in entry["median"]:
            cells[present.index("direct")] = f"({cells[present.index('direct')]})"  # itself, not added
        cells += [f"{ratios[key][0]:.2f}" if key in ratios else "-" for key, _ in shown]
        control = ratios.get(CONTROL)
        cells.append(f"{control[0]:.2f} ({control[1]:.2f}-{control[2]:.2f})" if control else "-")
        table.add_row(f"{entry['figure']} [{entry['unit']}]".replace("[", "\\["), *cells)
    console.print(table)
    for line in notes(where, results):
        console.print(line, style="dim")
    for row in results.faults():
        found = ", ".join(f"{fault} {row[fault]}" for fault in FAULTS if row.get(fault))
        console.print(
            f"round {row['round'] + 1}, {row['target']}, {row['load']}: {found} {row['trouble']}", style="red"
        )


def write(
    path: Path,
    results: Results,
    where: dict[str, Any],
    loads: Sequence[Load],
    costs: Mapping[str, tuple[float, float]],
) -> None:
    """Everything, for later comparison."""
    content = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": where,
        "notes": notes(where, results),
        "loads": {load.name: load.about for load in loads},
        "summary": results.summary(),
        "dialects": {
            name: {"ns_per_event": round(ns, 1), "x_chat": round(ratio, 3)}
            for name, (ns, ratio) in costs.items()
        },
        "rows": results.rows,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
