"""TLS on both sides, Unix sockets behind, certificates that change while it runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.helpers.http1 import chunk
from tests.helpers.procs import Legato, eventually, serve
from tests.helpers.rawclient import RawClient, Response, get, post
from tests.helpers.upstream import SSE_HEAD, Connection, Upstream, chat_events, chat_stream, respond, scripted

HELLO = chat_stream(["hel", "lo"])
BODY = b"".join(chat_events(["hel", "lo"]))


class Authority:
    """A CA whose files lie in a folder: ``ca.pem``, ``NAME.pem``, ``NAME.key``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.ca = trustme.CA()
        self.file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.file)

    def issue(self, name: str, *hosts: str) -> tuple[str, str]:
        """Paths of a certificate and its key; written whole, then moved into place."""
        issued = self.ca.issue_cert(*hosts)
        files = (self.folder / f"{name}.pem", self.folder / f"{name}.key")
        issued.private_key_pem.write_to_path(files[1].with_suffix(".new"))
        (files[0].with_suffix(".new2")).write_bytes(b"".join(b.bytes() for b in issued.cert_chain_pems))
        os.replace(files[1].with_suffix(".new"), files[1])
        os.replace(files[0].with_suffix(".new2"), files[0])
        return str(files[0]), str(files[1])

    def trusting(self) -> ssl.SSLContext:
        """A client that trusts nobody else."""
        return ssl.create_default_context(cafile=self.file)


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "mine")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "other")


# ---------------------------------------------------------------- a server behind TLS, or a Unix socket


@contextmanager
def in_front(
    upstream: Upstream, listener: socket.socket, tls: ssl.SSLContext | None = None
) -> Iterator[list[Any]]:
    """Carries connections of ``listener`` to ``upstream`` byte by byte; yields the clients' certificates."""
    seen: list[Any] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def carry(raw: socket.socket) -> None:
        with ExitStack() as stack:
            stack.enter_context(raw)
            try:
                sock = stack.enter_context(tls.wrap_socket(raw, server_side=True)) if tls else raw
            except OSError:
                return
            if isinstance(sock, ssl.SSLSocket):
                seen.append(sock.getpeercert())
            behind = stack.enter_context(socket.create_connection(upstream.address))
            back = threading.Thread(target=pump, args=(behind, sock), daemon=True)
            back.start()
            pump(sock, behind)
            back.join(10)

    def accept() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=carry, args=(raw,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def server_side(cert: tuple[str, str], clients: Authority | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*cert)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients.file)
    return context


def ask(legato: Legato, sent: bytes | None = None, tls: ssl.SSLContext | None = None) -> Response:
    with RawClient(legato.data, tls=tls) as client:
        client.send(sent or post())
        return client.response()


def expect_stream(answer: Response) -> None:
    assert (answer.status, answer.end, answer.body) == (200, "complete", BODY)


# ---------------------------------------------------------------- listening


def serial(legato: Legato, tls: ssl.SSLContext) -> Any:
    with RawClient(legato.data, tls=tls) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        certificate = client.sock.getpeercert()
        assert certificate is not None
        return certificate["serialNumber"]


def test_clients_over_tls_and_a_certificate_replaced_on_disk(mine: Authority) -> None:
    cert, key = mine.issue("front", "localhost")

    async def slow(conn: Connection) -> None:
        await conn.request()
        first, rest = HELLO[: len(SSE_HEAD) + 5], HELLO[len(SSE_HEAD) + 5 :]
        await conn.send(first)
        await conn.told()
        await conn.send(rest)

    with (
        scripted(respond(HELLO)) as upstream,
        serve(upstream.url, flags=["--tls-cert", cert, "--tls-key", key]) as legato,
    ):
        tls = mine.trusting()
        expect_stream(ask(legato, tls=tls))
        first = serial(legato, tls)
        workers = legato.workers()

        upstream.use(slow)
        with RawClient(legato.data, tls=tls) as client:
            client.send(post())
            answer = client.begin()
            mine.issue("front", "localhost")
            eventually(lambda: serial(legato, tls) != first, 10, "the new certificate", 0.1)
            upstream.connection().tell()
            expect_stream(client.read_into(answer))  # what was open goes on with the old one
        assert legato.workers() == workers
        second = serial(legato, tls)

        # A pair that does not fit is not taken, and the one before stays.
        shutil.copy(mine.issue("stray", "localhost")[1], key)
        legato.send_signal(signal.SIGHUP)
        eventually(lambda: "is not the key of the certificate" in legato.stderr, 10, "the refusal")
        assert serial(legato, tls) == second


def test_plain_http_to_a_tls_port_gets_no_answer_and_harms_nobody(mine: Authority) -> None:
    cert, key = mine.issue("front", "localhost")
    with (
        scripted(respond(HELLO)) as upstream,
        serve(upstream.url, flags=["--tls-cert", cert, "--tls-key", key]) as legato,
    ):
        with RawClient(legato.data) as plain:
            plain.send(get())
            assert plain.rest() == b"" or plain.ended
        with pytest.raises(ssl.SSLCertVerificationError):
            RawClient(legato.data, tls=ssl.create_default_context())
        expect_stream(ask(legato, tls=mine.trusting()))
        assert len(upstream.requests) == 1


# ---------------------------------------------------------------- upstream


def test_https_with_its_own_ca_and_a_client_certificate(mine: Authority, other: Authority) -> None:
    ours = other.issue("legato", "legato.test")
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"https://localhost:{listener.getsockname()[1]}/base"
    tls = {"ca_file": str(mine.file), "cert_file": ours[0], "key_file": ours[1]}
    with (
        scripted(respond(HELLO)) as upstream,
        in_front(upstream, listener, server_side(mine.issue("back", "localhost"), other)) as certificates,
        serve(config={"backends": {"default": {"url": url, "tls": tls}}}) as legato,
    ):
        expect_stream(ask(legato))
        expect_stream(ask(legato))
        (request, _) = upstream.requests
        assert request.head.get(b"host") == url.split("/")[2].encode(), "https servers get their own name"
        assert request.target == b"/base/v1/chat/completions"
        assert certificates
        assert all(("DNS", "legato.test") in cert["subjectAltName"] for cert in certificates)


def test_the_name_to_check_can_be_given(mine: Authority) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"https://127.0.0.1:{listener.getsockname()[1]}"
    backend = {"url": url, "tls": {"ca_file": str(mine.file), "server_name": "inside.test"}}
    with (
        scripted(respond(HELLO)) as upstream,
        in_front(upstream, listener, server_side(mine.issue("inside", "inside.test"))),
        serve(config={"backends": {"default": backend}}) as legato,
    ):
        expect_stream(ask(legato))


async def plain(conn: Connection) -> None:
    """What an HTTP server says to a TLS client."""
    await conn.send(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")


def test_what_cannot_be_trusted_is_502(mine: Authority, other: Authority) -> None:
    """One backend for each way in which it can go wrong."""
    cases: dict[str, tuple[ssl.SSLContext | None, dict[str, Any]]] = {
        "wrong-ca": (server_side(mine.issue("a", "localhost")), {"ca_file": str(other.file)}),
        "wrong-name": (server_side(mine.issue("b", "elsewhere.test")), {"ca_file": str(mine.file)}),
        "no-client-certificate": (
            server_side(mine.issue("c", "localhost"), other),
            {"ca_file": str(mine.file)},
        ),
        "not-tls": (None, {"ca_file": str(mine.file)}),
        "system-cas": (server_side(mine.issue("d", "localhost")), {}),
    }
    with ExitStack() as stack:
        upstream = stack.enter_context(scripted(respond(HELLO)))
        no_tls = stack.enter_context(scripted(plain))
        backends: dict[str, Any] = {}
        for name, (context, tls) in cases.items():
            listener = socket.create_server(("127.0.0.1", 0))
            stack.enter_context(in_front(upstream if context else no_tls, listener, context))
            backends[name] = {"url": f"https://localhost:{listener.getsockname()[1]}", "tls": tls}
        routes = [{"match": {"path": f"/{name}"}, "backend": name} for name in cases]
        legato = stack.enter_context(serve(config={"backends": backends, "routes": routes}))
        for name in cases:
            answer = ask(legato, post(f"/{name}"))
            assert answer.status == 502, name
            record = legato.record(path=f"/{name}")
            assert record["outcome"] == "upstream_error"
            if name != "no-client-certificate":  # TLS 1.3 lets the client finish before the server refuses
                assert json.loads(answer.body)["error"]["code"] == record["error"] == "tls_failed", name
        assert upstream.requests == no_tls.requests == []
        for sample, labels, value in legato.metrics().samples:
            if sample == "legato_backend_connections":
                assert value >= 0, labels  # a connection that never was is counted by nobody


def test_verification_can_be_switched_off(mine: Authority) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    backend = {"url": f"https://localhost:{listener.getsockname()[1]}", "tls": {"verify": False}}
    with (
        scripted(respond(HELLO)) as upstream,
        in_front(upstream, listener, server_side(mine.issue("lax", "elsewhere.test"))),
        serve(config={"backends": {"default": backend}}) as legato,
    ):
        expect_stream(ask(legato))


def test_a_unix_socket_behind(tmp_path: Path) -> None:
    path = str(tmp_path / "server.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    with (
        scripted(respond(HELLO)) as upstream,
        in_front(upstream, listener),
        serve(config={"backends": {"default": {"uds": path}}}) as legato,
    ):
        expect_stream(ask(legato))
        assert upstream.wait_request().head.get(b"host") == b"legato.test"
        assert legato.record(outcome="completed")["upstream_addr"]
    # and one that nobody listens on
    with serve(config={"backends": {"default": {"uds": str(tmp_path / "nobody.sock")}}}) as legato:
        answer = ask(legato)
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (502, "unreachable")


def test_large_bodies_over_tls_on_both_sides(mine: Authority) -> None:
    cert, key = mine.issue("front", "localhost")
    listener = socket.create_server(("127.0.0.1", 0))
    backend = {"url": f"https://localhost:{listener.getsockname()[1]}", "tls": {"ca_file": str(mine.file)}}
    sent, events = os.urandom(5_000_000), [b"data: " + os.urandom(30_000).hex().encode() + b"\n\n"] * 80

    async def answers(conn: Connection) -> None:
        assert (await conn.request()).body == sent
        await conn.send(SSE_HEAD)
        for event in events:
            await conn.pour(chunk(event), 1)
        await conn.send(b"0\r\n\r\n")
        await conn.client_gone()

    with (
        scripted(answers) as upstream,
        in_front(upstream, listener, server_side(mine.issue("back", "localhost"))),
        serve(
            config={"backends": {"default": backend}, "tls": {"cert_file": cert, "key_file": key}}
        ) as legato,
    ):
        answer = ask(legato, post(body=sent), mine.trusting())
        assert (answer.status, answer.end) == (200, "complete")
        assert answer.body == b"".join(events)
