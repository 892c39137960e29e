"""An arm whose worst requests would be in no metric: they hang, or are answered by what is no stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.e2e.test_experiment_trust import alarms, config_of, metric, of_arms, view
from tests.helpers.procs import Legato, eventually, serve
from tests.helpers.rawclient import CHAT, STREAMED_CHAT, RawClient, post
from tests.helpers.upstream import (
    Connection,
    Request,
    Script,
    chat_stream,
    json_response,
    respond,
    scripted,
    serve_forever,
)

REQUESTS = 600
ANSWER = chat_stream(["a", "b"])
UNLUCKY = ("X-Unlucky", "1")


async def hang_now_and_then(conn: Connection, request: Request) -> None:
    """As a server does that has lost some of its requests: those that are marked are never answered."""
    if b"x-unlucky" in request.raw.lower():
        await conn.client_gone()
    else:
        await conn.send(ANSWER)


@contextmanager
def experiment(canary: Script, **more: Any) -> Iterator[Legato]:
    with ExitStack() as stack:
        stable, other = stack.enter_context(scripted(respond(ANSWER))), stack.enter_context(scripted(canary))
        config = config_of(stable.url, other.url)
        config["slos"] = [{"name": "chat", "ttft": "2s", "tbt": "5s"}]
        config["experiment"] |= {"margin": "10%", **more}
        yield stack.enter_context(serve(config=config))


@contextmanager
def asked(legato: Legato, unlucky: int) -> Iterator[int]:
    """Requests, one after the other; those that are marked (one in ``unlucky``) are waited for by nobody,
    and stay open until the end: how many they are."""
    with ExitStack() as waiting:
        client = waiting.enter_context(RawClient(legato.data))
        for number in range(REQUESTS):
            if unlucky and number % unlucky == 0:
                waiting.enter_context(RawClient(legato.data)).send(post(CHAT, STREAMED_CHAT, UNLUCKY))
            else:
                client.send(post(CHAT, STREAMED_CHAT))
                assert client.response().status == 200
        yield len(range(0, REQUESTS, unlucky)) if unlucky else 0


def codes(told: dict[str, Any], name: str) -> set[str]:
    return {reason["code"] for reason in metric(told, name)["reasons"]}


@pytest.mark.parametrize("unlucky", [0, 10])
def test_an_arm_that_never_answers_one_in_ten_is_not_called_equivalent(unlucky: int) -> None:
    """All that it answered was answered well, and all that it did not is in flight, for ten minutes more."""
    with experiment(serve_forever(hang_now_and_then)) as legato, asked(legato, unlucky) as marked:

        def settled() -> dict[str, Any] | None:
            told = view(legato)
            open_ = [told[arm]["assigned"] - told[arm]["recorded"] for arm in ("control", "candidate")]
            done = sum(of_arms(told, "assigned")) == REQUESTS and open_[0] == 0
            return told if done and told["candidate"]["overdue"] == open_[1] else None

        told = eventually(settled, 30, "all that was answered is booked, the rest is overdue", 0.2)
        assert told is not None
        hung = told["candidate"]["overdue"]
        assert 0.2 * marked <= hung <= 0.8 * marked
        assert alarms(told) == []
        assert (told["verdict"], "overdue:share" in codes(told, "good")) == (
            ("undecided", True) if unlucky else ("equivalent", False)
        )
        if unlucky:
            assert "requests that are overdue and have not ended are more than 1%" in told["headline"]
            assert told["control"]["overdue"] == 0


def test_an_arm_that_answers_json_where_a_stream_was_asked_for_is_in_no_verdict() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 900, "total_tokens": 905}
    choice = {"index": 0, "message": {"role": "assistant", "content": "a b"}, "finish_reason": "stop"}
    whole = {"id": "1", "object": "chat.completion", "model": "tiny", "choices": [choice], "usage": usage}
    with experiment(respond(json_response(whole))) as legato, asked(legato, 0):
        eventually(lambda: sum(of_arms(view(legato), "recorded")) == REQUESTS, 30, "all of them", 0.2)
        told = view(legato)
        assert {each["verdict"] for each in told["metrics"]} == {"undecided"}
        assert {"unmeasured:share", "unmeasured:differs"} <= codes(told, "good")
        assert metric(told, "normalized_latency")["candidate"] is None, "900 tokens at once are no speed"
