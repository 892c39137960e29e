"""What ``legato compare`` and ``legato experiment`` show, from the admin API's answers.  Pure.

A page is a headline, rows of metrics, and sentences: what is doubtful, what may explain a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp
from typing import Any, Final, NamedTuple

from proxy.commands.morning import time

Json = Mapping[str, Any]

#: What stands before a verdict, for those who see no colours.
MARKS: Final = {"better": "+", "worse": "-", "equivalent": "=", "undecided": "?"}
_SURELY_WORSE: Final = "!"
#: Weights that were in force earlier; more are only counted.
_EPOCHS: Final = 6
#: Of what an arm was assigned: more that is overdue is said.
_LATE: Final = 0.01


class Row(NamedTuple):
    """One metric in words; ``verdict`` is a word of the API, ``said`` what is shown of it."""

    title: str
    control: str
    candidate: str
    difference: str
    verdict: str
    said: str


class Page(NamedTuple):
    """``verdict``: of the headline; ``failed``: the candidate is worse, or was sent back for it.

    ``alarms``: what must not be overlooked; ``explain``: (what, control's, candidate's); ``sections``: titled
    sentences.
    """

    title: str
    headline: str
    verdict: str
    failed: bool
    control: str
    candidate: str
    interval: str
    rows: list[Row]
    alarms: list[str]
    explain: list[tuple[str, str, str]]
    sections: list[tuple[str, list[str]]]


def experiment_page(view: Json) -> Page:
    """Of an answer of ``/api/experiments/{name}``; ``LookupError`` or ``TypeError`` where it is none."""
    spec, arms = view["spec"], (view["control"], view["candidate"])
    metrics = sorted(view["metrics"], key=lambda metric: metric["metric"] != spec["metric"])
    decides = metrics[0]["title"] if metrics else spec["metric"]
    return Page(
        title=f"{spec['name']}: {spec['control']} against {spec['candidate']}, {_life(view)}",
        headline=view["headline"],
        verdict=view["verdict"],
        failed=view["verdict"] == "worse" or view["guardrail"]["state"] != "ok" or view["state"] == "aborted",
        control=spec["control"],
        candidate=spec["candidate"],
        interval=f"difference, {100 * (1 - spec['alpha']):.4g}%",
        rows=[_row(metric) for metric in metrics],
        alarms=_alarms(view),
        explain=_explain(arms),
        sections=[
            ("Undecided", _undecided(metrics)),
            ("How it is judged", [*_judged(view, decides), *view["notes"]]),
            ("What may explain it", _circumstances(view)),
        ],
    )


def look_page(found: Json) -> Page:
    """Of an answer of ``/api/compare``; ``LookupError`` or ``TypeError`` where it is none."""
    control, candidate = found["control"], found["candidate"]
    metrics = [*found["metrics"], *(_quantile(each) for each in found["ttft_quantiles"])]
    only = [f"{kind} {found[kind]}" for kind in ("model", "slo") if found[kind] is not None]
    where = ["all hosts" if found["scope"] == "fleet" else "this host", *only]
    alarms = []
    if found["degraded"] is not None:
        alarms.append(f"this host alone: all hosts cannot be asked ({found['degraded']['reason']})")
    return Page(
        title=f"{control['backend']} against {candidate['backend']}, "
        f"{_stretch(found['covered_from'], found['covered_to'])}, {', '.join(where)}",
        headline=f"one look, no experiment: {_look_headline(found)}",
        verdict=metrics[0]["verdict"],
        failed=metrics[0]["verdict"] == "worse",
        control=control["backend"],
        candidate=candidate["backend"],
        interval=f"difference, {100 * (1 - found['alpha']):.4g}%",
        rows=[_row(metric) for metric in metrics],
        alarms=alarms,
        explain=[
            ("requests", f"{control['requests']:,}", f"{candidate['requests']:,}"),
            (
                "prompt tokens, mean",
                _number(control["prompt_tokens_mean"]),
                _number(candidate["prompt_tokens_mean"]),
            ),
            (
                "output tokens, mean",
                _number(control["output_tokens_mean"]),
                _number(candidate["output_tokens_mean"]),
            ),
        ],
        sections=[
            ("Undecided", _undecided(metrics)),
            ("What it is worth", [found["warning"]]),
            ("What may explain it", found["notes"]),
        ],
    )


def moment(iso: str) -> str:
    """``2026-11-20T03:14:07.412Z`` -> ``2026-11-20 03:14:07 UTC``."""
    return f"{iso[:10]} {iso[11:19]} UTC"


def _stretch(begin: str, end: str) -> str:
    """From one moment to another, the day said once where it is one."""
    if begin[:10] != end[:10]:
        return f"{moment(begin)} to {moment(end)}"
    return f"{begin[:10]} {begin[11:19]} to {end[11:19]} UTC"


def shares(weights: Mapping[str, int]) -> str:
    """``stable 80 (80%), canary 20 (20%)``."""
    whole = sum(weights.values()) or 1
    return ", ".join(f"{name} {weight} ({100 * weight / whole:.3g}%)" for name, weight in weights.items())


# ---------------------------------------------------------------- figures


def value(unit: str, figure: float | None, metric: str = "") -> str:
    """A figure of one arm: ``97.30%``, ``412 ms``."""
    if figure is None:
        return "-"
    if unit == "ratio":
        return f"{figure:.4f}" if metric == "fluidity" else f"{figure:.2%}"
    return time(exp(figure) if unit == "log_seconds" else figure)


def difference(metric: Json) -> str:
    """``+3.10 points (+1.20 to +5.00)``: all of it in the unit that people think in."""
    effect = metric["effect"]
    if effect is None:
        return "-"
    of, name = _scale(metric)
    shown = f"{of(effect)}{name}"
    low, high = metric["low"], metric["high"]
    if low is None and high is None:
        return shown
    return f"{shown} ({of(low)} to {of(high)})"


def _scale(metric: Json) -> tuple[Callable[[float | None], str], str]:
    """How a difference is written, and its unit."""
    unit = metric["unit"]
    largest = max(abs(metric[end]) for end in ("effect", "low", "high") if metric[end] is not None)
    if unit == "log_seconds":
        return lambda figure: "?" if figure is None else f"{100 * (exp(min(figure, 50.0)) - 1):+.1f}", "%"
    if unit == "seconds":
        factor, name = (1.0, " s") if largest >= 1 else (1e3, " ms")
        digits = 2 if largest >= 1 else 1 if largest < 0.1 else 0
    elif metric["metric"] == "fluidity":
        factor, name, digits = 1.0, "", 4
    else:
        factor, name, digits = 100.0, " points", 1 if largest >= 0.1 else 2
    return lambda figure: "?" if figure is None else f"{figure * factor:+.{digits}f}", name


def _number(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:,.0f}" if figure >= 10 else f"{figure:.2g}"


def _share(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.1%}"


def compact(count: int) -> str:
    """``400``, ``12k``, ``1.2M``."""
    if count < 10_000:
        return f"{count:,}"
    return f"{count / 1e3:.0f}k" if count < 1_000_000 else f"{count / 1e6:.1f}M"


# ---------------------------------------------------------------- rows and sentences


def _row(metric: Json) -> Row:
    unit, name, verdict = metric["unit"], metric["metric"], metric["verdict"]
    mark = _SURELY_WORSE if metric.get("beyond_margin") else MARKS[verdict]
    more = metric.get("more_requests")
    said = f"{compact(more)} more" if verdict == "undecided" and more else verdict
    return Row(
        metric["title"],
        value(unit, metric["control"], name),
        value(unit, metric["candidate"], name),
        difference(metric),
        verdict,
        f"{mark} {said}",
    )


def _quantile(each: Json) -> Json:
    """A quantile of TTFT as a metric."""
    arms = {arm: each[arm]["value"] for arm in ("control", "candidate")}
    return {**each, "metric": "ttft", "unit": "seconds", "title": f"TTFT p{100 * each['q']:.3g}", **arms}


def _undecided(metrics: Sequence[Json]) -> list[str]:
    """Why, those that share a reason in one sentence."""
    by_reason: dict[str, list[str]] = {}
    for metric in metrics:
        for reason in metric["reasons"]:
            by_reason.setdefault(reason["what"], []).append(metric["title"])
    return [f"{', '.join(titles)}: {what}" for what, titles in by_reason.items()]


def _life(view: Json) -> str:
    spec = view["spec"]
    since = f"since {moment(view['since'])} by {view['by']}"
    if view["state"] == "running":
        return f"{since}, planned for {spec['requests']:,} requests an arm"
    return (
        f"{view['state']} {moment(view['until'] or view['since'])} by {view['ended_by']}: {view['ended_for']}"
    )


def _alarms(view: Json) -> list[str]:
    said = [f"integrity: {test['what']}" for test in view["integrity"] if test["alarm"]]
    guardrail = view["guardrail"]
    if guardrail["state"] != "ok":
        said.append(f"guardrail: {guardrail['what']} (since {moment(guardrail['since'])})")
    return said


def _judged(view: Json, decides: str) -> list[str]:
    spec = view["spec"]
    deciding = next(metric for metric in view["metrics"] if metric["metric"] == spec["metric"])
    margin = "" if deciding["margin"] is None else f"; a difference within {_margin(deciding)} is none"
    said = [f"{decides} decides{margin}; the others are shown beside it, each with an interval of its own"]
    if not any(test["alarm"] for test in view["integrity"]):
        said.append(f"integrity: {len(view['integrity'])} tests, no alarm")
    if view["clustered"] and view["occupied"]:
        groups = " and ".join(str(count) for count in view["occupied"])
        cost = f", {deciding['design_effect']:.2g} requests for one that is independent"
        said.append(
            f"sessions stick: {groups} of 512 groups{cost if deciding['design_effect'] > 1.05 else ''}"
        )
    for arm in (view["control"], view["candidate"]):
        counted = (("failed_over", "answered by another backend"), ("lost", "lost with a killed worker"))
        for key, what in counted:
            if arm[key]:
                said.append(f"{arm['backend']}: {arm[key]:,} requests {what}")
        late = arm.get("overdue", 0)
        if late > _LATE * arm["assigned"]:
            said.append(
                f"{arm['backend']}: {late:,} requests are overdue and have not ended: in no metric yet"
            )
    if view["hosts"] > 1:
        said.append(f"counted by {view['hosts']} control processes")
    return said


def _margin(metric: Json) -> str:
    """Without a sign, in the row's unit."""
    only = {**metric, "effect": metric["margin"], "low": None, "high": None}
    return difference(only).lstrip("+")


def _explain(arms: Sequence[Json]) -> list[tuple[str, str, str]]:
    def both(what: str, of: Callable[[Json], str]) -> tuple[str, str, str]:
        return what, of(arms[0]), of(arms[1])

    return [
        both("assigned", lambda arm: f"{arm['assigned']:,}"),
        both("recorded, in flight", lambda arm: f"{arm['recorded']:,}, {arm['in_flight']:,}"),
        both(
            "TTFT p50, p90, p99", lambda arm: ", ".join(time(each["value_s"]) for each in arm["ttft"]) or "-"
        ),
        both("in flight per address", lambda arm: _number(arm["in_flight_per_address"])),
        both("cached prompt tokens", lambda arm: _share(arm["cached_share"])),
        both(
            "prompt tokens p50, p90",
            lambda arm: f"{_number(arm['prompt_tokens_p50'])}, {_number(arm['prompt_tokens_p90'])}",
        ),
    ]


def _circumstances(view: Json) -> list[str]:
    said = []
    if view["hour"] is not None:
        hour = view["hour"]
        said.append(
            f"the hour from {hour['hour']:02d}:00 UTC has {hour['control']:.1%} of the requests of "
            f"{view['spec']['control']}, {hour['candidate']:.1%} of those of {view['spec']['candidate']}"
        )
    for each in view["ejections"]:
        until = "now" if each["until"] is None else moment(each["until"])
        said.append(f"{each['backend']} was out, or on its way back, from {moment(each['since'])} to {until}")
    epochs = view["epochs"]
    for epoch in epochs[-_EPOCHS:]:
        when = "weights now" if epoch["in_force"] else "weights before"
        counted = f"{epoch['control']['assigned']:,} and {epoch['candidate']['assigned']:,} requests"
        said.append(f"{when}: {shares(epoch['weights'])}, {counted}")
    if len(epochs) > _EPOCHS:
        said.append(f"and {len(epochs) - _EPOCHS} other weights before")
    return said


def _look_headline(found: Json) -> str:
    first = found["metrics"][0]
    names = f"{found['candidate']['backend']} against {found['control']['backend']} on {first['title']}"
    if first["effect"] is None:
        return f"{names}: {'; '.join(reason['what'] for reason in first['reasons'])}"
    word = {"better": "better", "worse": "worse", "equivalent": "the same", "undecided": "not told apart"}
    return f"{names}: {word[first['verdict']]}, {difference(first)}"
