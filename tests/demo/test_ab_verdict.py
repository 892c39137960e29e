"""What ``legato demo --ab`` promises: that it calls the chunked scheduler better within its length.

In virtual time: the demo's own scenario, configuration and engines; every request is drawn by the product's
split, settled and booked by its control core, and judged by its experiment.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from deploy.demo.command import _SECONDS
from deploy.demo.machine import build_engine
from deploy.demo.scenario import EXPERIMENT, Scenario, simulated
from deploy.demo.virtual import Trace, simulate
from deploy.demo.workload import Request
from proxy.config import Boot, load
from proxy.control.experiments.views import ExperimentView
from proxy.link import Assignment, Facts
from proxy.tables import build_table
from scoring.deadlines import DeadlineCurve
from tests.control.experiments.lab import Answer, Host, Lab, Running
from tests.control.experiments.test_experiment import seen
from tests.control.facts import MS, at, streamed


def host_of(scenario: Scenario, tmp_path: Path, draw: int) -> Host:
    """A host with the demo's configuration, its experiment begun.  ``draw``: who gets which request."""
    file = tmp_path / "legato.yaml"
    file.write_text(yaml.safe_dump(scenario.config(1, 2, {arm.name: 3 for arm in scenario.arms})))
    config = load(Boot(file=str(file), flags={}), {})
    host = Lab(seed=draw).host("demo", build_table(config, 1))
    host.experiments.configure(config.experiment, host.table)
    return host


def engines(scenario: Scenario) -> dict[str, str]:
    """By the backend's name the scheduler that its server is started with."""
    return {arm.name: arm.command[arm.command.index("--scheduler") + 1] for arm in scenario.arms}


def facts_of(scenario: Scenario, trace: Trace, given: Assignment, seq: int, unix_ns: int) -> Facts:
    events = [at(round(each / MS)) for each in trace.at_ns]
    return streamed(
        *events,
        end_ms=events[-1][0] + 1,
        seq=seq,
        backend=given.backend,
        assignment=given,
        received_unix_ns=unix_ns + trace.request.at_ns,
        prompt_tokens_estimated=trace.request.prompt_tokens,
        ttft_target_ns=DeadlineCurve(list(scenario.ttft_points)).at(trace.request.prompt_tokens),
        tbt_target_ns=scenario.tbt_ns,
        target=scenario.target,
    )


def play(scenario: Scenario, host: Host) -> tuple[ExperimentView, float]:
    """The last picture, and when the verdict was first heard: seconds from the first request on."""
    (worker, *_), begin_unix_ns = host.workers, host.lab.now_ns
    drawn: list[tuple[Request, Running]] = [
        (request, worker.assign(host, None, lambda arm, random: Answer())) for request in scenario.requests
    ]
    ended: list[tuple[int, Trace, Running]] = []
    for backend, scheduler in engines(scenario).items():
        mine = {request: running for request, running in drawn if running.assignment.backend == backend}
        for trace in simulate(build_engine(scheduler, scenario.seed), mine):
            ended.append((trace.request.at_ns + trace.at_ns[-1], trace, mine[trace.request]))
    ended.sort(key=lambda each: each[0])
    heard_s = float("inf")
    while ended:
        host.second()
        batch: list[Facts] = []
        while ended and ended[0][0] <= host.lab.now_ns - begin_unix_ns:
            _, trace, running = ended.pop(0)
            worker.running.remove(running)
            worker.seq += 1
            batch.append(facts_of(scenario, trace, running.assignment, worker.seq, begin_unix_ns))
        host.controller.facts(worker.held, batch)
        if heard_s > 1e6 and seen(host, EXPERIMENT).verdict != "undecided":
            heard_s = (host.lab.now_ns - begin_unix_ns) / 1e9
    host.second(2)
    return seen(host, EXPERIMENT), heard_s


@pytest.mark.parametrize(("seed", "draw"), [(0, 1), (0, 2), (0, 3), (1, 1)])
def test_the_chunked_scheduler_is_called_better_within_the_demos_length(
    seed: int, draw: int, tmp_path: Path
) -> None:
    scenario = simulated(seed, _SECONDS, experiment=True)
    host = host_of(scenario, tmp_path, draw)
    told, heard_s = play(scenario, host)
    assert (told.control.backend, told.candidate.backend) == ("prefill-first", "chunked")
    assert sum(arm.recorded for arm in (told.control, told.candidate)) == len(scenario.requests)
    assert [test.name for test in told.integrity if test.alarm] == []
    assert told.verdict == "better", told.headline
    assert told.headline.startswith("chunked is better than prefill-first on good requests: +")
    assert heard_s <= _SECONDS + 15, "while the last answers end"
    good = told.metrics[0]
    assert good.control is not None
    assert good.candidate is not None
    assert good.candidate - good.control > 0.1
