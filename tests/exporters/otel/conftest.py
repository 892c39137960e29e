"""Where spans go in tests, and what reaches a log of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.helpers.otlp import Receiver, receiver


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's own variable: batches leave after 10 ms."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What reaches the log of a process.  (``caplog`` also listens where nobody else does.)"""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    root, handler, level = logging.getLogger(), Lines(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield lines
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with receiver() as made:
        yield made
