"""The demo's words: the live table, the closing report, the verdict.  Pure: values in, renderables out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.demo.drawing import AHEAD, BEHIND, draw
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
    """``0%``, ``3.4%``, ``–``; what is not nothing never reads as 0%, what is not all never as 100%."""
    if ratio is None:
        return "–"
    if 0 < ratio < 0.0005:
        return "<0.1%"
    if 0.9995 <= ratio < 1:
        return ">99.9%"
    return f"{ratio * 100:.1f}".removesuffix(".0") + "%"


def number(value: float | None, digits: int = 3) -> str:
    """``0.973``, ``–``."""
    return "–" if value is None else f"{value:.{digits}f}"


def sent_of(progress: Progress) -> str:
    """``49 of 117``, or ``49`` where nobody knows how many there will be."""
    return f"{progress.sent} of {progress.total}" if progress.total else str(progress.sent)


def live(
    scenario: Scenario, progress: Mapping[str, Progress], view: View | None, elapsed_s: float
) -> RenderableType:
    """What is redrawn while the load runs."""
    seen = view or View({}, _NO_SHARE)
    table = _table(scenario, f"{elapsed_s:.0f} s")
    states = [progress[arm.name] for arm in scenario.arms]
    arms = [seen.arm(arm.name) for arm in scenario.arms]
    table.add_row("requests sent", *(sent_of(state) for state in states))
    table.add_row("in flight now", *(str(arm.in_flight) for arm in arms))
    table.add_row(
        "  of these overdue",
        *(Text(str(arm.overdue), style="bold red" if arm.overdue else "") for arm in arms),
    )
    table.add_row("requests ended", *(str(arm.requests) for arm in arms), end_section=True)
    for name, cells in _measures(scenario, arms):
        table.add_row(name, *cells)
    return Group(table, Text(scenario.note, style="yellow"))


_NO_SHARE = ProxyView(None, None, None, {}, {})


def _table(scenario: Scenario, title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("", min_width=32)
    for arm in scenario.arms:
        table.add_column(arm.name, justify="right", min_width=18)
    return table


def _judged(arm: ArmView, scenario: Scenario) -> Text:
    bad = (arm.share_under or 0) > 1 - scenario.objective + 1e-9
    style = "" if arm.share_under is None else "bold red" if bad else "bold green"
    return Text(percent(arm.share_under), style=style)


def _measures(scenario: Scenario, arms: Sequence[ArmView]) -> list[tuple[str, list[str | Text]]]:
    return [
        (f"requests with fluidity under {scenario.target:g}", [_judged(arm, scenario) for arm in arms]),
        ("fluidity p50 / p1", [f"{number(a.fluidity_p50)} / {number(a.fluidity_p1)}" for a in arms]),
        ("token deadlines missed", [f"{percent(a.miss_rate)} ({a.missed:,})" for a in arms]),
        ("TTFT p50 / p99", [f"{duration(a.ttft_p50)} / {duration(a.ttft_p99)}" for a in arms]),
        ("TBT p50 / p99", [f"{duration(a.tbt_p50)} / {duration(a.tbt_p99)}" for a in arms]),
        ("longest gap between tokens", [duration(arm.longest_gap) for arm in arms]),
    ]


def plain_line(scenario: Scenario, progress: Mapping[str, Progress], view: View, elapsed_s: float) -> str:
    """The same in one line, for a log."""
    parts = []
    for arm in scenario.arms:
        seen = view.arm(arm.name)
        sent = progress[arm.name]
        parts.append(
            f"{arm.name}: sent {sent_of(sent)}, in flight {seen.in_flight}, overdue {seen.overdue},"
            f" under {scenario.target:g}: {percent(seen.share_under)}, TBT p99 {duration(seen.tbt_p99)}"
        )
    return f"{elapsed_s:4.0f} s  " + " | ".join(parts)


def comparison(scenario: Scenario, view: View) -> Table:
    """The closing table: one row per measure, one column per arm."""
    arms = [view.arm(arm.name) for arm in scenario.arms]
    table = _table(scenario, "What Legato measured")
    table.add_row("requests", *(str(arm.requests) for arm in arms))
    table.add_row("output tokens", *(f"{arm.tokens:,}" for arm in arms), end_section=True)
    for name, cells in _measures(scenario, arms):
        table.add_row(name, *cells)
    table.add_row("fluid token generation rate", *(_rate(arm) for arm in arms))
    return table


def _rate(arm: ArmView) -> str:
    if arm.fluid_token_rate is not None:
        return f"{arm.fluid_token_rate:.1f} tokens/s"
    return f"none ({arm.fluid_token_rate_reason or 'no requests'})"


def verdict(scenario: Scenario, view: View) -> Verdict:
    """Compare the arms; every word about them follows from the numbers."""
    first, second = (view.arm(arm.name) for arm in scenario.arms)
    if None in (first.share_under, second.share_under, first.tbt_p99, second.tbt_p99):
        return Verdict("Too little was measured for a verdict.", False)
    keeps, told = [], []
    for name, arm in ((scenario.arms[1].name, second), (scenario.arms[0].name, first)):
        share = arm.share_under or 0.0
        keeps.append(share <= 1 - scenario.objective + 1e-9)
        told.append(
            f"{name} {'keeps' if keeps[-1] else 'breaks'} its promise: {percent(1 - share)} of its requests"
            f" reach fluidity {scenario.target:g}, {scenario.objective:.0%} are promised."
        )
    tails = first.tbt_p99 or 0.0, second.tbt_p99 or 1e-9
    ratio = round(tails[0] / tails[1], 1)
    better = f"{ratio:.1f} times better" if ratio > 1 else "no better"
    tail = (
        f"The tail TBT (p99) of {scenario.arms[1].name} is {better}: {duration(tails[1])} against"
        f" {duration(tails[0])}."
    )
    gap = f"Its longest gap is {duration(second.longest_gap)} against {duration(first.longest_gap)}."
    sentences = " ".join([*(each[0].upper() + each[1:] for each in told), tail, gap])
    return Verdict(sentences, keeps == [True, False] and ratio >= 3)


def accounts(scenario: Scenario, progress: Mapping[str, Progress], view: View) -> list[str]:
    """What does not add up between the load and Legato; empty if everything does."""
    wrong: list[str] = []
    for arm in scenario.arms:
        sent, seen = progress[arm.name], view.arm(arm.name)
        for failure, count in sent.failures.most_common():
            wrong.append(f"{arm.name}: {count} of {sent.sent} requests failed: {failure}")
        if sent.failures:
            continue
        if seen.requests != sent.done or seen.outcomes.get("completed", 0) != sent.done:
            wrong.append(
                f"{arm.name}: {sent.done} requests were answered, Legato booked {seen.outcomes or 'none'}"
            )
        elif seen.tokens != sent.tokens and not view.proxy.unmeasured:
            wrong.append(
                f"{arm.name}: the engine reported {sent.tokens:,} tokens, Legato counted {seen.tokens:,}"
            )
    for what, count in view.proxy.dropped.items():
        wrong.append(f"Legato dropped {count} ({what})")
    for reason, count in view.proxy.unmeasured.items():
        if reason != "shed":
            wrong.append(f"Legato did not measure {count} streams ({reason})")
    return wrong


def notes(view: View) -> list[str]:
    """What limits the numbers without being a failure."""
    shed = view.proxy.unmeasured.get("shed", 0)
    if not shed:
        return []
    return [
        f"{shed} streams were passed on but not scored: this machine is so busy that Legato shed measuring"
        " rather than delay them. The numbers above lack them: run it again on a quieter machine."
    ]


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
    head = Text.assemble(
        ("The worst request", "bold"),
        f", on {request.backend}: {request.prompt_tokens:,} prompt tokens, {request.output_tokens} tokens out"
        f" ({request.id})\n",
        ("fluidity ", "bold"),
        (number(request.fluidity), "bold red"),
        f" = {request.met} deadlines met of {request.met + request.missed}; first token after"
        f" {duration(request.ttft_s)} (promised within {duration(request.ttft_target_s)}), then one every"
        f" {duration(request.tbt_target_s)} promised",
    )
    key = Text.assemble(
        " " * 4,
        ("█", AHEAD),
        " time left to the next deadline   ",
        ("█", BEHIND),
        " late: the reader waits   ",
        ("▼", BEHIND),
        " a stall begins",
    )
    return Group(head, Text(), *draw(request, width), key, Text(), *_stalls(request))


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
        Text(scenario.note, style="yellow"),
        Text(),
        worst(request, width) if request else Text("No request missed a deadline."),
        Text(),
        Text(found.sentence, style="bold"),
    ]
    if scenario.simulated:
        agrees = "This run shows the same." if found.shown else "This run does not show that."
        parts.append(Text(f"{METRON} {agrees}"))
    parts.append(Text(own_share(view), style="dim"))
    parts += [Text(f"note: {note}", style="yellow") for note in notes(view)]
    parts += [Text(f"failed: {problem}", style="bold red") for problem in problems]
    hint = Text.assemble(
        ("next: ", "bold"), ("legato serve --upstream URL", "bold cyan"), "  in front of your own server"
    )
    return Group(*parts, Text(), hint)
