"""Simulated experiments, many at once: how often a comparison calls a difference, and when.

    python -m tests.scoring.compare_study            # prints the tables; about a minute each
    python -m tests.scoring.compare_study sticky     # one of: sticky, independent, power

The tests run small versions of the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from scoring.compare import Plan, interval, ready
from scoring.compare_always import Floats
from scoring.compare_effect import Effect, Sums, estimate
from scoring.compare_sums import ALL, BUCKETS, METRICS, PLACE

NAMES: Final = tuple(metric.name for metric in METRICS)
T_TEST: Final = 1.96


@dataclass(frozen=True)
class World:
    """What the traffic is like.  ``ramp``: the candidate's weight, an equal stretch of ticks each.

    ``sessions`` per experiment, of 1 to ``longest`` requests (heavy-tailed); ``sticky`` false: every request
    draws its own arm, session and all.
    """

    sessions: int = 1000
    longest: int = 200
    ticks: int = 48
    ramp: tuple[float, ...] = (0.05, 0.2, 0.5, 0.5)
    sticky: bool = True
    #: Of the candidate's bad requests, added to the log odds: 0 is an A/A experiment.
    harm: float = 0.0


class Requests(NamedTuple):
    """Flat arrays of shape (requests,): which experiment, tick, arm and bucket; y and x by metric."""

    experiment: np.ndarray
    tick: np.ndarray
    arm: np.ndarray
    bucket: np.ndarray
    y: dict[str, Floats]
    x: dict[str, Floats]


def requests_of(world: World, experiments: int, rng: np.random.Generator) -> Requests:
    """Traffic with a day's pattern, sessions of unequal length and mood, and heavy tails."""
    total = experiments * world.sessions
    length = np.minimum(1 + rng.pareto(1.3, total), world.longest).astype(np.int64)
    if not world.sticky:
        length[:] = 1
    session = np.repeat(np.arange(total), length)
    count = len(session)
    start = rng.integers(-world.ticks // 4, world.ticks, total)
    # A session's requests follow each other about four a tick.
    place = np.arange(count) - np.repeat(np.cumsum(length) - length, length)
    tick = start[session] + place // 4
    kept = (tick >= 0) & (tick < world.ticks)
    session, tick = session[kept], tick[kept]
    weight = np.array(world.ramp)[tick * len(world.ramp) // world.ticks]
    arm = (rng.random(total)[session] < weight).astype(np.int64)
    mood = rng.normal(size=total)[session] if world.sticky else np.zeros(len(session))
    day = np.sin(2 * np.pi * tick / world.ticks)
    y, x = _scored(mood, day, arm * world.harm, rng)
    return Requests(session // world.sessions, tick, arm, rng.integers(0, BUCKETS, total)[session], y, x)


def _scored(
    mood: Floats, day: Floats, harm: Floats, rng: np.random.Generator
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    count = len(mood)
    odds = -4.5 + 0.8 * day + mood + harm
    bad = rng.random(count) < 1 / (1 + np.exp(-odds))
    tokens = np.ceil(np.exp(4.5 + rng.normal(size=count)))
    missed = np.round(np.where(bad, rng.random(count), 0.02 * rng.random(count) ** 4) * tokens)
    fluidity = 1 - missed / tokens
    ttft = np.exp(-1.2 + 0.4 * day + 0.4 * mood + 0.9 * rng.normal(size=count)) * np.where(bad, 6.0, 1.0)
    normalized = np.exp(-3.5 + 0.3 * day + 0.3 * mood + 0.6 * rng.standard_t(4, count) * 0.7)
    errors = rng.random(count) < 0.004 * np.exp(0.7 * mood)
    one = np.ones(count)
    y = (fluidity >= 0.9, fluidity, missed, ttft, np.log(ttft), normalized, errors)
    x = (one, one, tokens, one, one, one, one)
    return (
        {name: each.astype(np.float64) for name, each in zip(NAMES, y, strict=True)},
        dict(zip(NAMES, x, strict=True)),
    )


def looks(world: World, traffic: Requests, name: str, experiments: int) -> Iterator[tuple[Sums, Sums]]:
    """After each tick, what each arm has summed up, shapes (experiments, epochs[, buckets])."""
    y, x = traffic.y[name], traffic.x[name]
    epochs = len(world.ramp)
    cell = (traffic.tick * experiments + traffic.experiment) * 2 + traffic.arm
    shape = (world.ticks, experiments, 2)

    def by_cell(values: Floats | None) -> Floats:
        return np.bincount(cell, values, minlength=world.ticks * experiments * 2).reshape(shape).astype(float)

    flat = [by_cell(values) for values in (None, y, x, y * y, x * y, x * x)]
    order = np.argsort(traffic.tick, kind="stable")
    edges = np.searchsorted(traffic.tick[order], np.arange(world.ticks + 1))
    totals = np.zeros((6, 2, experiments, epochs))
    inside = np.zeros((3, 2, experiments, epochs, BUCKETS))
    for tick in range(world.ticks):
        epoch = tick * epochs // world.ticks
        for at, values in enumerate(flat):
            totals[at, :, :, epoch] += values[tick].T
        now = order[edges[tick] : edges[tick + 1]]
        spot = (traffic.arm[now], traffic.experiment[now], epoch, traffic.bucket[now])
        for at, added in enumerate((y[now], x[now], np.ones(len(now)))):
            np.add.at(inside[at], spot, added)  # type: ignore[arg-type]
        control, candidate = (Sums(*totals[:, arm].copy(), *inside[:, arm]) for arm in (0, 1))
        yield control, candidate


Rule = Callable[[Sums, Sums, Plan, float], np.ndarray]


def always(control: Sums, candidate: Sums, plan: Plan, least: float) -> np.ndarray:
    """The rule of the comparison: the interval leaves 0, and there is enough for a verdict."""
    return _outside(control, candidate, estimate(control, candidate, least), plan)


def per_request(control: Sums, candidate: Sums, plan: Plan, least: float) -> np.ndarray:
    """The same, as if requests of one session had nothing to do with each other."""
    bare = control._replace(y_in=None), candidate._replace(y_in=None)
    return _outside(*bare, estimate(*bare, least), plan)


def t_test(control: Sums, candidate: Sums, plan: Plan, least: float) -> np.ndarray:
    """A t-test of the sums as they are, sessions and epochs ignored, at 5% each time that one looks."""
    pooled = [
        Sums(*(part.sum(-1, keepdims=True) for part in sums[:6] if part is not None))
        for sums in (control, candidate)
    ]
    return _by_t(pooled[0], pooled[1], estimate(pooled[0], pooled[1], least), plan)


def t_of_buckets(control: Sums, candidate: Sums, plan: Plan, least: float) -> np.ndarray:
    """A t-test that knows of sessions and epochs, at 5% each time that one looks."""
    return _by_t(control, candidate, estimate(control, candidate, least), plan)


def _outside(control: Sums, candidate: Sums, effect: Effect, plan: Plan) -> np.ndarray:
    low, high = interval(effect, plan)
    return ready(control, candidate, effect, plan) & ((low > 0) | (high < 0))


def _by_t(control: Sums, candidate: Sums, effect: Effect, plan: Plan) -> np.ndarray:
    known = ready(control, candidate, effect, plan)
    return known & (np.abs(effect.effect) > T_TEST * effect.error)


RULES: Final[dict[str, Rule]] = {
    "always valid": always,
    "per request": per_request,
    "t, buckets": t_of_buckets,
    "t-test": t_test,
}


def ever_called(
    world: World, plan: Plan, experiments: int, seed: int, names: tuple[str, ...] = NAMES, batch: int = 100
) -> dict[str, dict[str, float]]:
    """The share of experiments in which a rule called a difference at any look, by metric and rule."""
    rng = np.random.default_rng(seed)
    hits = {name: dict.fromkeys(RULES, 0) for name in names}
    for _ in range(experiments // batch):
        traffic = requests_of(world, batch, rng)
        for name in names:
            called = {rule: np.zeros(batch, dtype=bool) for rule in RULES}
            for control, candidate in looks(world, traffic, name, batch):
                for rule, judge in RULES.items():
                    called[rule] |= judge(control, candidate, plan, ALL[PLACE[name]].least)
            for rule, which in called.items():
                hits[name][rule] += int(which.sum())
    done = experiments // batch * batch
    return {name: {rule: count / done for rule, count in row.items()} for name, row in hits.items()}


def power(
    good: tuple[float, float], most: int, plan: Plan, experiments: int, seed: int, step: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Independent requests, looked at every ``step`` per arm: the sizes, and the share called by each."""
    rng = np.random.default_rng(seed)
    size = np.arange(step, most + 1, step)
    arms = []
    for share in good:
        count = np.cumsum(rng.random((experiments, most)) < share, axis=1)[:, step - 1 :: step]
        hits = count[..., None].astype(np.float64)
        whole = np.broadcast_to(size.astype(np.float64)[:, None], hits.shape)
        arms.append(Sums(whole, hits, whole, hits, hits, whole))
    called = np.logical_or.accumulate(always(arms[0], arms[1], plan, 1.0), axis=1)
    return size, called.mean(axis=0)


def sticky_power(
    good: tuple[float, float], sessions: int, plan: Plan, experiments: int, seed: int, step: int = 20
) -> tuple[np.ndarray, np.ndarray, float]:
    """The same with sessions of 1 to 200 requests, each with a share of bad ones of its own (exponential).

    The mean requests per arm at each look, the share called by each, and the last design effect.
    """
    rng = np.random.default_rng(seed)
    grid = np.arange(experiments)[:, None]
    inside = np.zeros((2, 2, experiments, 1, BUCKETS))
    size, called = [], [np.zeros(experiments, dtype=bool)]
    found: Effect | None = None
    for _ in range(sessions // step):
        arms = []
        for arm, share in enumerate(good):
            length = np.minimum(1 + rng.pareto(1.3, (experiments, step)), 200).astype(np.int64)
            bad = np.minimum((1 - share) * rng.exponential(size=length.shape), 1.0)
            bucket = rng.integers(0, BUCKETS, length.shape)
            np.add.at(inside[arm, 0, :, 0], (grid, bucket), length - rng.binomial(length, bad))
            np.add.at(inside[arm, 1, :, 0], (grid, bucket), length)
            hits, whole = inside[arm].sum(-1)
            y_in, size_in = inside[arm]
            arms.append(Sums(whole, hits, whole, hits, hits, whole, y_in, size_in, size_in))
        found = estimate(arms[0], arms[1], 1.0)
        called.append(called[-1] | _outside(arms[0], arms[1], found, plan))
        size.append(inside[:, 1].sum() / experiments / 2)
    assert found is not None
    return np.array(size), np.array(called[1:]).mean(axis=1), float(found.design_effect.mean())


def print_calls(title: str, world: World, plan: Plan, experiments: int, seed: int) -> None:
    """One table: metrics against rules."""
    print(f"\n{title}: {experiments} experiments, share that ever called a difference")
    print(f"{'metric':20}" + "".join(f"{rule:>14}" for rule in RULES))
    for name, row in ever_called(world, plan, experiments, seed).items():
        print(f"{name:20}" + "".join(f"{share:14.3f}" for share in row.values()))


def main(which: list[str]) -> None:
    """Print the tables."""
    plan = Plan(requests=1000)
    if not which or "sticky" in which:
        print_calls("A/A, sticky sessions", World(), plan, 2000, 1)
    if not which or "independent" in which:
        print_calls("A/A, independent requests", World(sessions=3000, sticky=False), plan, 2000, 2)
    if not which or "power" in which:
        size, share = power((0.99, 0.96), 2000, plan, 4000, 3)
        print("\npower, 99% to 96% good, independent: requests per arm, share called")
        for at in (249, 567, 749, 1000, 1250):
            print(f"{at:8} {share[np.searchsorted(size, at, side='right') - 1]:.3f}")
        print(f"90% by {size[np.argmax(share >= 0.9)]}")
        size, share, design_effect = sticky_power((0.99, 0.96), 1600, plan, 400, 4)
        print(
            f"sticky sessions: 90% by {size[np.argmax(share >= 0.9)]:.0f}, design effect {design_effect:.2f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
