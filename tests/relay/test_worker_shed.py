"""A worker that falls behind sheds measuring before it delays a stream, and takes it up again."""

from __future__ import annotations

import asyncio
from pathlib import Path

from proxy.link import BackendSpec, Match, SloSpec, Table
from proxy.relay.worker import Worker

MS = 1_000_000
TABLE = Table(
    version=1,
    backends=(BackendSpec("b", "http://127.0.0.1:9"),),
    routes=(),
    slos=(SloSpec("default", Match(), ((0, 500 * MS),), 50 * MS),),
)


def test_it_sheds_above_the_mark_and_measures_again_well_below_it(tmp_path: Path) -> None:
    async def script() -> list[tuple[bool, str | None]]:
        worker = Worker(0, str(tmp_path / "nobody"))
        worker.apply(TABLE)
        seen = []
        for late_ms in (1, 24, 26, 24, 6, 4, 24):
            for tick in range(50):
                worker.lag.observe(tick * 20 * MS, late_ms * MS)
            worker.upkeep()
            seen.append((worker.shedding, worker.unmeasured().unmeasured))
        return seen

    off, on = (False, "switched_off"), (True, "shed")
    assert asyncio.run(script()) == [off, off, on, on, on, off, off]


def test_measuring_is_switched_by_the_table(tmp_path: Path) -> None:
    async def script() -> list[bool]:
        worker = Worker(0, str(tmp_path / "nobody"))
        worker.apply(TABLE)
        seen = [worker.measuring]
        worker.apply(Table(2, TABLE.backends, (), TABLE.slos, measure=False))
        return [*seen, worker.measuring]

    assert asyncio.run(script()) == [True, False]
