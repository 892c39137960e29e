"""The words of ``legato demo --sweep``: a table, a picture, sentences made from the numbers, JSON.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import mean
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.demo.report import METRON, duration, percent
from deploy.demo.sweep import FIRST, SCHEDULERS, SECOND, Curve, Point, Promise, SeedResult, Sweep

#: What is simulated; it stands above the table, in the picture's file and in the JSON.
NOTE = (
    "simulated in virtual time: the GPU is a cost model (Yi-34B on two A100), the text is not there, no HTTP"
    " and no proxy take part; the schedulers are the demo's own code, the scores are Legato's own"
)
_BAR, _PART = "█", " ▏▎▍▌▋▊▉"
_WIDTH = 20  # of a bar
_KEPT, _BROKEN = "green", "red"

Measure = Callable[[Point], float]


def _tokens(point: Point) -> float:
    return point.tokens_per_s


def _tail(point: Point) -> float:
    return float(point.tbt_p99_ns)


def _ttft(point: Point) -> float:
    return float(point.ttft_p99_ns)


def closing(sweep: Sweep) -> Group:
    """The whole report."""
    return Group(
        table(sweep),
        Text(_promised(sweep.promise)),
        Text(NOTE, style="yellow"),
        Text(),
        picture(sweep),
        Text(),
        Text(verdict(sweep), style="bold"),
        Text(f"{METRON} {_comparison(sweep)}"),
    )


# ---------------------------------------------------------------- the table


def table(sweep: Sweep) -> Table:
    """A block per seed and one over all: both schedulers at their highest load, and how they compare."""
    out = Table(title=_title(sweep.promise), title_justify="left", title_style="bold")
    out.add_column("seed")
    out.add_column("scheduler")
    for name in ("requests/s", "tokens/s", "TBT p99", "TTFT p99"):
        out.add_column(name, justify="right")
    for result in sweep.seeds:
        _block(out, str(result.seed), [result])
    if len(sweep.seeds) > 1:
        _block(out, "mean", sweep.seeds)
    return out


def _title(by: Promise) -> str:
    return f"The highest load at which {percent(by.objective)} of requests keep fluidity {by.target:g}"


def _promised(by: Promise) -> str:
    firsts = [duration(ttft_ns / 1e9) for _, ttft_ns in by.ttft.points]
    prompts = [f" at {prompt:,} prompt tokens" if prompt else "" for prompt, _ in by.ttft.points]
    first = ", ".join(time + at for time, at in zip(firsts, prompts, strict=True))
    return f"promised: a token every {by.tbt_ns / 1e6:g} ms, the first within {first}; tokens/s are output"


def _block(out: Table, label: str, results: Sequence[SeedResult]) -> None:
    for name in SCHEDULERS:
        curves = [result.curves[name] for result in results]
        out.add_row(label if name == FIRST else "", name, *_cells(curves))
    times = _more_tokens(results)
    more = "–" if times is None else f"{times:.2f} ×"
    compared = "in comparison", "", more, _better(_better_tail(results), " ×"), ""
    out.add_row("", *(Text(text, style="bold") for text in compared), end_section=True)


def _cells(curves: Sequence[Curve]) -> list[str]:
    bests = _bests(curves)
    if bests is None:
        return ["none", "–", "–", "–"]
    more = "≥ " if any(curve.bracket.broke is None for curve in curves) else ""
    return [
        f"{more}{mean(point.load for point in bests):.2f}",
        f"{more}{mean(map(_tokens, bests)):.0f}",
        duration(mean(map(_tail, bests)) / 1e9),
        duration(mean(map(_ttft, bests)) / 1e9),
    ]


def _bests(curves: Iterable[Curve]) -> list[Point] | None:
    """The highest load of each; ``None`` if one has none: a mean over the others would flatter."""
    bests = [curve.best for curve in curves]
    found = [point for point in bests if point is not None]
    return found if len(found) == len(bests) else None


def _mean(results: Sequence[SeedResult], scheduler: str, measure: Measure) -> float | None:
    bests = _bests(result.curves[scheduler] for result in results)
    return None if bests is None else mean(map(measure, bests))


# ---------------------------------------------------------------- the picture


def picture(sweep: Sweep) -> RenderableType:
    """For each load that all tried the share of requests that reach the target, all seeds together."""
    title = f"Requests that keep fluidity {sweep.promise.target:g}, by the load (tokens/s that are asked for)"
    out = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    out.add_column("requests/s", justify="right")
    out.add_column("tokens/s", justify="right")
    for name in SCHEDULERS:
        out.add_column(name, min_width=_WIDTH + 7)
    for load in sweep.course.loads:
        points = {name: [_at(result.curves[name], load) for result in sweep.seeds] for name in SCHEDULERS}
        asked = mean(point.asked_tokens_per_s for point in points[FIRST])
        bars = (_bar(points[name], sweep.promise) for name in SCHEDULERS)
        out.add_row(f"{load:.2f}", f"{asked:.0f}", *bars)
    key = Text.assemble((_BAR, _KEPT), " kept with every seed   ", (_BAR, _BROKEN), " not with every seed")
    return Group(out, key)


def _at(curve: Curve, load: float) -> Point:
    return next(point for point in curve.points if point.load == load)


def _bar(points: Sequence[Point], by: Promise) -> Text:
    share = mean(point.share for point in points)
    style = _KEPT if all(point.kept(by.objective) for point in points) else _BROKEN
    eighths = int(share * _WIDTH * 8)
    bar = _BAR * (eighths // 8) + _PART[eighths % 8].strip()
    return Text.assemble((bar.ljust(_WIDTH), style), f" {percent(share)}")


# ---------------------------------------------------------------- the sentences


def _more_tokens(results: Sequence[SeedResult]) -> float | None:
    """How many times the first scheduler's tokens per second the second sustains."""
    first, second = (_mean(results, name, _tokens) for name in SCHEDULERS)
    return second / first if first and second else None


def _better_tail(results: Sequence[SeedResult]) -> float | None:
    """How many times shorter the second one's tail TBT is."""
    first, second = (_mean(results, name, _tail) for name in SCHEDULERS)
    return first / second if first and second else None


def _better(times: float | None, unit: str = " times") -> str:
    return "–" if times is None else f"{times:.1f}{unit} better" if times >= 1.05 else "no better"


def verdict(sweep: Sweep) -> str:
    """What the numbers say."""
    sustained = {name: _mean(sweep.seeds, name, _tokens) for name in SCHEDULERS}
    silent = [name for name, tokens in sustained.items() if tokens is None]
    if silent:
        return f"No load was found that {' and '.join(silent)} kept with every seed: nothing can be compared."
    if _unbroken(sweep):
        return (
            f"{' and '.join(_unbroken(sweep)).capitalize()} kept the promise at every load that was tried:"
            " what came out there is what the engine gives at most, and nothing can be compared."
        )
    ratio = _more_tokens(sweep.seeds) or 0.0
    each = [_more_tokens([result]) or 0.0 for result in sweep.seeds]
    spread = f" ({min(each):.2f} to {max(each):.2f} by seed)" if len(each) > 1 else ""
    times = (_mean(sweep.seeds, name, _tail) or 0.0 for name in (SECOND, FIRST))
    told = (
        f"{SECOND.capitalize()} sustains {sustained[SECOND]:.0f} output tokens/s, {FIRST}"
        f" {sustained[FIRST]:.0f}: {ratio:.2f} times as many{spread}."
        f" Tail TBT (p99) there: {' against '.join(duration(ns / 1e9) for ns in times)},"
        f" {_better(_better_tail(sweep.seeds))}."
    )
    beyond = [result.beyond for result in sweep.seeds if result.beyond]
    return (
        f"{told} At the load that {SECOND} just keeps, {FIRST} keeps"
        f" {percent(mean(point.share for point in beyond))} of its requests fluid, with a tail TBT of"
        f" {duration(mean(map(_tail, beyond)) / 1e9)}."
    )


def _unbroken(sweep: Sweep) -> list[str]:
    """Schedulers with a seed under which no load broke their promise."""
    return [
        name
        for name in SCHEDULERS
        if any(result.curves[name].bracket.broke is None for result in sweep.seeds)
    ]


def shown(sweep: Sweep) -> bool:
    """With every seed the second sustains more tokens per second, and its tail is at least 3 times better."""
    if _unbroken(sweep):
        return False
    each = [(_more_tokens([result]) or 0.0, _better_tail([result]) or 0.0) for result in sweep.seeds]
    return all(tokens > 1 and tail >= 3 for tokens, tail in each)


def _comparison(sweep: Sweep) -> str:
    agrees = (
        "This sweep shows the same kind of difference" if shown(sweep) else "This sweep does not show that"
    )
    return f"{agrees}; compare the kind, not the numbers: another model, other requests, simulated engines."


# ---------------------------------------------------------------- JSON


def to_json(sweep: Sweep) -> dict[str, Any]:
    """All of it, for scripts.  Times in seconds, loads in requests per second; ``null``: there is none.

    ``best``: at the highest load that is kept; ``broke_at``: the lowest that is not; ``beyond``: the first
    scheduler at the load that the second just keeps; ``tail_tbt_ratio``: the first one's to the second's.
    """
    by, course = sweep.promise, sweep.course
    return {
        "schema": 1,
        "simulated": NOTE,
        "promise": {
            "ttft_s": {str(prompt): ttft_ns / 1e9 for prompt, ttft_ns in by.ttft.points},
            "tbt_s": by.tbt_ns / 1e9,
            "fluidity": by.target,
            "objective": by.objective,
        },
        "requests": {"judged": course.judged, "before": course.before, "after": course.after},
        "resolution": course.resolution,
        "seeds": [_seed_json(result) for result in sweep.seeds],
        "overall": _overall(sweep.seeds),
        "shown": shown(sweep),
    }


def _seed_json(result: SeedResult) -> dict[str, Any]:
    return {
        "seed": result.seed,
        "schedulers": {
            name: {
                "best": _point_json(curve.best),
                "broke_at": curve.bracket.broke,
                "points": [_point_json(point) for point in curve.points],
            }
            for name, curve in result.curves.items()
        },
        "beyond": _point_json(result.beyond),
        **_ratios([result]),
    }


def _overall(results: Sequence[SeedResult]) -> dict[str, Any]:
    means = {}
    for name in SCHEDULERS:
        tail_ns = _mean(results, name, _tail)
        means[name] = {
            "tokens_per_s": _mean(results, name, _tokens),
            "tbt_p99_s": None if tail_ns is None else tail_ns / 1e9,
        }
    return {"schedulers": means, **_ratios(results)}


def _ratios(results: Sequence[SeedResult]) -> dict[str, float | None]:
    return {"tokens_ratio": _more_tokens(results), "tail_tbt_ratio": _better_tail(results)}


def _point_json(point: Point | None) -> dict[str, Any] | None:
    if point is None:
        return None
    return {
        "load": point.load,
        "requests": point.requests,
        "fluid": point.fluid,
        "asked_tokens_per_s": point.asked_tokens_per_s,
        "tokens_per_s": point.tokens_per_s,
        "tbt_p99_s": point.tbt_p99_ns / 1e9,
        "ttft_p99_s": point.ttft_p99_ns / 1e9,
    }
