"""The sweep over loads: its search against an oracle, its judging against the scorer of whole traces, and
what it finds on fixed seeds."""

from __future__ import annotations

import io
import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner, Result

from deploy.demo import command, promise, sweep_report, workload
from deploy.demo import sweep as sweeping
from deploy.demo.cost import CostModel
from deploy.demo.engine import Engine
from deploy.demo.machine import build_engine
from deploy.demo.scheduler import POLICIES, Limits
from deploy.demo.sweep import (
    FIRST,
    SECOND,
    Bracket,
    Course,
    Job,
    Point,
    Promise,
    Sweep,
    judge,
    measure,
    search,
    simulations,
    sweep,
)
from deploy.demo.virtual import Trace, simulate
from deploy.demo.workload import Request
from scoring.deadlines import DeadlineCurve
from scoring.quantiles import quantile
from scoring.trace import Choice, score

MS = 1_000_000
SMALL = Course(judged=300, before=60, after=40, loads=(1.0, 2.0, 3.0, 4.0), resolution=0.25)
TINY = Course(judged=20, before=4, after=4, loads=(1.0, 4.0), resolution=2.0)

# ---------------------------------------------------------------- the search


def asked(course: Course, keeps: Callable[[float], bool]) -> tuple[Bracket, dict[float, bool]]:
    """Answer a search by an oracle: what it found, and each load that it tried with the answer."""
    looking, tried = search(course), dict[float, bool]()
    load = next(looking)
    while True:
        assert load not in tried, "each load costs a simulation: none is asked twice"
        tried[load] = keeps(load)
        try:
            load = looking.send(tried[load])
        except StopIteration as end:
            found: Bracket = end.value
            return found, tried


@given(edge=st.floats(0.25, 17.99), resolution=st.sampled_from([1 / 2, 1 / 8, 1 / 32]))
def test_the_search_closes_in_on_the_edge(edge: float, resolution: float) -> None:
    course = Course(resolution=resolution)
    found, tried = asked(course, lambda load: load <= edge)
    assert found.kept is not None
    assert found.broke is not None
    assert found.kept <= edge < found.broke <= found.kept + resolution
    assert set(course.loads) <= set(tried)  # the picture needs them all
    if course.loads[0] <= edge < course.loads[-1]:
        assert 2 * len(tried) + 1 == simulations(1, course)
    else:
        assert len(tried) <= len(course.loads) + 11


@given(answers=st.lists(st.booleans(), min_size=60, max_size=60))
def test_whatever_the_answers_nothing_failed_at_or_below_what_is_claimed(answers: list[bool]) -> None:
    course = Course()
    found, tried = asked(course, lambda _: answers.pop())
    claimed = found.kept or 0.0
    assert all(kept for load, kept in tried.items() if load <= claimed)
    assert found.kept is None or tried[found.kept]
    assert found.broke is None or not tried[found.broke]


@pytest.mark.parametrize(
    ("edge", "found"),
    [(0.0, Bracket(None, 0.25)), (0.2, Bracket(None, 0.25)), (18.0, Bracket(18.0, None))],
)
def test_a_promise_that_none_or_every_load_keeps_is_said_to_be_so(edge: float, found: Bracket) -> None:
    assert asked(Course(), lambda load: load <= edge)[0] == found


@pytest.mark.parametrize(("fluid", "kept"), [(2000, True), (1980, True), (1979, False), (0, False)])
def test_a_load_is_kept_by_whole_requests(fluid: int, kept: bool) -> None:
    assert Point(1.0, 2000, fluid, 200.0, 200.0, MS, MS).kept(0.99) is kept


# ---------------------------------------------------------------- one load


def trace(number: int, at_s: float, *gaps_ms: int) -> Trace:
    """A request that came then, with its tokens that far apart."""
    arrivals = tuple(int(each) * MS for each in np.cumsum(gaps_ms))
    return Trace(Request(number, round(at_s * 1e9), 10, len(gaps_ms)), arrivals)


def test_only_requests_between_warm_up_and_end_are_judged_and_all_tokens_of_that_time_count() -> None:
    course = Course(judged=2, before=1, after=1)
    by = Promise(DeadlineCurve([(0, 100 * MS)]), 50 * MS)
    traces = [
        trace(0, 0.0, 9_000),  # too late, but while the engine warms up; its token falls into the time
        trace(1, 8.0, 100, 50, 50),
        trace(2, 10.0, 100, 5_000, 40),  # its tokens come after the time has ended
        trace(3, 11.0, 9_000),
    ]
    point = judge(traces, 0.5, by, course)
    assert (point.requests, point.fluid) == (2, 1)
    assert point.tokens_per_s == 4 / 2  # one of request 0, three of request 1, from 8 to 10 s
    assert point.asked_tokens_per_s == 6 / 2
    assert (point.tbt_p99_ns, point.ttft_p99_ns) == (5_000 * MS, 100 * MS)


@pytest.mark.parametrize("scheduler", POLICIES)
def test_judging_agrees_with_the_scorer_of_whole_traces(scheduler: str) -> None:
    mix = replace(workload.Mix(), rate=3.0)
    requests = workload.draw(7, SMALL.requests / 3.0, mix)
    assert len(requests) == SMALL.requests
    traces = simulate(build_engine(scheduler, 7), requests)
    point = measure(Job(scheduler, 7, 3.0, Promise(), SMALL))
    judged = traces[60:360]
    scores = [
        score(
            [Choice(np.array(each.at_ns), np.ones(len(each.at_ns), dtype=np.int64))],
            promise.deadlines(each.request.prompt_tokens),
            end_ns=each.at_ns[-1],
            censored=False,
        )
        for each in judged
    ]
    gaps = sorted(int(gap) for each in judged for gap in np.diff(each.at_ns))
    assert point.fluid == sum((each.fluidity or 0.0) >= promise.TARGET for each in scores)
    assert point.tbt_p99_ns == quantile(gaps, 0.99)
    assert point.ttft_p99_ns == quantile(sorted(each.ttft_ns or 0 for each in scores), 0.99)


def test_every_load_of_a_seed_has_the_same_requests_closer_together() -> None:
    slow, fast = (workload.draw(1, 400 / rate, replace(workload.Mix(), rate=rate)) for rate in (1.0, 3.0))
    lengths = [[(each.prompt_tokens, each.output_tokens) for each in load] for load in (slow, fast)]
    assert lengths[0] == lengths[1]
    assert all(abs(3 * quick.at_ns - calm.at_ns) <= 3 for calm, quick in zip(slow, fast, strict=True))


# ---------------------------------------------------------------- what it finds


@pytest.fixture(scope="module")
def found() -> Sweep:
    """Two seeds, few requests."""
    return sweep((0, 1), Promise(), SMALL, processes=0)


def test_chunked_sustains_more_tokens_with_a_shorter_tail_than_prefill_first(found: Sweep) -> None:
    for result in found.seeds:
        first, second = (result.curves[name].best for name in (FIRST, SECOND))
        assert first is not None
        assert second is not None
        assert result.beyond is not None
        assert second.tokens_per_s >= 1.5 * first.tokens_per_s
        assert first.tbt_p99_ns >= 3 * second.tbt_p99_ns
        # The engine keeps up with what is asked at a load that counts as sustained.
        for best in (first, second):
            assert best.tokens_per_s == pytest.approx(best.asked_tokens_per_s, rel=0.05)
        assert result.beyond.load == second.load
        assert not result.beyond.kept(0.99)
    assert sweep_report.shown(found)


def test_a_scheduler_that_only_calls_itself_chunked_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def whole_prompts(name: str, seed: int) -> Engine:
        limits = Limits(token_budget=10**9, kv_tokens=CostModel().kv_capacity_tokens)
        return Engine(POLICIES[name], CostModel(), limits, seed=seed)

    monkeypatch.setattr(sweeping, "build_engine", whole_prompts)
    broken = sweep((0,), Promise(), SMALL, processes=0)
    first, second = (broken.seeds[0].curves[name].best for name in (FIRST, SECOND))
    assert first is not None
    assert second is not None
    assert second.tokens_per_s < 1.5 * first.tokens_per_s
    assert second.tbt_p99_ns > 0.8 * first.tbt_p99_ns
    assert not sweep_report.shown(broken)
    assert "This sweep does not show that" in shown_by(broken)


def test_processes_change_nothing_and_each_simulation_is_told() -> None:
    calls: list[None] = []
    alone = sweep((0, 1), Promise(), TINY, processes=0, advance=lambda: calls.append(None))
    assert sweep((0, 1), Promise(), TINY, processes=2) == alone
    points = sum(len(curve.points) for result in alone.seeds for curve in result.curves.values())
    assert len(calls) == points + 2


def test_an_interrupted_sweep_leaves_no_process() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    others = multiprocessing.active_children()
    with pytest.raises(KeyboardInterrupt):
        sweep((0, 1), Promise(), SMALL, processes=2, advance=interrupt)
    assert multiprocessing.active_children() == others


# ---------------------------------------------------------------- on the screen, in files


def shown_by(result: Sweep, width: int = 80) -> str:
    """What a terminal of that width would show, without line breaks."""
    out = io.StringIO()
    Console(file=out, width=width).print(sweep_report.closing(result))
    assert max(len(line) for line in out.getvalue().splitlines()) <= width
    assert "…" not in out.getvalue()
    return " ".join(out.getvalue().split())


def test_the_report_says_what_is_simulated_and_compares_in_kind(found: Sweep) -> None:
    shown = shown_by(found)
    for words in (
        "simulated in virtual time",
        "99% of requests keep fluidity 0.9",
        "Chunked sustains",
        "600 tokens/s",
        "compare the kind, not the numbers",
        "This sweep shows the same kind of difference",
        "█████ 100%",
        "a token every 40 ms",
    ):
        assert words in shown


def test_what_cannot_be_compared_is_not_compared(found: Sweep) -> None:
    def with_first(bracket: Bracket) -> Sweep:
        result = found.seeds[0]
        curves = result.curves | {FIRST: replace(result.curves[FIRST], bracket=bracket)}
        return replace(found, seeds=(replace(result, curves=curves), found.seeds[1]))

    hopeless = with_first(Bracket(None, 0.25))
    assert "No load was found that prefill-first kept with every seed" in shown_by(hopeless)
    assert json.loads(json.dumps(sweep_report.to_json(hopeless)))["overall"]["tokens_ratio"] is None
    endless = with_first(Bracket(4.0, None))
    assert "≥ 4.00" in shown_by(endless)
    assert "Prefill-first kept the promise at every load" in shown_by(endless)
    assert not sweep_report.shown(hopeless)
    assert not sweep_report.shown(endless)


def test_json_holds_the_same_numbers(found: Sweep) -> None:
    data = json.loads(json.dumps(sweep_report.to_json(found)))
    assert [each["seed"] for each in data["seeds"]] == [0, 1]
    best = found.seeds[0].curves[SECOND].best
    assert best is not None
    told = data["seeds"][0]["schedulers"][SECOND]
    assert told["best"]["tokens_per_s"] == best.tokens_per_s
    assert told["best"] in told["points"]
    assert data["promise"]["ttft_s"] == {"0": 1.2, "1000": 1.5, "4000": 2.3}
    means = data["overall"]["schedulers"]
    ratio = means[SECOND]["tokens_per_s"] / means[FIRST]["tokens_per_s"]
    assert data["overall"]["tokens_ratio"] == pytest.approx(ratio)


app = typer.Typer()
command.register(app)


@app.command()
def other() -> None:
    """A second command, so that ``demo`` is one by name, as in ``legato``."""


def legato(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["demo", *arguments])


def test_its_help_names_the_deadlines_by_which_it_judges() -> None:
    told = " ".join(CliRunner().invoke(app, ["demo", "--help"], env={"COLUMNS": "200"}).output.split())
    assert f"({promise.TBT_NS / 1e6:g}ms)" in told
    for prompt_tokens in (0, 1000, 4000):
        assert f"{promise.TTFT.at(prompt_tokens) / 1e9:g}s" in told
        assert not prompt_tokens or f"from {prompt_tokens}" in told


def test_the_command_runs_it_and_keeps_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "Course", lambda: TINY)
    monkeypatch.setattr(sweeping, "usable_processors", lambda: 0)
    file, image = tmp_path / "sweep.json", tmp_path / "sweep.svg"
    options = ("--seed", "5", "--seeds", "2", "--tbt", "50ms", "--ttft", "2s")
    done = legato("--sweep", *options, "--json", str(file), "--picture", str(image))
    assert done.exit_code == 0, done.output
    assert "a token every 50 ms, the first within 2.00 s" in done.output
    data = json.loads(file.read_text())
    assert [each["seed"] for each in data["seeds"]] == [5, 6]
    assert (data["promise"]["tbt_s"], data["promise"]["ttft_s"]) == (0.05, {"0": 2.0})
    assert "simulated" in image.read_text()


@pytest.mark.parametrize(
    "arguments",
    [("--picture", "nodir/x.svg"), ("--sweep", "--picture", "nodir/x.svg"), ("--sweep", "--json", ".")],
)
def test_a_place_that_cannot_be_written_is_told_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_simulated", lambda *_, **__: pytest.fail("it ran"))
    monkeypatch.setattr(sweeping, "sweep", lambda *_, **__: pytest.fail("it ran"))
    done = legato(*arguments)
    assert done.exit_code == 2, done.output
    assert "give another path" in (said := " ".join(done.output.split())) or "path of a file" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--seeds", "2"), "add that"),
        (("--tbt", "30ms"), "add that"),
        (("--sweep", "--real"), "leave --real out"),
        (("--sweep", "--tbt", "0"), "too short"),
        (("--sweep", "--ttft", "soon"), "not a duration"),
        (("--sweep", "--seeds", "0"), "equal to 1"),
    ],
)
def test_wrong_usage_is_refused_with_the_mend(arguments: tuple[str, ...], words: str) -> None:
    done = legato(*arguments)
    assert done.exit_code == 2
    assert words in done.output
