"""The ledger's sums, the cap on labels, and the records that are kept."""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.control.buckets import Buckets
from proxy.control.core import Controller
from proxy.control.labels import GroupCap
from proxy.control.ledger import DURATION, FLUIDITY, LONGEST_GAP, NORMALIZED, TBT, TTFT, Ledger
from proxy.control.settle import GroupKey, Settled, settle
from proxy.control.store import Store
from proxy.exporters.catalog import OTHER
from proxy.link import Facts, LearnedCurve, SloSpec, Stream, Usage
from tests.control.facts import BATCH, DEFAULT, MS, at, facts, stream, streamed, table

HERE = "here"
ALL_OTHER = GroupKey(OTHER, OTHER, OTHER)


def settled(*given_: Facts) -> list[Settled]:
    return [settle(each, HERE) for each in given_]


# ---------------------------------------------------------------- sums


def test_every_request_is_booked_once_under_its_group() -> None:
    ledger = Ledger([DEFAULT, BATCH])
    ledger.fold(
        settled(
            streamed(at(80), at(120), end_ms=130, of={"usage": Usage(prompt=5, output=2)}),
            streamed(at(100), at(300), end_ms=310),
            facts(slo="batch", status=503),
            facts(model="qwen"),
        )
    )
    chat, batch, qwen = sorted(ledger.freeze(), key=lambda group: (group.model, -len(group.slo)))
    assert (chat.backend, chat.model, chat.slo) == ("default", "llama", "default")
    assert (chat.outcomes["completed"], chat.results["good"], chat.results["bad"]) == (2, 1, 1)
    assert chat.deadlines == {"met": 3, "missed": 4, "suspect": 0, "client_blocked": 0}
    assert chat.output_tokens["events+usage"] == 2
    assert chat.output_tokens["events"] == 2
    assert chat.prompt_tokens == {"usage": 5, "estimated": 12}
    assert (batch.outcomes["overloaded"], qwen.results["excluded"]) == (1, 1)
    assert batch.outcomes["completed"] == 0  # known values exist at 0
    assert ledger.settled == 4


def test_histograms_count_what_was_observed_in_their_units() -> None:
    ledger = Ledger([DEFAULT])
    ledger.fold(settled(streamed(at(100), at(150), at(400), end_ms=500)))
    hists = ledger.freeze()[0].hists
    assert [hists[name].count for name in (TTFT, TBT, LONGEST_GAP, DURATION, FLUIDITY)] == [1, 2, 1, 1, 1]
    assert hists[TBT].sum == pytest.approx(0.3)
    # 100 ms and 50 ms are deadlines, so boundaries, and a value equal to one lies below it.
    assert hists[TTFT].counts[hists[TTFT].bounds.index(0.1)] == 1
    assert hists[TBT].counts[hists[TBT].bounds.index(0.05)] == 1
    assert hists[FLUIDITY].sum == pytest.approx(2 / 7)  # due 150, 200, 250, 300, 350, 400: late by 250 - 50


def test_what_is_not_streamed_has_its_latency_per_token_booked_too() -> None:
    body = Stream("openai.chat", tokens_source="usage", usage=Usage(output=40))
    silent = Stream("openai.chat", tokens_source="usage")
    ledger = Ledger([DEFAULT])
    ledger.fold(settled(facts(900, stream=body), facts(900, stream=silent), facts(900)))
    ledger.fold(settled(streamed(at(80), at(120), end_ms=130)))
    group = ledger.freeze()[0]
    assert (group.hists[NORMALIZED].count, group.hists[DURATION].count) == (2, 4)
    assert group.hists[NORMALIZED].sum == pytest.approx(0.9 / 40 + 0.13 / 2)
    assert (group.hists[TTFT].count, group.output_tokens["usage"]) == (1, 40)


@given(
    st.lists(st.sampled_from([10, 50, 51, 300, 5_000]), min_size=1, max_size=40),
    st.integers(1, 6),
)
def test_sums_do_not_depend_on_the_batches(durations: list[int], size: int) -> None:
    every = settled(*(streamed(at(d // 2), end_ms=d) for d in durations))
    one, many = Ledger([DEFAULT]), Ledger([DEFAULT])
    one.fold(every)
    for start in range(0, len(every), size):
        many.fold(every[start : start + size])
    assert one.freeze() == many.freeze()
    assert one.freeze()[0].hists[DURATION].count == len(durations)


def test_unmeasured_streams_are_counted_by_reason() -> None:
    ledger = Ledger([DEFAULT])
    ledger.fold(
        settled(
            streamed(stream=None),
            streamed(stream=stream(unmeasured="bomb")),
            streamed(stream=stream(unmeasured="a reason of tomorrow")),
        )
    )
    counted = {name: times for name, times in ledger.unmeasured.items() if times}
    assert counted == {"switched_off": 1, "bomb": 1, "tap_error": 1}


def test_the_fluid_token_rate_is_null_with_its_reason_or_a_rate() -> None:
    ledger = Ledger([DEFAULT])
    assert ledger.freeze() == ()
    ledger.fold(settled(streamed(at(100), at(140), at(180), end_ms=190)))  # needs 40 ms between tokens
    book = next(iter(ledger.groups.values()))
    rate, reason = book.rate()
    assert rate == pytest.approx(25, rel=0.01)
    assert reason is None
    ledger.fold(settled(streamed(at(900), end_ms=910)))  # no TBT deadline mends a late first token
    rate, reason = book.rate()
    assert rate is None
    assert reason is not None
    assert reason.startswith("TTFT: 1 of 2")


# ---------------------------------------------------------------- buckets


@given(st.lists(st.integers(0, 4_000_000_000), max_size=50))
def test_one_by_one_and_all_at_once_agree(values_ns: list[int]) -> None:
    bounds = (0.001, 0.05, 0.3, 1.0)
    one, many = Buckets(bounds), Buckets(bounds)
    for value in values_ns:
        one.add(value / 1e9)
    many.add_many_ns(np.array(values_ns, dtype=np.int64))
    assert one.freeze().counts == many.freeze().counts
    assert one.freeze().sum == pytest.approx(many.freeze().sum)


def test_new_deadlines_become_boundaries_and_nothing_is_taken_back() -> None:
    ledger = Ledger([DEFAULT])
    ledger.fold(settled(*(streamed(at(ttft), end_ms=10_000) for ttft in (40, 90, 110, 130, 70_000))))
    before = ledger.freeze()[0].hists[TTFT]
    ledger.set_slos([SloSpec("default", DEFAULT.match, ((0, 120 * MS),), 50 * MS)])
    after = ledger.freeze()[0].hists[TTFT]
    assert 0.12 in after.bounds
    assert 0.12 not in before.bounds
    assert after.count == before.count
    for bound in set(before.bounds) & set(after.bounds):
        assert _below(after, bound) == _below(before, bound)
    ledger.fold(settled(streamed(at(120), end_ms=200)))
    assert ledger.freeze()[0].hists[TTFT].counts[after.bounds.index(0.12)] >= 1


def _below(hist: object, bound: float) -> int:
    bounds, counts = hist.bounds, hist.counts  # type: ignore[attr-defined]
    return sum(counted for upper, counted in zip(bounds, counts, strict=False) if upper <= bound)


# ---------------------------------------------------------------- labels


def test_models_beyond_the_cap_are_other() -> None:
    cap = GroupCap(8)
    booked = [cap.admit(GroupKey("b", f"m{i}", "s")) for i in range(100)]
    assert len(cap) <= 8
    assert booked[0] == GroupKey("b", "m0", "s")
    assert Counter(booked)[GroupKey("b", OTHER, "s")] >= 90
    assert cap.admit(GroupKey("b", "m0", "s")) == GroupKey("b", "m0", "s")


@given(
    st.integers(2, 12),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 3), st.booleans()), max_size=200),
)
def test_the_cap_holds_whatever_comes(limit: int, keys: list[tuple[int, int, int, bool]]) -> None:
    cap = GroupCap(limit)
    seen = set()
    for backend, model, slo, new in keys:
        key = GroupKey(f"b{backend}", f"m{model}", f"s{slo}")
        booked = cap.admit(key, new=new)
        assert booked in (key, GroupKey(key.backend, OTHER, key.slo), ALL_OTHER)
        seen.add(booked)
    assert len(seen) == len(cap) <= limit


def test_a_name_that_is_only_rejected_never_becomes_a_label() -> None:
    ledger = Ledger([DEFAULT])
    ledger.fold(settled(*(facts(model=f"guess-{i}", status=404) for i in range(500))))
    assert [group.model for group in ledger.freeze()] == [OTHER]
    assert ledger.freeze()[0].outcomes["rejected"] == 500


@pytest.mark.parametrize("model", ["m" * 129, "evil\nname", "\u202e"])
def test_text_that_is_no_name_is_other(model: str) -> None:
    assert GroupCap().admit(GroupKey("b", model, "s")) == GroupKey("b", OTHER, "s")


def test_200_models_and_exact_sums() -> None:
    ledger = Ledger([DEFAULT])
    ledger.fold(settled(*(facts(model=f"m{i % 200}") for i in range(1_000))))
    groups = ledger.freeze()
    assert len(groups) <= 64
    assert sum(group.outcomes["completed"] for group in groups) == 1_000


# ---------------------------------------------------------------- the store


def test_the_ring_keeps_the_newest_and_the_heap_the_worst() -> None:
    store = Store(recent=3, worst=2)
    late = [streamed(at(100), at(150 + 50 * n), end_ms=9_000, id=f"late{n}") for n in (1, 5, 3)]
    store.add_many(settled(*late, facts(id="a"), facts(id="b"), facts(id="c")))
    assert [kept.settled.facts.id for kept in store.recent] == ["c", "b", "a"]
    assert [kept.settled.facts.id for kept in store.worst] == ["late5", "late3"]
    assert store.find("late5") is not None
    assert store.find("late1") is None


def test_a_stream_without_a_miss_is_not_among_the_worst() -> None:
    store = Store()
    store.add_many(settled(streamed(at(50), end_ms=60)))
    assert len(store.worst) == 0


def test_look_up_by_any_name() -> None:
    store = Store()
    held = stream(at(50), response_id="chatcmpl-1")
    store.add_many(settled(streamed(stream=held, id="x", request_id="gw-1", trace_id="4bf9")))
    for name in ("x", "gw-1", "chatcmpl-1", "4bf9"):
        kept = store.find(name)
        assert kept is not None
        assert kept.settled.facts.id == "x"
    assert store.find("None") is None


def test_arrivals_are_bounded_in_bytes_and_records_stay() -> None:
    store = Store(recent=100, worst=10, arrival_bytes=100_000)
    every = [streamed(*(at(50 + 60 * i) for i in range(100)), end_ms=9_000, id=f"s{n}") for n in range(50)]
    records = {each.facts.id: each.record for each in settled(*every)}
    store.add_many(settled(*every))
    with_arrivals = [kept for kept in store.recent if kept.arrivals]
    assert 0 < len(with_arrivals) < 10
    assert [kept.settled.facts.id for kept in with_arrivals] == [
        f"s{n}" for n in range(49, 49 - len(with_arrivals), -1)
    ]
    assert sum(kept.size for kept in store.recent) <= 100_000
    assert sum(kept.size for kept in store.worst) <= 100_000
    for kept in store.recent:
        assert msgspec.to_builtins(kept.settled.record) == msgspec.to_builtins(records[kept.settled.facts.id])


def test_the_ttft_target_that_is_shown_is_the_smallest_that_is_promised() -> None:
    curve = LearnedCurve("b", "m", ((64, 50 * MS), (4096, 400 * MS)))
    learned = msgspec.structs.replace(BATCH, curves=(curve,), slack_ns=20 * MS)
    fallback_s = BATCH.ttft_points[0][1] / 1e9
    for slo, shown_s in ((BATCH, fallback_s), (learned, 0.07)):
        for live, wanted_s in ((False, shown_s), (True, fallback_s)):
            rules = table(msgspec.structs.replace(slo, live=live))
            control = Controller(rules, instance="i", version="0", unix_ns=int, monotonic_ns=int)
            assert control.snapshot().slos[0].ttft_target_s == wanted_s
