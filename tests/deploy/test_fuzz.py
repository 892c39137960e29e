"""The fuzzer itself: any bytes are an input, its seeds hold, and it sees what is broken."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.fuzz import properties
from deploy.fuzz.inputs import CONTENT_TYPES, ENCODINGS, HEADER, planned, seed
from deploy.fuzz.properties import EVENT_LIMIT, Broken, check
from deploy.fuzz.seeds import dictionary, seeds
from proxy.relay import bodies
from proxy.relay.body import BodyTap
from proxy.relay.dialects.openai_chat import OpenAIChat
from proxy.relay.framing import SseDecoder
from proxy.relay.ndjson import NdjsonDecoder
from proxy.relay.streamtap import StreamTap
from tests.helpers.taps import CHAT, DONE, chat
from tests.helpers.vendors import library

SSE, NDJSON, JSON, _ = CONTENT_TYPES
ANSWER = chat(role="assistant") + chat("a") * 40 + chat(finish="stop") + DONE
LINES = b'{"message":{"content":"a"},"done":false}\n' * 300


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in properties.SMALL:
        monkeypatch.setattr(module, name, value)


def test_the_seeds_hold() -> None:
    number = 0
    for number, data in enumerate(seeds(), 1):  # noqa: B007
        check(data)
    assert number > 200


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.sampled_from([b"", ANSWER[:1500], b"data: {}\n\n"]))
def test_any_bytes_are_an_input(data: bytes, more: bytes) -> None:
    check(data + more)


def test_every_encoding_can_be_sound_and_its_body_comes_through() -> None:
    for number in range(len(ENCODINGS)):
        data = seed(CHAT, SSE, ANSWER)
        plan = planned(data[:2] + bytes([number]) + data[3:])
        check(data[:2] + bytes([number]) + data[3:])
        assert plan.encoding == ENCODINGS[number][0]
        assert plan.sound == (bool(ENCODINGS[number][1]) or not plan.encoding)
        damaged = planned(data[:2] + bytes([number + len(ENCODINGS)]) + data[3:])
        assert b"".join(damaged.pieces) != b"".join(plan.pieces)


def test_the_cuts_are_of_every_kind() -> None:
    kinds = [planned(seed(CHAT, SSE, ANSWER, cuts)).pieces for cuts in (0, 1, 2, 3, 99)]
    assert [len(pieces) for pieces in kinds[:4]] == [1, len(ANSWER), 2 * 43, 43]
    assert all(b"".join(pieces) == ANSWER for pieces in kinds)
    assert len(planned(b"").pieces) == 1
    assert planned(seed(CHAT, SSE, ANSWER)[:HEADER]).size == 0


def broken(*_: Any) -> Any:
    raise RuntimeError("injected")


def unbounded(self: Any, rest: bytes) -> None:
    self._line += rest


def forgetful(self: SseDecoder, data: bytes) -> bytes:
    """Of a CRLF that is cut in two it makes two line ends."""
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


BREAKAGES: list[tuple[str, object, str, Callable[..., Any], bytes]] = [
    ("a fault", OpenAIChat, "read", broken, seed(CHAT, SSE, ANSWER)),
    ("a fault in a body", bodies, "_told", broken, seed(CHAT, JSON, b'{"id":"a"}')),
    ("an exception that leaves", StreamTap, "feed", broken, seed(CHAT, SSE, ANSWER)),
    ("what is held", SseDecoder, "_hold", unbounded, seed(CHAT, SSE, b"x" * 9 * EVENT_LIMIT, 99)),
    (
        "what is held of a line",
        NdjsonDecoder,
        "_hold",
        unbounded,
        seed("/api/chat", NDJSON, b"x" * 9 * EVENT_LIMIT),
    ),
    (
        "what is held of a body",
        BodyTap,
        "_keep",
        lambda self, data: self._body.extend(data),
        seed(CHAT, JSON, b"x" * 60_000),
    ),
    (
        "cuts",
        SseDecoder,
        "_normalise",
        forgetful,
        seed(CHAT, SSE, ANSWER + b'event: error\r\ndata: {"type":"x"}\r\n\r\n', 1),
    ),
    ("a word", bodies, "word", lambda value, _: f"{value}\n", seed(CHAT, JSON, b'{"done_reason":"stop"}')),
]


@pytest.mark.parametrize(
    ("_name", "owner", "attribute", "replacement", "data"), BREAKAGES, ids=[row[0] for row in BREAKAGES]
)
def test_what_is_broken_is_seen(
    _name: str, owner: Any, attribute: str, replacement: Any, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(data)
    monkeypatch.setattr(owner, attribute, replacement)
    with pytest.raises((Broken, RuntimeError)):
        check(data)


def test_memory_without_measure_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    data = seed(CHAT, SSE, ANSWER, cuts=0, flags=32 | 8)
    check(data)
    real = StreamTap.feed

    def greedy(self: StreamTap, piece: bytes, at_ns: int) -> None:
        bytearray(properties.TRACED_MAX + 1)
        real(self, piece, at_ns)

    monkeypatch.setattr(StreamTap, "feed", greedy)
    with pytest.raises(Broken, match="memory"):
        check(data)


def test_an_input_can_be_replayed(tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_bytes(seed(CHAT, SSE, ANSWER))
    command = [sys.executable, "-m", "deploy.fuzz", "--replay", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "holds"), done.stderr


def test_the_dictionary_is_one_that_libfuzzer_reads() -> None:
    lines = dictionary().splitlines()
    assert len(lines) > 50
    assert all(line[0] == line[-1] == '"' and line.isascii() and '"' not in line[1:-1] for line in lines)


def test_a_short_run_guided_by_coverage(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        library("atheris")  # says so
    command = [
        sys.executable,
        "-m",
        "deploy.fuzz",
        "--seconds",
        "2",
        "--seed",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 or "broken by" in done.stderr, done.stderr
    assert "cov:" in done.stderr
    assert "WARNING: no interesting inputs" not in done.stderr
