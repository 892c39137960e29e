"""Traces over real sockets: what the upstream and the control process are told, what is left alone."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from proxy.link import (
    Ack,
    Asked,
    BackendSpec,
    Facts,
    FactsBatch,
    Frames,
    Hello,
    Match,
    SloSpec,
    Table,
    TraceIds,
    Tracing,
    decode_up,
    frame,
)
from tests.helpers.http1 import Headers
from tests.helpers.procs import Legato, free_port, serve
from tests.helpers.rawclient import RawClient, get, post, request
from tests.helpers.upstream import Request, Upstream, chat_stream, json_response, respond, scripted

OK: Final = respond(json_response({"ok": True}))
TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
SPAN: Final = "b7ad6b7169203331"
#: Other systems' headers, which are nobody's business but theirs.
OTHERS: Final = [
    ("b3", "0"),
    ("X-Cloud-Trace-Context", "105445aa7843bc8bf206b12000100000/1;o=1"),
    ("baggage", "a=1"),
]
SAMPLED: Final = f"00-{TRACE}-{SPAN}-01"


def otel(**traces: object) -> dict[str, Any]:
    """A collector that nobody runs: exporting is the control process's, and must not matter here."""
    endpoint = f"http://127.0.0.1:{free_port()}"
    return {"otel": {"endpoint": endpoint, "metrics": False, "traces": {"ratio": 1.0, **traces}}}


@contextmanager
def proxying(config: dict[str, Any]) -> Iterator[tuple[Upstream, Legato]]:
    with scripted(OK) as upstream:
        backends = {"native": {"url": upstream.url}, "httpx": {"url": upstream.url, "transport": "httpx"}}
        routes = [
            {"match": {"path": "/pulled/*"}, "backend": "httpx"},
            {"match": {"path": "*"}, "backend": "native"},
        ]
        given = {"backends": backends, "routes": routes, "exclude": ["/health"], **config}
        with serve(config=given) as legato:
            yield upstream, legato


@pytest.fixture(scope="module")
def tracing() -> Iterator[tuple[Upstream, Legato]]:
    with proxying(otel()) as both:
        yield both


def sent(upstream: Upstream, legato: Legato, raw: bytes) -> Request:
    """What the upstream got of this request."""
    before = len(upstream.requests)
    with RawClient(legato.data) as client:
        client.send(raw)
        assert client.response().status == 200
    return upstream.wait_request(before)


def parents(headers: Headers) -> list[str]:
    return [value.decode() for name, value in headers if name.lower() == b"traceparent"]


def ask(*headers: tuple[str, str], path: str = "/v1/models") -> bytes:
    return request("GET", path, [("Host", "h"), *headers])


# ---------------------------------------------------------------- what the upstream is told


def test_a_clients_trace_goes_on_in_its_place(tracing: tuple[Upstream, Legato]) -> None:
    upstream, legato = tracing
    raw = ask(*OTHERS, ("TraceParent", SAMPLED), ("tracestate", "a=1"), ("TraceState", "b=2"), ("X", "y"))
    got = sent(upstream, legato, raw)
    (value,) = parents(got.head.headers)
    version, trace_id, span, flags = value.split("-")
    assert (version, trace_id, flags) == ("00", TRACE, "01")
    assert span != SPAN
    assert got.raw == raw.replace(SAMPLED.encode(), value.encode())
    assert legato.record(trace_id=TRACE)["path"] == "/v1/models"


@pytest.mark.parametrize("flags", ["00", "01", "02", "03"])
def test_the_clients_decision_goes_on(tracing: tuple[Upstream, Legato], flags: str) -> None:
    got = sent(*tracing, ask(("traceparent", f"00-{TRACE}-{SPAN}-{flags}")))
    assert parents(got.head.headers)[0].split("-")[1::2] == [TRACE, flags]


def test_a_trace_begins_here_where_there_is_none(tracing: tuple[Upstream, Legato]) -> None:
    upstream, legato = tracing
    raw = ask(*OTHERS, path="/v1/begins")
    got = sent(upstream, legato, raw)
    (value,) = parents(got.head.headers)
    assert got.raw == raw[:-2] + b"traceparent: " + value.encode() + b"\r\n\r\n"
    assert value.endswith("-01")  # the ratio is 1
    assert legato.record(path="/v1/begins")["trace_id"] == value.split("-")[1]


@pytest.mark.parametrize(
    "wrong",
    [
        [("traceparent", f"00-{'0' * 32}-{SPAN}-01")],
        [("traceparent", SAMPLED + "-more")],
        [("traceparent", SAMPLED), ("Traceparent", SAMPLED)],
        [],
    ],
)
def test_what_is_invalid_is_replaced_with_its_state(
    tracing: tuple[Upstream, Legato], wrong: list[tuple[str, str]]
) -> None:
    upstream, legato = tracing
    got = sent(upstream, legato, ask(*wrong, ("tracestate", "a=1"), ("b3", "0")))
    (value,) = parents(got.head.headers)
    assert value.split("-")[1] not in (TRACE, "0" * 32)
    assert got.head.get(b"tracestate") is None
    assert got.head.get(b"b3") == b"0"


def test_over_httpx_too(tracing: tuple[Upstream, Legato]) -> None:
    got = sent(*tracing, ask(("traceparent", SAMPLED), ("tracestate", "a=1"), path="/pulled/x"))
    (value,) = parents(got.head.headers)
    assert value.split("-")[1::2] == [TRACE, "01"]
    assert value != SAMPLED
    assert got.head.get(b"tracestate") == b"a=1"


def test_excluded_paths_are_left_alone(tracing: tuple[Upstream, Legato]) -> None:
    for headers in ([], [("traceparent", SAMPLED)], [("traceparent", "odd"), ("tracestate", "a=1")]):
        raw = ask(*headers, path="/health")
        assert sent(*tracing, raw).raw == raw


def test_a_request_that_we_refuse_is_found_by_its_trace(tracing: tuple[Upstream, Legato]) -> None:
    trace_id = TRACE[::-1]
    refused = get("/refused", ("traceparent", f"00-{trace_id}-{SPAN}-01"), ("Expect", "a miracle"))
    with RawClient(tracing[1].data) as client:
        client.send(refused + get("/behind", ("traceparent", SAMPLED)))
        assert client.response().status == 417
        assert client.rest() == b""
    record = tracing[1].record(trace_id=trace_id)
    assert (record["method"], record["path"]) == ("GET", "/refused")


def test_no_two_requests_of_a_connection_share_a_span(tracing: tuple[Upstream, Legato]) -> None:
    upstream, legato = tracing
    before = len(upstream.requests)
    with RawClient(legato.data) as client:
        for _ in range(100):
            client.send(ask(("traceparent", SAMPLED)))
            assert client.response().status == 200
    upstream.wait_request(before + 99)
    seen = [parents(got.head.headers)[0] for got in upstream.requests[before:]]
    assert len(seen) == len(set(seen)) == 100


# ---------------------------------------------------------------- what is left alone

CASES: Final[dict[str, list[tuple[str, str]]]] = {
    "none": [],
    "a trace": [("TraceParent", SAMPLED), ("tracestate", "a=1"), ("TraceState", "b=2")],
    "invalid": [("traceparent", "00-0-0-00"), ("tracestate", "a=1")],
    "several": [("traceparent", SAMPLED), ("Host2", "h"), ("traceparent", SAMPLED)],
    "a state alone": [("tracestate", "a=1")],
}


@pytest.fixture(scope="module", params=["not configured", "propagate: off"])
def quiet(request: pytest.FixtureRequest) -> Iterator[tuple[Upstream, Legato, bool]]:
    on = request.param == "propagate: off"
    with proxying(otel(propagate=False) if on else {}) as (upstream, legato):
        yield upstream, legato, on


@pytest.mark.parametrize("case", CASES)
def test_requests_go_on_byte_for_byte(quiet: tuple[Upstream, Legato, bool], case: str) -> None:
    upstream, legato, on = quiet
    path = f"/v1/{case.replace(' ', '-')}"
    raw = ask(*OTHERS, *CASES[case], ("X", "y"), path=path)
    assert sent(upstream, legato, raw).raw == raw
    trace_id = legato.record(path=path)["trace_id"]
    if case == "a trace":
        assert trace_id == TRACE
    elif on:
        assert len(trace_id) == 32
        assert trace_id != TRACE
    else:
        assert trace_id is None


# ---------------------------------------------------------------- what the control process is told


class Told:
    """A worker of its own, and this test in its control process's place."""

    def __init__(self, number: int, table: Table, folder: Path, stack: ExitStack) -> None:
        self.data = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        path = str(folder / f"link{number}")
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        waiting.bind(path)
        waiting.listen()
        fd = self.data.fileno()
        command = ["-m", "proxy.relay.worker", "--id", str(number), "--listen-fd", str(fd), "--link", path]
        worker = subprocess.Popen([sys.executable, *command], pass_fds=[fd])
        stack.callback(worker.wait, 10)
        stack.callback(worker.terminate)
        waiting.settimeout(20)
        self.link = stack.enter_context(waiting.accept()[0])
        self.link.settimeout(20)
        self.frames = Frames()
        self.facts: list[Facts] = []
        while not self._read(Hello):
            pass
        self.link.sendall(frame(table))

    def _read(self, kind: type) -> bool:
        told = [decode_up(payload) for payload in self.frames.feed(self.link.recv(65536))]
        for message in told:
            if isinstance(message, FactsBatch):
                self.facts += message.facts
                self.link.sendall(frame(Ack(message.facts[-1].seq)))
        return any(isinstance(message, kind) for message in told)

    def answer(self, raw: bytes) -> Facts:
        """Ask, and return what was told of it."""
        before = len(self.facts)
        with RawClient(self.data.getsockname(), timeout_s=20) as client:
            client.send(raw)
            client.response()
        while len(self.facts) == before:
            self._read(FactsBatch)
        return self.facts[before]


def table(upstream: Upstream, tracing: Tracing | None) -> Table:
    slo = SloSpec("s", Match(), ((0, 10**9),), 10**9)
    backends = (BackendSpec("a", upstream.url),)
    return Table(1, backends, (), (slo,), exclude=("/health",), tracing=tracing)


@pytest.fixture
def workers() -> Iterator[tuple[Upstream, list[Told]]]:
    """Four workers that trace, and one that does not."""
    with scripted(respond(chat_stream(["a", "b"]))) as upstream, ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="legato-test-")))
        tables = [table(upstream, tracing) for tracing in (*[Tracing(0.5)] * 4, None)]
        yield upstream, [Told(number, each, folder, stack) for number, each in enumerate(tables)]


BODY: Final = json.dumps(
    {"model": "m", "stream": True, "max_tokens": 7, "temperature": 0.5, "messages": []}
).encode()


def test_facts_carry_the_ids_that_were_sent(workers: tuple[Upstream, list[Told]]) -> None:
    upstream, told = workers
    spans: list[str] = []
    decided: set[bool] = set()
    for worker in told[:4]:
        for number in range(20):
            theirs = [("traceparent", SAMPLED), ("tracestate", "a=1")] if number == 0 else []
            before = len(upstream.requests)
            facts = worker.answer(post("/v1/chat/completions", BODY, *theirs))
            ids, trace_id = facts.trace, facts.trace_id
            assert ids is not None
            assert trace_id is not None
            assert parents(upstream.wait_request(before).head.headers) == [
                f"00-{trace_id}-{ids.client}-0{int(ids.sampled)}"
            ]
            if number == 0:
                assert (trace_id, ids.parent, ids.sampled, ids.theirs) == (TRACE, SPAN, True, True)
                assert ids.state == "a=1"
            else:
                assert (ids.parent, ids.theirs, ids.state) == (None, False, None)
                assert ids.sampled is (int(trace_id[16:], 16) < 2**63)
                decided.add(ids.sampled)
                spans.append(trace_id)
            spans += ids.server, ids.client
            assert facts.asked == Asked(7, 0.5)
            assert facts.stream is not None
            assert (facts.model, facts.stream.model) == ("m", "tiny")
    assert len(set(spans)) == len(spans)
    assert decided == {True, False}
    refused = told[0].answer(get("/x", ("traceparent", SAMPLED), ("Expect", "a miracle")))
    assert (refused.end, refused.trace_id) == ("refused", TRACE)
    assert isinstance(refused.trace, TraceIds)
    assert refused.trace.parent == SPAN
    off = told[4].answer(post("/v1/chat/completions", BODY, ("traceparent", SAMPLED)))
    assert (off.trace_id, off.trace, off.asked) == (TRACE, None, None)
