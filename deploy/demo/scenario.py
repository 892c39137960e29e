"""What a demo run consists of: two engines, one workload, one promise; simulated or real, it is the same."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from deploy.demo import promise, workload
from deploy.demo.workload import Lane, Mix, Request

#: What an experiment of the demo is called, and how many requests of each arm it is planned for.
EXPERIMENT: Final = "schedulers"
PLANNED: Final = 100
#: What two engines get in an experiment: a quarter more each than by itself, since which half of the requests
#: an engine gets is chance, and with a lucky half even whole prompts in one step disturb nobody.
_BOTH: Final = replace(Mix(), rate=6.4)


@dataclass(frozen=True, slots=True)
class Arm:
    """One engine behind Legato.

    ``command`` may hold ``{port}``; ``describe`` is one line for the screen.  Requests reach it by ``model``.
    """

    name: str
    model: str
    describe: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scenario:
    """``arms``: first the one that is expected to stall, then the one that is expected not to."""

    title: str
    note: str  # what is real and what is not
    arms: tuple[Arm, Arm]
    requests: tuple[Request, ...]
    seed: int
    ttft_points: tuple[tuple[int, int], ...]  # (prompt tokens, ns)
    tbt_ns: int
    target: float = promise.TARGET
    objective: float = promise.OBJECTIVE
    start_s: float = 30.0  # how long the engines may take until they are ready
    simulated: bool = True
    lanes: tuple[Lane, ...] = ()  # instead of ``requests``: users who wait for answers, arm by arm
    seconds: float = 0.0  # how long requests are sent (to each arm)
    experiment: bool = False  # one URL and one model: Legato splits the requests, and compares

    def config(self, data_port: int, admin_port: int, engine_ports: Mapping[str, int]) -> dict[str, Any]:
        """Legato's configuration for this run, ready to be written as YAML."""
        return self._routing() | {
            "listen": f"127.0.0.1:{data_port}",
            "admin": {"listen": f"127.0.0.1:{admin_port}"},
            "backends": {
                arm.name: {"url": f"http://127.0.0.1:{engine_ports[arm.name]}"} for arm in self.arms
            },
            "slos": [
                {
                    "name": "demo",
                    "ttft": {prompt: f"{ttft_ns // 1_000_000}ms" for prompt, ttft_ns in self.ttft_points},
                    "tbt": f"{self.tbt_ns // 1_000_000}ms",
                    "fluidity": self.target,
                    "objective": f"{self.objective:.0%}",
                }
            ],
            "timeouts": {"drain": "2s"},
            "access_log": "off",
        }

    def _routing(self) -> dict[str, Any]:
        if not self.experiment:
            return {"routes": [{"match": {"model": arm.model}, "backend": arm.name} for arm in self.arms]}
        known, tried = self.arms
        return {
            "routes": [{"name": EXPERIMENT, "split": {arm.name: 50 for arm in self.arms}}],
            "experiment": {
                "name": EXPERIMENT,
                "control": known.name,
                "candidate": tried.name,
                # Two real servers on one small machine: who must queue shows in the first token, whatever
                # else the machine does meanwhile.
                "metric": "good" if self.simulated else "log_ttft",
                "requests": PLANNED,
            },
        }


def simulated(seed: int, seconds: float, *, experiment: bool = False) -> Scenario:
    """Two simulated engines that differ in nothing but their scheduler."""

    def arm(scheduler: str, describe: str) -> Arm:
        model = "sim" if experiment else f"sim-{scheduler}"
        command = (
            *(sys.executable, "-m", "deploy.demo.server", "--scheduler", scheduler, "--model", model),
            *("--seed", str(seed), "--port", "{port}", "--with-parent"),
        )
        return Arm(scheduler, model, describe, command)

    return Scenario(
        title="prefill-first against chunked prefill",
        note="simulated engines: no model, no GPU; the HTTP, the streams, the proxy and its numbers are real",
        arms=(
            arm("prefill-first", "whole prompts in one step, everything that decodes waits (original vLLM)"),
            arm("chunked", "decodes first, prompts in pieces in what is left of a step (Sarathi-Serve)"),
        ),
        requests=workload.draw(seed, seconds, _BOTH if experiment else None),
        seconds=seconds,
        experiment=experiment,
        seed=seed,
        ttft_points=promise.TTFT.points,
        tbt_ns=promise.TBT_NS,
    )
