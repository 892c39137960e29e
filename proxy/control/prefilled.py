"""What ``/api/curves`` tells of prefill: now, frozen, and how far the two are apart."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from proxy.control.prefills import Frozen, Learned, Pair, Prefills, drift_of
from proxy.control.snapshot import Drift
from scoring.prefill import Curve


class Quadratic(Struct, frozen=True):
    """TTFT = c0 + c1 * P + c2 * P * P for a prompt of P tokens."""

    c0_ns: float
    c1_ns_per_token: float
    c2_ns_per_token2: float


class PrefillCurve(Struct, frozen=True):
    """TTFT by prompt tokens, where nothing had to wait; as in a file of `legato freeze`."""

    version: int
    observed: Annotated[
        tuple[int, int], Meta(description="The shortest and the longest prompt that was seen.")
    ]
    samples: int
    bimodal: Annotated[
        bool,
        Meta(
            description="A much faster mode was seen, most likely cache hits that are not reported: this is "
            "the slow one."
        ),
    ]
    fast_share: Annotated[float | None, Meta(description="The share of the fast mode, where it can be told.")]
    net_of_cache: Annotated[bool, Meta(description="Prompt tokens are those that were not cached.")]
    quadratic: Annotated[Quadratic | None, Meta(description="`null`: the points are the curve.")]
    points: Annotated[list[tuple[int, int]], Meta(description="[prompt tokens, TTFT in ns]")]
    traffic: Annotated[list[tuple[int, int]], Meta(description="[prompt tokens, requests]")]


class LivePrefill(Struct, frozen=True):
    """What was learned in the last hour, as of ``age_s`` ago."""

    curve: PrefillCurve | None
    reason: Annotated[str | None, Meta(description="Why there is no curve (yet).")]
    age_s: float
    taught: Annotated[int, Meta(description="Streams that it learned from, all in all.")]
    unreported: Annotated[int, Meta(description="Left out: the server did not say how long the prompt was.")]
    disturbed: Annotated[
        int, Meta(description="Left out: the first token waited for the proxy or the client.")
    ]
    tbt_p50_s: float | None
    tbt_p99_s: float | None


class FrozenPrefill(Struct, frozen=True):
    """A curve of a file that SLOs name."""

    file: str
    frozen_at: str
    slos: list[str]
    curve: PrefillCurve
    tbt_p50_s: float | None
    tbt_p99_s: float | None
    prefill_drift: Annotated[
        float | None, Meta(description="Live over frozen, the median over the traffic; 1 is as fast.")
    ]
    tbt_p50_drift: float | None
    tbt_p99_drift: float | None


class PairPrefill(Struct, frozen=True):
    """What prefill takes on one backend for one model."""

    backend: str
    model: Annotated[str, Meta(description="Empty for requests that name none.")]
    live: Annotated[
        LivePrefill | None, Meta(description="`null`: no stream since the start that could tell.")
    ]
    frozen: list[FrozenPrefill]


def prefilled(prefills: Prefills, now_ns: int) -> list[PairPrefill]:
    """All backends and models as of their last fits; ``now_ns``: the monotonic clock."""
    return [_pair(prefills, pair, now_ns) for pair in sorted({*prefills.pairs, *prefills.frozen})]


def _pair(prefills: Prefills, pair: Pair, now_ns: int) -> PairPrefill:
    learned = prefills.pairs.get(pair)
    frozen = [_frozen(pair, learned, each) for each in prefills.frozen.get(pair, ())]
    return PairPrefill(pair.backend, pair.model, None if learned is None else _live(learned, now_ns), frozen)


def _live(learned: Learned, now_ns: int) -> LivePrefill | None:
    fit = learned.fit
    if fit is None:
        return None  # it came while the others were fitted
    return LivePrefill(
        curve=None if fit.curve is None else _plain(fit.curve),
        reason=fit.why_not,
        age_s=max(0.0, round((now_ns - fit.at_ns) / 1e9, 3)),
        taught=learned.taught,
        unreported=learned.unreported,
        disturbed=learned.disturbed,
        tbt_p50_s=fit.tbt_p50_s,
        tbt_p99_s=fit.tbt_p99_s,
    )


def _frozen(pair: Pair, learned: Learned | None, frozen: Frozen) -> FrozenPrefill:
    apart = Drift(*pair, None, {})
    if learned is not None and learned.fit is not None:
        apart = drift_of(pair, learned.fit, frozen)
    return FrozenPrefill(
        file=frozen.file,
        frozen_at=frozen.frozen_at,
        slos=list(frozen.slos),
        curve=_plain(frozen.curve.curve),
        tbt_p50_s=frozen.curve.tbt_p50_s,
        tbt_p99_s=frozen.curve.tbt_p99_s,
        prefill_drift=apart.prefill,
        tbt_p50_drift=apart.tbt.get("p50"),
        tbt_p99_drift=apart.tbt.get("p99"),
    )


def _plain(curve: Curve) -> PrefillCurve:
    return msgspec.convert(curve.to_plain(), PrefillCurve)
