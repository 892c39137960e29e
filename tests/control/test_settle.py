"""Facts built by hand -> verdicts and records computed by hand (Dp = 100 ms, Dd = 50 ms)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.control.record import Record
from proxy.control.settle import NONE, GroupKey, Settled, settle, settle_unmeasured
from proxy.control.timeline import trace_line
from proxy.link import Assignment, ChoiceScore, Facts, Stream, Usage
from tests.control.facts import MS, T0, at, facts, stream, streamed
from tests.scoring.oracle import Sequence_, tally

HERE = "here"


def settled(given_: Facts) -> Settled:
    return settle(given_, HERE)


def verdict(given_: Facts) -> tuple[str, str, tuple[str, ...]]:
    out = settled(given_)
    return out.outcome.value, out.result.value, out.reasons


# ---------------------------------------------------------------- scores


def test_a_stream_in_time_is_good() -> None:
    out = settled(streamed(at(80), at(120), at(160), end_ms=170))
    record = out.record
    assert (record.met, record.missed, record.fluidity, record.stalls) == (3, 0, 1.0, 0)
    assert (record.outcome, record.slo_result, record.slo_reasons) == ("completed", "good", [])
    assert (record.ttft_s, record.duration_s, record.tpot_s) == (0.08, 0.17, 0.04)
    assert record.normalized_latency_s == round(0.17 / 3, 6)
    assert record.raw is None
    assert record.worst_stall is None
    assert not record.censored


def test_a_stall_misses_every_deadline_that_passed() -> None:
    # Due at 150 after the token at 100; it comes at 300: 150, 200, 250, 300 - three full deadlines and one.
    out = settled(streamed(at(100), at(300), at(310), end_ms=320)).record
    assert (out.met, out.missed, out.stalls) == (2, 4, 1)
    assert out.fluidity == round(2 / 6, 6)
    assert out.late_s == 0.15
    assert out.worst_stall is not None
    assert (out.worst_stall.at_s, out.worst_stall.late_s, out.worst_stall.missed) == (0.1, 0.15, 4)
    assert (out.slo_result, out.slo_reasons) == ("bad", ["fluidity"])


def test_a_cut_stream_owes_what_was_due() -> None:
    # Due at 150 after the only token; the server dies at 260: deadlines 150, 200, 250 have passed.
    out = settled(streamed(at(100), end_ms=260, of={"finished": False}, **{})).record
    assert (out.outcome, out.censored) == ("upstream_error", True)
    assert (out.met, out.missed) == (1, 3)


def test_a_client_that_leaves_after_the_finish_is_completed() -> None:
    given_ = streamed(at(90), end_ms=5_000)
    given_.end = "client_left"
    assert verdict(given_) == ("completed", "good", ())
    assert settled(given_).record.censored is False


def test_a_client_that_leaves_while_all_is_well_is_excluded() -> None:
    given_ = streamed(*(at(50 + 10 * i) for i in range(20)), end_ms=241, of={"finished": False})
    given_.end = "client_left"
    assert verdict(given_) == ("client_cancelled", "excluded", ("cancelled",))


def test_a_client_that_leaves_while_a_token_is_overdue_is_bad_even_over_the_target() -> None:
    # 40 tokens at once at 50 ms: due at 100 + 40*50 = 2100; leaves at 2110: one missed of 41, 0.976 >= 0.9.
    given_ = streamed(at(50, tokens=40), end_ms=2_110, of={"finished": False, "tokens_source": "token_ids"})
    given_.end = "client_left"
    assert settled(given_).record.fluidity == round(40 / 41, 6)
    assert verdict(given_) == ("client_cancelled", "bad", ("overdue",))


def test_a_client_that_leaves_before_any_answer_was_waiting_for_a_stream() -> None:
    given_ = facts(260, stream_asked=True, end="client_left", status=None)
    out = settled(given_)
    assert (out.record.stream, out.record.missed, out.record.met) == (True, 4, 0)  # 100, 150, 200, 250
    assert verdict(given_)[:2] == ("client_cancelled", "bad")


def test_a_stream_that_never_began_in_time_is_a_timeout_with_its_misses() -> None:
    given_ = facts(1_000, stream_asked=True, end="timeout_first_byte", status=504)
    assert verdict(given_) == ("timeout", "bad", ("outcome",))
    assert settled(given_).record.missed == (1_000 - 100) // 50 + 1


def test_an_empty_answer_under_200_is_the_servers_failure() -> None:
    empty = {"choices": (), "events": 0, "tokens": 0, "finished": False, "finish_reason": None}
    of = empty | {"unmeasured": "no_tokens", "first_event_ns": None}
    given_ = streamed(end_ms=220, of=of)
    assert verdict(given_) == ("upstream_error", "bad", ("outcome",))
    record = settled(given_).record
    assert (record.unmeasured, record.missed, record.fluidity) == ("no_tokens", 3, 0.0)
    events = streamed(end_ms=220, of=of | {"dialect": "generic", "finished": True})
    assert verdict(events) == ("completed", "excluded", ("no_deadlines",))


def test_several_choices_add_up_and_one_that_never_began_owes_its_tokens() -> None:
    of = {"choices": [[at(90), at(130)], [at(150)]]}
    out = settled(streamed(end_ms=140, of=of, choices_asked=2)).record
    assert (out.met, out.missed, out.ttft_s) == (2, 2, 0.09)  # the second choice: due 100, came 150: 100, 150
    cut = streamed(at(90), end_ms=120, of={"finished": False}, choices_asked=2)
    cut.end = "truncated"
    assert settled(cut).record.missed == 1  # choice 1 was due at 100


def test_a_choice_that_had_finished_owes_nothing_at_the_cut() -> None:
    done = ChoiceScore(1, 0, 0, 0, due_ns=150 * MS, finished=True)
    going_on = ChoiceScore(2, 0, 0, 0, due_ns=200 * MS)
    of = {"choices": [[at(90)], [at(95), at(130)]], "scores": (done, going_on), "finished": False}
    cut = streamed(end_ms=410, end="truncated", of=of, choices_asked=2)
    assert settled(cut).record.missed == 5  # of the second alone: due at 200, 250, 300, 350, 400
    line = trace_line(settled(cut))
    assert line is not None
    assert line.finished == [True, False]


@given(
    gaps=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 4)), max_size=30),
    extra_ms=st.integers(0, 300),
    finished=st.booleans(),
)
def test_scores_are_the_oracles(gaps: list[tuple[int, int]], extra_ms: int, finished: bool) -> None:
    now, events = 0, []
    for gap, tokens in gaps:
        now += gap
        events.append(at(now, tokens))
    of = {"finished": finished, "tokens_source": "token_ids"}
    given_ = streamed(*events, end_ms=now + extra_ms, of=of)
    given_.end = "complete" if finished and events else "truncated"
    censored = not finished
    out = settled(given_)
    want = tally([Sequence_([(a, t) for a, t, _ in events])], 100, 50, now + extra_ms if censored else None)
    if out.score is not None:
        # The oracle counts in milliseconds, where the same deadlines pass: all numbers are whole ones.
        assert (out.score.met, out.score.missed) == (want.met, want.missed)
        assert out.censored is censored


def test_pauses_for_a_slow_client_are_taken_out() -> None:
    given_ = streamed(at(100), at(400), end_ms=410, blocked=((T0 + 120 * MS, T0 + 380 * MS),))
    out = settled(given_).record
    assert (out.met, out.missed, out.fluidity) == (1, 0, 1.0)
    assert out.raw is not None
    assert (out.raw.met, out.raw.missed) == (1, 6)
    assert out.proxy.client_blocked_s == 0.26


def test_thinned_streams_are_scored_by_what_was_kept_online() -> None:
    kept = ChoiceScore(
        tokens=1_000, late=10, missed=40, late_ns=900 * MS, due_ns=60_000 * MS,
        worst_at_ns=7 * MS, worst_late_ns=300 * MS, worst_missed=7, longest_gap_ns=350 * MS,
    )  # fmt: skip
    of: dict[str, Any] = {"thinned": True, "scores": (kept,), "tokens": 1_000, "events": 1_000}
    out = settled(
        streamed(at(100, 500), at(200, 500), end_ms=210, of=of | {"usage": Usage(output=1_200)})
    ).record
    assert (out.met, out.missed, out.fluidity, out.late_s) == (990, 40, round(990 / 1_030, 6), 0.9)
    assert out.worst_stall is not None
    assert (out.worst_stall.late_s, out.worst_stall.missed) == (0.3, 7)
    assert out.tbt_s is not None
    assert out.tbt_s.max == 0.35
    assert (out.thinned, out.tokens_source, out.output_tokens) == (True, "events", 1_200)
    cut = streamed(at(100, 500), at(200, 500), end_ms=60_120, of=of | {"finished": False})
    cut.end = "truncated"
    assert settled(cut).record.missed == 40 + 3  # due at 60,000: 60,000, 60,050, 60,100


# ---------------------------------------------------------------- tokens


def test_the_servers_count_is_spread_over_the_events_by_their_size() -> None:
    of = {"usage": Usage(prompt=7, output=6, cached=3)}
    out = settled(streamed(at(50, 1, 4), at(60, 1, 12), at(70, 1, 4), end_ms=80, of=of))
    assert out.counted is not None
    assert out.counted.choices[0].tokens.tolist() == [2, 3, 1]  # shares 0.6, 1.8, 0.6: a tie to the earlier
    record = out.record
    assert (record.tokens_source, record.output_tokens, record.tokens_observed) == ("events+usage", 6, 3)
    assert (record.tokens_reported, record.met, record.events, record.tokens_per_event) == (6, 6, 3, 2.0)
    assert (record.prompt_tokens, record.prompt_tokens_source, record.cached_tokens) == (7, "usage", 3)


def test_hidden_reasoning_is_not_spread_over_what_was_seen() -> None:
    of = {"usage": Usage(output=1_002, reasoning=1_000)}
    out = settled(streamed(at(50), at(60), end_ms=70, of=of))
    assert out.counted is not None
    assert out.counted.choices[0].tokens.tolist() == [1, 1]
    assert (out.record.tokens_source, out.record.output_tokens) == ("events+usage", 1_002)


@pytest.mark.parametrize("reported", [1, 5, 10_000_000])
def test_a_count_that_cannot_be_of_these_events_is_shown_and_not_used(reported: int) -> None:
    out = settled(streamed(at(50), at(60), end_ms=70, of={"usage": Usage(output=reported)})).record
    assert (out.tokens_source, out.tokens_reported, out.met) == ("events", reported, 2)


def test_the_missing_are_apportioned_whatever_counted_them() -> None:
    of = {"tokens_source": "token_ids", "usage": Usage(output=5)}
    out = settled(streamed(at(50, 3), end_ms=60, of=of)).record
    assert (out.tokens_source, out.tokens_observed, out.output_tokens, out.met) == ("events+usage", 3, 5, 5)
    of["usage"] = Usage(output=9)  # three times as many, and nothing shows where they were
    out = settled(streamed(at(50, 3), end_ms=60, of=of)).record
    assert (out.tokens_source, out.tokens_observed, out.output_tokens, out.met) == ("token_ids", 3, 9, 3)


# ---------------------------------------------------------------- outcomes


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({}, ("completed", "excluded", ("no_e2e",))),
        ({"slo": "batch"}, ("completed", "good", ())),
        ({"slo": "batch", "end_ns": T0 + 2_001 * MS}, ("completed", "bad", ("e2e",))),
        ({"status": 404}, ("rejected", "excluded", ("rejected",))),
        ({"status": 413, "end": "refused"}, ("rejected", "excluded", ("rejected",))),
        ({"status": 429}, ("overloaded", "bad", ("outcome",))),
        ({"status": 503, "end": "pool_full"}, ("overloaded", "bad", ("outcome",))),
        ({"status": 502, "end": "connect_failed"}, ("upstream_error", "bad", ("outcome",))),
        ({"status": 200, "end": "truncated"}, ("upstream_error", "bad", ("outcome",))),
        ({"status": 504, "end": "timeout_idle"}, ("timeout", "bad", ("outcome",))),
        ({"status": 500, "end": "self"}, ("proxy_error", "bad", ("outcome",))),
        ({"status": None, "end": "client_left"}, ("client_cancelled", "excluded", ("cancelled",))),
    ],
)
def test_what_is_not_streamed(fields: dict[str, Any], want: tuple[str, str, tuple[str, ...]]) -> None:
    given_ = facts(**fields)
    assert verdict(given_) == want
    assert settled(given_).score is None


def test_a_body_that_tells_its_tokens_has_a_latency_per_token() -> None:
    body = Stream("openai.chat", tokens_source="usage", usage=Usage(prompt=9, output=40), finished=True)
    out = settled(facts(900, stream=body))
    assert (out.score, out.outcome.value) == (None, "completed")
    record = out.record
    assert (record.normalized_latency_s, record.duration_s) == (0.0225, 0.9)
    assert (record.output_tokens, record.tokens_reported, record.tokens_source) == (40, 40, "usage")
    assert (record.tokens_observed, record.events, record.tokens_per_event) == (None, None, None)


@pytest.mark.parametrize("usage", [Usage(), Usage(prompt=9), Usage(output=0)])
def test_a_body_without_tokens_has_none(usage: Usage) -> None:
    out = settled(facts(900, stream=Stream("openai.chat", tokens_source="usage", usage=usage)))
    assert (out.normalized_ns, out.record.normalized_latency_s) == (None, None)


def test_a_stream_that_is_not_scored_has_no_latency_per_token() -> None:
    out = settled(streamed(at(50), of={"usage": Usage(output=1)}, status=400))
    assert (out.score, out.normalized_ns, out.record.normalized_latency_s) == (None, None, None)


def test_a_stream_without_its_end_is_the_servers_fault() -> None:
    assert verdict(streamed(at(50), of={"finished": False}))[0] == "upstream_error"
    assert verdict(streamed(at(50), of={"finished": False, "dialect": "generic"}))[0] == "completed"
    assert verdict(streamed(at(50), of={"error": "server_error"}))[0] == "upstream_error"
    assert verdict(streamed(end_ms=60))[0] == "upstream_error"  # finished without a token


def test_a_rejected_stream_is_not_scored() -> None:
    out = settled(streamed(end_ms=400, status=400, of={"finished": False}))
    assert (out.outcome.value, out.score, out.record.missed) == ("rejected", None, None)


def test_unmeasured_streams_are_excluded_and_say_why() -> None:
    off = settled(streamed(stream=None))
    assert (off.outcome.value, off.result.value, off.unmeasured) == ("completed", "excluded", "switched_off")
    broken = settled(streamed(at(50), of={"unmeasured": "event_too_large", "finished": False}))
    assert (broken.record.unmeasured, broken.record.fluidity) == ("event_too_large", None)
    assert broken.result.value == "excluded"


def test_arrivals_that_are_none_raise_and_can_be_settled_unmeasured() -> None:
    for choices in ((b"12345",), (b"\x01" + bytes(15) + bytes(16),)):  # half a pair; time runs backwards
        held = msgspec.structs.replace(stream(at(50)), choices=choices)
        given_ = streamed(stream=held)
        with pytest.raises(ValueError, match=r"arrivals|buffer|reshape"):
            settled(given_)
        out = settle_unmeasured(given_, HERE, "tap_error")
        assert (out.unmeasured, out.result.value) == ("tap_error", "excluded")


def test_what_was_promised_at_the_start_judges_whatever_the_table_says_now() -> None:
    assert verdict(streamed(at(50), slo="gone")) == ("completed", "good", ())
    assert verdict(streamed(at(50), at(151), slo="gone")) == ("completed", "bad", ("fluidity",))
    assert verdict(streamed(at(50), at(151), slo="gone", target=0.5)) == ("completed", "good", ())
    assert settled(streamed(at(50), slo="gone")).group == GroupKey("default", "llama", "gone")


def test_no_backend_and_no_model_have_a_name_in_the_groups() -> None:
    out = settled(facts(model=None, backend=None, sent_ns=None, end="refused", status=431))
    assert out.group == GroupKey(NONE, NONE, "default")
    assert out.record.backend is None
    assert out.record.proxy.received_to_sent_s is None
    assert out.record.duration_s == 0.101  # from its arrival: nothing was sent


# ---------------------------------------------------------------- the record

#: The promise: these names in this order.
NAMES = """
schema time id request_id response_id trace_id instance tags method path status stream dialect
model backend upstream_addr experiment assigned slo slo_result slo_reasons outcome finish_reason error
censored suspect prompt_tokens cached_tokens prompt_tokens_source output_tokens tokens_observed
tokens_reported tokens_source events tokens_per_event thinned unmeasured ttft_target_s tbt_target_s
ttft_s connected_s first_byte_s
head_s first_event_s first_reasoning_s first_answer_s first_tool_s tbt_s tpot_s normalized_latency_s
duration_s fluidity on_time_ratio met missed late_s least_tbt_s stalls raw worst_stall proxy
"""


def test_the_records_names_and_their_order() -> None:
    line = json.loads(msgspec.json.encode(settled(streamed(at(50), at(300), end_ms=310)).record))
    assert list(line) == NAMES.split()
    assert list(line["tbt_s"]) == ["p50", "p90", "p99", "max"]
    assert list(line["worst_stall"]) == ["at_s", "late_s", "missed"]
    assert list(line["proxy"]) == [
        "received_to_sent_s", "pool_wait_s", "connect_s", "forward_p99_s", "client_blocked_s",
        "loop_lag_max_s", "attempts",
    ]  # fmt: skip
    assert line["time"] == "2026-11-20T03:14:07.412Z"
    assert (line["schema"], line["instance"], line["proxy"]["received_to_sent_s"]) == (1, "here", 0.001)


ASSIGNED = [  # of the assignment, and where it went -> experiment, assigned
    (None, "a", (None, None)),
    (Assignment("s", "a", "draw"), "a", (None, None)),
    (Assignment("s", "a", "draw", epoch="e|a=1,b=1"), "a", ("e", None)),
    (Assignment("s", "a", "session", 7, "connection_refused", "e|a=1,b=1", 3), "b", ("e", "a")),
    (Assignment("s", "a", "draw", failed="connection_refused"), "b", (None, "a")),
    (Assignment("s", "a", "forced", epoch="e|a=1,b=1"), "a", (None, None)),
]


@pytest.mark.parametrize(("assignment", "backend", "told"), ASSIGNED)
def test_the_record_names_the_experiment_and_where_it_was_to_go_but_no_session(
    assignment: Assignment | None, backend: str, told: tuple[str | None, str | None]
) -> None:
    record = settled(facts(assignment=assignment, backend=backend)).record
    assert (record.experiment, record.assigned) == told
    assert "session" not in msgspec.json.decode(msgspec.json.encode(record))


def test_the_firsts_are_apart_and_count_from_the_requests_last_byte() -> None:
    firsts = {
        f"first_{what}_ns": T0 + at_ms * MS
        for what, at_ms in {"event": 30, "reasoning": 50, "answer": 70, "tool": 90}.items()
    }
    given_ = streamed(
        at(50), at(70), at(90), end_ms=100, of=firsts,
        connected_ns=T0 - 2 * MS, first_byte_ns=T0 + 10 * MS, head_ns=T0 + 20 * MS,
    )  # fmt: skip
    record = settled(given_).record
    shown = [
        record.connected_s, record.first_byte_s, record.head_s, record.first_event_s,
        record.first_reasoning_s, record.first_answer_s, record.first_tool_s,
    ]  # fmt: skip
    assert shown == [-0.002, 0.01, 0.02, 0.03, 0.05, 0.07, 0.09]
    assert record.ttft_s == 0.05, "the first token of any kind"
    never = settled(facts(end="connect_failed", sent_ns=None, status=502)).record
    assert (never.connected_s, never.first_byte_s, never.head_s, never.ttft_s) == (None,) * 4


def test_a_record_reads_back_as_itself() -> None:
    record = settled(streamed(at(50), at(300), end_ms=310)).record
    assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record


def test_no_query_string_and_no_endless_model_name() -> None:
    out = settled(facts(path="/v1/models?key=SECRET", model="m" * 100_000)).record
    assert out.path == "/v1/models"
    assert b"SECRET" not in msgspec.json.encode(out)
    assert len(out.model or "") == 256
