"""Promises in words, for people to read before they put them in force (``legato check``)."""

from __future__ import annotations

from proxy.config import Config, LearnedTtft, Match, QuadraticTtft, Route, Slo, as_written
from proxy.settings.slo import PromptRange, SloMatch


def promise(slo: Slo) -> str:
    """One SLO: what is promised, to what share of which requests."""
    told = as_written(slo)
    parts = [f"ttft {first_token(slo)}", f"tbt {told['tbt']}", f"fluidity {told['fluidity']}"]
    parts = parts if slo.fluidity else []
    parts += [f"e2e {told['e2e']}"] if slo.e2e else []
    paged = "" if slo.pages else "; nobody is paged"
    return f"{slo.name}: {', '.join(parts)} for {told['objective']} of {conditions(slo.match)}{paged}"


def conditions(match: Match) -> str:
    """Which requests a rule is for."""
    given = [f"{kind} {glob}" for kind, glob in (("path", match.path), ("model", match.model)) if glob]
    given += [f"header {name}: {glob}" for name, glob in match.header.items()]
    if isinstance(match, SloMatch) and (length := _length(match.prompt_tokens)):
        given.append(length)
    return ", ".join(given) or "everything"


def destination(route: Route) -> str:
    """Where a route's requests go: each backend with its share, what keeps a session together, what else."""
    mirror = route.mirror
    copies = [] if mirror.backend is None else [f"copies of {_share(mirror.share, 1)} to {mirror.backend}"]
    return "; ".join([*_served(route), *copies])


def experiment(config: Config) -> list[str]:
    """What is compared, in a sentence; empty where nothing is."""
    told, written = config.experiment, as_written(config.experiment)
    if told.name is None:
        return []
    margin = "" if told.margin is None else f", margin {written['margin']}"
    abort = ", sent back where it is surely worse" if told.abort else ""
    return [
        f"{told.name}: {told.candidate} against {told.control} by {told.metric}{margin}, planned for "
        f"{told.requests:,} requests of each{abort}"
    ]


def ejection(config: Config) -> list[str]:
    """When a backend is taken out, in a sentence; empty where none is."""
    told, written = config.ejection, as_written(config.ejection)
    if not told.enabled:
        return []
    few = f"{written['failures']} of at least {told.requests} requests in {written['window']} failed"
    return [f"a backend of a split where {few}: out for {written['time']} and longer"]


def _served(route: Route) -> list[str]:
    total = sum(weight for _, weight in route.arms)
    if len(route.arms) == 1 or not total:
        return [route.target]
    shares = [f"{name} {_share(weight, total)}" for name, weight in (route.split or {}).items()]
    sticky = [f"sticky by {kind} {name}" for kind, name in route.sticky.ways] or ["drawn for each request"]
    force = [f"forced by header {route.force.header}"] if route.force.header else []
    return [", ".join(shares), *sticky, *force, *(["failover"] if route.failover else [])]


def _share(weight: float, total: float) -> str:
    percent = 100 * weight / total
    return f"{percent:.3g}%" if 0 < percent < 99.5 else f"{percent:.6g}%"


def _length(prompts: PromptRange) -> str:
    if prompts.max is None:
        return f"prompts from {prompts.min} tokens" if prompts.min else ""
    return f"prompts of {prompts.min or 0} to {prompts.max} tokens"


def first_token(slo: Slo) -> str:
    """The first token's deadline."""
    ttft, told = slo.ttft, as_written(slo)["ttft"]
    if isinstance(ttft, QuadraticTtft):
        grown = [
            f"{told[name]} {what}"
            for name, what in (
                ("per_token", "a prompt token"),
                ("per_token_squared", "a prompt token squared"),
                ("slack", "slack"),
            )
            if getattr(ttft, name)
        ]
        return " + ".join([told["base"], *grown])
    if not isinstance(ttft, LearnedTtft):
        return _points(told)
    fallback = _points(told["fallback"])
    if ttft.frozen is None:
        return f"{fallback} (learned live beside it)"
    count = len(ttft.frozen.curves)
    held = f"{count} curve{'s' if count != 1 else ''}, frozen at {ttft.frozen.frozen_at}"
    return f"as learned in {ttft.learned} ({held}) + {told['slack']} slack, where nothing was: {fallback}"


def _points(told: object) -> str:
    if not isinstance(told, dict):
        return str(told)
    return ", ".join(f"{time} at {tokens} prompt tokens" for tokens, time in told.items())
