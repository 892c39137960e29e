"""Trace lines: what is written can be read back and scored to the same numbers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.control.record import TraceLine
from proxy.exporters.tracelog import TraceError, decode, encode, open_trace_log
from scoring.deadlines import Deadlines
from scoring.trace import Choice, score


def line(events: list[tuple[int, int]] | None = None, **more: object) -> TraceLine:
    fields: dict[str, object] = {
        "id": "01JD3K",
        "t0_unix_ns": 1_800_000_000_000_000_001,
        "backend": "stable",
        "model": "llama",
        "slo": "chat",
        "prompt_tokens": 12,
        "ttft_deadline_ns": 100_000_000,
        "tbt_deadline_ns": 50_000_000,
        "target": 0.9,
        "tokens_source": "events",
        "end_ns": 1_000_000_000,
        "outcome": "completed",
        "marks": [],
        "thinned": False,
        "censored": False,
        "events": events or [],
    }
    return msgspec.convert(fields | more, TraceLine)


def test_the_text_is_the_promised_one() -> None:
    text = encode(line([(90_000_000, 1), (140_000_001, 2)], marks=[(90_000_000, "suspect", 1)]))
    assert text.startswith(
        b'{"schema":1,"id":"01JD3K","t0_unix_ns":1800000000000000001,"backend":"stable","model":"llama","slo":"chat",'
        b'"prompt_tokens":12,"ttft_deadline_ns":100000000,"tbt_deadline_ns":50000000,"target":0.9,'
        b'"tokens_source":"events","events":[[90000000,1],[140000001,2]],"end_ns":1000000000,"outcome":"completed",'
        b'"marks":[[90000000,"suspect",1]],"thinned":false'
    )
    assert b"\n" not in text


def test_several_choices_stand_instead_of_events() -> None:
    fields = msgspec.to_builtins(line()) | {"choices": [[(1, 1)], [(2, 1), (3, 4)]]}
    del fields["events"]
    text = encode(msgspec.convert(fields, TraceLine))
    raw = msgspec.json.decode(text)
    assert "events" not in raw
    assert raw["choices"] == [[[1, 1]], [[2, 1], [3, 4]]]
    assert decode(text).choices == [[(1, 1)], [(2, 1), (3, 4)]]


arrivals = st.lists(st.tuples(st.integers(0, 10**12), st.integers(1, 9)), max_size=60).map(
    lambda events: sorted(events)
)


@given(events=arrivals, ttft_ns=st.integers(1, 10**12), tbt_ns=st.integers(1, 10**11))
def test_what_was_written_scores_the_same(events: list[tuple[int, int]], ttft_ns: int, tbt_ns: int) -> None:
    end_ns = events[-1][0] if events else 5
    written = line(events, ttft_deadline_ns=ttft_ns, tbt_deadline_ns=tbt_ns, end_ns=end_ns)
    read = decode(encode(written))
    assert read == written
    assert _score(read) == _score(written)


def _score(trace: TraceLine) -> object:
    assert not isinstance(trace.events, msgspec.UnsetType)
    pairs = np.array(trace.events, np.int64).reshape(-1, 2)
    deadlines = Deadlines(trace.ttft_deadline_ns, trace.tbt_deadline_ns)
    return score([Choice(pairs[:, 0], pairs[:, 1])], deadlines, end_ns=trace.end_ns, censored=False)


def test_a_field_of_a_later_version_is_passed_over() -> None:
    raw = msgspec.json.decode(encode(line())) | {"something_new": {"a": 1}}
    assert decode(msgspec.json.encode(raw)) == line()


@pytest.mark.parametrize(
    ("outcome", "censored"),
    [
        ("completed", False),
        ("rejected", False),
        ("client_cancelled", True),
        ("upstream_error", True),
        ("timeout", True),
    ],
)
def test_a_line_that_does_not_say_censored_is_read_by_its_outcome(outcome: str, censored: bool) -> None:
    raw = msgspec.json.decode(encode(line(outcome=outcome)))
    del raw["censored"]
    read = decode(msgspec.json.encode(raw))
    assert type(read) is TraceLine
    assert read.censored is censored


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "truncated"),
        (b'{"schema":1,"id":"x"', "truncated"),
        (b"[]", "Expected `object`"),
        (b'{"schema":1}', "missing required field"),
        (encode(line()).replace(b'"end_ns":1000000000', b'"end_ns":1.5'), r"end_ns"),
        (encode(line()).replace(b'"schema":1', b'"schema":2'), "schema 2: this version reads schema 1"),
        (encode(line()).replace(b'"events":[],', b""), "either `events` or"),
        (encode(line()).replace(b'"events":[]', b'"events":[],"choices":[]'), "either `events` or"),
        (encode(line()).replace(b'"completed"', b'"done"'), "outcome 'done' is none of: completed, "),
        (encode(line()).replace(b"01JD3K", b"\xff"), "UTF-8"),
    ],
)
def test_a_bad_line_says_what_is_wrong(text: bytes, reason: str) -> None:
    with pytest.raises(TraceError, match=f"(?i){reason}"):
        decode(text)


def test_the_file_rotates_and_every_line_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    told: list[str] = []
    writer = open_trace_log(str(path), rotate_bytes=4_000, on_trouble=told.append)
    writer.start()
    for i in range(30):
        assert writer.offer(encode(line([(i, 1)], id=f"id-{i}")))
    assert writer.flush(5.0).written == 30
    files = sorted(tmp_path.iterdir(), reverse=True)
    assert 2 <= len(files) <= 4
    assert all(file.stat().st_size <= 4_000 for file in files)
    assert [decode(text).id for file in files for text in file.read_bytes().splitlines()] == [
        f"id-{i}" for i in range(30)
    ]
    assert told == []
