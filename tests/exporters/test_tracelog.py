"""Trace lines: what is written is the promised text, and ``legato score`` gets the same numbers from it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from proxy.control.record import TraceLine
from proxy.exporters.tracelog import encode, open_trace_log
from proxy.offline import BadLine, Overrides, Scored, score_line, score_stream
from scoring.deadlines import Deadlines
from scoring.score import StreamScore
from scoring.trace import Choice, score

Events = list[tuple[int, int]]


def line(choices: list[Events] | None = None, **more: object) -> TraceLine:
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
    }
    lanes = choices or [[]]
    fields |= {"events": lanes[0]} if len(lanes) == 1 else {"choices": lanes}
    return msgspec.convert(fields | more, TraceLine)


def test_the_text_is_the_promised_one() -> None:
    text = encode(line([[(90_000_000, 1), (140_000_001, 2)]], marks=[(90_000_000, "suspect", 1)]))
    assert text.startswith(
        b'{"schema":1,"id":"01JD3K","t0_unix_ns":1800000000000000001,"backend":"stable","model":"llama",'
        b'"slo":"chat","prompt_tokens":12,"ttft_deadline_ns":100000000,"tbt_deadline_ns":50000000,'
        b'"target":0.9,"tokens_source":"events","events":[[90000000,1],[140000001,2]],"end_ns":1000000000,'
        b'"outcome":"completed","marks":[[90000000,"suspect",1]],"thinned":false'
    )


def test_several_choices_stand_instead_of_events() -> None:
    raw = msgspec.json.decode(encode(line([[(1, 1)], [(2, 1), (3, 4)]])))
    assert "events" not in raw
    assert raw["choices"] == [[[1, 1]], [[2, 1], [3, 4]]]


def test_a_line_is_one_line_whatever_the_client_called_its_model() -> None:
    text = encode(line(model='a\nb"\u2028'))
    assert b"\n" not in text
    assert msgspec.json.decode(text)["model"] == 'a\nb"\u2028'


arrivals = st.lists(st.tuples(st.integers(0, 10**12), st.integers(1, 9)), max_size=40).map(sorted)


@given(
    choices=st.lists(arrivals, min_size=1, max_size=3),
    ttft_ns=st.integers(1, 10**12),
    tbt_ns=st.integers(1, 10**11),
    after_ns=st.integers(0, 10**11),
    censored=st.booleans(),
)
def test_what_was_written_scores_the_same(
    choices: list[Events], ttft_ns: int, tbt_ns: int, after_ns: int, censored: bool
) -> None:
    end_ns = max((events[-1][0] for events in choices if events), default=0) + after_ns
    text = encode(
        line(
            choices,
            ttft_deadline_ns=ttft_ns,
            tbt_deadline_ns=tbt_ns,
            end_ns=end_ns,
            outcome="timeout" if censored else "completed",
            censored=censored,
        )
    )
    assert score_line(text, Overrides()).score == scored(choices, ttft_ns, tbt_ns, end_ns, censored)


def scored(choices: list[Events], ttft_ns: int, tbt_ns: int, end_ns: int, censored: bool) -> StreamScore:
    lanes = [np.array(events, np.int64).reshape(-1, 2) for events in choices]
    return score(
        [Choice(lane[:, 0].copy(), lane[:, 1].copy()) for lane in lanes],
        Deadlines(ttft_ns, tbt_ns),
        end_ns=end_ns,
        censored=censored,
    )


def test_the_file_rotates_and_every_line_can_be_scored(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    told: list[str] = []
    writer = open_trace_log(str(path), rotate_bytes=4_000, on_trouble=told.append)
    writer.start()
    for i in range(30):
        assert writer.offer(encode(line([[(i, 1)]], id=f"id-{i}")))
    assert writer.flush(5.0).written == 30
    files = sorted(tmp_path.iterdir(), reverse=True)
    assert 2 <= len(files) <= 4
    assert all(file.stat().st_size <= 4_000 for file in files)
    read: list[Scored | BadLine] = []
    for file in files:
        with file.open("rb") as stream:
            read += score_stream(stream, file.name)
    assert [scored.id for scored in read if isinstance(scored, Scored)] == [f"id-{i}" for i in range(30)]
    assert told == []
