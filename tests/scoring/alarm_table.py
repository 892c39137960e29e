"""``python -m tests.scoring.alarm_table`` writes the figures in deploy/runbooks/README.md: about a minute.

Between the marks there: how long the burn rate takes, what is found of planted incidents and when, and what
healthy days page, by Legato's own rules and by those of deploy/prometheus, on seeds 0 to 19 (thresholds were
chosen on others).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

from scoring.burn import detection_table
from tests.scoring import alarm_promql
from tests.scoring.alarm_run import Fired, Planted, Rules, found, healthy, plant, planted, worst_minutes
from tests.scoring.alarm_traffic import INCIDENTS, simulate

FILE: Final = Path(__file__).resolve().parents[2] / "deploy/runbooks/README.md"
SEEDS: Final = range(20)
PER_S: Final = 5.0
#: Slots hold nothing of what Prometheus would read here: ratios that Legato exports.
_OWN_ONLY: Final = "decode twice as slow"


def part(name: str, text: str, new: str) -> str:
    """``text`` with what stands between the marks of ``name`` replaced."""
    head, begin, rest = text.partition(f"<!-- {name} -->\n")
    _, end, tail = rest.partition(f"<!-- end of {name} -->\n")
    if not begin or not end:
        raise ValueError(f"no marks <!-- {name} --> and <!-- end of {name} -->")
    return head + begin + new + end + tail


def seed_row(seed: int) -> str:
    """One seed: its healthy days and its incidents."""
    return _row(seed, _days(seed), incidents(seed))


@cache
def incidents(seed: int) -> dict[str, tuple[Planted, Planted | None]]:
    """By incident: what Legato's rules found, and those of Prometheus."""
    out: dict[str, tuple[Planted, Planted | None]] = {}
    for name in INCIDENTS:
        own = plant(name, seed, PER_S, Rules())
        other = None
        if name != _OWN_ONLY:
            traffic, at_s, end_s = planted(name, seed, PER_S)
            fired = [each for each in alarm_promql.run(traffic) if not each.rule.startswith("burn")]
            other = found(name, fired, at_s, end_s)
        out[name] = own, other
    return out


def _days(seed: int) -> list[str]:
    day, calm = (simulate(seed, 24, PER_S, calm=each) for each in (False, True))
    own = [healthy(seed, PER_S, Rules(), calm=each) for each in (False, True)]
    rules = [alarm_promql.run(each) for each in (day, calm)]
    worst = ", ".join(f"{share:.0%}" for share in worst_minutes(day))
    return [f"{int(day.tried.sum()):,}", worst, _pages(own), _pages(rules)]


def _pages(fired: list[list[Fired]]) -> str:
    return ", ".join(str(len(each)) for each in fired)


def _row(seed: int, days: list[str], got: dict[str, tuple[Planted, Planted | None]]) -> str:
    cells = [_seconds(own, other) for own, other in got.values()]
    return "| " + " | ".join((str(seed), *days, *cells)) + " |"


def _seconds(*got: Planted | None) -> str:
    times = (None if each is None else each.first_s for each in got)
    return ", ".join("-" if time is None else f"{time:.0f}" for time in times)


def by_seed(rows: Iterable[str]) -> str:
    """The table of seeds."""
    head = [
        "seed",
        "requests of a day",
        "worst minute: late, failed, overdue",
        "pages",
        "pages in Prometheus",
    ]
    head += INCIDENTS
    return "\n".join((f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows)) + "\n"


def by_incident(got: list[dict[str, tuple[Planted, Planted | None]]]) -> str:
    """The table of incidents, over all seeds."""
    lines = [
        "| incident | Legato: found | told after: median, slowest | resolved, at most"
        " | Prometheus: found | told after: median, slowest | resolved, at most |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in INCIDENTS:
        own, other = ([each[name][which] for each in got] for which in (0, 1))
        lines.append(f"| {name} | {' | '.join((*_summed(own), *_summed(other)))} |")
    return "\n".join(lines) + "\n"


def _summed(got: list[Planted | None]) -> Iterator[str]:
    known = [each for each in got if each is not None]
    times = sorted(each.first_s for each in known if each.first_s is not None)
    after = [each.resolved_s for each in known if each.resolved_s is not None]
    if not known:
        yield from ("see below", "-", "-")
        return
    yield f"{len(times)} of {len(got)}"
    yield f"{times[len(times) // 2]:.0f} s, {times[-1]:.0f} s" if times else "-"
    yield f"{max(after):.0f} s" if after else "-"


def main() -> None:
    text = part("burn rate", FILE.read_text(encoding="utf-8"), detection_table() + "\n")
    rows, got = [], []
    for seed in SEEDS:
        got.append(incidents(seed))
        rows.append(_row(seed, _days(seed), got[-1]))
        print(rows[-1], flush=True)
    text = part("incidents", text, by_incident(got))
    FILE.write_text(part("seeds", text, by_seed(rows)), encoding="utf-8")
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
