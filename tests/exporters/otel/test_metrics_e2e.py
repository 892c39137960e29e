"""A whole Legato that exports metrics: the last export has what the page had, exemplars lead to its spans."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client.openmetrics import parser

from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.otlp import Receiver, attributes_of, receiver
from tests.helpers.procs import Legato, eventually, serve
from tests.helpers.rawclient import RawClient, post
from tests.helpers.upstream import SSE_HEAD, Connection, Request, chat_events, scripted, serve_forever

CHATS = 3


async def _answer(conn: Connection, _: Request) -> None:
    events = b"".join(chunk(event) for event in chat_events(["one", "two", "three"]))
    await conn.send(SSE_HEAD + events + LAST_CHUNK)


def chat(legato: Legato) -> None:
    """One streamed chat to its end."""
    body = json.dumps({"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "x"}]})
    with RawClient(legato.data) as client:
        client.send(post("/v1/chat/completions", body.encode()))
        client.read_into(client.begin())


@contextmanager
def exporting(collector: Receiver, every: str) -> Iterator[Legato]:
    """Legato before a server of chats, with all traces kept."""
    otel = {"endpoint": collector.url, "every": every, "traces": {"ratio": 1}}
    with (
        scripted(serve_forever(_answer)) as upstream,
        serve(upstream.url, config={"otel": otel}) as legato,
    ):
        yield legato


def booked(legato: Legato) -> bool:
    return legato.metrics().value("legato_requests_total", outcome="completed") == CHATS


def exemplars(legato: Legato) -> set[tuple[str, str]]:
    """Trace and span of every exemplar on the OpenMetrics page."""
    asked = urllib.request.Request(
        f"{legato.admin_url}/metrics", headers={"accept": "application/openmetrics-text"}
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        text = answer.read().decode()
    families: Any = parser.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    return {
        (sample.exemplar.labels["trace_id"], sample.exemplar.labels["span_id"])
        for family in families
        for sample in family.samples
        if sample.exemplar is not None
    }


def test_the_last_export_holds_everything_and_exemplars_lead_to_exported_spans() -> None:
    with receiver() as collector:
        with exporting(collector, "1h") as legato:
            for _ in range(CHATS):
                chat(legato)
            eventually(lambda: booked(legato), what="the bookings")
            shown = exemplars(legato)
            assert collector.metrics() == []  # not yet: what comes, comes at the end
        requests = collector.metrics("legato.requests")[-1]
        completed = [
            point.as_int
            for point in requests.points
            if attributes_of(point.attributes)["outcome"] == "completed"
        ]
        assert completed == [CHATS]
        (duration,) = collector.metrics("gen_ai.client.operation.duration")[-1].points
        about = attributes_of(duration.attributes)
        assert (about["gen_ai.operation.name"], about["gen_ai.request.model"]) == ("chat", "tiny")
        assert duration.count == CHATS
        (first,) = collector.metrics("gen_ai.client.operation.time_to_first_chunk")[-1].points
        (chunks,) = collector.metrics("gen_ai.client.operation.time_per_output_chunk")[-1].points
        assert chunks.count == 2 * CHATS
        spans = {(span.trace_id, span.span_id) for span in collector.spans()}
        assert shown
        assert shown <= spans
        (metric,) = collector.metrics("legato.ttft")
        told = {(each.trace_id.hex(), each.span_id.hex()) for each in metric.points[0].exemplars}
        assert told
        assert told <= spans
        for point in (duration, first):
            told = {(each.trace_id.hex(), each.span_id.hex()) for each in point.exemplars}
            assert told
            assert told <= spans


def test_a_collector_that_hangs_is_counted_and_holds_up_neither_requests_nor_the_end() -> None:
    with receiver() as collector:
        collector.hang()
        with exporting(collector, "1s") as legato:
            eventually(
                lambda: legato.metrics().value("legato_export_failures_total", exporter="otlp_metrics") >= 1,
                10,
                "a round that was skipped",
                every_s=0.1,
            )
            for _ in range(CHATS):
                chat(legato)
            eventually(lambda: booked(legato), what="the bookings")
            assert legato.stderr.count("metrics cannot be exported (told once)") == 1
            begun = time.monotonic()
        assert time.monotonic() - begun < 6
