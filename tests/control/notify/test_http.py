"""One POST against a real server that answers badly: what came of it, in our own words."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from email.utils import formatdate

import pytest
import trustme
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.control.notify.base import Outcome
from proxy.control.notify.http import READ_MOST, Answer, Post, patience_ns, tls_context
from proxy.settings.notify_url import problem_of
from tests.control.notify.notices import S
from tests.helpers.procs import free_port
from tests.helpers.receiver import (
    CLOSE,
    ENDLESS,
    GARBAGE,
    HALF,
    HANG,
    OK,
    Behaviour,
    cut_off,
    receiver,
    status,
)

MS = 1_000_000


def post(url: str, timeout_ns: int = 3 * S) -> Outcome:
    """One attempt, from nothing, on the loop that the control process has."""
    poster = Post(url, timeout_ns, "1.2", lambda: 0)

    async def go() -> Outcome:
        return poster.outcome(await poster(b"{}", {"X-Legato-Id": "m1"}))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(go())


AGAIN, NEVER, TAKEN = "again", "never", "taken"
CASES: list[tuple[str, Behaviour, str, str]] = [
    ("ok", OK, TAKEN, "answered 200"),
    ("no content", status(204, b""), TAKEN, "answered 204"),
    ("bad request", status(400), NEVER, "answered 400"),
    ("forbidden", status(403), NEVER, "answered 403"),
    ("gone", status(410), NEVER, "answered 410"),
    ("timeout", status(408), AGAIN, "answered 408"),
    ("too early", status(425), AGAIN, "answered 425"),
    ("too many", status(429), AGAIN, "answered 429"),
    ("server error", status(500), AGAIN, "answered 500"),
    ("unavailable", status(503), AGAIN, "answered 503"),
    ("redirect", status(302, Location="/k3y"), NEVER, "answered 302, a redirect, and none is followed"),
    ("moved", status(308, Location="/k3y"), NEVER, "answered 308, a redirect, and none is followed"),
    ("closed", CLOSE, AGAIN, "it closed the connection, or what it answers is no HTTP"),
    ("garbage", GARBAGE, AGAIN, "it closed the connection, or what it answers is no HTTP"),
    ("garbage in a body", status(200, b"\x00\xff<html>"), TAKEN, "answered 200"),
    ("an endless body", ENDLESS, TAKEN, "answered 200"),
]


@pytest.mark.parametrize(
    ("behaviour", "then", "said"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_what_came_of_it(behaviour: Behaviour, then: str, said: str) -> None:
    with receiver() as ops:
        ops.answers(behaviour)
        outcome = post(ops.url)
        assert outcome.said == said
        assert (outcome.taken, outcome.again) == (then == TAKEN, then == AGAIN)
        assert len(ops.received) == 1, "one attempt is one request"


@pytest.mark.parametrize(("behaviour", "taken"), [(HANG, False), (HALF, True)])
def test_one_deadline_over_all_of_it(behaviour: Behaviour, taken: bool) -> None:
    with receiver() as ops:
        ops.answers(behaviour)
        began = time.monotonic()
        outcome = post(ops.url, 300 * MS)
        assert 0.2 < time.monotonic() - began < 1.5
        assert outcome.taken is taken, "what was answered 200 was taken, however its body ends"
        assert outcome.said == ("answered 200" if taken else "no answer within 300ms")
        assert outcome.again is not taken


def test_nobody_there() -> None:
    outcome = post(f"http://127.0.0.1:{free_port()}/k3y")
    assert outcome == Outcome(taken=False, said="it refuses connections", again=True)


def test_a_name_that_is_none() -> None:
    outcome = post("http://nobody.invalid/k3y", 10 * S)
    assert outcome == Outcome(taken=False, said="its name cannot be resolved", again=True)


def test_a_name_that_no_dns_can_have_is_an_outcome() -> None:
    assert post("http://xn--/k3y") == Outcome(taken=False, said="its host is no name")


_PARTS = ["a", "1", ".", ":", "/", "[", "]", "%", "?", "-", "_", "(", ";", "xn--", "::1", "[::1]", ":80"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(_PARTS), max_size=10).map("".join))
def test_what_passes_the_check_of_settings_can_be_posted_to(rest: str) -> None:
    if problem_of(f"http://{rest}") is None:
        Post(f"http://{rest}", S, "1.2", lambda: 0)


def test_no_tls_there() -> None:
    with receiver() as ops:
        ops.answers(GARBAGE)
        outcome = post(ops.url.replace("http://", "https://"))
        assert (outcome.taken, outcome.again, outcome.said) == (False, True, "TLS failed")


def test_a_certificate_of_nobody_we_know(monkeypatch: pytest.MonkeyPatch) -> None:
    import ssl
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"https://127.0.0.1:{server.server_address[1]}/k3y"
        assert post(url).said == "its certificate is not trusted"
        trusting = ssl.create_default_context()
        ca.configure_trust(trusting)
        monkeypatch.setattr("proxy.control.notify.http.tls_context", lambda: trusting)
        assert post(url).taken
        server.shutdown()
    assert tls_context().verify_mode == ssl.CERT_REQUIRED


def test_an_answer_is_read_up_to_its_limit() -> None:
    async def go(url: str) -> Answer:
        answer = await Post(url, 3 * S, "1.2", lambda: 0)(b"{}", {})
        assert isinstance(answer, Answer)
        return answer

    with receiver() as ops:
        ops.answers(status(200, b"x" * READ_MOST), status(200, b"x" * (READ_MOST + 1)), cut_off(b"xx"))
        assert asyncio.run(go(ops.url)) == Answer(200, b"x" * READ_MOST, True, None)
        assert asyncio.run(go(ops.url)) == Answer(200, b"x" * READ_MOST, False, None), "it is longer"
        assert asyncio.run(go(ops.url)) == Answer(200, b"xx", False, None), "it broke off"


def test_what_a_request_says_of_itself() -> None:
    with receiver() as ops:
        post(ops.url)
        (got,) = ops.received
        assert (got.method, got.path, got.body) == ("POST", "/services/T0/B0/k3y-in-the-path", b"{}")
        assert got.headers["content-type"] == "application/json"
        assert got.headers["user-agent"] == "legato/1.2"
        assert got.headers["x-legato-id"] == "m1"
        assert got.headers["accept-encoding"] == "identity"
        assert "cookie" not in got.headers


def test_the_environment_names_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
    with receiver() as ops:
        assert post(ops.url).taken


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        (None, None),
        ("3", 3 * S),
        (" 120 ", 120 * S),
        (formatdate(1_000, usegmt=True), 100 * S),
        (formatdate(800, usegmt=True), 0),
        ("-3", None),
        ("soon", None),
        ("99999999999999999999", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str | None, ns: int | None) -> None:
    assert patience_ns(text, 900 * S) == ns


_CROWDED = """
import asyncio, os, resource, sys
from proxy.control.notify.http import Post, tls_context

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
post = Post(sys.argv[1], 10**9, "1", lambda: 0)

async def go():
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        pass
    outcome = post.outcome(await post(b"{}", {}))
    for each in taken:
        os.close(each)
    print(outcome.again, outcome.said, sep="|")

asyncio.run(go())
print(tls_context().cert_store_stats()["x509_ca"])
"""


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_process_that_may_open_no_more_files_tries_again_later(scheme: str) -> None:
    """When everything goes wrong at once; and it must not go on without authorities after it."""
    command = [sys.executable, "-c", _CROWDED, f"{scheme}://127.0.0.1:{free_port()}/x"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    said, authorities = done.stdout.splitlines()
    assert said == "True|this process may open no more files"
    assert int(authorities) == tls_context().cert_store_stats()["x509_ca"]
