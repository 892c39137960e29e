"""``/api/alerts``: what fires, waits and was, with its figures; who tells; everything typed and guarded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from proxy.control.api_alerts import STRUCTS, alerts_router
from proxy.control.guard import Guard
from proxy.control.notify.sender import NotifierState
from proxy.control.schema import ApiError, describe, refusal
from proxy.settings.alerts import ALL_RULES
from tests.control.alerts.hosts import GROUP, Host, World
from tests.control.alerts.test_stage import failing, healthy, late
from tests.control.facts import UNIX
from tests.helpers.procs import eventually


def application(host: Host, token: str | None = None) -> FastAPI:
    app = FastAPI()
    app.include_router(alerts_router(host.alerts, Guard(lambda: token)))
    app.add_exception_handler(ApiError, lambda _, error: refusal(error))
    return app


@contextmanager
def serving(host: Host, token: str | None = None) -> Iterator[httpx.Client]:
    """The route behind a real socket."""
    config = uvicorn.Config(application(host, token), port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started, 10)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def world() -> World:
    """An alert that is over, one that fires, and one that waits."""
    world = World(settings={"url": "http://legato.example:9464/"})
    world.run(300, healthy)
    world.run(60, failing)
    world.run(300, healthy)
    world.run(60, late)
    host = world.hosts[0]
    host.out.states = lambda: [  # type: ignore[method-assign]
        NotifierState("ops", "webhook", "hooks.example", 2, UNIX, "answered 503", None)
    ]
    return world


def test_everything_about_alerts_in_one_answer(world: World) -> None:
    with serving(world.hosts[0]) as client:
        said = client.get("/api/alerts").json()
    (spike,) = said["firing"]
    assert spike["labels"] == GROUP
    assert (spike["state"], spike["rule"], spike["severity"], spike["told"]) == ("firing", "spike", "page", 1)
    assert spike["since"] <= spike["fired"] <= said["judged"] <= said["at"]
    assert spike["resolved"] is None
    assert spike["value"] >= spike["threshold"]
    assert spike["peak"] >= spike["value"]
    assert spike["worst"][0]["missed"] > 0
    assert spike["url"].startswith("http://legato.example:9464/api/alerts#spike%7Bbackend")
    assert spike["runbook"] == "deploy/runbooks/spike.md"
    assert [(each["rule"], each["state"]) for each in said["history"]] == [
        ("spike", "firing"),
        ("errors", "resolved"),
    ]
    assert {each["rule"]: each["watched"] for each in said["rules"]} == {
        rule: rule != "proxy" for rule in ALL_RULES
    }
    (told,) = said["notifiers"]
    assert (told["name"], told["waiting"], told["last_error"]) == ("ops", 2, "answered 503")
    assert (said["scope"], said["sends"], said["evaluations"]) == ("host", True, None)


def test_what_each_rule_said_last_is_there_on_request(world: World) -> None:
    with serving(world.hosts[0]) as client:
        said = client.get("/api/alerts", params={"all": "true"}).json()
    found = {each["rule"]: each for each in said["evaluations"] if each["labels"] == GROUP}
    assert found.keys() == {"spike", "errors", "stalled"}
    assert found["spike"]["fires"]
    assert found["errors"]["reason"].endswith("requests of the last minute failed (usual: 0.50%)") or (
        "failed" in found["errors"]["reason"]
    )


def test_a_fleet_says_who_tells() -> None:
    world = World(2, shared=True)
    world.run(30, healthy)
    sends = []
    for host in world.hosts:
        with serving(host) as client:
            said = client.get("/api/alerts").json()
            assert said["scope"] == "fleet"
            sends.append(said["sends"])
    assert sorted(sends) == [False, True]


def test_the_token_is_asked_for(world: World) -> None:
    with serving(world.hosts[0], "secret") as client:
        assert client.get("/api/alerts").status_code == 401
        assert client.get("/api/alerts", headers={"authorization": "Bearer secret"}).status_code == 200


def test_the_answer_is_described(world: World) -> None:
    document = describe(application(world.hosts[0]), STRUCTS)
    (operation,) = document["paths"]["/api/alerts"].values()
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith(
        "AlertsView"
    )
    assert {"AlertsView", "AlertView", "Worst"} <= document["components"]["schemas"].keys()
