"""Calls of models in the conventions' buckets: which count, in bulk as one by one, never too many sets."""

from __future__ import annotations

import subprocess
import sys
from bisect import bisect_left
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.control.core import Controller
from proxy.control.genai import ERROR_LIMIT, SECONDS, TOKENS, CallSet, CallStats, GenAi, server_of
from proxy.control.labels import GroupCap
from proxy.control.settle import settle
from proxy.control.snapshot import Hist
from proxy.exporters.catalog import GROUP_LIMIT, OTHER
from proxy.link import BackendSpec, Facts, FactsBatch, Usage
from tests.control.facts import MS, T0, UNIX, at, facts, stream, streamed, table

VLLM = BackendSpec("default", "http://vllm:8000")


def counted(*every: Facts, backends: tuple[BackendSpec, ...] = (VLLM,)) -> tuple[CallStats, ...]:
    genai = GenAi(GroupCap(), lambda: backends)
    batch = [settle(each, "host-1") for each in every]
    for settled in batch:
        genai._cap.admit(settled.group)  # the ledger books before
    genai(batch)
    return genai.freeze()


def durations(stats: CallStats) -> dict[str | None, int]:
    return {error: hist.count for error, hist in stats.durations.items()}


# ---------------------------------------------------------------- what counts


@pytest.mark.parametrize(
    ("path", "operation", "provider"),
    [
        ("/v1/chat/completions", "chat", "openai"),
        ("/v1/completions", "text_completion", "openai"),
        ("/v1/embeddings", "embeddings", "openai"),
        ("/v1/messages", "chat", "anthropic"),
    ],
)
def test_a_call_of_a_model_is_told_by_what_was_asked(path: str, operation: str, provider: str) -> None:
    (stats,) = counted(facts(10, path=path))
    assert stats.attributes == CallSet(operation, provider, "llama", "vllm", 8000)


@pytest.mark.parametrize(
    "fields",
    [
        {"path": "/v1/models", "method": "GET"},
        {"path": "/health", "method": "GET"},
        {"path": "/tokenize"},
        {"sent_ns": None, "end": "refused", "status": 404},  # ours: nothing was called
    ],
)
def test_what_is_no_call_of_a_model_is_not_counted(fields: dict[str, Any]) -> None:
    assert counted(facts(10, **fields)) == ()


def test_durations_run_from_the_call_with_its_connecting_to_the_end() -> None:
    (stats,) = counted(facts(300, received_ns=T0 - 90 * MS, connect_ns=40 * MS))
    assert stats.durations[None].sum == 0.34


def test_the_first_chunk_is_any_event_and_chunks_after_it_carry_output() -> None:
    of = {"first_event_ns": T0 + 10 * MS}  # a role, before any output
    (stats,) = counted(streamed(at(100), at(150), at(150), end_ms=200, of=of))
    assert (stats.first_chunk.count, stats.first_chunk.sum) == (1, 0.01)
    assert (stats.output_chunk.count, stats.output_chunk.sum) == (2, 0.05)


def test_tokens_are_those_that_the_server_reported() -> None:
    (stats,) = counted(
        streamed(at(10), of={"usage": Usage(prompt=4, output=None)}),
        streamed(at(10), of={"usage": Usage(prompt=5, output=70_000_000)}),
    )
    assert stats.input_tokens == Hist(TOKENS, (0, 1, 1, *[0] * 12), 9.0)
    assert stats.output_tokens == Hist(TOKENS, (*[0] * 14, 1), 70_000_000.0)


@pytest.mark.parametrize("exemplars", [True, False])
def test_a_kept_trace_stands_in_the_buckets_of_its_duration_and_of_its_first_chunk(exemplars: bool) -> None:
    genai = GenAi(GroupCap(), lambda: (VLLM,), exemplars=exemplars)
    of = {"first_event_ns": T0 + 30 * MS}
    kept, passed = (
        settle(streamed(at(40), at(60), end_ms=end_ms, of=of, trace_id=digit * 32), "host-1")
        for end_ms, digit in ((70, "a"), (75, "b"))
    )
    kept.kept_span = "c" * 16
    genai([kept, passed])
    (stats,) = genai.freeze()
    found = {
        "duration": stats.durations[None].exemplars,
        "first chunk": stats.first_chunk.exemplars,
        "between chunks": stats.output_chunk.exemplars,  # many a call: none shows it
    }
    ended_ns = kept.facts.received_unix_ns + kept.facts.end_ns - kept.facts.received_ns
    told = {
        name: [(each.value, each.at_unix_ns, each.trace_id, each.span_id) for each in every]
        for name, every in found.items()
    }
    shown = {"duration": [(0.07, ended_ns, "a" * 32, "c" * 16)], "first chunk": [], "between chunks": []}
    shown["first chunk"] = [(0.03, ended_ns, "a" * 32, "c" * 16)]
    assert told == (shown if exemplars else {name: [] for name in found})


# ---------------------------------------------------------------- in bulk as one by one


def naive(lanes: list[list[int]]) -> list[int]:
    """Each chunk after the first, whichever choice it is of, one by one."""
    counts = [0] * (len(SECONDS) + 1)
    arrived = sorted(at_ms for lane in lanes for at_ms in lane)
    for before, now in pairwise(arrived):
        counts[bisect_left(SECONDS, (now - before) / 1000)] += 1
    return counts


@given(
    st.lists(
        st.lists(st.integers(0, 400) | st.sampled_from([10, 20, 40, 80, 5_120, 81_920, 90_000]), max_size=30),
        min_size=1,
        max_size=3,
    )
)
def test_bulk_counts_are_those_of_a_loop_over_every_gap(gaps_ms: list[list[int]]) -> None:
    lanes = [list(accumulate(gaps)) for gaps in gaps_ms]
    arrivals = stream(choices=[[at(at_ms) for at_ms in lane] for lane in lanes])
    (stats,) = counted(facts(10_000_000, streamed=True, stream_asked=True, stream=arrivals))
    assert list(stats.output_chunk.counts) == naive(lanes)


def test_boundaries_are_inclusive_to_the_nanosecond() -> None:
    (stats,) = counted(streamed(at(0), at(10), at(30), at(71), end_ms=100))
    assert stats.output_chunk.counts[:4] == (1, 1, 0, 1)


# ---------------------------------------------------------------- bounded


def test_models_are_named_as_the_ledger_names_them() -> None:
    controller = Controller(table(), instance="i", version="1", unix_ns=lambda: UNIX, monotonic_ns=lambda: T0)
    genai = GenAi(controller.ledger.cap, lambda: (VLLM,))
    controller.add_sink(genai)
    every = [facts(10, seq=i + 1, model=f"model-{i}") for i in range(200)]
    rejected = facts(10, seq=201, model="only-rejected", status=404, head_ns=T0 + MS)
    controller.feed(FactsBatch([*every, rejected]))
    stats = genai.freeze()
    booked = {group.model for group in controller.snapshot().groups}
    assert {each.attributes.model for each in stats} == booked
    assert OTHER in booked
    assert sum(sum(durations(each).values()) for each in stats) == 201


def test_at_most_64_sets_whatever_comes_and_nothing_is_lost() -> None:
    paths = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages")
    stats = counted(*(facts(10, model=f"m{i}", path=path) for i in range(50) for path in paths))
    assert len(stats) == GROUP_LIMIT
    assert stats[-1].attributes == CallSet(OTHER, OTHER, OTHER)
    assert sum(sum(durations(each).values()) for each in stats) == 200


def test_kinds_of_errors_are_bounded_too() -> None:
    codes = [streamed(at(1), of={"error": f"code-{i}", "finished": False}) for i in range(40)]
    (stats,) = counted(*codes)
    told = durations(stats)
    assert len(told) == ERROR_LIMIT + 1
    assert (told["_OTHER"], sum(told.values())) == (40 - ERROR_LIMIT, 40)


# ---------------------------------------------------------------- where it went


@pytest.mark.parametrize(
    ("spec", "server"),
    [
        (BackendSpec("b", "http://vllm:8000/base"), ("vllm", 8000)),
        (BackendSpec("b", "https://api.example.com"), ("api.example.com", 443)),
        (BackendSpec("b", "http://user:secret@[::1]"), ("::1", 80)),
        (BackendSpec("b", "http://local", uds="/run/vllm.sock"), ("/run/vllm.sock", None)),
    ],
)
def test_a_server_is_named_as_configured(spec: BackendSpec, server: tuple[str, int | None]) -> None:
    assert server_of(spec) == server


def test_a_reload_moves_a_backend_and_what_was_counted_stays() -> None:
    now = [(VLLM,)]
    genai = GenAi(GroupCap(), lambda: now[0])
    genai([settle(facts(10), "i")])
    now[0] = (BackendSpec("default", "http://elsewhere:1"),)
    genai([settle(facts(10), "i"), settle(facts(10), "i")])
    assert [(each.attributes.address, durations(each)[None]) for each in genai.freeze()] == [
        ("vllm", 1),
        ("elsewhere", 2),
    ]


def test_counting_needs_nothing_of_opentelemetry() -> None:
    code = "import sys, proxy.control.genai; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
