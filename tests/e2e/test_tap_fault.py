"""Errors in the measuring code: the bytes go on untouched, and the error is counted, never shown."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.crowd import Crowd, Streamer, Wish, expected, streamer
from tests.helpers.probed import INJECTED, probed
from tests.helpers.procs import Legato, eventually, serve

STREAMS, EVENTS = 20, 40


@pytest.fixture(scope="module")
def upstream() -> Iterator[Streamer]:
    with streamer() as server:
        yield server


def expect_untouched(legato: Legato, every_ms: float = 10) -> None:
    crowd = Crowd(legato.data, [Wish(number, EVENTS, every_ms) for number in range(STREAMS)])
    for seen in crowd.result():
        assert (seen.end, seen.sha) == ("complete", expected(seen.wish.number, EVENTS))


def beats(legato: Legato) -> float:
    """Grows with every beat, by some fifty."""
    return legato.metrics().value("legato_event_loop_lag_seconds_count")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("proxy.relay.tap:by_path", id="opening-the-tap"),
        pytest.param("proxy.relay.streamtap:StreamTap._feed", id="the-first-piece"),
        pytest.param("proxy.relay.arrivals:Track.late_at", id="the-score"),
        pytest.param("proxy.relay.streamtap:StreamTap._stream", id="the-facts"),
    ],
)
def test_a_fault_in_the_tap_is_counted_and_no_byte_is_touched(upstream: Streamer, fault: str) -> None:
    flags = ["--ttft", "1ms", "--tbt", "1ms"]  # every token is late
    with serve(upstream.url, flags=flags, program=probed(fault=fault)) as legato:
        workers = legato.workers()
        expect_untouched(legato)
        eventually(lambda: len(legato.records()) >= STREAMS, 10, "every record", 0.05)
        for record in legato.records():
            assert record["unmeasured"] in ("tap_error", "shed")  # a busy machine sheds by itself
            assert record["slo_result"] == "excluded"
            assert (record["outcome"], record["status"]) == ("completed", 200)
            assert record["fluidity"] is None
        faults = sum(record["unmeasured"] == "tap_error" for record in legato.records())
        assert faults > 0
        eventually(
            lambda: legato.metrics().value("legato_dropped_total", what="tap_faults") >= faults, 5, "a beat"
        )
        metrics = legato.metrics()
        assert metrics.value("legato_unmeasured_total", reason="tap_error") == faults
        assert metrics.value("legato_unmeasured_total") == STREAMS
        assert metrics.value("legato_slo_requests_total", result="excluded") == STREAMS
        assert INJECTED not in legato.stderr
        assert legato.workers() == workers


def test_a_fault_now_and_then_spoils_only_its_own_streams(upstream: Streamer) -> None:
    with serve(upstream.url, program=probed(fault="proxy.relay.streamtap:sniff", at_call=3)) as legato:
        expect_untouched(legato)
        eventually(lambda: len(legato.records()) >= STREAMS, 10, "every record", 0.05)
        spoiled = [record for record in legato.records() if record["unmeasured"] == "tap_error"]
        assert 0 < len(spoiled) < STREAMS
        for record in legato.records():
            assert (record["fluidity"] is None) is (record["unmeasured"] is not None)
        assert legato.metrics().value("legato_unmeasured_total", reason="tap_error") == len(spoiled)


def test_a_fault_in_the_sweep_stops_neither_streams_nor_beats(upstream: Streamer) -> None:
    fault = "proxy.relay.arrivals:Track.overdue_ns"
    with serve(upstream.url, program=probed(fault=fault)) as legato:
        expect_untouched(legato, every_ms=60)  # long enough to be swept
        eventually(lambda: beats(legato) > 0, 10, "a beat")
        ticks = beats(legato)
        eventually(lambda: beats(legato) > ticks + 100, 10, "more beats")
        assert legato.metrics().value("legato_requests_in_flight") == 0


def test_a_fault_while_telling_the_facts_loses_them_and_says_so(upstream: Streamer) -> None:
    with serve(
        upstream.url, program=probed(fault="proxy.relay.worker:facts_of", at_call=2), clean_exit=False
    ) as legato:
        expect_untouched(legato)
        total = ("legato_requests_total", "legato_dropped_total")

        def accounted() -> bool:
            metrics = legato.metrics()
            return metrics.value(total[0]) + metrics.value(total[1], what="facts") >= STREAMS - 1

        eventually(accounted, 10, "every request, told or lost", 0.05)
        assert legato.metrics().value("legato_requests_total") == STREAMS // 2
        assert INJECTED not in legato.stderr
