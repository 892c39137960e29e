"""``/api/backends``, and what the settings of ejection refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from proxy.config import ConfigErrors
from proxy.control.api_backends import STRUCTS, BackendsView, backends_router
from proxy.control.core import Controller
from proxy.control.guard import Guard
from proxy.control.schema import ApiError, describe
from proxy.control.snapshot import BackendStats
from proxy.settings.checks import cares
from tests.control.experiments.tables import T0
from tests.control.experiments.test_health import Watch
from tests.helpers.settings import read, writer


def api(watch: Watch) -> FastAPI:
    controller = Controller(
        watch.host.table, instance="here", version="1", unix_ns=watch.host.clock, monotonic_ns=watch.steady
    )
    app = FastAPI(openapi_url=None)
    app.include_router(backends_router(controller, watch.health, Guard(lambda: None)))
    return app


def ask(watch: Watch) -> dict[str, Any]:
    client = TestClient(api(watch), base_url="http://localhost", client=("127.0.0.1", 1))
    answer = client.get("/api/backends")
    assert answer.status_code == 200
    told: dict[str, Any] = answer.json()
    return told


def test_a_backend_is_shown_in_words_that_people_read() -> None:
    assert T0 == 1_800_000_000 * 10**9  # 2027-01-15T08:00:00Z
    watch = Watch()
    watch.pools = [BackendStats("b", False, 1, 2, 3, 4)]
    watch.second(a=(6, 0), b=(3, 7))
    told = ask(watch)
    assert (told["time"], told["window_s"], told["ejection"]) == ("2027-01-15T08:00:01.000Z", 10.0, True)
    assert [each["name"] for each in told["backends"]] == ["a", "alone", "b"]
    assert told["backends"][2] == {
        "name": "b",
        "state": "ejected",
        "since": "2027-01-15T08:00:01.000Z",
        "until": "2027-01-15T08:00:21.000Z",
        "kept": None,
        "weight_factor": 0.0,
        "splits": {"ab": 0},
        "requests": 0,
        "failures": 0,
        "failure_ratio": None,
        "consecutive_failures": 0,
        "last_failure": "status 500",
        "last_failure_time": "2027-01-15T08:00:00.000Z",
        "pool": {
            "up": False,
            "since": "2027-01-15T08:00:01.000Z",
            "active": 1,
            "idle": 2,
            "connecting": 3,
            "addresses": 4,
        },
    }
    assert told["backends"][1]["splits"] == {}
    assert (told["backends"][0]["failure_ratio"], told["backends"][0]["pool"]) == (0.0, None)


def test_the_route_is_described_and_guarded() -> None:
    app = api(Watch())
    document = describe(app, STRUCTS)
    answer = document["paths"]["/api/backends"]["get"]["responses"]["200"]
    assert answer["content"]["application/json"]["schema"]["$ref"].endswith(BackendsView.__name__)
    assert {struct.__name__ for struct in STRUCTS} <= document["components"]["schemas"].keys()
    elsewhere = TestClient(app, base_url="http://localhost", client=("10.0.0.9", 1))
    with pytest.raises(ApiError, match="no token is configured"):
        elsewhere.get("/api/backends")


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("ejection: {window: 500ms}", "ejection.window: 500ms: health is looked at once a second"),
        (
            "ejection: {time: 25h}",
            "ejection.time: 1d1h: health is looked at once a second: write a time from",
        ),
        ("ejection: {window: off}", "is not a duration"),
        ("ejection: {failures: 0}", "greater than 0"),
        ("ejection: {failures: 150%}", "ejection.failures"),
        ("ejection: {requests: 0}", "greater than or equal to 1"),
        ("ejection: {enable: on}", "did you mean enabled?"),
    ],
)
def test_settings_of_ejection_that_cannot_be_are_named_with_their_mend(
    text: str, mend: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigErrors) as refused:
        read(writer(tmp_path)(text))
    assert mend in str(refused.value)


@pytest.mark.parametrize(
    ("weights", "said"), [({"vllm": 1, "b": 1}, False), ({"vllm": 1, "b": 0}, True)], ids=["split", "one"]
)
def test_ejection_without_a_split_is_worth_a_look(
    weights: dict[str, int], said: bool, tmp_path: Path
) -> None:
    path = tmp_path / "legato.yaml"
    path.write_text(
        "backends: {vllm: {url: http://vllm}, b: {url: http://b}}\n"
        f"routes: [{{split: {weights}}}]\nejection: {{enabled: on}}\n"
    )
    found = [line for line in cares(read(str(path))) if line.startswith("ejection")]
    assert bool(found) == said
