"""An incident reaches a person by Prometheus: a real Legato, Prometheus with deploy/prometheus, Alertmanager.

One scene: a backend stops in the middle of its streams, another one is killed, the first goes on.  The rules
are those that users load, each ``expr`` and ``for`` as it stands; only how often they are evaluated, and how
long a resolution waits, is shorter.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import pytest
import yaml

from tests.helpers.alertmanager import Alertmanager, alertmanager
from tests.helpers.pacer import Pacer, Plan, pacer
from tests.helpers.procs import Legato, eventually, serve
from tests.helpers.prometheus import Prometheus, prometheus
from tests.helpers.rawclient import RawClient
from tests.helpers.receiver import Receiver, receiver
from tests.helpers.rulefiles import ALERTS, EXAMPLE, PAGES, RECORDING

pytestmark = [pytest.mark.alone, pytest.mark.timeout(240)]  # its background must be in time

STREAMS = 6
#: A hundred seconds, with time to spare for each token.
LONG = Plan(gaps_ms=[400] * 250)
SHORT = Plan(gaps_ms=[20] * 5)
#: The last token misses a deadline.
LATE = Plan(gaps_ms=[20, 20, 20, 5_000])
#: From the incident to the pager: what the rules wait for, evaluation, and ``group_wait``.
WITHIN_S = 60.0


def settings(one: Pacer, two: Pacer) -> dict[str, Any]:
    return {
        "workers": 1,
        "backends": {"one": {"url": one.url}, "two": {"url": two.url}},
        "routes": [{"match": {"model": "big"}, "backend": "two"}, {"backend": "one"}],
        "slos": [{"name": "chat", "ttft": "2s", "tbt": "600ms"}],
    }


def faster(file: Path, folder: Path) -> Path:
    """A copy that is evaluated every second, and resolves soon."""
    text = file.read_text(encoding="utf-8")
    quick = re.sub(r"^    interval: \w+$", "    interval: 1s", text, flags=re.MULTILINE)
    quick = re.sub(
        r"^        keep_firing_for: \w+$", "        keep_firing_for: 2s", quick, flags=re.MULTILINE
    )
    assert untouched(text) == untouched(quick)
    copy = folder / file.name
    copy.write_text(quick, encoding="utf-8")
    return copy


def untouched(text: str) -> list[Any]:
    """All that a copy must have as it was."""
    kept = ("alert", "record", "expr", "for", "labels", "annotations")
    rules = [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
    return [{key: rule.get(key) for key in kept} for rule in rules]


def routes_to(url: str) -> dict[str, Any]:
    """The example's routes and inhibitions; its receivers are paths of one webhook."""
    config: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    config["receivers"] = [
        {"name": each["name"], "webhook_configs": [{"url": f"{url}/{each['name']}", "send_resolved": True}]}
        for each in config["receivers"]
    ]
    config["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    return config


@dataclass(frozen=True)
class Told:
    """One alert of one message, as a webhook of Alertmanager's gets it."""

    to: str
    name: str
    state: str
    labels: dict[str, str]
    annotations: dict[str, str]
    at_s: float


def told(hook: Receiver) -> list[Told]:
    return [
        Told(
            post.path.rsplit("/", 1)[1],
            alert["labels"]["alertname"],
            alert["status"],
            alert["labels"],
            alert["annotations"],
            post.at_s,
        )
        for post in list(hook.received)
        for alert in json.loads(post.body)["alerts"]
    ]


def first(hook: Receiver, name: str, state: str, **labels: str) -> Told | None:
    return next(
        (
            each
            for each in told(hook)
            if (each.name, each.state) == (name, state) and labels.items() <= each.labels.items()
        ),
        None,
    )


def waited(hook: Receiver, name: str, state: str, within_s: float, **labels: str) -> Told:
    found = eventually(lambda: first(hook, name, state, **labels), within_s, f"{name} {state}", every_s=0.1)
    assert found is not None
    return found


@contextmanager
def asking(legato: Legato, model: str) -> Iterator[None]:
    """Requests one after the other, whatever comes of them."""
    over = threading.Event()

    def ask() -> None:
        number = 0
        while not over.wait(0.3):
            number += 1
            with RawClient(legato.data, timeout_s=10) as client:
                # The second of them comes when the counter has been scraped: it is seen to grow.
                plan = LATE if number in (2, 20) else SHORT
                client.send(plan.request(f"{model}{number}", model))
                client.response()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(15)


@dataclass(frozen=True)
class Scene:
    """Everything that runs."""

    one: Pacer
    two: Pacer
    legato: Legato
    hook: Receiver
    manager: Alertmanager
    server: Prometheus


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    files = [faster(file, tmp_path_factory.mktemp("rules")) for file in (RECORDING, ALERTS)]
    with ExitStack() as stack:
        one, two = stack.enter_context(pacer()), stack.enter_context(pacer())
        legato = stack.enter_context(serve(config=settings(one, two)))
        hook = stack.enter_context(receiver())
        manager = stack.enter_context(alertmanager(hook.url, config=routes_to(hook.url)))
        server = stack.enter_context(prometheus(rules=files, alertmanager=manager.url, legato=legato.admin))
        yield Scene(one, two, legato, hook, manager, server)


def test_a_planted_incident_pages_and_is_resolved(scene: Scene) -> None:
    with ExitStack() as stack:
        for number in range(STREAMS):
            client = stack.enter_context(RawClient(scene.legato.data, timeout_s=120))
            client.send(LONG.request(f"long{number}", "tiny"))
        stack.enter_context(asking(scene.legato, "big"))
        eventually(lambda: scene.server.one("sum(group:legato_in_flight:sum)") >= STREAMS, 20, "streams seen")
        waited(scene.hook, "LegatoWatchdog", "firing", 20)
        late = 'group:legato_late:ratio1m{backend="two", model="big", slo="chat"}'
        eventually(lambda: 0 < scene.server.one(late) < 0.25, 30, "one late stream among many", every_s=0.2)
        assert {(each.to, each.name) for each in told(scene.hook)} == {("dead-mans-switch", "LegatoWatchdog")}

        os.kill(scene.one.pid, SIGSTOP)
        try:
            scene.two.process.kill()
            begun_s = time.monotonic()
            stalled = waited(scene.hook, "LegatoStalled", "firing", WITHIN_S)
            down = waited(scene.hook, "LegatoBackendDown", "firing", WITHIN_S)
        finally:
            os.kill(scene.one.pid, SIGCONT)
        over = waited(scene.hook, "LegatoStalled", "resolved", 30)
    after_s = {each.name: round(each.at_s - begun_s, 1) for each in (stalled, down)}
    print(f"told after {after_s} s; resolved {over.at_s - begun_s:.1f} s after the start")
    assert max(after_s.values()) <= WITHIN_S
    group = {"backend": "one", "model": "tiny", "slo": "chat"}
    assert stalled.to == down.to == over.to == "pager"
    assert stalled.labels == {"alertname": "LegatoStalled", "severity": "page", "job": "legato", **group}
    assert stalled.annotations == {
        "summary": "tiny on one (chat): 100% of the streams in flight stand still",
        "description": f"100% of the {STREAMS} requests in flight for tiny on one wait for a token that "
        "should have come.",
        "runbook_url": "https://runbooks.invalid/legato/stalled.md",
    }
    assert down.labels == {
        "alertname": "LegatoBackendDown",
        "severity": "page",
        "job": "legato",
        "backend": "two",
    }
    assert down.annotations["description"] == "1 of 1 Legatos cannot connect to two."
    # The right ones, and nobody else: of the first backend nothing but the stall.
    others = {each.name for each in told(scene.hook) if each.labels.get("backend") == "one"}
    assert others == {"LegatoStalled"}


def test_every_rule_was_evaluated_without_a_complaint(scene: Scene) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in scene.server.ask("rules")["groups"] for rule in group["rules"]]

    assert len(rules()) > 50
    eventually(lambda: all(rule["health"] != "unknown" for rule in rules()), 20, "every rule", every_s=0.1)
    assert [rule["name"] for rule in rules() if rule["health"] != "ok" or rule.get("lastError")] == []
    assert "err=" not in scene.server.log


def test_what_runbooks_ask_for_is_answered(scene: Scene) -> None:
    api = scene.legato.json("/openapi.json")
    names = {name for each in api["components"]["schemas"].values() for name in each.get("properties", ())}
    asked = 0
    for page in PAGES.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for path in re.findall(r"\$LEGATO(/api/[\w/]+)", text):
            assert {path, re.sub(r"/ID$", "/{id}", path)} & set(api["paths"]), (page.name, path)
        for program in re.findall(r"jq '(.+?)'", text):
            for fields in re.findall(r"[{.]([\w, .]+)", program):
                found = {name for name in re.split(r"\W+", fields) if name and name != "not"}
                assert found - {"requests", "groups", "backends"} <= names, (page.name, found - names)
        for query in re.findall(r"```promql\n(.*?)```", text, re.DOTALL):
            scene.server.now(query)
            asked += 1
    assert asked >= 8


def test_a_backend_that_is_down_holds_back_what_it_explains(scene: Scene) -> None:
    def alert(name: str, **labels: str) -> dict[str, Any]:
        return {"labels": {"alertname": name, "severity": "page", "job": "other", **labels}}

    posted = [
        alert("LegatoBackendDown", backend="gone"),
        *(alert(name, backend="gone", model="m", slo="s") for name in ("LegatoErrors", "LegatoStalled")),
        alert("LegatoErrors", backend="well", model="m", slo="s"),
        alert("LegatoBurnRate", slo="s", window="1h/5m"),
        alert("LegatoBurnRate", slo="s", window="3d/6h"),
    ]
    posted[-1]["labels"]["severity"] = "ticket"
    request = urllib.request.Request(
        f"{scene.manager.url}/api/v2/alerts",
        json.dumps(posted).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200

    def held() -> set[tuple[str, str]]:
        return {
            (each["labels"]["alertname"], each["labels"].get("backend") or each["labels"]["window"])
            for each in scene.manager.alerts()
            if each["labels"].get("job") == "other" and each["status"]["inhibitedBy"]
        }

    wanted = {("LegatoErrors", "gone"), ("LegatoStalled", "gone"), ("LegatoBurnRate", "3d/6h")}
    eventually(lambda: held() == wanted, 10, "what is held back")
