"""The control process itself, as the supervisor starts it: inherited sockets, signals, reload, end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from proxy.config import Boot, load
from proxy.control import controller
from proxy.link import Ack, FactsBatch, Frames, Table, Up, Usage, decode_down, frame
from proxy.tasks import child
from tests.control.facts import at, facts, streamed
from tests.control.test_workers import beat, hello, now
from tests.helpers.procs import eventually, patience_s

SECRET = "sk-planted-secret"


class Running:
    """A control process with a configuration file, and one scripted worker on its link."""

    def __init__(self, folder: Path, settings: str) -> None:
        self.file = folder / "legato.yaml"
        self.file.write_text(settings)
        self.stderr = folder / "stderr"
        self.path = str(folder / "link")
        admin = socket.create_server(("127.0.0.1", 0))
        link = socket.socket(socket.AF_UNIX)
        link.bind(self.path)
        link.listen()
        boot = json.dumps({"file": str(self.file), "flags": {}})
        self.sockets = (admin, link)
        fds = [str(sock.fileno()) for sock in self.sockets]
        module = ["-m", "proxy.control.controller", "--boot", boot]
        with open(self.stderr, "w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *module, "--admin-fd", fds[0], "--link-fd", fds[1]],
                pass_fds=[sock.fileno() for sock in self.sockets],
                stderr=stderr,
            )
        port = admin.getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        self.worker: Worker | None = None

    def connect(self) -> Worker:
        """A worker that said hello and got its table."""
        self.worker = Worker(self.path)
        self.worker.send(hello())
        self.worker.until(lambda worker: bool(worker.tables))
        return self.worker

    def get(self, path: str) -> Any:
        return self.client.get(path).json()

    def said(self) -> str:
        return self.stderr.read_text()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        self.client.close()
        if self.worker is not None:
            self.worker.socket.close()
        for sock in self.sockets:
            sock.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Worker:
    """The worker's side of the link, blocking."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(path)
        self.frames = Frames()
        self.tables: list[Table] = []
        self.acked = 0

    def send(self, *messages: Up) -> None:
        self.socket.sendall(b"".join(frame(message) for message in messages))

    def until(self, holds: Any) -> None:
        while not holds(self):
            data = self.socket.recv(65_536)
            assert data, "control closed the link"
            for payload in self.frames.feed(data):
                message = decode_down(payload)
                if isinstance(message, Ack):
                    self.acked = message.seq
                elif isinstance(message, Table):
                    self.tables.append(message)


SETTINGS = """
backends: {vllm: {url: http://127.0.0.1:1}}
slos: [{name: chat, ttft: 100ms, tbt: 50ms}]
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    logs = f"access_log: {tmp_path}/access\ntrace_log: {tmp_path}/trace\n"
    process = Running(tmp_path, SETTINGS + logs)
    try:
        yield process
    finally:
        process.close()


def test_from_hello_to_the_last_line_written(running: Running, tmp_path: Path) -> None:
    worker = running.connect()
    assert worker.tables[0].slos[0].name == "chat"
    eventually(lambda: running.get("/readyz")["ready"])
    bad = streamed(at(100), at(300), end_ms=310, seq=1, id="bad", slo="chat")
    worker.send(FactsBatch([bad, facts(seq=2, path=f"/v1/x?key={SECRET}", slo="chat")]), beat(now()))
    worker.until(lambda worker: worker.acked == 2)
    assert running.get("/api/requests/bad")["missed"] == 4
    assert running.get("/api/summary")["total"]["requests"] == 2
    assert 'legato_requests_in_flight{backend="default"' in running.client.get("/metrics").text
    worker.send(FactsBatch([facts(seq=3, id="last", slo="chat")]))

    running.signal(signal.SIGTERM)
    assert running.process.wait(patience_s(5)) == 0
    lines = [json.loads(line) for line in (tmp_path / "access").read_text().splitlines()]
    assert [line["id"] for line in lines][:1] == ["bad"]
    assert {line["slo"] for line in lines} == {"chat"}
    (trace,) = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    assert trace["events"] == [[100_000_000, 1], [300_000_000, 1]]
    for written in ("access", "trace", "stderr"):
        assert SECRET not in (tmp_path / written).read_text()


def test_a_good_file_is_reloaded_and_a_bad_one_changes_nothing(running: Running) -> None:
    worker = running.connect()
    running.file.write_text(SETTINGS.replace("100ms", "300ms"))
    running.signal(signal.SIGHUP)
    worker.until(lambda worker: worker.tables[-1].slos[0].ttft_points == ((0, 300_000_000),))
    assert worker.tables[-1].version == 2

    running.file.write_text(SETTINGS.replace("100ms", "soon"))
    running.signal(signal.SIGHUP)
    eventually(lambda: running.get("/api/config")["reload_ok"] is False)
    view = running.get("/api/config")
    assert "soon" in view["reload_error"]
    assert view["table_version"] == 2
    assert view["config"]["slos"][0]["ttft"] == "300ms"
    assert "soon" in running.said()
    assert "legato_config_reload_success 0" in running.client.get("/metrics").text

    running.file.write_text(SETTINGS)
    running.signal(signal.SIGHUP)
    worker.until(lambda worker: worker.tables[-1].version == 3)
    assert running.get("/api/config")["reload_ok"] is True


def test_a_watched_file_is_reloaded_by_itself(running: Running) -> None:
    running.file.write_text(SETTINGS + "watch: on\n")
    worker = running.connect()
    running.signal(signal.SIGHUP)
    worker.until(lambda worker: worker.tables[-1].version == 2)
    running.file.write_text(SETTINGS.replace("50ms", "70ms") + "watch: on\n")
    worker.until(lambda worker: worker.tables[-1].slos[0].tbt_ns == 70_000_000)


def test_tracing_stays_as_it_was_at_the_start_as_its_exporter_does(running: Running) -> None:
    otel = "otel: {endpoint: http://127.0.0.1:9, traces: {ratio: 50%}}\n"
    worker = running.connect()
    running.file.write_text(SETTINGS.replace("100ms", "300ms") + otel)
    running.signal(signal.SIGHUP)
    worker.until(lambda worker: worker.tables[-1].version == 2)
    assert worker.tables[-1].slos[0].ttft_points == ((0, 300_000_000),)
    assert worker.tables[-1].tracing is None  # no header is touched for spans that nobody exports
    eventually(lambda: "the change of otel takes a restart" in running.said())
    assert running.get("/api/config")["config"]["otel"]["endpoint"] is None, "what is in force is shown"
    running.signal(signal.SIGHUP)
    eventually(lambda: running.said().count("the change of otel takes a restart") == 2)


def test_a_renewed_certificate_reaches_the_workers_without_a_reload(running: Running, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    _write_certificate(certificate, key)
    running.file.write_text(SETTINGS + f"tls: {{cert_file: {certificate}, key_file: {key}}}\n")
    worker = running.connect()
    running.signal(signal.SIGHUP)
    worker.until(lambda worker: worker.tables[-1].version == 2)
    _write_certificate(certificate, key)
    worker.until(lambda worker: worker.tables[-1].version >= 3)
    assert worker.tables[-1].tls_cert_file == str(certificate)
    running.file.write_text("nonsense")  # nobody asked for it to be read
    _write_certificate(certificate, key)
    worker.until(lambda worker: worker.tables[-1].version >= 4)
    assert running.get("/api/config")["reload_ok"] is True


def _write_certificate(certificate: Path, key: Path) -> None:
    issued = trustme.CA().issue_cert("localhost")
    issued.private_key_pem.write_to_path(key)
    issued.cert_chain_pems[0].write_to_path(certificate)


def test_the_tick_fits_the_prefill_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to ask for a curve: the drift from a frozen one would stand still otherwise."""
    monkeypatch.setattr(controller, "_TICK_S", 0.001)
    boot: Boot = {"file": None, "flags": {"upstream": "http://127.0.0.1:1"}}
    with socket.create_server(("127.0.0.1", 0)) as admin, socket.socket(socket.AF_UNIX) as link:
        process = controller.Process(boot, load(boot), admin, link)
        usage = Usage(prompt=100, output=2)
        process.controller.feed(FactsBatch([streamed(at(80), at(120), end_ms=130, of={"usage": usage})]))
        (learned,) = process.controller.prefills.pairs.values()
        assert (learned.taught, learned.fit) == (1, None)

        async def ticks() -> None:
            ticking = child(process._tick())
            for _ in range(5_000):
                if learned.fit is not None:
                    break
                await asyncio.sleep(0.002)
            ticking.cancel()

        asyncio.run(ticks())
    assert learned.fit is not None
    assert learned.fit.seen == 1


def test_the_quantile_of_the_fluid_token_rate_is_that_of_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "legato.yaml"

    def settings(quantile: str) -> None:
        backends = "backends: {b: {url: http://127.0.0.1:1}}"
        file.write_text(f"{backends}\naccess_log: off\nfluid_rate: {{quantile: {quantile}}}\n")

    settings("90%")
    boot: Boot = {"file": str(file), "flags": {}}
    with socket.create_server(("127.0.0.1", 0)) as admin, socket.socket(socket.AF_UNIX) as link:
        process = controller.Process(boot, load(boot), admin, link)
        assert process.controller.ledger.rate_quantile == 0.9
        settings("95%")
        process.reload()
        assert process.controller.ledger.rate_quantile == 0.95


def test_draining_is_said_and_the_admin_api_goes_on(running: Running) -> None:
    running.connect()
    eventually(lambda: running.get("/readyz")["ready"])
    running.signal(signal.SIGUSR1)
    eventually(lambda: running.client.get("/readyz").status_code == 503)
    assert running.get("/healthz") == {"status": "ok"}
    assert "legato_draining 1" in running.client.get("/metrics").text


def test_draining_is_logged_once_however_often_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A supervisor says it every second, since a control process that was restarted has not heard it."""
    (tmp_path / "legato.yaml").write_text(SETTINGS)
    boot: Boot = {"file": str(tmp_path / "legato.yaml"), "flags": {}}
    with socket.socket() as admin, socket.socket(socket.AF_UNIX) as link, caplog.at_level("INFO"):
        process = controller.Process(boot, load(boot), admin, link)
        process.drain()
        process.drain()
    assert process.controller.draining
    assert [each.message for each in caplog.records] == ["not ready any more"]


def test_an_open_admin_connection_does_not_hold_up_the_end(running: Running) -> None:
    eventually(lambda: running.get("/healthz"))
    with socket.create_connection(("127.0.0.1", running.sockets[0].getsockname()[1])) as silent:
        silent.sendall(b"GET /healthz HT")
        running.signal(signal.SIGINT)
        assert running.process.wait(patience_s(5)) == 0


def test_whatever_is_waited_for_at_the_end_fits_into_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a while left for the interpreter's own end."""
    (tmp_path / "legato.yaml").write_text(SETTINGS)
    boot: Boot = {"file": str(tmp_path / "legato.yaml"), "flags": {}}
    admin, link = socket.socket(), socket.socket(socket.AF_UNIX)
    process = controller.Process(boot, load(boot), admin, link)
    folding_ns: list[int] = []
    monkeypatch.setattr(process.link, "fold_for", folding_ns.append)
    monkeypatch.setattr(process.logs, "close", time.sleep)  # as long as they may
    monkeypatch.setattr(process.exports, "close", asyncio.sleep)

    async def end() -> float:
        began = time.monotonic()
        await process._finish({asyncio.ensure_future(asyncio.sleep(60)): "admin"})
        return time.monotonic() - began + folding_ns[-1] / 1e9

    try:  # a machine that is busy may need another try
        assert any(asyncio.run(end()) < 0.9 * controller.END_S for _ in range(3))
    finally:
        admin.close()
        link.close()


def test_connections_wait_in_the_sockets_while_control_is_away(tmp_path: Path) -> None:
    first = Running(tmp_path, SETTINGS)
    try:
        worker = first.connect()
        worker.send(FactsBatch([facts(seq=1)]))
        worker.until(lambda worker: worker.acked == 1)
        first.process.kill()
        first.process.wait()
        fds = [sock.fileno() for sock in first.sockets]
        boot = json.dumps({"file": str(first.file), "flags": {}})
        waiting = Worker(first.path)  # nobody accepts yet
        waiting.send(hello(acked=1, next_seq=3), FactsBatch([facts(seq=2)]))
        module = ["-m", "proxy.control.controller", "--boot", boot]
        first.process = subprocess.Popen(
            [sys.executable, *module, "--admin-fd", str(fds[0]), "--link-fd", str(fds[1])],
            pass_fds=fds,
            stderr=subprocess.DEVNULL,
        )
        first.worker = waiting
        waiting.until(lambda worker: worker.acked == 2)
        summary = first.get("/api/summary")
        assert summary["total"]["requests"] == 1
        assert summary["proxy"]["dropped"]["settled_by_lost_control"] == 1
    finally:
        first.close()


@pytest.mark.parametrize("settings", ["backends: {}\n", "nonsense: 1\n"])
def test_a_configuration_that_cannot_be_used_ends_the_process(settings: str, tmp_path: Path) -> None:
    running = Running(tmp_path, settings)
    try:
        assert running.process.wait(patience_s(10)) == 2
        assert "problem" in running.said()
    finally:
        running.close()


def test_control_outlives_nobody(tmp_path: Path) -> None:
    """Its parent dies, no worker is connected: it ends by itself."""
    script = (
        "import subprocess, sys, os, time\n"
        "child = subprocess.Popen(sys.argv[1:], close_fds=False)\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    (tmp_path / "legato.yaml").write_text(SETTINGS)
    admin, link = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    link.bind(str(tmp_path / "link"))
    link.listen()
    fds = (admin.fileno(), link.fileno())
    boot = json.dumps({"file": str(tmp_path / "legato.yaml"), "flags": {}})
    control = [sys.executable, "-m", "proxy.control.controller", "--boot", boot]
    control += ["--admin-fd", str(fds[0]), "--link-fd", str(fds[1])]
    parent = subprocess.Popen(
        [sys.executable, "-c", script, *control],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=fds, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        url = f"http://127.0.0.1:{admin.getsockname()[1]}/healthz"
        eventually(lambda: httpx.get(url).status_code == 200, within_s=10)
        parent.kill()
        parent.wait()
        eventually(lambda: not _runs(child), within_s=10)
    finally:
        if _runs(child):
            os.kill(child, signal.SIGKILL)
        admin.close()
        link.close()


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
