"""The engine of the demo: one machine, one promise, and the scheduler by its name."""

from __future__ import annotations

from deploy.demo.cost import CostModel
from deploy.demo.engine import Engine
from deploy.demo.promise import TBT_NS
from deploy.demo.scheduler import POLICIES, Limits


def build_engine(scheduler: str, seed: int = 0, cost: CostModel | None = None) -> Engine:
    """An engine of its own with the scheduler of that name (a key of ``POLICIES``).

    The token budget of a step is chosen for the TBT that is promised, with a tenth of it to spare.
    """
    cost = cost or CostModel()
    limits = Limits(token_budget=cost.token_budget(TBT_NS * 9 // 10), kv_tokens=cost.kv_capacity_tokens)
    return Engine(POLICIES[scheduler], cost, limits, seed=seed)
