"""What Alertmanager is sent, by its OpenAPI document, and what the real one makes of it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given

from proxy.control.alerts.notice import Message
from proxy.control.notify.alertmanager import alert, alert_name
from proxy.control.notify.base import Origin, Outcome
from proxy.control.notify.build import build
from proxy.control.notify.lane import pause
from proxy.control.notify.sender import Sender
from proxy.settings.notify import Alertmanager, Notifier
from tests.control.notify.jsonschema import problems
from tests.control.notify.notices import BORN, MESSAGES, ODD, SPIKE, S, message
from tests.helpers.alertmanager import Alertmanager as Server
from tests.helpers.alertmanager import alertmanager
from tests.helpers.procs import eventually
from tests.helpers.receiver import Receiver, receiver, status

# From https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml: postableAlerts
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
DATE = {"type": "string", "format": "date-time", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$"}
POSTABLE = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "labels": LABELS,
            "annotations": LABELS,
            "generatorURL": {"type": "string", "format": "uri", "pattern": r"^https?://\S+$"},
            "startsAt": DATE,
            "endsAt": DATE,
        },
        "required": ["labels"],
        "additionalProperties": False,
    },
}
LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@ODD
@given(MESSAGES)
def test_whatever_is_told_is_as_its_document_and_its_data_model_say(told: Message) -> None:
    made = json.loads(json.dumps([alert(notice) for notice in told.notices]))
    assert problems(made, POSTABLE) == []
    for each in made:
        assert all(LABEL_NAME.fullmatch(name) for name in each["labels"])
        assert all(each["labels"].values()), "an empty label is none"
        assert each["labels"]["alertname"].startswith("Legato")
        assert each.get("endsAt", "9") >= each["startsAt"]


def test_what_it_is_told() -> None:
    assert alert(SPIKE) == {
        "labels": {
            "alertname": "LegatoSpike",
            "severity": "page",
            "backend": "vllm",
            "model": "llama",
            "slo": "chat",
        },
        "annotations": {
            "summary": SPIKE.summary,
            "description": "value 0.41, threshold 0.25, requests 312, baseline 0.03; "
            "since 2026-01-02T03:03:45.000Z, told by gpu-7",
            "runbook_url": "https://example.com/runbooks/spike.md",
            "worst": "01J0WORST1",
            "incident": "01J0INCIDENT",
        },
        "startsAt": "2026-01-02T03:04:05.000Z",
        "generatorURL": "http://gpu-7:9464/api/alerts",
    }


def test_a_runbook_that_is_a_path_is_no_url() -> None:
    (notice,) = message(1, runbook="deploy/runbooks/spike.md").notices
    told = alert(notice)["annotations"]
    assert (told["runbook"], "runbook_url" in told) == ("deploy/runbooks/spike.md", False)


def test_an_end_never_lies_before_its_beginning() -> None:
    """Nor in the future, by a clock that was set back: Alertmanager would let it fire until then."""
    (over,) = message(1, state="resolved", resolved_unix_ns=BORN - 5 * S).notices
    assert alert(over)["endsAt"] == alert(over)["startsAt"] == "2026-01-02T03:04:00.000Z"


@pytest.mark.parametrize(
    ("rule", "name"),
    [("spike", "LegatoSpike"), ("burn_rate", "LegatoBurnRate"), ("backend_down", "LegatoBackendDown")],
)
def test_names_are_those_of_the_rules_for_prometheus(rule: str, name: str) -> None:
    assert alert_name(rule) == name


@pytest.mark.parametrize("base", ["", "/", "/base", "/base/"])
def test_a_base_url_may_have_a_path_and_a_token_goes_with_it(base: str) -> None:
    with receiver() as server:
        told = {"url": f"http://{server.where}{base}", "token": "t0k3n"}
        notifier = build(
            Notifier(alertmanager=Alertmanager.model_validate(told)), Origin("gpu-7", "1.2"), lambda: 0
        )
        assert asyncio.run(notifier.tell(message())).taken
        (got,) = server.received
    assert got.path == f"{base.rstrip('/')}/api/v2/alerts"
    assert got.headers["authorization"] == "Bearer t0k3n"


def test_many_alerts_go_in_several_requests_and_a_failure_ends_it() -> None:
    with receiver() as server:
        server.answers(status(200), status(500))
        told = Alertmanager.model_validate({"url": f"http://{server.where}"})
        notifier = build(Notifier(alertmanager=told), Origin("gpu-7", "1.2"), lambda: 0)
        outcome = asyncio.run(notifier.remind((SPIKE,) * 600))
        assert (outcome.taken, outcome.said) == (False, "answered 500")
        assert [len(json.loads(got.body)) for got in server.received] == [256, 256]


@pytest.mark.parametrize(
    ("body", "taken"),
    [
        (b"", True),
        (b'{"status":"success"}', True),
        (b"\n <!doctype html><title>log in</title>", False),
        (b"<html>" + 200_000 * b"x", False),
    ],
)
def test_a_login_page_in_front_of_it_has_told_nobody(body: bytes, taken: bool) -> None:
    with receiver() as server:
        server.answers(status(200, body))
        told = Alertmanager.model_validate({"url": f"http://{server.where}"})
        notifier = build(Notifier(alertmanager=told), Origin("gpu-7", "1.2"), lambda: 0)
        outcome = asyncio.run(notifier.tell(message()))
    said = "answered 200" if taken else "answered 200 with a page for people: no Alertmanager does"
    assert outcome == Outcome(taken=taken, said=said)


# ---------------------------------------------------------------- the real one


def now_ns() -> int:
    return int(datetime.now(UTC).timestamp() * S)


COUNTS = {"sent": 1, "failed": 0, "given_up": 0}


def sender(url: str, host: str, **more: Any) -> Sender:
    told = Notifier(alertmanager=Alertmanager.model_validate({"url": url}))
    clock = {"monotonic_ns": now_ns}
    return Sender((told,), instance=host, version="1.2", unix_ns=now_ns, **{**clock, **more})


def tell(url: str, **messages: Message) -> None:
    """Each host tells its message, as a sender at its end does."""

    async def go() -> None:
        for host, each in messages.items():
            one = sender(url, host)
            one.send(each)
            await one.close(5.0)
            assert one.counts()["alertmanager", "sent"] == 1, one.states()

    asyncio.run(go())


def paged(pager: Receiver, state: str) -> list[dict[str, Any]]:
    """The alerts of what Alertmanager told its webhook."""
    told = [json.loads(got.body) for got in pager.received]
    return [each for one in told for each in one["alerts"] if each["status"] == state]


def firing(host: str, key: str = "a") -> Message:
    begun = now_ns() - 5 * S
    return message(1, key, host=host, since_unix_ns=begun, fired_unix_ns=begun, at_unix_ns=begun)


@pytest.mark.parametrize("prefix", ["", "/base"])
def test_the_real_one_tells_that_it_fires_once_for_two_hosts_and_that_it_is_over(prefix: str) -> None:
    with receiver() as pager, alertmanager(pager.url, prefix=prefix) as server:
        one, other = firing("gpu-1"), firing("gpu-2")
        tell(server.url, gpu1=one, gpu2=other)
        pager.wait(1, 15)
        (known,) = server.alerts()
        assert known["labels"]["alertname"] == "LegatoSpike"
        assert known["generatorURL"] == SPIKE.url
        (page,) = paged(pager, "firing")
        assert page["labels"]["backend"] == "vllm"
        assert page["annotations"]["worst"] == "01J0WORST1"

        over = message(
            2, "a", state="resolved", fired_unix_ns=one.notices[0].fired_unix_ns, resolved_unix_ns=now_ns()
        )
        tell(server.url, gpu1=over)
        eventually(lambda: paged(pager, "resolved"), 15, "the end")
        assert server.alerts() == []
        assert len(paged(pager, "firing")) == 1, "two hosts, one page"
        assert len(paged(pager, "resolved")) == 1


def told_s(server: Server) -> float:
    """When Alertmanager was told of its one alert last."""
    (known,) = server.alerts()
    return datetime.fromisoformat(known["updatedAt"]).timestamp()


def test_the_real_one_is_reminded_while_it_fires_and_forgets_after() -> None:
    """Its ``resolve_timeout`` is 2 s, our time goes a hundred times as fast: it is reminded every 0.45 s."""

    async def hasty(event: asyncio.Event, seconds: float | None) -> None:
        await pause(event, None if seconds is None else seconds / 100)

    async def go(url: str) -> None:
        one = sender(url, "gpu-1", pause=hasty, monotonic_ns=lambda: 100 * time.monotonic_ns())
        task = asyncio.ensure_future(one.run())
        one.send(firing("gpu-1"))
        await asyncio.to_thread(pager.wait, 1, 15)
        first = told_s(server)
        await asyncio.to_thread(eventually, lambda: told_s(server) > first + 3, 15, "reminders")
        assert paged(pager, "resolved") == []
        one.hold(())
        await asyncio.to_thread(eventually, lambda: paged(pager, "resolved"), 15, "that it forgets")
        task.cancel()
        await one.close(0.5)
        assert one.counts() == {("alertmanager", each): n for each, n in COUNTS.items()}

    with receiver() as pager, alertmanager(pager.url, resolve_timeout="2s") as server:
        asyncio.run(go(server.url))
        assert len(paged(pager, "firing")) == 1


def test_the_real_one_refuses_nothing_that_we_send() -> None:
    odd = [
        message(1, labels={"a b": "x", "1st": "y", "alertname": "mine", "": "z", "empty": ""}),
        message(1, url="not a url", summary="<&>\n😀", worst=()),
        message(1, since_unix_ns=0, fired_unix_ns=0),
        message(1, state="resolved", resolved_unix_ns=0),
    ]
    with receiver() as pager, alertmanager(pager.url) as server:
        for each in odd:
            tell(server.url, host=each)
