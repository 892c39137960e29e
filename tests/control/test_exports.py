"""What leaves the host is joined where it is configured; what cannot be made or closed harms nothing else."""

from __future__ import annotations

import asyncio
import time

import pytest

from proxy.config import Config, load
from proxy.control.core import Controller
from proxy.control.exports import Exports
from proxy.exporters.otel import traces as spans
from proxy.tables import build_table
from tests.control.facts import T0, UNIX

COLLECTOR = "http://127.0.0.1:9"


def config(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Config:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load({"file": None, "flags": {"upstream": "http://127.0.0.1:1"}})


def controller(settings: Config) -> Controller:
    return Controller(
        build_table(settings, 1), instance="i", version="1", unix_ns=lambda: UNIX, monotonic_ns=lambda: T0
    )


def names(exports: Exports) -> list[str]:
    """What is to run."""
    jobs = exports.jobs()
    for _, job in jobs:
        job.close()
    return [name for name, _ in jobs]


def test_nothing_configured_is_nothing_made(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(monkeypatch)
    exports = Exports(settings, controller(settings))
    assert (exports.fleet, exports.traces, exports.metrics, names(exports)) == (None, None, None, [])
    asyncio.run(exports.close(1))


@pytest.mark.parametrize(
    ("said", "sinks"),
    [("trace_based", ["Traces", "Exemplars", "GenAi"]), ("always_off", ["Traces", "GenAi"])],
)
def test_exemplars_come_after_who_keeps_traces_and_can_be_switched_off(
    monkeypatch: pytest.MonkeyPatch, said: str, sinks: list[str]
) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR, "OTEL_METRICS_EXEMPLAR_FILTER": said}
    settings = config(monkeypatch, **variables)
    joined = controller(settings)
    Exports(settings, joined)
    assert [type(sink).__name__ for sink in joined._sinks] == sinks


def test_what_cannot_be_made_is_said_without_its_words_and_the_rest_is_made(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("SECRET")

    monkeypatch.setattr(spans, "Traces", broken)
    settings = config(monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=COLLECTOR)
    exports = Exports(settings, controller(settings))
    assert exports.traces is None
    assert names(exports) == ["otlp"]
    assert "spans: switched off until the next start: RuntimeError" in caplog.text
    assert "SECRET" not in caplog.text


@pytest.mark.alone
def test_all_are_closed_at_once_and_one_that_fails_keeps_no_other_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed: list[str] = []

    class Ends:
        async def close(self, deadline_s: float) -> None:
            await asyncio.sleep(deadline_s)
            closed.append("metrics")

    class Fails:
        async def close(self, deadline_s: float) -> None:
            raise RuntimeError("an error of ours")

    class InAThread:
        def close(self, deadline_s: float) -> None:
            time.sleep(deadline_s)
            closed.append("spans")

    settings = config(monkeypatch)
    exports = Exports(settings, controller(settings))
    monkeypatch.setattr(exports, "fleet", Fails())
    monkeypatch.setattr(exports, "metrics", Ends())
    monkeypatch.setattr(exports, "traces", InAThread())

    async def job() -> float:
        began = time.monotonic()
        await exports.close(0.3)
        return time.monotonic() - began

    assert asyncio.run(job()) < 0.59  # one behind the other: 0.6
    assert sorted(closed) == ["metrics", "spans"]
