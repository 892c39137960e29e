"""``/api/compare``: two backends over a window, labelled as what it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from proxy.control.api_compare import compare_router
from proxy.control.core import Controller
from proxy.control.fleet.reader import Reader
from proxy.control.look import TITLES, CompareLook
from proxy.control.settle import GroupKey, settle
from proxy.control.windows import WindowBook
from proxy.link import BackendSpec, Facts, FactsBatch, Usage
from scoring.compare_fixed import METRIC
from tests.control.asked import asking, wrong
from tests.control.facts import UNIX, S, at, facts, streamed, table
from tests.control.fleet.fakes import Memory, Ticks, reader
from tests.control.fleet.test_reader_api import Joined
from tests.control.test_windows import HOUR, MINUTE, Clock, ended
from tests.control.test_workers import hello

BACKENDS = tuple(BackendSpec(name, f"http://{name}:80") for name in ("stable", "canary", "idle"))


def controller(clock: Clock) -> Controller:
    file = msgspec.structs.replace(table(), backends=BACKENDS)
    control = Controller(file, instance="here", version="1", unix_ns=clock, monotonic_ns=clock)
    control.feed(hello())
    return control


def some(clock: Clock, backend: str, count: int, first_ms: int, failed: int = 0, **more: Any) -> list[Facts]:
    """Streams whose first token comes about then, and failures."""
    usage = Usage(prompt=more.pop("prompt", 12), output=2)
    streams = [
        streamed(
            at(first_ms + number % 7), at(first_ms + 40), end_ms=first_ms + 50, backend=backend,
            of={"usage": usage}, **more,
        )
        for number in range(count)
    ]  # fmt: skip
    return [
        ended(clock, each)
        for each in (*streams, *(facts(status=502, backend=backend) for _ in range(failed)))
    ]


def compared(clock: Clock) -> Controller:
    """The control is late 60 times in 200; the candidate is in time, and fails 4 times."""
    control = controller(clock)
    control.feed(FactsBatch(some(clock, "stable", 140, 80) + some(clock, "stable", 60, 120, model="qwen")))
    control.feed(FactsBatch(some(clock, "canary", 196, 60, failed=4, prompt=400)))
    clock.now_ns += S
    return control


def client_of(control: Controller, **more: Any) -> TestClient:
    return asking(control, lambda reads, _: [compare_router(control, reads)], **more)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with client_of(compared(Clock())) as client:
        yield client


def row(found: CompareLook, name: str) -> Any:
    (wanted,) = [each for each in found.metrics if each.metric == name]
    return wanted


def test_a_look_says_what_it_is_and_is_not(client: TestClient) -> None:
    answer = client.get("/api/compare?a=stable&b=canary&window=5m")
    assert answer.status_code == 200
    assert answer.json()["kind"] == "fixed_look"
    found = msgspec.json.decode(answer.content, type=CompareLook)
    for word in ("One look", "not a randomised split", "start an experiment"):
        assert word in found.warning
    assert (found.control.backend, found.candidate.backend, found.asked_s) == ("stable", "canary", 300)
    assert (found.control.requests, found.candidate.requests) == (200, 200)
    assert (found.scope, found.instances) == ("host", 1)


def test_rows_are_those_of_the_books(client: TestClient) -> None:
    answer = client.get("/api/compare?a=stable&b=canary&window=5m")
    found = msgspec.json.decode(answer.content, type=CompareLook)
    assert [each.metric for each in found.metrics] == [
        "good", "errors", "fluidity", "with_misses", "deadline_misses", "ttft", "log_ttft",
        "normalized_latency",
    ]  # fmt: skip
    good, ttft, errors = row(found, "good"), row(found, "ttft"), row(found, "errors")
    assert (good.control, good.candidate, good.verdict) == (0.7, 0.98, "better")
    assert good.counts == {"control": 200, "candidate": 200}
    assert good.low < good.effect < good.high
    assert ttft.effect == pytest.approx(0.063 - 0.095, abs=0.001)
    assert (ttft.unit, ttft.better, ttft.verdict) == ("seconds", "less", "better")
    assert (errors.control, errors.candidate) == (0, 0.02)
    assert [reason.code for reason in row(found, "deadline_misses").reasons] == ["not_kept"]
    assert [each.q for each in found.ttft_quantiles] == [0.5, 0.9, 0.99]
    half = found.ttft_quantiles[0]
    assert half.effect == pytest.approx(-0.02, abs=0.005)
    assert None not in (half.low, half.high)
    assert half.verdict == "better"
    assert found.ttft_quantiles[2].control.high is None


def test_what_may_explain_the_difference_is_said(client: TestClient) -> None:
    found = client.get("/api/compare?a=stable&b=canary&window=5m").json()
    assert found["control"]["models"] == {"llama": 140, "qwen": 60}
    notes = "\n".join(found["notes"])
    assert "model qwen: 30% of stable's requests, 0% of canary's" in notes
    assert "prompts are not alike: 12 tokens on average at stable" in notes
    assert "times are of requests that were answered" in notes
    one = client.get("/api/compare?a=stable&b=canary&window=5m&model=llama").json()
    assert (one["control"]["requests"], one["model"]) == (140, "llama")
    assert "model " not in "\n".join(one["notes"])


def test_a_backend_that_rejects_what_the_other_takes_is_said_to() -> None:
    clock = Clock()
    control = controller(clock)
    for backend, rejected in (("stable", 2), ("canary", 90)):
        taken = some(clock, backend, 100, 60)
        refused = [ended(clock, facts(status=404, backend=backend)) for _ in range(rejected)]
        control.feed(FactsBatch(taken + refused))
    clock.now_ns += S
    with client_of(control) as client:
        notes = client.get("/api/compare?a=stable&b=canary&window=5m").json()["notes"]
        assert any(
            note.startswith("2.0% of stable's requests and 47.4% of canary's requests were rejected (4xx)")
            for note in notes
        ), notes
    with client_of(compared(Clock())) as client:
        notes = client.get("/api/compare?a=stable&b=canary&window=5m").json()["notes"]
        assert not any("rejected" in note for note in notes)


def test_only_what_an_slo_is_about() -> None:
    clock = Clock()
    control = compared(clock)
    control.feed(
        FactsBatch([*some(clock, "stable", 7, 80, slo="batch"), *some(clock, "canary", 5, 80, slo="batch")])
    )
    with client_of(control) as client:
        found = client.get("/api/compare?a=stable&b=canary&window=5m&slo=batch").json()
    assert (found["control"]["requests"], found["candidate"]["requests"], found["slo"]) == (7, 5, "batch")


def test_nobody_means_what_stands_for_no_model() -> None:
    clock = Clock()
    control = compared(clock)
    control.feed(FactsBatch(some(clock, "stable", 1, 80, model=None)))
    with client_of(control) as client:
        _, _, how = wrong(client.get("/api/compare?a=stable&b=canary&model=nope"))
    assert how == "known are: llama, none, qwen"


def test_every_metric_has_a_title() -> None:
    assert TITLES.keys() == METRIC.keys()


@pytest.mark.parametrize(
    ("query", "message", "mend"),
    [
        ("b=canary", "a:", "openapi"),
        ("a=stable&b=stable", "'stable' is a too", "name two backends"),
        ("a=stabel&b=canary", "a: 'stabel' is no backend", "did you mean 'stable'?"),
        ("a=stable&b=xyz", "b: 'xyz' is no backend", "known are: canary, idle, stable"),
        ("a=stable&b=canary&model=lama", "model: 'lama' is no model", "did you mean 'llama'?"),
        ("a=stable&b=canary&slo=chat", "slo: 'chat' is no SLO", "known are: default"),
        ("a=stable&b=idle", "no request of idle ended in the last 1h", "longer window"),
        ("a=stable&b=canary&model=qwen", "no request of canary, model 'qwen' ended", "longer window"),
        ("a=stable&b=canary&window=5", "window:", "with its unit"),
        ("a=stable&b=canary&window=3d", "window: '3d' is too long", "1d"),
        ("a=stable&b=canary&scope=fleet", "scope: 'fleet' needs Redis", "redis.url"),
    ],
)
def test_what_cannot_be_compared_says_why(client: TestClient, query: str, message: str, mend: str) -> None:
    status, said, how = wrong(client.get(f"/api/compare?{query}"))
    assert status == 422
    assert message in said
    assert mend in how


def test_a_window_that_is_over_holds_nothing_of_them() -> None:
    clock = Clock()
    control = compared(clock)
    clock.now_ns += 20 * MINUTE
    with client_of(control) as client:
        assert wrong(client.get("/api/compare?a=stable&b=canary&window=5m"))[1].startswith(
            "no request of stable and canary ended in the last 5m"
        )
        assert client.get("/api/compare?a=stable&b=canary&window=1h").status_code == 200


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({}, 200),
        ({"host": "evil.example"}, 403),
        ({"address": "10.0.0.9"}, 403),
        ({"token": "t"}, 401),
        ({"token": "t", "sends": "x"}, 401),
        ({"token": "t", "sends": "t", "host": "legato.example", "address": "10.0.0.9"}, 200),
        ({"token": "t", "write_token": "w", "sends": "t"}, 200),
    ],
)
def test_it_is_read_as_all_else_is(more: dict[str, str], status: int) -> None:
    with client_of(compared(Clock()), **more) as client:
        assert client.get("/api/compare?a=stable&b=canary").status_code == status


@dataclasses.dataclass
class Fleet(Joined):
    """A fleet of which another host ended requests of both backends."""

    memory: Memory
    monotonic: Ticks


def fleet(clock: Clock) -> Fleet:
    memory, monotonic = Memory(), Ticks()
    book = WindowBook(clock.now_ns)
    there = [*some(clock, "stable", 60, 120), *some(clock, "canary", 60, 60)]
    settled = [settle(each, "other") for each in there]
    memory.write(
        "b", [book.add(GroupKey(each.facts.backend or "", "llama", "default"), each) for each in settled]
    )
    clock.now_ns += 3 * S
    found: Reader = reader(memory, Ticks(clock.now_ns), monotonic)
    return Fleet(found, memory, monotonic)


def test_all_hosts_are_read_where_there_is_a_fleet_and_this_one_where_it_is_away() -> None:
    clock = Clock(UNIX - UNIX % HOUR + 40 * MINUTE)
    control = compared(clock)
    joined = fleet(clock)
    control.join(joined)
    with client_of(control) as client:
        found = client.get("/api/compare?a=stable&b=canary&window=5m").json()
        assert (found["scope"], found["control"]["requests"]) == ("fleet", 60)
        here = client.get("/api/compare?a=stable&b=canary&window=5m&scope=host").json()
        assert (here["scope"], here["control"]["requests"]) == ("host", 200)
        joined.memory.fails = "timeout"
        joined.monotonic.now_ns += 10 * S
        found = client.get("/api/compare?a=stable&b=canary&window=5m").json()
        assert (found["scope"], found["control"]["requests"]) == ("host", 200)
        assert found["degraded"]["reason"] == "timeout"


def test_the_document_describes_it(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/api/compare"]["get"]
    assert {"a", "b", "window", "model", "slo", "scope"} == {each["name"] for each in operation["parameters"]}
    assert {"CompareLook", "LookMetric"} <= document["components"]["schemas"].keys()
