"""Every recorded exchange through Legato: the same bytes both ways, the same kind of end, the same tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.helpers.http1 import Headers, parse_head
from tests.helpers.procs import Legato, eventually, serve
from tests.helpers.rawclient import RawClient, Response, chunked, get, post, request
from tests.helpers.recordings import Recording, all_recordings, names
from tests.helpers.replay import HEADER, Tape, ending_of, plan, replaying
from tests.helpers.upstream import Request, Upstream, respond, response, scripted

#: A recording is played in at most this time.
SECONDS = 0.3
#: As recorded, and cut at random by these seeds.
SPLITS = (None, 1, 2)
AT_ONCE = 24
#: What a record says of a response and may not depend on how it was cut.
MEASURED = (
    "status",
    "stream",
    "dialect",
    "model",
    "outcome",
    "finish_reason",
    "response_id",
    "prompt_tokens",
    "output_tokens",
    "tokens_observed",
    "tokens_reported",
    "tokens_source",
    "events",
    "unmeasured",
)

RECORDINGS = {recording.name: recording for recording in all_recordings()}


@dataclass(frozen=True)
class Exchange:
    """One recording as it went through: what the client got, what the upstream saw, what was recorded."""

    answer: Response
    asked: Request
    record: dict[str, Any]


NO_REUSE = {"timeouts": {"upstream_keepalive": "1us"}}


def backend(upstream: Upstream) -> dict[str, Any]:
    return {"backends": {"default": {"url": upstream.url}}}


Exchanges = dict[tuple[str, int | None], Exchange]


def label(name: str, split: int | None) -> str:
    return f"{name}/{split}"


def request_of(recording: Recording, split: int | None) -> bytes:
    headers = [*recording.request_headers, plan(recording.name, seconds=SECONDS, split=split)]
    headers.append(("X-Request-Id", label(recording.name, split)))
    return request(recording.method, recording.path, headers, recording.request_body)


def run(legato: Legato, recording: Recording, split: int | None) -> Response:
    """Send the recorded request and read its answer; leave where the recorded client left."""
    with RawClient(legato.data, timeout_s=60) as client:
        client.send(request_of(recording, split))
        answer = client.begin()
        if ending_of(recording.end) == "client_closes":
            return client.read_into(answer, at_least=len(recording.response().whole))
        return client.read_into(answer)


@pytest.fixture(scope="module")
def exchanges() -> Iterator[Exchanges]:
    """All recordings, each in every split, through one Legato."""
    keys = [(name, split) for name in RECORDINGS for split in SPLITS]
    tapes = [Tape(r.name, r.pieces, ending_of(r.end)) for r in RECORDINGS.values()]
    # Some recorded servers close behind a response that promised more. A request that takes such a connection
    # at that moment fails, as it must where nothing is sent twice: here no connection is used twice.
    with replaying(tapes) as upstream, serve(config=NO_REUSE | backend(upstream)) as legato:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = dict(zip(keys, pool.map(lambda key: run(legato, *of(key)), keys), strict=True))
        records = recorded(legato, len(keys))
        # On a machine that others keep busy a worker sheds measuring: then those are asked once more, alone.
        shed = [key for key in keys if records[label(*key)]["unmeasured"] == "shed"]
        for key in shed:
            answers[key] = run(legato, *of(key))
        records = recorded(legato, len(keys) + len(shed))
        asked = {request_id(request.head.headers): request for request in upstream.requests}
        yield {
            key: Exchange(answer, asked[label(*key)], records[label(*key)]) for key, answer in answers.items()
        }


def of(key: tuple[str, int | None]) -> tuple[Recording, int | None]:
    return RECORDINGS[key[0]], key[1]


def recorded(legato: Legato, count: int) -> dict[str, dict[str, Any]]:
    """The last record of each request, once there are so many."""
    eventually(lambda: len(legato.records()) >= count, 20, "a record per request", every_s=0.1)
    return {record["request_id"]: record for record in legato.records()}


def request_id(headers: Headers) -> str:
    return next(value for name, value in headers if name == b"X-Request-Id").decode()


def end_to_end_of(recording: Recording) -> Headers:
    """The recorded response's headers that a proxy must hand on."""
    gone = {b"connection", b"keep-alive", b"transfer-encoding"}
    return [(name, value) for name, value in recording.response().headers if name.lower() not in gone]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", names())
def test_the_response_is_the_recorded_one(exchanges: Exchanges, name: str, split: int | None) -> None:
    recorded, answer = RECORDINGS[name].response(), exchanges[name, split].answer
    assert answer.head.words == (b"HTTP/1.1", *status_line(RECORDINGS[name])[1:])
    assert answer.head.end_to_end() == end_to_end_of(RECORDINGS[name])
    assert hashlib.sha256(answer.body).hexdigest() == hashlib.sha256(recorded.whole).hexdigest()
    if ending_of(RECORDINGS[name].end) == "client_closes":
        assert answer.end == "open"
    else:
        assert answer.end == ("complete" if recorded.complete else "truncated")


def status_line(recording: Recording) -> list[bytes]:
    return recording.raw.partition(b"\r\n")[0].split(b" ", 2)


@pytest.mark.parametrize("name", names())
def test_the_request_is_what_the_client_sent(exchanges: Exchanges, name: str) -> None:
    for split in SPLITS:
        sent = request_of(RECORDINGS[name], split).replace(b"Connection: close\r\n", b"")
        assert exchanges[name, split].asked.raw == sent


@pytest.mark.parametrize("name", names())
def test_what_was_measured_does_not_depend_on_the_splits(exchanges: Exchanges, name: str) -> None:
    seen = [{key: exchanges[name, split].record[key] for key in MEASURED} for split in SPLITS]
    assert seen[1:] == seen[:-1]


def test_the_recordings_cover_every_kind_of_end(exchanges: Exchanges) -> None:
    ends = {exchange.answer.end for exchange in exchanges.values()}
    assert ends == {"complete", "truncated", "open"}
    outcomes = {exchange.record["outcome"] for exchange in exchanges.values()}
    assert outcomes >= {"completed", "client_cancelled", "rejected", "upstream_error"}


# ---------------------------------------------------------------- requests, byte for byte


@pytest.fixture(scope="module")
def echo() -> Iterator[tuple[Legato, Upstream]]:
    """A Legato before a server that answers everything with two bytes."""
    with scripted(respond(response(b"ok"))) as upstream, serve(upstream.url) as legato:
        yield legato, upstream


def through(echo: tuple[Legato, Upstream], sent: bytes) -> Request:
    """Send a request and return what the upstream saw."""
    legato, upstream = echo
    before = len(upstream.requests)
    with RawClient(legato.data) as client:
        client.send(sent)
        assert client.response().body == b"ok"
    return upstream.wait_request(before)


@pytest.mark.parametrize(
    "target",
    [
        "/x",
        "/x?",
        "/x??",
        "/?",
        "//",
        "//double//slashes",
        "/a/./b/../c",
        "/%2e%2e/%2E%2E/",
        "/a%2Fb%2fb",
        "/%zz/%/%4",
        "/a;b=c/d,e",
        "/x?a=b&&=&a=c",
        "/x?q=%00%0d%0a",
        "/x?a=[b]{c}|d\\e^f`g\"<h>'",
        "/" + "a" * 30_000,
        "/*",
    ],
)
def test_the_target_keeps_its_bytes(echo: tuple[Legato, Upstream], target: str) -> None:
    sent = get(target)
    assert through(echo, sent).raw == sent


@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS", "PUT", "PATCH", "PROPFIND"])
def test_every_method_passes(echo: tuple[Legato, Upstream], method: str) -> None:
    sent = request(method, "/v1/x", [("Host", "x")])
    assert through(echo, sent).raw == sent


def test_options_of_the_server_as_a_whole(echo: tuple[Legato, Upstream]) -> None:
    sent = request("OPTIONS", "*", [("Host", "x")])
    assert through(echo, sent).target == b"*"


def test_the_absolute_form_becomes_the_origin_form(echo: tuple[Legato, Upstream]) -> None:
    assert through(echo, get("http://legato.test/a?b")).target == b"/a?b"


def test_headers_keep_order_case_number_and_bytes(echo: tuple[Legato, Upstream]) -> None:
    headers: list[tuple[str | bytes, str | bytes]] = [
        ("hOST", "x"),
        ("X-a", "1"),
        ("x-A", "2"),
        ("Cookie", "a=b"),
        ("X-a", "3"),
        ("Cookie", "c=d"),
        ("Authorization", "Bearer sk-1"),
        (b"X-Latin", b"caf\xe9 \xff"),
        ("X-Spaces", "a  b\tc"),
        ("X-Empty", ""),
        ("Accept-Encoding", "gzip, br"),
        ("X-Forwarded-For", "10.0.0.1"),
        ("Via", "1.1 other"),
        ("X!#$%&'*+-.^_`|~", "odd name"),
    ]
    sent = request("GET", "/v1/x", headers)
    assert through(echo, sent).raw == sent


def test_hop_by_hop_headers_end_here(echo: tuple[Legato, Upstream]) -> None:
    hop = [
        ("Connection", "keep-alive, X-Mine"),
        ("X-Mine", "1"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
    ]
    seen = through(echo, request("GET", "/", [("Host", "x"), *hop, ("X-Yours", "2")]))
    assert seen.head.headers == [(b"Host", b"x"), (b"X-Yours", b"2")]


def test_connection_cannot_take_the_framing_away(echo: tuple[Legato, Upstream]) -> None:
    seen = through(echo, post("/v1/x", b"four", ("Connection", "content-length, host")))
    assert seen.body == b"four"
    assert seen.head.get(b"host") is not None


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 1_000_000])
def test_a_body_keeps_its_bytes(echo: tuple[Legato, Upstream], size: int) -> None:
    body = bytes(number * 31 % 256 for number in range(size))
    assert through(echo, post("/v1/x", body)).body == body
    framed = request(
        "POST", "/v1/x", [("Host", "x"), ("Transfer-Encoding", "chunked")], chunked(body, [1, 7])
    )
    assert through(echo, framed).body == body


def test_response_headers_keep_order_case_number_and_bytes(echo: tuple[Legato, Upstream]) -> None:
    extra = b"Set-Cookie: a=1\r\nX-b: 1\r\nset-cookie: b=2\r\nX-B:\r\nX-Latin: \xe9\xff\r\nServer: theirs\r\n"
    raw = response(b"ok", status=b"299 Quite Fine", extra=extra)
    legato, upstream = echo
    upstream.use(respond(raw))
    with RawClient(legato.data) as client:
        client.send(get())
        answer = client.response()
    assert answer.head.words == (b"HTTP/1.1", b"299", b"Quite Fine")
    assert answer.headers == parse_head(raw.removesuffix(b"ok")).headers


def test_no_header_is_added_to_the_replayed_requests(exchanges: Exchanges) -> None:
    for exchange in exchanges.values():
        sent = {HEADER.encode(), b"X-Request-Id", b"Host", b"User-Agent", b"Accept", b"Content-Type"}
        assert {name for name, _ in exchange.asked.head.headers} <= sent | {b"Content-Length"}
