"""The table of span attributes: held against the conventions' own constants, and against its reference."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, http_attributes, net_attributes
from opentelemetry.semconv.attributes import (
    error_attributes,
    network_attributes,
    server_attributes,
    url_attributes,
)

from proxy.exporters.otel import names
from proxy.exporters.otel.calls import DIALECTS, call_of, client_error, issued_ns, route_of, server_error
from proxy.exporters.otel.reference import FILE, TYPES, markdown
from proxy.exporters.otel.view import METHODS, Conventions
from proxy.relay.dialects.registry import DIALECTS as SPOKEN
from proxy.relay.replies import REPLIES
from scoring.outcome import Outcome
from tests.control.facts import MS, T0, facts
from tests.exporters.otel.asked import chat, plain, refused

README = FILE.with_name("README.md")
FAILED = set(Outcome) - {Outcome.COMPLETED, Outcome.CLIENT_CANCELLED}
ROWS = (*names.SERVER, *names.CLIENT, *names.VERDICT, *names.DETAIL)
MODULES: tuple[ModuleType, ...] = (
    gen_ai_attributes,
    http_attributes,
    net_attributes,
    error_attributes,
    network_attributes,
    server_attributes,
    url_attributes,
)
STABLE = {
    value
    for module in (error_attributes, network_attributes, server_attributes, url_attributes)
    for value in vars(module).values()
    if isinstance(value, str)
}


def known() -> set[str]:
    """Every attribute that the conventions' package knows, deprecated ones too."""
    found = {value for module in MODULES for name, value in vars(module).items() if name.isupper()}
    return {value for value in found if isinstance(value, str)}


# ---------------------------------------------------------------- the table


def test_names_are_those_of_the_conventions() -> None:
    theirs = {row.name for row in ROWS if row.source != "Legato"}
    assert theirs <= known(), theirs - known()
    assert all(row.name.startswith("legato.") for row in ROWS if row.source == "Legato")


def test_what_is_called_stable_is() -> None:
    for row in ROWS:
        if row.source == "general":
            assert row.stable
            assert row.name in STABLE
        assert not (row.stable and row.source in ("GenAI", "Legato", "HTTP (old)", "GenAI (old)")), row.name


def test_no_attribute_is_written_twice() -> None:
    for rows in (
        (*names.SERVER, *names.VERDICT, *names.DETAIL),
        (*names.CLIENT, *names.VERDICT, *names.DETAIL),
    ):
        twice = [name for name, count in Counter(row.name for row in rows).items() if count > 1]
        assert twice == []


def test_units_and_types_are_those_that_the_names_promise() -> None:
    for row in ROWS:
        assert row.type in TYPES
        if row.name.endswith("_s") or row.name == "gen_ai.response.time_to_first_chunk":
            assert (row.type, row.unit) == (float, "s"), row.name
        if ".usage." in row.name or row.name.endswith("max_tokens"):
            assert (row.type, row.unit) == (int, "{token}"), row.name
    assert not any("message" in row.name or "instructions" in row.name for row in ROWS)  # content: never


def test_every_dialect_has_its_operation_and_the_well_known_words_are_spelled_right() -> None:
    assert set(DIALECTS) == {dialect.name for dialect in SPOKEN} - {"generic"}
    operations = {value.value for value in gen_ai_attributes.GenAiOperationNameValues}
    assert {call.operation for call in DIALECTS.values()} <= operations
    providers = {value.value for value in gen_ai_attributes.GenAiProviderNameValues}
    ours = {"ollama", "sglang", "llama.cpp", "tgi", "triton"}  # the conventions have no word for these
    assert {call.provider for call in DIALECTS.values()} - providers == ours
    assert not ours & providers


def test_the_reference_is_current() -> None:
    text = markdown()
    assert FILE.read_text(encoding="utf-8") == text, "run: python -m proxy.exporters.otel.reference"
    for row in (*ROWS, *names.STALL_ATTRIBUTES):
        assert f"| `{row.name}` |" in text
    for before, line in pairwise(text.splitlines()):
        if before.startswith("|") and line.startswith("|"):
            assert line.count("|") == before.count("|"), line


# ---------------------------------------------------------------- what is opted in


@pytest.mark.parametrize(
    ("said", "dup", "latest"),
    [
        ("", False, False),
        ("http", False, False),
        ("http/dup", True, False),
        ("gen_ai_latest_experimental", False, True),
        ("database, http/dup , gen_ai_latest_experimental", True, True),
        ("HTTP/DUP", False, False),
    ],
)
def test_the_opt_in_is_read(said: str, dup: bool, latest: bool) -> None:
    conventions = Conventions.of({"OTEL_SEMCONV_STABILITY_OPT_IN": said})
    assert (conventions.http_dup, conventions.genai_latest) == (dup, latest)
    written = {row.name for row in names.spoken(ROWS, conventions)}
    assert ("http.status_code" in written, "gen_ai.system" in written) == (dup, not latest)
    assert "http.response.status_code" in written
    assert "gen_ai.provider.name" in written


def test_known_methods_can_be_given() -> None:
    given = Conventions.of({"OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS": "GET, QUERY"})
    assert given.methods == {"GET", "QUERY"}
    assert Conventions.of({}).methods == METHODS


# ---------------------------------------------------------------- what a request is called


@pytest.mark.parametrize(
    ("path", "route", "called"),
    [
        ("/v1/chat/completions", "/v1/chat/completions", "chat openai"),
        ("/v1/chat/completions/", "/v1/chat/completions", "chat openai"),
        ("/openai/deployments/gpt-4/chat/completions", "*/chat/completions", "chat openai"),
        ("/v1/completions", "/v1/completions", "text_completion openai"),
        ("/v1/responses", "/v1/responses", "chat openai"),
        ("/v1/messages", "/v1/messages", "chat anthropic"),
        ("/v1/messages/count_tokens", None, None),
        ("/v1/embeddings", "/v1/embeddings", "embeddings openai"),
        ("/x/v1/embeddings", "*/embeddings", "embeddings openai"),
        ("/api/embeddings", "/api/embeddings", "embeddings ollama"),
        ("/api/embed", "/api/embed", "embeddings ollama"),
        ("/api/chat", "/api/chat", "chat ollama"),
        ("/api/generate", "/api/generate", "text_completion ollama"),
        ("/generate", "/generate", "text_completion sglang"),
        ("/generate_stream", "/generate_stream", "text_completion tgi"),
        ("/completion", "/completion", "text_completion llama.cpp"),
        (
            "/v1beta/models/gemini-2.0-flash:streamGenerateContent",
            "/v1beta/models/{model}:streamGenerateContent",
            "generate_content gcp.gemini",
        ),
        (
            "/v1/projects/p/locations/l/publishers/google/models/g:generateContent",
            "*/models/{model}:generateContent",
            "generate_content gcp.gemini",
        ),
        ("/v1beta/models/m:embedContent", "/v1beta/models/{model}:embedContent", "embeddings gcp.gemini"),
        ("/v1beta/models/m:countTokens", "/v1beta/models/{model}:countTokens", None),
        ("/v1beta/models/m:somethingElse", None, None),
        (
            "/v2/models/llama/versions/3/generate_stream",
            "*/v2/models/{model}/generate_stream",
            "text_completion triton",
        ),
        ("/v1/models", "/v1/models", None),
        ("/", "/", None),
        ("/users/4711/secrets", None, None),
        ("", None, None),
        ("/" + "a" * 5000 + "/chat/completions", None, None),
    ],
)
def test_routes_are_a_closed_list(path: str, route: str | None, called: str | None) -> None:
    found = route_of(path)
    assert found.name == route
    assert (None if found.call is None else " ".join(found.call)) == called


def test_the_call_is_by_what_the_response_spoke_and_only_of_a_post() -> None:
    assert call_of(chat(path="/rewritten").facts) == DIALECTS["openai.chat"]
    spoken = chat(of={"dialect": "anthropic.messages"}, path="/v1/chat/completions").facts
    assert call_of(spoken) == DIALECTS["anthropic.messages"]
    assert call_of(chat(of={"dialect": "generic"}, path="/x").facts) is None
    assert call_of(facts(path="/v1/chat/completions?key=secret")) == DIALECTS["openai.chat"]
    assert call_of(facts(path="/v1/chat/completions", method="OPTIONS")) is None


# ---------------------------------------------------------------- errors and times

NOT_SENT: dict[str, Any] = {"sent_ns": None, "connected_ns": None, "head_ns": None}


@pytest.mark.parametrize(
    ("settled", "server", "client"),
    [
        (chat(), None, None),
        (plain(status=404), None, "404"),
        (plain(status=429), None, "429"),
        (plain(status=500), "500", "500"),
        (plain(status=504), "504", "504"),
        (refused(400), None, "bad_request"),
        (refused(501, "upgrade"), "501", "upgrade"),
        (plain(end="pool_full", status=503, error="pool_full", **NOT_SENT), "503", "pool_full"),
        (
            plain(end="connect_failed", status=502, error="connection_refused", **NOT_SENT),
            "502",
            "connection_refused",
        ),
        (plain(end="timeout_connect", status=504, error="connect_timeout", **NOT_SENT), "504", "timeout"),
        (
            plain(end="timeout_first_byte", status=504, error="first_byte_timeout", head_ns=None),
            "504",
            "timeout",
        ),
        (chat(end="timeout_idle", error="idle_timeout", of={"finished": False}), "timeout", "timeout"),
        (plain(end="no_response", status=502, error="no_response", head_ns=None), "502", "no_response"),
        (plain(end="bad_response", status=502, error="bad_response", head_ns=None), "502", "bad_response"),
        (chat(end="truncated", error="upstream_cut", of={"finished": False}), "upstream_cut", "upstream_cut"),
        (chat(end="client_left", of={"finished": False}), None, None),
        (plain(end="client_left", status=None, head_ns=None), None, None),
        (chat(of={"error": "server_error"}), None, "server_error"),
        (chat(of={"finished": False, "finish_reason": None}), None, "upstream_error"),
        (plain(end="self", status=None, error="internal", head_ns=None), "proxy_error", "proxy_error"),
        (plain(end="self", status=500, error="internal", head_ns=None), "500", "proxy_error"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_kinds_of_error(settled: object, server: str | None, client: str | None) -> None:
    """4xx is the client's own affair on SERVER and an error on CLIENT; who leaves on purpose makes none."""
    assert server_error(settled) == server  # type: ignore[arg-type]
    assert client_error(settled) == client  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "at_ms"),
    [
        ({"connected_ns": T0 - MS // 2, "connect_ns": 0}, -0.5),  # a kept connection
        ({"connected_ns": T0, "connect_ns": 3 * MS, "received_ns": T0 - 9 * MS}, -3),  # a new one
        ({"connected_ns": None, "connect_ns": 0}, 0),  # known only when it was sent
        ({"connected_ns": None, "sent_ns": None, "connect_ns": 30 * MS}, 10),  # connecting failed after 30 ms
        ({"connected_ns": T0, "connect_ns": 900 * MS}, -1),  # never before the request was here
    ],
)
def test_the_call_begins_with_its_connection(fields: dict[str, int | None], at_ms: float) -> None:
    assert issued_ns(facts(40, **fields)) == T0 + at_ms * MS


def test_every_kind_of_error_is_documented() -> None:
    """The conventions ask for the list.  Timeouts are ``timeout``; what is ours alone calls nobody."""
    text = README.read_text(encoding="utf-8")
    ours = {"pool_full", "no_backend", "internal", "bad_request", "bad_host", "head_too_large", "upgrade"}
    ours |= {"unknown_expectation", "request_timeout", "transfer_coding", "method"}
    upstream = set(REPLIES) - ours - {"connect_timeout", "first_byte_timeout", "idle_timeout"}
    for word in (*upstream, "upstream_cut", "timeout", *(outcome.value for outcome in FAILED)):
        assert f"`{word}`" in text, word
