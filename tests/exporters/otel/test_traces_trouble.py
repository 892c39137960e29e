"""Spans on their way to a receiver that refuses, is slow, hangs, or is not there; settings that are wrong."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proxy.exporters.otel.traces import EXPORTER, SPANS, Traces
from tests.exporters.otel.asked import chat
from tests.exporters.otel.sending import make, numbered
from tests.helpers.otlp import Receiver, spans_in
from tests.helpers.procs import eventually

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("fast")


# ---------------------------------------------------------------- it does not


@pytest.mark.parametrize("status", [429, 503])
def test_what_may_be_tried_again_is(collector: Receiver, status: int) -> None:
    collector.answer(status, retry_after=0.05)
    traces = make(collector.url)
    traces([chat()])
    eventually(lambda: collector.attempts >= 2)
    collector.answer()
    assert len(collector.wait_spans(2)) == 2
    traces.close(5)
    assert (traces.failures(), traces.dropped()) == ({EXPORTER: 0}, {SPANS: 0})


def test_a_refusal_loses_the_batch_and_is_told_once_each_way(collector: Receiver, told: list[str]) -> None:
    collector.answer(400)
    traces = make(collector.url)
    for number in range(1, 4):
        traces(numbered(1, number))
        eventually(lambda number=number: traces.failures() == {EXPORTER: number})  # type: ignore[misc]
    assert traces.dropped() == {SPANS: 6}
    assert collector.attempts == 3  # a 400 will be one again
    collector.answer()
    traces(numbered(2, 9))
    collector.wait_spans(4)
    eventually(lambda: len(told) == 2)
    bad, good = told
    where = f"spans to {collector.url}/v1/traces"
    why = "Failed to export spans batch code: 400, reason: Bad Request"
    assert bad == f"{where} cannot be exported (told once): {why}"
    assert good == f"{where} are exported again; 3 exports have failed so far"
    traces.close(5)


def test_a_redirect_is_no_success(collector: Receiver, told: list[str]) -> None:
    """As from http to https: the SDK neither follows it nor says so."""
    collector.answer(308)
    traces = make(collector.url)
    traces([chat()])
    eventually(lambda: traces.failures() == {EXPORTER: 1})
    eventually(lambda: "308, a redirect" in str(told))
    traces.close(5)
    assert (traces.dropped(), collector.attempts) == ({SPANS: 2}, 1)


def test_a_collector_that_is_not_there_floods_nothing(told: list[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        traces = make(f"http://127.0.0.1:{unused.getsockname()[1]}", timeout=0.2)
        for number in range(1, 4):
            traces(numbered(1, number))
            eventually(lambda number=number: traces.failures()[EXPORTER] == number)  # type: ignore[misc]
    assert len(told) == 1
    traces.close(1)
    assert traces.dropped() == {SPANS: 6}
    assert len(told) == 1  # what was lost before was told before


@pytest.mark.alone
def test_a_full_queue_drops_and_counts(collector: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue holds ten: a hung collector holds five of them in its hand."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    collector.hang()
    traces = make(collector.url, timeout=30)
    traces(numbered(2))
    eventually(lambda: collector.attempts == 1, what="the first batch in its hands")
    began = time.monotonic()
    batch = numbered(50, 100)
    traces(batch)
    assert time.monotonic() - began < 0.5
    assert traces.dropped() == {SPANS: 90}
    assert [settled.kept_span is not None for settled in batch] == [True] * 5 + [False] * 45
    collector.answer()
    assert len(collector.wait_spans(14)) == 14
    traces.close(5)
    assert traces.dropped() == {SPANS: 90}


@pytest.mark.parametrize(
    ("variables", "largest"),
    [
        ({"MAX_QUEUE_SIZE": "2"}, 2),  # smaller than a batch, which the SDK refuses
        ({"MAX_QUEUE_SIZE": "1"}, 2),  # a request has two spans
        ({"MAX_QUEUE_SIZE": "-5", "MAX_EXPORT_BATCH_SIZE": "0"}, 2),
        ({"MAX_EXPORT_BATCH_SIZE": "1"}, 1),
        ({"SCHEDULE_DELAY": "0", "MAX_EXPORT_BATCH_SIZE": "2"}, 2),
        ({"SCHEDULE_DELAY": "often", "MAX_EXPORT_BATCH_SIZE": "2"}, 2),
    ],
    ids=str,
)
def test_no_variable_of_the_batches_ends_the_spans(
    variables: dict[str, str], largest: int, monkeypatch: pytest.MonkeyPatch, collector: Receiver
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_BSP_{name}", value)
    traces = make(collector.url)
    for number in (1, 2):
        traces(numbered(1, number))
        eventually(lambda number=number: len(collector.spans()) == 2 * number)  # type: ignore[misc]
    assert max(len(spans_in(request.message)) for request in collector.requests) <= largest
    traces.close(5)
    assert (traces.failures(), traces.dropped()) == ({EXPORTER: 0}, {SPANS: 0})


def test_grpc_without_its_extra_is_said_and_harms_nothing(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    harmless(make("http://127.0.0.1:4317", protocol="grpc"), told, "legato[grpc]")


@pytest.mark.parametrize(
    ("field", "content", "words"),
    [
        ("headers_file", None, "No such file"),
        ("headers_file", "x-key: k\nno colon SECRET\n", "line 2"),
        ("ca_file", None, "invalid path"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_without_what_is_in_it(
    field: str, content: str | None, words: str, tmp_path: Path, told: list[str]
) -> None:
    if content is not None:
        (tmp_path / "file").write_text(content)
    traces = make("https://127.0.0.1:1", timeout=0.1, **{field: str(tmp_path / "file")})
    traces([chat()])
    eventually(lambda: traces.failures() == {EXPORTER: 1})
    eventually(lambda: words in str(told))
    assert "SECRET" not in str(told)
    traces.close(1)


def test_a_key_that_is_no_header_stands_in_no_log(
    collector: Receiver, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20SECRET%0Ax")
    traces = make(collector.url)
    traces([chat()])
    eventually(lambda: traces.failures() == {EXPORTER: 1})
    eventually(lambda: len(told) == 1)
    assert told[0].endswith("reason: InvalidHeader")
    traces.close(1)


def harmless(traces: Traces, told: list[str], words: str) -> None:
    """It takes what comes, counts it as dropped, said why once, and ends."""
    batch = numbered(3)
    traces(batch)
    assert traces.failures() == {EXPORTER: 1}
    assert traces.dropped() == {SPANS: 6}
    assert [settled.kept_span for settled in batch] == [None] * 3
    assert [words in line for line in told] == [True]
    traces.close(1)


def test_facts_of_another_version_cost_their_own_spans_only(collector: Receiver) -> None:
    traces = make(collector.url)
    broken = chat(trace_id="no id")
    traces([broken, chat()])
    assert len(collector.wait_spans(2)) == 2
    assert broken.kept_span is None
    assert traces.dropped() == {SPANS: 1}
    traces.close(5)


def test_keys_in_variables_are_in_no_log(
    collector: Receiver, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    """The SDK warns of a header that it cannot read, with the header."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization: Bearer SECRET")
    collector.answer(400)
    traces = make(collector.url)
    traces([chat()])
    eventually(lambda: traces.failures() == {EXPORTER: 1})
    assert "SECRET" not in str(told)
    traces.close(1)


# ---------------------------------------------------------------- the end


def test_what_is_queued_is_exported_at_the_end(
    collector: Receiver, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    traces = make(collector.url)
    traces(numbered(5))
    assert collector.spans() == []
    traces.close(5)
    assert len(collector.spans()) == 10
    assert not told
    traces(numbered(1, 50))  # too late: nobody is there any more
    assert traces.dropped() == {SPANS: 0}


def test_what_nobody_takes_at_the_end_is_told(monkeypatch: pytest.MonkeyPatch, told: list[str]) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        traces = make(url, timeout=0.2)
        traces(numbered(3))
        traces.close(30)
    assert traces.dropped() == {SPANS: 6}
    assert told[1:] == [f"spans to {url}/v1/traces: 6 had not been taken at the end"]


@contextmanager
def hung_socket() -> Iterator[str]:
    """Takes connections and says nothing, whatever protocol is spoken."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_hung_collector_delays_the_end_by_its_deadline_only(protocol: str) -> None:
    with hung_socket() as url:
        traces = make(url, timeout=60, protocol=protocol)
        traces(numbered(600))
        began = time.monotonic()
        traces.close(0.3)
        assert time.monotonic() - began < 3.0  # the SDK itself would wait 30 s
        dropped = traces.dropped()[SPANS]
        assert 1200 - 512 <= dropped <= 1200


def test_past_the_deadline_no_export_begins(collector: Receiver, told: list[str]) -> None:
    before = set(threading.enumerate())
    collector.hang()
    traces = make(collector.url, timeout=60)
    (exporting,) = set(threading.enumerate()) - before
    traces(numbered(600))
    eventually(lambda: collector.attempts == 1, what="the first batch in its hands")
    traces.close(0.05)
    collector.answer()
    exporting.join(10)
    assert (exporting.is_alive(), collector.attempts) == (False, 1)
    assert told == [f"spans to {collector.url}/v1/traces: 1200 had not been taken at the end"]
    assert traces.dropped() == {SPANS: 1200 - len(collector.spans())}


PROCESS = """
import sys, time
from tests.exporters.otel.sending import make, numbered
traces = make({url!r}, timeout=60, protocol={protocol!r})
traces(numbered(600))
time.sleep(0.2)
began = time.monotonic()
traces.close(0.3)
print("closed", time.monotonic() - began < 3.0, flush=True)
"""


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_process_ends_while_the_collector_hangs(protocol: str, tmp_path: Path) -> None:
    """No thread and no hook of the SDK's, of requests' or of gRPC's keeps the interpreter from its end."""
    with hung_socket() as url:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", PROCESS.format(url=url, protocol=protocol)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert (done.returncode, done.stdout) == (0, "closed True\n"), done.stderr
        assert "Traceback" not in done.stderr
        assert time.monotonic() - began < 25  # most of it imports; half a minute more if anything waited
