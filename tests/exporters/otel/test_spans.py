"""A settled request becomes spans: ids, times, names, attributes, events, status, through OTLP and back."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource

from proxy.control.settle import settle
from proxy.exporters.otel import names
from proxy.exporters.otel.resource import scope_of
from proxy.exporters.otel.spans import SpanBuilder
from proxy.exporters.otel.view import Conventions, count
from tests.control.facts import UNIX, facts
from tests.exporters.otel.asked import (
    CLIENT,
    MS,
    PARENT,
    SERVER,
    T0,
    TRACE,
    Asked,
    Usage,
    at,
    both,
    chat,
    ids,
    plain,
    refused,
    spans,
)

#: The head came 1 ms before t = 0.
ZERO = UNIX + MS


# ---------------------------------------------------------------- ids and times


def test_a_chat_is_a_server_span_with_a_client_span_below_it() -> None:
    server, client = both(chat(received_ns=T0 - MS, connected_ns=T0 - MS // 4, connect_ns=MS // 2))
    assert (server.name, client.name) == ("POST /v1/chat/completions", "chat llama")
    assert {server.trace_id, client.trace_id} == {TRACE}
    assert (server.span_id, server.parent) == (SERVER, PARENT)
    assert (client.span_id, client.parent) == (CLIENT, SERVER)
    assert (server.start_unix_ns, server.end_unix_ns) == (UNIX, ZERO + 200 * MS)
    assert (client.start_unix_ns, client.end_unix_ns) == (UNIX + MS // 4, ZERO + 200 * MS)
    assert (server.status, client.status) == ("UNSET", "UNSET")
    assert server.resource == {"service.name": "legato"}
    assert server.scope == "legato"


def test_a_trace_that_began_here_has_no_parent() -> None:
    assert spans(chat(trace=ids(parent=None, theirs=False)))[0].parent == ""


def test_tracestate_goes_along() -> None:
    assert [span.state for span in spans(chat(trace=ids(state="rojo=00f067aa,congo=t61")))] == [
        "rojo=00f067aa,congo=t61"
    ] * 2
    assert spans(chat(trace=ids(state="no state at all;;;")))[0].state == ""


def test_the_exporters_take_what_was_kept_late_too() -> None:
    build = SpanBuilder(Resource({}), scope_of("1"), Conventions())
    for span in build(chat(trace=ids(sampled=False)), "bad"):
        assert span.context is not None
        assert span.context.trace_flags.sampled  # else the batch processor passes it over


@pytest.mark.parametrize(
    "fields",
    [
        {"trace_id": "zz"},
        {"trace_id": "0" * 32},
        {"trace_id": "f" * 33},
        {"trace": ids(server="0" * 16)},
        {"trace": ids(parent="x")},
        {"trace_id": None},
        {"trace": None},
    ],
    ids=str,
)
def test_what_is_no_id_makes_no_span(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each its own words
        spans(chat(**fields))


# ---------------------------------------------------------------- attributes


def test_what_the_server_span_says() -> None:
    server, _ = both(chat(path="/v1/chat/completions?api_key=secret", tags={"tenant": "acme"}, id="r7"))
    assert server.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "legato.id": "r7",
        "legato.kept": "sampled",
        "legato.backend": "default",
        "legato.slo": "default",
        "legato.slo_result": "good",
        "legato.outcome": "completed",
        "legato.fluidity": 1.0,
        "legato.tag.tenant": "acme",
    }


def test_what_the_client_span_says() -> None:
    _, client = both(
        chat(
            at(80),
            at(120),
            id="r8",
            request_id="req-1",
            received_ns=T0 - MS,
            asked=Asked(max_tokens=100, temperature=1, top_p=0.5),
            choices_asked=2,
            forward_p99_ns=65_536,
            attempts=2,
        ),
        kept="bad",
    )
    given = client.attributes
    assert given == given | {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.system": "openai",
        "gen_ai.request.model": "llama",
        "gen_ai.request.stream": True,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.max_tokens": 100,
        "gen_ai.request.temperature": 1.0,
        "gen_ai.request.top_p": 0.5,
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "llama-3-70b",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": 0.08,
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.reasoning.output_tokens": 1,
        "server.address": "vllm.example",
        "server.port": 8000,
        "network.peer.address": "10.0.0.7",
        "network.peer.port": 8000,
        "http.request.resend_count": 1,
        "legato.id": "r8",
        "legato.request_id": "req-1",
        "legato.kept": "bad",
        "legato.tokens_source": "events",
        "legato.ttft_s": 0.08,
        "legato.ttft_target_s": 0.1,
        "legato.tbt_target_s": 0.05,
        "legato.longest_gap_s": 0.04,
        "legato.added_p99_s": 0.000066,
        "legato.suspect": False,
        "legato.censored": False,
    }
    assert given["legato.deadlines"] == given["legato.met"] + given["legato.missed"]
    assert not any(name.startswith(("http.re", "url.")) for name in given if "resend" not in name)


def test_every_value_has_the_type_of_the_table() -> None:
    types = {row.name: row.type for row in (*names.SERVER, *names.CLIENT, *names.VERDICT, *names.DETAIL)}
    seen: set[str] = set()
    many = [
        chat(at(80), at(400), asked=Asked(8, 0, 1), choices_asked=2, attempts=3, request_id="x", error="e"),
        chat(lags=((T0 + 90 * MS, T0 + 390 * MS),), of={"thinned": True}),
        chat(of={"unmeasured": "shed"}),
        plain(method="PURGE", status=404),
        plain(path="/v1/models", method="GET", status=500),
        refused(),
    ]
    for settled in many:
        for span in spans(settled, opt_in="http/dup"):
            for name, value in span.attributes.items():
                assert type(value) is types[name], (name, value)
                seen.add(name)
    assert seen == set(types), set(types) - seen  # each row speaks somewhere


def test_only_what_the_server_reported_is_usage() -> None:
    """Tokens that we counted ourselves are not the server's word."""
    _, client = both(chat(of={"usage": Usage()}))
    assert not [name for name in client.attributes if name.startswith("gen_ai.usage.")]
    assert client.attributes["legato.output_tokens"] == 2
    assert client.attributes["legato.prompt_tokens_source"] == "estimated"


def test_what_was_not_said_is_absent() -> None:
    _, client = both(
        chat(
            model=None,
            stream_asked=False,
            streamed=False,
            upstream_addr=None,
            of={"response_id": None, "model": None, "finish_reason": None, "choices": (), "dialect": ""},
        )
    )
    assert client.name == "chat"  # no model was named
    for name in (
        "gen_ai.request.model",
        "gen_ai.request.stream",
        "gen_ai.request.choice.count",
        "gen_ai.request.max_tokens",
        "gen_ai.response.id",
        "gen_ai.response.model",
        "gen_ai.response.finish_reasons",
        "gen_ai.response.time_to_first_chunk",
        "network.peer.address",
        "error.type",
        "legato.error",
        "legato.fluidity",
    ):
        assert name not in client.attributes


@pytest.mark.parametrize(
    ("address", "peer", "port"),
    [
        ("10.0.0.7:8000", "10.0.0.7", 8000),
        ("[fd00::1]:80", "fd00::1", 80),
        ("/run/vllm.sock", "/run/vllm.sock", None),
    ],
)
def test_where_the_answer_came_from(address: str, peer: str, port: int | None) -> None:
    _, client = both(chat(upstream_addr=address, backend="unknown"))
    for name in ("server", "network.peer"):
        assert client.attributes[f"{name}.address"] == peer
        assert client.attributes.get(f"{name}.port") == port


def test_what_is_no_call_of_a_model_is_plain_http() -> None:
    server, client = both(plain(method="GET", path="/v1/models?token=secret", status=404, model=None))
    assert (server.name, client.name) == ("GET /v1/models", "GET")
    assert (server.status, client.status) == ("UNSET", "ERROR")  # 4xx: the client's error, not the server's
    assert client.attributes == client.attributes | {
        "http.request.method": "GET",
        "http.response.status_code": 404,
        "url.full": "http://vllm.example:8000/v1/models",
        "error.type": "404",
    }
    assert not [name for name in client.attributes if name.startswith("gen_ai.")]


def test_unknown_methods_and_paths_do_not_make_names() -> None:
    (server,) = spans(refused(501, "method", method="SECRETMETHOD", path="/users/4711"))
    assert server.name == "HTTP"
    assert server.attributes["http.request.method"] == "_OTHER"
    assert server.attributes["http.request.method_original"] == "SECRETMETHOD"
    assert "http.route" not in server.attributes
    assert server.attributes["url.path"] == "/users/4711"


def test_what_was_no_http_has_no_method_of_its_own() -> None:
    (server,) = spans(refused(400, "request_line", method="", path=""))
    assert server.attributes["http.request.method"] == "_OTHER"
    assert "http.request.method_original" not in server.attributes
    assert "url.path" not in server.attributes


def test_older_names_stand_beside_the_stable_ones_only_when_asked() -> None:
    old = {"http.method", "http.target", "http.scheme", "http.status_code", "net.peer.name", "net.peer.port"}
    without = {name for span in spans(chat()) for name in span.attributes}
    assert not old & without
    assert "gen_ai.system" in without
    asked = {name for span in spans(chat(), opt_in="http/dup") for name in span.attributes}
    assert asked - without == old
    latest = {name for span in spans(chat(), opt_in="gen_ai_latest_experimental") for name in span.attributes}
    assert without - latest == {"gen_ai.system"}


def test_what_was_no_http_is_of_no_route() -> None:
    (server,) = spans(refused(400, method="", path=""))
    assert server.name == "HTTP"
    assert not {"http.route", "url.path"} & set(server.attributes)
    assert server.attributes["http.request.method"] == "_OTHER"


# ---------------------------------------------------------------- how it ended


def test_a_refused_request_is_a_server_span_alone_with_all_there_is_to_say() -> None:
    (server,) = spans(refused(400))
    assert server.kind == "SERVER"
    assert server.status == "UNSET"
    assert server.attributes["legato.outcome"] == "rejected"
    assert server.attributes["legato.prompt_tokens_source"] == "estimated"


def test_a_connection_that_failed_is_a_client_span_with_an_error() -> None:
    server, client = both(
        plain(
            end="connect_failed",
            status=502,
            error="connection_refused",
            sent_ns=None,
            connected_ns=None,
            head_ns=None,
            connect_ns=10 * MS,
        )
    )
    assert (server.status, server.attributes["error.type"]) == ("ERROR", "502")
    assert (client.status, client.attributes["error.type"]) == ("ERROR", "connection_refused")
    assert client.end_unix_ns - client.start_unix_ns == 10 * MS
    assert "http.response.status_code" not in client.attributes  # that 502 was ours


def test_a_client_that_leaves_makes_no_error() -> None:
    server, client = both(chat(end="client_left", end_ms=125, of={"finished": False, "finish_reason": None}))
    assert (server.status, client.status) == ("UNSET", "UNSET")
    assert client.attributes["legato.outcome"] == "client_cancelled"
    assert "error.type" not in {**server.attributes, **client.attributes}


def test_a_cut_stream_is_an_error_on_both() -> None:
    server, client = both(
        chat(end="truncated", error="upstream_cut", end_ms=900, of={"finished": False, "finish_reason": None})
    )
    assert {server.status, client.status} == {"ERROR"}
    assert client.attributes["legato.censored"] is True
    assert client.attributes["legato.slo_reasons"] == ["outcome"]


# ---------------------------------------------------------------- privacy and bounds


def test_nothing_of_a_query_string_is_anywhere() -> None:
    for settled in (
        chat(path="/v1/chat/completions?key=SECRET"),
        plain(path="/v1beta/models/m:generateContent?key=SECRET"),
        plain(path="/other?key=SECRET", method="GET"),
        refused(path="/x?key=SECRET"),
    ):
        assert "SECRET" not in repr(spans(settled, opt_in="http/dup"))


def test_long_and_strange_values_are_bounded() -> None:
    settled = chat(
        path="/" + "p" * 60_000,
        model="m" * 9_000,
        request_id="r" * 9_000,
        tags={"t": "v" * 9_000},
        asked=Asked(max_tokens=2**64 - 1),
        of={"model": "n" * 9_000},
    )
    server, client = both(settled)
    for span in (server, client):
        assert len(span.name) < 300
        assert all(len(value) <= 512 for value in span.attributes.values() if isinstance(value, str))
    assert "gen_ai.request.max_tokens" not in client.attributes  # OTLP has no such number
    assert [count(value) for value in (0, 2**63 - 1, 2**63, -1, None)] == [0, 2**63 - 1, None, None, None]


def test_a_clock_that_ran_backwards_does_not_turn_a_span_around() -> None:
    for span in spans(settle(facts(-50, trace_id=TRACE, trace=ids()), "host-1")):
        assert span.end_unix_ns >= span.start_unix_ns
