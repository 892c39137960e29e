"""Prompt lengths are learned: which estimator and why, on synthetic prompts; and how little it keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.control.core import Controller
from proxy.control.prompts import (
    BYTES_PER_TOKEN,
    ENOUGH,
    FITS,
    FIXED_MAX,
    MODELS,
    SAMPLES,
    TEXT_MIN,
    TOKENS_MIN,
    Floats,
    Prompts,
    fit,
)
from proxy.link import Facts, PromptModel, PromptModels, Usage
from tests.control.facts import facts, stream, streamed, table
from tests.control.test_workers import hello

# ---------------------------------------------------------------- which estimator


class World(NamedTuple):
    """Prompts as a server may see them.  ``template``: tokens added to each, drawn per model from this range;
    ``lengths``: bytes of text, log-uniform; ``spread``: of bytes per token between prompts."""

    template: tuple[float, float] = (20, 200)
    lengths: tuple[int, int] = (64, 32_768)
    samples: int = SAMPLES
    spread: float = 0.12
    outliers: float = 0.05


USUAL = World()
WORLDS = {
    "usual": USUAL,
    "few samples": World(samples=20),
    "the first samples": World(samples=ENOUGH),
    "noisy": World(spread=0.25),
    "many outliers": World(outliers=0.2),
    "short prompts": World(lengths=(64, 600)),
    "no template": World(template=(0, 0)),
    "no template, few samples": World(template=(0, 0), samples=20),
    "no template, all long": World(template=(0, 0), lengths=(8_000, 32_768)),
    "no template, all alike": World(template=(0, 0), lengths=(900, 1_100)),
    "all alike": World(lengths=(900, 1_100)),
    "all equal": World(lengths=(1_000, 1_001)),
}
PLACES = np.geomspace(64, 32_768, 10)
RUNS = 60


def draw(world: World, dice: np.random.Generator) -> tuple[Floats, Floats]:
    """One model's samples, and the true tokens at ``PLACES``."""
    template, per_token = dice.uniform(*world.template), dice.uniform(2, 6)
    least, most = map(math.log, world.lengths)
    text_bytes = np.exp(dice.uniform(least, most, world.samples)).round()
    tokens = text_bytes / (per_token * np.exp(dice.normal(0, world.spread, world.samples))) + template
    wrong = dice.random(world.samples) < world.outliers
    tokens[wrong] *= np.exp(dice.uniform(-2, 2, wrong.sum()))
    samples = np.column_stack((text_bytes, np.maximum(tokens.round(), 1)))
    return samples, template + PLACES / per_token


def ratio_only(samples: Floats) -> PromptModel:
    """The simplest rival: the median of bytes / tokens."""
    return PromptModel(float(np.median(np.clip(samples[:, 0] / samples[:, 1], *BYTES_PER_TOKEN))))


def plain_line(samples: Floats) -> PromptModel:
    """The other rival: Theil-Sen through (bytes, tokens), always."""
    text_bytes, tokens = samples.T
    first, second = np.triu_indices(len(samples), 1)
    apart = text_bytes[second] - text_bytes[first]
    told = apart != 0
    if not told.any():
        return ratio_only(samples)
    slope = float(np.clip(np.median((tokens[second] - tokens[first])[told] / apart[told]), 1 / 16, 2))
    return PromptModel(1 / slope, max(0.0, float(np.median(tokens - slope * text_bytes))))


def learned(samples: Floats) -> PromptModel:
    found = fit(samples)
    assert found is not None
    return found


def errors(world: World, estimate: Callable[[Floats], PromptModel]) -> Floats:
    """|estimated / true - 1| at every place of every run."""
    dice = np.random.default_rng(7)
    out = []
    for _ in range(RUNS):
        samples, true = draw(world, dice)
        model = estimate(samples)
        out.append(np.abs((model.fixed_tokens + PLACES / model.bytes_per_token) / true - 1))
    return np.array(out)


def test_two_numbers_tell_the_length_where_a_ratio_cannot() -> None:
    ratio, line, ours = (errors(USUAL, estimate) for estimate in (ratio_only, plain_line, learned))
    assert ratio.mean() > 0.3
    assert ours.mean() < 0.015
    assert ours.mean() <= line.mean() * 1.02
    assert np.quantile(ours, 0.95) < 0.04
    assert ours.mean(axis=0).max() < 0.03, "at every length"


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
def test_no_world_is_worse_than_by_the_ratio(world: World) -> None:
    ratio, ours = errors(world, ratio_only), errors(world, learned)
    assert ours.mean() <= ratio.mean() * 1.02 + 0.005


@pytest.mark.parametrize("name", ["no template, all long", "no template, all alike"])
def test_a_line_through_prompts_that_are_alike_is_noise_and_not_believed(name: str) -> None:
    line, ours = errors(WORLDS[name], plain_line), errors(WORLDS[name], learned)
    assert line.mean() > 0.3, "else this is no trap"
    assert ours.mean() < 0.02


@pytest.mark.parametrize("name", ["usual", "many outliers", "noisy", "short prompts"])
def test_a_template_is_found(name: str) -> None:
    dice = np.random.default_rng(11)
    found = [learned(draw(WORLDS[name]._replace(template=(120, 120)), dice)[0]) for _ in range(20)]
    assert np.median([model.fixed_tokens for model in found]) == pytest.approx(120, rel=0.1)


# ---------------------------------------------------------------- bounds


def test_it_takes_a_few_samples() -> None:
    rows = [(1_000.0, 400.0)] * (ENOUGH - 1)
    assert fit(np.array(rows)) is None
    assert fit(np.array([*rows, (1_000.0, 400.0)])) == PromptModel(2.5)
    assert fit(np.zeros((0, 2))) is None


@pytest.mark.parametrize(("tokens", "per_token"), [(1_000_000, 0.5), (16, 16.0)])
def test_what_a_token_may_weigh_is_bounded(tokens: int, per_token: float) -> None:
    assert learned(np.array([(10_000.0, tokens)] * SAMPLES)).bytes_per_token == per_token


@given(
    st.lists(
        st.tuples(st.integers(TEXT_MIN, 1 << 40), st.integers(TOKENS_MIN, 1 << 53)),
        min_size=ENOUGH,
        max_size=40,
    )
)
def test_whatever_was_reported_the_estimate_is_sane(rows: list[tuple[int, int]]) -> None:
    model = learned(np.array(rows, dtype=np.float64))
    assert BYTES_PER_TOKEN[0] * 0.999 <= model.bytes_per_token <= BYTES_PER_TOKEN[1] * 1.001
    assert 0 <= model.fixed_tokens <= FIXED_MAX
    sizes = [0, 1, 64, 10_000, 10_000_000]
    estimates = [model.tokens(size) for size in sizes]
    assert estimates == sorted(estimates)
    assert estimates[0] == 0


def prompts(samples: Sequence[tuple[str, int, int]]) -> Prompts:
    held = Prompts()
    for sample in samples:
        held.add(*sample)
    return held


def teach(held: Prompts, model: str, per_token: float, count: int = ENOUGH) -> None:
    for number in range(count):
        size = 1_000 + 100 * (number % 7)
        held.add(model, size, round(size / per_token))


def told(news: PromptModels | None) -> dict[str, PromptModel]:
    return {} if news is None else news.models


def test_what_changed_is_told_once() -> None:
    held = Prompts()
    assert held.moved() is None
    assert held.all() is None
    teach(held, "a", 2.5)
    teach(held, "b", 5.0, count=ENOUGH - 1)
    assert told(held.moved()) == {"a": PromptModel(2.5)}
    assert held.moved() is None
    teach(held, "b", 5.0)
    teach(held, "a", 2.5)
    assert told(held.moved()).keys() == {"b"}
    assert told(held.all()).keys() == {"a", "b"}


@pytest.mark.parametrize(("per_token", "news"), [(2.46, False), (2.54, False), (2.4, True), (2.6, True)])
def test_small_moves_are_not_told(per_token: float, news: bool) -> None:
    held = Prompts()
    teach(held, "a", 2.5)
    held.moved()
    teach(held, "a", per_token, SAMPLES)
    assert bool(told(held.moved())) is news


def test_many_small_moves_are() -> None:
    held = Prompts()
    teach(held, "a", 2.5, SAMPLES)
    held.moved()
    moves = 0
    for step in range(1, 11):
        teach(held, "a", 2.5 * 1.01**step, SAMPLES)
        moves += bool(told(held.moved()))
    assert 3 <= moves <= 5, "it is what was told that counts, not the step before"


def test_a_new_tokenizer_is_learned_within_the_window() -> None:
    held = Prompts()
    teach(held, "a", 2.5, 10 * SAMPLES)
    teach(held, "a", 5.0, SAMPLES)
    assert told(held.moved())["a"].tokens(5_000) == pytest.approx(1_000, rel=0.01)


def test_models_come_and_go_and_memory_stays() -> None:
    held = Prompts()
    for number in range(MODELS):
        teach(held, f"m{number}", 2.5)
    while held.moved() is not None:
        pass
    teach(held, "m0", 2.5, 1_000)
    for number in range(10):
        teach(held, f"new{number}", 2.5)
    assert len(held._samples) == MODELS
    assert len(held.told) <= MODELS
    assert max(map(len, held._samples.values())) == SAMPLES
    assert "m0" in held._samples, "it was used last"
    assert [f"m{number}" in held.told for number in (0, 1, 10, 11)] == [True, False, False, True]
    assert len(held._stale) <= MODELS


def test_not_all_are_fitted_at_once_and_none_is_forgotten() -> None:
    held = Prompts()
    for number in range(3 * FITS):
        teach(held, f"m{number}", 2.5)
    assert [len(told(held.moved())) for _ in range(4)] == [FITS, FITS, FITS, 0]


# ---------------------------------------------------------------- who teaches


def reported(tokens: int | None, text_bytes: int, **fields: Any) -> Facts:
    return streamed(of={"usage": Usage(prompt=tokens)}, prompt_text_bytes=text_bytes, **fields)


@pytest.mark.parametrize(
    ("given_", "models"),
    [
        (reported(400, 1_000), ["llama"]),
        (facts(stream=stream(usage=Usage(prompt=400)), prompt_text_bytes=1_000), ["llama"]),  # not streamed
        (reported(400, 1_000, model=None), [""]),
        (reported(400, 0), []),  # not text only
        (reported(None, 1_000), []),
        (reported(0, 1_000), []),
        (reported(TOKENS_MIN - 1, 1_000), []),
        (reported(TOKENS_MIN, TEXT_MIN), ["llama"]),
        (reported(400, TEXT_MIN - 1), []),
        (facts(prompt_text_bytes=1_000), []),  # not measured
    ],
)
def test_only_whole_prompts_of_known_length_teach(given_: Facts, models: list[str]) -> None:
    held = Prompts()
    for _ in range(ENOUGH):
        held.settled(given_)
    assert list(told(held.moved())) == models


def test_the_control_plane_learns_from_what_is_settled_and_only_once() -> None:
    control = Controller(table(), instance="here", version="1", unix_ns=lambda: 0, monotonic_ns=lambda: 0)
    worker = control.hello(hello())
    batch = [reported(400, 1_000, seq=number) for number in range(1, ENOUGH)]
    control.facts(worker, batch)
    control.facts(worker, batch)  # sent again
    assert control.news() is None
    control.facts(worker, [reported(400, 1_000, seq=ENOUGH)])
    assert control.news() == control.learned == PromptModels({"llama": PromptModel(2.5)})
    assert control.news() is None
