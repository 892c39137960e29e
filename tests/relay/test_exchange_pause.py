"""A request whose client was slow to the last: the connection that carried it carries the next one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proxy.relay import shelf
from tests.relay.carried import FakeClient, answering, carrier, listening

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def test_a_connection_that_was_paused_at_the_end_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "REST_NS", 0)
    accepted: list[str] = []

    async def script() -> None:
        async with listening(answering(ANSWER, accepted)) as backend:
            at = carrier(tmp_path, backend, backend, ratio=0.0)
            first = await asyncio.wait_for(at.ask(FakeClient(at.worker, slow=True)), 30)
            assert first.blocked, "it was paused by the read that ended the answer"
            second = await asyncio.wait_for(at.ask(), 30)
            assert second.end == "complete"

    asyncio.run(script())
    assert len(accepted) == 1, "on the same connection"
