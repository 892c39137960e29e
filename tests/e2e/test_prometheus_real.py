"""A real Prometheus scrapes a real Legato and answers every query of the dashboard.

One scene for the module: streams in time, streams with a stall, cut streams and streams that hang, of two
backends and two SLOs, scraped each second.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from deploy.grafana import build
from tests.helpers.pacer import Plan, pacer
from tests.helpers.procs import Legato, eventually, serve
from tests.helpers.prometheus import Prometheus, QueryError, prometheus
from tests.helpers.rawclient import RawClient
from tests.helpers.tools import need

pytestmark = pytest.mark.alone

JOB = "legato"
#: Both groups are in a beat, and scraped, before anything is booked: rates see every request.
LONG = Plan(gaps_ms=[15] * 160)
GOOD = Plan(gaps_ms=[15] * 40, tokens=40)
STALL = Plan(gaps_ms=[15] * 20 + [700] + [15] * 10)
CUT = Plan(gaps_ms=[15] * 10, end="cut")
HANG = Plan(gaps_ms=[15] * 10, end="hang")
OBJECTIVE = {"chat": 0.9, "batch": 0.5}
#: Panels without data here: no vLLM, no Redis, no frozen curves, no restart, nothing tried out.
MAY_BE_EMPTY = (
    "legato_experiment_",
    "legato_mirrored_requests_total",
    "legato_backend_ejected",
    "vllm:",
    "legato_redis_",
    "legato_prefill_drift_ratio",
    "legato_tbt_drift_ratio",
    "changes(legato_counting_since_seconds",
)


def settings(url: str) -> dict[str, Any]:
    return {
        "workers": 2,
        "backends": {"one": {"url": url}, "two": {"url": url}},
        "routes": [{"match": {"model": "big"}, "backend": "two"}, {"backend": "one"}],
        "slos": [
            {"name": "batch", "match": {"model": "big"}, "ttft": "1s", "tbt": "60ms", "objective": "50%"},
            {"name": "chat", "ttft": "300ms", "tbt": "25ms", "objective": "90%"},
        ],
    }


@dataclass(frozen=True)
class Scene:
    """What was played, from ``start_s`` to ``end_s`` (unix); ``end_s`` is behind a scrape of all of it."""

    legato: Legato
    server: Prometheus
    start_s: float
    end_s: float
    summary: dict[str, Any]

    def ask(self, expr: str, job: str = JOB, rate: str = "8s", **chosen: str) -> str:
        """A query of the dashboard as Grafana sends it; what is not chosen is *All*."""
        values = {"job": job, "backend": ".*", "model": ".*", "slo": ".*", **chosen}
        for name, value in values.items():
            expr = expr.replace(f"${name}", value)
        return expr.replace("$__rate_interval", rate).replace("$__range", "10m")

    def group(self, slo: str) -> dict[str, Any]:
        """A group of the summary."""
        (found,) = (one for one in self.summary["groups"] if one["slo"] == slo)
        return dict(found)


def play(legato: Legato, plan: Plan, model: str, name: str) -> None:
    with RawClient(legato.data, timeout_s=30) as client:
        client.send(plan.request(name, model))
        if plan.end == "hang":
            time.sleep(4)  # overdue in some four beats; then the client leaves
        else:
            client.response()


def traffic(legato: Legato) -> None:
    """About ten seconds."""
    plans = [GOOD, GOOD, STALL, GOOD, CUT, GOOD, STALL, GOOD]
    with ThreadPoolExecutor(max_workers=64) as pool:
        playing = [pool.submit(play, legato, LONG, model, "long") for model in ("tiny", "big")]
        time.sleep(2.4)
        for turn in range(24):
            model = "big" if turn % 3 == 2 else "tiny"
            playing.append(pool.submit(play, legato, plans[turn % len(plans)], model, f"r{turn}"))
            if turn in (6, 7, 8):
                playing.append(pool.submit(play, legato, HANG, "tiny", f"hang{turn}"))
            time.sleep(0.25)
        for each in playing:
            each.result()


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with (
        pacer() as upstream,
        serve(config=settings(upstream.url)) as legato,
        prometheus(legato=legato.admin) as server,
    ):
        server.scraped(JOB)
        start_s = time.time()
        traffic(legato)
        eventually(lambda: legato.json("/api/summary")["total"]["requests"] >= 29, 10, "every request")
        # Their end is in the sums before it is in a beat.
        eventually(lambda: legato.metrics().value("legato_requests_in_flight") == 0, 10, "nothing in flight")
        end_s = server.scraped(JOB, times=2)
        yield Scene(legato, server, start_s, end_s, legato.json("/api/summary"))


def queries() -> list[tuple[str, str]]:
    """(where, expression) of the whole dashboard, annotations included."""
    dashboard = build.dashboard()
    panels = [inner for panel in dashboard["panels"] for inner in (panel, *panel.get("panels", ()))]
    found = [
        (f"{panel['title']} {target['refId']}", target["expr"])
        for panel in panels
        for target in panel.get("targets", ())
    ]
    return found + [(one["name"], one["expr"]) for one in dashboard["annotations"]["list"]]


QUERIES = dict(queries())


# ---------------------------------------------------------------- the dashboard's queries


def test_every_query_is_answered_and_has_data(scene: Scene) -> None:
    empty = []
    for where, expr in QUERIES.items():
        answer = scene.server.over(scene.ask(expr), scene.start_s, scene.end_s)
        if not any(series.finite for series in answer):
            empty.append(where)
    allowed = [where for where, expr in QUERIES.items() if any(part in expr for part in MAY_BE_EMPTY)]
    assert empty == allowed


def test_a_choice_of_several_values_is_answered(scene: Scene) -> None:
    chosen = {"slo": "(chat|batch)", "model": "(tiny|big)", "backend": "(one|two)"}
    for where, expr in QUERIES.items():
        both = scene.server.over(
            scene.ask(expr, job=f"({JOB}|other)", **chosen), scene.end_s - 3, scene.end_s
        )
        every = scene.server.over(scene.ask(expr), scene.end_s - 3, scene.end_s)
        assert [one.labels for one in both] == [one.labels for one in every], where


def test_a_choice_leaves_the_others_out(scene: Scene) -> None:
    expr = QUERIES["Good requests A"]
    (only,) = scene.server.now(scene.ask(expr, slo="chat"), scene.end_s)
    assert only.labels == {"slo": "chat"}
    assert scene.server.now(scene.ask(expr, backend="three"), scene.end_s) == []


def test_an_unknown_function_is_refused(scene: Scene) -> None:
    with pytest.raises(QueryError, match="unknown function"):
        scene.server.now("prediction(legato_workers)")


# ---------------------------------------------------------------- what they say is true


@pytest.mark.parametrize("slo", ["chat", "batch"])
def test_counters_are_the_summarys(scene: Scene, slo: str) -> None:
    group = scene.group(slo)
    for metric, label, wanted in (
        ("legato_requests_total", "outcome", group["outcomes"]),
        ("legato_slo_requests_total", "result", group["results"]),
        ("legato_token_deadlines_total", "result", group["deadlines"]),
    ):
        answer = scene.server.now(f'sum by ({label}) ({metric}{{slo="{slo}"}})', scene.end_s)
        assert {one.labels[label]: one.last for one in answer} == wanted
    assert scene.server.one(f'sum(legato_output_tokens_total{{slo="{slo}"}})') == group["output_tokens"]


@pytest.mark.parametrize("slo", ["chat", "batch"])
def test_shares_and_burn_are_the_summarys(scene: Scene, slo: str) -> None:
    """Rates are taken between scrapes and extrapolated: near, not equal."""
    group = scene.group(slo)
    good = group["good_ratio"]
    assert 0.3 < good < 0.95

    def value(where: str) -> float:
        return scene.server.one(scene.ask(QUERIES[where], slo=slo, rate="10m"), scene.end_s)

    assert value("Good requests A") == pytest.approx(good, rel=0.05)
    assert value("Deadline miss rate A") == pytest.approx(group["deadline_miss_rate"], rel=0.1)
    for letter in "ABC":  # 5 m, 1 h, 6 h: all of them hold the whole scene
        burn = value(f"Error budget burn {letter}")
        assert burn == pytest.approx((1 - good) / (1 - OBJECTIVE[slo]), rel=0.1)


def test_quantiles_lie_in_the_bucket_of_the_summarys(scene: Scene) -> None:
    for where, key, q in (
        ("Time to first token A", "ttft_s", "p50"),
        ("Time between tokens A", "tbt_s", "p50"),
        ("Time between tokens C", "tbt_s", "p99"),
        ("Whole requests A", "duration_s", "p50"),
    ):
        metric = QUERIES[where].split("rate(")[1].split("_bucket")[0]
        bounds = sorted({
            float(one.labels["le"])
            for one in scene.server.now(f'{metric}_bucket{{slo="chat"}}', scene.end_s)
        })  # fmt: skip
        value = scene.server.one(scene.ask(QUERIES[where], slo="chat", rate="10m"), scene.end_s)
        true = scene.group("chat")[key][q]
        place = next(i for i, bound in enumerate(bounds) if true <= bound)
        # A quantile near a bound falls to either side of it, by extrapolation and by the 1% of the sketch.
        low, high = bounds[max(place - 2, 0)] if place else 0.0, bounds[min(place + 1, len(bounds) - 1)]
        assert low <= value <= high, (where, value, true)


def test_what_hung_was_overdue_while_it_hung_and_nothing_is_now(scene: Scene) -> None:
    overdue = scene.server.over(scene.ask(QUERIES["Overdue A"]), scene.start_s, scene.end_s)
    (tiny,) = (one for one in overdue if one.labels["model"] == "tiny")
    assert max(tiny.finite) >= 3
    assert tiny.last == 0
    assert scene.server.one("sum(legato_requests_in_flight)", scene.end_s) == 0


def test_targets_and_objectives_stand_beside_what_they_judge(scene: Scene) -> None:
    for where, wanted in (
        ("Time to first token D", {"chat": 0.3, "batch": 1.0}),
        ("Time between tokens D", {"chat": 0.025, "batch": 0.06}),
        ("Good requests against the objective B", OBJECTIVE),
    ):
        answer = scene.server.now(scene.ask(QUERIES[where]), scene.end_s)
        assert {one.labels["slo"]: one.last for one in answer} == wanted


# ---------------------------------------------------------------- the scrape itself


def test_scrapes_succeed_and_are_openmetrics(scene: Scene) -> None:
    span = f"{int(scene.end_s - scene.start_s)}s"
    # A page that cannot be read fails each time; a busy machine may be late for one.
    assert scene.server.one(f'avg_over_time(up{{job="{JOB}"}}[{span}])', scene.end_s) > 0.8
    assert scene.server.one(f'count_over_time(up{{job="{JOB}"}}[{span}])', scene.end_s) >= 10
    (told,) = scene.server.ask("targets/metadata?metric=legato_ttft_seconds")
    assert (told["type"], told["unit"]) == ("histogram", "seconds")  # the classic text knows no units
    (told,) = scene.server.ask("targets/metadata?metric=legato_requests")
    assert told["type"] == "counter"
    assert "err=" not in scene.server.log


def test_promtool_has_nothing_to_say_of_the_live_page(scene: Scene) -> None:
    status, page = scene.legato.get("/metrics")
    assert status == 200
    checked = subprocess.run(
        [need("promtool"), "check", "metrics"], input=page, capture_output=True, timeout=30, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_the_dashboard_on_disk_is_the_one_that_was_asked() -> None:
    assert json.loads(build.FILE.read_text(encoding="utf-8")) == build.dashboard()
