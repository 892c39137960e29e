"""Slack's payload against its documented limits, and Slack's answers.

The schema is written from https://docs.slack.dev/reference/block-kit/blocks (header, section, context) and
https://docs.slack.dev/reference/block-kit/composition-objects/text-object; a message has at most 50 blocks.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from hypothesis import given

from proxy.control.alerts.notice import Message
from proxy.control.notify.base import Origin, Outcome
from proxy.control.notify.build import build
from proxy.control.notify.slack import cut, escape, payload
from proxy.settings.notify import Notifier, Slack
from tests.control.notify.jsonschema import problems
from tests.control.notify.notices import MESSAGES, ODD, message
from tests.helpers.receiver import OK, Behaviour, cut_off, receiver, status


def text_object(kinds: list[str], most: int) -> dict[str, Any]:
    only_mrkdwn = {"verbatim": {"type": "boolean"}} if "mrkdwn" in kinds else {}
    only_plain = {"emoji": {"type": "boolean"}} if "plain_text" in kinds else {}
    return {
        "type": "object",
        "properties": {
            "type": {"enum": kinds},
            "text": {"type": "string", "minLength": 1, "maxLength": most},
            **only_mrkdwn,
            **only_plain,
        },
        "required": ["type", "text"],
        "additionalProperties": False,
    }


def block(kind: str, needed: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "type": {"const": kind},
            "block_id": {"type": "string", "maxLength": 255},
            **properties,
        },
        "required": ["type", *needed],
        "additionalProperties": False,
    }


def items(most: int, of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "maxItems": most, "items": of}


SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "minLength": 1, "maxLength": 40_000},
        "blocks": items(
            50,
            {
                "anyOf": [
                    block("header", ["text"], text=text_object(["plain_text"], 150)),
                    block(
                        "section",
                        ["text"],
                        text=text_object(["mrkdwn"], 3_000),
                        fields=items(10, text_object(["mrkdwn"], 2_000)),
                    ),
                    block("context", ["elements"], elements=items(10, text_object(["mrkdwn"], 3_000))),
                ]
            },
        ),
    },
    "required": ["text", "blocks"],
    "additionalProperties": False,
}

#: What mrkdwn may hold between < and >: a link of ours, nothing else (no <!channel>, no <@U1>).
LINK = re.compile(r"<https?://[^<>|]+\|(look|runbook)>")
ENTITY = re.compile(r"&(amp|lt|gt);")


def mrkdwn(told: dict[str, Any]) -> list[str]:
    """Every text that Slack reads as markup."""
    out = [told["text"]]
    for each in told["blocks"][1:]:
        out += [
            part["text"]
            for part in [each.get("text"), *each.get("fields", ()), *each.get("elements", ())]
            if part
        ]
    return out


@ODD
@given(MESSAGES)
def test_whatever_is_told_keeps_slacks_limits_and_mentions_nobody(told: Message) -> None:
    made = json.loads(json.dumps(payload(told)))
    assert problems(made, SCHEMA) == []
    for text in mrkdwn(made):
        rest = LINK.sub("", text)
        assert "<" not in rest, text
        assert ">" not in rest, text
        assert "&" not in ENTITY.sub("", rest), text


def test_what_people_read() -> None:
    told = payload(message(1, "a"))
    header, section, context = told["blocks"]
    assert header["text"]["text"] == ":red_circle: spike firing"
    assert section["text"]["text"].startswith("41% of the requests")
    fields = [field["text"] for field in section["fields"]]
    assert "*value*\n0.41 (threshold 0.25)" in fields
    assert {"*backend*\nvllm", "*model*\nllama", "*slo*\nchat"} <= set(fields)
    assert "*since*\n2026-01-02 03:03:45 UTC" in fields
    elements = [element["text"] for element in context["elements"]]
    assert "worst requests: 01J0WORST1" in elements
    assert "<http://gpu-7:9464/api/alerts|look>" in elements
    assert "<https://example.com/runbooks/spike.md|runbook>" in elements
    assert told["text"].startswith(":red_circle: spike firing: 41%")


@pytest.mark.parametrize("runbook", ["deploy/runbooks/spike.md", "https://x.example/a|b>c"])
def test_what_is_no_plain_url_is_text(runbook: str) -> None:
    *_, context = payload(message(1, "a", runbook=runbook))["blocks"]
    assert context["elements"][-1]["text"] == f"runbook: {runbook}".replace(">", "&gt;")


@pytest.mark.parametrize(
    ("state", "severity", "sign"),
    [
        ("firing", "page", ":red_circle:"),
        ("firing", "ticket", ":large_yellow_circle:"),
        ("resolved", "page", ":large_green_circle:"),
    ],
)
def test_a_glance_tells_how_bad_it_is(state: Any, severity: str, sign: str) -> None:
    assert payload(message(1, "a", state=state, severity=severity))["text"].startswith(sign)


def test_many_alerts_are_cut_and_it_says_so() -> None:
    told = payload(message(1, *map(str, range(70))))
    assert len(told["blocks"]) <= 50
    assert told["blocks"][-1]["elements"][0]["text"] == "and 50 more"
    assert "(70 alerts)" in told["blocks"][0]["text"]["text"]


@pytest.mark.parametrize(
    ("text", "most", "out"),
    [
        ("a & b", 20, "a &amp; b"),
        ("<!channel>", 20, "&lt;!channel&gt;"),
        ("", 20, " "),
        ("abcdef", 4, "abc…"),
        ("ab&&&", 10, "ab&amp;…"),
        ("😀😀😀", 5, "😀😀…"),
    ],
)
def test_escaping_cuts_no_entity_in_two(text: str, most: int, out: str) -> None:
    assert escape(text, most) == out
    assert len(cut(text, most).encode("utf-16-le")) // 2 <= most


NOT_SLACK = "answered 200, but without Slack's 'ok'"
ANSWERS = [
    (OK, True, False, "answered 200"),
    (status(200, b"<html>log in</html>"), False, False, NOT_SLACK),
    (status(200, b""), False, False, NOT_SLACK),
    (status(200, b"<html>" + 200_000 * b"x"), False, False, NOT_SLACK),
    (status(200, b"ok" + 200_000 * b" "), False, False, NOT_SLACK),
    (cut_off(b"o"), True, False, "answered 200"),
    (cut_off(b""), True, False, "answered 200"),
    (cut_off(b"<html>log"), False, False, NOT_SLACK),
    (status(400, b"invalid_payload"), False, False, "answered 400"),
    (status(403, b"action_prohibited"), False, False, "answered 403"),
    (status(404, b"channel_not_found"), False, False, "answered 404"),
    (status(410, b"channel_is_archived"), False, False, "answered 410"),
    (status(429, b"rate_limited", Retry_After="30"), False, True, "answered 429"),
    (status(500, b"rollup_error"), False, True, "answered 500"),
]


@pytest.mark.parametrize(("behaviour", "taken", "again", "said"), ANSWERS)
def test_slacks_answers(behaviour: Behaviour, taken: bool, again: bool, said: str) -> None:
    with receiver() as slack:
        slack.answers(behaviour)
        told = Slack.model_validate({"url": slack.url})
        notifier = build(Notifier(slack=told), Origin("gpu-7", "1.2"), lambda: 0)
        outcome = asyncio.run(notifier.tell(message()))
        assert problems(json.loads(slack.received[0].body), SCHEMA) == []
    wait_ns = 30_000_000_000 if said == "answered 429" else None
    assert outcome == Outcome(taken=taken, said=said, again=again, wait_ns=wait_ns)
