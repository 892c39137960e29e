"""Secrets planted wherever a request or an answer has room: none of them is ever written by the proxy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.procs import Legato, eventually, free_port, serve
from tests.helpers.rawclient import CHAT, RawClient, post, request
from tests.helpers.upstream import (
    SSE_HEAD,
    Connection,
    Request,
    Upstream,
    chat_chunk,
    response,
    scripted,
    serve_forever,
    sse,
)

#: Every planted secret begins so; what follows says where it stood.
MARK = "s3cr3t"
SEEN_ID = "an-id-that-may-be-seen"


def secret(where: str) -> str:
    return f"{MARK}-{where}"


HEADERS = [
    ("Authorization", f"Bearer {secret('authorization')}"),
    ("api-key", secret("api-key")),
    ("X-Api-Key", secret("x-api-key")),
    ("Cookie", f"session={secret('cookie')}"),
    ("Proxy-Authorization", f"Basic {secret('proxy-authorization')}"),
    ("X-Anything", secret("header")),
]
QUERY = f"?key={secret('query')}&api_key={secret('query-2')}"
PROMPT = {
    "model": "tiny",
    "messages": [{"role": "user", "content": secret("prompt")}],
    "tools": [{"type": "function", "function": {"name": secret("tool")}}],
    "user": secret("user"),
    "metadata": {"a": secret("metadata")},
}
STREAMED = json.dumps({**PROMPT, "stream": True}).encode()
PLAIN = json.dumps(PROMPT).encode()
ERROR = {"message": secret("error-message"), "type": "server_error", "param": secret("param"), "code": None}

ANSWERS = {
    b"stream": SSE_HEAD
    + chunk(chat_chunk({"role": "assistant", "content": secret("answer")}))
    + chunk(chat_chunk({"reasoning_content": secret("reasoning")}))
    + chunk(chat_chunk({"tool_calls": [{"index": 0, "function": {"arguments": secret("arguments")}}]}))
    + chunk(chat_chunk({}, finish="stop") + b"data: [DONE]\n\n")
    + LAST_CHUNK,
    b"plain": response(json.dumps({"choices": [{"message": {"content": secret("answer")}}]}).encode()),
    b"error-400": response(json.dumps({"error": ERROR}).encode(), b"application/json", b"400 Bad Request"),
    b"error-500": response(secret("traceback").encode(), b"text/plain", b"500 Oh"),
    b"error-event": SSE_HEAD + chunk(chat_chunk({"content": "a"}) + sse({"error": ERROR})) + LAST_CHUNK,
    b"broken-event": SSE_HEAD + chunk(f"data: {{{secret('broken-event')}\n\n".encode()) + LAST_CHUNK,
    b"headers": response(
        b"{}", b"application/json", extra=f"Set-Cookie: {secret('set-cookie')}\r\n".encode()
    ),
    b"nonsense": f"HTTP/9 {secret('nonsense')}\r\n\r\n".encode(),
    b"half-a-head": f"HTTP/1.1 200 OK\r\nx: {secret('half-a-head')}".encode(),
    b"short": f"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n{secret('short')}".encode(),
    b"bad-chunk": SSE_HEAD + f"zz{secret('bad-chunk')}\r\n".encode(),
}
CLOSES = (b"nonsense", b"half-a-head", b"short", b"bad-chunk")


@dataclass
class Written:
    """Everything that was written or shown, by where."""

    texts: dict[str, str] = field(default_factory=dict)

    def leaks(self) -> list[str]:
        """Where a secret stands, and which."""
        return [
            f"{where}: {found}"
            for where, text in self.texts.items()
            for found in re.findall(rf"{MARK}[-a-z0-9]*", text, re.IGNORECASE)
        ]


async def answer(conn: Connection, asked: Request) -> None:
    which = asked.head.get(b"x-want") or b"plain"
    await conn.send(ANSWERS[which])
    if which in CLOSES:
        conn.transport.close()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with scripted(serve_forever(answer)) as server:
        yield server


def config(upstream: Upstream, folder: Path) -> dict[str, object]:
    return {
        "backends": {
            "default": {"url": upstream.url},
            "down": {"url": f"http://127.0.0.1:{free_port()}"},
            "nowhere": {"url": "http://no-such-host.invalid"},
        },
        "routes": [
            {"match": {"path": "/down/*"}, "backend": "down"},
            {"match": {"path": "/nowhere/*"}, "backend": "nowhere"},
            {"match": {"path": "/v1/*"}, "backend": "default"},
        ],
        "trace_log": str(folder / "trace.jsonl"),
        "timeouts": {"client_head": "300ms"},
        "record_headers": {"request_id": "x-request-id"},
    }


def say(legato: Legato, sent: bytes) -> bytes:
    """Send it and return everything that comes, the connection closed by us at its end."""
    with RawClient(legato.data) as client:
        client.send(sent)
        got = client.response()
        return got.head.raw + got.body


def with_secrets(path: str, body: bytes, want: str = "", *more: tuple[str, str]) -> bytes:
    wanted = [("X-Want", want)] if want else []
    return post(path + QUERY, body, *HEADERS, *wanted, *more)


def wrong_requests() -> dict[str, bytes]:
    """Requests that we refuse ourselves: the answer is ours."""
    host = ("Host", "legato.test")
    return {
        "no-route": with_secrets("/elsewhere", STREAMED),
        "down": with_secrets("/down/chat/completions", STREAMED),
        "nowhere": with_secrets("/nowhere/chat/completions", STREAMED),
        "no-host": request("GET", f"/v1{QUERY}", HEADERS),
        "bare": f"{secret('line')} {secret('line')}\r\n\r\n".encode(),
        "two-lengths": request("POST", f"/v1{QUERY}", [host, *HEADERS, ("Content-Length", "1, 2")]),
        "large-head": request("GET", f"/v1{QUERY}", [host, ("X", secret("large") * 20_000)]),
        "upgrade": request(
            "GET", f"/v1{QUERY}", [host, ("Connection", "upgrade"), ("Upgrade", "websocket"), *HEADERS]
        ),
        "expect": request("GET", f"/v1{QUERY}", [host, ("Expect", secret("expect")), *HEADERS]),
        "coding": request("POST", f"/v1{QUERY}", [host, ("Transfer-Encoding", secret("coding")), *HEADERS]),
        "method": request("CONNECT", f"{secret('connect')}:443", [host, *HEADERS]),
        "unfinished": request("POST", f"/v1{QUERY}", [host, *HEADERS, ("Content-Length", "999")], PLAIN),
    }


def everything(legato: Legato) -> Written:
    """Files, streams, metrics, every route of the admin API."""
    written = Written()
    for file in legato.folder.rglob("*"):
        if file.is_file():
            written.texts[file.name] = file.read_text(errors="replace")
    paths = [path for path, verbs in legato.json("/openapi.json")["paths"].items() if "get" in verbs]
    assert "/api/requests/{id}" in paths
    ids = [record["id"] for record in legato.records()]
    for path in paths:
        for id_ in ids if "{" in path else [""]:
            _, body = legato.get(re.sub(r"\{\w+\}", id_, path))
            written.texts[f"{path} {id_}".strip()] = body.decode(errors="replace")
    for more in ("?sort=worst", "?outcome=upstream_error", f"/{SEEN_ID}"):
        written.texts[f"/api/requests{more}"] = legato.get(f"/api/requests{more}")[1].decode()
    return written


def test_no_secret_is_written_anywhere(upstream: Upstream, tmp_path: Path) -> None:
    with serve(config=config(upstream, tmp_path)) as legato:
        passed = {
            want: say(legato, with_secrets(CHAT, STREAMED, want.decode()))
            for want in ANSWERS
            if want not in (b"nonsense", b"half-a-head")
        }
        assert secret("answer").encode() in passed[b"stream"], "the client gets what the server said"
        ours = Written()
        for want in (b"nonsense", b"half-a-head"):
            ours.texts[want.decode()] = say(legato, with_secrets(CHAT, STREAMED, want.decode())).decode()
        for name, sent in wrong_requests().items():
            ours.texts[name] = say(legato, sent).decode()
        say(legato, with_secrets(CHAT, b'{"' + STREAMED, "stream"))  # broken JSON
        say(legato, with_secrets(CHAT, STREAMED, "stream", ("X-Request-Id", SEEN_ID)))
        say(legato, with_secrets(f"http://{secret('userinfo')}@legato.test{CHAT}", STREAMED, "stream"))
        with RawClient(legato.data) as leaver:
            leaver.send(with_secrets(CHAT, STREAMED, "stream") + with_secrets(CHAT, PLAIN)[:-5])
        first = upstream.requests[0].raw
        assert all(value.encode() in first for _, value in HEADERS), "and the server what the client said"
        assert all(text.startswith("HTTP/1.1 ") for text in ours.texts.values())
        assert ours.leaks() == []

        made = len(passed) + len(ours.texts) + 3
        eventually(lambda: len(legato.records()) >= made, 10, "every record")
        trace = tmp_path / "trace.jsonl"
        eventually(lambda: trace.exists() and trace.stat().st_size, 10, "the trace log")
        written = everything(legato)
        written.texts["trace"] = trace.read_text()
        assert SEEN_ID in written.texts["stdout"], "what may be written is found where it should stand"
        assert SEEN_ID in written.texts["/api/requests"]
        assert '"events"' in written.texts["trace"]
        assert 'outcome="upstream_error"' in written.texts["/metrics"]
        assert written.leaks() == []
