"""An experiment's figures and reasons as sentences for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp
from typing import Final, Literal

from proxy.control.experiments.spec import ExperimentSpec
from scoring.compare import FIRST_REQUESTS, FIRST_SHARE, MOST_DOUBTFUL, OVERDUE, Judged, Verdict
from scoring.compare_integrity import Test
from scoring.compare_sums import BUCKETS, LEAST_BUCKETS

Unit = Literal["ratio", "seconds", "log_seconds"]

TITLES: Final = {
    "good": "good requests",
    "fluidity": "mean fluidity",
    "deadline_misses": "missed deadlines",
    "ttft": "mean TTFT",
    "log_ttft": "typical TTFT",
    "normalized_latency": "mean time per output token",
    "errors": "errors",
}
UNITS: Final[dict[str, Unit]] = {
    "ttft": "seconds",
    "log_ttft": "log_seconds",
    "normalized_latency": "seconds",
}
_DOUBTS: Final = {
    "suspect": "requests with stalls that were the proxy's own",
    "unmeasured": "requests that could not be measured",
    "overdue": "requests that are overdue and have not ended",
}


def unit_of(metric: str) -> Unit:
    """What a metric's figures are in."""
    return UNITS.get(metric, "ratio")


def value(metric: str, figure: float) -> str:
    """A figure of one arm: ``97.3%``, ``412 ms``."""
    unit = unit_of(metric)
    if unit == "ratio":
        return f"{figure:.3f}" if metric == "fluidity" else f"{100 * figure:.2f}%"
    return _time(exp(figure) if unit == "log_seconds" else figure)


def change(metric: str, figure: float) -> str:
    """A difference: ``+1.20 points``, ``-31 ms``, ``+4.1%``."""
    unit = unit_of(metric)
    if unit == "ratio":
        return f"{figure:+.4f}" if metric == "fluidity" else f"{100 * figure:+.2f} points"
    if unit == "log_seconds":
        return f"{100 * (exp(min(figure, 50.0)) - 1):+.1f}%"
    return f"{'-' if figure < 0 else '+'}{_time(abs(figure))}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if abs(seconds) >= 1 else f"{1000 * seconds:.3g} ms"


def reason(code: str, spec: ExperimentSpec) -> str:
    """Why a metric is undecided."""
    kind, _, rest = code.partition(":")
    least = round(max(FIRST_REQUESTS, FIRST_SHARE * spec.requests))
    said = {
        "interval": "the interval holds both no difference and one that would matter",
        "too_few": f"an arm has not shown {least} requests yet, or under {FIRST_REQUESTS} independent ones",
        "no_data": "an arm has no request that shows this",
        "no_variance": "nothing varies yet",
        "clusters": f"an arm's sessions fill fewer than {LEAST_BUCKETS} of {BUCKETS} groups",
        "integrity": f"the data cannot be trusted: {integrity(rest, spec)}",
    }
    if kind in said:
        return said[kind]
    what = _DOUBTS.get(kind, kind)
    if rest == "share":
        return f"{what} are more than {MOST_DOUBTFUL:.0%} of an arm's"
    if rest == "differs":
        return f"the share of {what} differs between the arms"
    return code


def integrity(name: str, spec: ExperimentSpec) -> str:
    """What an alarm of an integrity test means."""
    arms = {"recorded:control": spec.control, "recorded:candidate": spec.candidate}
    if name in arms:
        return f"requests that {arms[name]} was assigned were never recorded"
    if name == "rejected":
        return "one arm rejects (4xx) what the other takes, and what is rejected is in no other metric"
    return "requests are not assigned as the weights say"


def told(test: Test, spec: ExperimentSpec) -> str:
    """An integrity test with its figures."""
    return f"{integrity(test.name, spec)}: {test.detail}" if test.alarm else test.detail


def headline(judged: Judged, spec: ExperimentSpec, reasons: Sequence[str]) -> str:
    """The verdict in a sentence."""
    title = TITLES[judged.metric]
    if judged.effect is None or judged.low is None or judged.high is None:
        return f"undecided on {title}: {'; '.join(reasons) or 'no requests yet'}"
    interval = f"{change(judged.metric, judged.effect)} ({_bounds(judged)})"
    if judged.verdict is Verdict.EQUIVALENT:
        return f"{spec.candidate} and {spec.control} are equivalent on {title}: {interval}"
    if judged.verdict is not Verdict.UNDECIDED:
        arms = " against ".join(
            value(judged.metric, figure)
            for figure in (judged.candidate, judged.control)
            if figure is not None
        )
        return (
            f"{spec.candidate} is {judged.verdict.value} than {spec.control} on {title}: {interval}, {arms}"
        )
    more = f"; about {judged.more_requests:,} more requests of both" if judged.more_requests else ""
    return f"undecided on {title}: {interval}, {'; '.join(reasons)}{more}"


def besides(deciding: Judged, metrics: Iterable[Judged]) -> str:
    """What the headline must not leave out: what the candidate is worse on though it may be switched to."""
    if deciding.verdict not in (Verdict.BETTER, Verdict.EQUIVALENT):
        return ""
    worse = [TITLES[each.metric] for each in metrics if each.verdict is Verdict.WORSE]
    return f"; but worse on {', '.join(worse)}" if worse else ""


def _bounds(judged: Judged) -> str:
    assert judged.low is not None
    assert judged.high is not None
    return (
        f"{change(judged.metric, judged.low).removesuffix(' points')} to {change(judged.metric, judged.high)}"
    )


def surely_worse(judged: Judged, spec: ExperimentSpec) -> str:
    """What the guardrail says."""
    title = TITLES[judged.metric]
    if OVERDUE in judged.reasons and judged.metric == "good":
        title += " (those that hang are taken for bad)"
    if judged.effect is None or judged.margin is None:
        return f"{spec.candidate} is surely worse than {spec.control} on {title}"
    return (
        f"{spec.candidate} is surely worse than {spec.control} on {title}, by more than "
        f"{change(judged.metric, judged.margin).lstrip('+')}: {change(judged.metric, judged.effect)} "
        f"({_bounds(judged)})"
    )
