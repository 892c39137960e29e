"""An SLO that promises how long an answer takes promises nothing of its tokens: no deadline of theirs is kept
or missed, and none is read as a rate; what was observed of them is told all the same."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from proxy.control.core import Controller
from proxy.control.summary import summarise
from proxy.control.timeline import timeline
from proxy.control.windowed import miss_rates, summarise_window
from proxy.exporters.prometheus import render
from proxy.link import Facts, FactsBatch
from scoring.score import Gaps
from tests.control.facts import BATCH, MS, T0, UNIX, S, at, streamed, table

WHY = "the SLO promises no token deadlines"
DURATION = replace(BATCH, duration_only=True)  # {name: batch, e2e: 2s}: its deadlines are anybody's defaults
SLOW = (at(900), at(1_400), at(1_900))  # late by any of them


def control(*given: Facts) -> Controller:
    controller = Controller(
        table(DURATION), instance="h", version="1", unix_ns=lambda: UNIX + 3 * S, monotonic_ns=lambda: T0
    )
    controller.feed(FactsBatch(list(given)))
    return controller


def test_the_record_tells_what_was_seen_and_of_no_deadline() -> None:
    controller = control(streamed(*SLOW, end_ms=1_950, slo="batch"))
    (kept,) = controller.store.recent
    record, score, shown = kept.settled.record, kept.settled.score, timeline(kept.settled)
    assert (record.slo_result, record.outcome) == ("good", "completed")
    assert (record.ttft_s, record.duration_s, record.output_tokens) == (0.9, 1.95, 3)
    assert record.tbt_s is not None
    assert record.tbt_s.max == 0.5
    assert score is not None
    assert score.tbt == Gaps(500 * MS, 500 * MS, 500 * MS, 500 * MS)
    assert (record.ttft_target_s, record.tbt_target_s, record.fluidity, record.least_tbt_s) == (None,) * 4
    assert (record.met, record.missed, record.stalls, record.late_s) == (0, 0, 0, 0.0)
    assert (record.on_time_ratio, record.worst_stall, record.raw) == (None, None, None)
    assert shown is not None
    assert [(event.at_s, event.deadline_s, event.slack_s, event.missed) for event in shown.events] == [
        (0.9, None, None, 0),
        (1.4, None, None, 0),
        (1.9, None, None, 0),
    ]
    assert not shown.stalls
    assert not list(controller.store.worst)


def test_books_have_its_times_and_neither_deadlines_nor_a_rate() -> None:
    chat = [streamed(at(80), at(120), at(160), end_ms=170) for _ in range(3)]
    batch = [streamed(*SLOW, end_ms=1_950, slo="batch") for _ in range(300)]
    controller, alone = control(*chat, *batch), control(*chat)
    for read in (summarise, lambda each: summarise_window(each, 60 * S)):
        said, only = read(controller), read(alone)
        (group,) = [group for group in said.groups if group.slo == "batch"]
        assert group.deadlines == {"met": 0, "missed": 0, "suspect": 0, "client_blocked": 0}
        assert (group.fluidity.p1, group.deadline_miss_rate, group.share_under_target) == (None, None, None)
        assert (group.fluid_token_rate, group.fluid_token_rate_reason) == (None, WHY)
        assert (group.results["good"], group.objective) == (300, 0.99)
        assert group.ttft_s.p50 == pytest.approx(0.9, rel=0.01)
        assert group.tbt_s.p99 == pytest.approx(0.5, rel=0.01)
        assert (
            said.total.fluid_token_rate
            == only.total.fluid_token_rate
            == pytest.approx(
                1 / 0.030,
                rel=0.01,  # 160 ms are 100 and twice 30
            )
        )
        assert said.total.deadlines == only.total.deadlines
    curves = miss_rates(controller, 60 * S)
    (curve,) = [group for group in curves.groups if group.slo == "batch"]
    assert (curve.fluid_token_rate_reason, curve.miss_rate, curve.miss_rate_reason) == (WHY, None, WHY)
    assert curves.total.miss_rate == miss_rates(alone, 60 * S).total.miss_rate


def test_metrics_name_no_target_and_no_rate_for_it() -> None:
    controller = control(streamed(*SLOW, end_ms=1_950, slo="batch"), streamed(at(80), at(120), end_ms=130))
    text = render(controller.snapshot(), None)[0].decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for name in ("legato_ttft_target_seconds", "legato_tbt_target_seconds", "legato_fluid_token_rate"):
        assert [line for line in lines if line.startswith(name) and 'slo="default"' in line], name
        assert not [line for line in lines if line.startswith(name) and 'slo="batch"' in line], name
    assert [line for line in lines if line.startswith("legato_slo_objective_ratio") and 'slo="batch"' in line]


@pytest.mark.parametrize(
    ("end_ms", "verdict"),
    [(1_000, ("excluded", ["cancelled"])), (2_001, ("bad", ["e2e"]))],
)
def test_who_leaves_before_the_time_is_over_is_held_against_nobody(
    end_ms: int, verdict: tuple[str, list[str]]
) -> None:
    given = streamed(
        end_ms=end_ms, slo="batch", end="client_left", of={"finished": False, "finish_reason": None}
    )
    (kept,) = control(given).store.recent
    assert (kept.settled.record.slo_result, kept.settled.record.slo_reasons) == verdict
    assert kept.settled.record.missed == 0


def test_a_name_alone_takes_no_promise_away() -> None:
    """A reload made the rule one of duration while a request was in flight, to which tokens were promised."""
    (kept,) = control(streamed(*SLOW, end_ms=1_950, slo="batch", target=0.9, e2e_ns=2 * S)).store.recent
    assert (kept.settled.record.missed, kept.settled.record.slo_result) != (0, "good")
    assert kept.settled.record.ttft_target_s == 0.1
