"""The demo's words: the live table, the closing report, the verdict.  Pure: values in, renderables out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from deploy.demo.drawing import ARRIVED, DUE, SLACK, WAITING, draw
from deploy.demo.load import Progress
from deploy.demo.scenario import Scenario
from deploy.demo.view import ArmView, ProxyView, RequestView, View

#: What the paper says, as the paper's; nothing of it was measured here.
METRON = (
    "Metron (arXiv 2407.07000) reported of real engines on GPUs: with chunked prefill (Sarathi-Serve) 99% of "
    "requests keep a fluidity above 0.9 at loads, some 600 tokens/s, where prefill-first (vLLM of the time) "
    "does not, and tail TBT is about 3 times better."
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the numbers say, in sentences made from them."""

    sentence: str
    shown: bool  # the second arm keeps its promise, the first does not, the tail is at least 3 times better


def duration(seconds: float | None) -> str:
    """``31 ms``, ``1.24 s``, ``–``."""
    if seconds is None:
        return "–"
    return f"{seconds * 1e3:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def percent(ratio: float | None) -> str:
    """``0%``, ``3.4%``, ``–``; what is not nothing never reads as 0%."""
    if ratio is None:
        return "–"
    if 0 < ratio < 0.0005:
        return "<0.1%"
    return f"{ratio:.1%}" if ratio else "0%"


def number(value: float | None, digits: int = 3) -> str:
    """``0.973``, ``–``."""
    return "–" if value is None else f"{value:.{digits}f}"


def live(scenario: Scenario, progress: Mapping[str, Progress], view: View | None, elapsed_s: float) -> Table:
    """The table that is redrawn while the load runs."""
    table = Table(title=f"{scenario.title}, {elapsed_s:.0f} s", caption=scenario.note, caption_style="yellow")
    for heading in ("backend", "sent", "in flight", "overdue", "scored", f"under {scenario.target:g}"):
        table.add_column(heading, justify="left" if heading == "backend" else "right")
    for heading in ("fluidity p50", "TTFT p50/p99", "TBT p50/p99", "longest gap", "missed"):
        table.add_column(heading, justify="right")
    for arm in scenario.arms:
        seen = (view or View({}, _NO_SHARE)).arm(arm.name)
        sent = progress[arm.name]
        table.add_row(
            arm.name,
            f"{sent.sent}/{sent.total}",
            str(seen.in_flight),
            Text(str(seen.overdue), style="bold red" if seen.overdue else ""),
            str(seen.good + seen.bad),
            _judged(seen, scenario),
            number(seen.fluidity_p50),
            f"{duration(seen.ttft_p50)} / {duration(seen.ttft_p99)}",
            f"{duration(seen.tbt_p50)} / {duration(seen.tbt_p99)}",
            duration(seen.longest_gap),
            percent(seen.miss_rate),
        )
    return table


_NO_SHARE = ProxyView(None, None, None, 0, 0)


def _judged(arm: ArmView, scenario: Scenario) -> Text:
    bad = (arm.share_under or 0) > 1 - scenario.objective + 1e-9
    style = "" if arm.share_under is None else "bold red" if bad else "bold green"
    return Text(percent(arm.share_under), style=style)


def plain_line(scenario: Scenario, progress: Mapping[str, Progress], view: View, elapsed_s: float) -> str:
    """The same in one line, for a log."""
    parts = []
    for arm in scenario.arms:
        seen = view.arm(arm.name)
        sent = progress[arm.name]
        parts.append(
            f"{arm.name}: sent {sent.sent}/{sent.total}, in flight {seen.in_flight}, overdue {seen.overdue},"
            f" under {scenario.target:g}: {percent(seen.share_under)}, TBT p99 {duration(seen.tbt_p99)}"
        )
    return f"{elapsed_s:4.0f} s  " + " | ".join(parts)


def comparison(scenario: Scenario, view: View) -> Table:
    """The closing table: one row per measure, one column per arm."""
    arms = [view.arm(arm.name) for arm in scenario.arms]
    table = Table(title="What Legato measured", title_justify="left", title_style="bold")
    table.add_column("")
    for arm in scenario.arms:
        table.add_column(arm.name, justify="right")
    judged = [_judged(arm, scenario) for arm in arms]
    rows: list[tuple[str, list[str | Text]]] = [
        ("requests, all answered", [str(arm.requests) for arm in arms]),
        (f"requests with fluidity under {scenario.target:g}", [*judged]),
        ("fluidity p50 / p1", [f"{number(a.fluidity_p50)} / {number(a.fluidity_p1)}" for a in arms]),
        ("token deadlines missed", [f"{percent(a.miss_rate)} ({a.missed:,})" for a in arms]),
        ("TTFT p50 / p99", [f"{duration(a.ttft_p50)} / {duration(a.ttft_p99)}" for a in arms]),
        ("TBT p50 / p99", [f"{duration(a.tbt_p50)} / {duration(a.tbt_p99)}" for a in arms]),
        ("longest gap", [duration(arm.longest_gap) for arm in arms]),
        ("fluid token rate", [_rate(arm) for arm in arms]),
        ("output tokens", [f"{arm.tokens:,}" for arm in arms]),
    ]
    for name, cells in rows:
        table.add_row(name, *cells)
    return table


def _rate(arm: ArmView) -> str:
    if arm.fluid_token_rate is not None:
        return f"{arm.fluid_token_rate:.1f} tokens/s"
    return f"none ({arm.fluid_token_rate_reason or 'no requests'})"


def verdict(scenario: Scenario, view: View) -> Verdict:
    """Compare the arms; every word about them follows from the numbers."""
    first, second = (view.arm(arm.name) for arm in scenario.arms)
    names = [arm.name for arm in scenario.arms]
    needed = (first.share_under, second.share_under, first.tbt_p99, second.tbt_p99)
    if any(value is None for value in needed):
        return Verdict("Too little was measured for a verdict.", False)
    under, tails = (first.share_under or 0.0, second.share_under or 0.0), (first.tbt_p99, second.tbt_p99)
    allowed = 1 - scenario.objective + 1e-9
    keeps = [share <= allowed for share in under]
    ratio = (tails[0] or 0.0) / (tails[1] or 1e-9)
    told = [
        f"{name} {'keeps' if kept else 'does not keep'} the promise"
        f" ({percent(1 - share)} of requests at fluidity {scenario.target:g} or more,"
        f" {percent(scenario.objective)} promised)"
        for name, kept, share in zip(names, keeps, under, strict=True)
    ]
    joint = "and" if keeps[0] == keeps[1] else "where"
    tail = (
        f"its tail TBT (p99) is {ratio:.1f} times better: {duration(tails[1])} against {duration(tails[0])}"
        if ratio >= 1.05
        else f"tail TBT (p99) is no better: {duration(tails[1])} against {duration(tails[0])}"
    )
    return Verdict(
        f"{told[1]}, {joint} {told[0]}; {tail}.".capitalize(), keeps == [False, True] and ratio >= 3
    )


def accounts(scenario: Scenario, progress: Mapping[str, Progress], view: View) -> list[str]:
    """What does not add up between the load and Legato; empty if everything does."""
    wrong: list[str] = []
    for arm in scenario.arms:
        sent, seen = progress[arm.name], view.arm(arm.name)
        for failure, count in sent.failures.most_common():
            wrong.append(f"{arm.name}: {count} of {sent.total} requests failed: {failure}")
        if sent.failures:
            continue
        if seen.requests != sent.total or seen.outcomes.get("completed", 0) != sent.total:
            wrong.append(
                f"{arm.name}: {sent.total} requests were answered, Legato booked {seen.outcomes or 'none'}"
            )
        elif seen.tokens != sent.tokens:
            wrong.append(
                f"{arm.name}: the engine reported {sent.tokens:,} tokens, Legato counted {seen.tokens:,}"
            )
    if view.proxy.dropped or view.proxy.unmeasured:
        wrong.append(f"Legato dropped {view.proxy.dropped} and did not measure {view.proxy.unmeasured}")
    return wrong


def own_share(view: View) -> str:
    """Is it the proxy?"""
    suspect = sum(arm.suspect for arm in view.arms.values())
    return (
        f"Legato's own share: a chunk was passed on within {_micro(view.proxy.forward_p50)} (p50),"
        f" {_micro(view.proxy.forward_p99)} (p99); missed deadlines that its own lateness explains,"
        f" left out above: {suspect}."
    )


def _micro(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else duration(seconds)


def worst(request: RequestView, width: int) -> Group:
    """The worst request, drawn."""
    behind = "its first token" if not request.arrivals else ""
    head = Text.assemble(
        ("The worst request", "bold"),
        f": {request.id} on {request.backend}, {request.prompt_tokens:,} prompt tokens,"
        f" {request.output_tokens} tokens out {behind}\n",
        ("fluidity ", "bold"),
        (number(request.fluidity), "bold red"),
        f" = {request.met} deadlines met of {request.met + request.missed}; first token after"
        f" {duration(request.ttft_s)} (promised within {duration(request.ttft_target_s)}),"
        f" then one every {duration(request.tbt_target_s)}",
    )
    key = Text.assemble(
        (f"{ARRIVED} tokens that arrived", "bold green"),
        "   ",
        (f"{DUE} tokens that were due", "dim"),
        "   ",
        (f"{SLACK} slack: arrived early", "green"),
        "   ",
        (f"{WAITING} deadlines that pass while the reader waits", "bold red"),
    )
    return Group(head, Text(), *draw(request, width), Text(), key, *_stalls(request))


def _stalls(request: RequestView) -> list[RenderableType]:
    longest = sorted(request.stalls, key=lambda stall: stall.late_s, reverse=True)[:3]
    rest = len(request.stalls) - len(longest)
    lines: list[RenderableType] = []
    for stall in sorted(longest, key=lambda stall: stall.at_s):
        ends_s = next((arrival.at_s for arrival in request.arrivals if arrival.at_s > stall.at_s), None)
        silence = "" if ends_s is None else f" silent for {duration(ends_s - stall.at_s)},"
        lines.append(
            Text.assemble(
                ("  stall ", "bold red"),
                f"at {stall.at_s:.2f} s:{silence} {duration(stall.late_s)} late,"
                f" {stall.missed} deadline{'s' if stall.missed != 1 else ''} missed",
            )
        )
    if rest:
        late_s = request.late_s - sum(stall.late_s for stall in longest)
        lines.append(
            Text(f"  and {rest} smaller ones, {duration(max(0.0, late_s))} late in all", style="dim")
        )
    return lines


def closing(
    scenario: Scenario, view: View, request: RequestView | None, problems: Iterable[str], width: int
) -> Group:
    """The whole report."""
    found = verdict(scenario, view)
    parts: list[RenderableType] = [
        Text(),
        comparison(scenario, view),
        Text(),
        Text(found.sentence, style="bold"),
    ]
    if scenario.simulated:
        agrees = "This run shows the same." if found.shown else "This run does not show that."
        parts += [Text(f"{METRON} {agrees}")]
    parts += [Text(own_share(view), style="dim"), Text(scenario.note, style="yellow"), Text()]
    parts.append(worst(request, width) if request else Text("No request missed a deadline."))
    parts += [Text(f"failed: {problem}", style="bold red") for problem in problems]
    parts += [
        Text(),
        Padding(
            Text.assemble(
                ("next: ", "bold"),
                ("legato serve --upstream URL", "bold cyan"),
                "   in front of your own server",
            ),
            0,
        ),
    ]
    return Group(*parts)
