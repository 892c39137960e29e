"""What the SDK says reaches no log by itself; the exporters' words become a reason, told once."""

from __future__ import annotations

import logging
import threading

import pytest
import requests
from requests.exceptions import InvalidHeader, InvalidURL

from proxy.exporters.otel.trouble import Trouble, last_words, silence_sdk

EXPORTERS = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")


@pytest.fixture(autouse=True)
def silent() -> None:
    silence_sdk()
    last_words()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("opentelemetry.exporter.otlp.proto.http.trace_exporter", True),
        ("opentelemetry.exporter.otlp.proto.grpc.exporter", True),
        ("opentelemetry.exporter.otlp.common.http", True),
        ("opentelemetry.util.re", False),  # it shows headers that it cannot read
        ("opentelemetry.attributes", False),  # and this one values
        ("opentelemetry.sdk.trace", False),
    ],
)
def test_whose_words_may_be_shown(name: str, shown: bool) -> None:
    logging.getLogger(name).warning("Bearer %s", "SECRET")
    assert last_words() == ("Bearer SECRET" if shown else None)


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (requests.ConnectionError("Connection refused"), "Connection refused"),
        (TimeoutError("timed out"), "timed out"),
        (InvalidHeader("reserved character(s) in header value: 'Bearer SECRET\\nx'"), "InvalidHeader"),
        (InvalidURL("Failed to parse: http://user:SECRET@proxy:port"), "InvalidURL"),
        (RuntimeError("SECRET"), "RuntimeError"),
    ],
    ids=repr,
)
def test_of_errors_only_the_networks_are_quoted(error: Exception, shown: str) -> None:
    EXPORTERS.error("Failed to export %s batch code: %s, reason: %s", "spans", None, error)
    assert last_words() == f"Failed to export spans batch code: None, reason: {shown}"


def test_the_first_says_why_and_the_last_what_came_of_it() -> None:
    for words in ("Connection refused", "Connection refused, again", "given up\nat last"):
        EXPORTERS.error(words)
    assert last_words() == "Connection refused / given up at last"
    assert last_words() is None
    EXPORTERS.error("x" * 5_000)
    assert len(last_words() or "") == 300


def test_each_thread_has_its_own() -> None:
    other = threading.Thread(target=lambda: EXPORTERS.error("of the metrics"))
    other.start()
    other.join()
    assert last_words() is None


def test_told_once_each_way_and_counted_each_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "legato.control")
    trouble = Trouble("spans")
    trouble.worked()
    for _ in range(3):
        trouble.failed("away")
    trouble.worked()
    trouble.worked()
    trouble.failed(None)
    assert trouble.failures == 4
    assert [record.getMessage() for record in caplog.records] == [
        "spans cannot be exported (told once): away",
        "spans are exported again; 3 exports have failed so far",
        "spans cannot be exported (told once): no reason given",
    ]
