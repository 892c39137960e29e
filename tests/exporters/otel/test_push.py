"""Metrics on their way to a real collector: one that takes them, hangs, is away, refuses."""

from __future__ import annotations

import asyncio
import gzip
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as service_grpc

from proxy.config import Otel
from proxy.control.genai import GenAi
from proxy.control.labels import GroupCap
from proxy.control.settle import settle
from proxy.control.snapshot import Snapshot
from proxy.exporters.otel import push as module
from proxy.exporters.otel.metrics import metrics_data
from proxy.exporters.otel.push import MetricsPush
from proxy.link import BackendSpec
from tests.control.facts import at, streamed
from tests.exporters.pictures import everything, large, snapshot
from tests.helpers.otlp import METRICS, Receiver, receiver
from tests.helpers.procs import eventually, free_port

S = 1_000_000_000
MS = 1_000_000


def otel(endpoint: str, **fields: Any) -> Otel:
    """Settings as they stand after checking, also some that no file may say (more often than a second)."""
    return Otel(endpoint=endpoint).model_copy(update={"timeout": 2 * S} | fields)


async def until(look: Callable[[], bool]) -> None:
    """Let the loop go on until it is so."""
    while not look():  # noqa: ASYNC110  (what is awaited happens in threads)
        await asyncio.sleep(0.001)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What reaches the log: pytest listens to loggers, too, that say nothing to anybody else."""
    return [record.getMessage() for record in caplog.records if record.name == "legato.control"]


def push_to(endpoint: str, picture: Snapshot | None = None, **fields: Any) -> MetricsPush:
    held = snapshot() if picture is None else picture
    return MetricsPush(otel(endpoint, **fields), lambda: held, instance="host-1", version="1.2.3", environ={})


def failures(push: MetricsPush) -> int:
    return push.failures()["otlp_metrics"]


def ended(push: MetricsPush) -> None:
    """Wait until no export is out."""
    eventually(lambda: push._out is not None and not push._out.is_alive(), what="the end of an export")


def run(job: Any) -> Any:
    return asyncio.run(job)


# ---------------------------------------------------------------- a collector that takes them


def test_a_collector_gets_the_picture_and_who_speaks() -> None:
    with receiver() as collector:
        push = push_to(collector.url, everything(), attributes={"deployment.environment.name": "test"})
        push.begin()
        (metric,) = collector.wait_metrics("legato.requests")
        assert len(metric.points) == 3 * 7
        assert metric.scope == "legato"
        assert metric.resource["service.name"] == "legato"
        assert metric.resource["service.instance.id"] == "host-1"
        assert metric.resource["service.version"] == "1.2.3"
        assert metric.resource["deployment.environment.name"] == "test"
        run(push.close(2))
        assert failures(push) == 0


def test_it_exports_every_so_often_and_once_more_at_the_end() -> None:
    shown = count(1)

    async def job(collector: Receiver) -> None:
        push = MetricsPush(
            otel(collector.url, every=20 * MS),
            lambda: replace(snapshot(), workers=next(shown)),
            instance="host-1",
            version="1",
            environ={},
        )
        running = asyncio.ensure_future(push.run())
        await until(lambda: len(collector.metrics("legato.workers")) >= 3)
        running.cancel()
        before = next(shown)
        await push.close(2)
        told = [metric.points[0].as_int for metric in collector.metrics("legato.workers")]
        assert told[:3] == [1, 2, 3]
        assert told[-1] == before + 1
        push.begin()  # it is over: nothing more goes out, or is tried
        await push._ended(2)
        assert len(collector.metrics("legato.workers")) == len(told)
        assert failures(push) == 0

    with receiver() as collector:
        run(asyncio.wait_for(job(collector), 20))


def test_headers_and_compression_are_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    keys = tmp_path / "headers"
    keys.write_text("Authorization: Bearer sk-1\n")
    with receiver() as collector:
        run(push_to(collector.url, headers_file=str(keys)).close(2))
        (request,) = collector.requests
        assert request.path == METRICS
        assert request.headers["authorization"] == "Bearer sk-1"
        assert request.headers["content-encoding"] == "gzip"
        assert len(gzip.compress(request.raw)) < len(request.raw)


def test_calls_of_models_go_with_it() -> None:
    genai = GenAi(GroupCap(), lambda: (BackendSpec("default", "http://vllm:8000"),))
    genai([settle(streamed(at(10), at(30), end_ms=40), "host-1")])
    with receiver() as collector:
        push = MetricsPush(
            otel(collector.url),
            snapshot,
            instance="host-1",
            version="1",
            called=genai.freeze,
            environ={},
        )
        run(push.close(2))
        (metric,) = collector.metrics("gen_ai.client.operation.duration")
        assert (metric.unit, metric.points[0].count, metric.points[0].sum) == ("s", 1, 0.04)


class _Grpc(service_grpc.MetricsServiceServicer):
    def __init__(self) -> None:
        self.names: list[str] = []

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_metrics:
            self.names += [metric.name for scope in resource.scope_metrics for metric in scope.metrics]
        return service.ExportMetricsServiceResponse()


@contextmanager
def grpc_receiver() -> Iterator[tuple[_Grpc, str]]:
    held = _Grpc()
    server = grpc.server(ThreadPoolExecutor(1))
    service_grpc.add_MetricsServiceServicer_to_server(held, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield held, f"http://127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def test_over_grpc_too() -> None:
    with grpc_receiver() as (held, url):
        push = push_to(url, everything(), protocol="grpc", timeout=10 * S)
        run(push.close(10))
        assert failures(push) == 0
        assert "legato.ttft" in held.names


# ---------------------------------------------------------------- one that does not


def test_a_collector_that_hangs_delays_nothing_and_rounds_are_skipped_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    taken = count()

    async def job(collector: Receiver) -> float:
        push = MetricsPush(
            otel(collector.url, every=10 * MS, timeout=60 * S),
            lambda: replace(large(64), workers=next(taken)),
            instance="host-1",
            version="1",
            environ={},
        )
        running = asyncio.ensure_future(push.run())
        await until(lambda: failures(push) >= 5 and collector.attempts > 0)
        running.cancel()
        started = time.monotonic()
        await push.close(0.2)
        return time.monotonic() - started

    caplog.set_level(logging.INFO)
    with receiver() as collector:
        collector.hang()
        took_s = run(asyncio.wait_for(job(collector), 30))
        assert 0.15 < took_s < 1.5
        assert collector.attempts == 1
        assert next(taken) == 1  # of the rounds that were skipped no picture was taken
    assert said(caplog) == ["metrics cannot be exported (told once): the export before has not ended"]


def test_what_a_collector_missed_comes_with_the_next_export(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shown = count(10, 5)
    with receiver() as collector:
        push = MetricsPush(
            otel(collector.url, timeout=100 * MS),
            lambda: replace(snapshot(), dropped={"facts": next(shown)}),
            instance="host-1",
            version="1",
            environ={},
        )
        collector.answer(503)
        push.begin()
        ended(push)
        assert failures(push) == 1
        collector.answer(200)
        run(push.close(2))
        (metric,) = collector.metrics("legato.dropped")
        assert max(point.as_int for point in metric.points) == 15
        assert failures(push) == 1
    assert said(caplog)[1] == "metrics are exported again; 1 exports have failed so far"


def test_one_that_is_away_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    push = push_to(f"http://127.0.0.1:{free_port()}", timeout=200 * MS)
    for _ in range(3):
        push.begin()
        ended(push)
    assert failures(push) == 3
    (sentence,) = said(caplog)
    assert sentence.startswith("metrics cannot be exported (told once): Failed to export metrics batch")


def test_the_last_export_waits_for_the_one_before() -> None:
    async def job(collector: Receiver) -> None:
        push = push_to(collector.url, timeout=60 * S)
        push.begin()
        await until(lambda: collector.attempts == 1)
        closing = asyncio.ensure_future(push.close(10))
        await asyncio.sleep(0)
        collector.answer(200)
        await closing
        assert (collector.attempts, failures(push)) == (2, 0)

    with receiver() as collector:
        collector.hang()
        run(asyncio.wait_for(job(collector), 20))


def test_a_setting_that_cannot_be_used_harms_nothing_else(tmp_path: Path) -> None:
    push = push_to("http://127.0.0.1:1", headers_file=str(tmp_path / "missing"))
    push.begin()
    run(push.close(1))
    assert failures(push) == 1


def test_a_picture_that_cannot_be_taken_is_a_failure_and_the_next_one_is_taken() -> None:
    pictures = iter([snapshot()])
    with receiver() as collector:
        push = MetricsPush(otel(collector.url), pictures.__next__, instance="host-1", version="1", environ={})
        push.begin()
        collector.wait_metrics("legato.workers")
        ended(push)
        push.begin()  # StopIteration: whoever takes pictures goes on
        assert failures(push) == 1


def test_a_round_without_a_thread_to_be_had_is_a_failure_and_the_next_one_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with receiver() as collector:
        push = push_to(collector.url)
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", none_left)
            push.begin()
        assert failures(push) == 1
        push.begin()
        collector.wait_metrics("legato.workers")
        ended(push)
        assert failures(push) == 1


# ---------------------------------------------------------------- cost


def test_the_picture_is_taken_in_the_loop_and_all_else_happens_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: dict[str, set[int]] = {"taken": set(), "built": set(), "sent": set()}

    def noted(what: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            threads[what].add(threading.get_ident())
            return do(*arguments, **named)

        return call

    monkeypatch.setattr(module, "metrics_data", noted("built", metrics_data))
    with receiver() as collector:
        push = MetricsPush(
            otel(collector.url),
            noted("taken", snapshot),
            called=noted("taken", tuple),
            instance="host-1",
            version="1",
            environ={},
        )
        assert push._exporter is not None
        monkeypatch.setattr(push._exporter, "export", noted("sent", push._exporter.export))
        run(push.close(5))
        assert collector.metrics("legato.workers")
    assert threads["taken"] == {threading.get_ident()}
    assert threads["built"] == threads["sent"]
    assert threads["built"].isdisjoint(threads["taken"])
