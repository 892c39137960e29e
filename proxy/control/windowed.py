"""What the admin API tells of a window: the summary, and miss-rate curves.

From the slots of ``windows.py`` to frozen structs.  Reading is pure; the caller prepares the window first, in
steps (``WindowBook.prepare``), where an answer must not hold up others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Final

from msgspec import Meta, Struct

from proxy.control.core import Controller
from proxy.control.fleet.reader import FleetNow, FleetWindow
from proxy.control.record import iso_time
from proxy.control.scope import HERE, Degraded, Share
from proxy.control.settle import GroupKey
from proxy.control.snapshot import Snapshot
from proxy.control.summary import (
    FluidityQuantiles,
    GroupSummary,
    Quantiles,
    Summary,
    frame,
    in_flight,
    promises,
    ratio,
    rounded,
    why_no_rate,
)
from proxy.control.windows import Windowed
from proxy.link import GroupNow, SloSpec
from scoring.sketch import LogHistogram
from scoring.slot import GRID_NS, MissCurve, Slot

_GRID_S: Final = [round(point_ns / 1e9, 6) for point_ns in GRID_NS]
_NO_CURVE: Final = "no stream with deadlines was sampled"
_COARSE: Final = "the slots are too coarse: give a shorter window"


class MissCurvePoints(Struct, frozen=True):
    """Quantiles over requests of 1 - fluidity, had each ``tbt_s`` been the deadline from token to token."""

    tbt_s: list[float]
    p50: list[float | None]
    p99: list[float | None]
    quantile: Annotated[float, Meta(description="`fluid_rate.quantile`")]
    at_quantile: Annotated[list[float | None], Meta(description="of that quantile: p99 unless set")]
    samples: Annotated[
        int,
        Meta(
            description="streams that it was computed of, some 20 per group and 10 s; each counts as those "
            "for which it stands"
        ),
    ]
    scored: Annotated[int, Meta(description="streams with a fluidity, sampled or not")]
    relative_error: Annotated[float, Meta(description="of rates from 1/1024 up; 0 and 1 are exact")]


class GroupMissRate(Struct, frozen=True, kw_only=True):
    """One (backend, model, slo), or everything (``null`` names)."""

    backend: str | None
    model: str | None
    slo: str | None
    fluid_token_rate: Annotated[
        float | None,
        Meta(description="tokens per second at which `fluid_rate.quantile` of requests (99%) stay fluid"),
    ]
    fluid_token_rate_reason: Annotated[str | None, Meta(description="why there is none")]
    miss_rate: Annotated[MissCurvePoints | None, Meta(description="null: see miss_rate_reason")]
    miss_rate_reason: str | None


class MissRates(Struct, frozen=True):
    """MissRates by group over a window; ``scope`` and what follows as in the summary."""

    covered_from: str
    covered_to: str
    scope: str
    instances: int
    degraded: Degraded | None
    total: GroupMissRate
    groups: list[GroupMissRate]


def summarise_window(controller: Controller, window_ns: int, share: Share = HERE) -> Summary:
    """The summary of what ended here in the last ``window_ns``."""
    snapshot = controller.snapshot()
    read = controller.windows.read(window_ns, snapshot.at_unix_ns)
    return _summary(controller, snapshot, window_ns, read, share)


def summarise_fleet(
    controller: Controller, window_ns: int, found: FleetWindow, now: FleetNow, share: Share
) -> Summary:
    """The summary of what ended on all hosts; ``proxy`` is this host's own."""
    snapshot = replace(controller.snapshot(), now=now.groups, backends=now.backends)
    return _summary(controller, snapshot, window_ns, found.windowed, share)


def _summary(
    controller: Controller, snapshot: Snapshot, window_ns: int, read: Windowed, share: Share
) -> Summary:
    now = {GroupKey(each.backend, each.model, each.slo): each for each in snapshot.now}
    promised, empty, quantile = promises(controller), Slot(), controller.ledger.rate_quantile
    return frame(
        controller,
        snapshot,
        asked_ns=window_ns,
        covered=(read.start_ns, read.end_ns),
        relative_error=read.total.relative_error,
        total=_group(None, read.total, snapshot.now, None, quantile),
        groups=[
            _group(
                key,
                read.groups.get(key, empty),
                [now[key]] if key in now else [],
                promised.get(key.slo),
                quantile,
            )
            for key in sorted(read.groups.keys() | now.keys())
        ],
        share=share,
    )


def _group(
    key: GroupKey | None, slot: Slot, now: Iterable[GroupNow], slo: SloSpec | None, rate_quantile: float
) -> GroupSummary:
    rate, reason = slot.fluid_rate(rate_quantile)
    results, deadlines, hists = slot.results, slot.deadlines, slot.hists
    return GroupSummary(
        backend=None if key is None else key.backend,
        model=None if key is None else key.model,
        slo=None if key is None else key.slo,
        requests=slot.requests,
        outcomes=slot.outcomes,
        results=results,
        good_ratio=ratio(results["good"], results["good"] + results["bad"]),
        objective=None if slo is None else slo.objective,
        fluidity=FluidityQuantiles(rounded(slot.fluidity(0.01)), rounded(slot.fluidity(0.5))),
        share_under_target=ratio(slot.totals["under_target"], slot.totals["scored"]),
        deadlines=deadlines,
        deadline_miss_rate=ratio(deadlines["missed"], deadlines["met"] + deadlines["missed"]),
        ttft_s=_quantiles(hists["ttft"]),
        tbt_s=_quantiles(hists["tbt"]),
        tpot_s=_quantiles(hists["tpot"]),
        normalized_latency_s=_quantiles(hists["normalized"]),
        duration_s=_quantiles(hists["duration"]),
        output_tokens=slot.totals["output_tokens"],
        prompt_tokens=slot.totals["prompt_tokens"],
        fluid_token_rate=rounded(rate),
        fluid_token_rate_reason=why_no_rate(slo, rate, reason),
        in_flight=in_flight(now),
    )


def _quantiles(hist: LogHistogram) -> Quantiles:
    return Quantiles(*(seconds(hist, q) for q in (0.5, 0.9, 0.99, 1.0)))


def seconds(hist: LogHistogram, q: float) -> float | None:
    """A quantile of a histogram in nanoseconds, in seconds; ``None`` where it is empty."""
    value_ns = hist.quantile(q)
    return None if value_ns is None else round(value_ns / 1e9, 6)


def miss_rates(controller: Controller, window_ns: int, share: Share = HERE) -> MissRates:
    """The curves of what ended here in the last ``window_ns``."""
    return miss_rates_of(controller, controller.windows.read(window_ns, controller.now_unix_ns()), share)


def miss_rates_of(controller: Controller, read: Windowed, share: Share) -> MissRates:
    """The curves of what was read."""
    promised, quantile = promises(controller), controller.ledger.rate_quantile
    return MissRates(
        iso_time(read.start_ns),
        iso_time(read.end_ns),
        *share,
        _curves(None, read.total, None, quantile),
        [_curves(key, read.groups[key], promised.get(key.slo), quantile) for key in sorted(read.groups)],
    )


def _row(curve: MissCurve, quantile: float) -> list[float | None]:
    return [rounded(rate) for rate in curve.quantile(quantile)]


def _curves(key: GroupKey | None, slot: Slot, slo: SloSpec | None, rate_quantile: float) -> GroupMissRate:
    rate, reason = slot.fluid_rate(rate_quantile)
    curve, points = slot.curve, None
    if curve is not None and curve.samples:
        rows = {each: _row(curve, each) for each in {0.5, 0.99, rate_quantile}}
        points = MissCurvePoints(
            _GRID_S,
            rows[0.5],
            rows[0.99],
            rate_quantile,
            rows[rate_quantile],
            curve.samples,
            slot.totals["scored"],
            curve.relative_error,
        )
    missing = _COARSE if slot.level and slot.totals["scored"] else _NO_CURVE
    return GroupMissRate(
        backend=None if key is None else key.backend,
        model=None if key is None else key.model,
        slo=None if key is None else key.slo,
        fluid_token_rate=rounded(rate),
        fluid_token_rate_reason=why_no_rate(slo, rate, reason),
        miss_rate=points,
        miss_rate_reason=None if points is not None else why_no_rate(slo, None, missing),
    )
