"""A server that refuses connections behind a split: shown, taken out where that is wanted, back in steps."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml

from tests.helpers.procs import Legato, eventually, free_port, serve
from tests.helpers.rawclient import RawClient, get
from tests.helpers.upstream import json_response, respond, scripted

pytestmark = pytest.mark.alone  # a backend is out for a second, in which requests must have gone elsewhere

EJECTION = {"enabled": True, "requests": 3, "window": "1s", "time": "1s"}


class Late(BaseHTTPRequestHandler):
    """What the second server answers, once it runs."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one write

    def do_GET(self) -> None:
        body = json.dumps({"from": "b"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def healthy(port: int) -> Iterator[None]:
    """The second server runs."""
    server = ThreadingHTTPServer(("127.0.0.1", port), Late)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class Traffic:
    """Somebody who asks, over and over; ``answers``: (monotonic ns, who answered: a, b or a status)."""

    def __init__(self, legato: Legato) -> None:
        self._legato = legato
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.answers: list[tuple[int, str]] = []

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(10)

    def _ask(self) -> None:
        with RawClient(self._legato.data) as client:
            while not self._end.wait(0.01):
                client.send(get())
                answer = client.response()
                who = json.loads(answer.body)["from"] if answer.status == 200 else str(answer.status)
                self.answers.append((time.monotonic_ns(), who))

    def since(self, at_ns: int) -> Counter[str]:
        return Counter(who for when_ns, who in list(self.answers) if when_ns > at_ns)

    def some(self, count: int = 60) -> Counter[str]:
        """Who answers the next so many."""
        at_ns = time.monotonic_ns()
        eventually(lambda: self.since(at_ns).total() >= count, 20, "so many answers", 0.02)
        return self.since(at_ns)


def backend(legato: Legato, name: str = "b") -> dict[str, Any]:
    """As the admin API shows it."""
    (found,) = (each for each in legato.json("/api/backends")["backends"] if each["name"] == name)
    return dict(found)


def until(legato: Legato, **fields: object) -> dict[str, Any]:
    """The second server, as soon as it is shown so."""

    def look() -> dict[str, Any] | None:
        shown = backend(legato)
        return shown if all(shown[key] == value for key, value in fields.items()) else None

    found = eventually(look, 20, f"b: {fields}", 0.02)
    assert found is not None
    return found


def reload(legato: Legato, config: dict[str, Any]) -> None:
    assert legato.config_file is not None
    new = legato.config_file.with_suffix(".new")
    new.write_text(yaml.safe_dump(config))
    os.replace(new, legato.config_file)
    legato.send_signal(signal.SIGHUP)


def test_who_fails_is_shown_and_taken_out_only_where_that_is_wanted() -> None:
    port = free_port()
    with scripted(respond(json_response({"from": "a"}))) as first:
        config: dict[str, Any] = {
            "backends": {"a": {"url": first.url}, "b": {"url": f"http://127.0.0.1:{port}"}},
            "routes": [{"split": {"a": 50, "b": 50}, "name": "ab"}],
            "ejection": {**EJECTION, "enabled": False},
        }
        with serve(config=config) as legato, Traffic(legato) as traffic:
            _only_shown(legato, traffic)
            _the_last_one_stays(legato, traffic, config)
            reload(legato, {**config, "ejection": EJECTION})
            _leaves(legato, traffic)
            with healthy(port):
                _comes_back(legato, traffic)


def _only_shown(legato: Legato, traffic: Traffic) -> None:
    shown = until(legato, state="failing")
    assert (shown["kept"], shown["weight_factor"], shown["splits"]) == (None, 1.0, {"ab": 50})
    assert (shown["failure_ratio"], shown["last_failure"]) == (1.0, "connection_refused")
    assert shown["consecutive_failures"] == shown["failures"] == shown["requests"] >= 3
    eventually(lambda: backend(legato)["pool"]["up"] is False, 5, "what the pool says", 0.02)
    healthy_one = backend(legato, "a")
    assert (healthy_one["state"], healthy_one["failures"], healthy_one["pool"]["up"]) == ("ok", 0, True)
    told = traffic.some(100)
    assert told["502"] > 20, "nothing moves"
    assert legato.json("/api/config")["table_version"] == 1
    assert legato.metrics().value("legato_backend_ejected", backend="b") == 0


def _the_last_one_stays(legato: Legato, traffic: Traffic, config: dict[str, Any]) -> None:
    alone = {"match": {"model": "only-b"}, "split": {"a": 0, "b": 1}, "name": "alone"}
    reload(legato, {**config, "routes": [alone, *config["routes"]], "ejection": EJECTION})
    until(legato, state="failing", kept="the last one of split alone", weight_factor=1.0)
    assert traffic.some(100)["502"] > 20


def _leaves(legato: Legato, traffic: Traffic) -> None:
    shown = until(legato, state="ejected")
    assert (shown["weight_factor"], shown["splits"], shown["until"] is not None) == (0.0, {"ab": 0}, True)
    assert backend(legato, "a")["splits"] == {"ab": 50_000}
    assert legato.metrics().value("legato_backend_ejected", backend="b") == 1
    traffic.some(5)  # what was on its way to the worker has arrived
    assert set(traffic.some(50)) == {"a"}
    assert "backend b is ejected for" in legato.stderr
    # Still not healthy: it is out again, for longer.
    until(legato, state="returning", weight_factor=0.1)
    until(legato, state="ejected")
    eventually(lambda: "backend b is ejected for 2s" in legato.stderr, 5, "the line of the log")


def _comes_back(legato: Legato, traffic: Traffic) -> None:
    at_ns = time.monotonic_ns()
    for factor, weights in ((0.1, {"ab": 5_000}), (0.3, {"ab": 15_000}), (1.0, {"ab": 50})):
        until(legato, state="returning", weight_factor=factor, splits=weights)
    until(legato, state="ok", weight_factor=1.0, splits={"ab": 50})
    assert traffic.since(at_ns)["502"] == 0, "nobody saw a failure since it runs"
    told = traffic.some(100)
    assert set(told) == {"a", "b"}
    assert told["b"] > 20
    assert legato.metrics().value("legato_backend_ejected", backend="b") == 0
