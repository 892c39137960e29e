"""Who watches the traffic: one of them that fails costs the others, and the books, nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from proxy.config import load
from proxy.control.core import Controller
from proxy.control.exports import Exports
from proxy.control.stages import Stages
from proxy.link import FactsBatch, Table
from proxy.tables import build_table
from tests.control.facts import T0, UNIX, facts


def stages() -> tuple[Stages, Controller]:
    config = load({"file": None, "flags": {"upstream": "http://127.0.0.1:1"}})
    controller = Controller(
        build_table(config, 1), instance="i", version="1", unix_ns=lambda: UNIX, monotonic_ns=lambda: T0
    )
    return Stages(config, controller, Exports(config, controller), controller.set_table), controller


def broken(*_: object, **__: object) -> Any:
    raise RuntimeError("an error of ours")


async def broken_later(*_: object, **__: object) -> Any:
    raise RuntimeError("an error of ours")


def test_a_sink_that_fails_keeps_no_batch_from_the_others_nor_from_the_books(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, controller = stages()
    took: list[str] = []
    controller.add_mirror(broken)
    controller.add_mirror(lambda batch: took.extend(f"copy {each.facts.id}" for each in batch))
    controller.add_sink(broken)
    controller.add_sink(lambda batch: took.extend(each.facts.id for each in batch))
    for seq in range(1, 41, 2):
        controller.feed(FactsBatch([facts(seq=seq, id="a"), facts(seq=seq + 1, id="b", mirror_of="a")]))
    assert took == ["copy b", "a"] * 20
    assert sum(sum(group.outcomes.values()) for group in controller.snapshot().groups) == 20
    assert 0 < caplog.text.count("could not take a batch") <= 10


@pytest.mark.parametrize(
    ("part", "method", "act"),
    [
        ("health", "tick", Stages.tick),
        ("experiments", "tick", Stages.tick),
        ("pairs", "sweep", Stages.tick),
        ("alerts", "tick", Stages.tick),
        ("experiments", "stats", Stages.watched),
        ("health", "ejected", Stages.watched),
        ("alerts", "counts", Stages.watched),
        ("sender", "counts", Stages.watched),
        ("pairs", "results", Stages.watched),
        ("health", "configure", lambda it: it.reload(it.config, it.weights.table)),
        ("experiments", "configure", lambda it: it.reload(it.config, it.weights.table)),
        ("alerts", "configure", lambda it: it.reload(it.config, it.weights.table)),
        ("sender", "configure", lambda it: it.reload(it.config, it.weights.table)),
    ],
)
def test_a_part_that_fails_ends_nothing(
    part: str, method: str, act: Callable[[Stages], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    it, _ = stages()
    monkeypatch.setattr(type(getattr(it, part)), method, broken)
    act(it)


def test_a_sender_that_cannot_end_keeps_nobody_from_telling_the_other_hosts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it, _ = stages()
    told: list[float] = []

    class Sharing:
        async def close(self, deadline_s: float) -> None:
            told.append(deadline_s)

    monkeypatch.setattr(it, "sharing", Sharing())
    monkeypatch.setattr(type(it.sender), "close", broken_later)
    asyncio.run(it.close(1.0))
    assert told == [0.5]


def test_the_version_rises_with_every_table_that_is_published() -> None:
    it, controller = stages()
    published: list[Table] = []
    it.weights._publish = published.append
    it.renew()
    it.reload(it.config, build_table(it.config, controller.table.version + 1))
    it.renew()
    versions = [table.version for table in published]
    assert versions == sorted(set(versions))
    assert versions[0] > controller.table.version
