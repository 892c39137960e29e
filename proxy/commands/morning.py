"""What ``legato report`` says, from the admin API's answers: findings first, then tables.  Pure.

One layout for both forms: a ``Section`` is a title, sentences and a table of texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final, NamedTuple

Json = Mapping[str, Any]

#: Rows of the worst requests.
WORST: Final = 10
#: Rows of groups in the tables, those with the most requests; JSON has all.
GROUPS: Final = 64
_NAMES: Final = ("backend", "model", "slo")


class Section(NamedTuple):
    """``rows`` are as long as ``columns``; the first ``names`` columns are names, the others figures."""

    title: str
    notes: list[str]
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    names: int = 3


def worst_of(records: Iterable[Json], covered_from: str) -> list[Json]:
    """The worst of the records (worst first) that ended since then and missed a deadline."""
    begun = datetime.fromisoformat(covered_from)
    found = [
        record
        for record in records
        if record["missed"]
        and datetime.fromisoformat(record["time"]) + timedelta(seconds=record["duration_s"]) >= begun
    ]
    return found[:WORST]


def findings(summary: Json, others: Sequence[str] = ()) -> list[str]:
    """What needs somebody's attention, in sentences, the gravest first; ``others``: what is known already."""
    found = list(others)
    if (degraded := summary["degraded"]) is not None:
        since = f"Redis: {degraded['reason']} since {degraded['since']}"
        if summary["scope"] == "host":
            found.append(
                f"this is {summary['instance']} alone: the other hosts' numbers cannot be read ({since})"
            )
        else:
            found.append(f"what ended on {summary['instance']} of late is missing ({since})")
    for group in summary["groups"]:
        good, objective = group["good_ratio"], group["objective"]
        if good is not None and objective is not None and good < objective:
            bad = group["results"]["bad"]
            found.append(f"{_name(group)}: {share(good)} good, {share(objective)} promised ({bad} bad)")
    now = summary["total"]["in_flight"]
    if now["overdue"]:
        worst = time(now["worst_overdue_s"])
        found.append(f"now: {now['overdue']} of {now['requests']} streams are overdue, the worst by {worst}")
    down = [backend["name"] for backend in summary["backends"] if not backend["up"]]
    if down:
        found.append(f"not reached: {', '.join(down)}")
    ours = summary["total"]["deadlines"]["suspect"]
    if ours:
        found.append(f"{ours} missed deadlines were our own event loop's fault, and are in no score")
    proxy = summary["proxy"]
    for what, counts in (
        ("streams not measured", proxy["unmeasured"]),
        ("records dropped", proxy["dropped"]),
        ("exports failed", proxy["export_failures"]),
    ):
        if some := counted(counts):
            found.append(f"{what}: {some}")
    if not summary["total"]["requests"]:
        found.append("no request ended in this time")
    return found


def sections(summary: Json, worst: Sequence[Json], others: Sequence[str] = ()) -> list[Section]:
    """Everything, in the order in which to read it."""
    total = summary["total"]
    rows = sorted(summary["groups"], key=lambda group: -group["requests"])[:GROUPS]
    groups = [*rows, total]
    left = len(summary["groups"]) - len(rows)
    more = [f"and {left} more groups"] if left else []
    return [
        Section("Needs attention", findings(summary, others) or ["nothing"]),
        Section(
            "Promises",
            [f"requests by outcome: {counted(total['outcomes']) or 'none'}", *_rates(groups), *more],
            (
                *_NAMES,
                "requests",
                "good",
                "objective",
                "missed",
                "under target",
                "fluidity p1",
                "fluid tokens/s",
            ),
            [_promises(group) for group in groups],
        ),
        Section(
            "Times",
            [],
            (*_NAMES, "ttft p50", "p99", "tbt p50", "p99", "max", "duration p99", "output tokens"),
            [_times(group) for group in groups],
        ),
        Section(
            "Worst requests",
            [] if worst else ["none of the kept requests missed a deadline"],
            ("id", "backend", "model", "fluidity", "missed", "ttft", "worst stall", "outcome"),
            [_worst(record) for record in worst],
        ),
        _us(summary),
        _blind(summary),
        _now(summary),
    ]


def heading(summary: Json) -> str:
    """Which time it is about."""
    error = summary["relative_error"]
    return (
        f"Legato {summary['version']} {_where(summary)}: {summary['covered_from']} to "
        f"{summary['covered_to']} ({time(summary['window_s'])}), quantiles within {error:.1%}"
    )


def _where(summary: Json) -> str:
    if summary["scope"] != "fleet":
        return f"on {summary['instance']}"
    instances = summary["instances"]
    return f"on {instances} instance{'s' * (instances != 1)} (as {summary['instance']} reads them)"


def _name(group: Json) -> str:
    return " / ".join(str(group[name]) for name in _NAMES)


def _names(group: Json) -> list[str]:
    return [group["backend"] or "all", group["model"] or "", group["slo"] or ""]


def _promises(group: Json) -> list[str]:
    return [
        *_names(group),
        str(group["requests"]),
        share(group["good_ratio"]),
        share(group["objective"]),
        share(group["deadline_miss_rate"]),
        share(group["share_under_target"]),
        number(group["fluidity"]["p1"]),
        number(group["fluid_token_rate"]),
    ]


def _rates(groups: Sequence[Json]) -> list[str]:
    reasons: dict[str, int] = {}
    for group in groups[:-1]:
        reason = group["fluid_token_rate_reason"]
        if reason and group["requests"]:
            reasons[reason] = reasons.get(reason, 0) + 1
    return [f"no fluid tokens/s for {count} of the groups: {reason}" for reason, count in reasons.items()][:3]


def _times(group: Json) -> list[str]:
    ttft, tbt = group["ttft_s"], group["tbt_s"]
    values = (ttft["p50"], ttft["p99"], tbt["p50"], tbt["p99"], tbt["max"], group["duration_s"]["p99"])
    return [*_names(group), *map(time, values), str(group["output_tokens"])]


def _worst(record: Json) -> list[str]:
    stall = record["worst_stall"]
    at = "-" if stall is None else f"{time(stall['late_s'])} late at {time(stall['at_s'])}"
    return [
        record["id"],
        record["backend"] or "",
        record["model"] or "",
        number(record["fluidity"]),
        str(record["missed"]),
        time(record["ttft_s"]),
        at,
        record["outcome"],
    ]


def _us(summary: Json) -> Section:
    proxy, deadlines = summary["proxy"], summary["total"]["deadlines"]
    rows = [
        [name, str(delay["count"]), *(time(delay[key]) for key in ("p50_s", "p99_s", "p999_s", "sum_s"))]
        for name, delay in (
            ("forwarding a chunk", proxy["forward"]),
            ("event loop late", proxy["event_loop_lag"]),
            ("client too slow", proxy["client_blocked"]),
        )
    ]
    out = (
        f"deadlines taken out of the scores: {deadlines['suspect']} our own event loop's, "
        f"{deadlines['client_blocked']} of clients that read too slowly"
    )
    since = f"delays are since {proxy['since']}; quantiles are upper bounds"
    if summary["scope"] == "fleet":
        since = f"of {proxy['instance']} alone: {since}"
    return Section("Is it us?", [out, since], ("delay", "count", "p50", "p99", "p99.9", "sum"), rows, 1)


def _blind(summary: Json) -> Section:
    proxy = summary["proxy"]
    return Section(
        "Are we blind?",
        [
            *([f"of {proxy['instance']} alone"] if summary["scope"] == "fleet" else []),
            f"not measured: {counted(proxy['unmeasured']) or 'none'}",
            f"dropped: {counted(proxy['dropped']) or 'none'}",
            f"exports failed: {counted(proxy['export_failures']) or 'none'}",
            f"workers {proxy['workers']}, link errors {proxy['link_errors']}"
            + (", draining" if proxy["draining"] else ""),
        ],
    )


def _now(summary: Json) -> Section:
    now = summary["total"]["in_flight"]
    notes = [
        f"{now['requests']} requests, {now['overdue']} overdue, {now['missed_deadlines']} deadlines missed, "
        f"{now['tokens_per_s']:g} tokens/s"
    ]
    columns = ("backend", "up", "active", "idle", "connecting")
    rows = [
        [backend["name"], "yes" if backend["up"] else "no", *(str(backend[name]) for name in columns[2:])]
        for backend in summary["backends"]
    ]
    return Section("In flight now", notes, columns, rows, 1)


# ---------------------------------------------------------------- figures


def counted(counts: Mapping[str, int]) -> str:
    """What was counted at all, the most first: ``3 timeout, 1 no_tokens``."""
    some = sorted(((count, name) for name, count in counts.items() if count), key=lambda each: -each[0])
    return ", ".join(f"{count} {name}" for count, name in some)


def number(value: float | None) -> str:
    """Four digits; ``-`` where there is none."""
    return "-" if value is None else f"{value:.4g}"


def share(value: float | None) -> str:
    """A ratio in percent, never rounded up to all."""
    if value is None:
        return "-"
    text = f"{value:.2%}"
    return ">99.99%" if text == "100.00%" and value < 1 else text


def time(seconds: float | None) -> str:
    """A duration in three digits and its unit."""
    if seconds is None:
        return "-"
    if seconds >= 59.95:
        return lasting(seconds)
    if seconds >= 1 or not seconds:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def lasting(seconds: float) -> str:
    """A stretch of time in its two largest units: ``2 min 10 s``, ``3 h``, ``1 d 4 h``."""
    whole = round(seconds)
    for (unit, size), (small, part) in pairwise((("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))):
        if whole >= size:
            count, rest = divmod(whole, size)
            return f"{count} {unit}" + (f" {rest // part} {small}" if rest >= part else "")
    return f"{whole} s"


def plain(text: str) -> str:
    """Text of clients, fit for a terminal: what cannot be printed becomes a question mark."""
    return "".join(char if char.isprintable() else "?" for char in text)


def markdown(title: str, parts: Sequence[Section]) -> str:
    """The report as Markdown."""
    lines = [f"# {_escaped(title)}", ""]
    for part in parts:
        lines += [f"## {part.title}", "", *(f"- {_escaped(note)}" for note in part.notes)]
        lines += [""] if part.notes else []
        if part.rows:
            rule = ["---"] * part.names + ["---:"] * (len(part.columns) - part.names)
            table = [part.columns, rule, *([_escaped(cell) for cell in row] for row in part.rows)]
            lines += [f"| {' | '.join(row)} |" for row in table]
            lines.append("")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return "".join(f"\\{char}" if char in "\\|`*_<[" else char for char in plain(text))
