"""The log's lines."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import given

from proxy.control.alerts.notice import Message
from proxy.control.notify.log import Log, line
from tests.control.notify.notices import MESSAGES, ODD, SPIKE, message


def test_one_line_says_it_all() -> None:
    assert line(SPIKE) == (
        "alert state=firing rule=spike severity=page backend=vllm model=llama slo=chat "
        'summary="41% of the requests of the last minute missed a deadline, 3% as a rule" value=0.41 '
        "threshold=0.25 since=2026-01-02T03:03:45Z incident=01J0INCIDENT number=0 worst=01J0WORST1 "
        "url=http://gpu-7:9464/api/alerts"
    )


@ODD
@given(MESSAGES)
def test_a_line_stays_a_line_whatever_it_holds(told: Message) -> None:
    for notice in told.notices[:4]:
        text = line(notice)
        assert len(text.splitlines()) == 1
        assert text.isascii()
        assert text.startswith(f"alert state={notice.state} rule=")


def test_what_fires_warns_and_what_is_over_informs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "legato.alerts")

    async def go() -> None:
        told = Log("log")
        assert (await told.tell(message(1, *map(str, range(60))))).taken
        assert (await told.tell(message(2, "a", state="resolved"))).taken

    asyncio.run(go())
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.WARNING] * 51 + [logging.INFO]
    assert caplog.records[50].getMessage() == "alert state=firing rule=spike and 10 more"
    assert "resolved=2026-01-02T03:05:05Z" in caplog.records[51].getMessage()
