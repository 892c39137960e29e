"""Whether a stream goes the quick way: which pieces a dialect's hot path was asked about."""

from __future__ import annotations

import pytest

from proxy.relay.dialects.base import Dialect


def watched(dialect: type[Dialect], monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The data that ``dialect.quick`` is asked about from now on, in a list that grows."""
    asked: list[bytes] = []
    quick = dialect.quick

    def watching(data: bytes) -> int:
        asked.append(data)
        return quick(data)  # type: ignore[call-arg, arg-type]  # it is static

    monkeypatch.setattr(dialect, "quick", staticmethod(watching))
    return asked
