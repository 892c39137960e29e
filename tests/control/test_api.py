"""The admin API over a real socket: uvicorn on a port of its own, httpx as the client."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn
from fastapi import Request
from fastapi.routing import APIRoute

from proxy import clock
from proxy.control.api import create_app
from proxy.control.api_requests import RecordDetail, RecordPage
from proxy.control.core import Controller
from proxy.control.guard import Guard, host_of, is_loopback
from proxy.control.schema import ApiError
from proxy.control.summary import Summary
from proxy.link import BackendNow, FactsBatch, Usage
from tests.control.facts import BATCH, T0, at, facts, stream, streamed, table
from tests.control.test_workers import beat, hello, now
from tests.helpers.procs import eventually

SECRET = "sk-planted-secret"


def controller() -> Controller:
    return Controller(
        table(BATCH), instance="here", version="1.2", unix_ns=clock.unix_ns, monotonic_ns=clock.monotonic_ns
    )


def filled() -> Controller:
    """Four settled requests and two in flight."""
    control = controller()
    control.feed(hello())
    good = streamed(
        at(80), at(120), end_ms=130, id="good", request_id="gw-1", of={"usage": Usage(prompt=5, output=2)}
    )
    bad = streamed(stream=stream(at(100), at(300), response_id="chatcmpl-9"), end_ms=310, id="bad")
    other = facts(id="other", model="qwen", status=503, path=f"/v1/chat?api_key={SECRET}")
    batch = facts(id="batch", slo="batch", trace_id="4bf9", end_ns=T0 + 1)
    control.feed(FactsBatch([good, bad, other, batch]))
    control.feed(
        beat(
            now(in_flight=2, overdue=1, missed=3, worst=70_000_000),
            backends=[BackendNow("default", True, 2, 0, 0, 1)],
        )
    )
    return control


@contextmanager
def serving(
    control: Controller, token: str | None = None, config: dict[str, Any] | None = None
) -> Iterator[httpx.Client]:
    """A client of the admin API, served in a thread."""
    app = create_app(control, config=lambda: config or {"workers": 1}, token=lambda: token)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", proxy_headers=False))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        eventually(lambda: server.started)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
        server.should_exit = True
        thread.join(5)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving(filled()) as client:
        yield client


# ---------------------------------------------------------------- probes and metrics


def test_alive_but_not_ready_until_a_worker_has_its_table() -> None:
    control = controller()
    with serving(control) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        unready = client.get("/readyz")
        assert (unready.status_code, unready.json()["ready"]) == (503, False)
        worker = control.hello(hello())
        assert client.get("/readyz").status_code == 200
        control.draining = True
        assert client.get("/readyz").json() == {"ready": False, "workers": 1, "draining": True}
        assert client.get("/healthz").status_code == 200
        control.draining = False
        control.left(worker)
        assert client.get("/readyz").status_code == 503


def test_metrics_are_the_books(client: httpx.Client) -> None:
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.text
    labels = 'backend="default",model="llama",slo="default"'
    assert f'legato_requests_total{{{labels},outcome="completed"}} 2' in text
    assert f"legato_requests_overdue{{{labels}}} 1" in text
    assert f'legato_token_deadlines_total{{{labels},result="missed"}} 4' in text
    assert "legato_workers 1" in text
    openmetrics = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert openmetrics.text.endswith("# EOF\n")


def test_a_failing_exposition_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    control = controller()

    def broken(*_: object) -> tuple[bytes, str]:
        raise RuntimeError(SECRET)

    with pytest.raises(RuntimeError):
        control.render(broken, None)
    assert control.snapshot().export_failures["prometheus"] == 1


# ---------------------------------------------------------------- records


def test_recent_requests_come_newest_first_as_records(client: httpx.Client) -> None:
    answer = client.get("/api/requests")
    page = msgspec.json.decode(answer.content, type=RecordPage)
    assert (page.matched, page.searched) == (4, 4)
    assert {record.id for record in page.requests} == {"good", "bad", "other", "batch"}
    ends = [record.duration_s for record in page.requests]
    assert ends == sorted(ends, reverse=True)
    assert list(answer.json()["requests"][0])[:3] == ["schema", "time", "id"]


@pytest.mark.parametrize(
    ("query", "want"),
    [
        ("sort=worst", ["bad", "good"]),
        ("sort=worst&limit=1", ["bad"]),
        ("model=qwen", ["other"]),
        ("slo=batch", ["batch"]),
        ("backend=nobody", []),
        ("outcome=overloaded", ["other"]),
        ("slo_result=bad&stream=true", ["bad"]),
        ("min_missed=4", ["bad"]),
        ("max_fluidity=0.5", ["bad"]),
        ("status=503", ["other"]),
        ("min_duration_s=0.31", ["bad"]),
        ("request_id=gw-1", ["good"]),
        ("response_id=chatcmpl-9", ["bad"]),
        ("trace_id=4bf9", ["batch"]),
        ("id=good", ["good"]),
    ],
)
def test_filters(client: httpx.Client, query: str, want: list[str]) -> None:
    answer = client.get(f"/api/requests?{query}")
    assert [record["id"] for record in answer.json()["requests"]] == want


@pytest.mark.parametrize("name", ["bad", "chatcmpl-9"])
def test_one_request_by_any_of_its_names_with_its_timeline(client: httpx.Client, name: str) -> None:
    answer = client.get(f"/api/requests/{name}")
    detail = msgspec.json.decode(answer.content, type=RecordDetail)
    assert detail.id == "bad"
    assert detail.timeline is not None
    first, second = detail.timeline.events
    assert (first.at_s, first.deadline_s, first.slack_s, first.missed) == (0.1, 0.1, 0.0, 0)
    assert (second.at_s, second.deadline_s, second.slack_s, second.missed) == (0.3, 0.15, -0.15, 4)
    (stall,) = detail.timeline.stalls
    assert (stall.at_s, stall.late_s, stall.missed, stall.reason) == (0.1, 0.15, 4, None)
    assert list(answer.json())[-2:] == ["proxy", "timeline"]


def test_what_was_not_streamed_has_no_timeline(client: httpx.Client) -> None:
    assert client.get("/api/requests/other").json()["timeline"] is None


def test_who_shares_with_nobody_says_how_to(client: httpx.Client) -> None:
    answer = client.get("/api/fleet")
    assert answer.status_code == 404
    assert "redis.url" in answer.json()["error"]["mend"]


def test_what_is_not_kept_is_404_with_a_mend(client: httpx.Client) -> None:
    answer = client.get("/api/requests/nobody")
    assert answer.status_code == 404
    assert "access log" in answer.json()["error"]["mend"]


@pytest.mark.parametrize(
    "query", ["limit=0", "sort=best", "outcome=great", "no_such_filter=1", "max_fluidity=2"]
)
def test_wrong_parameters_are_422_with_their_place(client: httpx.Client, query: str) -> None:
    answer = client.get(f"/api/requests?{query}")
    assert answer.status_code == 422
    assert query.partition("=")[0] in answer.json()["error"]["message"]


# ---------------------------------------------------------------- summary, config, version


def test_the_summary_adds_up(client: httpx.Client) -> None:
    summary = msgspec.json.decode(client.get("/api/summary").content, type=Summary)
    assert summary.total.requests == 4 == sum(group.requests for group in summary.groups)
    assert summary.total.results == {"good": 2, "bad": 2, "excluded": 0}
    assert summary.total.deadlines["missed"] == 4
    assert summary.total.deadline_miss_rate == round(4 / 7, 6)
    assert summary.total.share_under_target == 0.5
    assert summary.total.fluidity.p1 == pytest.approx(0.2, rel=0.01)
    assert summary.total.ttft_s.p50 == pytest.approx(0.08, rel=0.01)
    assert summary.total.tbt_s.max == pytest.approx(0.2)
    assert summary.total.fluid_token_rate is not None
    assert summary.total.in_flight.requests == 2
    assert summary.total.in_flight.worst_overdue_s == 0.07
    (llama,) = [group for group in summary.groups if (group.model, group.slo) == ("llama", "default")]
    assert (llama.requests, llama.in_flight.overdue, llama.output_tokens) == (2, 1, 4)
    assert summary.backends[0].name == "default"
    assert summary.proxy.workers == 1
    assert summary.proxy.forward.p99_s is None


def test_an_empty_summary_is_null_with_reasons() -> None:
    with serving(controller()) as client:
        total = client.get("/api/summary").json()["total"]
    assert total["requests"] == 0
    assert (total["fluidity"]["p1"], total["deadline_miss_rate"], total["fluid_token_rate"]) == (None,) * 3
    assert total["fluid_token_rate_reason"] == "no stream was scored"


def test_version_and_config(client: httpx.Client) -> None:
    assert client.get("/api/version").json()["version"] == "1.2"
    view = client.get("/api/config").json()
    assert view == {"table_version": 1, "reload_ok": True, "reload_error": None, "config": {"workers": 1}}


# ---------------------------------------------------------------- who may read

OPEN = ["/healthz", "/metrics"]
GUARDED = [
    "/", "/openapi.json", "/api/version", "/api/config", "/api/requests", "/api/requests/bad", "/api/summary",
]  # fmt: skip


def test_with_a_token_everybody_needs_it() -> None:
    with serving(filled(), token="right") as client:
        for path in OPEN:
            assert client.get(path).status_code == 200
        for path in GUARDED:
            refused = client.get(path)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert "admin.token_file" in refused.json()["error"]["mend"]
            for wrong in ("Bearer wrong", "Bearer", "right", "Basic right", "Bearer rightx", "Bearer r\xe9"):
                assert client.get(path, headers={b"authorization": wrong.encode()}).status_code == 401
            assert client.get(path, headers={"authorization": "Bearer right"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "sent", "told"),
    [
        ("GET", None, "this API needs its token"),
        ("GET", "Bearer", "this API needs its token"),
        ("GET", "Bearer hunter2", "the token that was sent is not the one for reading"),
        ("GET", "Basic right", "the Authorization header is not of the scheme Bearer"),
        ("POST", "Bearer right", "the token that was sent is not the one for changes"),
        ("POST", None, "this API needs its token"),
    ],
)
def test_a_wrong_token_is_told_from_none(method: str, sent: str | None, told: str) -> None:
    reads = Guard(lambda: "right")
    guard = reads if method == "GET" else reads.changes(lambda: "writes")
    headers = [] if sent is None else [(b"authorization", sent.encode())]
    with pytest.raises(ApiError) as refused:
        guard(Request({"type": "http", "method": method, "path": "/", "headers": headers}))
    assert (refused.value.problem.status, refused.value.problem.message) == (401, told)


@pytest.mark.parametrize(
    ("path", "message", "mend"),
    [
        ("/api/summary?windo=5m", "'windo' is no parameter of /api/summary", "did you mean window?"),
        ("/api/requests?sort=worst&limits=3", "'limits' is no parameter", "did you mean limit?"),
        ("/api/requests/x?y=1", "'y' is no parameter of /api/requests/{id}", "it takes none"),
        ("/api/timeseries?metric=good&qqq=1", "'qqq' is no parameter", "it knows metric, "),
        ("/api/version?x=1", "'x' is no parameter", "it takes none"),
    ],
)
def test_a_parameter_that_nobody_knows_is_refused(
    client: httpx.Client, path: str, message: str, mend: str
) -> None:
    refused = client.get(path)
    problem = refused.json()["error"]
    assert refused.status_code == 422
    assert message in problem["message"]
    assert mend in problem["mend"]


def test_probes_and_metrics_take_what_scrapers_add(client: httpx.Client) -> None:
    assert [client.get(f"{path}?collect[]=x").status_code for path in OPEN] == [200] * len(OPEN)


def test_without_a_token_a_name_that_is_not_this_host_is_refused(client: httpx.Client) -> None:
    for path in GUARDED:
        assert client.get(path).status_code == 200
        refused = client.get(path, headers={"host": "rebound.example:9464"})
        assert refused.status_code == 403
        assert "token" in refused.json()["error"]["message"]
    for path in OPEN:
        assert client.get(path, headers={"host": "rebound.example"}).status_code == 200


async def _ask(path: str, client: tuple[str, int]) -> int:
    """One request to the app as if from ``client``."""
    app = create_app(filled(), config=dict, token=lambda: None)
    transport = httpx.ASGITransport(app, client=client)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as session:
        return (await session.get(path)).status_code


@pytest.mark.parametrize(("host", "want"), [("10.0.0.7", 403), ("127.9.9.9", 200), ("::1", 200)])
def test_without_a_token_only_this_host_is_served(host: str, want: int) -> None:
    import asyncio

    assert asyncio.run(_ask("/api/requests", (host, 4711))) == want
    assert asyncio.run(_ask("/metrics", (host, 4711))) == 200


def test_forwarded_for_makes_nobody_local(client: httpx.Client) -> None:
    assert is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("::ffff:10.0.0.1")
    assert not is_loopback("127.0.0.1.example.com")
    assert [host_of(text) for text in ("[::1]:80", "localhost:80", "::1", "a")] == [
        "::1",
        "localhost",
        "::1",
        "a",
    ]


# ---------------------------------------------------------------- the document, errors, privacy


def test_every_route_is_documented_and_typed(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    app = create_app(filled(), config=dict, token=lambda: None)
    routes = {route.path for route in _routes(app.routes) if route.include_in_schema}
    assert (
        set(document["paths"])
        == routes
        >= {"/api/requests", "/api/requests/{id}", "/api/summary", "/metrics"}
    )
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"]
            schema = next(iter(operation["responses"]["200"]["content"].values()))["schema"]
            assert schema, path
            if path.startswith("/api"):
                assert {"401", "403", "422"} <= set(operation["responses"])
    schemas = document["components"]["schemas"]
    references = set(_references(document))
    assert references <= {f"#/components/schemas/{name}" for name in schemas}
    assert {"Record", "RecordDetail", "Summary", "Error"} <= set(schemas)
    assert "ValidationError" not in schemas
    assert "fluidity" in schemas["Record"]["properties"]


def _routes(routes: Iterable[Any]) -> Iterator[APIRoute]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        yield from _routes(getattr(getattr(route, "original_router", None), "routes", ()))


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for part in value.values():
            yield from _references(part)
    elif isinstance(value, list):
        for part in value:
            yield from _references(part)


def test_the_index_lists_the_endpoints(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "/api/summary" in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("POST", "/api/requests", 405)]
)
def test_what_is_not_there_is_json_too(client: httpx.Client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["mend"]


def test_no_query_string_is_shown_anywhere(client: httpx.Client) -> None:
    paths = [*OPEN, *GUARDED, "/api/requests/other", "/api/requests?sort=worst"]
    assert not any(SECRET in client.get(path).text for path in paths)
    assert json.loads(client.get("/api/requests/other").text)["path"] == "/v1/chat"
