"""Snapshots to render: a small one whose every number is different, and one as large as the cap allows."""

from __future__ import annotations

from dataclasses import replace

from proxy.control.snapshot import (
    BackendStats,
    Drift,
    Exemplar,
    ExperimentStats,
    GroupStats,
    Hist,
    RedisStats,
    SloStats,
    Snapshot,
    Watched,
)
from proxy.exporters.catalog import CATALOG, bounds_for
from proxy.exporters.vocabulary import DEADLINE_RESULT, OUTCOME, OUTPUT_SOURCE, PROMPT_SOURCE, RESULT
from proxy.link import DELAY_BOUNDS_NS, GroupNow

GROUP_HISTOGRAMS = tuple(m.name for m in CATALOG if m.kind == "histogram" and m.labels)
DELAYS = tuple(ns / 1e9 for ns in DELAY_BOUNDS_NS)


def hist(metric: str, step: int = 1) -> Hist:
    """0, step, 2 step, ... values in the buckets of ``metric``, with a sum that no float format rounds."""
    bounds = bounds_for(metric)
    return Hist(bounds, tuple(i * step for i in range(len(bounds) + 1)), 0.1 + 0.2)


def group(backend: str = "stable", model: str = "llama", slo: str = "chat", step: int = 1) -> GroupStats:
    """One group; every closed list but the sources is filled."""
    return GroupStats(
        backend,
        model,
        slo,
        outcomes={value: (i + 1) * step for i, value in enumerate(OUTCOME)},
        results={value: (i + 11) * step for i, value in enumerate(RESULT)},
        deadlines={value: (i + 21) * step for i, value in enumerate(DEADLINE_RESULT)},
        hists={name: hist(name, step) for name in GROUP_HISTOGRAMS},
        output_tokens=dict.fromkeys(OUTPUT_SOURCE, 31 * step),
        prompt_tokens=dict.fromkeys(PROMPT_SOURCE, 41 * step),
        fluid_token_rate=19.5,
    )


def snapshot(
    groups: tuple[GroupStats, ...] = (),
    now: tuple[GroupNow, ...] = (),
    *,
    backends: tuple[BackendStats, ...] = (),
    slos: tuple[SloStats, ...] = (),
    dropped: dict[str, int] | None = None,
    unmeasured: dict[str, int] | None = None,
    export_failures: dict[str, int] | None = None,
    reload_ok: bool = True,
    workers: int = 2,
    draining: bool = False,
    version: str = "0.1.0",
) -> Snapshot:
    """A snapshot with nothing in it but what is given."""
    silent = Hist(DELAYS, (0,) * (len(DELAYS) + 1), 0.0)
    return Snapshot(
        at_unix_ns=1_800_000_010_000_000_000,
        since_unix_ns=1_800_000_000_500_000_000,
        instance="host-1",
        version=version,
        groups=groups,
        now=now,
        backends=backends,
        slos=slos,
        forward=Hist(DELAYS, (3, *(0,) * len(DELAYS)), 0.000021),
        lag=silent,
        blocked=silent,
        dropped=dropped or {},
        unmeasured=unmeasured or {},
        export_failures=export_failures or {},
        reload_ok=reload_ok,
        workers=workers,
        draining=draining,
    )


def large(groups: int = 64) -> Snapshot:
    """As many groups as are exported, all of them busy."""
    return snapshot(
        tuple(group(model=f"model-{i}", step=i + 1) for i in range(groups)),
        tuple(GroupNow("stable", f"model-{i}", "chat", 3, 1, 7, 0) for i in range(groups)),
        backends=tuple(BackendStats(f"backend-{i}", True, 4, 2, 0, 1) for i in range(8)),
        slos=tuple(SloStats(f"slo-{i}", 0.5, 0.05, 0.99) for i in range(8)),
    )


def exemplar(bounds: tuple[float, ...], bucket: int) -> Exemplar:
    """One of a bucket: its upper bound is its value, its number is in its ids and its time."""
    value = [*bounds, 2 * bounds[-1]][bucket]
    return Exemplar(bucket, value, 1_800_000_001_500_000_000 + bucket, f"{bucket + 1:032x}", f"{bucket:016x}")


def with_exemplars(group_: GroupStats) -> GroupStats:
    """The same, an exemplar in every bucket of every histogram."""
    hists = {
        name: replace(held, exemplars=tuple(exemplar(held.bounds, i) for i in range(len(held.counts))))
        for name, held in group_.hists.items()
    }
    return replace(group_, hists=hists)


def everything(groups: int = 3) -> Snapshot:
    """A snapshot in which every metric has a value, and every bucket of the groups an exemplar."""
    full = large(groups)
    return replace(
        full,
        groups=tuple(map(with_exemplars, full.groups)),
        drifts=(Drift("stable", "model-1", 1.25, {"p50": 1.5, "p99": 2.0}),),
        redis=RedisStats(up=True, offset_s=-0.125, waiting_bytes=4_321),
        export_failures={"prometheus": 1, "a-new-one": 2},
        watched=Watched(
            experiments=(
                ExperimentStats("new-vllm", "stable", 0.9, 900),
                ExperimentStats("new-vllm", "canary", 0.1, 101),
            ),
            alerts={("spike", "firing"): 2, ("drift", "pending"): 1, ("a-new-one", "firing"): 3},
            notified={("slack", "sent"): 4, ("log", "given_up"): 5, ("a-new-one", "sent"): 6},
            mirrored={("shadow", "completed"): 7, ("shadow", "a-new-one"): 8},
            ejected={"stable": False, "canary": True},
        ),
    )
