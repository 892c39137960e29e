"""The webhook's document, its signature by another implementation, and a receiver that checks it."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from proxy.control.alerts.notice import Message
from proxy.control.notify.base import Origin, Outcome
from proxy.control.notify.build import build
from proxy.control.notify.reference import FILE, document
from proxy.control.notify.webhook import payload, signature
from proxy.settings.notify import Notifier, Webhook
from tests.control.notify.jsonschema import problems
from tests.control.notify.notices import BORN, MESSAGES, ODD, S, message
from tests.helpers.receiver import Received, receiver, status
from tests.helpers.tools import need

ORIGIN = Origin("gpu-7", "1.2")
SCHEMA: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))


def tell(url: str, secret: str | None, *messages: Message) -> list[Outcome]:
    told = Webhook.model_validate({"url": url, "secret": secret})
    notifier = build(Notifier(webhook=told), ORIGIN, lambda: BORN + 10 * S)

    async def go() -> list[Outcome]:
        return [await notifier.tell(each) for each in messages]

    return asyncio.run(go())


def test_the_document_is_current() -> None:
    assert FILE.read_text(encoding="utf-8") == document(), "run python -m proxy.control.notify.reference"


@ODD
@given(MESSAGES)
def test_whatever_is_told_is_as_the_document_says(told: Message) -> None:
    assert problems(json.loads(payload(told, ORIGIN)), SCHEMA) == []


def test_json_has_no_infinity() -> None:
    inf, nan = float("inf"), float("nan")
    told = json.loads(payload(message(1, value=nan, figures={"a": inf, "b": 1.0, "c": nan}), ORIGIN))
    assert (told["notices"][0]["value"], told["notices"][0]["figures"]) == (None, {"b": 1.0})


@pytest.mark.parametrize(
    "change", [{"schema": 2}, {"state": "maybe"}, {"notices": [{}]}, {"id": 3}, {"notices": None}]
)
def test_the_document_refuses_what_is_otherwise(change: dict[str, Any]) -> None:
    told = json.loads(payload(message(), ORIGIN)) | change
    assert problems(told, SCHEMA) != []


def test_what_arrives() -> None:
    with receiver() as ops:
        (outcome,) = tell(ops.url, None, message(1, "a", "b"))
        assert outcome.taken
        (got,) = ops.received
    told = json.loads(got.body)
    assert (told["schema"], told["instance"], told["version"]) == (1, "gpu-7", "1.2")
    assert (told["id"], told["rule"], told["state"]) == ("m1", "spike", "firing")
    assert [notice["key"] for notice in told["notices"]] == ["a", "b"]
    assert told["notices"][0]["worst"][0]["id"] == "01J0WORST1"
    assert got.headers["x-legato-id"] == "m1"
    assert got.headers["x-legato-timestamp"] == str(BORN // S + 10)
    assert "x-legato-signature" not in got.headers


def by_openssl(secret: str, got: Received) -> str:
    """HMAC-SHA256 by OpenSSL, which knows nothing of ours."""
    signed = got.headers["x-legato-timestamp"].encode() + b"." + got.body
    command = [need("openssl"), "dgst", "-sha256", "-hmac", secret, "-r"]
    return subprocess.run(command, input=signed, capture_output=True, check=True).stdout.split()[0].decode()


def test_the_signature_is_what_openssl_says_and_the_id_stays_over_attempts() -> None:
    with receiver() as ops:
        ops.answers(status(500), status(200))
        tell(ops.url, "correct horse", message(1), message(1))
        first, second = ops.received
    for got in (first, second):
        assert got.headers["x-legato-signature"] == f"v1={by_openssl('correct horse', got)}"
    assert first.headers["x-legato-id"] == second.headers["x-legato-id"] == "m1"


def test_another_secret_time_or_body_is_another_signature() -> None:
    right = signature(b"s", "1", b"{}")
    assert right == signature(b"s", "1", b"{}")
    assert right not in (
        signature(b"t", "1", b"{}"),
        signature(b"s", "2", b"{}"),
        signature(b"s", "1", b"{ }"),
    )


@pytest.mark.parametrize("identity", ["line\r\nX-Evil: 1", "é" * 300, ""])
def test_an_odd_id_breaks_no_header(identity: str) -> None:
    with receiver() as ops:
        (outcome,) = tell(ops.url, None, Message(identity, "spike", "firing", ()))
        assert outcome.taken
        (got,) = ops.received
    assert "x-evil" not in got.headers
    assert json.loads(got.body)["id"] == identity


def test_the_readme_shows_a_receiver_that_works() -> None:
    """The snippet is run as it stands, against a request as it came."""
    text = (Path(FILE).parent / "README.md").read_text(encoding="utf-8")
    snippet = text.split("```python\n", 1)[1].split("```", 1)[0]
    namespace: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), namespace)
    with receiver() as ops:
        tell(ops.url, "correct horse", message(1))
        (got,) = ops.received
    genuine = namespace["genuine"]
    now_s = BORN // S + 11
    assert genuine(b"correct horse", got.headers, got.body, now_s)
    assert not genuine(b"wrong", got.headers, got.body, now_s)
    assert not genuine(b"correct horse", got.headers, got.body + b" ", now_s)
    assert not genuine(b"correct horse", got.headers, got.body, now_s + 600), "a replay"
    assert not genuine(b"correct horse", {**got.headers, "x-legato-signature": "v1=00"}, got.body, now_s)
    assert not genuine(b"correct horse", {}, got.body, now_s)
    assert (
        shutil.which("openssl") is None
        or by_openssl("correct horse", got) in got.headers["x-legato-signature"]
    )
