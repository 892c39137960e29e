"""What is learned of prefill: from which streams, within which bounds, and how it compares."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proxy.control.core import Controller
from proxy.control.prefilled import prefilled
from proxy.control.prefills import DISTURBED, PAIRS, REFIT_NS, WINDOW_NS, Pair
from proxy.curves import FrozenCurve, FrozenCurves
from proxy.link import Facts, FactsBatch, Usage
from proxy.settings.slo import LearnedTtft, Slo
from scoring.prefill import Curve
from tests.control.facts import MS, T0, UNIX, S, at, facts, streamed, table
from tests.control.test_api import serving
from tests.control.test_process import Running
from tests.control.test_reload_curves import SETTINGS
from tests.helpers.curves import flat, learned

PAIR = Pair("default", "llama")


@dataclass
class Clock:
    """Both clocks of a controller, moved by hand."""

    ns: int = 0

    def unix_ns(self) -> int:
        return UNIX + self.ns

    def monotonic_ns(self) -> int:
        return T0 + self.ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def control(clock: Clock) -> Controller:
    return Controller(
        table(), instance="here", version="1", unix_ns=clock.unix_ns, monotonic_ns=clock.monotonic_ns
    )


def took(ttft_ms: int, prompt: int | None = 100, cached: int | None = None, **fields: Any) -> Facts:
    """A stream of three tokens, 20 ms apart, whose server reported the prompt's tokens."""
    usage = Usage(prompt=prompt, output=3, cached=cached)
    end_ms = fields.pop("end_ms", ttft_ms + 50)
    events = (at(ttft_ms), at(ttft_ms + 20), at(ttft_ms + 40))
    return streamed(*events, end_ms=end_ms, of={"usage": usage, **fields.pop("of", {})}, **fields)


def true_ms(prompt: int) -> int:
    return 50 + prompt // 4


def teach(control: Controller, number: int = 400, times: float = 1.0, **fields: Any) -> None:
    """Prompts of 100 to 3,200 tokens; half of them had to wait."""
    dice = random.Random(7)
    batch = []
    for each in range(number):
        prompt = round(100 * 2 ** dice.uniform(0, 5))
        waited_ms = dice.randrange(1, 200) if each % 2 else 0
        batch.append(took(round(times * true_ms(prompt)) + waited_ms, prompt, **fields))
    control.feed(FactsBatch(batch))


def refresh(control: Controller, asked: bool = True) -> None:
    asyncio.run(control.prefills.refresh(asked=asked))


def frozen_slo(curve: Curve, *, name: str = "chat", file: str = "a.yaml", model: str = "llama") -> Slo:
    ttft = LearnedTtft(learned=file, slack="100ms", fallback="2s")  # type: ignore[arg-type]
    ttft.freeze(FrozenCurves("2026-11-20T03:14:07Z", (FrozenCurve("default", model, curve, 0.01, 0.02),)))
    return Slo(name=name, ttft=ttft)


# ---------------------------------------------------------------- what teaches


def late(*spans: tuple[float, float]) -> tuple[tuple[int, int], ...]:
    """Spans in ms since t = 0, as facts carry them."""
    return tuple((T0 + round(a * MS), T0 + round(b * MS)) for a, b in spans)


TEACH = {  # the stream -> (taught, unreported, disturbed)
    "completed and reported": (took(100), (1, 0, 0)),
    "with cache hits told": (took(100, 500, cached=400), (1, 0, 0)),
    "no usage": (took(100, None), (0, 1, 0)),
    "a prompt of no tokens": (took(100, 0), (0, 1, 0)),
    "more cached than prompt": (took(100, 5, cached=6), (0, 0, 0)),
    "blocked before the first token": (took(100, blocked=late((10, 11))), (0, 0, 1)),
    "blocked after it": (took(100, blocked=late((100, 130))), (1, 0, 0)),
    "late before it came, and in time again": (took(100, lags=late((40, 89.9))), (1, 0, 0)),
    "late for 2% of it": (took(100, lags=late((98, 100))), (1, 0, 0)),
    "late for more": (took(100, lags=late((97.9, 100))), (0, 0, 1)),
    "late until the loop woke up for it": (took(100, lags=late((90, 99.9))), (0, 0, 1)),
    "late for a moment, a while before": (took(100, lags=late((90, 92))), (1, 0, 0)),
    "late in spans that touch": (took(100, lags=late((97, 98.5), (98.5, 120))), (0, 0, 1)),
    "late in spans apart": (took(100, lags=late((80, 88), (98.5, 120))), (1, 0, 0)),
    "late all the time": (took(100, lags=late((-5, 150))), (0, 0, 1)),
    "late before t = 0": (took(100, lags=late((-50, 1))), (1, 0, 0)),
    "late after it": (took(100, lags=late((101, 150))), (1, 0, 0)),
    "no model named": (took(100, model=None), None),
}


@pytest.mark.parametrize("said", TEACH)
def test_which_streams_teach(control: Controller, said: str) -> None:
    stream, want = TEACH[said]
    control.feed(FactsBatch([stream]))
    kept = control.prefills.pairs[PAIR if want else Pair("default", "")]
    assert (kept.taught, kept.unreported, kept.disturbed) == (want or (1, 0, 0))


NOTHING = {
    "not streamed": facts(),
    "the client left": took(100, end="client_left", of={"finished": False}),
    "the server died": took(100, end="truncated", of={"finished": False}),
    "an error": took(100, status=500),
    "no token": streamed(of={"usage": Usage(prompt=9)}),
    "no backend": took(100, backend=None),
    "a model's name that is a novel": took(100, model="x" * 257),
    "unmeasured": took(100, of={"unmeasured": "bomb"}),
}


@pytest.mark.parametrize("said", NOTHING)
def test_which_do_not(control: Controller, said: str) -> None:
    control.feed(FactsBatch([NOTHING[said]]))
    assert not control.prefills.pairs


def test_the_share_that_the_proxy_may_have_is_small() -> None:
    assert DISTURBED < 0.1 / 2  # of the exactness that is asked of a curve


def test_models_beyond_the_bound_push_out_the_one_that_was_silent_longest(control: Controller) -> None:
    for number in range(PAIRS):
        control.feed(FactsBatch([took(100, model=f"m{number}")]))
    control.feed(FactsBatch([took(100, model="m0"), took(100, model="new")]))
    kept = {pair.model for pair in control.prefills.pairs}
    assert len(kept) == PAIRS
    assert {"m0", "new"} <= kept
    assert "m1" not in kept


# ---------------------------------------------------------------- fits


def test_the_curve_is_what_prefill_takes_and_tokens_have_their_times(
    control: Controller, clock: Clock
) -> None:
    teach(control)
    refresh(control)
    fit = control.prefills.pairs[PAIR].fit
    assert fit is not None
    assert fit.curve is not None
    for prompt in (150, 800, 3_000):
        assert fit.curve.at(prompt) == pytest.approx(true_ms(prompt) * MS, rel=0.1)
    assert [fit.tbt_p50_s, fit.tbt_p99_s] == pytest.approx([0.02, 0.02], rel=0.01)

    (shown,) = prefilled(control.prefills, clock.monotonic_ns())
    assert shown.live is not None
    assert shown.live.curve is not None
    assert shown.live.curve.points[0][0] == fit.curve.observed[0]
    assert (shown.live.reason, shown.live.taught, shown.frozen) == (None, 400, [])


def test_before_there_is_a_curve_the_reason_is_told(control: Controller, clock: Clock) -> None:
    teach(control, 20)
    control.feed(FactsBatch([took(100, None) for _ in range(21)]))
    refresh(control)
    (shown,) = prefilled(control.prefills, clock.monotonic_ns())
    assert shown.live is not None
    assert shown.live.curve is None
    assert shown.live.reason == (
        "20 requests in the window, 200 are needed; 21 more did not tell their prompt's tokens: have clients "
        "ask for them (OpenAI's stream_options: {include_usage: true})"
    )


def test_a_fit_stands_until_it_is_old_and_goes_with_its_window(control: Controller, clock: Clock) -> None:
    teach(control)
    refresh(control, asked=False)
    first = control.prefills.pairs[PAIR].fit
    assert first is not None
    teach(control, 10)
    clock.ns = REFIT_NS - 1
    refresh(control, asked=False)
    assert control.prefills.pairs[PAIR].fit is first
    clock.ns = REFIT_NS
    refresh(control, asked=False)
    second = control.prefills.pairs[PAIR].fit
    assert second is not None
    assert second.curve is not None
    assert second.curve.samples == 410
    clock.ns = WINDOW_NS + REFIT_NS  # nothing came since: the window has moved on
    refresh(control, asked=False)
    gone = control.prefills.pairs[PAIR].fit
    assert gone is not None
    assert (gone.curve, gone.why_not) == (None, "0 requests in the window, 200 are needed")


def test_without_being_asked_one_is_fitted_at_a_time(control: Controller) -> None:
    teach(control, 1)
    teach(control, 1, model="other")
    refresh(control, asked=False)
    assert [kept.fit is None for kept in control.prefills.pairs.values()] == [False, True]
    refresh(control, asked=False)
    assert all(kept.fit for kept in control.prefills.pairs.values())


def test_the_one_that_waits_longest_is_fitted_first(control: Controller, clock: Clock) -> None:
    for model in ("first", "second"):
        teach(control, 1, model=model)
        refresh(control, asked=False)
        clock.ns += S
    for model in ("second", "first"):
        teach(control, 1, model=model)
    clock.ns += REFIT_NS
    refresh(control, asked=False)
    seen = {pair.model: kept.fit and kept.fit.seen for pair, kept in control.prefills.pairs.items()}
    assert seen == {"first": 2, "second": 1}


def test_what_is_fitted_is_a_copy(control: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[object] = []

    def curve(learner: object, _: int) -> Curve:
        fitted.append(learner)
        return flat(S)

    monkeypatch.setattr("proxy.control.prefills.PrefillLearner.curve", curve)
    teach(control)
    refresh(control)
    assert len(fitted) == 1
    assert fitted[0] is not control.prefills.pairs[PAIR].learner


def test_requests_that_name_no_model_have_their_times_too(control: Controller) -> None:
    teach(control, 3, model=None)
    refresh(control)
    fit = control.prefills.pairs[Pair("default", "")].fit
    assert fit is not None
    assert fit.tbt_p50_s == pytest.approx(0.02, rel=0.01)


def test_a_fit_that_fails_is_a_reason_and_ends_nothing(
    control: Controller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> Curve:
        raise ZeroDivisionError

    monkeypatch.setattr("proxy.control.prefills.PrefillLearner.curve", broken)
    teach(control)
    refresh(control)
    fit = control.prefills.pairs[PAIR].fit
    assert fit is not None
    assert (fit.curve, fit.why_not) == (None, "the fit failed: ZeroDivisionError")
    assert "could not be fitted" in caplog.text


# ---------------------------------------------------------------- live and frozen


def test_drift_is_live_over_frozen_and_absent_where_one_of_them_is_missing(
    control: Controller, clock: Clock
) -> None:
    teach(control)
    refresh(control)
    fit = control.prefills.pairs[PAIR].fit
    assert fit is not None
    assert fit.curve is not None
    control.prefills.freeze([frozen_slo(fit.curve), frozen_slo(flat(S), model="unseen", file="b.yaml")])
    (same,) = control.snapshot().drifts
    assert (same.backend, same.model, same.prefill) == ("default", "llama", 1.0)
    assert same.tbt == {"p50": pytest.approx(2.0, rel=0.01), "p99": pytest.approx(1.0, rel=0.01)}

    clock.ns = 2 * WINDOW_NS
    teach(control, times=2.0)
    refresh(control)
    (slower,) = control.snapshot().drifts
    assert slower.prefill == pytest.approx(2.0, rel=0.1)

    unseen = prefilled(control.prefills, clock.monotonic_ns())[1]
    assert (unseen.model, unseen.live, unseen.frozen[0].prefill_drift) == ("unseen", None, None)

    control.prefills.freeze([])
    assert control.snapshot().drifts == ()


def test_the_first_rules_file_is_what_the_gauge_compares_with(control: Controller, clock: Clock) -> None:
    teach(control)
    refresh(control)
    slos = [
        frozen_slo(Curve(((1, MS), (10_000, MS)), observed=(1, 10_000)), name="one"),
        frozen_slo(Curve(((1, S), (10_000, S)), observed=(1, 10_000)), name="two", file="b.yaml"),
        frozen_slo(flat(S), name="three"),
    ]
    control.prefills.freeze(slos)
    (shown,) = prefilled(control.prefills, clock.monotonic_ns())
    assert [(each.file, each.slos) for each in shown.frozen] == [
        ("a.yaml", ["one", "three"]),
        ("b.yaml", ["two"]),
    ]
    (gauge,) = control.snapshot().drifts
    assert gauge.prefill == shown.frozen[0].prefill_drift
    assert gauge.prefill is not None
    assert gauge.prefill > 50
    assert shown.frozen[1].prefill_drift == pytest.approx(gauge.prefill / 1000, rel=0.01)


def test_a_pair_that_left_has_no_drift(control: Controller) -> None:
    teach(control)
    refresh(control)
    control.prefills.freeze([frozen_slo(flat(S))])
    assert control.snapshot().drifts
    control.feed(FactsBatch([took(100, model=f"m{number}") for number in range(PAIRS)]))
    assert control.snapshot().drifts == ()


def test_where_nothing_can_be_compared_there_is_no_drift(control: Controller) -> None:
    control.feed(FactsBatch([streamed(at(100), of={"usage": Usage(prompt=9)})]))  # no time between tokens
    refresh(control)
    control.prefills.freeze([frozen_slo(flat(S))])
    assert control.snapshot().drifts == ()


# ---------------------------------------------------------------- /api/curves


def test_a_process_knows_from_its_start_what_is_frozen(tmp_path: Path) -> None:
    learned(tmp_path / "curves.yaml", ("vllm", "m", 100 * MS))
    process = Running(tmp_path, SETTINGS)
    try:
        process.connect()
        (pair,) = process.get("/api/curves")["prefill"]
        assert (pair["backend"], pair["live"], pair["frozen"][0]["slos"]) == ("vllm", None, ["chat"])
    finally:
        process.close()


def test_the_api_fits_what_is_new_and_what_it_tells_can_be_frozen(control: Controller) -> None:
    teach(control)
    control.prefills.freeze([frozen_slo(flat(S))])
    with serving(control) as client:
        told = client.get("/api/curves").json()
        assert told["window_s"] == 3600
        (pair,) = told["prefill"]
        fit = control.prefills.pairs[PAIR].fit
        assert fit is not None
        assert Curve.from_plain(pair["live"]["curve"]) == fit.curve
        assert (pair["backend"], pair["model"], pair["live"]["age_s"]) == ("default", "llama", 0)
        (frozen,) = pair["frozen"]
        assert (frozen["file"], frozen["slos"], frozen["tbt_p50_s"]) == ("a.yaml", ["chat"], 0.01)
        assert Curve.from_plain(frozen["curve"]) == flat(S)
        assert frozen["tbt_p50_drift"] == pytest.approx(2.0, rel=0.01)
        client.get("/api/curves")
        assert control.prefills.pairs[PAIR].fit is fit  # nothing new: not fitted again


def test_curves_need_the_token_as_the_rest_does(control: Controller) -> None:
    with serving(control, token="right") as client:
        assert client.get("/api/curves").status_code == 401
        answer = client.get("/api/curves", headers={"authorization": "Bearer right"})
        assert (answer.status_code, answer.json()["prefill"]) == (200, [])
