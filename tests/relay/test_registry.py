"""Which dialect a stream is taken for: by its path, by its first event, or because the route says so."""

from __future__ import annotations

from typing import get_args

import pytest

from proxy.link import BackendSpec, Match, RouteSpec, SloSpec, Table
from proxy.relay.call import Call
from proxy.relay.dialects.base import RANKS
from proxy.relay.dialects.registry import DIALECTS, by_name, by_path, sniff
from proxy.relay.route import RouteTable
from proxy.relay.streamtap import StreamTap
from proxy.relay.tap import is_stream, open_tap
from proxy.settings.types import DialectName
from tests.helpers.taps import MS

PATHS = {
    "/v1/chat/completions": "openai.chat",
    "/base/openai/deployments/x/chat/completions/": "openai.chat",
    "/v1/completions": "openai.completions",
    "/v1/responses": "openai.responses",
    "/v1/messages": "anthropic.messages",
    "/generate": "sglang.generate",
    "/completion": "llamacpp.completion",
    "/infill": "llamacpp.completion",
    "/api/generate": "ollama.generate",
    "/api/chat": "ollama.chat",
    "/generate_stream": "tgi.generate",
    "/": "tgi.generate",
    "/v2/models/ensemble/generate_stream": "triton.generate",
    "/v2/models/ensemble/versions/1/generate_stream": "triton.generate",
    "/v1beta/models/gemini-2.5-flash:streamGenerateContent": "gemini.generate",
    "/v1/embeddings": None,
    "/anything": None,
}

#: An event that proves its dialect wherever it is seen, and the response's id in it.
PROOFS: dict[bytes, tuple[str, str | None]] = {
    b'{"id":"c-1","object":"chat.completion.chunk","choices":[]}': ("openai.chat", "c-1"),
    b'{"id":"c-2","choices":[{"index":0,"delta":{"content":"x"}}]}': ("openai.chat", "c-2"),
    b'{"id":"t-1","object":"text_completion","choices":[]}': ("openai.completions", "t-1"),
    b'{"choices":[{"index":0,"text":"x"}]}': ("openai.completions", None),
    b'{"type":"response.created","response":{"id":"resp_1"}}': ("openai.responses", "resp_1"),
    b'{"type":"message_start","message":{"id":"msg_1","usage":{"input_tokens":3}}}': (
        "anthropic.messages",
        "msg_1",
    ),
    b'{"text":"x","meta_info":{"id":"s-1","completion_tokens":1,"finish_reason":null}}': (
        "sglang.generate",
        "s-1",
    ),
    b'{"index":0,"content":"x","tokens":[],"stop":false,"id_slot":0,"tokens_predicted":1}': (
        "llamacpp.completion",
        None,
    ),
    b'{"model":"m","created_at":"2026-11-22T09:00:00Z","response":"x","done":false}': (
        "ollama.generate",
        None,
    ),
    b'{"model":"m","message":{"role":"assistant","content":"x"},"done":false}': (
        "ollama.chat",
        None,
    ),
    b'{"index":1,"token":{"id":5,"text":"x","logprob":-1.0,"special":false},"generated_text":null}': (
        "tgi.generate",
        None,
    ),
    b'{"model_name":"m","model_version":"1","text_output":"x"}': ("triton.generate", None),
    b'{"candidates":[{"content":{"parts":[{"text":"x"}]},"index":0}],"responseId":"g-1"}': (
        "gemini.generate",
        "g-1",
    ),
}


def test_settings_and_registry_name_the_same_dialects() -> None:
    names = [dialect.name for dialect in DIALECTS]
    assert sorted(names) == sorted(get_args(DialectName))
    assert all(by_name(name) is dialect for name, dialect in zip(names, DIALECTS, strict=True))
    assert {dialect.plain_rank for dialect in DIALECTS} <= set(RANKS.values())


@pytest.mark.parametrize(("path", "name"), PATHS.items())
def test_a_path_promises(path: str, name: str | None) -> None:
    found = by_path(path)
    assert (None if found is None else found.name) == name


@pytest.mark.parametrize(("event", "shown"), PROOFS.items())
def test_an_event_proves(event: bytes, shown: tuple[str, str | None]) -> None:
    sniffed = sniff(event)
    assert sniffed.dialect is not None
    assert (sniffed.dialect.name, sniffed.response_id) == shown
    # Only one claims it: the order in the registry decides nothing here.
    for dialect in DIALECTS:
        alone = sniff(event, dialect).dialect
        assert alone is not None
        assert alone.name == shown[0]


@pytest.mark.parametrize("event", [b"null", b"{}", b" {} "])
def test_an_event_that_says_nothing_decides_nothing(event: bytes) -> None:
    assert sniff(event) == (None, None, True, None)


@pytest.mark.parametrize("event", [b"[1]", b"7", b'{"a', b"\xff", b'{"choices":7}', b'{"hello":1}'])
def test_an_event_of_nobody_shows_nobody(event: bytes) -> None:
    assert sniff(event).dialect is None
    assert not sniff(event).blank


def spoken(path: str, kind: bytes, body: bytes, dialect: str | None = None) -> tuple[str, int]:
    tap = open_tap(
        path=path, content_type=kind, content_encoding=b"", ttft_ns=MS, tbt_ns=MS, t0_ns=0, arrivals_cap=100,
        choices=1, dialect=dialect,
    )  # fmt: skip
    tap.feed(body, 1)
    tap.finish(2)
    stream = tap.to_stream()
    return stream.dialect, stream.tokens


CHAT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'


def test_a_chat_behind_a_rewritten_path_is_recognised() -> None:
    assert spoken("/llm", b"text/event-stream", CHAT) == ("openai.chat", 1)


def test_a_route_that_sets_the_dialect_is_obeyed() -> None:
    assert spoken("/llm", b"text/event-stream", CHAT, "generic") == ("generic", 1)
    table = RouteTable(
        Table(
            1,
            (BackendSpec("b", "http://a"),),
            (RouteSpec(Match(path="/odd/*"), "b", "ollama.chat"), RouteSpec(Match(), "b")),
            (SloSpec("default", Match(), ((0, MS),), MS),),
        )
    )
    arms = [table.choose(Call("POST", path), []) for path in ("/odd/one", "/v1/x", "/odd/one")]
    assert [arm and arm.dialect for arm in arms] == ["ollama.chat", None, "ollama.chat"]


def test_lines_of_json_are_a_stream_too() -> None:
    body = b'{"piece":"a"}\n{"piece":"b"}\r\n\n{"piece":"c"}'
    assert spoken("/x", b"application/x-ndjson; charset=utf-8", body) == ("generic", 3)


@pytest.mark.parametrize(
    ("kind", "streamed"),
    [
        (b"text/event-stream", True),
        (b"Text/Event-Stream ; charset=utf-8", True),
        (b"application/x-ndjson", True),
        (b"application/jsonl", True),
        (b"application/json", False),
        (b"text/event-streams", False),
        (b"", False),
    ],
)
def test_what_counts_as_a_stream(kind: bytes, streamed: bool) -> None:
    assert is_stream(kind) is streamed
    tap = open_tap(
        path="/x", content_type=kind, content_encoding=b"", ttft_ns=MS, tbt_ns=MS, t0_ns=0, arrivals_cap=9,
        choices=1,
    )  # fmt: skip
    assert isinstance(tap, StreamTap) is streamed
