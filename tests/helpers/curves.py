"""Files of learned curves, as ``legato freeze`` writes them."""

from __future__ import annotations

from pathlib import Path

from proxy.curves import FrozenCurve, FrozenCurves, write_curves
from scoring.prefill import Curve

FROZEN_AT = "2026-11-20T03:14:07Z"


def flat(level_ns: int) -> Curve:
    """A prefill that takes as long for every prompt."""
    return Curve(((1, level_ns),))


def learned(path: Path, *curves: tuple[str, str, int]) -> str:
    """Write a file of flat curves: (backend, model, level_ns); gives its path."""
    frozen = [FrozenCurve(backend, model, flat(level), 0.02, 0.03) for backend, model, level in curves]
    write_curves(str(path), FrozenCurves(FROZEN_AT, tuple(frozen)))
    return str(path)
