"""Experiments as readers see them, written down: what a picture holds without anybody counting."""

from __future__ import annotations

from typing import Any

from proxy.control.experiments.spec import ExperimentError, ExperimentSpec
from proxy.control.experiments.views import (
    ArmView,
    EpochArm,
    EpochView,
    ExperimentView,
    GuardrailView,
    MetricView,
    QuantileView,
    Reason,
    TestView,
)

SPEC = ExperimentSpec("new-vllm", "stable", "canary", margin=0.005)


def metric(name: str, verdict: str = "undecided", **more: Any) -> MetricView:
    """One row; ``ratio`` unless told otherwise."""
    given: dict[str, Any] = {
        "metric": name,
        "title": name.replace("_", " "),
        "unit": "ratio",
        "better": "more",
        "control": 0.962,
        "candidate": 0.993,
        "effect": 0.031,
        "low": 0.012,
        "high": 0.05,
        "margin": 0.005,
        "verdict": verdict,
        "beyond_margin": False,
        "reasons": [],
        "more_requests": None,
        "design_effect": 1.0,
        "independent_requests": 1000.0,
    }
    return MetricView(**given | more)


METRICS = (
    metric("good", "better", title="good requests"),
    metric(
        "ttft", "worse", title="TTFT", unit="seconds", better="less", control=0.42, candidate=0.51,
        effect=0.09, low=0.06, high=0.12, margin=0.021,
    ),
    metric(
        "log_ttft", "equivalent", title="TTFT, geometric mean", unit="log_seconds", better="less",
        control=-0.8675, candidate=-0.8475, effect=0.02, low=-0.01, high=0.04, margin=0.05,
    ),
    metric(
        "errors", title="failed requests", better="less", control=0.001, candidate=0.0, effect=-0.001,
        low=-0.02, high=0.018, reasons=[Reason("interval", "the interval tells the two not apart yet")],
        more_requests=400,
    ),
    metric(
        "fluidity", control=None, candidate=None, effect=None, low=None, high=None, margin=None,
        reasons=[Reason("no_data", "no request has it yet")],
    ),
)  # fmt: skip


def arm(backend: str, assigned: int, **more: Any) -> ArmView:
    """One arm."""
    given: dict[str, Any] = {
        "backend": backend,
        "assigned": assigned,
        "recorded": assigned - 3,
        "failed_over": 0,
        "in_flight": 3,
        "lost": 0,
        "ttft": [QuantileView(0.5, 0.31, 0.29, 0.33), QuantileView(0.99, 1.9, 1.2, None)],
        "normalized_latency": [],
        "in_flight_per_address": 2.5,
        "cached_share": 0.25,
        "prompt_tokens_p50": 812.0,
        "prompt_tokens_p90": 3100.0,
    }
    return ArmView(**given | more)


def picture(name: str = "new-vllm", **more: Any) -> ExperimentView:
    """An experiment that runs, its candidate better."""
    given: dict[str, Any] = {
        "spec": ExperimentSpec(name, "stable", "canary", margin=0.005),
        "split": "stable+canary",
        "state": "running",
        "since": "2026-11-20T03:14:07.412Z",
        "until": None,
        "by": "file",
        "ended_by": None,
        "ended_for": None,
        "verdict": "better",
        "headline": "canary is better on good requests: +3.1 points (1.2 to 5.0), margin 0.5",
        "metrics": list(METRICS),
        "control": arm("stable", 4212),
        "candidate": arm("canary", 1033, cached_share=0.61),
        "epochs": [
            EpochView(
                weights={"stable": 80, "canary": 20}, share=0.2, control=EpochArm(4212, 4209),
                candidate=EpochArm(1033, 1030), in_force=True,
            )
        ],
        "integrity": [
            TestView("assignment", False, 0.61, "requests were dealt by the weights"),
            TestView("recorded:control", False, 1.0, "what was assigned to stable was recorded"),
        ],
        "guardrail": GuardrailView("ok"),
        "clustered": True,
        "occupied": [412, 207],
        "hour": None,
        "ejections": [],
        "hosts": 1,
        "notes": [],
    }  # fmt: skip
    return ExperimentView(**given | more)


class Written:
    """Experiments that nobody counts in: started and stopped by the rules of names."""

    def __init__(self, *views: ExperimentView) -> None:
        self.held = list(views)
        self.said: list[tuple[str, ...]] = []
        self.specs: list[ExperimentSpec] = []

    def start(self, spec: ExperimentSpec, author: str) -> None:
        """Refuses a name that was used, and a backend against itself."""
        if any(view.spec.name == spec.name for view in self.held):
            raise ExperimentError(f"{spec.name} has been", "a name is used once: take another")
        if spec.control == spec.candidate:
            raise ExperimentError("both are one", "name two")
        self.said.append(("start", spec.name, author))
        self.specs.append(spec)
        self.held.append(picture(spec.name, by=author, since="2026-11-21T03:14:07.412Z"))

    def stop(self, name: str, author: str, reason: str) -> None:
        """Refuses what does not run."""
        (at,) = (place for place, view in enumerate(self.held) if view.spec.name == name)
        if self.held[at].state != "running":
            raise ExperimentError(f"{name} is stopped", "there is nothing to stop")
        self.said.append(("stop", name, author, reason))
        self.held[at] = picture(name, state="stopped", ended_by=author, ended_for=reason)

    def views(self) -> list[ExperimentView]:
        """As they are."""
        return self.held
