"""Experiments and splits in a few lines each, from the admin API's answers.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from proxy.commands.compared import moment, shares

Json = Mapping[str, Any]


def experiment_lines(view: Json) -> Iterator[str]:
    """What an experiment is and how it stands; ``LookupError`` or ``TypeError`` where it is none."""
    spec = view["spec"]
    yield f"{spec['name']}: {view['state']}, {spec['control']} against {spec['candidate']}"
    yield f"  {view['headline']}"
    margin = "" if spec["margin"] is None else f", margin {100 * spec['margin']:.4g}%"
    abort = "; sent back if surely worse" if spec["abort"] else ""
    yield f"  {spec['metric']} decides{margin}, planned for {spec['requests']:,} requests an arm{abort}"
    yield f"  since {moment(view['since'])} by {view['by']}"
    if view["until"] is not None:
        yield f"  until {moment(view['until'])} by {view['ended_by']}: {view['ended_for']}"
    if view["guardrail"]["state"] != "ok":
        yield f"  ! guardrail: {view['guardrail']['what']}"
    yield from (f"  ! integrity: {test['what']}" for test in view["integrity"] if test["alarm"])
    arms = (view["control"], view["candidate"])
    counted = (f"{arm['backend']} {arm['assigned']:,} ({arm['recorded']:,} ended)" for arm in arms)
    yield f"  assigned: {', '.join(counted)}"
    yield from (f"  weights: {shares(epoch['weights'])}" for epoch in view["epochs"] if epoch["in_force"])


def split_lines(view: Json) -> Iterator[str]:
    """The weights of a split, and who says so."""
    told = "" if view["experiment"] is None else f" (experiment {view['experiment']})"
    yield f"split {view['name']}{told}: {shares(view['weights'])}"
    override, elsewhere = view["override"], view["elsewhere"]
    if override is not None:
        yield f"  by {override['author']} since {moment(override['at'])}: {override['reason']}"
        yield f"  the file says {shares(view['file_weights'])}"
    for name, factor in view["ejected"].items():
        yield f"  {name} is out" if not factor else f"  {name} is back to {factor:.0%} of its weight"
    if elsewhere is not None:
        yield f"  other hosts have {shares(elsewhere['weights'])} by {elsewhere['author']}: another file"
